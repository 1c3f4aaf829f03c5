"""The choice of a batch size for `fit(batch_size="auto")`: limits from the data and the network, and a measurement.

Batches as small as possible, for more steps an epoch, as long as an epoch takes little longer than with the fastest of
all sizes: SHARE of its throughput. Throughput is measured on copies of some rows, of the weights and of the optimizer's
states.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _backends
from ..kernels.sources import take
from ..kernels.spec import Batches, OptimizerSteps, dense_layers, row_numbers
from ._intake import Data

log = logging.getLogger("fastopt")

LEAST, MOST = 8, 4096  # rows of a batch
STEPS = 32  # of an epoch, at least: fewer, and the first epochs hardly move the weights
CLASSES = 64  # a batch has a row of each class on average, up to so many
MEMORY = 0.25  # share of the free memory for the arrays of a batch
SHARE = 0.8  # of the best throughput
BUDGET = 0.5  # seconds, without those of the first pass of each size
PASS = 0.008  # seconds of a measured pass, in which the start of a pass counts little
FEW, MANY = 2, 512  # steps of a pass


class Choice(NamedTuple):
    """A batch size, and the reason for it."""

    size: int
    reason: str


class Limits(NamedTuple):
    """The smallest and the largest batch sizes to think of, powers of two unless there are fewer rows."""

    least: int
    most: int
    why: str  # the largest one


def limits(rows: int, classes: int, row_bytes: int, accumulate: int, free: int | None) -> Limits:
    """The range of sizes for so many rows, classes (1 for numbers), and bytes of a row's arrays in free bytes.

    >>> limits(60_000, classes=10, row_bytes=9_000, accumulate=1, free=None)
    Limits(least=16, most=1024, why='32 steps an epoch')
    >>> limits(60_000, classes=10, row_bytes=9_000, accumulate=1, free=9_000_000)[:2]
    (16, 128)
    >>> limits(6, classes=2, row_bytes=100, accumulate=1, free=None)
    Limits(least=6, most=6, why='6 rows')
    """
    if rows <= LEAST:
        return Limits(rows, rows, f"{rows} rows")
    of_steps, most = rows // (STEPS * accumulate), MOST
    why = "the largest size that is tried"
    if of_steps < most:
        most, why = of_steps, f"{STEPS} steps an epoch"
    if free is not None and free * MEMORY / row_bytes < most:
        most, why = int(free * MEMORY / row_bytes), f"{free / 2**20:.0f} MiB of free memory"
    most = _power(max(most, LEAST))
    least = min(max(LEAST, _power(2 * min(classes, CLASSES) - 1)), most)
    return Limits(least, most, why)


def _power(size: int) -> int:
    """The largest power of two that is at most `size`."""
    return 1 << (size.bit_length() - 1)


def choose(model: Any, network: Any, data: Data, rows: np.ndarray, accumulate: int) -> Choice:
    """Return a batch size for training a built model on these rows of the data; the model stays as it is.

    network: that is to train, which stays as it is, too.
    The choice for the last data is kept: other data of the same size, for the same network, get the same.
    """
    key = _key(model, data, len(rows), accumulate)
    if model._auto_batch is not None and model._auto_batch[0] == key:
        kept: Choice = model._auto_batch[1]
        return kept
    classes = model.outputs if data.y.ndim == 1 or model.last_activation == "softmax" else 1
    row_bytes = model.dtype.itemsize * (data.x.shape[1] + 4 * sum(spec.outputs for spec in dense_layers(model._specs)))
    allowed = limits(len(rows), max(classes, 2), row_bytes, accumulate, free_memory(network))
    speeds = {}
    if allowed.least < allowed.most:
        speeds = measured(model, data, rows, range_of(allowed))
    choice = pick(speeds, allowed, len(rows), sum(p.size for p in model._parameters))
    model._auto_batch = key, choice
    log.info("%s", choice.reason)
    return choice


def range_of(allowed: Limits) -> Iterator[int]:
    """The powers of two between the limits."""
    size = allowed.least
    while size <= allowed.most:
        yield size
        size *= 2


def pick(speeds: dict[int, float], allowed: Limits, rows: int, parameters: int) -> Choice:
    """The smallest size with SHARE of the best speed, in rows a second; without speeds the largest that is allowed.

    >>> choice = pick({16: 5e5, 32: 8.5e5, 64: 1e6}, Limits(16, 64, "32 steps an epoch"), 2_048, 5_000)
    >>> choice.size
    32
    >>> print(choice.reason)
    batch_size 32: 850,000 rows/s, 85% of the most (64 rows: 1,000,000 rows/s); 64 steps an epoch of 2,048 rows, \
5,000 parameters; sizes from 16 to 64 (32 steps an epoch)
    """
    if not speeds:
        size = allowed.most
        return Choice(size, f"batch_size {size}: the only one for {rows:,} rows ({allowed.why})")
    best = max(speeds, key=speeds.__getitem__)
    size = min(size for size, speed in speeds.items() if speed >= SHARE * speeds[best])
    share = f"{speeds[size] / speeds[best]:.0%} of the most ({best} rows: {_rounded(speeds[best])} rows/s)"
    speed = f"{_rounded(speeds[size])} rows/s, {'the most' if size == best else share}"
    why = allowed.why if max(speeds) == allowed.most else "larger ones would take too long to try"
    reason = (
        f"batch_size {size}: {speed}; {-(-rows // size):,} steps an epoch of {rows:,} rows, {parameters:,} parameters;"
        f" sizes from {allowed.least} to {max(speeds)} ({why})"
    )
    return Choice(size, reason)


def _rounded(speed: float) -> str:
    return f"{float(f'{speed:.2g}'):,.0f}"


def measured(model: Any, data: Data, rows: np.ndarray, sizes: Iterator[int]) -> dict[int, float]:
    """Rows a second of a training on batches of these sizes, smallest first, as far as BUDGET goes."""
    with model.optimizer._step_lock:
        steps = model.optimizer.next_steps(1)
    params = [p.copy() for p in model._parameters]
    states = [None if of is None else tuple(state.copy() for state in of) for of in steps.states]
    compute = {"compute": model._compute} if model._mixed else {}
    network = _backends.network(model.backend)(model._specs, params, model.dtype, model.loss.spec, (), **compute)
    speeds: dict[int, float] = {}
    spent = 0.0
    for size in sizes:
        train = _Passes(network, data, rows, steps._replace(states=states), model.seed, size)
        train(FEW)  # makes the program; the first one of all compiles
        passes, count = [train(FEW)], FEW
        wanted = int(min(PASS * FEW / passes[0], MANY, -(-len(rows) // size)))
        if wanted > FEW:
            count = wanted
            spent += passes[0] + train(count)
            passes = [train(count)]
        passes.append(train(count))
        speeds[size] = size * count / min(passes)
        # a step of the next size takes at most twice as long
        spent += sum(passes)
        if spent + 3 * sum(passes) > BUDGET:
            break
    return speeds


class _Passes:
    """Passes of a network that is thrown away afterwards, over batches of one size."""

    def __init__(self, network: Any, data: Data, rows: np.ndarray, steps: OptimizerSteps, seed: int, size: int) -> None:
        self.network, self.data, self.rows, self.steps, self.seed = network, data, rows, steps, seed
        self.size = size
        self._batches: dict[int, Batches] = {}

    def __call__(self, count: int) -> float:
        """Seconds of so many steps with a rate of 0."""
        if count not in self._batches:
            some = self.rows[np.linspace(0, len(self.rows) - 1, count * self.size).astype(np.int64)]
            x, y = self.data.x, self.data.y
            if hasattr(self.network, "gpu"):  # which is not given all data for a few rows
                x, y, some = take(x, some, self.network.params[0].dtype), y[some], row_numbers(len(some))
            self._batches[count] = Batches(x, y, some, self.size)
        start = time.perf_counter()
        self.network.train(self._batches[count], self.steps._replace(learning_rates=np.zeros(count)), self.seed)
        return time.perf_counter() - start


def free_memory(network: Any) -> int | None:
    """Bytes of free memory where a network keeps the arrays of a batch; None: the system does not tell."""
    gpu = getattr(network, "gpu", None)
    if gpu is not None:
        return int(gpu.free_memory())
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    return None


def _key(model: Any, data: Data, rows: int, accumulate: int) -> tuple[Any, ...]:
    """All that a choice is made from, but for the speed and the memory of the machine."""
    x, y = data.x, data.y
    return (
        rows, x.shape, str(x.dtype), y.shape, accumulate, model.backend, model.compute_dtype, type(model.optimizer),
        tuple(model._specs), model.loss.spec.name,
    )  # fmt: skip
