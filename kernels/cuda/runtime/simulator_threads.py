"""Threads of a kernel under Numba's simulator: one after the other, each as far as the next barrier.

Numba's own way is to start them all and to ask again and again whether they have come to a barrier. That asking takes
nine tenths of the time, and the order is chance: of two threads that come to `cuda.shared.array` at once, each may make
an array of its own. Here there is no chance, so a kernel gives the same bits each time, and races go unseen either way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from numba.cuda.simulator.kernelapi import Dim3, FakeCUDAModule, swapped_cuda_module

from .compile import simulated_modules


class Abandoned(Exception):
    """What a thread at a barrier is told where another has failed."""


class Thread(threading.Thread):
    """One thread of each block in turn; what Numba's functions for kernels ask the current thread for is here."""

    def __init__(self, body: Callable[[], None], index: int, blocks: int) -> None:
        super().__init__(daemon=True)
        self.threadIdx, self.blockIdx, self.thread_id = Dim3(index, 0, 0), Dim3(0, 0, 0), index
        self.failure: BaseException | None = None
        self.at_end = False
        self._body, self._blocks, self._abandoned = body, blocks, False
        self._mine, self._back = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        for block in range(self._blocks):
            self._mine.acquire()
            self.blockIdx = Dim3(block, 0, 0)
            try:
                if not self._abandoned:
                    self._body()
            except Abandoned:
                pass
            except Exception as failure:  # for the caller's thread to raise
                self.failure = failure
            self.at_end = True
            self._back.release()

    def turn(self) -> None:
        """Run as far as the next barrier or the end of the block."""
        self.at_end = False
        self._mine.release()
        self._back.acquire()

    def syncthreads(self) -> None:
        self._back.release()
        self._mine.acquire()
        if self._abandoned:
            raise Abandoned

    def abandon(self) -> None:
        """Leave what is left of all blocks undone."""
        self._abandoned = True
        while self.is_alive():
            self._mine.release()
            self.join(0.01)


def run(kernel: Callable[..., None], blocks: int, count: int, *args: Any, shared: int = 0) -> None:
    """Every block of a grid, each of `count` threads and `shared` bytes; raises what a thread raises."""
    fake = FakeCUDAModule((blocks, 1, 1), (count, 1, 1), shared)
    with contextlib.ExitStack() as stack:
        for function in (kernel, *simulated_modules.values()):  # in each module `cuda` becomes the simulated one
            stack.enter_context(swapped_cuda_module(function, fake))
        threads = [Thread(lambda: kernel(*args), index, blocks) for index in range(count)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(blocks):
                left = threads
                while left:
                    for thread in left:
                        thread.turn()
                        if thread.failure is not None:
                            raise thread.failure
                    left = [thread for thread in left if not thread.at_end]
        except BaseException:
            for thread in threads:
                thread.abandon()
            raise
        for thread in threads:
            thread.join()
