"""Device of Numba's simulator: its memory is that of the process, and every call is done when it returns."""

from __future__ import annotations

import contextlib
import ctypes
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from .compile import THREADS, Kernel
from .simulator_threads import run


class Memory:
    """Device memory, freed with this object."""

    def __init__(self, size: int) -> None:
        self.array = np.zeros(size + 256, np.uint8)
        self.address = -(-self.array.ctypes.data // 256) * 256  # aligned as the driver's


class Stream:
    """The only stream there is."""

    handle = 0


class Event:
    """Event that is reached when it is recorded; its time is the host's."""

    def record(self, stream: int) -> None:
        self.time = time.perf_counter()

    def since(self, other: Event) -> float:
        return self.time - other.time

    def wait(self) -> None:
        pass

    def before(self, stream: int) -> None:
        pass


class Replay:
    """Launches, given one by one each time."""

    def __init__(self, run: Callable[[], None]) -> None:
        self.launch = run


class SimulatedGpu:
    """The only device there is."""

    ordinal, name, capability = 0, "Numba's simulator", (9, 0)
    cache_bytes, shared_bytes = 1024, 1 << 16

    def max_blocks(self, kernel: Kernel) -> int:
        return 3  # fewer than the tiles of most tests

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        yield

    def allocate(self, size: int, stream: int = 0) -> Memory:
        return Memory(size)

    def pinned(self, words: int) -> np.ndarray:
        return np.zeros(words, np.int64)

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    copy_pinned = copy_in

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def copy(self, into: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(into, source, size)

    def zero(self, address: int, size: int, stream: int) -> None:
        ctypes.memset(address, 0, size)

    def wait(self, stream: int) -> None:
        pass

    def is_capturing(self, stream: int) -> bool:
        return False

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[int]:
        yield 0

    def free_memory(self) -> int:
        return 1 << 30

    def stream(self) -> Stream:
        return Stream()

    def event(self, timed: bool = False) -> Event:
        return Event()

    def replay(self, stream: int, run: Callable[[], None]) -> Replay:
        return Replay(run)

    def launch(self, kernel: Kernel, blocks: int, stream: int, *args: int) -> None:
        with warnings.catch_warnings():  # np.errstate does not reach the threads that it starts
            warnings.simplefilter("ignore", RuntimeWarning)
            run(kernel.function, blocks, THREADS, *args)

    def launch_one_block(self, kernel: Kernel, threads: int, shared: int, stream: int, *args: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            run(kernel.function, 1, threads, *args, shared=shared)
