"""Adam with a rate that falls to 0 along a cosine: Kingma & Ba 2015, algorithm 1, on minibatches."""

import numpy as np

import fastopt as fo
from fastopt.examples import compare

ALPHA, BETA1, BETA2, EPS, EPOCHS, SIZE = 0.1, 0.9, 0.999, 1e-8, 30, 10


def textbook(x, y, rate):
    theta, m, v, t = np.zeros(x.shape[1]), 0.0, 0.0, 0
    for _ in range(EPOCHS):
        for first in range(0, len(x), SIZE):
            rows, labels = x[first : first + SIZE], y[first : first + SIZE]
            g, t = 2 * rows.T @ (rows @ theta - labels) / len(rows), t + 1
            m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
            m_hat, v_hat = m / (1 - BETA1**t), v / (1 - BETA2**t)
            theta = theta - rate(t - 1) * m_hat / (np.sqrt(v_hat) + EPS)
    return theta


def main():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 3))
    y = x @ [1.0, -2.0, 0.5]
    rate = fo.schedules.Cosine(ALPHA, steps=EPOCHS * 6)
    model = fo.Sequential([fo.Dense(1, use_bias=False, kernel_initializer="zeros")], dtype="float64")
    model.compile(fo.Adam(lr=rate, betas=(BETA1, BETA2), eps=EPS), "mean_squared_error")
    model.fit(x, y, epochs=EPOCHS, batch_size=SIZE, shuffle=False)
    compare("theta", model.get_weights()[0], textbook(x, y, rate))


if __name__ == "__main__":
    main()
