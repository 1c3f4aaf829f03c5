"""An optimizer's step whose number the device knows: it counts for itself, and makes the scalars of the step.

    [squares | settle |] count | update

`count` has a thread for each array: unless the step is skipped it adds one to the array's number of steps, wherever
that lies, and writes the array's row of scalars in float64, by the formulas that the host uses. What it needs comes in
one piece of memory, which is copied when it is another one than last time. So a step that is captured into a CUDA graph
is another step each time that the graph is launched, and a learning rate may lie on the device.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ...formulas import NUM_SCALARS, OPTIMIZERS
from ...formulas.optimizers import AT_STEP
from ...formulas.optimizers.common import COMMON, decay_factor
from ...scalars import TINY, fill_row
from ...spec import BufferUpdate
from ..runtime.compile import THREADS, Kernel, device
from ..runtime.device import Device
from ..runtime.primitives import reader, writer
from ..runtime.records import CONTROL, COUNTERS, RECIPES, ROW, SETTINGS, STEP, TURNS, offset
from .plan import NO_GUARD, Guard, Tables

read_word, read_words3, read_words4 = reader("int64", 1), reader("int64", 3), reader("int64", 4)
read_float, read_double = reader("float32", 1), reader("float64", 1)
read_doubles2, read_own = reader("float64", 2), reader("float64", NUM_SCALARS - COMMON)
write_word, write_double, write_float = writer("int64"), writer("float64"), writer("float32")

TURN, COUNTER, RECIPE = TURNS.itemsize, COUNTERS.itemsize, RECIPES.itemsize
SKIP = offset(CONTROL, "skip")
LR, FIXED = offset(RECIPES, "lr"), offset(RECIPES, "row")


def _same_way(how, step, lr, h):
    return h


def _in_way(number, at_step, others):
    def choose(how, step, lr, h):
        return at_step(step, lr, h) if how == number else others(how, step, lr, h)

    return choose


def _at_step():
    """One function for all of AT_STEP: (number in it, step, lr, own scalars) -> own scalars."""
    function = device(_same_way)
    for number, at_step in enumerate(AT_STEP):
        function = device(_in_way(number, device(at_step), function))
    return function


at_step, device_decay_factor = _at_step(), device(decay_factor)


def _number(address, size):
    return np.float64(read_float(address)[0]) if size == 4 else read_double(address)[0]


def _put(address, size, value):
    if size == 4:
        write_float(address, np.float32(value))
    else:
        write_double(address, value)


number, put = device(_number), device(_put)


def _count(recipes, counters, turns, arrays, control):
    if control != 0 and read_word(control + SKIP)[0] != 0:
        return
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i >= arrays:
        return
    _, _, row, there = read_words4(turns + i * TURN)
    if there == 0:
        return
    counter, counter_bytes, kind = read_words3(counters + i * COUNTER)
    step = number(counter, counter_bytes) + 1
    put(counter, counter_bytes, step)
    recipe = recipes + kind * RECIPE
    how, size, lr_address, lr_bytes = read_words4(recipe)
    lr, weight_decay = read_doubles2(recipe + LR)
    if lr_address != 0:
        lr = number(lr_address, lr_bytes)
    # the scalars that all rules have in common, and the smallest normal number
    for k in range(COMMON):
        put(row + k * size, size, read_double(recipe + FIXED + k * 8)[0])
    put(row + NUM_SCALARS * size, size, read_double(recipe + FIXED + NUM_SCALARS * 8)[0])
    if weight_decay != 0:
        put(row + (COMMON - 1) * size, size, device_decay_factor(lr, weight_decay))
    # the rule's own
    own = at_step(how, step, lr, read_own(recipe + FIXED + COMMON * 8))
    for k in range(NUM_SCALARS - COMMON):
        put(row + (COMMON + k) * size, size, own[k])
    write_word(row + STEP, np.int64(step))


COUNT = Kernel(_count, "count")


class Number(NamedTuple):
    """A float32 or float64 in the device's memory."""

    address: int
    bytes: int


def refuse_capture(gpu: Device, stream: int) -> None:
    """Raises RuntimeError if the stream is being captured, before a first step, which loads what must be loaded."""
    if gpu.capturing(stream):
        raise RuntimeError("the first step cannot be captured into a CUDA graph: make one before, as a warm-up")


class CountedPlan(Tables):
    """As Plan, but that the device counts the steps of every array, and none that it skips.

        plan = CountedPlan([BufferUpdate("adam", ...), ...], [Number(step.data_ptr(), 4), ...], gpu(0))
        plan.update([g.data_ptr(), ...], [options], stream=torch.cuda.current_stream().cuda_stream)

    counters: for each array where its number of steps done is, which the plan does not own.

    captured: where what the graphs that steps are captured into need goes; it must live as long as they.
    """

    def __init__(
        self,
        targets: Sequence[BufferUpdate],
        counters: Sequence[Number],
        gpu: Device,
        captured: list[Any] | None = None,
    ) -> None:
        super().__init__(targets, gpu)
        table = np.zeros(len(targets), COUNTERS)
        table["address"], table["bytes"] = np.array(counters, np.int64).reshape(-1, 2).T
        table["recipe"] = self.of
        with gpu.active():
            self.counters = gpu.allocate(table.nbytes)
            self.rows = gpu.allocate(len(targets) * ROW)
            gpu.copy_in(self.counters.address, table[self.order], 0)
            gpu.wait(0)
            self._sheet = _Sheet(self, 0)
        self._begun = False
        self.captured: list[Any] = [] if captured is None else captured
        self._lock = threading.Lock()

    def update(
        self,
        gradients: Sequence[int] | np.ndarray,
        options: Sequence[Mapping[str, Any]],
        scale: float = 1.0,
        guard: Guard = NO_GUARD,
        stream: int = 0,
        present: Sequence[bool] | None = None,
    ) -> None:
        """Update every array that has a gradient, in place, and count a step of it.

        options: as those of `Plan.update`; a learning rate may be a Number on the device.
        present: which arrays have a gradient, if only one without elements; None: those with an address other than 0.

        Raises:
            RuntimeError: the stream is being captured, and this is the first step, which loads what must be loaded.
        """
        g = np.asarray(gradients, np.int64)
        there = g != 0 if present is None else np.asarray(present, bool)
        guarded = guard != NO_GUARD
        with self._lock, self.gpu.active():
            if not there.any():
                return
            if not self._begun:
                refuse_capture(self.gpu, stream)
            capturing = self.gpu.capturing(stream)
            # With a guard the factor comes from the device: rows hold 1 or -1 for it, so that the bits are the same.
            head = (g, there, options, 1.0 if guarded else scale)
            settings = _settings(guard, scale)
            if capturing:
                with self.gpu.aside() as other:
                    sheet = _Sheet(self, other)
                    sheet.fill(self, *head, settings)
                    sheet.send(other)
                self.captured.append((sheet, self))
            else:
                sheet, self._begun = self._sheet, True
                sheet.fill(self, *head, settings)
                sheet.send(stream)
            if guarded:
                self._settle(sheet.turns_at, sheet.settings_at, guard.careful, stream)
            control, arrays = self.control.address if guarded else 0, len(self.sizes)
            tables = sheet.recipes_at, self.counters.address, sheet.turns_at
            self.gpu.launch(COUNT, -(-arrays // THREADS), stream, *tables, arrays, control)
            self._update(sheet.turns_at, stream, control, guard.unscales)


class _Sheet:
    """What changes from step to step, on the host and on the device: turns, recipes, settings."""

    def __init__(self, plan: CountedPlan, stream: int) -> None:
        count, kinds = len(plan.sizes), len(plan.kinds)
        turns, recipes = count * TURN, kinds * RECIPE
        self.gpu = plan.gpu
        self.host = np.zeros(turns + recipes + SETTINGS.itemsize, np.uint8)
        self.turns, self.recipes = self.host[:turns].view(TURNS), self.host[turns : turns + recipes].view(RECIPES)
        self.settings = self.host[turns + recipes :].view(SETTINGS)
        self.memory = plan.gpu.allocate(len(self.host), stream)
        self.turns_at = self.memory.address
        self.recipes_at, self.settings_at = self.turns_at + turns, self.turns_at + turns + recipes
        self.turns["p"], self.turns["row"] = plan.places[plan.order], plan.rows.address + np.arange(count) * ROW
        self.known: list[Any] = [None] * kinds  # what the recipes were made of
        self.sent = np.zeros(0, np.uint8)

    def fill(
        self,
        plan: CountedPlan,
        gradients: np.ndarray,
        there: np.ndarray,
        options: Sequence[Mapping[str, Any]],
        scale: float,
        settings: tuple[Any, ...],
    ) -> None:
        self.turns["g"], self.turns["there"] = gradients[plan.order], there[plan.order]
        self.settings[0] = settings
        for i in np.unique(plan.of[there]):
            group, rule, real = plan.kinds[i]
            own = dict(options[group]), scale
            if self.known[i] != own:
                _recipe(self.recipes[i : i + 1], rule, real, *own)
                self.known[i] = own

    def send(self, stream: int) -> None:
        """Copies to the device what is new."""
        if not np.array_equal(self.host, self.sent):
            self.sent = self.host.copy()
            self.gpu.copy_in(self.turns_at, self.host, stream)


def _settings(guard: Guard, scale: float) -> tuple[Any, ...]:
    most = math.inf if guard.clip_norm is None else guard.clip_norm
    return scale, most, guard.grad_scale, guard.found_inf, int(guard.skip_nonfinite), 0, 0, 1


def _recipe(recipe: np.ndarray, rule: str, real: str, options: dict[str, Any], scale: float) -> None:
    """Write what the device makes a rule's scalars of: (1,) of RECIPES."""
    lr = options["lr"]
    place = lr if isinstance(lr, Number) else Number(0, 0)
    limit = np.zeros(NUM_SCALARS + 1)
    fill_row(limit, rule, math.inf, {**options, "lr": 0.0}, scale)
    limit[NUM_SCALARS] = TINY[np.dtype(real)]
    how = AT_STEP.index(OPTIMIZERS[rule].at_step)
    decoupled = 0.0 if limit[2] else options["weight_decay"]  # limit[2]: the L2 penalty
    recipe[0] = (how, np.dtype(real).itemsize, *place, 0.0 if place.address else lr, decoupled, limit)
