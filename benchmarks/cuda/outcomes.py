"""A pytest plugin that reports passed and failed tests while they run, so that a kill loses nothing.

A test that ended its worker (a crash, a spoilt context, a time limit) is not run again. By itself pytest-xdist gives it
to the next worker of the file, which it ends as well, until no worker may be replaced any more.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastopt.benchmarks.cuda.child import RECORDS, tell
from fastopt.benchmarks.cuda.records import append

STARTED = "FASTOPT_SURVEY_STARTED"  # environment variable: file with the tests that workers have begun and ended
BEGUN, ENDED, WHY = "begun", "ended", "why"
MOMENT = 0.5  # seconds between two reports of counts
MOST = 40  # failures that are reported by name
LONGEST = 300  # characters of an error


class Outcomes:
    """Counts and failures of this session."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()  # reasons of skipped tests and modules
        self.failures: list[dict[str, str]] = []
        self.collected, self.told = 0, 0.0

    def add(self, outcome: str, name: str, what: str) -> None:
        """Count a test, or a module that could not be collected."""
        self.counts[outcome] += 1
        if outcome == "skipped":
            self.reasons[what] += 1
        if outcome in ("failed", "error") and len(self.failures) < MOST:
            self.failures.append({"test": name, "what": what})
            if path := os.environ.get(RECORDS):
                append(path, {"failure": name, "what": what})
        if time.monotonic() - self.told > MOMENT:
            self.tell()

    def line(self) -> str:
        words = [f"{count} {outcome}" for outcome, count in self.counts.items() if count]
        return ", ".join(words) or "no tests"

    def tell(self, **more: Any) -> None:
        self.told = time.monotonic()
        tell(line=self.line(), counts=dict(self.counts), failures=self.failures, **more)

    def finish(self, collect_only: bool) -> None:
        """Report the end of the session."""
        bad = self.counts["failed"] + self.counts["error"]
        ran = bad + self.counts["passed"]
        if bad:
            self.tell(status="failed")
        elif ran:
            self.tell(status="passed")
        elif self.reasons:
            reason = self.reasons.most_common(1)[0][0]
            self.tell(status="no device" if _lacks_device(reason) else "skipped")
            tell(line=reason)
        else:
            self.tell(status="no device" if collect_only else "failed")
            tell(line=f"{self.collected} tests collected, none run")


def _lacks_device(reason: str) -> bool:
    return "the backend 'cuda'" in reason or "GPU" in reason or "simulat" in reason


outcomes = Outcomes()


def _worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ  # a worker, whose master gets the same reports


def pytest_configure() -> None:
    if not _worker():  # workers, which start later, inherit the variable
        handle, os.environ[STARTED] = tempfile.mkstemp(prefix="fastopt-tests-")
        os.close(handle)


def pytest_unconfigure() -> None:
    if not _worker():
        Path(os.environ.pop(STARTED)).unlink(missing_ok=True)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note the begin and end of each test; skip one that has begun before and never ended."""
    if not _worker():
        return (yield)
    path = os.environ[STARTED]
    lines = Counter(Path(path).read_text(encoding="utf-8").splitlines())
    if lines[f"{BEGUN} {item.nodeid}"] > lines[f"{ENDED} {item.nodeid}"]:
        item.add_marker(pytest.mark.skip(reason="it has ended a worker: see there"))
    _note(path, f"{BEGUN} {item.nodeid}")
    found = yield
    _note(path, f"{ENDED} {item.nodeid}")
    return found


def keep_reason(test: str, reason: str) -> None:
    """Report why a test is about to end its worker, whose own output is lost."""
    if path := os.environ.get(STARTED):
        _note(path, f"{WHY} {test} {' '.join(reason.split())}")


def _reason(test: str) -> str:
    path, start = os.environ.get(STARTED), f"{WHY} {test} "
    lines = Path(path).read_text(encoding="utf-8").splitlines() if path else []
    return next((line.removeprefix(start) for line in lines if line.startswith(start)), "")


def _note(path: str, line: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def pytest_runtest_logreport(report: Any) -> None:
    if _worker():
        return
    if report.when == "call" or report.outcome != "passed":
        # A worker's last test has failed, at an unknown moment ("???").
        outcome = "error" if report.failed and report.when in ("setup", "teardown") else report.outcome
        outcomes.add(outcome, report.nodeid, _what(report))


def pytest_collectreport(report: Any) -> None:
    if not _worker() and report.outcome != "passed":
        outcomes.add("error" if report.failed else "skipped", report.nodeid, _what(report))


def pytest_collection_finish(session: pytest.Session) -> None:
    outcomes.collected = len(session.items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _worker():
        outcomes.finish(bool(session.config.option.collectonly))


def _what(report: Any) -> str:
    """Return the error, or the reason of a skip, in one line."""
    found = report.longrepr
    if isinstance(found, tuple):
        found = found[2]
    elif crash := getattr(found, "reprcrash", None):
        found = crash.message
    elif told := [line[1:] for line in str(found or "").splitlines() if line.startswith("E ")]:
        found = " ".join(told)  # of a module that cannot be imported, say
    elif report.when == "???" and (reason := _reason(report.nodeid)):
        found = f"{reason}: {found}"
    return " ".join(str(found or "").removeprefix("Skipped: ").split())[:LONGEST]
