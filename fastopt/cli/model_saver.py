"""Saving of the model at the end of `fastopt train`, also after Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

from ..kernels.interrupts import interrupts_held

INTERRUPTED, TERMINATED = 130, 143  # exit statuses: 128 and the signal's number


class ModelSaver:
    """Saves the model of `contestant` to the file `path`, or nowhere if that is None."""

    def __init__(self, contestant: Any, path: str | None) -> None:
        self._contestant, self._path = contestant, path
        self._terminated = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """While open, SIGTERM interrupts as Ctrl-C does: batch jobs and containers are ended by it."""
        before = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
            yield
            return

        def terminate(number: int, frame: FrameType | None) -> None:
            self._terminated = True
            interrupt = signal.getsignal(signal.SIGINT)
            if not callable(interrupt):
                raise KeyboardInterrupt
            interrupt(number, frame)  # which may be held for a moment

        signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def save(self) -> None:
        """Write the model, if it is to be saved; an interrupt waits until the file is whole."""
        if self._path is not None:
            with self._interrupts_held():
                self._contestant.product().save(self._path)

    def save_after_interrupt(self) -> int:
        """Save the best weights so far, or the last ones if none are kept; report it and return the exit status.

        Nothing is written before the first epoch has ended: an older model is worth more than an untrained one.
        """
        model, status = self._contestant.model, TERMINATED if self._terminated else INTERRUPTED
        reported = False
        try:
            with self._interrupts_held():
                how = "terminated" if self._terminated else "interrupted"
                done = f"{model.epochs_done} of {self._contestant.experiment.epochs} epochs"
                print(f"fastopt: {how} after {done}{self._save_best()}", file=sys.stderr)
                reported = True
        except KeyboardInterrupt:  # a further one, which has waited
            if not reported:
                raise
        return status

    def _save_best(self) -> str:
        """Save, and return the rest of the report's sentence."""
        if self._path is None:
            return ""
        if not self._contestant.model.epochs_done:
            return f"; no epoch is done, so nothing is saved in {self._path}"
        best = self._contestant.restore_best()
        self.save()
        weights = "what was trained so far is" if best is None else f"the best weights, those of epoch {best}, are"
        return f"; {weights} saved in {self._path}"

    def _interrupts_held(self) -> AbstractContextManager[Any]:
        """Hold interrupts back while a file is written, but not for a pipe, whose reader may never come."""
        is_file = self._path is None or os.path.isfile(self._path) or not os.path.exists(self._path)
        return interrupts_held() if is_file else nullcontext()
