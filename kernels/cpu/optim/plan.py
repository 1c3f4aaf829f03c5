"""The plan of an optimizer's steps: records of all that does not change from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from ...formulas import NUM_SCALARS, dropout_key
from ...scalars import TINY, Scalars
from ...spec import WHOLE, BufferUpdate, Update
from ..runtime.compile import Kernel
from ..runtime.launch import UPDATE_ELEMENTS, Limit, num_threads_for, parallel
from ..runtime.primitives import address_of, aligned_zeros, view, word
from ..runtime.records import PLAN, UPDATE, UPDATES, fill, read
from ..runtime.storage import STORES, name_of
from .blockwise_loops import STATE_TABLE_WORDS, state_words
from .loops import MAX_STATES
from .norm import Squares
from .updates import STATES_OFFSET, TILE, UPDATE_ALL, are_streamed, update_code

ROW_BYTES = 128  # of a row of scalars, of either dtype


def _assign_scalar_rows(work):
    """Give every array that has a gradient its tiles and its row of scalars.

    Arrays of one kind (group, rule and dtype) and one step number share a row.
    """
    a = read(work, PLAN)
    gradients, steps = view(a.gradients, a.count, np.int64), view(a.steps, a.count, np.int64)
    sizes, kinds = view(a.sizes, a.count, np.int64), view(a.kinds, a.count, np.int64)
    rows, streams = view(a.rows, 2 * a.count, np.int64), view(a.streams, a.count, np.uint64)
    used, tiles, elements = 0, 0, 0
    for i in range(a.count):
        update = read(a.table + i * RECORD_BYTES, UPDATE)
        update.elements = 0
        update.first_tile = tiles
        if gradients[i] != 0 and sizes[i] != 0:
            # its row: nearly always the row of the array before
            row = used - 1
            while row >= 0 and (rows[2 * row] != kinds[i] or rows[2 * row + 1] != steps[i]):
                row -= 1
            if row < 0:
                row = used
                rows[2 * row], rows[2 * row + 1] = kinds[i], steps[i]
                used += 1
            # the record of its update, and the key of stochastic rounding
            update.g, update.elements, update.scalars = gradients[i], sizes[i], a.scalars + row * ROW_BYTES
            key = view(a.table + i * RECORD_BYTES + KEY_OFFSET, 1, np.uint64)
            key[0] = dropout_key(word(streams[i]), word(steps[i]))
            # its tiles
            tiles += (sizes[i] + TILE - 1) // TILE
            elements += sizes[i]
    a.used, a.elements = used, elements
    updates = read(a.updates, UPDATES)
    updates.tiles = tiles


RECORD_BYTES, KEY_OFFSET = UPDATE.itemsize, STATES_OFFSET + 8 * MAX_STATES
ASSIGN_SCALAR_ROWS = Kernel(_assign_scalar_rows, "assign_scalar_rows")


T = TypeVar("T")


class Pool(Generic[T]):
    """Workspaces, each for one call at a time: as many as there are calls at once.

    Without a lock, which a forked process might inherit locked. The workspace of a call that raises is not used again.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self.make = make
        self.idle: list[T] = []

    def acquire(self) -> T:
        try:  # a test whether there is one would not do: another thread may be quicker
            return self.idle.pop()
        except IndexError:
            return self.make()

    def release(self, workspace: T) -> None:
        self.idle.append(workspace)


class Plan:
    """The updates of some arrays, to be run any number of times. It knows only their addresses, and owns none.

        plan = Plan([BufferUpdate("adam", "float32", 1000, p.data_ptr(), (m.data_ptr(), v.data_ptr())), ...])
        plan.update([g.data_ptr(), ...], [1, ...], [options])

    gradients, in every call: for each target the address of as many elements of its dtype, without gaps and aligned. 0
    leaves the array out: its parameter and states stay as they are, and no norm counts it. A sequence of integers or,
    faster, an int64 array (n,).

    Nothing of a call is kept, and gradients are not changed. All addresses must be right and must not overlap, and the
    memory must live until the call returns: the GIL is released meanwhile. Threads may call one plan at the same time
    unless their memory is the same. A plan is valid as long as the addresses, rules, dtypes and groups of its targets;
    options, step numbers and threads may change from call to call.

    limit: returns the most threads of a call, where `get_num_threads` is not the only limit; called in every call.
    """

    def __init__(self, targets: Sequence[BufferUpdate], limit: Limit = None) -> None:
        self.limit = limit
        # a row of scalars depends on the step and on the kind: group, rule, and the dtype that rules calculate in
        kinds = [(t.group, t.rule, np.dtype(STORES[t.dtype].T)) for t in targets]
        self.kinds = list(dict.fromkeys(kinds))
        kind_numbers = {kind: number for number, kind in enumerate(self.kinds)}
        self.kind_of = np.array([kind_numbers[kind] for kind in kinds], np.int64)
        self.streams = np.array([t.stream for t in targets], np.uint64)
        self.sizes = np.array([t.elements for t in targets], np.int64)
        self.dtypes_and_sizes = [(t.dtype, t.elements) for t in targets]
        self.table, streamed = np.zeros(len(targets), UPDATE), are_streamed(targets)
        coded = [t.storage != WHOLE and len(t.states) > 0 for t in targets]
        self.state_table = np.zeros((sum(coded), STATE_TABLE_WORDS), np.int64)  # of those with codes of 8 bits
        rest = iter(self.state_table)
        for i, (t, is_coded) in enumerate(zip(targets, coded, strict=True)):
            of_target = t.states
            if is_coded:
                words = next(rest)
                words[:], of_target = state_words(t.states), [address_of(words)]
            states = (*of_target, *[0] * (MAX_STATES - len(of_target)))
            code = update_code(t.rule, t.dtype, t.form, streamed, t.storage)
            self.table[i] = (code, t.p, 0, *states, 0, 0, 0, 0, STORES[t.dtype].itemsize)
        self._idle = Pool(lambda: _Workspace(self))

    def update(
        self,
        gradients: Sequence[int] | np.ndarray,
        steps: Sequence[int] | np.ndarray,
        options: Sequence[Mapping[str, Any]],
        scale: float = 1.0,
        addresses: Mapping[int, int] | None = None,
    ) -> None:
        """Update every array that has a gradient, in place and in one launch.

        steps: (n,) the number of this step for each array, from 1; those of arrays left out do not matter.
        options: for each group all options of its targets' rules, by their names in OPTIMIZERS; others are ignored.
        scale: factor of the gradients.
        addresses: of the parameters that have moved since the last call, by their index.
        """
        workspace = self._idle.acquire()
        if addresses:
            for i, address in addresses.items():
                workspace.addresses[i] = address
        workspace.assign_scalar_rows(gradients, steps)
        for i, (kind, step) in enumerate(workspace.needed_rows()):
            group, _, dtype = self.kinds[kind]
            workspace.scalars[kind].fill(workspace.rows[dtype][i], step, options[group], scale)
        workspace.update()
        self._idle.release(workspace)

    def norm(self, gradients: Sequence[int] | np.ndarray) -> float:
        """The Euclidean norm of all gradients laid end to end; the same bits for any number of threads."""
        return self._measure(lambda squares: squares.norm(gradients, self.limit))

    def norms(self, gradients: Sequence[int] | np.ndarray) -> list[float]:
        """The norm of each array's gradient; 0 of one that is left out."""
        return self._measure(lambda squares: squares.norms(gradients, self.limit))

    def _measure(self, measure: Callable[[Squares], T]) -> T:
        workspace = self._idle.acquire()
        if workspace.squares is None:
            workspace.squares = Squares(self.dtypes_and_sizes)
        found = measure(workspace.squares)
        self._idle.release(workspace)
        return found


class _Workspace:
    """Memory that one call of a plan at a time writes to."""

    def __init__(self, plan: Plan) -> None:
        count = len(plan.sizes)
        self.table = plan.table.copy()
        self.addresses = self.table["p"]
        self.gradients, self.steps = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.pairs = np.zeros((count, 2), np.int64)
        memory = aligned_zeros(count * ROW_BYTES, np.uint8)
        self.rows = {
            dtype: memory.view(dtype).reshape(count, ROW_BYTES // dtype.itemsize)[:, : NUM_SCALARS + 1]
            for dtype in TINY
        }
        self.scalars = [Scalars(rule, dtype) for _, rule, dtype in plan.kinds]
        self.updates = fill(UPDATES, count=count, table=self.table)
        self.plan = fill(
            PLAN, count=count, gradients=self.gradients, steps=self.steps, sizes=plan.sizes, kinds=plan.kind_of,
            streams=plan.streams, table=self.table, scalars=memory, rows=self.pairs, updates=self.updates,
        )  # fmt: skip
        self.kept = plan.sizes, plan.kind_of, plan.streams, memory
        self.used, self.elements, self.tiles = self.plan["used"], self.plan["elements"], self.updates["tiles"]
        self.address, self.updates_address = address_of(self.plan), address_of(self.updates)
        self.squares: Squares | None = None
        self.limit = plan.limit

    def assign_scalar_rows(self, gradients: Sequence[int] | np.ndarray, steps: Sequence[int] | np.ndarray) -> None:
        self.gradients[:] = gradients
        self.steps[:] = steps
        ASSIGN_SCALAR_ROWS.run(self.address)

    def needed_rows(self) -> list[list[int]]:
        """Kind and step number of every row of scalars that the step needs."""
        rows: list[list[int]] = self.pairs[: self.used[0]].tolist()
        return rows

    def update(self) -> None:
        tiles = int(self.tiles[0])
        if tiles:
            num_ranks = num_threads_for(int(self.elements[0]), UPDATE_ELEMENTS, tiles, self.limit)
            parallel(UPDATE_ALL, self.updates_address, 0, num_ranks)


def update(jobs: Sequence[Update], scale: float = 1.0) -> None:
    """Update p and the states of every job in place, all of them in one launch; arrays are C-contiguous.

    Gradients count times `scale`, and are not changed. `Plan` is faster where the same arrays are updated again.
    """
    groups = {id(job.options): job.options for job in jobs}
    numbers = {key: number for number, key in enumerate(groups)}
    plan = Plan([
        BufferUpdate(
            job.rule, name_of(job.p.dtype), job.p.size, address_of(job.p), [address_of(s) for s in job.states],
            numbers[id(job.options)], job.form, job.stream, job.storage,
        )
        for job in jobs
    ])  # fmt: skip
    gradients, steps = [address_of(job.g) for job in jobs], [job.step for job in jobs]
    plan.update(gradients, steps, list(groups.values()), scale)
