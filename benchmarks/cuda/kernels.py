"""Every kernel except updates and products as a call to be timed, with its bytes, operations and a check.

Arrays repeat the same few rows, so that the reference computes only those; the first and the last rows are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastopt.benchmarks.cuda.device import drawn, filled, numbers, the_gpu
from fastopt.benchmarks.cuda.work import NEAR
from fastopt.benchmarks.work import loss_flops
from fastopt.kernels import reference
from fastopt.kernels.cuda.dense import epilogues, losses, metrics, rows
from fastopt.kernels.cuda.dense.epilogues import Shape
from fastopt.kernels.cuda.dense.finish import finish
from fastopt.kernels.cuda.dense.products import BYTES
from fastopt.kernels.cuda.optim.plan import Guard, Plan
from fastopt.kernels.cuda.runtime.memory import DeviceArray
from fastopt.kernels.cuda.runtime.records import CLOCK, DROPOUT, TOTALS
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, OPTIMIZERS, clip_factor, dropout_stream
from fastopt.kernels.reference import maths
from fastopt.kernels.spec import BufferUpdate, LossSpec, Update

ROWS = 64  # that are drawn
RATE, SEED = 0.25, 7


@dataclass
class Work:
    """A kernel on its arrays."""

    call: Callable[[], object]
    moved: int  # bytes, at least
    check: Callable[[], None]  # raises AssertionError unless one call was right
    flops: float = 0.0
    arrays: Any = ()  # objects that must live as long as the call


class Case(NamedTuple):
    """A kernel's formula, rows and columns, dtype."""

    name: str
    rows: int
    columns: int
    dtype: str

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def shape(self) -> Shape:
        return Shape(self.rows, self.columns, self.columns, self.dtype)


def matrix(case: Case, seed: int, low: float = -0.5) -> tuple[DeviceArray, np.ndarray]:
    """A matrix on the device, (rows, columns), and the rows that it repeats as float64."""
    count = min(ROWS, case.rows)
    values = drawn(count * case.columns, case.dtype, seed, low)
    made = filled((case.rows, case.columns), values, case.dtype)
    return made, values.astype("float64").reshape(count, case.columns)


def empty(*shape: int, kind: str) -> DeviceArray:
    """A matrix of NaN, which shows elements that are not written."""
    return filled(shape, np.full(1, np.nan), kind)


def near(array: DeviceArray, theirs: np.ndarray, dtype: str) -> None:
    """Raise AssertionError unless the first and the last rows of an array are these."""
    count = theirs.size
    for first in (0, array.size - count):
        ours = numbers(array, dtype, first, count).reshape(theirs.shape)
        np.testing.assert_allclose(ours, theirs, rtol=NEAR[dtype], atol=NEAR[dtype])


# ---------------------------------------------------------------- rows
def clock() -> DeviceArray:
    return filled((CLOCK.itemsize // 8,), np.zeros(2), "float64")


def gather(case: Case) -> Work:
    """The gather of all rows in another order."""
    host = np.arange(case.rows, dtype="float64")
    source = filled((case.rows, case.columns), 0.0, case.dtype)
    order = np.random.default_rng(0).permutation(case.rows).astype(np.uint32)
    values = np.repeat(host % 251, case.columns).reshape(case.rows, case.columns)
    source.write(values.astype(case.dtype), 0)
    by, into, now = DeviceArray(source.gpu, (case.rows,), "uint32"), empty(*source.shape, kind=case.dtype), clock()
    by.write(order, 0)
    copied = rows.Rows(source.address, into.address, case.columns, case.columns, case.dtype)

    def call() -> None:
        rows.gather(source.gpu, 0, copied, None, by.address, case.rows, now.address, case.rows, case.rows)

    def check() -> None:
        ours = numbers(into, case.dtype).reshape(case.rows, case.columns)
        np.testing.assert_array_equal(ours, values[order])

    moved = 2 * case.elements * BYTES[case.dtype] + 8 * case.rows
    return Work(call, moved, check, arrays=(source, by, into, now))


def dropout(case: Case) -> Work:
    x, values = matrix(case, 0)
    y, now = empty(*x.shape, kind=case.dtype), clock()
    record = np.array([(1 / (1 - RATE), int(RATE * 2**53), dropout_stream(SEED, 0))], DROPOUT)
    settings = DeviceArray(x.gpu, (DROPOUT.itemsize // 8,), "int64")
    settings.write(record.view("int64"), 0)

    def call() -> None:
        strides = case.columns, case.columns
        places = x.address, y.address
        rows.dropout(x.gpu, 0, *places, case.rows, case.columns, *strides, case.dtype, now.address, settings.address)

    def check() -> None:
        mask = maths.kept(SEED, 0, 1, values.shape, RATE)
        ours = numbers(y, case.dtype, 0, values.size).reshape(values.shape)
        np.testing.assert_allclose(ours, np.where(mask, values / (1 - RATE), 0), rtol=NEAR[case.dtype])

    return Work(call, 2 * case.elements * BYTES[case.dtype], check, arrays=(x, y, now, settings))


# ---------------------------------------------------------------- epilogues
def activate(case: Case) -> Work:
    """y = f(z + b); z is kept if the slope is a function of it, otherwise z is y."""
    z, values = matrix(case, 0)
    b = filled((case.columns,), drawn(case.columns, case.dtype, 1) / 100, case.dtype)
    keeps = ACTIVATIONS[case.name].uses == "z"
    y = empty(*z.shape, kind=case.dtype) if keeps else z

    def check() -> None:
        theirs, bias = np.empty_like(values), numbers(b, case.dtype).astype("float64")
        reference.activate(case.name, values + bias, theirs)
        near(y, theirs, case.dtype)

    def call() -> None:
        epilogues.activate(z.gpu, 0, case.name, z.address, b.address, y.address, case.shape)

    return Work(call, (2 + keeps) * case.elements * BYTES[case.dtype], check, arrays=(z, b, y))


def slopes(case: Case) -> Work:
    """dz = dy f'(s), and its sums."""
    (dy, values), (s, at) = matrix(case, 0), matrix(case, 1, low=0.0)
    dz, db = empty(*dy.shape, kind=case.dtype), empty(case.columns, kind=case.dtype)
    memory = dy.gpu.allocate(epilogues.sums_bytes(case.shape))

    def check() -> None:
        theirs = values * maths.ACTIVATIONS[case.name].slope(at)
        near(dz, theirs, case.dtype)
        times = case.rows / len(at)
        largest = np.abs(theirs).sum(axis=0).max() * times
        sums = theirs.sum(axis=0) * times
        np.testing.assert_allclose(numbers(db, case.dtype), sums, rtol=0, atol=NEAR[case.dtype] * largest)

    def call() -> None:
        places = dy.address, s.address, dz.address
        epilogues.slopes(dy.gpu, 0, case.name, *places, memory.address, db.address, case.shape)

    return Work(call, 3 * case.elements * BYTES[case.dtype], check, arrays=(dy, s, dz, db, memory))


# ---------------------------------------------------------------- losses
def loss(case: Case) -> Work:
    """The loss and its gradient, with `finish`, which adds up the batch."""
    row = LOSSES[case.name]
    z, values = matrix(case, 0, low=-2.0)
    wide, count = BYTES[case.dtype], len(values)
    t, targets = _targets(case, count)
    dz, sums = empty(*z.shape, kind=case.dtype), empty(losses.loss_tiles(case.name, *z.shape), kind="float64")
    param = next((float(value) for value in row.params.values()), 0.0)
    more = filled((2,), np.array([param, 0.0]), "float64")  # the loss's parameter, and its sum
    now, table = clock(), DeviceArray(z.gpu, (TOTALS.itemsize // 8,), "int64")
    table.write(np.array([(sums.address, sums.size, more.address + 8, 0)], TOTALS).view("int64"), 0)

    def call() -> None:
        places = z.address, t.address, dz.address, sums.address, more.address
        losses.run_loss(z.gpu, 0, case.name, *places, case.shape, case.columns)
        finish(z.gpu, 0, table.address, 1, now.address, 0)

    def check() -> None:
        theirs = np.empty_like(values)
        mean = reference.loss(LossSpec(case.name), values, targets, theirs)
        rows_or_elements = case.rows if row.by_row else case.elements
        np.testing.assert_allclose(numbers(more, "float64")[1] / rows_or_elements, mean, rtol=1e-5)
        scale = case.rows / count  # of the gradient of a mean over more rows
        for first in (0, z.size - values.size):
            ours = numbers(dz, case.dtype, first, values.size).reshape(values.shape) * scale
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=NEAR[case.dtype] / count)

    moved = 2 * case.elements * wide + (8 * case.rows if row.targets == "labels" else case.elements * wide)
    return Work(call, moved, check, loss_flops(case.name) * case.elements, (z, t, dz, sums, more, now, table))


def _targets(case: Case, count: int) -> tuple[DeviceArray, np.ndarray]:
    """Targets on the device, and the rows that they repeat."""
    row, rng = LOSSES[case.name], np.random.default_rng(3)
    if row.targets == "labels":
        return _labels(case, count)
    if row.by_row:
        values = rng.random((count, case.columns))
        values /= values.sum(axis=1, keepdims=True)
    else:
        values = np.where(rng.random((count, case.columns)) < 0.5, 1.0, -1.0 if row.signs else 0.0)
    made = filled((case.rows, case.columns), values, case.dtype)
    return made, numbers(made, case.dtype, 0, values.size).reshape(values.shape).astype("float64")


def _labels(case: Case, count: int) -> tuple[DeviceArray, np.ndarray]:
    labels = np.random.default_rng(3).integers(0, case.columns, count)
    made = DeviceArray(the_gpu(), (case.rows,), "int64")
    made.write(np.resize(labels, case.rows), 0)
    return made, labels


def softmax(case: Case) -> Work:
    z, values = matrix(case, 0, low=-2.0)
    y = empty(*z.shape, kind=case.dtype)

    def check() -> None:
        theirs = np.empty_like(values)
        reference.activate("softmax", values, theirs)
        near(y, theirs, case.dtype)

    def call() -> None:
        losses.run_softmax(z.gpu, 0, z.address, y.address, case.shape, case.columns)

    return Work(call, 2 * case.elements * BYTES[case.dtype], check, arrays=(z, y))


def accuracy(case: Case) -> Work:
    """Accuracy with labels."""
    z, values = matrix(case, 0)
    t, labels = _labels(case, len(values))
    sums, boundaries = empty(metrics.hits_tiles(case.rows), kind="float64"), filled((2,), np.zeros(2), "float64")

    def check() -> None:
        theirs = np.mean(values.argmax(axis=1) == labels)
        np.testing.assert_allclose(numbers(sums, "float64").sum() / case.rows, theirs, rtol=1e-12)

    def call() -> None:
        places = z.address, t.address, sums.address, boundaries.address
        metrics.run_hits(z.gpu, 0, "accuracy", "labels", *places, case.shape, case.columns)

    return Work(call, case.elements * BYTES[case.dtype] + 8 * case.rows, check, arrays=(z, t, sums, boundaries))


# ---------------------------------------------------------------- norms
def norm(case: Case) -> Work:
    """The norm of a gradient; waits for it."""
    g, values = matrix(case, 0)
    plan = Plan([BufferUpdate("sgd", case.dtype, g.size, g.address, ())], g.gpu)
    place, found = np.array([g.address]), []

    def call() -> None:
        found[:] = [plan.norm(place)]

    def check() -> None:
        np.testing.assert_allclose(found[0], np.sqrt((values**2).sum() * (case.rows / len(values))), rtol=1e-12)

    return Work(call, g.nbytes, check, 2.0 * case.elements, (g, plan))


def clipped(case: Case) -> Work:
    """Adam's step with gradients clipped by their norm."""
    host = [matrix(case, seed, low=low) for seed, low in ((0, -0.5), (1, -0.5), (2, -0.5), (3, 0.0))]
    p, g, m, v = (array for array, _ in host)
    plan = Plan([BufferUpdate("adam", case.dtype, p.size, p.address, (m.address, v.address))], p.gpu)
    place, options, guard = np.array([g.address]), OPTIMIZERS["adam"].options, Guard(clip_norm=1.0)

    def call() -> None:
        plan.update(place, np.array([10]), [options], guard=guard)

    def check() -> None:
        P, G, M, V = (values for _, values in host)
        whole = np.sqrt((G**2).sum() * (case.rows / len(G)))
        reference.update([Update("adam", P, G, (M, V), options, 10)], clip_factor(1.0, whole))
        near(p, P, case.dtype)

    return Work(call, 8 * p.nbytes, check, arrays=(p, g, m, v, plan))


# ---------------------------------------------------------------- all of them
FULL = {  # (rows, columns), beyond what a cache holds: 0.1 to 0.6 GB an array
    "gather": (1 << 16, 784), "dropout": (1 << 16, 1024), "activate": (1 << 15, 4096), "slopes": (1 << 15, 4096),
    "loss": (1 << 16, 1000), "loss of 10 outputs": (1 << 22, 10), "softmax": (1 << 16, 1000),
    "accuracy": (1 << 16, 1000), "norm": (1 << 16, 1024), "clipped step": (1 << 16, 1024),
}  # fmt: skip
QUICK, TINY = (256, 40), (64, 5)
MAKERS: dict[str, Callable[[Case], Work]] = {
    "gather": gather, "dropout": dropout, "activate": activate, "slopes": slopes, "loss": loss,
    "loss of 10 outputs": loss, "softmax": softmax, "accuracy": accuracy, "norm": norm, "clipped step": clipped,
}  # fmt: skip
FORMULAS = {  # of kernels that come for each
    "activate": list(ACTIVATIONS), "slopes": [name for name in ACTIVATIONS if name != "linear"],
    "loss": list(LOSSES), "loss of 10 outputs": list(LOSSES),
}  # fmt: skip
DTYPES_16BIT = [(kernel, name, "bfloat16") for kernel in ("activate", "slopes") for name in ("relu", "gelu_tanh")]
CASES = [(kernel, name, "float32") for kernel in MAKERS for name in FORMULAS.get(kernel, [kernel])] + DTYPES_16BIT
