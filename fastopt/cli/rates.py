"""What the learning rate of `fastopt train` does over the steps of the whole training."""

from __future__ import annotations

from collections.abc import Callable

from ..schedules import Cosine, Linear, OneCycle, Schedule, WarmUp

# By the name on the command line, given the highest rate, the number of steps, and how many of those warm up.
SCHEDULES: dict[str, Callable[[float, int, int], Schedule | float]] = {
    "constant": lambda lr, steps, warmup: WarmUp(warmup, lr) if warmup else lr,
    "cosine": lambda lr, steps, warmup: Cosine(lr, steps, warmup=warmup),
    "linear": lambda lr, steps, warmup: Linear(lr, steps, warmup=warmup),
    "one-cycle": lambda lr, steps, warmup: OneCycle(lr, steps),  # warms up in a way of its own
}
