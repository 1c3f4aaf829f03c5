"""The work that follows the updates of a step in a training program: constraints, and averages of the parameters.

`share` writes the step's share of the parameters in their averages to a cell, at the begin of a batch. Where nothing is
constrained, the updates themselves take each parameter into its average, so there is no phase more. Otherwise
`after_step`, behind a barrier, constrains parameters and averages them, piece after piece.

Norms of columns are made of sums that the updates leave. Where gradients are written first, a phase `column_norms`
makes these sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...formulas import CONSTRAINTS, OPTIMIZERS
from ...profile import Cost
from ...spec import SAME, WHOLE, AfterStep, Constraint
from ..optim import blockwise_loops
from ..optim.averaging_loops import averaging_kernel
from ..optim.constraints import BY_COLUMNS, BY_ROWS, ELEMENTWISE, constraint_kernel, measure_kernel, scratch_bytes
from ..optim.loops import MAX_STATES
from ..optim.masked_loops import masked_kernel
from ..optim.updates import update_code
from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.partition import pieces_of_rank
from ..runtime.primitives import address_of, aligned_zeros, call_tile, view
from ..runtime.records import AFTER_STEP, CONSTRAINED, MASKED, SHARE, fill, read
from .phases import PhaseList

PIECE = 16_384  # elements of a piece of rows


def _share(T):
    def share(work, step, rank, num_ranks):
        if rank == 0:
            s = read(work, SHARE)
            view(s.cell, 1, T)[0] = T(view(s.shares + step // s.accumulate * 8, 1, np.float64)[0])

    return share


@cache
def share_kernel(dtype: str) -> Kernel:
    return Kernel(_share(getattr(np, dtype)), f"share_{dtype}")


@register_jitable
def ends_step(a, step):
    """True if a step ends with batch `step`; a: the record AFTER_STEP."""
    return a.step_after == 0 or view(a.step_after + step * 8, 1, np.int64)[0] != 0


def _measure_all(work, step, rank, num_ranks):
    """The squares of the columns of all parameters with such norms: of each piece of a rank's own."""
    a = read(work, AFTER_STEP)
    if not ends_step(a, step):
        return
    for i in range(a.count):
        one = read(a.table + i * RECORD_BYTES, CONSTRAINED)
        if one.measure:
            for piece in pieces_of_rank(one.pieces, rank, num_ranks):
                first = piece * one.piece
                p, squares = one.p + first * one.columns * one.element_bytes, one.squares + piece * one.columns * 8
                call_tile(one.measure, p, squares, 0, 0, min(one.piece, one.rows - first), one.columns, one.columns)


def _after_step(work, step, rank, num_ranks):
    """Constrain and average all parameters of the table: a rank has its share of the rows of each."""
    a = read(work, AFTER_STEP)
    if not ends_step(a, step):
        return
    scratch = a.scratch + rank * a.scratch_bytes
    for i in range(a.count):
        record = a.table + i * RECORD_BYTES
        one = read(record, CONSTRAINED)
        # the rank's rows
        pieces = pieces_of_rank(one.pieces, rank, num_ranks)
        first, last = pieces.start * one.piece, min(pieces.stop * one.piece, one.rows)
        if first < last:
            skip = first * one.columns * one.element_bytes
            average = one.average + skip if one.average else 0
            call_tile(one.constrain, one.p + skip, average, record, scratch, last - first, one.columns, one.columns)


def after_step_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of the tables for averages and constraints of arrays of a dtype."""
    layouts = [
        (name, layout)
        for name, row in CONSTRAINTS.items()
        for layout in ((BY_COLUMNS, BY_ROWS) if row.factor else (ELEMENTWISE,))
    ]
    kernels = [constraint_kernel(name, layout, dtype) for name, layout in [*layouts, ("", ELEMENTWISE)]]
    kernels += [averaging_kernel(rule, dtype) for rule in OPTIMIZERS]
    return [share_kernel(dtype), measure_kernel(dtype), *kernels]


RECORD_BYTES = CONSTRAINED.itemsize
MEASURE_KERNEL, AFTER_STEP_KERNEL = Kernel(_measure_all, "measure_columns"), Kernel(_after_step, "after_step")


class _Matrix(NamedTuple):
    """An array as the matrix that its constraint works on."""

    layout: str
    rows: int
    columns: int

    @property
    def piece(self) -> int:
        """Rows of a piece."""
        return max(1, PIECE // self.columns)

    @property
    def pieces(self) -> int:
        return -(-self.rows // self.piece)


def _matrix_of(shape: tuple[int, ...], constraint: Constraint | None) -> _Matrix:
    """The matrix whose columns, or rows, have the norms; a vector, or an array with one norm, is one row."""
    rows, columns = shape if len(shape) == 2 else (1, shape[0])
    if constraint is None or CONSTRAINTS[constraint.name].factor is None:
        return _Matrix(ELEMENTWISE, rows, columns)
    if len(shape) == 2 and len(constraint.axes) == 1:
        return _Matrix(BY_COLUMNS if constraint.axes == (0,) else BY_ROWS, rows, columns)
    return _Matrix(BY_ROWS, 1, rows * columns)


class AfterUpdates:
    """The phases of a training program after its updates; with none to add where `after` is None.

    params: those of the network; updated: whether the optimizer changes each of them. accumulate: batches of a step.
    masks: of each parameter, see `masks.complete`; (): nothing is pruned. storages: of the states of each parameter;
    (): all are WHOLE.
    """

    def __init__(
        self, after: AfterStep | None, params: Sequence[np.ndarray], num_ranks: int, steps: int, accumulate: int,
        masks: Sequence[np.ndarray | None] = (), storages: Sequence[str] = (),
    ) -> None:  # fmt: skip
        after = after or AfterStep()
        self.storages = list(storages) or [WHOLE] * len(params)
        self.params, self.dtype, self.itemsize = params, params[0].dtype.name, params[0].itemsize
        self.constraints = list(after.constraints) or [None] * len(params)
        self.averages = list(after.averages) or [None] * len(params)
        self.averages_any = any(average is not None for average in self.averages)
        self.constrains = any(constraint is not None for constraint in self.constraints)
        self.fused = self.averages_any and not self.constrains  # averages are the updates' work
        self.cell, self.shares = aligned_zeros(1, self.dtype), np.zeros(steps if self.averages_any else 0)
        self.num_ranks, self.accumulate = num_ranks, accumulate
        self.kept: list[np.ndarray] = []  # memory that records point to
        self.squares: dict[int, np.ndarray] = {}  # of the columns of parameters that are measured with their updates
        self.masks = list(masks) or [None] * len(params)

    # ------------------------------------------------------------ updates
    def update_code(self, rule: str, i: int) -> int:
        """The address of the loop of the update of parameter i."""
        if self.masks[i] is not None:
            return masked_kernel(rule, self.dtype, self.fused).address
        if self.storages[i] != WHOLE and OPTIMIZERS[rule].states:
            return blockwise_loops.blockwise_kernel(rule, self.dtype, SAME, self.storages[i], self.fused).address
        return averaging_kernel(rule, self.dtype).address if self.fused else update_code(rule, self.dtype)

    def state_words(self, i: int, states: Sequence[np.ndarray]) -> list[int]:
        """Return the STATE_WORDS words of a parameter: addresses of what its update changes, and the key."""
        if self.storages[i] != WHOLE and states:
            more = (address_of(self.averages[i]), address_of(self.cell)) if self.fused else ()
            own = np.array(blockwise_loops.state_words([address_of(state) for state in states], *more), np.int64)
            self.kept.append(own)
            return [address_of(own), *[0] * MAX_STATES]
        arrays = [*states, *([self.averages[i]] if self.fused else [])]
        words = [address_of(array) for array in arrays]
        key = address_of(self.cell) if self.fused else 0
        if self.masks[i] is not None:
            masked = fill(MASKED, mask=self.masks[i], share=key)
            self.kept.append(masked)
            key = address_of(masked)
        return [*words, *[0] * (MAX_STATES - len(words)), key]

    def fields_of_tiles(self, i: int, tiles_down: int) -> dict[str, Any]:
        """Fields of the record DENSE by which parameter i is measured, tile by tile, for so many rows of tiles.

        A tile is in the cache when it has been updated: the phase `column_norms` read it again, in 3 % of an epoch of
        784-256-128-10 at batch 64.
        """
        shape = self.params[i].shape
        if _matrix_of(shape, self.constraints[i]).layout != BY_COLUMNS:
            return {}
        self.squares[i] = np.zeros((tiles_down, shape[1]))
        return {"measure": measure_kernel(self.dtype).address, "column_squares": self.squares[i]}

    def cost_of_update(self, cost: Cost, elements: int, masked: bool = False) -> Cost:
        """The cost of a phase that updates so many elements, averages and masks included."""
        cost = costs.averaging(cost, elements, self.itemsize) if self.fused else cost
        return costs.masking(cost, elements) if masked else cost

    # ------------------------------------------------------------ phases
    def begin(self, shares: np.ndarray | None) -> None:
        """Set the shares of the steps of a pass."""
        if shares is not None and len(self.shares):
            self.shares[: len(shares)] = shares

    def add_share(self, program: PhaseList) -> None:
        """Add the phase that writes the step's share; one with a barrier must follow before the updates."""
        if self.averages_any:
            record = fill(SHARE, shares=self.shares, cell=self.cell, accumulate=self.accumulate)
            program.kept.append(self)
            program.add(share_kernel(self.dtype), record, barrier=False, cost=Cost("share"))

    def add_to(self, program: PhaseList, step_after: np.ndarray | None) -> None:
        """Add the phase after the updates; step_after: 0 for batches that end no step, None: each ends one."""
        if not self.constrains:
            return
        table = self._table()
        measured = table[table["measure"] != 0]
        bytes_of_rank = -(-max(scratch_bytes(int(columns)) for columns in table["columns"]) // 64) * 64
        scratch = aligned_zeros(self.num_ranks * bytes_of_rank, np.uint8)
        program.kept += [self, table, scratch, step_after]
        record = fill(
            AFTER_STEP, count=len(table), table=table, scratch=scratch, scratch_bytes=bytes_of_rank,
            step_after=step_after,
        )  # fmt: skip
        size, columns, averaged = (_elements(some) for some in (table, measured, table[table["average"] != 0]))
        program.meet()
        program.needs_weight = True
        if columns:
            program.add(MEASURE_KERNEL, record, barrier=True, cost=costs.column_norms(columns, self.itemsize))
        program.add(AFTER_STEP_KERNEL, record, barrier=False, cost=costs.after_step(size, averaged, self.itemsize))
        program.needs_weight = False

    def _table(self) -> np.ndarray:
        """A record for each array that is constrained or averaged."""
        found = []
        for i, (p, constraint, average) in enumerate(zip(self.params, self.constraints, self.averages, strict=True)):
            if constraint is None and average is None:
                continue
            matrix, measure, squares = _matrix_of(p.shape, constraint), 0, self.squares.get(i)
            if matrix.layout == BY_COLUMNS and squares is None:
                measure, squares = measure_kernel(self.dtype).address, np.zeros((matrix.pieces, matrix.columns))
                self.kept.append(squares)
            code = constraint_kernel(constraint.name if constraint else "", matrix.layout, self.dtype).address
            found.append((
                code, address_of(p), address_of(average), address_of(self.cell), matrix.rows, matrix.columns,
                matrix.piece, matrix.pieces, p.itemsize, measure, address_of(squares),
                0 if squares is None else len(squares), constraint.most if constraint else 0.0,
            ))  # fmt: skip
        return np.array(found, CONSTRAINED)


def _elements(table: np.ndarray) -> int:
    """Elements of the arrays of a table."""
    return int((table["rows"] * table["columns"]).sum())


def key_of(after: AfterStep | None) -> tuple[Any, ...]:
    """All of an optimizer's work after its updates that a program depends on, while its arrays live."""
    if after is None:
        return ()
    return tuple(after.constraints), tuple(id(average) for average in after.averages)
