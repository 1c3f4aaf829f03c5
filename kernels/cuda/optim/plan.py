"""An optimizer's step on the device, laid out once: tables in device memory, and one launch for each rule, dtype,
form of 16-bit arrays and storage of states.

Values that change from step to step are written to one piece of host memory and copied in one go: the addresses of
gradients, and the scalars of the step, a row for all arrays of one kind (group, rule, dtype) and step number. Then

    update                                the whole step, if the host knows all that it depends on
    squares | resolve_step | update       if not: gradients are clipped by their norm, a scale or a flag lies on the
                                          device, or steps are skipped if a gradient is not finite

and nothing waits for the device. A step that the device skips does not count: the next one uses the scalars of the same
step number. The host, which is ahead, does not know yet, so it lays out rows for every number that may be needed, the
newest first, and the device reads the one that is as many rows further as steps were skipped. The device writes the
outcome of a step to host memory when it gets there, and the host reads it in one of the next steps.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...formulas import NUM_SCALARS, OPTIMIZERS
from ...scalars import fill_row
from ...spec import MASTER, WHOLE, BufferUpdate
from ..runtime.compile import Kernel
from ..runtime.device import Device
from ..runtime.records import CONTROL, POINTERS, RECORDS, ROW, SETTINGS, STEP, TILE, offset
from ..runtime.storage import STORES
from .blockwise import kernel_of
from .norm import RESOLVE_STEP, SUM, squares_kernel
from .updates import update_kernel

MAX_PENDING = 64  # steps with unknown outcomes that the host may be ahead of the device
POINTERS_BYTES, SETTINGS_BYTES = POINTERS.itemsize, SETTINGS.itemsize
OUTCOME, NORM = offset(CONTROL, "outcome"), offset(CONTROL, "norm")


class Guard(NamedTuple):
    """Conditions of a step that only the device knows; addresses are of one float32 each, 0: there is none."""

    clip_norm: float | None = None  # the largest norm that the gradients may have
    grad_scale: int = 0  # address of the divisor of the gradients
    found_inf: int = 0  # address of a flag that skips the step
    skip_nonfinite: bool = False  # the step is skipped if a gradient is not finite
    unscales: bool = False  # gradients are left divided by grad_scale, unless the step is skipped

    @property
    def may_skip(self) -> bool:
        return bool(self.found_inf or self.skip_nonfinite)

    @property
    def inspects_gradients(self) -> bool:
        """True if gradients are read before the update."""
        return self.clip_norm is not None or self.skip_nonfinite

    def settings(self, scale: float, known_skips: int = 0, number: int = 0, counted: bool = False) -> tuple[Any, ...]:
        """Return a record SETTINGS."""
        max_norm = math.inf if self.clip_norm is None else self.clip_norm
        skip_nonfinite = int(self.skip_nonfinite)
        return scale, max_norm, self.grad_scale, self.found_inf, skip_nonfinite, known_skips, number, int(counted)


NO_GUARD = Guard()


class Table:
    """The arrays of one rule, dtype, form and storage of states, which one launch updates.

    masks: the address of each array's mask, which a record has behind those of the states; (): no array has one.
    """

    def __init__(
        self, gpu: Device, targets: Sequence[BufferUpdate], indices: list[int], first: int, masks: Sequence[int] = ()
    ) -> None:
        some = targets[indices[0]]
        self.kernel, self.squares = kernel_of(some), squares_kernel(some.dtype)
        if masks:
            self.kernel = update_kernel(some.rule, some.dtype, some.form, masked=True)
        self.unscaling = partial(kernel_of, some, True)
        self.first, self.count = first, len(indices)  # among the records POINTERS
        sizes = np.array([targets[i].elements for i in indices], np.int64)
        tiles = -(-sizes // TILE)
        self.tiles = int(tiles.sum())
        records = np.zeros(len(indices), RECORDS)
        records["elements"], records["first_tile"] = sizes, np.cumsum(tiles) - tiles
        for record, i, mask in zip(records, indices, masks or [0] * len(indices), strict=True):
            states = [*targets[i].states, *[mask] * (mask != 0)]
            record["states"][: len(states)] = states
            record["stream"] = targets[i].stream
        owners = np.repeat(np.arange(len(indices), dtype=np.int32), tiles)  # the array of each tile
        self.memory = gpu.allocate(records.nbytes + owners.nbytes)
        self.records, self.owners = self.memory.address, self.memory.address + records.nbytes
        gpu.copy_in(self.records, records, 0)
        gpu.copy_in(self.owners, owners, 0)


class Tables:
    """The tables of all steps on some arrays, and the launches of a step."""

    def __init__(self, targets: Sequence[BufferUpdate], gpu: Device) -> None:
        self.gpu = gpu
        kinds = [(t.group, t.rule, STORES[t.dtype].real) for t in targets]
        self.kinds = list(dict.fromkeys(kinds))
        numbers = {kind: number for number, kind in enumerate(self.kinds)}
        self.kind_of = np.array([numbers[kind] for kind in kinds], np.int64)
        self.sizes = np.array([t.elements for t in targets], np.int64)
        self.params = np.array([t.p for t in targets], np.int64)  # addresses
        together: dict[Kernel, list[int]] = {}
        for i, t in enumerate(targets):
            arrays_of_state = 1 if t.storage == WHOLE else 2
            assert len(t.states) == arrays_of_state * len(OPTIMIZERS[t.rule].states) + (t.form == MASTER)
            together.setdefault(kernel_of(t), []).append(i)
        self.order = np.array([i for indices in together.values() for i in indices], np.int64)
        self.tables: list[Table] = []
        with gpu.active():
            for indices in together.values():
                self.tables.append(Table(gpu, targets, indices, sum(table.count for table in self.tables)))
            self.tiles = sum(table.tiles for table in self.tables)
            self.sums = gpu.allocate(self.tiles * SUM)
            self.control = gpu.allocate(CONTROL.itemsize)
            gpu.wait(0)  # the tables are there before any stream reads them

    @property
    def norm_address(self) -> int:
        """Address of the norm of the last step that inspected gradients, a float64, before clipping."""
        return int(self.control.address) + NORM

    def last_norm(self, stream: int = 0) -> float:
        """Return the norm of the last step that inspected gradients, before clipping. Waits for the stream."""
        record = np.zeros(1, CONTROL)
        with self.gpu.active():
            self.gpu.copy_out(record, self.control.address, stream)
            self.gpu.wait(stream)
        return float(record["norm"][0])

    def _resolve_step(self, pointers: int, settings: int, inspects_gradients: bool, stream: int) -> None:
        """Have the device fill in its control record, from the gradients if they are inspected."""
        tiles = 0
        if inspects_gradients:
            for table in self.tables:
                self._launch(table, table.squares, pointers, stream, self.sums.address + tiles * SUM)
                tiles += table.tiles
        self.gpu.launch(RESOLVE_STEP, 1, stream, self.sums.address, tiles, settings, self.control.address)

    def _update(self, pointers: int, stream: int, control: int, unscales: bool = False) -> None:
        for table in self.tables:
            self._launch(table, table.unscaling() if unscales else table.kernel, pointers, stream, control)

    def _launch(self, table: Table, kernel: Kernel, pointers: int, stream: int, last: int) -> None:
        if table.tiles:
            blocks = min(table.tiles, self.gpu.max_blocks(kernel))
            own = pointers + table.first * POINTERS_BYTES
            self.gpu.launch(kernel, blocks, stream, table.records, own, table.owners, table.tiles, last)


class Plan(Tables):
    """The updates of some arrays, to be run any number of times; it knows addresses alone, and owns none of them.

        plan = Plan([BufferUpdate("adam", "float32", 1000, p.data_ptr(), (m.data_ptr(), v.data_ptr())), ...], gpu(0))
        plan.update([g.data_ptr(), ...], [1, ...], [options], stream=torch.cuda.current_stream().cuda_stream)

    As the Plan of the CPU, but a call returns when its work has been given to a stream, and memory must live until it
    is done. Steps of one plan on several streams are the caller's to order, as is any work on the same memory.
    """

    def __init__(self, targets: Sequence[BufferUpdate], gpu: Device) -> None:
        super().__init__(targets, gpu)
        self.outcomes = gpu.pinned(MAX_PENDING)
        self.skipped = np.zeros(len(targets), np.int64)  # steps of each array that are known to have been skipped
        self._skips, self._number = 0, 0  # of the plan, and the steps so far that might have been
        # The number of a step whose outcome is not known, and which arrays had a gradient. Its event is reached when it
        # is done: the stream itself may be gone by the time that somebody waits.
        self._pending: deque[tuple[int, np.ndarray]] = deque()
        self._events: dict[int, Any] = {}  # by the number's index in `outcomes`
        self._workspace = _Workspace(self)
        self._lock = threading.Lock()

    def update(
        self,
        gradients: Sequence[int] | np.ndarray,
        steps: Sequence[int] | np.ndarray,
        options: Sequence[Mapping[str, Any]],
        scale: float = 1.0,
        places: Mapping[int, int] | None = None,
        guard: Guard = NO_GUARD,
        stream: int = 0,
    ) -> None:
        """Update every array that has a gradient, in place.

        steps: (n,) number of this step for each array, counted from 1, as if no step of this plan had been skipped;
            those of arrays left out do not matter.
        options: for each group all options of its targets' rules, by their names in OPTIMIZERS; others are passed over.
        scale: factor of the gradients.
        places: the addresses of those parameters that have moved since the last step, by their index.
        guard: conditions that only the device knows.
        stream: the handle of the stream that is to do it.

        Raises:
            RuntimeError: the stream is being captured into a CUDA graph, which would replay this very step number.
        """
        g = np.asarray(gradients, np.int64)
        present = (g != 0) & (self.sizes != 0)
        with self._lock, self.gpu.active():
            for i, address in (places or {}).items():
                self.params[i] = address
            if not present.any():
                return
            if self.gpu.is_capturing(stream):
                raise RuntimeError(
                    "a step cannot be captured into a CUDA graph where the host counts steps: it would be the same step"
                    " every time. Make the optimizer with capturable=True"
                )
            num_pending = self._collect_outcomes(present)
            guarded = num_pending > 0 or guard != NO_GUARD
            pairs, rows = self._assign_scalar_rows(present, np.asarray(steps, np.int64) - self.skipped)
            # With a guard the factor comes from the device: rows hold 1 or -1 for it, so that the bits are the same.
            self._workspace.fill(self, g, rows, pairs, options, 1.0 if guarded else scale, num_pending)
            if guarded:
                number = self._begin_pending(present) if guard.may_skip else 0
                self._workspace.settings[0] = guard.settings(scale, self._skips, number)
            self._workspace.send(stream)
            if guarded:
                self._resolve(guard, stream)
            control = self.control.address if guarded else 0
            self._update(self._workspace.pointers_address, stream, control, guard.unscales)

    def norm(self, gradients: Sequence[int] | np.ndarray, stream: int = 0) -> float:
        """Return the Euclidean norm of all gradients laid end to end. Waits for the stream."""
        guard = Guard(clip_norm=math.inf)
        with self._lock, self.gpu.active():
            self._workspace.fill(self, np.asarray(gradients, np.int64), self.kind_of, [], [], 1.0, 0)
            self._workspace.settings[0] = guard.settings(1.0, self._skips)
            self._workspace.send(stream)
            self._resolve(guard, stream)
        return self.last_norm(stream)

    def count_skipped(self) -> np.ndarray:
        """Return the number of steps of each array that the device has skipped, (n,). Waits for all steps."""
        with self.gpu.active():
            self._wait_for_outcomes()
        return self.skipped.copy()

    # -- outcomes of steps

    def _collect_outcomes(self, present: np.ndarray) -> int:
        """Read the outcomes that the device has reported; return the number of steps still pending."""
        self._read_outcomes()
        # An array that had no gradient in one of them would have to go another number of rows back than the others.
        if len(self._pending) >= MAX_PENDING or any((then != present).any() for _, then in self._pending):
            self._wait_for_outcomes()
        return len(self._pending)

    def _read_outcomes(self) -> None:
        while self._pending:
            number, present = self._pending[0]
            outcome = int(self.outcomes[number % MAX_PENDING])
            if outcome >> 1 != number:
                return
            self._pending.popleft()
            if outcome & 1:
                self._skips += 1
                self.skipped += present

    def _wait_for_outcomes(self) -> None:
        for number, _ in self._pending:
            self._events[number % MAX_PENDING].wait()
        self._read_outcomes()

    def _begin_pending(self, present: np.ndarray) -> int:
        """Note a step that may be skipped; return its number."""
        self._number += 1
        self._pending.append((self._number, present))
        return self._number

    # -- a step

    def _assign_scalar_rows(self, present: np.ndarray, steps: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
        """Return the pairs of kind and step number that need a row of scalars, and each array's index among them."""
        if present.all() and (steps == steps[0]).all():
            return [(kind, int(steps[0])) for kind in range(len(self.kinds))], self.kind_of
        pairs = np.stack([self.kind_of, np.where(present, steps, 0)], 1)
        needed, index = np.unique(pairs, axis=0, return_inverse=True)
        return [(int(kind), int(step)) for kind, step in needed], index.reshape(-1)

    def _resolve(self, guard: Guard, stream: int) -> None:
        """Have the device fill in its control record, and report the outcome of a step that may be skipped."""
        pointers, settings = self._workspace.pointers_address, self._workspace.settings_address
        self._resolve_step(pointers, settings, guard.inspects_gradients, stream)
        if guard.may_skip:
            index = self._number % MAX_PENDING
            self.gpu.copy_out(self.outcomes[index : index + 1], self.control.address + OUTCOME, stream)
            if index not in self._events:
                self._events[index] = self.gpu.event()
            self._events[index].record(stream)


class _Workspace:
    """Memory that each call of a plan writes, on the host and on the device: pointers, settings and rows of scalars."""

    def __init__(self, plan: Plan) -> None:
        self.gpu, self.count = plan.gpu, len(plan.sizes)
        self._allocate((MAX_PENDING + 1) * len(plan.kinds))  # enough, unless arrays of a kind lag behind others

    def _allocate(self, rows: int) -> None:
        fixed = self.count * POINTERS_BYTES + SETTINGS_BYTES
        fixed += -fixed % ROW
        self.host = np.zeros(fixed + rows * ROW, np.uint8)
        self.pointers = self.host[: self.count * POINTERS_BYTES].view(POINTERS)
        self.settings = self.host[fixed - SETTINGS_BYTES : fixed].view(SETTINGS)
        self.rows = self.host[fixed:].reshape(rows, ROW)
        self.memory = self.gpu.allocate(len(self.host))
        self.pointers_address = self.memory.address
        self.settings_address = self.pointers_address + fixed - SETTINGS_BYTES
        self.rows_address = self.pointers_address + fixed
        self.num_used, self.sent = 0, np.zeros(0, np.uint8)

    def fill(
        self,
        plan: Plan,
        gradients: np.ndarray,
        index: np.ndarray,
        kinds: list[tuple[int, int]],
        options: Sequence[Mapping[str, Any]],
        scale: float,
        num_pending: int,
    ) -> None:
        """Write pointers and scalars: for each kind the rows of its step and of `num_pending` steps before it."""
        window = num_pending + 1
        if len(kinds) * window > len(self.rows):
            self._allocate(2 * len(kinds) * window)
        order = plan.order
        self.pointers["p"], self.pointers["g"] = plan.params[order], gradients[order]
        self.pointers["row"] = self.rows_address + index[order] * (window * ROW)
        self.num_used = len(kinds) * window
        for i, (kind, step) in enumerate(kinds):
            group, rule, dtype = plan.kinds[kind]
            for back in range(window if step else 0):  # step 0: all arrays of the kind are left out
                row, number = self.rows[i * window + back], max(step - back, 1)
                fill_row(row.view(dtype)[: NUM_SCALARS + 1], rule, number, options[group], scale)
                row.view(np.int64)[STEP // 8] = number

    def send(self, stream: int) -> None:
        """Copy to the device what has changed."""
        pointers_bytes = self.count * POINTERS_BYTES
        end = len(self.host) - self.rows.nbytes + self.num_used * ROW
        same = len(self.sent) and np.array_equal(self.host[:pointers_bytes], self.sent)
        start = pointers_bytes if same else 0
        if not same:
            self.sent = self.host[:pointers_bytes].copy()
        self.gpu.copy_in(self.memory.address + start, self.host[start:end], stream)
