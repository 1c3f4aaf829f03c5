"""Parts of a step of `fit(distributed="mpi")`: seconds of pieces, updates and calls of MPI, bytes and messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fastopt.distributed import StepCost, Traffic, _network
from fastopt.kernels.cpu.training.flat_updates import FlatUpdates
from fastopt.kernels.cpu.training.tree_sums import Additions

SUMS = 5  # additions that are timed, after a pass


class Meter:
    """While it is entered, counts the seconds of epochs, by two clock readings a call that it counts.

    pieces, updates: seconds. traffic: of steps alone, without the states that ranks share at the end of a pass.
    """

    def __init__(self) -> None:
        self.pieces = self.updates = 0.0
        self.traffic = Traffic()
        self._epoch: Any = None
        self._sum_seconds: float | None = None
        self._restore: list[tuple[type, str, Any]] = []

    def __enter__(self) -> Meter:
        self.pieces = self.updates = 0.0
        self._wrap(_network._Epoch, "_run_pieces", self._in_pieces)
        self._wrap(FlatUpdates, "update", self._in_updates)
        self._wrap(_network._Epoch, "run", self._in_epoch)
        return self

    def __exit__(self, *error: object) -> None:
        for owner, name, method in self._restore:
            setattr(owner, name, method)
        self._restore.clear()

    def _wrap(self, owner: type, name: str, around: Callable[..., Any]) -> None:
        method = getattr(owner, name)
        self._restore.append((owner, name, method))
        setattr(owner, name, lambda own, *args: around(method, own, *args))

    def _in_pieces(self, method: Callable[..., Any], own: Any, *args: Any) -> Any:
        begun, before = time.perf_counter(), own._exchange.traffic.seconds
        result = method(own, *args)
        self.pieces += time.perf_counter() - begun - (own._exchange.traffic.seconds - before)  # sends within
        return result

    def _in_updates(self, method: Callable[..., Any], own: Any, *args: Any) -> Any:
        begun = time.perf_counter()
        result = method(own, *args)
        self.updates += time.perf_counter() - begun
        return result

    def _in_epoch(self, method: Callable[..., Any], own: Any, *args: Any) -> Any:
        before = own._exchange.traffic
        result = method(own, *args)
        after = own._exchange.traffic
        self.traffic = Traffic(*(b - a for a, b in zip(before, after, strict=True)))
        self._epoch = own
        return result

    def of_step(self, steps: int, seconds: float) -> dict[str, Any]:
        """Bytes, messages and seconds in MPI a step, and its `StepCost`, as a list, which is meant for one rank."""
        exchange, params = self._epoch._exchange, self._epoch._params
        pieces, updates = self.pieces / steps, self.updates / steps
        cost = StepCost(
            pieces=self._epoch._count, pieces_seconds=pieces, update_seconds=updates, sum_seconds=self._sum(),
            fixed_seconds=max(seconds - pieces - updates, 0.0), nbytes=exchange._gradient.nbytes,
            buckets=len(exchange.buckets),
            gathers=sum(len(bucket.units_of(params)) for bucket in exchange.buckets),
        )  # fmt: skip
        return {
            "bytes": self.traffic.sent_bytes / steps, "messages": self.traffic.messages / steps,
            "waiting": self.traffic.seconds / steps, "cost": list(cost),
        }  # fmt: skip

    def _sum(self) -> float:
        """Seconds of adding a gradient to another."""
        if self._sum_seconds is None:
            gradient = self._epoch._exchange._gradient
            addition, times = Additions([(np.zeros_like(gradient), np.zeros_like(gradient))]), []
            for _ in range(SUMS):
                begun = time.perf_counter()
                addition.run()
                times.append(time.perf_counter() - begun)
            self._sum_seconds = float(np.median(times))
        return self._sum_seconds
