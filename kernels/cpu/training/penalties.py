"""Penalties of parameters in the loss: l1 sum |p| + l2 sum p^2, of the parameters before each step.

Their gradients are a part of the update (`preprocess_gradient`), and cost nothing there. The terms of a matrix are
added up tile by tile, just before its update, where the update follows the gradient at once (`dense/tile_sums.py`).
Else, and for vectors, a phase before the loss adds them up. Then one rank adds up all sums in order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ... import costs
from ...spec import Batches, ParamSettings
from ..optim.norm import LANES, MAGNITUDES_OF, SQUARES_KERNEL, SQUARES_OF, Squares, squares_kernel
from ..runtime.compile import Kernel
from ..runtime.primitives import address_of, aligned_zeros, view
from ..runtime.records import PENALTY, PENALTY_PART, fill, read
from .phases import PhaseList


def _penalty(work, step, rank, num_ranks):
    """The sum of all penalties of a batch: each sum over an array, its pieces in order, times its factor."""
    if rank != 0:
        return
    a = read(work, PENALTY)
    if a.starts_step and view(a.starts_step + step * 8, 1, np.int64)[0] == 0:
        return
    penalty = 0.0
    for i in range(a.count):
        # one array
        part = read(a.parts + i * PART_BYTES, PENALTY_PART)
        sums, total = view(part.sums, part.pieces, np.float64), 0.0
        for j in range(part.pieces):
            total += sums[j]
        penalty += part.factor * total
    view(a.into + step * 8, 1, np.float64)[0] = penalty


PART_BYTES = PENALTY_PART.itemsize
PENALTY_KERNEL = Kernel(_penalty, "penalty")


def terms_of(settings: Sequence[ParamSettings]) -> tuple[tuple[int, str], ...]:
    """The sums that penalties are made of: index of the parameter, and the terms that are added up."""
    sums = []
    for i, own in enumerate(settings):
        sums += [(i, MAGNITUDES_OF)] * (own.l1 != 0) + [(i, SQUARES_OF)] * (own.l2 != 0)
    return tuple(sums)


def _factors(settings: Sequence[ParamSettings], terms: Sequence[tuple[int, str]]) -> list[float]:
    return [settings[i].l1 if kind == MAGNITUDES_OF else settings[i].l2 for i, kind in terms]


def penalty(params: Sequence[np.ndarray], settings: Sequence[ParamSettings]) -> float:
    """The penalty of the parameters as they are; settings: of each, or () for none."""
    terms = terms_of(settings)
    if not terms:
        return 0.0
    squares = Squares([(params[i].dtype.name, params[i].size) for i, _ in terms], terms=[kind for _, kind in terms])
    totals = squares.totals([address_of(params[i]) for i, _ in terms])
    return sum(factor * total for factor, total in zip(_factors(settings, terms), totals, strict=True))


class Penalties:
    """The penalties of a training program, and their phases.

    tiled: indices of matrices that are updated tile by tile, by the phase `weights`, which adds up their terms.
    into: (epochs, batches of an epoch) float64; those of batches that start no step stay 0.
    """

    def __init__(
        self, params: Sequence[np.ndarray], terms: Sequence[tuple[int, str]], data: Batches, num_ranks: int,
        tiled: Collection[int],
    ) -> None:  # fmt: skip
        self.dtype = params[0].dtype.name
        self.into = np.zeros((data.epochs, data.most_steps * data.accumulate))
        starts = np.arange(self.into.size) % data.accumulate == 0
        self.starts = starts.astype(np.int64) if data.accumulate > 1 else None
        self.tiled = [term for term in terms if term[0] in tiled]
        self.whole = [term for term in terms if term not in self.tiled]
        arrays = [params[i] for i, _ in self.whole]
        self.size, self.num_bytes = sum(p.size for p in arrays), sum(p.nbytes for p in arrays)
        kinds = [kind for _, kind in self.whole]
        self.squares = Squares([(self.dtype, p.size) for p in arrays], num_ranks, self.starts, kinds)
        self.squares.set_addresses([address_of(p) for p in arrays])
        self.lanes = aligned_zeros(num_ranks * LANES, np.float64)
        self.tile_sums: dict[tuple[int, str], np.ndarray] = {}
        self.parts = np.zeros(len(terms), PENALTY_PART)
        self.record = fill(PENALTY, count=len(terms), parts=self.parts, starts_step=self.starts, into=self.into)

    def fields_of_tiles(self, i: int, num_tiles: int) -> dict[str, Any]:
        """Fields of the record DENSE by which the terms of parameter i are added up, for so many tiles."""
        fields: dict[str, Any] = {}
        for term in self.tiled:
            if term[0] == i:
                name, sums = term[1], np.zeros(num_tiles)
                self.tile_sums[term] = sums
                code = squares_kernel(self.dtype, name).address
                fields |= {name: code, f"{name.removesuffix('s')}_sums": sums}
        return {**fields, "lanes": self.lanes, "lane_bytes": LANES * 8} if fields else {}

    def set_factors(self, settings: Sequence[ParamSettings]) -> None:
        """Take the factors of these settings, of parameters with the same terms, from now on."""
        self.parts["factor"] = _factors(settings, [*self.whole, *self.tiled])

    def add_sums(self, program: PhaseList) -> None:
        """Add the sums over pieces of whole arrays; a barrier must follow before `add_penalty`."""
        program.kept.append(self)
        if self.whole:
            cost = costs.penalties(self.size, self.num_bytes)
            program.add(SQUARES_KERNEL, self.squares.record, barrier=False, cost=cost)

    def add_penalty(self, program: PhaseList) -> None:
        """Add the penalty of the batch, behind all phases that make its sums."""
        pieces = np.split(self.squares.sums, self.squares.table["first_piece"][1:]) if self.whole else []
        parts = [*pieces, *(self.tile_sums[term] for term in self.tiled)]
        self.parts["sums"], self.parts["pieces"] = [address_of(part) for part in parts], [len(part) for part in parts]
        if self.tiled:
            program.meet()
        program.add(PENALTY_KERNEL, self.record, barrier=False)
