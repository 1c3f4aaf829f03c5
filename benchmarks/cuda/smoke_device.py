"""Smoke checks of memory, copies, launches, events, streams and graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda

from fastopt.benchmarks.cuda.child import device
from fastopt.benchmarks.cuda.device import numbers
from fastopt.benchmarks.cuda.limits import Copies
from fastopt.benchmarks.cuda.spin import occupy
from fastopt.benchmarks.cuda.updates import Job, planned
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels.cuda.runtime import staging
from fastopt.kernels.cuda.runtime.compile import SIMULATED, THREADS, Kernel
from fastopt.kernels.cuda.runtime.driver import check, ffi
from fastopt.kernels.cuda.runtime.memory import DeviceArray
from fastopt.kernels.cuda.runtime.primitives import SHARED, address_in, reader, writer
from fastopt.kernels.cuda.runtime.timing import Timer

SECONDS = 20.0  # for something to arrive
FULL_SIZES = (1, 8, 4096, staging.LARGEST, staging.LARGEST + 8, 64 << 20)  # bytes; from the ring, and past it
SIZES = (1, 8, 4096) if SIMULATED else FULL_SIZES
GLOBAL_CAPTURE = 0  # CU_STREAM_CAPTURE_MODE_GLOBAL, the strictest, which torch uses

ELEMENT = cuda.types.float64
read_long, write_long = reader("int64", 1), writer("int64")
read_shared, write_shared, address_shared = reader("int64", 1, SHARED), writer("int64", SHARED), address_in(SHARED)


def _count(at):
    if cuda.blockIdx.x == 0 and cuda.threadIdx.x == 0:
        write_long(at, read_long(at)[0] + 1)


def _turn_round(into, words, threads):
    # through shared memory, in reverse order
    memory = cuda.shared.array(0, ELEMENT)
    table = address_shared(memory)
    for i in range(cuda.threadIdx.x, words, threads):
        write_shared(table + i * 8, read_long(into + i * 8)[0])
    cuda.syncthreads()
    for i in range(cuda.threadIdx.x, words, threads):
        write_long(into + i * 8, read_shared(table + (words - 1 - i) * 8)[0])


COUNT, TURN_ROUND = Kernel(_count, "survey_count"), Kernel(_turn_round, "survey_turn_round")


def words(gpu: Any, count: int) -> DeviceArray:
    return DeviceArray(gpu, (count,), "int64")


def first_kernel() -> str:
    size = 1 << 12 if SIMULATED else 1 << 26
    gpu = device()
    copies = Copies(size)
    for call in copies.calls.values():
        call()
        copies.check()
    return f"{gpu.name} ({'.'.join(map(str, gpu.capability))}): compiled, loaded, and {size:,} bytes copied"


def zero_memset() -> str:
    gpu = device()
    memory = gpu.allocate(0)
    with gpu.active():
        gpu.zero(memory.address, 0, 0)
        gpu.copy_in(memory.address, np.zeros(0), 0)
        gpu.wait(0)
        said = "" if SIMULATED else f"; the driver answers {gpu.driver.cuMemsetD8Async(memory.address, 0, 0, ffi.NULL)}"
    assert DeviceArray(gpu, (0, 3), "float32").copy_to_host().shape == (0, 3)
    made = DeviceArray(gpu, (1000,), "int64", fill=-1)
    del made  # frees memory that the next one may get
    assert not words(gpu, 1000).copy_to_host().any()
    return f"nothing is set in no bytes{said}"


def pageable_reuse() -> str:
    """An array in pageable memory may be changed as soon as the call that copies it has returned."""
    rng = np.random.default_rng(0)
    sources = [rng.integers(0, 256, size, dtype=np.uint8) for size in SIZES for _ in range(3)]
    gpu = device()
    own, room = gpu.stream(), words(gpu, 1)
    stream = own.handle
    places = [DeviceArray(gpu, source.shape, "uint8") for source in sources]
    want = [source.copy() for source in sources]
    occupy(gpu, stream, room.address)  # so that copies are late
    for place, source in zip(places, sources, strict=True):
        place.write(source, stream)
        source[:] = 0xEE
    for place, bits in zip(places, want, strict=True):
        np.testing.assert_array_equal(place.copy_to_host(stream), bits)
    return f"{len(want)} copies of up to {max(SIZES):,} bytes, each changed at once"


def pinned_words() -> str:
    gpu = device()
    own, room = gpu.stream(), words(gpu, 1)
    stream = own.handle
    pinned, event, source = gpu.pinned(64), gpu.event(), words(gpu, 64)
    source.write(np.arange(64) + 1, stream)
    assert not pinned.any()
    with gpu.active():
        occupy(gpu, stream, room.address)
        gpu.copy_out(pinned[3:5], source.address + 24, stream)
        event.record(stream)
        assert SIMULATED or not event.reached(), "the copy to pinned memory waited"
    until = time.monotonic() + SECONDS
    while pinned[4] != 5:  # the host reads it without the driver
        assert time.monotonic() < until, "what the device wrote never arrived"
    assert pinned.sum() == 9
    return "written by the device while the host went on"


def shared_memory() -> str:
    """The largest shared memory of a block, which is more than the default limit."""
    gpu = device()
    count = 64 if SIMULATED else gpu.shared_bytes // 8
    threads = THREADS if SIMULATED else 512
    array = words(gpu, count)
    array.write(np.arange(count), 0)
    with gpu.active():
        gpu.launch_one_block(TURN_ROUND, threads, 8 * count, 0, array.address, count, threads)
    np.testing.assert_array_equal(array.copy_to_host(), np.arange(count)[::-1])
    assert SIMULATED or 8 * count > 48 << 10
    return f"{8 * count:,} bytes in a block of {threads} threads"


def events() -> str:
    gpu = device()
    own, another, room = gpu.stream(), gpu.stream(), words(gpu, 1)
    stream, other = own.handle, another.handle
    start, end = gpu.event(timed=True), gpu.event(timed=True)
    begin = time.perf_counter()
    with gpu.active():
        start.record(stream)
        occupy(gpu, stream, room.address)
        end.record(stream)
        end.before(other)
        if not SIMULATED:
            assert not end.reached(), "an event was reached before what stands before it"
            gpu.wait(other)  # waits for the event
            assert end.reached()
        end.wait()
        took, host = end.since(start), time.perf_counter() - begin
        assert 0 <= took <= host
        empty = Timer(gpu).seconds(lambda: None, stream)
    return f"{took * 1e3:.1f} ms by the device, {host * 1e3:.1f} by the host; nothing takes {empty * 1e6:.1f} us"


def streams() -> str:
    """Streams do not wait for each other, nor for the default stream."""
    gpu = device()
    slow, fast, room = gpu.stream(), gpu.stream(), words(gpu, 2)
    copies = [DeviceArray(gpu, (1000,), "float64", fill=1) for _ in range(2)]
    done = gpu.event()
    with gpu.active():
        for number in (0, slow.handle):
            occupy(gpu, number, room.address)
        done.record(slow.handle)
        gpu.copy(copies[0].address, copies[1].address, 8000, fast.handle)
        gpu.wait(fast.handle)
        assert SIMULATED or not done.reached(), "one stream waited for another"
        done.wait()
    handle = fast.handle
    del fast
    assert gpu.stream().handle == handle  # it is used again
    return "two streams and the default one, at once"


def counted(gpu: Any, stream: int, at: DeviceArray) -> tuple[Callable[[], None], list[int]]:
    """Return a function of two launches, and a list that grows by one with each call."""
    calls: list[int] = []

    def run() -> None:
        calls.append(1)
        for _ in range(2):
            gpu.launch(COUNT, 4, stream, at.address)

    return run, calls


def graph_capture() -> str:
    gpu = device()
    own, count = gpu.stream(), words(gpu, 1)
    stream = own.handle
    run, calls = counted(gpu, stream, count)
    replay = gpu.replay(stream, run)
    with gpu.active():
        for _ in range(50):
            replay.launch()
    assert count.copy_to_host(stream).tolist() == [100]
    assert SIMULATED or len(calls) == 2, f"launches were not captured: they were given one by one {len(calls)} times"
    return "50 launches of a graph of two kernels, in order"


def strict_capture() -> str:
    """Kernels are loaded and memory is allocated while another library captures in the strictest mode."""
    gpu = device()
    if SIMULATED:
        raise Absent("the simulator captures nothing")
    ours, captured, count, graph = gpu.stream(), gpu.stream(), words(gpu, 1), ffi.new("void **")
    stream = ffi.cast("void *", captured.handle)
    with gpu.active():
        check(gpu.driver.cuStreamBeginCapture_v2(stream, GLOBAL_CAPTURE))
        try:
            gpu.load(COUNT)
            with gpu.side_stream() as aside:
                memory = gpu.allocate(1 << 20, aside)
                gpu.launch(COUNT, 1, aside, count.address)
            with gpu.relaxed():
                made = gpu.event()
        finally:
            code = gpu.driver.cuStreamEndCapture(stream, graph)
        check(code)
        if graph[0]:
            check(gpu.driver.cuGraphDestroy(graph[0]))
        made.record(ours.handle)
        gpu.wait(ours.handle)
    assert count.copy_to_host().tolist() == [1]
    assert memory.address
    return "kernels, memory, streams and events while another stream is captured"


def most_blocks() -> str:
    gpu = device()
    with gpu.active():
        most = gpu.max_blocks(COUNT)
    count = words(gpu, 1)
    with gpu.active():
        for blocks in (1, most, 3 if SIMULATED else 1_000_000):
            gpu.launch(COUNT, blocks, 0, count.address)
    assert count.copy_to_host().tolist() == [3]
    assert most > 0
    return f"{most} blocks of {THREADS} threads at once"


def past_32_bits() -> str:
    """More elements and bytes than an int32 counts."""
    size = 4096 if SIMULATED else (1 << 31) + 4104
    gpu = device()
    if not SIMULATED and 5 * size > gpu.free_memory():
        raise Absent(f"needs {5 * size:,} free bytes")
    job = Job("sgd", size, "bfloat16")
    planned(job)()
    job.check(exactly=True)
    if not SIMULATED:
        assert np.isfinite(numbers(job.arrays[0], "bfloat16", size - 8, 8)).all()
    return f"an update of {size:,} elements, to the bit"
