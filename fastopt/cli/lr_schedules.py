"""Learning-rate schedules of `fastopt train`, by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable

from ..schedules import Cosine, Linear, OneCycle, Schedule, WarmUp

# Functions of the highest rate, the number of steps, and how many of these warm up.
SCHEDULES: dict[str, Callable[[float, int, int], Schedule | float]] = {
    "constant": lambda lr, steps, warmup: WarmUp(warmup, lr) if warmup else lr,
    "cosine": lambda lr, steps, warmup: Cosine(lr, steps, warmup=warmup),
    "linear": lambda lr, steps, warmup: Linear(lr, steps, warmup=warmup),
    "one-cycle": lambda lr, steps, warmup: OneCycle(lr, steps),  # has a warm-up of its own
}
