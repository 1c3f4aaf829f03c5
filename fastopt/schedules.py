"""Learning-rate schedules: `fo.Adam(params, lr=fo.schedules.Cosine(1e-3, steps=1000))`.

A schedule is a function of t, the number of steps done: 0 at an optimizer's first step, 1 at the second. It has no
state, so a loaded optimizer continues exactly. The schedules of this module are frozen dataclasses: they compare,
print and pickle, and model files hold them by name and fields.

Any other function of t can be `lr`, such as one of optax's schedules, but model files cannot hold it: see
`Sequential.save`.

    >>> import numpy as np, fastopt as fo
    >>> p = np.zeros(1)
    >>> opt = fo.SGD(p, lr=Step(0.5, size=2), backend="numpy")
    >>> for _ in range(4):
    ...     print(f"{opt.lr:g}", opt.step(np.ones(1)), p.round(3).tolist())
    0.5 True [-0.5]
    0.5 True [-1.0]
    0.05 True [-1.05]
    0.05 True [-1.1]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from math import ceil, cos, inf, log, pi
from typing import Any

from ._validation import check_count, check_name, check_number, describe

__all__ = [
    "SCHEDULES",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "InverseTime",
    "Join",
    "Linear",
    "MultiStep",
    "OneCycle",
    "Polynomial",
    "Schedule",
    "Step",
    "WarmUp",
    "from_config",
    "to_config",
]

# Least values of fields, by name: of whole numbers, and of floats.
_COUNTS = {"size": 1, "steps": 1, "warmup": 0}
_LOWS = {"lr": 0.0, "end": 0.0, "start": 0.0, "gamma": 0.0, "decay": 0.0, "power": 0.0, "divisor": 1.0}
_LOWS |= {"slope": 0.0, "most": 0.0, "t_mul": 1.0, "m_mul": 0.0}
_PLOTTED = 10_000  # points of a plot, at most: more than its pixels


class Schedule(ABC):
    """Base class: called with t, the number of steps done, a schedule returns the learning rate of the next step.

    Subclasses are frozen dataclasses. Fields named as those of this module, such as `lr` and `steps`, are checked: they
    raise TypeError or ValueError for values of another type, below their least value, infinite or NaN. A field whose
    default is None may be None.
    """

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.name in _COUNTS and field.type not in (float, "float"):
                object.__setattr__(self, field.name, check_count(field.name, value, _COUNTS[field.name]))
            elif field.name in _LOWS:
                object.__setattr__(self, field.name, check_number(field.name, value, _LOWS[field.name]))

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the learning rate of the next step, after `step` steps."""

    def plot(self, steps: int, ax: Any = None) -> Any:
        """Draw the rates of the first `steps` steps into a Matplotlib `Axes`, by default of a new figure; return it.

        Of more than 10,000 steps so many are drawn, evenly spread, with the first and the last one. ImportError without
        Matplotlib (extra `plot`).

        >>> ax = Cosine(1e-3, steps=300, warmup=30).plot(400)  # doctest: +SKIP
        >>> ax.figure.savefig("schedule.png")  # doctest: +SKIP
        """
        steps = check_count("steps", steps)
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("plot needs Matplotlib: pip install 'fastopt[plot]'") from error
        points = min(steps, _PLOTTED)
        drawn = [i * (steps - 1) // max(points - 1, 1) for i in range(points)]
        if ax is None:
            ax = pyplot.subplots()[1]
        ax.plot(drawn, [self(step) for step in drawn], drawstyle="steps-post" if steps <= 100 else "default")
        ax.set_xlabel("steps done")
        ax.set_ylabel("learning rate")
        return ax


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate for every step, as a number is: lr.

    >>> Constant(0.5)(0), Constant(0.5)(1000)
    (0.5, 0.5)
    """

    lr: float

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class Step(Schedule):
    """Multiplied by gamma after every `size` steps: lr gamma^floor(t / size).

    Source: torch.optim.lr_scheduler.StepLR.

    >>> [round(Step(0.8, size=2, gamma=0.5)(t), 9) for t in range(6)]
    [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    """

    lr: float
    size: int
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** (step // self.size)


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiplied by gamma at each milestone: lr gamma^(number of milestones <= t).

    The milestones are step numbers in rising order.

    Source: torch.optim.lr_scheduler.MultiStepLR.

    >>> [round(MultiStep(0.8, milestones=(1, 4), gamma=0.5)(t), 9) for t in range(6)]
    [0.8, 0.4, 0.4, 0.4, 0.2, 0.2]
    """

    lr: float
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "milestones", _as_rising("milestones", self.milestones))

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** bisect_right(self.milestones, step)


@dataclass(frozen=True)
class Exponential(Schedule):
    """Exponential decay or growth, by gamma over `steps` steps: lr gamma^(t / steps), and at most `most`.

    `steps` is any positive number, such as that of an epoch. With steps=1 each rate is gamma times the one before:
    lr_t = gamma lr_(t-1). The decay eta0 (1 / alpha)^(t / alpha) of textbooks, alpha whole or not, is
    `Exponential(eta0, gamma=1 / alpha, steps=alpha)`. A gamma above 1 lets the rate grow, up to `most`, if that is
    given; without a bound it becomes infinite, which optimizers refuse.

    Source: torch.optim.lr_scheduler.ExponentialLR, with steps=1; keras.optimizers.schedules.ExponentialDecay. Growth is
    the range test of Smith 2017.

    >>> [round(Exponential(0.8, gamma=0.25, steps=2)(t), 9) for t in range(4)]
    [0.8, 0.4, 0.2, 0.1]
    >>> [round(Exponential(0.1, gamma=2, most=0.5)(t), 9) for t in range(5)]
    [0.1, 0.2, 0.4, 0.5, 0.5]
    >>> [round(Exponential(0.8, gamma=1 / 2.5, steps=2.5)(t), 4) for t in range(6)]  # alpha = 2.5
    [0.8, 0.5545, 0.3844, 0.2664, 0.1847, 0.128]
    """

    lr: float
    gamma: float
    steps: float = 1
    most: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if hasattr(self.steps, "__index__"):
            object.__setattr__(self, "steps", check_count("steps", self.steps))
        elif not check_number("steps", self.steps, 0.0):
            raise ValueError("steps must be above 0; got 0.0")
        if self.most is not None and self.most < self.lr:
            raise ValueError(f"most must be at least lr={self.lr:g}, the first rate; got {self.most:g}")

    def __call__(self, step: int) -> float:
        try:
            rate = self.lr * self.gamma ** (step / self.steps)
        except OverflowError:  # of a float's power
            rate = inf if self.lr else 0.0
        return rate if self.most is None else min(rate, self.most)


@dataclass(frozen=True)
class InverseTime(Schedule):
    """Inverse-time decay: lr / (1 + decay t)^power. With decay=1 and power=0.5 it is lr / sqrt(1 + t).

    Source: Robbins & Monro 1951; with power=1 keras.optimizers.schedules.InverseTimeDecay, and lr_decay of
    torch.optim.Adagrad.

    >>> [round(InverseTime(0.6, decay=1.0)(t), 9) for t in range(4)]
    [0.6, 0.3, 0.2, 0.15]
    """

    lr: float
    decay: float
    power: float = 1.0

    def __call__(self, step: int) -> float:
        return self.lr / (1 + self.decay * step) ** self.power


@dataclass(frozen=True)
class Polynomial(Schedule):
    """Polynomial from lr to `end` over `steps` steps, then `end`: end + (lr - end) (1 - t / steps)^power.

    Source: torch.optim.lr_scheduler.PolynomialLR with end=0; optax.polynomial_schedule.

    >>> [round(Polynomial(0.9, steps=3, power=2.0)(t), 9) for t in range(5)]
    [0.9, 0.4, 0.1, 0.0, 0.0]
    """

    lr: float
    steps: int
    power: float = 1.0
    end: float = 0.0

    def __call__(self, step: int) -> float:
        return self.end + (self.lr - self.end) * (1 - min(step / self.steps, 1.0)) ** self.power


@dataclass(frozen=True)
class Linear(Schedule):
    """Linear from lr to `end`, then `end`; with `warmup`, its first steps rise from 0 to lr.

        lr t / warmup                                               t < warmup
        lr + (end - lr) (t - warmup) / (steps - warmup)             t < steps
        end                                                         else

    A `slope` instead of `steps` is the fall in a step: max(end, lr - slope (t - warmup)). So eta0 - t / alpha, down to
    0, is `Linear(eta0, slope=1 / alpha)`.

    Source: torch.optim.lr_scheduler.LinearLR; optax.linear_schedule; with warm-up as Devlin et al. 2019 (BERT).

    >>> [round(Linear(0.8, steps=6, warmup=2)(t), 9) for t in range(8)]
    [0.0, 0.4, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0]
    >>> [round(Linear(0.8, slope=1 / 4)(t), 9) for t in range(5)]
    [0.8, 0.55, 0.3, 0.05, 0.0]
    """

    lr: float
    steps: int | None = None
    end: float = 0.0
    warmup: int = 0
    slope: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.slope is None):
            raise ValueError(f"Linear must have steps or slope, one of the two; got {self.steps} and {self.slope}")
        super().__post_init__()
        if self.steps is not None:
            _check_warmup(self.warmup, self.steps)
        elif self.end > self.lr:
            raise ValueError(f"end must be at most lr={self.lr:g}, from which a slope falls; got {self.end:g}")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * step / self.warmup
        if self.slope is not None:
            return max(self.end, self.lr - self.slope * (step - self.warmup))
        assert self.steps is not None
        return self.lr + (self.end - self.lr) * min((step - self.warmup) / (self.steps - self.warmup), 1.0)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from lr to `end`, then `end`; with `warmup`, its first steps rise from `start` to lr.

        start + (lr - start) t / warmup                                                      t < warmup
        end + (lr - end) (1 + cos(pi (t - warmup) / (steps - warmup))) / 2                   t < steps
        end                                                                                  else

    Source: Loshchilov & Hutter 2017 (SGDR), without restarts; torch.optim.lr_scheduler.CosineAnnealingLR up to T_max;
    optax.warmup_cosine_decay_schedule, whose decay_steps include the warm-up as `steps` does.

    >>> [round(Cosine(0.8, steps=6, warmup=2)(t), 9) for t in range(8)]
    [0.0, 0.4, 0.8, 0.682842712, 0.4, 0.117157288, 0.0, 0.0]
    """

    lr: float
    steps: int
    end: float = 0.0
    warmup: int = 0
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_warmup(self.warmup, self.steps)

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.start + (self.lr - self.start) * step / self.warmup
        part = min((step - self.warmup) / (self.steps - self.warmup), 1.0)
        return _half_cosine(self.lr, self.end, part)


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Half cosines to `end`, one after the other: the first from lr in `steps` steps, each t_mul times as long.

    Each begins m_mul times as far above `end` as the one before. Cycle i, from 0, begins at
    s_i = steps (1 + t_mul + ... + t_mul^(i - 1)); within it the rate is

        end + (lr - end) m_mul^i (1 + cos(pi (t - s_i) / (steps t_mul^i))) / 2

    Source: Loshchilov & Hutter 2017 (SGDR), with T_0 = steps and T_mult = t_mul;
    keras.optimizers.schedules.CosineDecayRestarts, whose names and defaults these are (alpha there is end / lr);
    torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, whose T_mult is 1 by default. `WarmUp` puts a warm-up before.

    >>> [round(CosineRestarts(0.8, steps=2)(t), 9) for t in range(7)]
    [0.8, 0.4, 0.8, 0.682842712, 0.4, 0.117157288, 0.8]
    >>> [round(CosineRestarts(0.8, steps=2, t_mul=1, m_mul=0.5)(t), 9) for t in range(6)]
    [0.8, 0.4, 0.4, 0.2, 0.2, 0.1]
    """

    lr: float
    steps: int
    t_mul: float = 2.0
    m_mul: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end > self.lr:
            raise ValueError(f"end must be at most lr={self.lr:g}, from which cycles fall; got {self.end:g}")

    def __call__(self, step: int) -> float:
        cycle, first = self._cycle(step)
        part = (step - first) / (self.steps * self.t_mul**cycle)
        return _half_cosine(self.end + (self.lr - self.end) * self.m_mul**cycle, self.end, part)

    def _cycle(self, step: int) -> tuple[int, float]:
        """Number of the cycle that a step is in, and where it begins."""
        if self.t_mul == 1:
            return step // self.steps, step // self.steps * self.steps
        # the logarithm may be off by its rounding at the end of a cycle
        cycle = ceil(log(1 + step / self.steps * (self.t_mul - 1)) / log(self.t_mul))
        while self._begin(cycle) > step:
            cycle -= 1
        return cycle, self._begin(cycle)

    def _begin(self, cycle: int) -> float:
        return self.steps * (self.t_mul**cycle - 1) / (self.t_mul - 1)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Half cosines up from lr / divisor to lr and down to lr / (divisor final_divisor), then constant.

    The peak is at t = share steps - 1, the end at t = steps - 1.

    Source: Smith & Topin 2019; torch.optim.lr_scheduler.OneCycleLR, whose pct_start is `share`.

    >>> [round(OneCycle(0.8, steps=5, share=0.6, divisor=2.0, final_divisor=4.0)(t), 9) for t in range(6)]
    [0.4, 0.6, 0.8, 0.45, 0.1, 0.1]
    """

    lr: float
    steps: int
    share: float = 0.3
    divisor: float = 25.0
    final_divisor: float = 1e4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "share", check_number("share", self.share, 0.0, 1.0))
        object.__setattr__(self, "final_divisor", check_number("final_divisor", self.final_divisor, 1.0))

    def __call__(self, step: int) -> float:
        first = self.lr / self.divisor
        peak, last = self.share * self.steps - 1, self.steps - 1
        if step <= peak:
            return _half_cosine(first, self.lr, step / peak if peak else 1.0)
        return _half_cosine(self.lr, first / self.final_divisor, min((step - peak) / (last - peak), 1.0))


@dataclass(frozen=True)
class Join(Schedule):
    """One schedule after the other: at each boundary, a step number, the next one begins at its own t = 0.

    There is one boundary less than there are schedules. A number instead of a schedule is a constant rate.

    Source: optax.join_schedules; torch.optim.lr_scheduler.SequentialLR.

    >>> [Join((0.1, Linear(0.8, steps=2), 0.3), boundaries=(1, 3))(t) for t in range(5)]
    [0.1, 0.8, 0.4, 0.3, 0.3]
    """

    schedules: tuple[Schedule | float, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        if isinstance(self.schedules, str) or not isinstance(self.schedules, tuple | list):
            raise TypeError(f"schedules must be a sequence of schedules; got {describe(self.schedules)}")
        parts = tuple(_as_part(f"schedules[{i}]", part) for i, part in enumerate(self.schedules))
        boundaries = _as_rising("boundaries", self.boundaries)
        if len(boundaries) != len(parts) - 1:
            raise ValueError(
                f"there must be one boundary less than schedules; got {len(boundaries)} and {len(parts)} of them"
            )
        object.__setattr__(self, "schedules", parts)
        object.__setattr__(self, "boundaries", boundaries)

    def __call__(self, step: int) -> float:
        index = bisect_right(self.boundaries, step)
        return _rate_of(self.schedules[index], step - self.boundaries[index - 1] if index else step)


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Linear warm-up over `steps` steps, from `start` to the first rate of `then`; after it `then`, from its own t = 0.

        start + (then(0) - start) t / steps       t < steps
        then(t - steps)                           else

    Source: Goyal et al. 2017. A number as `then` is a constant rate.

    >>> [round(WarmUp(2, then=Exponential(0.8, gamma=0.5))(t), 9) for t in range(5)]
    [0.0, 0.4, 0.8, 0.4, 0.2]
    """

    steps: int
    then: Schedule | float
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "then", _as_part("then", self.then))

    def __call__(self, step: int) -> float:
        if step < self.steps:
            return self.start + (_rate_of(self.then, 0) - self.start) * step / self.steps
        return _rate_of(self.then, step - self.steps)


SCHEDULES: dict[str, type[Schedule]] = {
    cls.__name__: cls
    for cls in (
        Constant, Step, MultiStep, Exponential, InverseTime, Polynomial, Linear, Cosine, CosineRestarts, OneCycle, Join,
        WarmUp,
    )
}  # fmt: skip


def to_config(schedule: Schedule | float) -> Any:
    """Return a schedule as a dict for JSON, with its name and its fields that are not None; a number as it is.

    Raises TypeError for a schedule that is not one of SCHEDULES.

    >>> to_config(WarmUp(2, then=Step(0.8, size=3)))
    {'schedule': 'WarmUp', 'steps': 2, 'then': {'schedule': 'Step', 'lr': 0.8, 'size': 3, 'gamma': 0.1}, 'start': 0.0}
    """
    if isinstance(schedule, int | float):
        return schedule
    if SCHEDULES.get(type(schedule).__name__) is not type(schedule):
        raise TypeError(f"a schedule must be one of {', '.join(SCHEDULES)}; got {describe(schedule)}")
    own = {field.name: getattr(schedule, field.name) for field in fields(schedule)}  # type: ignore[arg-type]
    own = {name: value for name, value in own.items() if value is not None}  # as files of before a field was there
    for name, value in own.items():
        if isinstance(value, Schedule):
            own[name] = to_config(value)
        elif isinstance(value, tuple):
            own[name] = [to_config(part) for part in value]
    return {"schedule": type(schedule).__name__, **own}


def from_config(config: Any) -> Schedule | float:
    """Return the schedule of a dict that `to_config` returned; TypeError or ValueError for another one.

    >>> from_config({"schedule": "Step", "lr": 0.8, "size": 3})
    Step(lr=0.8, size=3, gamma=0.1)
    """
    if not isinstance(config, Mapping):
        return config  # a number, which the optimizer checks
    own = {key: value for key, value in config.items() if key != "schedule"}
    for key, value in own.items():
        own[key] = tuple(from_config(part) for part in value) if isinstance(value, list) else from_config(value)
    return SCHEDULES[check_name("schedule", config.get("schedule"), SCHEDULES)](**own)


def _half_cosine(first: float, last: float, part: float) -> float:
    return last + (first - last) * (1 + cos(pi * part)) / 2


def _rate_of(part: Schedule | float, step: int) -> float:
    return part(step) if isinstance(part, Schedule) else part


def _as_part(name: str, part: Any) -> Schedule | float:
    if isinstance(part, Schedule):
        return part
    if callable(part):
        raise TypeError(f"{name} must be a number or a Schedule, such as a subclass of your own; got {describe(part)}")
    return check_number(name, part, 0.0)


def _check_warmup(warmup: int, steps: int) -> None:
    if warmup >= steps:
        raise ValueError(f"warmup must be less than steps={steps}, which it is part of; got {warmup}")


def _as_rising(name: str, numbers: Any) -> tuple[int, ...]:
    if isinstance(numbers, str) or not isinstance(numbers, tuple | list):
        raise TypeError(f"{name} must be a sequence of step numbers; got {describe(numbers)}")
    checked = tuple(check_count(f"{name}[{i}]", number) for i, number in enumerate(numbers))
    if any(a >= b for a, b in pairwise(checked)):
        raise ValueError(f"{name} must rise; got {checked}")
    return checked
