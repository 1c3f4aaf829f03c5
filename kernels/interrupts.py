"""Interrupts held back until nothing is half done."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # of signal, whose enumerations take 9 us a context
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Context that holds SIGINT back until its end, or until the function that is its value is called.

    None is lost, whatever is raised inside. Outside Python's main thread, or if the handler is not a Python function,
    it does nothing. Of nested contexts the outermost decides.
    """
    handler = _signal.getsignal(_signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield lambda: None
        return
    pending: list[tuple[int, FrameType | None]] = []

    def check() -> None:
        while pending:
            handler(*pending.pop(0))

    _signal.signal(_signal.SIGINT, lambda number, frame: pending.append((number, frame)))
    try:
        yield check
    finally:
        _signal.signal(_signal.SIGINT, handler)
        check()
