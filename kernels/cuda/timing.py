"""How long the device takes, by its own clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .compile import SIMULATED
from .driver import asked, check, ffi, library


class Timer:
    """Two events of a device."""

    def __init__(self, gpu: Any) -> None:
        self.gpu, self.driver = gpu, library()
        with gpu.active():
            self.start, self.end = (
                ffi.gc(asked("void *", self.driver.cuEventCreate, 0), self.driver.cuEventDestroy_v2) for _ in range(2)
            )

    def seconds(self, run: Callable[[], None], stream: int) -> float:
        """Of what `run` gives to the stream. Waits for it."""
        where = ffi.cast("void *", stream)
        with self.gpu.active():
            check(self.driver.cuEventRecord(self.start, where))
            run()
            check(self.driver.cuEventRecord(self.end, where))
            check(self.driver.cuEventSynchronize(self.end))
            return float(asked("float", self.driver.cuEventElapsedTime, self.start, self.end)) / 1e3


def timer_of(gpu: Any) -> Any:
    """A timer of a device; under Numba's simulator, the host's clock."""
    if SIMULATED:
        from .simulator import Timer as Simulated

        return Simulated(gpu)
    return Timer(gpu)
