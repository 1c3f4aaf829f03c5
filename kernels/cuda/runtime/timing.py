"""Durations by the device's own clock."""

from __future__ import annotations

from collections.abc import Callable

from .device import Device


class Timer:
    """Stopwatch of two events of a device."""

    def __init__(self, gpu: Device) -> None:
        self.gpu, self.start, self.end = gpu, gpu.event(timed=True), gpu.event(timed=True)

    def seconds(self, run: Callable[[], None], stream: int) -> float:
        """Return the seconds that the launches of `run` take on the stream. Waits for them."""
        with self.gpu.active():
            self.start.record(stream)
            run()
            self.end.record(stream)
            self.end.wait()
            return float(self.end.since(self.start))
