"""File of a study: a line of JSON for its data and settings, and one for each record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from .. import _files
from ._records import Run, Timing

KEY, FORMAT = "study", 1  # of the header
KINDS: dict[str, Any] = {"run": Run, "time": Timing}


class Journal:
    """Records of a study, kept in a file if there is a path.

    Lines are appended by one write each, and are on the disk before `add` returns. A process that is killed meanwhile
    leaves half a line at most, which is the last one: it is cut off when the study goes on.
    """

    def __init__(self, path: str | None, header: Mapping[str, Any], resume: bool = False) -> None:
        self.path, self.header = path, dict(header)
        self.runs: list[Run] = []
        self.timings: list[Timing] = []
        if path is None:
            return
        _files.check_writable("storage", path)
        if os.path.exists(path) and os.path.getsize(path):
            if not resume:
                raise ValueError(f"{path} has a study already: go on with it by resume=True (--resume)")
            before, self.runs, self.timings, length = read(path)
            _check_same(path, before, self.header)
            os.truncate(path, length)
        else:
            _files.write(path, _line({KEY: FORMAT, **self.header}))

    def add(self, records: Iterable[Run | Timing]) -> None:
        """Keep some records."""
        lines = []
        for record in records:
            kind = "run" if isinstance(record, Run) else "time"
            (self.runs if isinstance(record, Run) else self.timings).append(record)  # type: ignore[arg-type]
            lines.append(_line({kind: record._asdict()}))
        if self.path is None or not lines:
            return
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        try:
            for line in lines:
                os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value) + "\n").encode()


def _record(kind: str, fields: Mapping[str, Any]) -> Any:
    """A record of its fields; KeyError and TypeError for others."""
    return KINDS[kind](**{**fields, "layers": tuple(fields["layers"])})


def read(path: str) -> tuple[dict[str, Any], list[Run], list[Timing], int]:
    """The header, the records, and the length of the whole lines of a file; ValueError for a file of another kind."""
    content = _files.read(path, "storage")
    length = content.rfind(b"\n") + 1
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    number, lines = 1, content[:length].splitlines()
    try:
        header = json.loads(lines[0])
        if header.pop(KEY) != FORMAT:
            raise ValueError("it is of a newer version")
        for line in lines[1:]:
            number += 1
            ((kind, fields),) = json.loads(line).items()
            found[kind].append(_record(kind, fields))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} must be the file of a study; line {number} is not of one: {error}") from None
    return header, found["run"], found["time"], length


def _check_same(path: str, before: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Raise ValueError where the file is of other data or settings."""
    now = json.loads(json.dumps(header))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{path} is of another study: its {name} is {before.get(name)!r}, not {now.get(name)!r}; give another"
                " file"
            )
