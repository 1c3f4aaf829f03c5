"""The smoke checks of a survey: on a GPU in full, under the simulator on small arrays; and their coverage."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
from fastopt.benchmarks.cuda import headline, smoke, smoke_networks, smoke_steps, waits
from fastopt.benchmarks.cuda.device import filled, the_gpu
from fastopt.benchmarks.cuda.goals import FIGURES, verdict_of
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels.cuda.dense.blaslt import BlasLtError

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

HERE = [name for name, home in smoke.CHECKS.items() if home != "torch"]


@pytest.mark.parametrize("name", HERE)
def test_check(name):
    try:
        line = smoke.check(name)()
    except Absent as reason:
        pytest.skip(str(reason))
    assert line


@pytest.fixture
def there(monkeypatch):
    """Under the simulator our code accepts torch's CPU tensors as CUDA's."""
    pytest.importorskip("torch", reason="in the extra `torch`")
    if SIMULATED:
        from fastopt.torch import _devices

        monkeypatch.setattr(_devices, "device_kind", lambda tensor: _devices.DEVICE)


@pytest.mark.parametrize("name", ["torch-steps", "torch-scaler", "torch-no-waiting"])
def test_check_with_torch(name, there):
    assert smoke.check(name)()


@pytest.mark.skipif(SIMULATED, reason="needs torch's own device")
@pytest.mark.parametrize("name", [name for name, home in smoke.CHECKS.items() if home == "torch"])
def test_check_with_torchs_device(name):
    try:
        assert smoke.check(name)()
    except Absent as reason:
        pytest.skip(str(reason))


def test_steps_on_tensors_wait_for_nothing(there, told):
    step = waits.on_tensors()
    step()
    with waits.watched(the_gpu()) as counts:
        step()
    assert not +counts


@pytest.fixture
def told(monkeypatch):
    """Record of a figure."""
    found = {}
    monkeypatch.setattr(headline, "tell", found.update)
    monkeypatch.setattr(waits, "tell", found.update)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_figure(name, told):
    """Each is measured, with its contestants' times; without torch as far as it goes."""
    assert headline.measure(name)
    own = FIGURES[name].goals
    without_torch = [goal for goal in own if "torch" not in goal.what]
    assert all(verdict_of(goal, told["measured"]) != "not measured" for goal in without_torch)
    assert set(told["measured"]) <= {goal.what for goal in own}
    assert all(seconds >= 0 for seconds in told["seconds"].values())
    assert any(who.startswith(("fastopt", "fo.Adam")) for who in told["seconds"])
    assert {"before", "after"} <= set(told)


def test_loops_wait_for_nothing(told):
    assert waits.nothing_waits()
    assert told["measured"] == {"waits": 0}
    assert {"fo.Adam", "fo.Adam, guarded"} <= set(told["loops"])


def test_what_waits_is_counted():
    gpu = the_gpu()
    event = gpu.event()
    with waits.watched(gpu) as counts, gpu.active():
        filled((3,), np.zeros(3), "float32")  # allocates, and waits
        event.record(0)
        gpu.wait(0)
        event.wait()  # which was reached: nobody waits
        gpu.pinned(1)
    assert counts["allocation"] == 1
    assert counts["wait for a stream"] >= 1
    assert counts["wait for an event"] == 0
    assert counts["allocation of pinned memory"] == 1
    before = Counter(counts)
    waits.wait(the_gpu())
    assert counts == before


class TestWhatIsWrongIsSeen:
    """A check that cannot fail shows nothing."""

    def test_a_product_without_an_algorithm(self, monkeypatch):
        gemm = smoke_networks.gemm_of(the_gpu())
        monkeypatch.setattr(type(gemm), "supported", lambda self, product, aligned=256: False)
        with pytest.raises(AssertionError, match="no algorithm for plain products"):
            smoke_networks.heuristics()

    def test_a_product_that_cannot_run(self, monkeypatch):
        gemm = smoke_networks.gemm_of(the_gpu())

        def call(*_, **__):
            raise BlasLtError("CUBLAS_STATUS_NOT_SUPPORTED")

        monkeypatch.setattr(type(gemm), "call", call)
        with pytest.raises(BlasLtError):
            smoke_networks.heuristics()

    def test_a_step_that_is_another(self, monkeypatch):
        monkeypatch.setitem(smoke_steps.KINDS, "Adam", lambda p, backend: smoke_steps.fo.Adam(
            p, lr=0.1 if backend == "cuda" else 0.11, backend=backend))  # fmt: skip
        with pytest.raises(AssertionError, match="Adam"):
            smoke_steps.first_steps()

    @pytest.mark.skipif(not SIMULATED, reason="of the simulator's device")
    def test_memory_that_is_not_zero(self, monkeypatch):
        kind = type(the_gpu())
        real = kind.allocate

        def allocate(self, size, stream=0):
            memory = real(self, size, stream)
            memory.array[:] = 1
            return memory

        monkeypatch.setattr(kind, "allocate", allocate)
        with pytest.raises(AssertionError):
            smoke.check("zero-memset")()
