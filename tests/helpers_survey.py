"""Surveys of made-up stages: small programs that behave like stages, and records of stages."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from fastopt.benchmarks.cuda.goals import FIGURES
from fastopt.benchmarks.cuda.stages import Stage

TELL = "from fastopt.benchmarks.cuda.child import tell; "
PASS = TELL + "tell(status='passed', line='well')"


def stage(name: str, code: str, limit: float = 30.0, least: float = 0.0, **more: Any) -> Stage:
    """A stage that runs a piece of Python."""
    return Stage(name, (sys.executable, "-c", code), limit, least, **more)


def gone(pid: int, patience: float = 5.0) -> bool:
    """True once a process has ended, if it does so soon."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            if not Path("/proc").is_dir():
                os.kill(pid, 0)
            return True
        time.sleep(0.02)
    return False


def record(name: str, status: str = "passed", line: str = "", **data: Any) -> dict[str, Any]:
    return {"stage": name, "status": status, "seconds": 1.5, "line": line, "data": data}


def measured(factor: float) -> list[dict[str, Any]]:
    """Records of all figures: by this factor better than their goals; below 1, worse."""
    found = []
    for name, figure in FIGURES.items():
        numbers = {}
        for goal in figure.goals:
            better = goal.bound * factor if goal.at_least else goal.bound / factor
            numbers[goal.what] = better if goal.bound else float(factor < 1)
        seconds = {goal.who: 3e-3 for goal in figure.goals} | {"torch-fused": 4.2e-3}
        data = {"measured": numbers, "seconds": seconds, "copy": 3e12, "moved": 2.8e9}
        found.append(record(f"figure/{name}", line="so many ms", **data))
    return found
