"""Processes with limits of time and output, which end together with all processes that they have started.

A stage may crash, hang, print without end, start processes that outlive it, or wait for a driver that never answers:
its parent goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

MARK = "FASTOPT_SURVEY_PROCESS"  # environment variable that a process and its descendants share
HEAD_BYTES, TAIL_BYTES = 64_000, 190_000  # bytes of the output that are kept of its beginning and of its end
POLL = 0.02  # seconds
PATIENCE = 10.0  # seconds for a killed process to be gone: one may be stuck in a driver
# A group of its own, which can be killed whole. If possible no session of its own: a kill of our session
# must reach it.
GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}

_running: dict[str, subprocess.Popen[bytes]] = {}  # by their marks
_lock = threading.Lock()
_stopping = False


class Ended(NamedTuple):
    """End of a process."""

    status: int | None  # exit status, or minus the number of a signal; None: it could not be killed
    seconds: float
    late: bool  # True: it was killed because its time was up
    output: bytes  # stdout and stderr, shortened


class _Kept:
    """The beginning and the end of an output."""

    def __init__(self) -> None:
        self.first, self.last, self.size = b"", b"", 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        room = HEAD_BYTES - len(self.first)
        self.first, rest = self.first + piece[:room], piece[room:]
        self.last += rest
        if len(self.last) > 2 * TAIL_BYTES:
            self.last = self.last[-TAIL_BYTES:]

    def text(self) -> bytes:
        last = self.last[-TAIL_BYTES:]
        left_out = self.size - len(self.first) - len(last)
        note = f"\n[... {left_out} bytes left out ...]\n".encode() if left_out else b""
        return self.first + note + last


def run(command: Sequence[str], limit: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a command for at most `limit` seconds, then kill all processes that it has started.

    environment: variables in addition to this process's.
    """
    mark, start = uuid.uuid4().hex, time.monotonic()
    own = {**os.environ, **(environment or {}), MARK: mark}
    out, into = os.pipe()
    try:
        with _lock:
            if _stopping:
                return Ended(-signal.SIGINT, 0.0, False, b"")
            process = subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, stdout=into, stderr=into, **GROUP)
            _running[mark] = process
    except OSError as error:  # the command does not exist, say
        os.close(out)
        return Ended(127, time.monotonic() - start, False, str(error).encode())
    finally:
        os.close(into)
    kept, over = _Kept(), threading.Event()
    reader = threading.Thread(target=_read, args=(out, kept, over), daemon=True)
    reader.start()
    late = not _wait(process, start + limit)
    seconds = time.monotonic() - start
    status = _finish(process, mark)
    over.set()
    reader.join(PATIENCE)
    with _lock:
        _running.pop(mark, None)
    return Ended(status, seconds, late, kept.text())


def _read(out: int, kept: _Kept, over: threading.Event) -> None:
    """Read until all writers have closed the pipe, or `over` is set and the pipe is empty."""
    with contextlib.suppress(OSError):
        while True:
            ready, _, _ = select.select([out], [], [], 0.1)
            if ready:
                piece = os.read(out, 1 << 16)
                if not piece:
                    break
                kept.add(piece)
            elif over.is_set():
                break
    os.close(out)


def _wait(process: subprocess.Popen[bytes], until: float) -> bool:
    """Return True once the process has ended, False when its time is up. Its id is not freed yet."""
    while True:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(POLL)


def _finish(process: subprocess.Popen[bytes], mark: str) -> int | None:
    """Kill the process's group, which has its id, and all other processes with its mark."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        status: int | None = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        status = None
    for number in _marked(mark):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(number, signal.SIGKILL)
    return status


def _marked(mark: str) -> list[int]:
    """Return the processes with this mark, also in groups of their own; none without /proc."""
    wanted, found = f"{MARK}={mark}".encode(), []
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) != os.getpid():
                with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                    if wanted in file.read().split(b"\0"):
                        found.append(int(name))
    return found


def stop_all() -> None:
    """Kill all running processes, and start no more."""
    global _stopping
    with _lock:
        _stopping, running = True, list(_running.values())
        for process in running:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)


def stopping() -> bool:
    """Return True after `stop_all`."""
    return _stopping


def signal_name(status: int) -> str:
    """Return the name of the signal in an exit status below 0."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
