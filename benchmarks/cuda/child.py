"""The side of a survey's stage: what it tells whoever runs it, and where it finds out that there is no device.

A stage tells by a file, so that nothing that libraries print can be taken for it; what it told before it was killed is
there all the same.
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

RESULT = "FASTOPT_SURVEY_RESULT"  # environment variable: the file that a stage tells by
RECORDS = "FASTOPT_BENCH_RECORDS"  # environment variable: the file that benchmarks append their records to
REHEARSAL = "FASTOPT_SURVEY_REHEARSAL"  # environment variable: 1 where everything but the device is to be tried
LIMIT = "FASTOPT_SURVEY_LIMIT"  # environment variable: the seconds after which a stage is killed
BEFORE = 1.0  # seconds before that the stacks of all threads are printed
LONGEST = 300  # characters of a line

_told: dict[str, Any] = {}


class NoDevice(Exception):
    """There is no device to run on, or this is a rehearsal."""


def tell(**facts: Any) -> None:
    """Add to what is told of this stage: status, line, and anything else that JSON has."""
    _told.update(facts)
    path = os.environ.get(RESULT)
    if path:
        with open(f"{path}.part", "w", encoding="utf-8") as file:
            json.dump(_told, file, default=str)
        os.replace(f"{path}.part", path)


def rehearsing() -> bool:
    """Return True where everything but the device is to be tried."""
    return os.environ.get(REHEARSAL) == "1"


def device() -> Any:
    """Return the first device, or the simulator's; NoDevice where there is none. What needs none comes before."""
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
    """Return torch and the first device; Absent where torch is not installed, NoDevice where it has none.

    own: under the simulator, whose device torch does not know, raise Absent.
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
    """Run a stage, tell how it ended and with which line, and return the exit status.

    Where it is still at work when its time is almost up, its stacks are printed: that is where it hangs.
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
