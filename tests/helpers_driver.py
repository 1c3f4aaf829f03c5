"""A CUDA driver that works on the host and in the simulator, and checks its calls."""

from __future__ import annotations

import ctypes
from collections import Counter
from functools import partial

import numpy as np

from fastopt.kernels.cuda.runtime import driver, gpu
from fastopt.kernels.cuda.runtime.compile import THREADS, Kernel
from fastopt.kernels.cuda.runtime.simulator_threads import run

ffi = driver.ffi
CONTEXT, OTHER = 77, 78
FORBIDDEN = {  # while capturing
    "cuMemAlloc_v2", "cuModuleLoadData", "cuStreamCreate", "cuStreamSynchronize", "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
}  # fmt: skip
QUEUED = {"cuLaunchKernel": 8, "cuMemsetD8Async": 3}  # what a graph is made of, and which argument is the stream


class Driver:
    """The driver's functions, on the host's memory; kernels run in the simulator."""

    def __init__(self):
        self.memory, self.pinned, self.names, self.shared = {}, {}, [], {}
        self.contexts, self.streams, self.refuse, self.capturing = [OTHER], [], None, 0
        self.timed, self.times, self.order = set(), {}, []
        self.relaxed, self.pageable_access, self.hold, self.late = False, 0, False, []
        self.made, self.graphs, self.capture, self.events, self.calls = 0, {}, None, {}, Counter()

    def __getattr__(self, name):
        assert name.startswith("cu")

        def call(*args):
            if name == self.refuse:
                if name == "cuStreamEndCapture":  # which ends it nevertheless
                    self.capture = None
                return 2
            self.calls[name] += 1
            assert self.capture is None or self.relaxed or name not in FORBIDDEN
            aside = self.relaxed and name in QUEUED and self.stream_of(name, args) != self.capture[0]
            if self.capture is not None and name in QUEUED and not aside:
                assert self.stream_of(name, args) == self.capture[0]
                if name == "cuLaunchKernel":  # the driver copies the arguments
                    args = (*args[:-2], self.arguments(args[0], args[-2]), args[-1])
                self.capture[1].append(partial(getattr(Driver, f"do_{name}"), self, *args))
                return 0
            getattr(Driver, f"do_{name}")(self, *args)
            return 0

        return call

    @staticmethod
    def stream_of(name, args):
        return int(ffi.cast("intptr_t", args[QUEUED[name]]))

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
        value[0] = {75: 9, 76: 0, 16: 132, 38: 1 << 20, 88: self.pageable_access, 97: 227 << 10}[attribute]

    def do_cuDevicePrimaryCtxRetain(self, context, device):
        assert device == 41
        context[0] = ffi.cast("void *", CONTEXT)

    def do_cuCtxGetCurrent(self, context):
        context[0] = ffi.cast("void *", self.contexts[-1])

    def do_cuCtxGetDevice(self, device):
        device[0] = {OTHER: 40, CONTEXT: 41}[self.contexts[-1]]

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
        copy = partial(ctypes.memmove, into, int(ffi.cast("intptr_t", source)), size)
        if self.hold:
            self.late.append(copy)
        else:
            copy()

    def do_cuMemcpyDtoHAsync_v2(self, into, source, size, stream):
        self.note(stream)
        ctypes.memmove(int(ffi.cast("intptr_t", into)), source, size)

    def do_cuMemsetD8Async(self, into, value, size, stream):
        assert size
        ctypes.memset(into, value, size)

    def do_cuStreamSynchronize(self, stream):
        self.note(stream)
        self.catch_up()

    def do_cuStreamIsCapturing(self, stream, status):
        captured = self.capture is not None and self.capture[0] == int(ffi.cast("intptr_t", stream))
        status[0] = self.capturing or captured

    def do_cuThreadExchangeStreamCaptureMode(self, mode):
        before, self.relaxed = 2 * self.relaxed, mode[0] == 2
        mode[0] = before

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

    def do_cuFuncSetAttribute(self, function, attribute, value):
        assert (attribute, value <= 227 << 10) == (8, True)
        self.shared[function] = value

    def do_cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, pointers, extra):
        assert (gy, gz, bx, by, bz, extra) == (1, 1, THREADS, 1, 1, ffi.NULL)
        assert shared == self.shared.get(function, 0)
        assert self.contexts[-1] == CONTEXT
        self.note(stream)
        args = pointers if isinstance(pointers, list) else self.arguments(function, pointers)
        with np.errstate(all="ignore"):
            run(self.kernel(function).function, gx, bx, *args, shared=shared)

    def kernel(self, function):
        return Kernel.names[self.names[int(ffi.cast("intptr_t", function)) - 1001]]

    def arguments(self, function, pointers):
        return [ffi.cast("long long *", pointers[i])[0] for i in range(self.kernel(function).arguments)]

    # -- streams, events, graphs
    def do_cuMemcpyDtoDAsync_v2(self, into, source, size, stream):
        self.note(stream)
        ctypes.memmove(into, source, size)

    def do_cuMemGetInfo_v2(self, free, total):
        assert self.contexts[-1] == CONTEXT
        free[0], total[0] = 1 << 20, 1 << 21

    def new(self, place):
        self.made += 1
        place[0] = ffi.cast("void *", 5000 + self.made)
        return 5000 + self.made

    def do_cuStreamCreate(self, stream, flags):
        assert flags == 1  # does not wait for the default stream
        assert self.contexts[-1] == CONTEXT
        self.new(stream)

    def do_cuEventCreate(self, event, flags):
        assert flags in (0, 2)  # with and without a time
        assert self.contexts[-1] == CONTEXT
        self.events[self.new(event)] = None
        self.timed |= {self.made + 5000} if flags == 0 else set()

    @property
    def cuEventDestroy_v2(self):
        return lambda event: self.events.pop(int(ffi.cast("intptr_t", event)))

    def do_cuEventElapsedTime(self, milliseconds, start, end):
        assert self.contexts[-1] == CONTEXT
        first, last = (int(ffi.cast("intptr_t", event)) for event in (start, end))
        milliseconds[0] = (self.times[last] - self.times[first]) / 1e3

    def do_cuEventRecord(self, event, stream):
        number = int(ffi.cast("intptr_t", event))
        if number in self.timed:
            self.times[number] = len(self.order)  # a microsecond each
            self.order.append(number)
        self.events[int(ffi.cast("intptr_t", event))] = int(ffi.cast("intptr_t", stream))

    def do_cuEventSynchronize(self, event):
        assert int(ffi.cast("intptr_t", event)) in self.events
        self.catch_up()

    @property
    def cuEventQuery(self):
        return lambda event: 600 if self.late else 0

    def at(self, address, size):
        """The bytes of device memory at an address."""
        return (ctypes.c_uint8 * size).from_address(address)

    def catch_up(self):
        """Do the copies that were held back, as a device that reads host memory late."""
        late, self.late = self.late, []
        for copy in late:
            copy()

    def do_cuStreamWaitEvent(self, stream, event, flags):
        assert flags == 0
        recorded = self.events[int(ffi.cast("intptr_t", event))]
        assert recorded != int(ffi.cast("intptr_t", stream))  # a stream need not wait for itself

    def do_cuStreamBeginCapture_v2(self, stream, mode):
        assert mode == 2
        assert self.capture is None
        self.capture = int(ffi.cast("intptr_t", stream)), []

    def do_cuStreamEndCapture(self, stream, graph):
        assert self.capture[0] == int(ffi.cast("intptr_t", stream))
        self.graphs[self.new(graph)], self.capture = self.capture, None

    def do_cuGraphInstantiateWithFlags(self, executable, graph, flags):
        assert flags == 0
        self.graphs[self.new(executable)] = self.graphs[int(ffi.cast("intptr_t", graph))]

    def do_cuGraphDestroy(self, graph):
        del self.graphs[int(ffi.cast("intptr_t", graph))]

    @property
    def cuGraphExecDestroy(self):
        return lambda graph: self.do_cuGraphDestroy(graph)

    def do_cuGraphLaunch(self, executable, stream):
        captured_on, launches = self.graphs[int(ffi.cast("intptr_t", executable))]
        assert int(ffi.cast("intptr_t", stream)) == captured_on
        assert launches
        for launch in launches:
            launch()

    def note(self, stream):
        self.streams.append(int(ffi.cast("intptr_t", stream)))


def install(monkeypatch) -> Driver:
    """Have the package call such a driver."""
    fake = Driver()
    monkeypatch.setattr(driver, "library", lambda: fake)
    monkeypatch.setattr(driver, "opened", lambda: fake)
    monkeypatch.setattr(gpu, "library", lambda: fake)
    monkeypatch.setattr(Kernel, "cubin", lambda self, _: b"\0.text." + self.name.encode() + bytes(200))
    return fake
