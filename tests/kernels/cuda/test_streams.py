"""Work on streams of the caller's: nothing waits for the device, and streams do not wait for each other.

A kernel that takes a while goes first; where that has not ended yet when a call returns, the call has not waited. Under
the simulator, where nothing is late, the results alone are looked at.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import SIMULATED, on_device, require_device, to_device

require_device()
from fastopt.benchmarks.cuda.spin import occupy
from fastopt.kernels.cuda import Guard, Plan
from fastopt.kernels.cuda.dense import losses, rows
from fastopt.kernels.cuda.dense.epilogues import Shape, sums_bytes
from fastopt.kernels.cuda.dense.gemm import gemm_of
from fastopt.kernels.cuda.dense.layer import Gradients, Outputs, run_backward, run_forward, shape_of
from fastopt.kernels.cuda.dense.products import Layer, plan_backward, plan_forward
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.records import CLOCK
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import BufferUpdate

pytestmark = pytest.mark.gpu

SIZE, BATCH = (200, 4) if SIMULATED else (500_000, 300)


class Stream:
    """A stream with work that takes a while."""

    def __init__(self):
        from numba import cuda

        self.gpu, self.room = gpu_of(()), to_device(np.zeros(1))
        self.stream = None if SIMULATED else cuda.stream()
        self.event = None if SIMULATED else cuda.event()

    @property
    def handle(self):
        return 0 if SIMULATED else int(self.stream)

    def occupy(self):
        occupy(self.gpu, self.handle, at(self.room))
        if self.event is not None:
            self.event.record(self.stream)

    def busy(self):
        """Return True while the work of `occupy` goes on."""
        return SIMULATED or not self.event.query()

    def wait(self):
        if self.stream is not None:
            self.stream.synchronize()


def at(array):
    return see(array).address


class Step:
    """An optimizer's step."""

    guard = Guard()

    def __init__(self):
        rng = np.random.default_rng(0)
        self.start = [np.abs(rng.standard_normal(SIZE)).astype("float32") for _ in range(4)]
        p, g, m, v = self.arrays = on_device(*self.start)
        self.gradients = np.array([at(g)])
        self.plan = Plan([BufferUpdate("adam", "float32", SIZE, at(p), (at(m), at(v)))], gpu_of({at(p)}))

    def run(self, stream):
        self.plan.update(self.gradients, np.array([2]), [OPTIMIZERS["adam"].options], guard=self.guard, stream=stream)

    def written(self):
        return self.arrays


class GuardedStep(Step):
    """An optimizer's step that may be clipped, or skipped."""

    guard = Guard(clip_norm=0.5, skip_nonfinite=True)


class Layers:
    """A dense layer, forward and backward, by the library's products and our kernels."""

    def __init__(self):
        rng = np.random.default_rng(1)
        self.layer = Layer(96, 24, 40, "float32")
        shapes = (96, 24), (24, 40), (40,), (96, 40)
        self.given = on_device(*(rng.standard_normal(shape).astype("float32") for shape in shapes))
        self.made = on_device(*(np.zeros(shape, "float32") for shape in ((96, 40), (96, 40), *shapes[:3])))
        self.gemm = gemm_of(gpu_of({at(self.given[0])}))
        self.sums = self.gemm.gpu.allocate(sums_bytes(shape_of(self.layer)))
        self.forward = plan_forward(self.layer, "relu", True, supported=self.gemm.supported)
        self.backward = plan_backward(self.layer, "relu", supported=self.gemm.supported)

    def run(self, stream):
        x, w, b, dy = map(at, self.given)
        y, dz, dx, dw, db = map(at, self.made)
        run_forward(self.gemm, stream, self.forward, self.layer, "relu", x, w, b, Outputs(y))
        gradients = Gradients(dz, dx, dw, db)
        places = dy, x, w, y, gradients, self.sums.address
        run_backward(self.gemm, stream, self.backward, self.layer, "relu", *places)

    def written(self):
        return self.made


class Batch:
    """Rows gathered, and their loss."""

    def __init__(self):
        rng = np.random.default_rng(2)
        x, order = rng.standard_normal((2 * BATCH, 10)).astype("float32"), rng.permutation(2 * BATCH).astype("uint32")
        self.given = on_device(
            x, order, rng.integers(0, 10, BATCH), np.array([(1, 1)], CLOCK).view(np.int64), np.zeros(1)
        )
        tiles = losses.loss_tiles("sparse_categorical_crossentropy", BATCH, 10)
        self.made = on_device(*(np.zeros(shape, "float32") for shape in ((BATCH, 10),) * 3), np.zeros(tiles))

    def run(self, stream):
        x, order, labels, clock, param = map(at, self.given)
        z, dz, y, sums = map(at, self.made)
        gpu, shape = gpu_of({x}), Shape(BATCH, 10, 10, "float32")
        copied = rows.Rows(x, z, 10, 10, "float32")
        rows.gather(gpu, stream, copied, None, order, BATCH, clock, BATCH, 2 * BATCH)
        losses.run_loss(gpu, stream, "sparse_categorical_crossentropy", z, labels, dz, sums, param, shape, 10)
        losses.run_softmax(gpu, stream, z, y, shape, 10)

    def written(self):
        return self.made


WORK = [Step, GuardedStep, Layers, Batch]


def bits(work):
    return [array.copy_to_host().tobytes() for array in work.written()]


def expected(kind, runs):
    """Return the results of so many runs on the default stream."""
    work = kind()
    for _ in range(runs):
        work.run(0)
    return bits(work)


@pytest.mark.parametrize("kind", WORK)
def test_nothing_waits(kind):
    work, stream = kind(), Stream()
    work.run(stream.handle)  # loads kernels, and makes room
    stream.wait()
    stream.occupy()
    work.run(stream.handle)
    assert stream.busy()
    stream.wait()
    assert not stream.busy() or SIMULATED
    assert bits(work) == expected(kind, 2)


@pytest.mark.parametrize("kind", WORK)
def test_streams_do_not_wait_for_each_other(kind):
    pairs = [(kind(), Stream()) for _ in range(2)]
    for work, stream in pairs:
        work.run(stream.handle)
        stream.wait()
    want = expected(kind, 2)
    (slow, first), (fast, second) = pairs
    first.occupy()
    slow.run(first.handle)
    fast.run(second.handle)
    second.wait()
    assert first.busy()
    first.wait()
    assert bits(fast) == bits(slow) == want
