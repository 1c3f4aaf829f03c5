"""What is asked of the CUDA driver, by a driver that does it on the host: arguments, order, contexts, memory."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest
from helpers_cuda import SIMULATED, assert_same_bits, on_device, require_device

require_device()
from fastopt.kernels import reference
from fastopt.kernels.cuda import Guard, Plan, driver
from fastopt.kernels.cuda import gpu as gpu_
from fastopt.kernels.cuda.arrays import see
from fastopt.kernels.cuda.compile import THREADS, Kernel
from fastopt.kernels.cuda.norm import SETTLE
from fastopt.kernels.formulas import OPTIMIZERS, clip_factor
from fastopt.kernels.spec import Target, Update

pytestmark = pytest.mark.skipif(not SIMULATED, reason="where there is a device, the other tests ask the real driver")

ffi = driver.ffi
CONTEXT, OTHER = 77, 78


class Driver:
    """The driver's functions, on the host's memory; kernels run in the simulator."""

    def __init__(self):
        self.memory, self.pinned, self.names = {}, {}, []
        self.contexts, self.streams, self.refuse, self.capturing = [OTHER], [], None, 0

    def __getattr__(self, name):
        assert name.startswith("cu")

        def call(*args):
            if name == self.refuse:
                return 2
            getattr(Driver, f"do_{name}")(self, *args)
            return 0

        return call

    def do_cuInit(self, flags):
        assert flags == 0

    def do_cuGetErrorName(self, error, name):
        self.text = ffi.new("char[]", b"CUDA_ERROR_OUT_OF_MEMORY"), ffi.new("char[]", b"out of memory")
        name[0] = self.text[0]

    def do_cuGetErrorString(self, error, text):
        text[0] = self.text[1]

    def do_cuDriverGetVersion(self, version):
        version[0] = 13010

    def do_cuDeviceGetCount(self, count):
        count[0] = 2

    def do_cuDeviceGet(self, device, ordinal):
        device[0] = 40 + ordinal

    def do_cuDeviceGetName(self, name, length, device):
        ffi.memmove(name, b"A device\0", 9)

    def do_cuDeviceGetAttribute(self, value, attribute, device):
        value[0] = {75: 9, 76: 0, 16: 132, 38: 1 << 20}[attribute]

    def do_cuDevicePrimaryCtxRetain(self, context, device):
        assert device == 41
        context[0] = ffi.cast("void *", CONTEXT)

    def do_cuCtxGetCurrent(self, context):
        context[0] = ffi.cast("void *", self.contexts[-1])

    def do_cuCtxPushCurrent_v2(self, context):
        self.contexts.append(int(ffi.cast("intptr_t", context)))

    def do_cuCtxPopCurrent_v2(self, context):
        assert self.contexts.pop() == CONTEXT

    def do_cuPointerGetAttribute(self, value, attribute, pointer):
        assert attribute == 9
        ffi.cast("int *", value)[0] = 1

    def do_cuMemAlloc_v2(self, pointer, size):
        memory = np.full(size + 256, 0xA5, np.uint8)
        pointer[0] = -(-memory.ctypes.data // 256) * 256
        self.memory[pointer[0]] = memory
        assert self.contexts[-1] == CONTEXT

    def do_cuMemFree_v2(self, pointer):
        del self.memory[pointer]
        assert self.contexts[-1] == CONTEXT

    def do_cuMemHostAlloc(self, pointer, size, flags):
        assert flags == 1
        memory = np.full(size, 0xA5, np.uint8)
        pointer[0] = ffi.cast("void *", memory.ctypes.data)
        self.pinned[memory.ctypes.data] = memory

    def do_cuMemFreeHost(self, pointer):
        del self.pinned[int(ffi.cast("intptr_t", pointer))]

    def do_cuMemcpyHtoDAsync_v2(self, into, source, size, stream):
        self.note(stream)
        ctypes.memmove(into, int(ffi.cast("intptr_t", source)), size)

    def do_cuMemcpyDtoHAsync_v2(self, into, source, size, stream):
        self.note(stream)
        ctypes.memmove(int(ffi.cast("intptr_t", into)), source, size)

    def do_cuMemcpyDtoDAsync_v2(self, into, source, size, stream):
        self.note(stream)
        ctypes.memmove(into, source, size)

    def do_cuMemGetInfo_v2(self, free, total):
        assert self.contexts[-1] == CONTEXT
        free[0], total[0] = 1 << 30, 1 << 32

    def do_cuMemsetD8Async(self, into, value, size, stream):
        ctypes.memset(into, value, size)

    def do_cuStreamSynchronize(self, stream):
        self.note(stream)

    def do_cuStreamIsCapturing(self, stream, status):
        status[0] = self.capturing

    def do_cuOccupancyMaxActiveBlocksPerMultiprocessor(self, blocks, function, threads, shared):
        assert (threads, shared) == (THREADS, 0)
        assert self.contexts[-1] == CONTEXT
        blocks[0] = 4

    def do_cuModuleLoadData(self, module, image):
        name = bytes(ffi.buffer(ffi.cast("char *", image), 200)).split(b".text.")[1].split(b"\0")[0]
        self.names.append(name.decode())
        module[0] = ffi.cast("void *", len(self.names))

    def do_cuModuleGetFunction(self, function, module, name):
        index = int(ffi.cast("intptr_t", module))
        assert name.decode() == self.names[index - 1]  # cffi takes bytes for a const char *
        function[0] = ffi.cast("void *", 1000 + index)

    def do_cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, pointers, extra):
        assert (gy, gz, bx, by, bz, shared, extra) == (1, 1, THREADS, 1, 1, 0, ffi.NULL)
        assert self.contexts[-1] == CONTEXT
        self.note(stream)
        kernel = Kernel.names[self.names[int(ffi.cast("intptr_t", function)) - 1001]]
        args = [ffi.cast("long long *", pointers[i])[0] for i in range(kernel.arguments)]
        with np.errstate(all="ignore"):
            kernel.simulated[gx, bx](*args)

    def note(self, stream):
        self.streams.append(int(ffi.cast("intptr_t", stream)))


@pytest.fixture
def fake(monkeypatch):
    fake = Driver()
    monkeypatch.setattr(driver, "library", lambda: fake)
    monkeypatch.setattr(gpu_, "library", lambda: fake)
    monkeypatch.setattr(Kernel, "cubin", lambda self, _: b"\0.text." + self.name.encode() + bytes(200))
    return fake


def test_what_there_is(fake):
    assert driver.driver_version() == (13, 1)
    assert driver.device_count() == 2
    assert driver.device_of(12345) == 1
    gpu = gpu_.Gpu(1)
    assert (gpu.name, gpu.capability) == ("A device", (9, 0))
    assert (gpu.cache_bytes, gpu.free_memory()) == (1 << 20, 1 << 30)
    with gpu.active():
        assert gpu.most_blocks(SETTLE) == 4 * 132


def test_a_copy(fake):
    gpu, (source, into) = gpu_.Gpu(1), on_device(np.arange(9.0), np.zeros(9))
    gpu.copy(see(into).address + 8, see(source).address, 24, 5)
    assert into.copy_to_host().tolist() == [0, 0, 1, 2, 0, 0, 0, 0, 0]
    assert fake.streams == [5]


def test_an_error_of_the_driver(fake):
    gpu = gpu_.Gpu(1)
    fake.refuse = "cuMemAlloc_v2"
    with pytest.raises(driver.CudaError, match="^CUDA_ERROR_OUT_OF_MEMORY: out of memory$"):
        gpu.allocate(10)
    assert fake.contexts == [OTHER]
    fake.refuse = "cuGetErrorName"
    with pytest.raises(driver.CudaError, match="^the CUDA driver reports error 2$"):
        driver.check(2)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the kernels that run in the simulator's threads
def test_steps(fake):
    rng = np.random.default_rng(0)
    options, flag = OPTIMIZERS["adam"].options, np.zeros(1, "float32")
    host = [np.abs(rng.standard_normal(300).astype("float32")) for _ in range(3)]
    p, m, v = on_device(*host)
    plan = Plan([Target("adam", "float32", 300, see(p).address, (see(m).address, see(v).address))], gpu_.Gpu(1))
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
    assert plan.settled().tolist() == [0]
    assert set(fake.streams) == {5}
    assert sorted(fake.names) == ["settle", "squares_float32", "update_adam_float32"]  # each is loaded once
    assert fake.contexts == [OTHER]
    assert fake.memory
    assert fake.pinned
    del plan
    gc.collect()
    assert not fake.memory
    assert not fake.pinned


def test_a_step_is_not_captured(fake):
    p, g = on_device(np.ones(3, "float32"), np.ones(3, "float32"))
    plan = Plan([Target("sgd", "float32", 3, see(p).address, ())], gpu_.Gpu(1))
    fake.capturing = 1
    with pytest.raises(RuntimeError, match="a step cannot be captured into a CUDA graph"):
        plan.update([see(g).address], [1], [OPTIMIZERS["sgd"].options])
    assert p.copy_to_host().tolist() == [1, 1, 1]
    assert fake.contexts == [OTHER]


def test_a_context_that_is_there_already_is_left_alone(fake):
    fake.contexts = [CONTEXT]
    gpu = gpu_.Gpu(1)
    with gpu.active():
        assert fake.contexts == [CONTEXT]
    assert fake.contexts == [CONTEXT]
