"""The perceptron: w = w + alpha y x for each row that is on the wrong side, until there is none (Rosenblatt 1958)."""

import numpy as np

import fastopt as fo
from fastopt.callbacks import EarlyStopping
from fastopt.examples import compare

ALPHA, EPOCHS = 0.5, 200


def textbook(x, y):
    w, b = np.zeros(x.shape[1]), 0.0
    for _ in range(EPOCHS):
        wrong = 0
        for row, side in zip(x, y, strict=True):
            if side * (row @ w + b) <= 0:
                w, b, wrong = w + ALPHA * side * row, b + ALPHA * side, wrong + 1
        if not wrong:
            break
    return [*w, b]


def main():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (100, 2))
    x = x[np.abs(x @ [1.0, -2.0] + 0.3) > 0.2]  # separable, with a margin
    y = np.where(x @ [1.0, -2.0] + 0.3 > 0, 1, -1)
    model = fo.Sequential([fo.Dense(1, kernel_initializer="zeros")], dtype="float64")
    model.compile(fo.SGD(lr=ALPHA), "perceptron", ["accuracy"])
    stop = EarlyStopping("loss", threshold=0.0)  # no row was wrong
    history = model.fit(x, y, epochs=EPOCHS, batch_size=1, shuffle=False, callbacks=[stop])
    w, b = model.get_weights()
    compare("weights", [*w[:, 0], *b], textbook(x, y), rounding=0)
    compare(f"accuracy after {len(history)} epochs", model.evaluate(x, y)["accuracy"], 1.0, rounding=0)


if __name__ == "__main__":
    main()
