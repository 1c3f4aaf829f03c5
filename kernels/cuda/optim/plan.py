"""An optimizer's step on the device, laid out once: tables in device memory, and one launch for each rule, dtype and
form of 16-bit arrays.

What changes from step to step is written to one piece of host memory and copied in one go: where the gradients are, and
the scalars of the step, a row for all arrays of one kind (group, rule, dtype) and step number. Then

    update                          the whole step, where the host knows all that it depends on
    squares | settle | update       where it does not: gradients to be clipped by their norm, a scale or a flag that
                                    lies on the device, steps to be skipped where a gradient is not finite

and nothing waits for the device. A step that the device skips does not count: the next one is to use the scalars of
the same step number. The host, which is ahead, does not know yet, so it lays out rows for every number that may come to
be needed, the newest first, and the device takes the one that is as many rows further as steps were skipped. What
became of a step the device writes to host memory when it gets there, and the host looks when it comes by.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...formulas import NUM_SCALARS, OPTIMIZERS
from ...scalars import fill_row
from ...spec import MASTER, BufferUpdate
from ..runtime.compile import Kernel
from ..runtime.device import Device
from ..runtime.records import CONTROL, MAX_STATES, RECORDS, ROW, SETTINGS, STEP, TILE, TURNS, offset
from ..runtime.storage import STORES
from .norm import SETTLE, SUM, squares_kernel
from .updates import update_kernel

AHEAD = 64  # steps that may be skipped that the host may be ahead of the device
TURN, SETTING = TURNS.itemsize, SETTINGS.itemsize
NEWS, NORM = offset(CONTROL, "news"), offset(CONTROL, "norm")


class Guard(NamedTuple):
    """What a step depends on that only the device knows; addresses are of one float32 each, 0: there is none."""

    clip_norm: float | None = None  # the largest norm that the gradients may have
    grad_scale: int = 0  # what they are to be divided by
    found_inf: int = 0  # other than 0, and the step is skipped
    skip_nonfinite: bool = False  # the step is skipped if a gradient is not finite
    unscales: bool = False  # gradients are left divided by grad_scale, unless the step is skipped

    @property
    def may_skip(self) -> bool:
        return bool(self.found_inf or self.skip_nonfinite)

    @property
    def careful(self) -> bool:
        """Whether gradients are looked at before the update."""
        return self.clip_norm is not None or self.skip_nonfinite


NO_GUARD = Guard()


class Table:
    """The arrays of one rule, dtype and form, which one launch updates."""

    def __init__(self, gpu: Device, targets: Sequence[BufferUpdate], which: list[int], first: int) -> None:
        some = targets[which[0]]
        self.kernel, self.squares = update_kernel(some.rule, some.dtype, some.form), squares_kernel(some.dtype)
        self.unscaling = partial(update_kernel, some.rule, some.dtype, some.form, True)
        self.first, self.count = first, len(which)  # in the order of the turns
        sizes = np.array([targets[i].elements for i in which], np.int64)
        tiles = -(-sizes // TILE)
        self.tiles = int(tiles.sum())
        records = np.zeros(len(which), RECORDS)
        records["elements"], records["first_tile"] = sizes, np.cumsum(tiles) - tiles
        for record, i in zip(records, which, strict=True):
            record["states"][: len(targets[i].states)] = targets[i].states
            record["stream"] = targets[i].stream
        owners = np.repeat(np.arange(len(which), dtype=np.int32), tiles)
        self.memory = gpu.allocate(records.nbytes + owners.nbytes)
        self.records, self.owners = self.memory.address, self.memory.address + records.nbytes
        gpu.copy_in(self.records, records, 0)
        gpu.copy_in(self.owners, owners, 0)


class Tables:
    """What is laid out once for all steps on some arrays, and the launches that a step is made of."""

    def __init__(self, targets: Sequence[BufferUpdate], gpu: Device) -> None:
        self.gpu = gpu
        kinds = [(t.group, t.rule, STORES[t.dtype].real) for t in targets]
        self.kinds = list(dict.fromkeys(kinds))
        numbers = {kind: number for number, kind in enumerate(self.kinds)}
        self.of = np.array([numbers[kind] for kind in kinds], np.int64)
        self.sizes = np.array([t.elements for t in targets], np.int64)
        self.places = np.array([t.p for t in targets], np.int64)
        together: dict[tuple[Callable[..., Any], str, str], list[int]] = {}
        for i, t in enumerate(targets):
            assert len(t.states) == len(OPTIMIZERS[t.rule].states) + (t.form == MASTER) <= MAX_STATES
            together.setdefault((OPTIMIZERS[t.rule].rule, t.dtype, t.form), []).append(i)
        self.order = np.array([i for which in together.values() for i in which], np.int64)
        self.batches: list[Table] = []
        with gpu.active():
            for which in together.values():
                self.batches.append(Table(gpu, targets, which, sum(b.count for b in self.batches)))
            self.tiles = sum(batch.tiles for batch in self.batches)
            self.sums = gpu.allocate(self.tiles * SUM)
            self.control = gpu.allocate(CONTROL.itemsize)
            gpu.wait(0)  # the tables are there before any stream asks for them

    @property
    def norm_at(self) -> int:
        """The address of the norm of the last step that was clipped or careful, a float64, before clipping."""
        return int(self.control.address) + NORM

    def last_norm(self, stream: int = 0) -> float:
        """The norm of the last step that was clipped or careful, before clipping. Waits for the stream."""
        record = np.zeros(1, CONTROL)
        with self.gpu.active():
            self.gpu.copy_out(record, self.control.address, stream)
            self.gpu.wait(stream)
        return float(record["norm"][0])

    def _settle(self, turns: int, settings: int, careful: bool, stream: int) -> None:
        """What the device finds out before the update; careful: from the gradients."""
        tiles = 0
        if careful:
            for batch in self.batches:
                self._launch(batch, batch.squares, turns, stream, self.sums.address + tiles * SUM)
                tiles += batch.tiles
        self.gpu.launch(SETTLE, 1, stream, self.sums.address, tiles, settings, self.control.address)

    def _update(self, turns: int, stream: int, control: int, unscales: bool = False) -> None:
        for batch in self.batches:
            self._launch(batch, batch.unscaling() if unscales else batch.kernel, turns, stream, control)

    def _launch(self, batch: Table, kernel: Kernel, turns: int, stream: int, last: int) -> None:
        if batch.tiles:
            blocks = min(batch.tiles, self.gpu.most_blocks(kernel))
            own = turns + batch.first * TURN
            self.gpu.launch(kernel, blocks, stream, batch.records, own, batch.owners, batch.tiles, last)


class Plan(Tables):
    """The updates of some arrays, to be run any number of times; it knows addresses alone, and owns none of them.

        plan = Plan([BufferUpdate("adam", "float32", 1000, p.data_ptr(), (m.data_ptr(), v.data_ptr())), ...], gpu(0))
        plan.update([g.data_ptr(), ...], [1, ...], [options], stream=torch.cuda.current_stream().cuda_stream)

    As the Plan of the CPU, but that a call returns when its work has been given to a stream, and that memory must live
    until it is done. Steps of one plan on several streams are the caller's to order, as is any work on the same memory.
    """

    def __init__(self, targets: Sequence[BufferUpdate], gpu: Device) -> None:
        super().__init__(targets, gpu)
        self.news = gpu.pinned(AHEAD)
        self.skipped = np.zeros(len(targets), np.int64)  # steps of each array that are known to have been skipped
        self._skips, self._number = 0, 0  # of the plan, and the steps so far that might have been
        # The number of a step whose outcome is not known, and which arrays had a gradient. Its event is reached when it
        # is done: the stream itself may be gone by the time that somebody waits.
        self._open: deque[tuple[int, np.ndarray]] = deque()
        self._events: dict[int, Any] = {}  # by the number's place in `news`
        self._working = _Working(self)
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

        steps: (n,) which step this is for each array, counted from 1, as if no step of this plan had been skipped;
            those of arrays left out do not matter.
        options: for each group all options of its targets' rules, by their names in OPTIMIZERS; others are passed over.
        scale: what gradients are to be multiplied by.
        places: the addresses of those parameters that lie somewhere else than last time, by their index.
        guard: what the step depends on beyond that.
        stream: the handle of the stream on which this is to happen.

        Raises:
            RuntimeError: the stream is being captured into a CUDA graph, which would replay this very step number.
        """
        g = np.asarray(gradients, np.int64)
        present = (g != 0) & (self.sizes != 0)
        with self._lock, self.gpu.active():
            for i, address in (places or {}).items():
                self.places[i] = address
            if not present.any():
                return
            if self.gpu.capturing(stream):
                raise RuntimeError(
                    "a step cannot be captured into a CUDA graph where the host counts steps: it would be the same step"
                    " every time. Make the optimizer with capturable=True"
                )
            behind = self._look_behind(present)
            guarded = behind > 0 or guard != NO_GUARD
            pairs, rows = self._rows(present, np.asarray(steps, np.int64) - self.skipped)
            # With a guard the factor comes from the device: rows hold 1 or -1 for it, so that the bits are the same.
            self._working.lay_out(self, g, rows, pairs, options, 1.0 if guarded else scale, behind)
            if guarded:
                self._working.guard(guard, scale, self._skips, self._numbered(guard, present))
            self._working.send(stream)
            if guarded:
                self._find_out(guard, stream)
            control = self.control.address if guarded else 0
            self._update(self._working.turns_at, stream, control, guard.unscales)

    def norm(self, gradients: Sequence[int] | np.ndarray, stream: int = 0) -> float:
        """The Euclidean norm of all gradients laid end to end. Waits for the stream."""
        guard = Guard(clip_norm=math.inf)
        with self._lock, self.gpu.active():
            self._working.lay_out(self, np.asarray(gradients, np.int64), self.of, [], [], 1.0, 0)
            self._working.guard(guard, 1.0, self._skips, 0)
            self._working.send(stream)
            self._find_out(guard, stream)
        return self.last_norm(stream)

    def settled(self) -> np.ndarray:
        """How many steps of each array the device has skipped, (n,): of all given so far. Waits for them."""
        with self.gpu.active():
            self._wait()
        return self.skipped.copy()

    # -- what became of steps

    def _look_behind(self, present: np.ndarray) -> int:
        """Takes note of what the device has done meanwhile; how many steps are still unknown, of the same arrays."""
        self._take_note()
        # An array that had no gradient in one of them would have to go another number of rows back than the others.
        if len(self._open) >= AHEAD or any((then != present).any() for _, then in self._open):
            self._wait()
        return len(self._open)

    def _take_note(self) -> None:
        while self._open:
            number, present = self._open[0]
            news = int(self.news[number % AHEAD])
            if news >> 1 != number:
                return
            self._open.popleft()
            if news & 1:
                self._skips += 1
                self.skipped += present

    def _wait(self) -> None:
        for number, _ in self._open:
            self._events[number % AHEAD].wait()
        self._take_note()

    def _numbered(self, guard: Guard, present: np.ndarray) -> int:
        """The number of a step that may be skipped, 0 for another."""
        if not guard.may_skip:
            return 0
        self._number += 1
        self._open.append((self._number, present))
        return self._number

    # -- a step

    def _rows(self, present: np.ndarray, steps: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
        """The pairs of kind and step number that are wanted, and each array's place among them."""
        if present.all() and (steps == steps[0]).all():
            return [(kind, int(steps[0])) for kind in range(len(self.kinds))], self.of
        pairs = np.stack([self.of, np.where(present, steps, 0)], 1)
        wanted, place = np.unique(pairs, axis=0, return_inverse=True)
        return [(int(kind), int(step)) for kind, step in wanted], place.reshape(-1)

    def _find_out(self, guard: Guard, stream: int) -> None:
        """What the device finds out before the update, and tells."""
        self._settle(self._working.turns_at, self._working.settings_at, guard.careful, stream)
        if guard.may_skip:
            place = self._number % AHEAD
            self.gpu.copy_out(self.news[place : place + 1], self.control.address + NEWS, stream)
            if place not in self._events:
                self._events[place] = self.gpu.event()
            self._events[place].record(stream)


class _Working:
    """What one call of a plan after the other writes to: turns, settings and rows, on the host and on the device."""

    def __init__(self, plan: Plan) -> None:
        self.gpu, self.count = plan.gpu, len(plan.sizes)
        self._make((AHEAD + 1) * len(plan.kinds))  # enough, but where arrays of a kind lag behind others

    def _make(self, rows: int) -> None:
        fixed = self.count * TURN + SETTING
        fixed += -fixed % ROW
        self.host = np.zeros(fixed + rows * ROW, np.uint8)
        self.turns = self.host[: self.count * TURN].view(TURNS)
        self.settings = self.host[fixed - SETTING : fixed].view(SETTINGS)
        self.rows = self.host[fixed:].reshape(rows, ROW)
        self.memory = self.gpu.allocate(len(self.host))
        self.turns_at = self.memory.address  # where they lie on the device
        self.settings_at, self.rows_at = self.turns_at + fixed - SETTING, self.turns_at + fixed
        self.used, self.sent = 0, np.zeros(0, np.uint8)

    def lay_out(
        self,
        plan: Plan,
        gradients: np.ndarray,
        place: np.ndarray,
        kinds: list[tuple[int, int]],
        options: Sequence[Mapping[str, Any]],
        scale: float,
        behind: int,
    ) -> None:
        """Writes where everything is, and the scalars: for each kind those of its step and of `behind` before it."""
        window = behind + 1
        if len(kinds) * window > len(self.rows):
            self._make(2 * len(kinds) * window)
        order = plan.order
        self.turns["p"], self.turns["g"] = plan.places[order], gradients[order]
        self.turns["row"] = self.rows_at + place[order] * (window * ROW)
        self.used = len(kinds) * window
        for i, (kind, step) in enumerate(kinds):
            group, rule, dtype = plan.kinds[kind]
            for back in range(window if step else 0):  # no number: all arrays of the kind are left out
                row, number = self.rows[i * window + back], max(step - back, 1)
                fill_row(row.view(dtype)[: NUM_SCALARS + 1], rule, number, options[group], scale)
                row.view(np.int64)[STEP // 8] = number

    def guard(self, guard: Guard, scale: float, skips: int, number: int) -> None:
        """Writes the settings of a step."""
        most = math.inf if guard.clip_norm is None else guard.clip_norm
        careful = int(guard.skip_nonfinite)
        self.settings[0] = (scale, most, guard.grad_scale, guard.found_inf, careful, skips, number, 0)

    def send(self, stream: int) -> None:
        """Copies to the device what is new."""
        turns = self.count * TURN
        end = len(self.host) - self.rows.nbytes + self.used * ROW
        same = len(self.sent) and np.array_equal(self.host[:turns], self.sent)
        start = turns if same else 0
        if not same:
            self.sent = self.host[:turns].copy()
        self.gpu.copy_in(self.memory.address + start, self.host[start:end], stream)
