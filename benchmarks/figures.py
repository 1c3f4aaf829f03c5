"""The figures of the README, contestants interleaved in one run: `python benchmarks/figures.py [NAME ...]`.

Every figure is a median over rounds in which each contestant has its turn, so that all see the machine in the same
state; what counts is the ratio. It ends with a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

import fastopt as fo
from fastopt.benchmarks.limits import interleave, stream, update_bytes
from fastopt.kernels import cpu, reference
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Update

# The threads of NumPy's BLAS look for more work for 0.1 s after a product, and would take a core from whoever is next.
PAUSE = 0.15

Row = tuple[str, str, str, str]  # work, fastopt, the other, ratio


def updates() -> Iterator[Row]:
    """In-place updates of 10 M float32 parameters against streaming the same bytes, and against the reference."""
    size = 10_000_000
    for rule in ("adam", "adagrad", "momentum"):
        rng = np.random.default_rng(0)
        count = len(OPTIMIZERS[rule].states)
        p, g, *states = (rng.random(size, dtype="float32") for _ in range(2 + count))
        job = Update(rule, p, g, tuple(states), OPTIMIZERS[rule].options, 10)
        times = interleave(
            {
                "cpu": lambda job=job: cpu.update([job]),
                "numpy": lambda job=job: reference.update([job]),
                "stream": stream(p, g, tuple(states)),
            },
            rounds=11,
        )
        rate = update_bytes(p, count) / times["cpu"] / 1e9
        ours = f"{times['cpu'] * 1e3:.2f} ms, {rate:.0f} GB/s"
        work = f"{rule} update, 10 M float32"
        yield work, ours, f"streaming limit {times['stream'] * 1e3:.2f} ms", f"{times['stream'] / times['cpu']:.2f}"
        yield work, ours, f"NumPy {times['numpy'] * 1e3:.1f} ms", f"{times['numpy'] / times['cpu']:.1f}"


def _models(widths: tuple[int, ...]) -> dict[str, fo.Sequential]:
    models = {}
    for backend in ("cpu", "numpy"):
        layers = [*(fo.Dense(width, "relu") for width in widths), fo.Dense(10)]
        models[backend] = fo.Sequential(layers, seed=0, backend=backend)
        models[backend].compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return models


def fashion() -> Iterator[Row]:
    """An epoch of Fashion-MNIST, 784-256-128-10, ReLU, Adam, batch 64; test accuracy after ten."""
    data = fo.datasets.load("fashion-mnist")
    models = _models((256, 128))
    seconds: dict[str, list[float]] = {name: [] for name in models}
    epochs = 10
    for epoch in range(epochs):
        for name, model in models.items():
            time.sleep(PAUSE)
            history = model.fit(
                data.x_train, data.y_train, epochs=epoch + 1, initial_epoch=epoch, batch_size=64, verbose=0
            )
            seconds[name] += history["seconds"]
        print(f"  epoch {epoch + 1}: " + ", ".join(f"{name} {took[-1]:.3f} s" for name, took in seconds.items()))
    ours, theirs = (float(np.median(seconds[name][1:])) for name in ("cpu", "numpy"))
    work = "Fashion-MNIST epoch, 784-256-128-10, batch 64"
    yield work, f"{ours:.3f} s", f"NumPy {theirs:.3f} s", f"{theirs / ours:.2f}"
    scores = {name: model.evaluate(data.x_test, data.y_test)["accuracy"] for name, model in models.items()}
    yield (
        f"its test accuracy after {epochs} epochs",
        f"{100 * scores['cpu']:.2f} %",
        f"NumPy {100 * scores['numpy']:.2f} %",
        "",
    )
    slow = float(np.median(seconds["cpu"][-3:])) / float(np.median(seconds["cpu"][1:4]))
    yield "its epochs 8 to 10 against epochs 2 to 4", "", "", f"{slow:.2f}"


def digits() -> Iterator[Row]:
    """Samples a second of a network of width 16 on the digits, batch 32."""
    data = fo.datasets.load("digits")
    models = _models((16,))
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(15):
        for name, model in models.items():
            time.sleep(PAUSE)
            history = model.fit(data.x_train, data.y_train, epochs=6, batch_size=32, verbose=0)
            rates[name] += history["samples_per_second"][1:]  # the first epoch prepares the others
    ours, theirs = (float(np.median(rates[name][5:])) for name in ("cpu", "numpy"))
    per_second = f"{ours:,.0f} samples/s", f"NumPy {theirs:,.0f} samples/s"
    yield "digits, 64-16-10, batch 32", *per_second, f"{ours / theirs:.1f}"


def _seconds(*command: str, **environment: str) -> Callable[[], None]:
    def call() -> None:
        subprocess.run(command, check=True, env=os.environ | environment, capture_output=True)

    return call


def imports() -> Iterator[Row]:
    """What `import fastopt` adds to the start of Python, against `import numpy`."""
    times = interleave(
        {
            "start": _seconds(sys.executable, "-c", "pass"),
            "numpy": _seconds(sys.executable, "-c", "import numpy"),
            "fastopt": _seconds(sys.executable, "-c", "import numpy, fastopt"),
        },
        rounds=21,
    )
    theirs, ours = times["numpy"] - times["start"], times["fastopt"] - times["numpy"]
    yield "import fastopt, after numpy", f"{ours * 1e3:.1f} ms", f"numpy {theirs * 1e3:.1f} ms", f"{ours / theirs:.2f}"


def train() -> Iterator[Row]:
    """`fastopt train` with its defaults, the whole process: with an empty cache folder and with a full one."""
    folder = tempfile.mkdtemp()
    try:
        command = _seconds(sys.executable, "-m", "fastopt", "train", FASTOPT_CACHE_DIR=folder)
        first = interleave({"first": command}, rounds=1, warm=0)["first"]
        later = interleave({"later": command}, rounds=5, warm=0)["later"]
    finally:
        shutil.rmtree(folder)
    yield "fastopt train, first time ever", f"{first:.1f} s", "", ""
    yield "fastopt train, afterwards", f"{later:.1f} s", "", ""


FIGURES = {"updates": updates, "fashion": fashion, "digits": digits, "imports": imports, "train": train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures: {', '.join(FIGURES)} (default: all)")
    names = parser.parse_args().names or list(FIGURES)
    if unknown := [name for name in names if name not in FIGURES]:
        parser.error(f"no figure {unknown[0]!r}: choose from {', '.join(FIGURES)}")
    rows: list[Row] = [("work", "fastopt", "against", "ratio"), ("---", "---", "---", "---")]
    for name in names:
        print((FIGURES[name].__doc__ or "").strip(), flush=True)
        for row in FIGURES[name]():
            rows.append(row)
            print("  " + " | ".join(cell for cell in row if cell), flush=True)
    print("\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
