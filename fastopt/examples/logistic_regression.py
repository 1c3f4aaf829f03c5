"""Logistic regression: J = -mean(y log h + (1 - y) log(1 - h)), h = 1 / (1 + exp(-x w - b)).

The descent ends where Newton's method does, which is iteratively reweighted least squares.
"""

import numpy as np

import fastopt as fo
from fastopt.examples import compare

ALPHA, STEPS = 2.0, 3000


def hypothesis(x, theta):
    return 1 / (1 + np.exp(-x @ theta))


def textbook(x, y, newton):
    theta = np.zeros(x.shape[1])
    for _ in range(20 if newton else STEPS):
        h = hypothesis(x, theta)
        gradient, hessian = x.T @ (h - y), (x * (h * (1 - h))[:, np.newaxis]).T @ x
        theta = theta - (np.linalg.solve(hessian, gradient) if newton else ALPHA * gradient / len(x))
    return theta


def main():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (80, 2))
    y = (rng.random(80) < hypothesis(x, np.array([2.0, -3.0]))).astype(int)
    model = fo.Sequential([fo.Dense(1, "sigmoid", kernel_initializer="zeros")], dtype="float64")
    model.compile(fo.SGD(lr=ALPHA), "binary_crossentropy")
    model.fit(x, y, epochs=STEPS, batch_size=len(x))
    theta, ones = np.concatenate([p.ravel() for p in model.get_weights()]), np.column_stack([x, np.ones(80)])
    compare("descent", theta, textbook(ones, y, newton=False))
    compare("Newton's method", theta, textbook(ones, y, newton=True), rounding=1e-8)


if __name__ == "__main__":
    main()
