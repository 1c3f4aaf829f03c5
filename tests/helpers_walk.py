"""Length of a call's walk through the sources: calls of Python functions, files entered, changes of file.

`PYTHONPATH=. python tests/helpers_walk.py` prints the walks of all calls below, function by function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo
from fastopt import kernels

ROOTS = tuple(f"{Path(package.__file__).parent}/" for package in (fo, kernels))  # type: ignore[arg-type]
WARM_UP = 3  # calls before the one that is walked: kernels are loaded and plans laid out


class Walk(NamedTuple):
    """Functions of fastopt and its kernels in the order in which they were called, as (file, function)."""

    path: list[tuple[str, str]]

    @property
    def calls(self) -> int:
        """Calls of Python functions, comprehensions and generators included; compiled kernels are none."""
        return len(self.path)

    @property
    def files(self) -> int:
        """Different files that were entered."""
        return len({file for file, _ in self.path})

    @property
    def changes(self) -> int:
        """Calls whose function lies in another file than the one called before it; returns do not count."""
        return sum(before != after for (before, _), (after, _) in pairwise(self.path))

    def __str__(self) -> str:
        head = f"{self.calls} calls, {self.files} files, {self.changes} changes of file"
        return "\n".join([head, *(f"    {file}  {function}" for file, function in self.path)])


def walk(call: Callable[[], Any]) -> Walk:
    """Run `call` once under `sys.setprofile`; only its own thread is seen, so kernels that run elsewhere are not."""
    path: list[tuple[str, str]] = []

    def listen(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            file = frame.f_code.co_filename
            if file.startswith(ROOTS):
                path.append((file, getattr(frame.f_code, "co_qualname", frame.f_code.co_name)))

    before = sys.getprofile()
    sys.setprofile(listen)
    try:
        call()
    finally:
        sys.setprofile(before)
    return Walk(path)


def numpy_step() -> Callable[[], Any]:
    """A step of `fastopt.Adam` on one float32 array."""
    opt, gradient = fo.Adam(np.zeros(1000, np.float32)), np.ones(1000, np.float32)
    return lambda: opt.step(gradient)


def torch_step() -> Callable[[], Any]:
    """A step of `fastopt.torch.Adam` on two float32 tensors."""
    import torch

    import fastopt.torch

    params = [torch.zeros(n, requires_grad=True) for n in (1000, 10)]
    for p in params:
        p.grad = torch.ones_like(p)
    return fastopt.torch.Adam(params).step


def second_fit() -> Callable[[], Any]:
    """`Sequential.fit` for one epoch of 150 rows with its default settings."""
    rng = np.random.default_rng(0)
    x, y = rng.random((150, 64), np.float32), rng.integers(0, 10, 150)
    model = fo.Sequential([fo.Dense(32, "relu"), fo.Dense(10)])
    model.compile("adam", "sparse_categorical_crossentropy")
    return lambda: model.fit(x, y, verbose=0)


def predict_row() -> Callable[[], Any]:
    """`Sequential.predict` of one row."""
    model = fo.Sequential([fo.Dense(32, "relu"), fo.Dense(10, "softmax")], inputs=64)
    row = np.ones((1, 64), np.float32)
    return lambda: model.predict(row)


def warm_walk(make: Callable[[], Callable[[], Any]]) -> Walk:
    """The walk of a call that has been made a few times before."""
    call = make()
    for _ in range(WARM_UP):
        call()
    return walk(call)


if __name__ == "__main__":
    for make in (numpy_step, torch_step, second_fit, predict_row):
        print(f"{make.__doc__} {warm_walk(make)}\n")
