"""Penalties of parameters in the loss: l1 sum |p| + l2 sum p^2, of the parameters before each step.

Their gradients are a part of the update (`preprocess_gradient`), and cost nothing there. The penalty itself takes one
more reading of the parameters that have one, while they are in a cache, and no barrier: a phase before the loss adds up
pieces, and the pieces are added up, in order, behind the barrier of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import costs
from ...spec import Batches, ParamSettings
from ..optim.norm import MAGNITUDES_OF, SQUARES_KERNEL, SQUARES_OF, Squares
from ..runtime.compile import Kernel
from ..runtime.primitives import address_of, view
from ..runtime.records import PENALTY, fill, read


def _penalty(work, step, rank, num_ranks):
    """The sum of all penalties of a batch: each sum over an array times its factor."""
    if rank != 0:
        return
    a = read(work, PENALTY)
    if a.starts_step and view(a.starts_step + step * 8, 1, np.int64)[0] == 0:
        return
    ends, factors = view(a.first_pieces, a.count + 1, np.int64), view(a.factors, a.count, np.float64)
    sums, penalty = view(a.sums, ends[a.count], np.float64), 0.0
    for i in range(a.count):
        # one array
        total = 0.0
        for j in range(ends[i], ends[i + 1]):
            total += sums[j]
        penalty += factors[i] * total
    view(a.into + step * 8, 1, np.float64)[0] = penalty


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

    into: (epochs, batches of an epoch) float64; those of batches that start no step stay 0.
    """

    def __init__(
        self, params: Sequence[np.ndarray], terms: Sequence[tuple[int, str]], data: Batches, num_ranks: int
    ) -> None:
        arrays = [params[i] for i, _ in terms]
        self.terms, self.num_bytes = terms, sum(p.nbytes for p in arrays)
        self.size = sum(p.size for p in arrays)
        group = data.accumulate
        self.into = np.zeros((data.epochs, data.steps * group))
        starts = np.arange(self.into.size) % group == 0
        self.starts = starts.astype(np.int64) if group > 1 else None
        kinds = [kind for _, kind in terms]
        self.squares = Squares([(p.dtype.name, p.size) for p in arrays], num_ranks, self.starts, kinds)
        self.squares.set_addresses([address_of(p) for p in arrays])
        self.factors = np.zeros(len(terms))
        self.first_pieces = np.append(self.squares.table["first_piece"], len(self.squares.sums)).astype(np.int64)
        self.record = fill(
            PENALTY, count=len(terms), first_pieces=self.first_pieces, sums=self.squares.sums, factors=self.factors,
            starts_step=self.starts, into=self.into,
        )  # fmt: skip

    def set_factors(self, settings: Sequence[ParamSettings]) -> None:
        """Take the factors of these settings, of parameters with the same terms, from now on."""
        self.factors[:] = _factors(settings, self.terms)

    def add_sums(self, program: Any) -> None:
        """Add the sums over pieces; a barrier must follow before `add_penalty`."""
        program.kept.append(self)
        cost = costs.penalties(self.size, self.num_bytes)
        program.add(SQUARES_KERNEL, self.squares.record, barrier=False, cost=cost)

    def add_penalty(self, program: Any) -> None:
        """Add the penalty of the batch, made of the sums."""
        program.add(PENALTY_KERNEL, self.record, barrier=False)
