"""Bias and variance against model size: polynomials of degree 0 to 9 on many training sets of one function.

A layer of one output for each training set fits all of them at once. Columns of x are orthonormal, so that a step of
gradient descent with the right rate is the least squares solution.
"""

import numpy as np

import fastopt as fo
from fastopt.examples import compare

SETS, ROWS, NOISE = 200, 30, 0.3


def fitted(x, y):
    """The outputs for x of models that are trained on each column of y."""
    model = fo.Sequential([fo.Dense(SETS, use_bias=False, kernel_initializer="zeros")], dtype="float64")
    model.compile(fo.SGD(lr=SETS * ROWS / 2), "mean_squared_error")  # the loss is a mean over rows and outputs
    model.fit(x, y, batch_size=ROWS)
    return model.predict(x)


def main():
    t, rng = np.linspace(-1, 1, ROWS), np.random.default_rng(0)
    truth = np.sin(np.pi * t)
    y = truth[:, np.newaxis] + NOISE * rng.standard_normal((ROWS, SETS))
    print("degree  bias^2  variance")
    for degree in range(10):
        x, _ = np.linalg.qr(np.polynomial.legendre.legvander(t, degree))
        outputs = fitted(x, y)
        bias2, variance = np.mean((outputs.mean(axis=1) - truth) ** 2), np.mean(outputs.var(axis=1))
        print(f"{degree:6}  {bias2:6.4f}  {variance:8.4f}")
        compare("least squares", outputs, x @ np.linalg.lstsq(x, y, rcond=None)[0])
    compare("variance of degree 9", variance, NOISE**2 * 10 / ROWS, rounding=0.01)  # sigma^2 p / n


if __name__ == "__main__":
    main()
