"""Records of a survey: lines of JSON that are on the disk as soon as they are made, and one archive of logs.

    folder = Folder("out")
    folder.add({"stage": "facts", "status": "passed", "seconds": 1.5, "line": "one GPU", "data": {}})
    folder.latest()["facts"]["status"]

If a survey is killed, the written lines stay. An incomplete line is skipped when they are read.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME, PAGE, LOGS, BENCHMARKS = "survey.jsonl", "survey.md", "logs.tar", "benchmarks.json"
LEFT_OUT = "not run"  # status of a stage without time to run
MOST_LOGS = 16_000_000  # bytes of the archive, its end included
MOST_LOG = 256_000  # bytes of a log; what runs keeps no more
BLOCK = 10_240  # bytes that an archive is padded to


def append(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Append a line to a file at once, and return when it is on the disk."""
    line = json.dumps(record, default=str).encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line  # the last line is incomplete
        while line:
            line = line[os.write(handle, line) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the complete records of a file; none if the file does not exist."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    return [record for record in map(_parsed, lines) if isinstance(record, dict)]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


class Folder:
    """Output folder of a survey: records, logs, a page. Threads may share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()

    @property
    def records(self) -> Path:
        return self.path / NAME

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def add(self, record: dict[str, Any], log: bytes = b"") -> None:
        """Add the record of a stage, and its output to the archive."""
        with self._lock:
            append(self.records, {**record, "when": time.strftime("%Y-%m-%d %H:%M:%S")})
            if log:
                _archive(self.path / LOGS, f"{record['stage'].replace('/', '-')}.log", log)

    def latest(self) -> dict[str, dict[str, Any]]:
        """Return the last record of every stage, in the order of their first records.

        A record that a stage was left out does not replace that of a run.
        """
        found: dict[str, dict[str, Any]] = {}
        for record in read(self.records):
            stage, status = record.get("stage"), record.get("status")
            if isinstance(stage, str) and isinstance(status, str) and not (status == LEFT_OUT and stage in found):
                found[stage] = record
        return found

    def benchmarks(self) -> list[dict[str, Any]]:
        """Return the last record of every benchmark."""
        found = {}
        for record in read(self.records):
            noted = record.get("benchmark")
            if isinstance(noted, dict):
                found[str(noted.get("fullname"))] = noted
        return list(found.values())

    def write(self, name: str, text: str) -> Path:
        """Write a file atomically."""
        path = self.path / name
        beside = path.with_suffix(f"{path.suffix}.part")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
        return path


# ---------------------------------------------------------------- logs
def _archive(path: Path, name: str, log: bytes) -> None:
    """Add a log to the archive, unless that is full."""
    room = MOST_LOGS - (path.stat().st_size if path.exists() else 0) - 2 * BLOCK
    log = shortened(log, min(MOST_LOG, room))
    if not log:
        return
    try:
        _put(path, name, log)
    except (tarfile.TarError, EOFError):  # the archive is incomplete
        _rewrite(path)
        _put(path, name, log)


def _put(path: Path, name: str, log: bytes) -> None:
    with tarfile.open(path, "a") as archive:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mtime = len(log), int(time.time())
        archive.addfile(entry, io.BytesIO(log))


def _rewrite(path: Path) -> None:
    """Keep the logs that can be read."""
    kept, beside = list(_whole_logs(path)), path.with_suffix(".part")
    beside.unlink(missing_ok=True)
    with tarfile.open(beside, "w") as archive:
        for entry, log in kept:
            archive.addfile(entry, io.BytesIO(log))
    shutil.move(beside, path)


def _whole_logs(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for entry in archive:
                file = archive.extractfile(entry)
                if file is not None:
                    log = file.read()
                    if len(log) == entry.size:
                        yield entry, log
    except (tarfile.TarError, EOFError, OSError):
        return


def shortened(log: bytes, max_bytes: int) -> bytes:
    """Return the beginning and the end of a log, with the number of bytes left out; empty if `max_bytes` is too small.

    >>> shortened(b"a" * 500 + b"z" * 500, 200)[-4:]
    b'zzzz'
    """
    if len(log) <= max_bytes:
        return log
    note = f"\n[... {len(log)} bytes in all ...]\n".encode()
    if max_bytes < 2 * len(note):
        return b""
    first = (max_bytes - len(note)) // 4
    return log[:first] + note + log[len(log) - (max_bytes - len(note) - first) :]
