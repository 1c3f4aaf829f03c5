"""Threads of a kernel under Numba's simulator: one after the other, each as far as the next barrier.

Numba itself starts them all, and polls them for having come to a barrier. Polling takes nine tenths of the time, and
the order is chance: of two threads that come to `cuda.shared.array` at once, each may make an array of its own. Here
the order is fixed, so a kernel gives the same bits each time. Races go unseen either way.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from numba.cuda.simulator.kernelapi import Dim3, FakeCUDAModule, swapped_cuda_module

from .compile import simulated_modules


class AbandonedError(Exception):
    """Raised in a thread at a barrier if another one has failed."""


class Thread(threading.Thread):
    """One thread of each block in turn, with the attributes that Numba's functions for kernels read."""

    def __init__(self, body: Callable[[], None], index: int, blocks: int) -> None:
        super().__init__(daemon=True)
        self.threadIdx, self.blockIdx, self.thread_id = Dim3(index, 0, 0), Dim3(0, 0, 0), index
        self.failure: BaseException | None = None
        self.at_end = False
        self._body, self._blocks, self._abandoned = body, blocks, False
        self._may_run, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        for block in range(self._blocks):
            self._may_run.acquire()
            self.blockIdx = Dim3(block, 0, 0)
            try:
                if not self._abandoned:
                    self._body()
            except AbandonedError:
                pass
            except Exception as failure:  # which the caller's thread raises
                self.failure = failure
            self.at_end = True
            self._has_stopped.release()

    def run_to_barrier(self) -> None:
        """Run as far as the next barrier or the end of the block."""
        self.at_end = False
        self._may_run.release()
        self._has_stopped.acquire()

    def syncthreads(self) -> None:
        self._has_stopped.release()
        self._may_run.acquire()
        if self._abandoned:
            raise AbandonedError

    def abandon(self) -> None:
        """End the thread without doing the rest of its blocks."""
        self._abandoned = True
        while self.is_alive():
            self._may_run.release()
            self.join(0.01)


def run(kernel: Callable[..., None], blocks: int, count: int, *args: Any, shared: int = 0) -> None:
    """Run every block of a grid, each of `count` threads and `shared` bytes; raise what a thread raises."""
    fake = FakeCUDAModule((blocks, 1, 1), (count, 1, 1), shared)
    with contextlib.ExitStack() as stack:
        for function in (kernel, *simulated_modules.values()):  # in each module `cuda` becomes the simulated one
            stack.enter_context(swapped_cuda_module(function, fake))
        threads = [Thread(lambda: kernel(*args), index, blocks) for index in range(count)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(blocks):
                running = threads
                while running:
                    for thread in running:
                        thread.run_to_barrier()
                        if thread.failure is not None:
                            raise thread.failure
                    running = [thread for thread in running if not thread.at_end]
        except BaseException:
            for thread in threads:
                thread.abandon()
            raise
        for thread in threads:
            thread.join()
