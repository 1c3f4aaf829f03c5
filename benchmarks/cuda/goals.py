"""The figures that a survey must measure, their goals, and verdicts on measured values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """A bound to reach: at least, or at most."""

    what: str  # name of the measured value
    bound: float
    at_least: bool = False
    who: str = "fastopt"  # the contestant whose time is compared

    @property
    def text(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.bound:g}"

    def met(self, measured: float) -> bool:
        """Return True if the goal is reached; never by NaN."""
        return measured >= self.bound if self.at_least else measured <= self.bound


class Figure(NamedTuple):
    """A figure with one goal or more."""

    title: str
    goals: tuple[Goal, ...]


COPY = "of copy bandwidth"
FIGURES = {
    "adam-float32": Figure("Adam, float32, 100 M parameters", (Goal(COPY, 0.92, True),)),
    "adam-bfloat16-master": Figure("Adam, bfloat16 with master weights, 100 M", (Goal(COPY, 0.9, True),)),
    "host-time": Figure(
        "host time of a step of 100 arrays",
        (Goal("fo.Adam, of torch fused", 1.0), Goal("fastopt.torch, of torch fused", 1.0, who="fastopt-torch")),
    ),
    "mlp-64": Figure(
        "step of 784-256-128-10, batch 64",
        (Goal("of torch eager, fused Adam", 0.15), Goal("of torch compiled, graphs", 0.9)),
    ),
    "mlp-4096": Figure("step of 4 layers of 4096, bfloat16, batch 4096", (Goal("of its products alone", 1.25),)),
    "small-network": Figure("64-32-10 as one kernel", (Goal("of its graphs", 0.5, who="fastopt-fused"),)),
    "nothing-waits": Figure("waits in loops of 1000 steps", (Goal("waits", 0, who="fo.Adam"),)),
}


def verdict_of(goal: Goal, measured: Mapping[str, Any]) -> str:
    """Return met, missed, or not measured; `measured` has values by the names of goals.

    >>> verdict_of(Goal("of copy", 0.9, True), {"of copy": 0.93})
    'met'
    """
    number = measured.get(goal.what)
    if isinstance(number, bool) or not isinstance(number, int | float):
        return "not measured"
    return "met" if goal.met(number) else "missed"
