"""Calls of the CUDA driver, made to one that works on the host: arguments, order, contexts, memory."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from helpers_cuda import SIMULATED, assert_same_bits, on_device, require_device

require_device()
from helpers_driver import CONTEXT, OTHER, install

from fastopt.kernels import reference
from fastopt.kernels.cuda import Guard, Plan
from fastopt.kernels.cuda.optim.norm import RESOLVE_STEP
from fastopt.kernels.cuda.runtime import array_interface, driver, staging
from fastopt.kernels.cuda.runtime import gpu as gpu_
from fastopt.kernels.cuda.runtime.array_interface import see
from fastopt.kernels.formulas import OPTIMIZERS, clip_factor
from fastopt.kernels.spec import BufferUpdate, Update

pytestmark = pytest.mark.skipif(not SIMULATED, reason="where there is a device, the other tests ask the real driver")


@pytest.fixture
def fake(monkeypatch):
    return install(monkeypatch)


def test_what_there_is(fake):
    assert driver.driver_version() == (13, 1)
    assert driver.device_count() == 2
    assert driver.device_of(12345) == 1
    gpu = gpu_.Gpu(1)
    assert (gpu.name, gpu.capability) == ("A device", (9, 0))
    assert gpu.cache_bytes == 1 << 20
    with gpu.active():
        assert gpu.max_blocks(RESOLVE_STEP) == 4 * 132
    assert gpu.free_memory() == 1 << 20
    assert fake.contexts == [OTHER]


def test_the_device_of_arrays_and_of_the_caller(fake, monkeypatch):
    monkeypatch.setattr(array_interface, "SIMULATED", False)
    monkeypatch.setattr(gpu_, "gpu", gpu_.Gpu)
    for contexts, ordinal in (([OTHER], 0), ([OTHER, CONTEXT], 1), ([0], 0)):
        fake.contexts = contexts
        assert array_interface.gpu_of(()).ordinal == ordinal
        assert array_interface.gpu_of({0, 4096}).ordinal == 1
    monkeypatch.setattr(driver, "device_of", lambda address: address // 4096)
    with pytest.raises(ValueError, match="must lie on one GPU; these lie on GPUs 1 and 2"):
        array_interface.gpu_of({8192, 4096, 4100})


def test_a_copy(fake):
    gpu, (source, into) = gpu_.Gpu(1), on_device(np.arange(9.0), np.zeros(9))
    gpu.copy(see(into).address + 8, see(source).address, 24, 5)
    assert into.copy_to_host().tolist() == [0, 0, 1, 2, 0, 0, 0, 0, 0]
    assert fake.streams == [5]


@pytest.mark.parametrize("size", [8, staging.LARGEST, staging.LARGEST + 8, 3 * staging.SIZE])
def test_what_is_copied_may_be_changed_at_once(fake, size):
    """True even on a device that reads the host's memory itself, and late."""
    fake.hold, fake.pageable_access = True, 1
    gpu, source = gpu_.Gpu(1), np.arange(size // 8, dtype=np.float64)
    memory, want = gpu.allocate(size), source.copy()
    gpu.copy_in(memory.address, source, 5)
    source[:] = -1
    gpu.wait(5)
    assert bytes(fake.at(memory.address, size)) == want.tobytes()


def test_small_copies_wait_for_room_alone(fake):
    """More than the ring holds, each changed at once, in sizes that never fit its end."""
    fake.hold = True
    gpu, rng = gpu_.Gpu(1), np.random.default_rng(0)
    sizes = rng.integers(1, staging.LARGEST // 3, 40)
    places, want = [gpu.allocate(int(size)) for size in sizes], []
    fake.streams.clear()
    for place, size in zip(places, sizes, strict=True):
        array = rng.integers(0, 256, size, dtype=np.uint8)
        gpu.copy_in(place.address, array, 5)
        want.append(array.tobytes())
        array[:] = 0
    assert fake.calls["cuEventSynchronize"] > 0
    assert fake.calls["cuEventCreate"] < 40  # events are used again
    waits = fake.calls["cuStreamSynchronize"]
    gpu.wait(5)
    assert waits == len(sizes)  # those of `allocate`
    assert [bytes(fake.at(place.address, len(bits))) for place, bits in zip(places, want, strict=True)] == want


def test_nothing_is_asked_of_the_driver_for_no_bytes(fake):
    gpu = gpu_.Gpu(1)
    memory = gpu.allocate(0)
    gpu.zero(memory.address, 0, 5)
    gpu.copy_in(memory.address, np.zeros(0), 5)
    assert fake.calls["cuMemsetD8Async"] == fake.calls["cuMemcpyHtoDAsync_v2"] == 0


def test_while_another_library_captures_strictly(fake):
    """Streams are made, memory is allocated and kernels are loaded as if nobody captured."""
    gpu = gpu_.Gpu(1)
    fake.capture = (9, [])
    with gpu.active():
        gpu.load(RESOLVE_STEP)
    assert not fake.relaxed
    with gpu.side_stream() as other:
        gpu.allocate(16, other)
    assert not fake.relaxed
    assert fake.capture == (9, [])  # which has none of them


def test_an_error_of_the_driver(fake):
    gpu = gpu_.Gpu(1)
    fake.refuse = "cuMemAlloc_v2"
    with pytest.raises(driver.CudaError, match="^CUDA_ERROR_OUT_OF_MEMORY: out of memory$"):
        gpu.allocate(10)
    assert fake.contexts == [OTHER]
    fake.refuse = "cuGetErrorName"
    with pytest.raises(driver.CudaError, match="^the CUDA driver reports error 2$"):
        driver.check(2)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # by kernels in the simulator's threads
def test_steps(fake):
    rng = np.random.default_rng(0)
    options, flag = OPTIMIZERS["adam"].options, np.zeros(1, "float32")
    host = [np.abs(rng.standard_normal(300).astype("float32")) for _ in range(3)]
    p, m, v = on_device(*host)
    plan = Plan([BufferUpdate("adam", "float32", 300, see(p).address, (see(m).address, see(v).address))], gpu_.Gpu(1))
    fake.streams.clear()
    for step in range(1, 5):
        g = rng.standard_normal(300).astype("float32")
        (kept,) = on_device(g)
        guard = Guard(clip_norm=2.0, found_inf=flag.ctypes.data)
        plan.update([see(kept).address], [step], [options], guard=guard, stream=5)
        norm = plan.last_norm(stream=5)
        reference.update([Update("adam", host[0], g, tuple(host[1:]), options, step)], clip_factor(2.0, norm))
    for ours, theirs in zip((p, m, v), host, strict=True):
        assert_same_bits(ours, theirs)
    assert plan.count_skipped().tolist() == [0]
    assert set(fake.streams) == {5}
    assert sorted(fake.names) == ["resolve_step", "squares_float32", "update_adam_float32"]  # each is loaded once
    assert fake.contexts == [OTHER]
    assert fake.memory
    assert fake.pinned
    del plan
    gc.collect()
    assert not fake.memory
    assert [len(memory) for memory in fake.pinned.values()] == [staging.SIZE]  # which the device keeps


def test_nobody_waits_for_a_stream_that_may_be_gone(fake):
    """The stream's owner may have destroyed it after the step; an event of ours tells when the step is done."""
    p, g, flag = on_device(np.ones(3, "float32"), np.ones(3, "float32"), np.ones(1, "float32"))
    plan = Plan([BufferUpdate("sgd", "float32", 3, see(p).address, ())], gpu_.Gpu(1))
    plan.update([see(g).address], [1], [OPTIMIZERS["sgd"].options], guard=Guard(found_inf=see(flag).address), stream=5)
    fake.streams.clear()
    assert plan.count_skipped().tolist() == [1]
    assert fake.calls["cuEventSynchronize"] == 1
    assert not fake.streams


def test_a_step_is_not_captured(fake):
    p, g = on_device(np.ones(3, "float32"), np.ones(3, "float32"))
    plan = Plan([BufferUpdate("sgd", "float32", 3, see(p).address, ())], gpu_.Gpu(1))
    fake.capturing = 1
    with pytest.raises(RuntimeError, match="a step cannot be captured into a CUDA graph where the host counts steps"):
        plan.update([see(g).address], [1], [OPTIMIZERS["sgd"].options])
    assert p.copy_to_host().tolist() == [1, 1, 1]
    assert fake.contexts == [OTHER]


def test_a_context_that_is_there_already_is_left_alone(fake):
    fake.contexts = [CONTEXT]
    gpu = gpu_.Gpu(1)
    with gpu.active():
        assert fake.contexts == [CONTEXT]
    assert fake.contexts == [CONTEXT]
