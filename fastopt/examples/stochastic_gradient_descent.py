"""Stochastic gradient descent: one row a step, in a new order every epoch, with the rate alpha / (1 + decay t)."""

import numpy as np

import fastopt as fo
from fastopt.examples import compare

ALPHA, DECAY, EPOCHS, SEED = 0.2, 0.01, 5, 3


def textbook(x, y):
    w, b, t = np.zeros(x.shape[1]), 0.0, 0
    for epoch in range(EPOCHS):
        stream = np.random.SeedSequence(SEED, spawn_key=(1, epoch))  # as `fit` shuffles
        for i in np.random.Generator(np.random.PCG64(stream)).permutation(len(x)):
            alpha, error = ALPHA / (1 + DECAY * t), x[i] @ w + b - y[i]
            w, b, t = w - alpha * error * x[i], b - alpha * error, t + 1
    return [*w, b]


def main():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (40, 2))
    y = x @ [3.0, -2.0] + 1
    model = fo.Sequential([fo.Dense(1, kernel_initializer="zeros")], seed=SEED, dtype="float64")
    rate = fo.schedules.InverseTime(ALPHA / 2, decay=DECAY)  # half: the gradient of a square has a factor of 2
    model.compile(fo.SGD(lr=rate), "mean_squared_error")
    model.fit(x, y, epochs=EPOCHS, batch_size=1)
    w, b = model.get_weights()
    compare("weights", [*w[:, 0], *b], textbook(x, y))


if __name__ == "__main__":
    main()
