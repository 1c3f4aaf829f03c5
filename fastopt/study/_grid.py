"""Grid of a study: sizes of models, shares of the data, epochs, batch sizes and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .._validation import check_count, check_number, describe

# Depths and widths vary apart from each other, so that times tell the one from the other.
LAYERS = ((16,), (32, 16), (64, 32), (128,), (256, 128), (512,))
SHARES = (0.25, 0.5, 1.0)
EPOCHS = (5, 10, 20)


class Unit(NamedTuple):
    """A model to be trained, for as many epochs as the grid has at most."""

    layers: tuple[int, ...]
    rows: int
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Grid:
    """Checked grid; every combination is a model.

    >>> Grid.of([8, (16, 8)], 1.0, [1, 3], 32, 2)
    Grid(layers=((8,), (16, 8)), shares=(1.0,), epochs=(1, 3), batch_sizes=(32,), seeds=(0, 1))
    """

    layers: tuple[tuple[int, ...], ...]
    shares: tuple[float, ...]
    epochs: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, layers: Any, shares: Any, epochs: Any, batch_size: Any, seeds: Any) -> Grid:
        """The grid of a user's values; TypeError or ValueError for impossible ones. seeds: a number, or a list."""
        counts = range(check_count("seeds", seeds)) if isinstance(seeds, int | np.integer) else seeds
        return cls(
            _each("layers", layers, _widths),
            _each("shares", shares, _share, ordered=True),
            _each("epochs", epochs, check_count, ordered=True),
            _each("batch_size", batch_size, check_count, ordered=True),
            _each("seeds", counts, lambda name, value: check_count(name, value, least=0)),
        )

    def rows(self, total: int) -> tuple[int, ...]:
        """Numbers of training rows of the shares, the most last."""
        return tuple(dict.fromkeys(max(1, round(share * total)) for share in self.shares))

    def check(self, total: int) -> None:
        """Raise ValueError for a grid of one model, whose times say nothing of others."""
        if len(self.layers) * len(self.rows(total)) * len(self.batch_sizes) < 2:
            raise ValueError(
                f"a study needs two sizes, shares or batch sizes at least; got layers {self.layers[0]} and"
                f" {self.rows(total)[0]} rows alone"
            )

    def units(self, total: int) -> list[Unit]:
        """All models."""
        return [
            Unit(layers, rows, batch_size, seed)
            for layers in self.layers
            for rows in self.rows(total)
            for batch_size in self.batch_sizes
            for seed in self.seeds
        ]


def _each(name: str, values: Any, check: Any, ordered: bool = False) -> tuple[Any, ...]:
    """The checked values, each once; a single one stands for itself."""
    if isinstance(values, str | bytes):
        raise TypeError(f"{name} must be a list; got {describe(values)}")
    listed = list(values) if isinstance(values, Sequence | np.ndarray | range) else [values]
    if not listed:
        raise ValueError(f"{name} must have a value at least; got []")
    found = dict.fromkeys(check(name, value) for value in listed)
    if len(found) < len(listed):
        raise ValueError(f"{name} must be different values; got {listed}")
    return tuple(sorted(found) if ordered else found)


def _widths(name: str, value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, tuple | list) else (value,)
    return tuple(check_count("the width of a layer", width) for width in listed)


def _share(name: str, value: Any) -> float:
    if not 0 < check_number(name, value, 0.0) <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1; got {value}")
    return float(value)
