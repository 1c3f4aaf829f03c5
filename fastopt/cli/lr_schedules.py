"""Learning-rate schedules of `fastopt train`, by their names on the command line."""

from __future__ import annotations

from collections.abc import Callable

from ..schedules import Cosine, CosineRestarts, Exponential, Linear, OneCycle, Schedule, WarmUp

LAST = 0.01  # share of the highest rate that an exponential decay ends at
CYCLES = 1 + 2 + 4  # lengths of three cycles, each twice as long as the one before, in those of the first

# Functions of the highest rate, the number of steps, and how many of these warm up.
SCHEDULES: dict[str, Callable[[float, int, int], Schedule | float]] = {
    "constant": lambda lr, steps, warmup: _after(warmup, lr),
    "cosine": lambda lr, steps, warmup: Cosine(lr, steps, warmup=warmup),
    "cosine-restarts": lambda lr, steps, warmup: _after(
        warmup, CosineRestarts(lr, -(-max(steps - warmup, 1) // CYCLES))
    ),
    "exponential": lambda lr, steps, warmup: _after(warmup, Exponential(lr, LAST, max(steps - warmup, 1))),
    "linear": lambda lr, steps, warmup: Linear(lr, steps, warmup=warmup),
    "one-cycle": lambda lr, steps, warmup: OneCycle(lr, steps),  # has a warm-up of its own
}


def _after(warmup: int, then: Schedule | float) -> Schedule | float:
    """A schedule after so many steps of warm-up."""
    return WarmUp(warmup, then) if warmup else then
