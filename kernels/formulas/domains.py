"""The values that options may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """The values an option may take: a flag, or a finite number between two bounds."""

    low: float = 0.0
    high: float = float("inf")
    open_high: bool = False
    flag: bool = False

    def __str__(self) -> str:
        if self.flag:
            return "True or False"
        if self.high == float("inf"):
            return f"a finite number of at least {self.low:g}" if self.low > -float("inf") else "a finite number"
        return f"a number in [{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"

    def __contains__(self, value: float) -> bool:
        if self.flag:
            return value in (True, False)
        below = value < self.high if self.open_high else value <= self.high
        return self.low <= value and below and abs(value) < float("inf")


FLAG, POSITIVE, FRACTION = Domain(flag=True), Domain(), Domain(high=1.0, open_high=True)
