"""The values that options may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """The values an option may take: a flag, or a finite number between two bounds; if optional, None as well."""

    low: float = 0.0
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False
    flag: bool = False
    optional: bool = False
    choices: tuple[int, ...] = ()  # whole numbers; (): any in between

    def __str__(self) -> str:
        if self.flag:
            return "True or False"
        if self.choices:
            return " or ".join(map(str, self.choices))
        none = "None or " if self.optional else ""
        if self.high < float("inf"):
            left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
            return f"{none}a number in {left}{self.low:g}, {self.high:g}{right}"
        if self.low == -float("inf"):
            return f"{none}a finite number"
        return f"{none}a finite number {'above' if self.open_low else 'of at least'} {self.low:g}"

    def __contains__(self, value: float | None) -> bool:
        if value is None:
            return self.optional
        if self.flag:
            return value in (True, False)
        if self.choices:
            return value in self.choices
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and abs(value) < float("inf")


FLAG, POSITIVE, FRACTION = Domain(flag=True), Domain(), Domain(high=1.0, open_high=True)
BOUND = Domain(open_low=True, optional=True)
STATE_BITS = Domain(choices=(8, 32))
