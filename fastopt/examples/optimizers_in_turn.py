"""Several optimizers in turn on the same weights: momentum, whose rate is dropped in stages, then Adagrad."""

import numpy as np

import fastopt as fo
from fastopt.examples import compare

STAGES, MU, STEPS = (0.1, 0.01, 0.001), 0.9, 40  # rates, momentum, steps of a stage


def textbook(x, y):
    theta, velocity, squares = np.zeros(x.shape[1]), 0.0, 0.0
    for step in range(len(STAGES) * STEPS):
        velocity = MU * velocity + 2 * x.T @ (x @ theta - y) / len(x)
        theta = theta - STAGES[step // STEPS] * velocity
    for _ in range(STEPS):
        gradient = 2 * x.T @ (x @ theta - y) / len(x)
        squares += gradient**2
        theta = theta - STAGES[1] * gradient / (np.sqrt(squares) + 1e-10)
    return theta


def main():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (60, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.1 * rng.standard_normal(60)
    model = fo.Sequential([fo.Dense(1, use_bias=False, kernel_initializer="zeros")], dtype="float64")
    drops = fo.schedules.Step(STAGES[0], size=STEPS, gamma=0.1)
    turns = (fo.SGD(lr=drops, momentum=MU), len(STAGES) * STEPS), (fo.Adagrad(lr=STAGES[1]), STEPS)
    for optimizer, steps in turns:
        model.compile(optimizer, "mean_squared_error")  # the weights stay, and the optimizer starts afresh
        model.fit(x, y, epochs=steps, batch_size=len(x))
    theta = textbook(x, y)
    compare("theta", model.get_weights()[0], theta)
    compare("loss", model.evaluate(x, y)["loss"], np.mean((x @ theta - y) ** 2))


if __name__ == "__main__":
    main()
