"""Spaces of settings: ranges, lists and fixed values by name, and the settings of a trial drawn from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._task import FIT, NETWORK, OPTIMIZER, takes
from .._validation import check_number, describe
from ..optim import OPTIMIZER_CLASSES
from ..optim._aliases import hints_for

# Settings whose ranges are drawn on a logarithmic scale.
LOGARITHMIC = ("lr", "weight_decay", "l1", "clip_norm", "clip_value", "batch_size")


@dataclass(frozen=True)
class Range:
    """Numbers of [low, high] for a setting: whole ones if both ends are; log: evenly spread over their logarithms.

    >>> Range(1e-4, 1e-1, log=True)
    Range(low=0.0001, high=0.1, log=True)
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            check_number(name, getattr(self, name), float("-inf"))
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 on a logarithmic scale; got {self.low:g}")

    @property
    def is_whole(self) -> bool:
        """True for a range of whole numbers."""
        return all(isinstance(end, int | np.integer) for end in (self.low, self.high))

    def suggest(self, trial: Any, name: str) -> Any:
        """The number that Optuna suggests."""
        if self.is_whole:
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, float(self.low), float(self.high), log=self.log)


class Choices:
    """A list of values for a setting, each with the label that databases keep of it.

    >>> Choices("layers", [(), (64, 32)]).values
    {'none': (), '64,32': (64, 32)}
    """

    def __init__(self, name: str, values: list[Any]) -> None:
        if not values:
            raise ValueError(f"{name} must be a list with a value at least; got []")
        self.values = {label(value): value for value in values}
        if len(self.values) < len(values):
            raise ValueError(f"{name} must be a list of different values; got {values}")

    def suggest(self, trial: Any, name: str) -> Any:
        """The value that Optuna suggests."""
        return self.values[trial.suggest_categorical(name, list(self.values))]


def label(value: Any) -> Any:
    """Form of a value that a database keeps: numbers, strings and None as they are, widths as `fastopt train` has them.

    >>> label((64, 32)), label(()), label(0.5)
    ('64,32', 'none', 0.5)
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list) and all(isinstance(part, int | np.integer) for part in value):
        return ",".join(str(int(part)) for part in value) or "none"
    return repr(value)


class Space:
    """A checked space of settings; free: the settings to search, by name; fixed: the others with their values."""

    def __init__(self, space: Mapping[str, Any], known: bool) -> None:
        """known: settings are those of `search`; else a function of the user's knows what they mean."""
        if not isinstance(space, Mapping) or not all(isinstance(name, str) for name in space):
            raise TypeError(f"space must be a mapping of settings by name; got {describe(space)}")
        self.free: dict[str, Range | Choices] = {}
        self.fixed: dict[str, Any] = {}
        for name, value in space.items():
            found = _dimension(name, value)
            if isinstance(found, Range | Choices):
                self.free[name] = found
            else:
                self.fixed[name] = found
        if not self.free:
            raise ValueError("space has nothing to search: give a setting a range, such as (1e-4, 1e-1), or a list")
        self.known = known
        if known:
            self._check_names()

    def values(self, name: str, default: Any) -> list[Any]:
        """All values that a setting may have, of a range its two ends."""
        found = self.free.get(name)
        if isinstance(found, Range):
            return [found.low, found.high]
        return [self.fixed.get(name, default)] if found is None else list(found.values.values())

    def _check_names(self) -> None:
        optimizers = self.values("optimizer", OPTIMIZER)
        for name in optimizers:
            if name not in OPTIMIZER_CLASSES:
                known = ", ".join(OPTIMIZER_CLASSES)
                raise ValueError(f"optimizer must be among {known}; got {describe(name)}")
        for name in (*self.free, *self.fixed):
            if name not in (*NETWORK, *FIT) and not any(takes(optimizer, name) for optimizer in optimizers):
                raise ValueError(
                    f"{name!r} is no setting of {', '.join(optimizers)}; besides those of optimizers there are"
                    f" {', '.join((*NETWORK, *FIT))}{hints_for([name])}"
                )

    def check_grid(self) -> dict[str, list[Any]]:
        """The labels of each setting, for a grid; ValueError for a space that is none."""
        for name, found in self.free.items():
            if isinstance(found, Range):
                raise ValueError(
                    f"a grid needs a list of values for {name}; got a range, for which take another sampler"
                )
        if self.known:
            optimizers = self.values("optimizer", OPTIMIZER)
            for name in self.free:
                missing = [key for key in optimizers if name not in (*NETWORK, *FIT) and not takes(key, name)]
                if missing:
                    raise ValueError(f"{name} is no setting of {missing[0]}, so points of the grid would be the same")
        return {name: list(found.values) for name, found in self.free.items() if isinstance(found, Choices)}

    def suggest(self, trial: Any) -> dict[str, Any]:
        """The settings of a trial: those that its optimizer takes."""
        settings = dict(self.fixed)
        for name in sorted(self.free, key=lambda name: name != "optimizer"):
            if self._takes(settings, name):
                settings[name] = self.free[name].suggest(trial, name)
        return {name: value for name, value in settings.items() if self._takes(settings, name)}

    def examples(self) -> Iterator[dict[str, Any]]:
        """Settings with each value, and each end of a range, for every optimizer: impossible ones show before trials.

        Of several settings one alone has another value than its first.
        """
        first = {**{name: self.values(name, None)[0] for name in self.free}, **self.fixed}
        changes = [{name: value} for name in self.free for value in self.values(name, None)[1:] if name != "optimizer"]
        for optimizer in self.values("optimizer", OPTIMIZER):
            for change in ({}, *changes):
                settings = {**first, **change, **({"optimizer": optimizer} if "optimizer" in first else {})}
                if all(self._takes(settings, name) for name in change):
                    yield {name: value for name, value in settings.items() if self._takes(settings, name)}

    def settings_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a finished trial, by what the database keeps of it."""
        settings = dict(self.fixed)
        for name, value in params.items():
            found = self.free[name]
            settings[name] = found.values[value] if isinstance(found, Choices) else value
        return {name: value for name, value in settings.items() if self._takes(settings, name)}

    def _takes(self, settings: Mapping[str, Any], name: str) -> bool:
        return not self.known or name in (*NETWORK, *FIT) or takes(settings.get("optimizer", OPTIMIZER), name)

    def describe(self) -> dict[str, Any]:
        """The space in values of JSON, to tell one search from another."""
        free = {
            name: [found.low, found.high, found.log] if isinstance(found, Range) else list(found.values)
            for name, found in self.free.items()
        }
        return {**free, **{name: label(value) for name, value in self.fixed.items()}}


def _dimension(name: str, value: Any) -> Any:
    """The range or the choices that a value of a space stands for; else the fixed value."""
    if isinstance(value, np.ndarray):  # of NumPy's logspace, say
        value = value.tolist()
    if isinstance(value, list):
        return Choices(name, value)
    if isinstance(value, tuple) and len(value) == 2 and name != "layers":
        try:
            return Range(*value, log=name in LOGARITHMIC)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name} must be a range (low, high), a list of choices or one value: {error}") from None
    return value
