"""The stages of a survey, in their order: commands, time limits, and the reading of their outcomes."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastopt.benchmarks.cuda.goals import FIGURES
from fastopt.benchmarks.cuda.processes import Ended, signal_name
from fastopt.benchmarks.cuda.smoke import CHECKS
from fastopt.cli import bench

PACKAGE = "fastopt.benchmarks.cuda"
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")  # of compute-sanitizer
# The most informative suites for their time come first.
SUITES = ("limits", "steps", "networks", "small_networks", "kernels", "updates", "dense")
FIGURE_LIMITS = {"mlp-64": 200}  # seconds of slower suites: torch compiles in them
GOOD = ("passed", "skipped")
DONE = ("passed", "skipped", "failed", "crashed", "timed out")  # statuses that need no further run

Told = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One process; it is not started with less than `least` seconds of the budget."""

    name: str
    command: tuple[str, ...]
    limit: float  # seconds
    least: float
    side_by_side: bool = False  # True: may run at the same time as its neighbours, for nothing is timed in it
    always: bool = False  # True: run again when resumed, for a new machine needs it
    environment: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[Ended, Told], tuple[str, str]] | None = None  # status and line if the process reports none

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line of a module of this package."""
    return (sys.executable, "-m", f"{PACKAGE}.{name}", *arguments)


def stages(rehearsal: bool) -> list[Stage]:
    """Return all stages; in a rehearsal those that take long without a device only begin."""
    found = [Stage("facts", module("facts"), 60, 5, always=True)]
    found += [Stage(f"smoke/{name}", module("smoke", name), 90, 10, side_by_side=True) for name in CHECKS]
    found.append(_warmup(rehearsal))
    found += [Stage(f"figure/{name}", module("headline", name), FIGURE_LIMITS.get(name, 120), 20) for name in FIGURES]
    found.append(_tests(rehearsal))
    found += [_suite(name, rehearsal) for name in ordered_suites()]
    found += [Stage(f"sanitizer/{tool}", module("sanitizer", tool), 120, 30) for tool in TOOLS]
    found.append(Stage("clocks", module("facts", "--clocks"), 30, 2, always=True))
    return found


def selected(known: list[Stage], only: list[str]) -> list[Stage]:
    """Return the stages with these names, or in these groups; ValueError for a name that is none."""
    names = {stage.name for stage in known} | {stage.group for stage in known}
    for name in only:
        if name not in names:
            groups = ", ".join(dict.fromkeys(stage.group for stage in known))
            raise ValueError(f"unknown stage {name!r}; known: {groups}, and what --list lists")
    return [stage for stage in known if not only or {stage.name, stage.group} & set(only)]


# ---------------------------------------------------------------- how a stage ended
def outcome(stage: Stage, ended: Ended, told: Told | None, cut: bool) -> tuple[str, str]:
    """Return the status of a stage that has run, and a line about it.

    told: the report in its file; None: an incomplete one. cut: the survey's time was up before the stage's.
    """
    said = str((told or {}).get("line", "")).strip()
    last = innermost_frame(ended.output) or last_line(ended.output)
    if ended.late:
        stuck = "; it could not be killed" if ended.status is None else ""
        return ("not run" if cut else "timed out"), _joined(f"after {ended.seconds:.0f} s{stuck}", said, last)
    if ended.status is None:
        return "timed out", "it ended, but could not be killed"
    if ended.status < 0:
        return "crashed", _joined(signal_name(ended.status), last, said)
    if told is None:
        return "failed", _joined("left half a record", last)
    if stage.read is not None:
        return stage.read(ended, told)
    status = told.get("status")
    if not isinstance(status, str):
        return ("failed", _joined(f"ended with status {ended.status} and told nothing", last))
    if ended.status and status in (*GOOD, "no device"):
        return "failed", _joined(f"ended with status {ended.status} afterwards", said)
    return status, said


def _joined(*parts: str) -> str:
    return ": ".join(filter(None, parts))


def last_line(output: bytes) -> str:
    """Return the last line of an output that is not empty."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def innermost_frame(output: bytes) -> str:
    """Return the innermost frame of the last stack that Python has printed, of a crash or shortly before a time limit.

    >>> innermost_frame(b'Current thread 0x1 (most recent call first):\\n  File "a.py", line 3 in wait\\n')
    'File "a.py", line 3 in wait'
    """
    found = re.findall(rb"most recent call first\):\n\s*(File [^\n]+)", output)
    return found[-1].decode(errors="replace")[:200] if found else ""


# ---------------------------------------------------------------- warm-up
def _warmup(rehearsal: bool) -> Stage:
    jobs = str(max(1, os.cpu_count() or 1))
    command = (sys.executable, "-m", "fastopt", "warmup", "--backend", "cuda", "--jobs", jobs)
    more = ("--help",) if rehearsal else ()

    def read(ended: Ended, told: Told) -> tuple[str, str]:
        last, text = last_line(ended.output), ended.output.decode(errors="replace")
        if ended.status == 0:
            done = next((line for line in text.splitlines() if " compiled, " in line), last)
            return ("no device", "only the arguments were read") if rehearsal else ("passed", done)
        if re.search(r"unrecognized arguments|invalid choice", text):
            return "skipped", "this fastopt has no `warmup --backend cuda`"
        return "failed", _joined(f"status {ended.status}", last)

    return Stage("warmup", (*command, *more), 200, 15, always=True, read=read)


# ---------------------------------------------------------------- tests and suites, by pytest
def checkout() -> Path | None:
    """Return the folder with the tests: the current one, or the package's; None without tests."""
    beside = Path(__file__).resolve().parents[2]
    return next((place for place in (Path.cwd(), beside) if (place / "tests" / "kernels" / "cuda").is_dir()), None)


def _pytest(ended: Ended, told: Told) -> tuple[str, str]:
    line = str(told.get("line", ""))
    if "status" in told and ended.status in (0, 1, 5):
        return str(told["status"]), line
    return "failed", _joined(f"pytest ended with status {ended.status}", line or last_line(ended.output))


def _tests(rehearsal: bool) -> Stage:
    place = checkout()
    if place is None:
        return Stage("tests", module("facts", "--absent", "tests: run the survey in a checkout"), 30, 2)
    files = gpu_tests(place)
    options = ["-q", "-W", "default", "-m", "gpu and not slow", "--tb=line", "--continue-on-collection-errors"]
    options += ["-p", "no:cacheprovider", "-p", f"{PACKAGE}.outcomes"]
    if find_spec("xdist"):
        options += ["-n", "6", "--dist", "loadfile", "--max-worker-restart", "100"]
    if find_spec("pytest_timeout"):
        options += [
            "--timeout",
            "90",
            "--timeout-method",
            "thread",
        ]  # signals do not interrupt a driver's wait
    options += ["--collect-only"] if rehearsal else []
    command = (sys.executable, "-m", "pytest", f"--rootdir={place}", "-c", str(place / "pyproject.toml"), *options)
    return Stage("tests", (*command, *map(str, files)), 300, 45, read=_pytest)


def gpu_tests(place: Path) -> list[Path]:
    """Return the test files of a checkout with tests for a GPU."""
    files = sorted((place / "tests").rglob("test_*.py"))
    return [file for file in files if "mark.gpu" in file.read_text(encoding="utf-8")]


def ordered_suites() -> list[str]:
    """Return the names of all suites of benchmarks, those of SUITES first."""
    known = bench.suites("cuda")
    return [name for name in SUITES if name in known] + [name for name in known if name not in SUITES]


def _suite(name: str, rehearsal: bool) -> Stage:
    given = argparse.Namespace(json=None, quick=False, only=None, backend="cuda")
    command = bench.command(given, [bench.suites("cuda")[name]])
    command[3:3] = ["-p", f"{PACKAGE}.outcomes", *["--collect-only"] * rehearsal]
    return Stage(f"suite/{name}", tuple(command), 150, 30, read=_pytest)
