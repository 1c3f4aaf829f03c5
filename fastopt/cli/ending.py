"""The end of a training by `fastopt train`: its model is saved, also after Ctrl-C or SIGTERM."""

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


class Ending:
    """Saves the model of `contestant` in the file `path`; None: nowhere."""

    def __init__(self, contestant: Any, path: str | None) -> None:
        self._contestant, self._path = contestant, path
        self._terminated = False

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """While open, SIGTERM, which ends batch jobs and containers, does what Ctrl-C does."""
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
        """Write the model, if it is to be saved; an interrupt waits for the end of that."""
        if self._path is not None:
            with self._held():
                self._contestant.model.save(self._path)

    def interrupted(self) -> int:
        """Save the best weights so far, or the last where none count as best; say so and return the exit status.

        Nothing is written before the end of the first epoch: an older model is worth more than an untrained one.
        """
        model, status = self._contestant.model, TERMINATED if self._terminated else INTERRUPTED
        said = False
        try:
            with self._held():
                how = "terminated" if self._terminated else "interrupted"
                what = f"{how} after {model.epochs_done} of {self._contestant.experiment.epochs} epochs{self._saved()}"
                print(f"fastopt: {what}", file=sys.stderr)
                said = True
        except KeyboardInterrupt:  # a further one, which has waited
            if not said:
                raise
        return status

    def _saved(self) -> str:
        if self._path is None:
            return ""
        if not self._contestant.model.epochs_done:
            return f"; no epoch is done, so nothing is saved in {self._path}"
        best = self._contestant.take_best()
        self.save()
        what = "what was trained so far is" if best is None else f"the best weights, those of epoch {best}, are"
        return f"; {what} saved in {self._path}"

    def _held(self) -> AbstractContextManager[Any]:
        """Hold interrupts back while the file is written, but not for a pipe: who knows when somebody reads from it."""
        whole = self._path is None or os.path.isfile(self._path) or not os.path.exists(self._path)
        return interrupts_held() if whole else nullcontext()
