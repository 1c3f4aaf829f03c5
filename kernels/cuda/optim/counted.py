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

from ...formulas import HYPER, OPTIMIZERS
from ...formulas import optimizers as formulas
from ...formulas.optimizers import BY_BOTH, CHANGING, DECAYED, FIRST, SQUARED, TO_COME, UNBIASED
from ...scalars import TINY, fill_row
from ...spec import BufferUpdate
from ..runtime.compile import THREADS, Kernel, device
from ..runtime.primitives import reader, writer
from ..runtime.records import CONTROL, COUNTERS, RECIPES, ROW, SETTINGS, STEP, TURNS, offset
from .plan import NO_GUARD, Guard, Tables

read_word, read_words3, read_words4 = reader("int64", 1), reader("int64", 3), reader("int64", 4)
read_float, read_double, read_doubles4 = reader("float32", 1), reader("float64", 1), reader("float64", 4)
write_word, write_double, write_float = writer("int64"), writer("float64"), writer("float32")

TURN, COUNTER, RECIPE = TURNS.itemsize, COUNTERS.itemsize, RECIPES.itemsize
SKIP = offset(CONTROL, "skip")
NUMBERS, FIXED = offset(RECIPES, "lr"), offset(RECIPES, "row")

decayed, unbiased = device(formulas.decayed), device(formulas.unbiased)
unbiased_by_both, shrink = device(formulas.unbiased_by_both), device(formulas.shrink)
mean_to_come, news_to_come, share = (
    device(function) for function in (formulas.mean_to_come, formulas.news_to_come, formulas.share)
)
square_correction, root_correction = device(formulas.square_correction), device(formulas.root_correction)


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
    how, size, lr_at, lr_bytes = read_words4(recipe)
    lr, decay, a, b = read_doubles4(recipe + NUMBERS)
    if lr_at != 0:
        lr = number(lr_at, lr_bytes)
    for k in range(HYPER + 1):
        put(row + k * size, size, read_double(recipe + FIXED + k * 8)[0])
    rate = lr
    if how == FIRST and step == 1:
        put(row + 6 * size, size, 0.0)
        put(row + 7 * size, size, 1.0)
    elif how == DECAYED:
        rate = decayed(lr, step, a)
    elif how == UNBIASED:
        rate = unbiased(lr, step, a)
        put(row + 10 * size, size, root_correction(step, b))
    elif how == BY_BOTH:
        rate = unbiased_by_both(lr, step, a, b)
    elif how == SQUARED:
        rate = unbiased(lr, step, a)
        put(row + 10 * size, size, square_correction(step, b))
    elif how == TO_COME:
        rate, rest = mean_to_come(lr, step, a, b), share(step, b)
        put(row + 10 * size, size, news_to_come(lr, step, a, b))
        put(row + 11 * size, size, read_double(recipe + FIXED + 88)[0] * math.sqrt(rest))
        put(row + 12 * size, size, read_double(recipe + FIXED + 96)[0] * rest)
    if decay != 0:
        put(row + 4 * size, size, shrink(lr, decay))
    put(row + 5 * size, size, rate)
    write_word(row + STEP, np.int64(step))


COUNT = Kernel(_count, "count")


class Number(NamedTuple):
    """A float32 or float64 in the device's memory."""

    address: int
    bytes: int


def refuse_capture(gpu: Any, stream: int) -> None:
    """Raises RuntimeError if the stream is being captured, before a first step, which loads what must be loaded."""
    if gpu.capturing(stream):
        raise RuntimeError("the first step cannot be captured into a CUDA graph: make one before, as a warm-up")


class CountedPlan(Tables):
    """As Plan, but that the device counts the steps of every array, and none that it skips.

        plan = CountedPlan([Target("adam", ...), ...], [Number(step.data_ptr(), 4), ...], gpu(0))
        plan.update([g.data_ptr(), ...], [options], stream=torch.cuda.current_stream().cuda_stream)

    counters: for each array where its number of steps done is, which the plan does not own.

    captured: where what the graphs that steps are captured into need goes; it must live as long as they.
    """

    def __init__(
        self, targets: Sequence[BufferUpdate], counters: Sequence[Number], gpu: Any, captured: list[Any] | None = None
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
    """Writes what the scalars of a rule are made of: (1,) of RECIPES."""
    lr = options["lr"]
    place = lr if isinstance(lr, Number) else Number(0, 0)
    fixed = np.zeros(HYPER + 1)
    fill_row(fixed, rule, 2, {**options, "lr": 0.0}, scale)  # the second step's: the first may have some of its own
    fixed[HYPER] = TINY[np.dtype(real)]
    how, *names = CHANGING.get(OPTIMIZERS[rule].scalars, (0,))
    if how == TO_COME:
        fixed[11:13] = options["eps"], options["eps_root"]
    a, b = [options[name] for name in names] or (0.0, 0.0)
    decay = options["weight_decay"] if fixed[2] == 0 else 0.0  # which is then not of the gradient
    number = 0.0 if place.address else lr
    recipe[0] = (how, np.dtype(real).itemsize, *place, number, decay, a, b, fixed)
