"""Streams, events, and launches that are repeated as a CUDA graph."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

from .driver import NOT_READY, CudaError, check, ffi, query

log = logging.getLogger("fastopt")

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: it does not wait for the default stream, nor that one for it
TIMED, NO_TIMING = 0, 2  # CU_EVENT_DEFAULT, CU_EVENT_DISABLE_TIMING
# CU_STREAM_CAPTURE_MODE_RELAXED: in the others, memory that Python happens to free meanwhile would spoil the capture.
RELAXED = 2


class Stream:
    """A stream for one user at a time, whose handle goes back to the device's idle ones with this object.

    Streams are used again, because memory is kept for each one that products ever ran on.
    """

    def __init__(self, gpu: Any) -> None:
        try:
            self.handle = gpu.idle_streams.pop()
        except IndexError:
            with gpu.active():
                made = query("void *", gpu.driver.cuStreamCreate, NON_BLOCKING)
            self.handle = int(ffi.cast("intptr_t", made))
        weakref.finalize(self, gpu.idle_streams.append, self.handle)


class Event:
    """A point in the order of a stream that others can wait for. It counts as reached until it is first recorded.

    timed: the device notes when it is reached.
    """

    def __init__(self, gpu: Any, timed: bool = False) -> None:
        self.driver = gpu.driver
        with gpu.active():
            made = query("void *", self.driver.cuEventCreate, TIMED if timed else NO_TIMING)
        self._event = ffi.gc(made, self.driver.cuEventDestroy_v2)

    def record(self, stream: int) -> None:
        """Put the event after all work that the stream has so far."""
        check(self.driver.cuEventRecord(self._event, ffi.cast("void *", stream)))

    def wait(self) -> None:
        """Wait until the event is reached."""
        check(self.driver.cuEventSynchronize(self._event))

    def reached(self) -> bool:
        """Return True if all work before it is done. Does not wait."""
        code = self.driver.cuEventQuery(self._event)
        if code != NOT_READY:
            check(code)
        return not code

    def since(self, other: Event) -> float:
        """Return the seconds from another event to this one; both are timed, and reached."""
        return float(query("float", self.driver.cuEventElapsedTime, other._event, self._event)) / 1e3

    def before(self, stream: int) -> None:
        """Have work that the stream is given from now on wait for the event."""
        check(self.driver.cuStreamWaitEvent(ffi.cast("void *", stream), self._event, 0))


class Replay:
    """Launches that are given to a stream again and again, with the same arguments every time.

    The first time they are given one by one, which loads their kernels. The second time they are captured, and from
    then on one call of the driver launches all. With FASTOPT_CUDA_GRAPHS=0 they are always given one by one.
    """

    def __init__(self, gpu: Any, stream: int, run: Callable[[], None]) -> None:
        self.driver, self._run, self._stream = gpu.driver, run, ffi.cast("void *", stream)
        self._runs = 0  # that were given one by one
        self._executable: Any = None

    def launch(self) -> None:
        """Give the launches to the stream. If it is interrupted, a part of them may have been given."""
        if self._executable is None and self._runs == 1 and os.environ.get("FASTOPT_CUDA_GRAPHS") != "0":
            try:
                self._executable = self._captured()
            except CudaError as error:
                log.warning("cannot be captured into a CUDA graph, so launches are done one by one: %s", error)
        if self._executable is None:
            self._runs += 1
            self._run()
        else:
            check(self.driver.cuGraphLaunch(self._executable, self._stream))

    def _captured(self) -> Any:
        driver, graph = self.driver, ffi.new("void **")
        check(driver.cuStreamBeginCapture_v2(self._stream, RELAXED))
        try:
            self._run()
        except BaseException:
            driver.cuStreamEndCapture(self._stream, graph)  # which may fail as well, but frees the stream
            if graph[0]:
                driver.cuGraphDestroy(graph[0])
            raise
        check(driver.cuStreamEndCapture(self._stream, graph))
        try:
            executable = query("void *", driver.cuGraphInstantiateWithFlags, graph[0], 0)
        finally:
            driver.cuGraphDestroy(graph[0])
        return ffi.gc(executable, driver.cuGraphExecDestroy)
