"""The work that follows the updates of a step in a training program: constraints, and averages of the parameters.

`share` writes the step's share of the parameters in their averages to a cell, at the begin of a batch. Where nothing is
constrained, the updates themselves take each parameter into its average, so there is no phase more. Otherwise
`after_step`, behind a barrier, constrains parameters and averages them, piece after piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...formulas import CONSTRAINTS, OPTIMIZERS
from ...profile import Cost
from ...spec import AfterStep, Constraint
from ..optim.averaging_loops import averaging_kernel
from ..optim.constraints import BY_COLUMNS, BY_ROWS, ELEMENTWISE, PIECE_SUMS, constraint_kernel
from ..optim.loops import MAX_STATES
from ..optim.updates import update_code
from ..runtime.compile import Kernel
from ..runtime.primitives import address_of, aligned_zeros, call_tile, view
from ..runtime.records import AFTER_STEP, CONSTRAINED, SHARE, fill, read

TILE = 4_096  # elements of a piece without a norm, and of rows with one


def _share(T):
    def share(work, step, rank, num_ranks):
        if rank == 0:
            s = read(work, SHARE)
            view(s.cell, 1, T)[0] = T(view(s.shares + step // s.accumulate * 8, 1, np.float64)[0])

    return share


@cache
def share_kernel(dtype: str) -> Kernel:
    return Kernel(_share(getattr(np, dtype)), f"share_{dtype}")


def _after_step(work, step, rank, num_ranks):
    """Constrain and average all parameters of the table: a rank does its share of the pieces, laid end to end."""
    a = read(work, AFTER_STEP)
    if a.step_after and view(a.step_after + step * 8, 1, np.int64)[0] == 0:
        return
    first, last = rank * a.num_pieces // num_ranks, (rank + 1) * a.num_pieces // num_ranks
    sums = a.sums + rank * PIECE_SUMS * 16
    for i in range(a.count):
        record = a.table + i * RECORD_BYTES
        one = read(record, CONSTRAINED)
        for piece in range(max(first, one.first_piece), min(last, one.first_piece + one.pieces)):
            # a piece of the columns, or of the rows
            done = (piece - one.first_piece) * one.piece
            rows, columns, skip = one.rows, min(one.piece, one.columns - done), done
            if not one.by_columns:
                rows, columns, skip = min(one.piece, one.rows - done), one.columns, done * one.columns
            skip *= one.element_bytes
            average = one.average + skip if one.average else 0
            call_tile(one.constrain, one.p + skip, average, record, sums, rows, columns, one.columns)


def after_step_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of the tables for averages and constraints of arrays of a dtype."""
    layouts = [
        (name, layout)
        for name, row in CONSTRAINTS.items()
        for layout in ((BY_COLUMNS, BY_ROWS) if row.factor else (ELEMENTWISE,))
    ]
    kernels = [constraint_kernel(name, layout, dtype) for name, layout in [*layouts, ("", ELEMENTWISE)]]
    return [share_kernel(dtype), *kernels, *(averaging_kernel(rule, dtype) for rule in OPTIMIZERS)]


RECORD_BYTES = CONSTRAINED.itemsize
AFTER_STEP_KERNEL = Kernel(_after_step, "after_step")


class _Pieces(NamedTuple):
    """An array as a matrix, and the pieces that its constraint works on."""

    layout: str
    rows: int
    columns: int
    piece: int  # columns of a piece, or rows if the norm is that of a row

    @property
    def pieces(self) -> int:
        return -(-(self.rows if self.layout == BY_ROWS else self.columns) // self.piece)


def _pieces_of(shape: tuple[int, ...], constraint: Constraint | None) -> _Pieces:
    """The matrix whose columns, or rows, have the norms; one row for a constraint without norms."""
    size = int(np.prod(shape))
    if constraint is None or CONSTRAINTS[constraint.name].factor is None:
        return _Pieces(ELEMENTWISE, 1, size, TILE)
    if constraint.axes == (0,) and len(shape) == 2:
        return _Pieces(BY_COLUMNS, shape[0], shape[1], PIECE_SUMS)
    if constraint.axes == (1,):
        return _Pieces(BY_ROWS, shape[0], shape[1], max(1, TILE // shape[1]))
    return _Pieces(BY_ROWS, 1, size, 1)


class AfterUpdates:
    """The phases of a training program after its updates; with none to add where `after` is None.

    params: those of the network; updated: whether the optimizer changes each of them. accumulate: batches of a step.
    """

    def __init__(
        self, after: AfterStep | None, params: Sequence[np.ndarray], num_ranks: int, steps: int, accumulate: int
    ) -> None:
        after = after or AfterStep()
        self.params, self.dtype, self.itemsize = params, params[0].dtype.name, params[0].itemsize
        self.constraints = list(after.constraints) or [None] * len(params)
        self.averages = list(after.averages) or [None] * len(params)
        self.averages_any = any(average is not None for average in self.averages)
        self.constrains = any(constraint is not None for constraint in self.constraints)
        self.fused = self.averages_any and not self.constrains  # averages are the updates' work
        self.cell, self.shares = aligned_zeros(1, self.dtype), np.zeros(steps if self.averages_any else 0)
        self.num_ranks, self.accumulate = num_ranks, accumulate

    # ------------------------------------------------------------ updates
    def update_code(self, rule: str) -> int:
        """The address of the loop of the updates."""
        return averaging_kernel(rule, self.dtype).address if self.fused else update_code(rule, self.dtype)

    def state_words(self, i: int, states: Sequence[np.ndarray]) -> list[int]:
        """Return the STATE_WORDS words of a parameter: addresses of what its update changes, and the key."""
        arrays = [*states, *([self.averages[i]] if self.fused else [])]
        words = [address_of(array) for array in arrays]
        return [*words, *[0] * (MAX_STATES - len(words)), address_of(self.cell) if self.fused else 0]

    def cost_of_update(self, cost: Cost, elements: int) -> Cost:
        """The cost of a phase that updates so many elements, averages included."""
        return costs.averaging(cost, elements, self.itemsize) if self.fused else cost

    # ------------------------------------------------------------ phases
    def begin(self, shares: np.ndarray | None) -> None:
        """Set the shares of the steps of a pass."""
        if shares is not None and len(self.shares):
            self.shares[: len(shares)] = shares

    def add_share(self, program: Any) -> None:
        """Add the phase that writes the step's share; one with a barrier must follow before the updates."""
        if self.averages_any:
            record = fill(SHARE, shares=self.shares, cell=self.cell, accumulate=self.accumulate)
            program.kept.append(self)
            program.add(share_kernel(self.dtype), record, barrier=False, cost=Cost("share"))

    def add_to(self, program: Any, step_after: np.ndarray | None) -> None:
        """Add the phase after the updates; step_after: 0 for batches that end no step, None: each ends one."""
        if not self.constrains:
            return
        table = self._table()
        sums = np.zeros((self.num_ranks, 2 * PIECE_SUMS))
        program.kept += [self, table, sums, step_after]
        size = sum(int(one["rows"] * one["columns"]) for one in table)
        averaged = sum(int(one["rows"] * one["columns"]) for one in table if one["average"])
        record = fill(
            AFTER_STEP, count=len(table), table=table, num_pieces=int(table["pieces"].sum()), sums=sums,
            step_after=step_after,
        )  # fmt: skip
        program.meet()
        program.needs_weight = True
        program.add(AFTER_STEP_KERNEL, record, barrier=False, cost=costs.after_step(size, averaged, self.itemsize))
        program.needs_weight = False

    def _table(self) -> np.ndarray:
        """A record for each array that is constrained or averaged."""
        found, first = [], 0
        for p, constraint, average in zip(self.params, self.constraints, self.averages, strict=True):
            if constraint is None and average is None:
                continue
            pieces = _pieces_of(p.shape, constraint)
            code = constraint_kernel(constraint.name if constraint else "", pieces.layout, self.dtype).address
            found.append((
                code, address_of(p), address_of(average), address_of(self.cell), pieces.rows, pieces.columns,
                pieces.piece, int(pieces.layout != BY_ROWS), first, pieces.pieces, p.itemsize,
                constraint.most if constraint else 0.0,
            ))  # fmt: skip
            first += pieces.pieces
        return np.array(found, CONSTRAINED)


def key_of(after: AfterStep | None) -> tuple[Any, ...]:
    """All of an optimizer's work after its updates that a program depends on, while its arrays live."""
    if after is None:
        return ()
    return tuple(after.constraints), tuple(id(average) for average in after.averages)
