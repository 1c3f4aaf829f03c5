"""Training where the update has to wait: for the norm of all gradients, or for the gradients of further batches.

The weights phases write dw and db whole, then a phase takes the squares where a norm is wanted, and `apply` updates all
parameters. Batches of a group add up in the product itself: dw = share x^T dz + (dw, but for the first of the group).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt
from typing import Any

import numpy as np

from ... import costs
from ...formulas import NUM_SCALARS, clip_factor
from ...spec import Batches
from ..optim.loops import MAX_STATES
from ..optim.norm import SQUARES_KERNEL, Squares
from ..optim.updates import TILE, UPDATE_ALL, update_code
from ..runtime.compile import Kernel
from ..runtime.primitives import address_of, aligned_zeros, call_phase, view
from ..runtime.records import APPLY, UPDATE, UPDATES, fill, read

OWN = NUM_SCALARS + 1 + (-NUM_SCALARS - 1) % 16  # scalars of a rank, on cache lines of its own


RECORD = UPDATES.itemsize


def _apply(T, itemsize):
    def apply(work, step, rank, num_ranks):
        a = read(work, APPLY)
        due = view(a.due + step * 8, 1, np.int64)[0]
        if due == 0:
            return
        scalars = a.scalars + (due - 1) * a.scalars_stride
        if a.most > 0:  # every rank adds up all pieces itself, in order: cheaper than to meet once more
            squares, total = view(a.sums, a.num_pieces, np.float64), 0.0
            for i in range(a.num_pieces):
                total += squares[i]
            given, own = view(scalars, NUM_SCALARS + 1, T), a.own + rank * OWN * itemsize
            mine = view(own, NUM_SCALARS + 1, T)
            for i in range(NUM_SCALARS + 1):
                mine[i] = given[i]
            mine[0] *= T(clip_factor(a.most, sqrt(total)))
            scalars = own
        at = a.updates + rank * RECORD
        updates = read(at, UPDATES)
        updates.scalars = scalars
        call_phase(a.update_all, at, step, rank, num_ranks)

    return apply


@cache
def apply_kernel(dtype: str) -> Kernel:
    return Kernel(_apply(getattr(np, dtype), np.dtype(dtype).itemsize), f"apply_{dtype}")


class TwoPass:
    """The gradients of a training program, and the phases that use them once all layers have written theirs."""

    def __init__(
        self, params: Sequence[np.ndarray], rule: str, states: Sequence[tuple[np.ndarray, ...]], scalars: np.ndarray,
        data: Batches, norm: bool, num_ranks: int,
    ) -> None:  # fmt: skip
        self.dtype, self.params, self.states, self.rule = params[0].dtype.name, params, states, rule
        self.size, self.itemsize = sum(p.size for p in params), params[0].itemsize
        self.gradients = [aligned_zeros(p.size, self.dtype).reshape(p.shape) for p in params]
        size, group = data.batch_size, data.accumulate
        rows = np.full(data.batches, size)
        rows[-1:] = len(data.order) - (data.batches - 1) * size
        numbers = np.arange(data.batches)
        # For each batch: the optimizer step that follows it, from 1, or 0; and its share of the group's gradient, with
        # 1 where there is something to add it to.
        self.due = np.where((numbers + 1) % group == 0, (numbers + 1) // group, 0)
        self.due[-1:] = data.steps
        wholes = np.minimum(len(data.order) - numbers // group * group * size, group * size)
        self.shares = None
        if group > 1:
            self.shares = np.stack([rows / wholes, numbers % group != 0], axis=1).astype(np.float64)
        table, tiles, code = [], 0, update_code(rule, self.dtype)
        for p, g, of_param in zip(params, self.gradients, states, strict=True):
            where = [address_of(state) for state in of_param] + [0] * (MAX_STATES - len(of_param))
            table.append((code, address_of(p), address_of(g), *where, 0, 0, p.size, tiles, p.itemsize))
            tiles += -(-p.size // TILE)
        self.table, self.own = np.array(table, UPDATE), aligned_zeros(num_ranks * OWN, self.dtype)
        self.updates = np.repeat(fill(UPDATES, count=len(table), table=self.table, tiles=tiles), num_ranks)
        self.scalars = scalars
        self.squares = Squares([(self.dtype, p.size) for p in params], num_ranks, self.due) if norm else None
        sums: dict[str, Any] = {}
        if self.squares is not None:
            self.squares.take([address_of(g) for g in self.gradients])
            sums = {"sums": self.squares.sums, "num_pieces": len(self.squares.sums)}
        self.record = fill(
            APPLY, update_all=UPDATE_ALL.address, updates=self.updates, due=self.due, own=self.own, scalars=scalars,
            scalars_stride=scalars.strides[0], **sums,
        )  # fmt: skip

    def clip(self, norm: float | None) -> None:
        """Clip to this norm from now on."""
        self.record["most"] = norm or 0.0

    def add_to(self, program: Any) -> None:
        """Add the phases; all gradients of a batch must be there, so all ranks must have met before."""
        program.kept.append(self)
        if self.squares is not None:
            program.add(SQUARES_KERNEL, self.squares.record, barrier=True, cost=costs.squares(self.size, self.itemsize))
        cost = costs.apply(self.size, self.rule, self.itemsize)
        program.add(apply_kernel(self.dtype), self.record, barrier=False, cost=cost)
