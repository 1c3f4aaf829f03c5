"""L2 and L1: J = sum (x w - y)^2 / 2n + lambda / 2n |w|^2 (ridge), or + lambda / 2n |w|_1 (lasso), by gradient descent.

`mean_squared_error` with the regularizer L2(lambda / n), or L1, is 2 J, so its learning rate is alpha / 2.
"""

import numpy as np

import fastopt as fo
from fastopt.examples import compare

ALPHA, LAMBDA, STEPS = 0.3, 5.0, 400


def descent(x, y, penalty_gradient):
    w = np.zeros(x.shape[1])
    for _ in range(STEPS):
        w = w - ALPHA * (x.T @ (x @ w - y) + LAMBDA / 2 * penalty_gradient(w)) / len(x)
    return w


def fitted(x, y, regularizer):
    layer = fo.Dense(1, use_bias=False, kernel_initializer="zeros", kernel_regularizer=regularizer)
    model = fo.Sequential([layer], dtype="float64")
    model.compile(fo.SGD(lr=ALPHA / 2), "mean_squared_error")
    model.fit(x, y, epochs=STEPS, batch_size=len(x))
    return model.get_weights()[0]


def main():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 3))
    y = x @ [2.0, -1.0, 0.5] + 0.1 * rng.standard_normal(60)
    ridge, lasso = fitted(x, y, fo.regularizers.L2(LAMBDA / 60)), fitted(x, y, fo.regularizers.L1(LAMBDA / 60))
    compare("ridge, closed form", ridge, np.linalg.solve(x.T @ x + LAMBDA * np.eye(3), x.T @ y))
    compare("ridge, descent", ridge, descent(x, y, lambda w: 2 * w))
    compare("lasso, descent", lasso, descent(x, y, np.sign))


if __name__ == "__main__":
    main()
