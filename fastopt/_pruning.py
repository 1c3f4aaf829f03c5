"""Settings of pruning: shares of weights, and how they grow during a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np

from ._validation import check_count, check_name, check_number, describe

SCOPES = ("layer", "network")
Share = float | Mapping[str, float]


def check_share(what: str, share: Any) -> Share:
    """Return a share in [0, 1), or one for each of some layers, as Python's own; TypeError or ValueError for others."""
    if not isinstance(share, Mapping):
        return check_number(what, share, 0.0, 1.0)
    if not share:
        raise ValueError(f"{what} must be a share, or a share for each of some layers; got none")
    for name in share:
        if not isinstance(name, str):
            raise TypeError(f"{what} must have the names of layers; got {describe(name)}")
    return {str(name): check_number(f"{what}[{name!r}]", value, 0.0, 1.0) for name, value in share.items()}


def check_scope(scope: Any, share: Any, layers: Any) -> str:
    """Return the scope; TypeError or ValueError for one that does not go with the rest."""
    check_name("scope", scope, SCOPES)
    if isinstance(share, Mapping):
        if layers is not None:
            raise ValueError("give the names of layers in share or in layers, not in both")
        if scope != "layer":
            raise ValueError("scope='network' has one share of all weights; give a number, or scope='layer'")
    return str(scope)


@dataclass(frozen=True)
class Pruning:
    """Gradual magnitude pruning: `model.fit(x, y, epochs=20, pruning=fo.compress.Pruning(0.9))`.

        share at step t = share + (initial - share) (1 - (t - begin) / (end - begin))^3    for begin <= t <= end

    Every `every` steps, and at the end, as many of the smallest weights are set to zero and stay so: a mask, of a byte
    a weight, is read by the update of every step, and the states of a pruned weight are zero, too. Between two changes
    of the mask an epoch is one compiled call. Steps are the optimizer's, counted from the begin of this `fit`. Weights
    that are pruned already stay pruned; their share counts.

    share    in [0, 1): the share of weights that are pruned at the end; or a mapping of layers' names to shares
    scope    "layer": the smallest weights of each layer; "network": of all layers together
    layers   the name of a dense layer, or a list of names; None: all that are trained. Kernels alone are pruned
    begin    step from which on weights are pruned, from 0
    end      step at which the last are pruned; the steps after it train the rest. None: three quarters of the steps of
             this `fit`, where that number is known; a training that goes on from a checkpoint keeps the end that it
             began with, also for more epochs
    every    steps between two changes
    initial  the share at `begin`

    Zhu & Gupta 2017, "To prune, or not to prune".

    >>> schedule = Pruning(0.8, begin=100, end=500, initial=0.2)
    >>> [round(schedule.share_at(step), 3) for step in (0, 100, 300, 500, 900)]
    [0.0, 0.2, 0.725, 0.8, 0.8]
    """

    share: Share
    scope: str = "layer"
    layers: str | Sequence[str] | None = None
    begin: int = 0
    end: int | None = None
    every: int = 100
    initial: float = 0.0
    _fit_steps: int | None = field(default=None, init=False, repr=False, compare=False)  # of which `end` was made

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "share", check_share("share", self.share))
        check_scope(self.scope, self.share, self.layers)
        set_(self, "begin", check_count("begin", self.begin, least=0))
        set_(self, "every", check_count("every", self.every))
        set_(self, "initial", check_number("initial", self.initial, 0.0, 1.0))
        least = min(self.share.values()) if isinstance(self.share, Mapping) else self.share
        if self.initial > least:
            raise ValueError(f"initial must be at most share, {least:g}; got {self.initial:g}")
        if self.end is not None:
            set_(self, "end", check_count("end", self.end))
            if self.end <= self.begin:
                raise ValueError(f"end must be above begin={self.begin}; got {self.end}")

    def ending(self, steps: int | None) -> Pruning:
        """Return the schedule with an end, for a training of so many steps; None: their number is not known.

        >>> Pruning(0.5).ending(1000).end
        750
        """
        if self.end is not None:
            if steps is not None and self.end > steps:
                raise ValueError(f"end must be at most the steps of this fit, {steps}; got {self.end}")
            return self
        if steps is None:
            raise ValueError(
                "end must be given: the number of steps is not known before the training, which pruning ends with at"
                " three quarters otherwise"
            )
        if steps <= self.begin:
            raise ValueError(f"begin must be below the steps of this fit, {steps}; got {self.begin}")
        made = replace(self, end=max(self.begin + 1, 3 * steps // 4))
        object.__setattr__(made, "_fit_steps", steps)
        return made

    def going_on(self, end: int) -> Pruning:
        """Return the schedule of a training that began with this end, if its own was made of a number of steps.

        >>> Pruning(0.5).ending(1000).going_on(600).end, Pruning(0.5, end=700).ending(1000).going_on(600).end
        (600, 700)
        """
        return self if self._fit_steps is None else replace(self, end=end).ending(self._fit_steps)

    def progress(self, step: int) -> float:
        """Return the share of the way from `initial` to `share` at a step, in [0, 1]; the schedule has an end."""
        assert self.end is not None
        t = min(max((step - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return 1.0 - (1.0 - t) ** 3

    def share_at(self, step: int) -> float | dict[str, float]:
        """Return the share at a step, counted from the begin of the fit; or those of layers by name."""
        if step < self.begin:
            return dict.fromkeys(self.share, 0.0) if isinstance(self.share, Mapping) else 0.0
        way = self.progress(step)
        if isinstance(self.share, Mapping):
            return {name: self._between(share, way) for name, share in self.share.items()}
        return self._between(self.share, way)

    def _between(self, share: float, way: float) -> float:
        return share if way == 1.0 else self.initial + (share - self.initial) * way

    def changes_at(self, step: int) -> bool:
        """Return True if weights are pruned after so many steps."""
        assert self.end is not None
        return self.begin <= step <= self.end and ((step - self.begin) % self.every == 0 or step == self.end)

    def steps_until_change(self, step: int) -> int | None:
        """Return the number of steps to the next change after a step; None: there is no other.

        >>> schedule = Pruning(0.5, begin=10, end=35, every=10)
        >>> [schedule.steps_until_change(step) for step in (0, 10, 11, 30, 35)]
        [10, 10, 9, 5, None]
        """
        assert self.end is not None
        if step < self.begin:
            return self.begin - step
        if step >= self.end:
            return None
        return min(self.every - (step - self.begin) % self.every, self.end - step)


def check_pruning(pruning: Any) -> Pruning | None:
    """Return the argument `pruning` of `fit`: a `Pruning`, a share that stands for one, or None."""
    if pruning is None or isinstance(pruning, Pruning):
        return pruning
    if isinstance(pruning, bool | np.bool_) or not isinstance(pruning, Real | Mapping):
        raise TypeError(f"pruning must be a fastopt.compress.Pruning, a share, or None; got {describe(pruning)}")
    return Pruning(pruning)  # type: ignore[arg-type]  # a Real, which check_share makes a float
