"""Adagrad with a falling rate: s = s + g^2, theta = theta - alpha_t g / (sqrt(s) + eps)."""

import numpy as np

import fastopt as fo
from fastopt.examples import compare

ALPHA, EPS, STEPS = 0.5, 1e-10, 300


def rate(t):
    return ALPHA / (1 + t) ** 0.25


def textbook(x, y):
    theta, s = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for t in range(STEPS):
        g = 2 * x.T @ (x @ theta - y) / len(x)
        s += g**2
        theta = theta - rate(t) * g / (np.sqrt(s) + EPS)
    return theta


def main():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 3)) * [1.0, 10.0, 0.1]  # features of other sizes, for which it was made
    y = x @ [1.0, -0.2, 5.0]
    model = fo.Sequential([fo.Dense(1, use_bias=False, kernel_initializer="zeros")], dtype="float64")
    model.compile(fo.Adagrad(lr=rate, eps=EPS), "mean_squared_error")  # any function of the steps done is a schedule
    model.fit(x, y, epochs=STEPS, batch_size=len(x))
    compare("theta", model.get_weights()[0], textbook(x, y))


if __name__ == "__main__":
    main()
