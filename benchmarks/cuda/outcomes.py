"""A pytest plugin that tells, as tests go by, how many have passed and which have failed: nothing is lost in a kill."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

import pytest

from fastopt.benchmarks.cuda.child import RECORDS, tell
from fastopt.benchmarks.cuda.records import append

MOMENT = 0.5  # seconds between two times that counts are told
MOST = 40  # failures that are told by name
LONGEST = 300  # characters of what is wrong


class Outcomes:
    """Counts of this session."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()  # of tests and modules that were skipped
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
        """Tell how it ended."""
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
    return "PYTEST_XDIST_WORKER" in os.environ  # whose reports its master gets as well


def pytest_runtest_logreport(report: Any) -> None:
    if _worker():
        return
    if report.when == "call" or report.outcome != "passed":
        # Of a worker that has gone, the test that it was at has failed, whenever ("???").
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
    """Return what is wrong, or why a test was skipped, in one line."""
    found = report.longrepr
    if isinstance(found, tuple):
        found = found[2]
    elif crash := getattr(found, "reprcrash", None):
        found = crash.message
    return " ".join(str(found or "").removeprefix("Skipped: ").split())[:LONGEST]
