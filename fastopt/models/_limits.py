"""Limits of a training, a number of steps and a time, and the distance between its checkpoints."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .._files import path_of
from .._validation import check_count, check_number
from ._parts import Part, PartialEpoch, Party

# Longest part that is begun where the time is looked at: some ms of preparing a part are then a thousandth of it, and
# a machine that becomes ten times as slow is noticed after ten seconds.
MOST_SECONDS = 1.0
Agree = Callable[[Any], Any]
GROWTH = 8  # most that a part is longer than the one before it: the first steps of all may be far from the usual pace


class MaxSteps(Party):
    """End of the training with a step; last: the number of steps that the optimizer has done then."""

    def __init__(self, last: int) -> None:
        self._last, self._done = last, 0

    def steps_until(self, step: int, left: int) -> int:
        return self._last - step

    def look(self, step: int) -> None:
        self._done = step

    def hear(self, model: Any, epoch: PartialEpoch, part: Part) -> None:
        self.look(part.step)

    @property
    def ends_training(self) -> bool:
        return self._done >= self._last


class Pace:
    """Number of steps that fit into a time, by the part before."""

    def __init__(self) -> None:
        self._steps, self._seconds = 0, 1.0

    def note(self, steps: int, seconds: float) -> None:
        """Take note of a part."""
        self._steps, self._seconds = steps, max(seconds, 1e-9)

    def steps_within(self, seconds: float, left: int) -> int:
        """Steps to do before the time is looked at again, where so many seconds are left: those of half of them.

        The rest of the epoch, `left`, if it fits; else a power of two, so that parts have few sizes, for each of which
        a backend prepares a program.

        >>> pace = Pace()
        >>> pace.steps_within(10.0, 600)
        1
        >>> pace.note(100, 0.02)
        >>> pace.steps_within(10.0, 600), pace.steps_within(10.0, 900), pace.steps_within(0.02, 600)
        (600, 512, 32)
        """
        fit = min(seconds / 2, MOST_SECONDS) * self._steps / self._seconds
        count = max(int(min(fit, GROWTH * self._steps)), 1)
        return left if left <= count else 1 << (count.bit_length() - 1)


class Clock(Party):
    """A time within a training: base class of those who are heard when it has come.

    before: seconds that the training has taken in earlier processes. agree: of processes that train together each has
    a clock, and must decide what the others do: it returns the value of one of them.
    """

    def __init__(self, before: float = 0.0, agree: Agree = lambda value: value) -> None:
        self._start = time.monotonic() - before
        self._pace, self._agree = Pace(), agree

    @property
    def seconds(self) -> float:
        """Seconds of the training so far."""
        return time.monotonic() - self._start

    @property
    def seconds_left(self) -> float:
        """Seconds until the time has come; 0 or less: it has."""
        raise NotImplementedError

    @property
    def has_come(self) -> bool:
        """True if the time has come, for all processes that train together."""
        return bool(self._agree(self.seconds_left <= 0))

    def steps_until(self, step: int, left: int) -> int:
        return int(self._agree(self._pace.steps_within(max(self.seconds_left, 0.0), left)))

    def hear(self, model: Any, epoch: PartialEpoch, part: Part) -> None:
        self._pace.note(len(part.sizes), part.result.seconds)


class MaxSeconds(Clock):
    """End of the training with the step in which so many seconds have passed."""

    def __init__(self, most: float, before: float = 0.0, agree: Agree = lambda value: value) -> None:
        super().__init__(before, agree)
        self._most = most
        self._over = before >= most  # a training of an earlier process, which has done a step at least

    @property
    def seconds_left(self) -> float:
        return self._most - self.seconds

    def look(self, step: int) -> None:
        self._over = self.has_come

    def hear(self, model: Any, epoch: PartialEpoch, part: Part) -> None:
        super().hear(model, epoch, part)
        self.look(part.step)

    @property
    def ends_training(self) -> bool:
        return self._over


# ---------------------------------------------------------------- options of fit


class Every(NamedTuple):
    """Distance between two checkpoints; one of the three is not None."""

    steps: int | None = None
    epochs: int | None = None
    seconds: float | None = None


SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}  # by the first letter of a unit


def every(value: Any) -> Every:
    """Distance between two checkpoints, in a user's words; ValueError for others.

    >>> every(37), every("5 min"), every("2 epochs")
    (Every(steps=37, epochs=None, seconds=None), Every(steps=None, epochs=None, seconds=300.0), \
Every(steps=None, epochs=2, seconds=None))
    """
    if not isinstance(value, str):
        return Every(steps=check_count("checkpoint_every", value))
    found = re.fullmatch(r"(\d+)? ?(step|epoch)s?|(\d+(?:\.\d+)?) ?(s|seconds?|min|minutes?|h|hours?)", value)
    number = float(found[1] or found[3] or 1) if found else 0.0
    if not found or not number or math.isinf(number):
        raise ValueError(
            f'checkpoint_every must be a number of steps, or such as "5 min", "2 epochs", "100 steps"; got {value!r}'
        )
    if found[4]:
        return Every(seconds=number * SECONDS[found[4][0]])
    return Every(steps=int(number)) if found[2] == "step" else Every(epochs=int(number))


def check_limits(options: Any) -> None:
    """Check steps_per_epoch, validation_freq, max_steps and max_seconds of a `fit`."""
    for name in ("steps_per_epoch", "max_steps"):
        if (value := getattr(options, name)) is not None:
            check_count(name, value)
    if options.max_seconds is not None and not check_number("max_seconds", options.max_seconds, 0.0):
        raise ValueError("max_seconds must be above 0; got 0")
    if isinstance(options.validation_freq, Sequence) and not isinstance(options.validation_freq, str):
        for number in options.validation_freq:
            check_count("validation_freq, a list of numbers of epochs,", number)
    else:
        check_count("validation_freq", options.validation_freq)
    if options.validation_freq != 1 and not options.validation_split and options.validation_data is None:
        raise ValueError("validation_freq is for validation_split or validation_data, of which there is neither")


def check_checkpoints(options: Any) -> None:
    """Check checkpoint, checkpoint_every and resume of a `fit`."""
    if options.checkpoint is not None:
        path_of("checkpoint", options.checkpoint)
    elif options.checkpoint_every is not None:
        raise ValueError("checkpoint_every needs checkpoint, the path of the file")
    if options.checkpoint_every is not None:
        every(options.checkpoint_every)
    if options.resume is True and options.checkpoint is None:
        raise ValueError("resume=True goes on from the file of checkpoint, which must be given")
    if options.resume is not None and not isinstance(options.resume, bool):
        path_of("resume", options.resume)
