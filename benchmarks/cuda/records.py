"""Records of a survey: lines of JSON that are on the disk as soon as they are made, and one archive of logs.

    folder = Folder("out")
    folder.add({"stage": "facts", "status": "passed", "seconds": 1.5, "line": "one GPU", "data": {}})
    folder.latest()["facts"]["status"]

Whatever kills a survey, the lines that were written stay. A line that was cut off is passed over when they are read.
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
LEFT_OUT = "not run"  # the status of a stage that there was no time for
MOST_LOGS = 16_000_000  # bytes of the archive, its end included
MOST_LOG = 256_000  # bytes of a log; what runs keeps no more
BLOCK = 10_240  # bytes that an archive is filled up to


def append(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Add a line to a file, in one piece, and have it on the disk before this returns."""
    line = json.dumps(record, default=str).encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line  # what stands there was cut off
        while line:
            line = line[os.write(handle, line) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the records of a file, without those that were cut off; none where there is no file."""
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
    """Folder that a survey leaves behind: records, logs, a page. Threads may share it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()

    @property
    def records(self) -> Path:
        return self.path / NAME

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def add(self, record: dict[str, Any], log: bytes = b"") -> None:
        """Add the record of a stage, and what it printed to the archive."""
        with self._lock:
            append(self.records, {**record, "when": time.strftime("%Y-%m-%d %H:%M:%S")})
            if log:
                _archive(self.path / LOGS, f"{record['stage'].replace('/', '-')}.log", log)

    def latest(self) -> dict[str, dict[str, Any]]:
        """Return the last record of every stage, in the order in which stages were first recorded.

        That a stage was left out, later on, does not count where it has run before.
        """
        found: dict[str, dict[str, Any]] = {}
        for record in read(self.records):
            stage, status = record.get("stage"), record.get("status")
            if isinstance(stage, str) and isinstance(status, str) and not (status == LEFT_OUT and stage in found):
                found[stage] = record
        return found

    def benchmarks(self) -> list[dict[str, Any]]:
        """Return what benchmarks have noted, the last of each name."""
        found = {}
        for record in read(self.records):
            noted = record.get("benchmark")
            if isinstance(noted, dict):
                found[str(noted.get("fullname"))] = noted
        return list(found.values())

    def write(self, name: str, text: str) -> Path:
        """Write a file, all of it or nothing."""
        path = self.path / name
        beside = path.with_suffix(f"{path.suffix}.part")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
        return path


# ---------------------------------------------------------------- logs
def _archive(path: Path, name: str, log: bytes) -> None:
    """Add a log to the archive; where it is full, nothing."""
    room = MOST_LOGS - (path.stat().st_size if path.exists() else 0) - 2 * BLOCK
    log = shortened(log, min(MOST_LOG, room))
    if not log:
        return
    try:
        _put(path, name, log)
    except (tarfile.TarError, EOFError):  # the archive was cut off
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


def shortened(log: bytes, most: int) -> bytes:
    """Return the beginning and the end of a log, and how much is missing between them; nothing where there is no room.

    >>> shortened(b"a" * 500 + b"z" * 500, 200)[-4:]
    b'zzzz'
    """
    if len(log) <= most:
        return log
    note = f"\n[... {len(log)} bytes in all ...]\n".encode()
    if most < 2 * len(note):
        return b""
    first = (most - len(note)) // 4
    return log[:first] + note + log[len(log) - (most - len(note) - first) :]
