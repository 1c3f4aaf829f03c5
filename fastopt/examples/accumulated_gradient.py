"""Accumulated gradient: v = v + g, theta = theta - alpha_t v, where alpha_t = alpha gamma^t.

A momentum of 1 forgets nothing, so the rate must fall for the steps to end.
"""

import numpy as np

import fastopt as fo
from fastopt.examples import compare

ALPHA, GAMMA, STEPS = 0.05, 0.97, 200


def textbook(x, y):
    theta, v = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for t in range(STEPS):
        v += x.T @ (x @ theta - y) / len(x)
        theta = theta - ALPHA * GAMMA**t * v
    return theta


def main():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 3))
    y = x @ [1.0, -2.0, 0.5]
    model = fo.Sequential([fo.Dense(1, use_bias=False, kernel_initializer="zeros")], dtype="float64")
    # half the rate: `mean_squared_error` is twice the textbook's loss
    model.compile(fo.SGD(lr=fo.schedules.Exponential(ALPHA / 2, gamma=GAMMA), momentum=1), "mean_squared_error")
    model.fit(x, y, epochs=STEPS, batch_size=len(x))
    compare("theta", model.get_weights()[0], textbook(x, y))


if __name__ == "__main__":
    main()
