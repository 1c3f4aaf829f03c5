"""All checks and figures of a GPU in one command, for a machine that is available for minutes.

python -m fastopt.benchmarks.cuda.survey --budget SECONDS --out DIR [--only STAGE] [--resume] [--retry] [--rehearse]
python -m fastopt.benchmarks.cuda.survey --page DIR

Stages come in the order of their importance: facts, smoke checks, warm-up, the figures of `goals.py`, tests, suites of
benchmarks, compute-sanitizer. Each is a process with a limit of time; whatever becomes of it, the next one comes. DIR
has a record of each as soon as it ends (survey.jsonl), what they printed (logs.tar), a page (survey.md), and what
benchmarks have measured (benchmarks.json, for `fastopt report`). The verdict is the last that is printed.

This process never touches CUDA: nothing that happens to a device happens to it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fastopt.benchmarks.cuda import page, processes
from fastopt.benchmarks.cuda.child import LIMIT, RECORDS, REHEARSAL, RESULT
from fastopt.benchmarks.cuda.records import Folder, read
from fastopt.benchmarks.cuda.stages import DONE, GOOD, Stage, outcome, selected, stages

RESERVE = 6.0  # seconds of the budget for the page, and for processes that are slow to be killed
START = time.monotonic()
OF_ALL = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}  # output is not buffered, and crashes print their stacks


class Survey:
    """Runs stages, and keeps their records in a folder."""

    def __init__(self, folder: Folder, budget: float, rehearsal: bool, start: float | None = None) -> None:
        start = START if start is None else start
        self.folder, self.rehearsal, self.until = folder, rehearsal, start + budget - RESERVE
        self._lock = threading.Lock()

    def left(self) -> float:
        """Seconds that are left for stages."""
        return self.until - time.monotonic()

    def run(self, some: Sequence[Stage], jobs: int) -> None:
        """Run the stages one after the other, `jobs` at a time where they allow it."""
        for together, group in groupby(some, lambda stage: stage.side_by_side or self.rehearsal):
            with ThreadPoolExecutor(jobs if together else 1) as pool:
                for future in [pool.submit(self.one, stage) for stage in group]:
                    future.result()
            self.page()

    def page(self) -> None:
        """Write the page; an error in it does not end the survey, for it can be made again."""
        try:
            page.write(self.folder)
        except Exception:
            traceback.print_exc()

    def one(self, stage: Stage) -> None:
        """Run a stage if there is time for it, and record its outcome."""
        left = self.left()
        if processes.stopping():
            return self._record(stage, "not run", "the survey was stopped", 0.0)
        if left < stage.least:
            return self._record(stage, "not run", "no time", 0.0)
        with tempfile.TemporaryDirectory(prefix="fastopt-survey-", ignore_cleanup_errors=True) as room:
            result = Path(room, "result.json")
            limit = min(stage.limit, left)
            environment = {**OF_ALL, RESULT: str(result), RECORDS: str(self.folder.records), LIMIT: str(limit)}
            environment |= {**({REHEARSAL: "1"} if self.rehearsal else {}), **stage.environment}
            ended = processes.run(stage.command, limit, environment)
            told = _told(result)
        status, line = outcome(stage, ended, told, limit < stage.limit)
        if processes.stopping():
            status, line = "not run", "the survey was stopped"
        data = {name: value for name, value in (told or {}).items() if name not in ("status", "line")}
        return self._record(stage, status, line, ended.seconds, data, ended.output)

    def _record(self, stage: Stage, status: str, line: str, seconds: float, data: Any = None, log: bytes = b"") -> None:
        record = {"stage": stage.name, "status": status, "seconds": round(seconds, 2), "line": line, "data": data or {}}
        try:
            self.folder.add(record, log)
        except OSError as error:  # a full disk, say
            line = f"{line} [cannot be kept: {error}]"
        with self._lock:
            print(f"{status:<9} {seconds:6.1f} s  {stage.name:<24} {line}"[: page.WIDTH], flush=True)


def _told(path: Path) -> dict[str, Any] | None:
    """Return the report of a stage; None: an incomplete one."""
    if not path.exists():
        return {}
    found = read(path)
    return found[0] if found else None


# ---------------------------------------------------------------- the command
def parser() -> argparse.ArgumentParser:
    name, form = "python -m fastopt.benchmarks.cuda.survey", argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(prog=name, description=__doc__, formatter_class=form, allow_abbrev=False)
    add = made.add_argument
    add("--budget", type=_seconds, metavar="SECONDS", help="for all of it: stages that do not fit are left out")
    add("--out", metavar="DIR", help="the folder for what comes of it")
    add("--only", action="append", default=[], metavar="STAGE", help="this stage, or group, alone; may be repeated")
    add("--resume", action="store_true", help="leave out what DIR has already")
    add("--retry", action="store_true", help="with --resume: but not what failed")
    add("--rehearse", action="store_true", help="everything but the device: each stage says that there is none")
    add("--jobs", type=int, metavar="N", help="stages at once, of those in which nothing is timed")
    add("--list", action="store_true", help="list the stages and exit")
    add("--page", metavar="DIR", help="make the page of DIR again, print its verdict, and exit")
    return made


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0; got {text!r}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 if a stage failed, 2 for wrong arguments."""
    made = parser()
    given = made.parse_args(arguments)
    if given.page is not None:
        return _page(made, Folder(given.page))
    try:
        some = selected(stages(given.rehearse), given.only)
    except ValueError as error:
        made.error(str(error))
    if given.list:
        print("\n".join(f"{stage.name:<24} at most {stage.limit:.0f} s" for stage in some))
        return 0
    if given.budget is None or given.out is None:
        made.error("--budget and --out are needed")
    if given.retry and not given.resume:
        made.error("--retry needs --resume")
    if given.jobs is not None and given.jobs < 1:
        made.error(f"--jobs must be at least 1; got {given.jobs}")
    folder = Folder(given.out)
    try:
        folder.make()
        before = folder.latest()
    except OSError as error:
        made.error(f"--out {given.out}: {error}")
    if before and not (given.resume or given.only):
        made.error(f"{given.out} has a survey already: --resume goes on with it")
    if given.resume:
        again = GOOD if given.retry else DONE
        some = [stage for stage in some if stage.always or before.get(stage.name, {}).get("status") not in again]
    jobs = given.jobs or min(6, os.cpu_count() or 1)
    return _run(Survey(folder, given.budget, given.rehearse), some, jobs)


def _run(survey: Survey, some: Sequence[Stage], jobs: int) -> int:
    def stop(number: int, frame: FrameType | None) -> NoReturn:
        processes.stop_all()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        survey.run(some, jobs)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    survey.page()
    print(page.verdict(survey.folder), flush=True)
    found = survey.folder.latest()
    good = (*GOOD, "no device") if survey.rehearsal else GOOD
    statuses = [found.get(stage.name, {}).get("status") for stage in some]
    return int(processes.stopping() or any(status not in good for status in statuses))


def _page(made: argparse.ArgumentParser, folder: Folder) -> int:
    if not folder.latest():
        made.error(f"{folder.path} has no records of a survey: {folder.records} is missing or empty")
    page.write(folder)
    print(page.verdict(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
