"""Linear regression by gradient descent: J = sum (w x + b - y)^2 / 2n, theta = theta - alpha grad J.

`mean_squared_error` is 2 J, so its learning rate is alpha / 2.
"""

import numpy as np

import fastopt as fo
from fastopt.examples import compare

ALPHA, STEPS = 0.5, 500


def textbook(x, y):
    w, b = np.zeros(x.shape[1]), 0.0
    for _ in range(STEPS):
        error = x @ w + b - y
        w, b = w - ALPHA * x.T @ error / len(x), b - ALPHA * error.mean()
    return [*w, b]


def main():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (50, 2))
    y = x @ [3.0, -2.0] + 1 + 0.1 * rng.standard_normal(50)
    model = fo.Sequential([fo.Dense(1, kernel_initializer="zeros")], dtype="float64")
    model.compile(fo.SGD(lr=ALPHA / 2), "mean_squared_error")
    model.fit(x, y, epochs=STEPS, batch_size=len(x))
    w, b = model.get_weights()
    compare("gradient descent", [*w[:, 0], *b], textbook(x, y))
    exact = np.linalg.lstsq(np.column_stack([x, np.ones(50)]), y, rcond=None)[0]
    compare("least squares", [*w[:, 0], *b], exact, rounding=1e-8)


if __name__ == "__main__":
    main()
