"""The end of an optimizer step that needs whole gradients: for the norm of all, for sums over several batches, or for
states whose codes are of blocks of neighbouring elements, which are no tiles of a gradient.

The phases `weights` and `slopes` write dw and db to memory. Then `squares` adds up the squares if a norm is needed, and
`apply` updates all parameters. The batches of a step add up in the product itself: dw = alpha x^T dz + beta dw, with
beta = 0 for the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import sqrt
from typing import Any

import numpy as np

from ... import costs
from ...formulas import NUM_SCALARS, clip_factor
from ...spec import WHOLE, Batches
from ..optim.masked_loops import mask_tile_kernel
from ..optim.norm import SQUARES_KERNEL, Squares
from ..optim.updates import TILE, UPDATE_ALL
from ..runtime.compile import Kernel
from ..runtime.primitives import address_of, aligned_zeros, call_phase, view
from ..runtime.records import APPLY, UPDATE, UPDATES, fill, read
from .after_step import AfterUpdates
from .phases import PhaseList

RECORD_BYTES = UPDATES.itemsize


def _apply(T):
    """Update all parameters, after the last batch of a step."""

    def apply(work, step, rank, num_ranks):
        a = read(work, APPLY)
        optimizer_step = view(a.step_after + step * 8, 1, np.int64)[0]
        if optimizer_step == 0:
            return
        scalars = a.scalars + (optimizer_step - 1) * a.scalars_row_bytes
        if a.max_norm > 0:
            # the norm: every rank adds up all pieces itself, in order, which is cheaper than one more barrier
            squares, total = view(a.sums, a.num_pieces, np.float64), 0.0
            for i in range(a.num_pieces):
                total += squares[i]
            # the step's scalars, with the factor of clipping in that of the gradient
            clipped, count = a.clipped + rank * a.clipped_bytes, a.num_settings * (NUM_SCALARS + 1)
            given, own = view(scalars, count, T), view(clipped, count, T)
            for i in range(count):
                own[i] = given[i]
            factor = T(clip_factor(a.max_norm, sqrt(total)))
            for i in range(a.num_settings):
                own[i * (NUM_SCALARS + 1)] *= factor
            scalars = clipped
        # the update, by a record of the rank's own
        rank_updates = a.updates + rank * RECORD_BYTES
        updates = read(rank_updates, UPDATES)
        updates.scalars = scalars
        call_phase(a.update_all, rank_updates, step, rank, num_ranks)

    return apply


@cache
def apply_kernel(dtype: str) -> Kernel:
    return Kernel(_apply(getattr(np, dtype)), f"apply_{dtype}")


class OptimizerStep:
    """The gradients of a training program, and the phases that use them once all layers have written theirs.

    scalars: (steps, settings, NUM_SCALARS + 1); rows: index among the settings of each parameter.
    clips: gradients are clipped by their common norm. most_batches: of an epoch whose batches have sizes of their own;
    0: as many as `data` have.
    """

    def __init__(
        self, params: Sequence[np.ndarray], rule: str, states: Sequence[tuple[np.ndarray, ...] | None],
        scalars: np.ndarray, rows: Sequence[int], data: Batches, clips: bool, num_ranks: int, after: AfterUpdates,
        most_batches: int = 0,
    ) -> None:  # fmt: skip
        self.after = after
        self.dtype, self.params, self.states, self.rule = params[0].dtype.name, params, states, rule
        self.itemsize = params[0].itemsize
        # None of a parameter that is not updated
        self.gradients = [
            None if of_param is None else aligned_zeros(p.size, self.dtype).reshape(p.shape)
            for p, of_param in zip(params, states, strict=True)
        ]
        given = [g for g in self.gradients if g is not None]
        self.size = sum(g.size for g in given)
        self.step_after, self.alpha_beta = _plan_batches(data)
        if most_batches:
            self.step_after = np.zeros(most_batches, np.int64)
            self.alpha_beta = None if self.alpha_beta is None else np.zeros((most_batches, 2))
        self.scalars = scalars
        self.table, tiles = self._update_table(rows)
        self.updates = np.repeat(fill(UPDATES, count=len(self.table), table=self.table, tiles=tiles), num_ranks)
        clipped_bytes = -(-scalars.strides[0] // 64) * 64  # on cache lines of their own
        self.clipped = aligned_zeros(num_ranks * clipped_bytes, np.uint8)
        self.squares = Squares([(self.dtype, g.size) for g in given], num_ranks, self.step_after) if clips else None
        sums: dict[str, Any] = {}
        if self.squares is not None:
            self.squares.set_addresses([address_of(g) for g in given])
            sums = {"sums": self.squares.sums, "num_pieces": len(self.squares.sums)}
        self.record = fill(
            APPLY, update_all=UPDATE_ALL.address, updates=self.updates, step_after=self.step_after,
            clipped=self.clipped, clipped_bytes=clipped_bytes, scalars=scalars, scalars_row_bytes=scalars.strides[0],
            num_settings=scalars.shape[1], **sums,
        )  # fmt: skip

    def _update_table(self, rows: Sequence[int]) -> tuple[np.ndarray, int]:
        """A record UPDATE for each parameter that is updated, and the tiles of all."""
        table, tiles = [], 0
        for i, (p, g, of_param) in enumerate(zip(self.params, self.gradients, self.states, strict=True)):
            if of_param is None:
                continue
            skip, words = rows[i] * self.scalars.strides[1], self.after.state_words(i, of_param)
            code = self.after.update_code(self.rule, i)
            table.append((code, address_of(p), address_of(g), *words, skip, p.size, tiles, p.itemsize))
            tiles += -(-p.size // TILE)
        return np.array(table, UPDATE), tiles

    def tile_fields(self, i: int) -> dict[str, Any]:
        """Fields of the record DENSE by which pruned weights of parameter i have no part in the norm of gradients."""
        mask = self.after.masks[i]
        if mask is None or self.squares is None:
            return {}
        return {"mask_tile": mask_tile_kernel(self.dtype).address, "mask": mask}

    def end_layer(self, program: PhaseList, first: int) -> None:
        """Called when the gradients of a layer are written, whose first parameter has this index: they wait for all."""

    def clip(self, max_norm: float | None) -> None:
        """Clip to this norm from now on."""
        self.record["max_norm"] = max_norm or 0.0

    def plan(self, data: Batches) -> None:
        """Prepare for the batches of another epoch, each with a size of its own."""
        step_after, alpha_beta = _plan_batches(data)
        self.step_after[: len(step_after)] = step_after
        if self.alpha_beta is not None:
            self.alpha_beta[: len(step_after)] = alpha_beta

    def add_to(self, program: PhaseList) -> None:
        """Add the phases, behind a barrier: they read all gradients of a batch."""
        program.kept.append(self)
        if self.squares is not None:
            cost = costs.squares(self.size, self.itemsize)
            program.add(SQUARES_KERNEL, self.squares.record, barrier=True, cost=cost)
        cost = self.after.cost_of_update(costs.apply(self.size, self.rule, self.itemsize), self.size)
        cost = costs.masking(cost, sum(mask.size for mask in self.after.masks if mask is not None))
        of_params = zip(self.params, self.states, self.after.storages, strict=True)
        coded = sum(p.size for p, states, storage in of_params if states and storage != WHOLE)
        cost = costs.coding(cost, coded, self.rule, self.itemsize)
        program.add(apply_kernel(self.dtype), self.record, barrier=False, cost=cost)


def _plan_batches(data: Batches) -> tuple[np.ndarray, np.ndarray | None]:
    """The optimizer step, from 1, that follows each batch (0: none), and alpha and beta of each batch's gradients.

    alpha: the batch's share of the rows of its step, 1 where rows have weights; beta: 1 where there are gradients to
    add it to. None: 1 and 0.
    Each epoch has as many entries as its steps would have batches if all had `accumulate`.
    """
    group = data.accumulate
    batches = np.arange(data.steps * group)
    step_after = np.where((batches + 1) % group == 0, (batches + 1) // group, 0)
    step_after[data.batches - 1 :] = data.steps
    epochs = np.arange(data.epochs)[:, np.newaxis]
    step_after = np.where(step_after, step_after + epochs * data.steps, 0).ravel()
    if group == 1:
        return step_after, None
    rows = np.zeros(len(batches), np.int64)
    rows[: data.batches] = data.rows_of_batches()
    # with weights the loss divides by those of the whole step, whose order is not known before it is drawn
    share = rows / np.repeat(data.rows_of_steps(), group) if data.weights is None else np.ones(len(rows))
    alpha_beta = np.stack([share, batches % group != 0], axis=1).astype(np.float64)
    return step_after, np.tile(alpha_beta, (data.epochs, 1))
