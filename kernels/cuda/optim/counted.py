"""An optimizer's step whose number the device counts: it also makes the scalars of the step.

    [squares | resolve_step |] count | update

`count` has a thread for each array: unless the step is skipped it adds one to the array's number of steps, at any
address, and writes the array's row of scalars in float64, by the formulas that the host uses. Its operands are in one
piece of memory, which is copied when it has changed. So a step that is captured into a CUDA graph is another step each
time that the graph is launched, and a learning rate may lie on the device.
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
from ..runtime.records import CONTROL, COUNTERS, POINTERS, RECIPES, ROW, SETTINGS, STEP, offset
from .plan import NO_GUARD, Guard, Tables

read_word, read_words3, read_words4 = reader("int64", 1), reader("int64", 3), reader("int64", 4)
read_float, read_double = reader("float32", 1), reader("float64", 1)
read_doubles2, read_own = reader("float64", 2), reader("float64", NUM_SCALARS - COMMON)
write_word, write_double, write_float = writer("int64"), writer("float64"), writer("float32")

POINTERS_BYTES, COUNTER_BYTES, RECIPE_BYTES = POINTERS.itemsize, COUNTERS.itemsize, RECIPES.itemsize
SKIP = offset(CONTROL, "skip")
LR, ROW_OF_SCALARS = offset(RECIPES, "lr"), offset(RECIPES, "row")


def _constant(how, step, lr, h):
    return h


def _either(number, at_step, others):
    def choose(how, step, lr, h):
        return at_step(step, lr, h) if how == number else others(how, step, lr, h)

    return choose


def _at_step():
    """One function for all of AT_STEP: (number in it, step, lr, own scalars) -> own scalars."""
    function = device(_constant)
    for number, at_step in enumerate(AT_STEP):
        function = device(_either(number, device(at_step), function))
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


def _count(recipes, counters, pointers, arrays, control):
    if control != 0 and read_word(control + SKIP)[0] != 0:
        return
    # one array
    i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    if i >= arrays:
        return
    _, _, row, present = read_words4(pointers + i * POINTERS_BYTES)
    if present == 0:
        return
    # its number of steps
    counter, counter_bytes, kind = read_words3(counters + i * COUNTER_BYTES)
    step = number(counter, counter_bytes) + 1
    put(counter, counter_bytes, step)
    # its learning rate
    recipe = recipes + kind * RECIPE_BYTES
    how, size, lr_address, lr_bytes = read_words4(recipe)
    lr, weight_decay = read_doubles2(recipe + LR)
    if lr_address != 0:
        lr = number(lr_address, lr_bytes)
    # the scalars that all rules have in common, and the smallest normal number
    for k in range(COMMON):
        put(row + k * size, size, read_double(recipe + ROW_OF_SCALARS + k * 8)[0])
    put(row + NUM_SCALARS * size, size, read_double(recipe + ROW_OF_SCALARS + NUM_SCALARS * 8)[0])
    if weight_decay != 0:
        put(row + (COMMON - 1) * size, size, device_decay_factor(lr, weight_decay))
    # the rule's own
    own = at_step(how, step, lr, read_own(recipe + ROW_OF_SCALARS + COMMON * 8))
    for k in range(NUM_SCALARS - COMMON):
        put(row + (COMMON + k) * size, size, own[k])
    write_word(row + STEP, np.int64(step))


COUNT = Kernel(_count, "count")


class Number(NamedTuple):
    """A float32 or float64 in the device's memory."""

    address: int
    bytes: int


def refuse_capture(gpu: Device, stream: int) -> None:
    """Raise RuntimeError if the stream is being captured, before a first step, which loads what must be loaded."""
    if gpu.is_capturing(stream):
        raise RuntimeError("the first step cannot be captured into a CUDA graph: make one before, as a warm-up")


class CountedPlan(Tables):
    """A Plan whose steps the device counts, for every array, without those that it skips.

        plan = CountedPlan([BufferUpdate("adam", ...), ...], [Number(step.data_ptr(), 4), ...], gpu(0))
        plan.update([g.data_ptr(), ...], [options], stream=torch.cuda.current_stream().cuda_stream)

    counters: for each array its number of steps done, in memory that the plan does not own.
    captured: a list that keeps alive what captured steps read; it must live as long as their graphs.
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
        table["recipe"] = self.kind_of
        with gpu.active():
            self.counters = gpu.allocate(table.nbytes)
            self.rows = gpu.allocate(len(targets) * ROW)
            gpu.copy_in(self.counters.address, table[self.order], 0)
            gpu.wait(0)
            self._buffers = _StepBuffers(self, 0)
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
        present: True for arrays that have a gradient, even one without elements; None: an address other than 0.

        Raises:
            RuntimeError: the stream is being captured, and this is the first step, which loads what must be loaded.
        """
        g = np.asarray(gradients, np.int64)
        has_gradient = g != 0 if present is None else np.asarray(present, bool)
        guarded = guard != NO_GUARD
        with self._lock, self.gpu.active():
            if not has_gradient.any():
                return
            if not self._begun:
                refuse_capture(self.gpu, stream)
            # With a guard the factor comes from the device: rows hold 1 or -1 for it, so that the bits are the same.
            contents = g, has_gradient, options, 1.0 if guarded else scale, guard.settings(scale, counted=True)
            if self.gpu.is_capturing(stream):
                with self.gpu.side_stream() as other:
                    buffers = _StepBuffers(self, other)
                    buffers.fill(self, *contents)
                    buffers.send(other)
                self.captured.append((buffers, self))
            else:
                buffers, self._begun = self._buffers, True
                buffers.fill(self, *contents)
                buffers.send(stream)
            pointers = buffers.pointers_address
            if guarded:
                self._resolve_step(pointers, buffers.settings_address, guard.inspects_gradients, stream)
            control, num_arrays = self.control.address if guarded else 0, len(self.sizes)
            tables = buffers.recipes_address, self.counters.address, pointers
            self.gpu.launch(COUNT, -(-num_arrays // THREADS), stream, *tables, num_arrays, control)
            self._update(pointers, stream, control, guard.unscales)


class _StepBuffers:
    """Memory of what changes from step to step, on the host and on the device: pointers, recipes, settings."""

    def __init__(self, plan: CountedPlan, stream: int) -> None:
        count, kinds = len(plan.sizes), len(plan.kinds)
        recipes_at = count * POINTERS_BYTES
        settings_at = recipes_at + kinds * RECIPE_BYTES
        self.gpu = plan.gpu
        self.host = np.zeros(settings_at + SETTINGS.itemsize, np.uint8)
        self.pointers = self.host[:recipes_at].view(POINTERS)
        self.recipes = self.host[recipes_at:settings_at].view(RECIPES)
        self.settings = self.host[settings_at:].view(SETTINGS)
        self.memory = plan.gpu.allocate(len(self.host), stream)
        self.pointers_address = self.memory.address
        self.recipes_address = self.pointers_address + recipes_at
        self.settings_address = self.pointers_address + settings_at
        self.pointers["p"], self.pointers["row"] = plan.params[plan.order], plan.rows.address + np.arange(count) * ROW
        self.sources: list[Any] = [None] * kinds  # of the recipes: options and scale
        self.sent = np.zeros(0, np.uint8)

    def fill(
        self,
        plan: CountedPlan,
        gradients: np.ndarray,
        has_gradient: np.ndarray,
        options: Sequence[Mapping[str, Any]],
        scale: float,
        settings: tuple[Any, ...],
    ) -> None:
        """Write pointers and settings, and the recipes of options that have changed."""
        self.pointers["g"], self.pointers["present"] = gradients[plan.order], has_gradient[plan.order]
        self.settings[0] = settings
        for i in np.unique(plan.kind_of[has_gradient]):
            group, rule, real = plan.kinds[i]
            own = dict(options[group]), scale
            if self.sources[i] != own:
                _recipe(self.recipes[i : i + 1], rule, real, *own)
                self.sources[i] = own

    def send(self, stream: int) -> None:
        """Copy to the device what has changed."""
        if not np.array_equal(self.host, self.sent):
            self.sent = self.host.copy()
            self.gpu.copy_in(self.pointers_address, self.host, stream)


def _recipe(recipe: np.ndarray, rule: str, real: str, options: dict[str, Any], scale: float) -> None:
    """Write the recipe of a rule's scalars: (1,) of RECIPES."""
    lr = options["lr"]
    on_device = lr if isinstance(lr, Number) else Number(0, 0)
    limit = np.zeros(NUM_SCALARS + 1)
    fill_row(limit, rule, math.inf, {**options, "lr": 0.0}, scale)
    limit[NUM_SCALARS] = TINY[np.dtype(real)]
    how = AT_STEP.index(OPTIMIZERS[rule].at_step)
    decoupled = 0.0 if limit[2] else options["weight_decay"]  # limit[2]: the L2 penalty
    recipe[0] = (how, np.dtype(real).itemsize, *on_device, 0.0 if on_device.address else lr, decoupled, limit)
