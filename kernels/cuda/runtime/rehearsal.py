"""A device that does not exist: it launches nothing, and keeps the kernels that it is asked to launch.

    with rehearsing((9, 0)) as kernels:
        model.fit(x, y)                   # whose results are meaningless
    for kernel in kernels: kernel.cubin((9, 0))

So the kernels of a network are found by the code that will launch them, and are compiled on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np

from .driver import ALIGNMENT

# Shared memory that a block can have, by compute capability (CUDA programming guide, "compute capabilities").
SHARED = {(7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (10, 3): 227,
          (11, 0): 227, (12, 0): 99, (12, 1): 99}  # fmt: skip


class Event:
    """Event of a stream on which nothing happens."""

    def record(self, stream: int) -> None:
        pass

    def wait(self) -> None:
        pass

    def before(self, stream: int) -> None:
        pass

    def since(self, other: Event) -> float:
        return 0.0


class RehearsedGpu:
    """A device of a compute capability, without memory."""

    ordinal, name, cache_bytes = 0, "no device", 0

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability, self.shared_bytes = capability, SHARED.get(capability, 99) << 10
        self.kernels: dict[Any, None] = {}  # in the order of their first launches
        self._addresses = itertools.count(ALIGNMENT, 1 << 40)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[int]:
        yield 0

    def load(self, kernel: Any) -> None:
        self.kernels[kernel] = None

    def max_blocks(self, kernel: Any) -> int:
        self.load(kernel)
        return 1

    def launch(self, kernel: Any, *_: int) -> None:
        self.load(kernel)

    launch_one_block = launch

    def allocate(self, size: int, stream: int = 0) -> Any:
        return SimpleNamespace(address=next(self._addresses))

    def pinned(self, words: int) -> np.ndarray:
        return np.zeros(words, np.int64)

    def copy_in(self, address: int, array: np.ndarray, stream: int) -> None:
        pass

    copy_pinned = copy_in

    def copy_out(self, array: np.ndarray, address: int, stream: int) -> None:
        pass

    def copy(self, into: int, source: int, size: int, stream: int) -> None:
        pass

    def zero(self, address: int, size: int, stream: int) -> None:
        pass

    def wait(self, stream: int) -> None:
        pass

    def is_capturing(self, stream: int) -> bool:
        return False

    def free_memory(self) -> int:
        return 1 << 62

    def stream(self) -> Any:
        return SimpleNamespace(handle=0)

    def event(self, timed: bool = False) -> Event:
        return Event()

    def replay(self, stream: int, run: Callable[[], None]) -> Any:
        return SimpleNamespace(launch=run)


# The device that replaces every other one in this context.
_current: ContextVar[RehearsedGpu | None] = ContextVar("fastopt_rehearsal", default=None)


def rehearsed() -> RehearsedGpu | None:
    """Return the device of a rehearsal, while `rehearsing` is open; else None."""
    return _current.get()


@contextlib.contextmanager
def rehearsing(capability: tuple[int, int]) -> Iterator[dict[Any, None]]:
    """While open, have the backend "cuda" work on such a device; give the kernels that were launched so far."""
    gpu = RehearsedGpu(capability)
    token = _current.set(gpu)
    try:
        yield gpu.kernels
    finally:
        _current.reset(token)
