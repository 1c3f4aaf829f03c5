"""A stage's side of a survey: its report to the parent process, and the check that there is a device.

A stage reports through a file, so that the output of libraries is never mistaken for a report; what it reported before
it was killed stays.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

RESULT = "FASTOPT_SURVEY_RESULT"  # environment variable: the file of a stage's report
RECORDS = "FASTOPT_BENCH_RECORDS"  # environment variable: the file that benchmarks append their records to
REHEARSAL = "FASTOPT_SURVEY_REHEARSAL"  # environment variable: 1 to try everything but the device
LIMIT = "FASTOPT_SURVEY_LIMIT"  # environment variable: seconds after which a stage is killed
BEFORE = 1.0  # seconds before the end at which the stacks of all threads are printed
LONGEST = 300  # characters of a line

_told: dict[str, Any] = {}


class NoDevice(Exception):
    """No device to run on, or a rehearsal."""


def tell(**facts: Any) -> None:
    """Add to the report of this stage: status, line, and any other JSON values."""
    _told.update(facts)
    path = os.environ.get(RESULT)
    if path:
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            json.dump(_told, file, default=str)
        os.replace(f"{path}.part", path)


def rehearsing() -> bool:
    """True if everything but the device is to be tried."""
    return os.environ.get(REHEARSAL) == "1"


def device() -> Any:
    """Return the first device, or the simulator's. Raises NoDevice; call it after all that needs no device."""
    from fastopt.benchmarks.cuda.device import the_gpu
    from fastopt.kernels.cuda.installation import require
    from fastopt.kernels.cuda.runtime.requirements import simulated

    if not simulated():
        if rehearsing():
            raise NoDevice("a rehearsal")
        try:
            require()
        except ImportError as error:
            raise NoDevice(str(error)) from None
    return the_gpu()


def torch_device(own: bool = True) -> Any:
    """Return torch and the first device. Raises Absent without torch, NoDevice without a device.

    own: the device must be torch's own, so raise Absent under the simulator.
    """
    from fastopt.benchmarks.workloads import Absent

    if find_spec("torch") is None:
        raise Absent("torch is not installed")
    import torch

    from fastopt.kernels.cuda.runtime.requirements import simulated

    gpu = device()
    if simulated() and own:
        raise Absent("needs torch's own device")
    if not simulated() and not torch.cuda.is_available():
        raise NoDevice(f"torch {torch.__version__} has none")
    return torch, gpu


def stage(run: Callable[[], str]) -> int:
    """Run a stage, report its status and line, and return the exit status.

    The stacks of all threads are printed shortly before the time is up, to show where a stage hangs.
    """
    from fastopt.benchmarks.workloads import Absent

    seconds = float(os.environ.get(LIMIT, "0"))
    if seconds > BEFORE:
        faulthandler.dump_traceback_later(seconds - BEFORE)
    try:
        line, status = run(), "passed"
    except NoDevice as reason:
        line, status = str(reason), "no device"
    except Absent as reason:
        line, status = str(reason), "skipped"
    except BaseException as error:
        traceback.print_exc()
        line, status = f"{type(error).__name__}: {error}", "failed"
    line = " ".join(line.split())[:LONGEST]
    tell(status=status, line=line)
    print(f"{status}: {line}", flush=True)
    return int(status == "failed")


def main(run: Callable[[], str]) -> None:
    """Run a stage as a program."""
    sys.exit(stage(run))
