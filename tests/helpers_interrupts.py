"""Interrupts for tests: also where pytest itself runs with SIGINT ignored, as behind `pytest &`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HANDLER = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


@contextmanager
def handled(handler: Callable[..., Any] = signal.default_int_handler) -> Iterator[None]:
    """While open, SIGINT is handled by `handler`."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def press() -> None:
    """Do what Ctrl-C does in the main thread: call the handler of the moment. No signal goes round in the process."""
    handler = signal.getsignal(signal.SIGINT)
    assert callable(handler)
    handler(signal.SIGINT, None)


def start(program: str, *arguments: str, cache: Path | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start a Python program, in which Ctrl-C is a KeyboardInterrupt, in a session of its own."""
    environment = dict(os.environ)
    if cache is not None:
        environment["FASTOPT_CACHE_DIR"] = str(cache)
    return subprocess.Popen(
        [sys.executable, "-c", HANDLER + program, *arguments], env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout: float = 120.0) -> tuple[int, str, str]:
    """Wait for a program and return (status, stdout, stderr); end it where it hangs, which is a failure."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it did not end within {timeout} s:\n{out}\n{err}") from None
    return process.returncode, out, err
