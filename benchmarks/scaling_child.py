"""A process of the suite `distributed`: trains whenever its parent says so, and writes what it took into a file.

    mpirun -n 2 python -m fastopt.benchmarks.scaling_child TASK

TASK is the JSON of a `scaling.Task`. Between turns a process sleeps: one that waited in a call of MPI would spin on a
processor that another contestant needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

POLL_SECONDS = 0.02
Turn = Callable[[], dict[str, Any]]  # trains for the steps of a turn: seconds and loss, and more


def data(task: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return x (rows, inputs) float32 and y (rows,) int64, the same on all ranks."""
    rng, rows = np.random.default_rng(0), task["rows"] * task["steps"]
    return rng.standard_normal((rows, task["widths"][0]), dtype=np.float32), rng.integers(0, task["widths"][-1], rows)


def network(task: dict[str, Any]) -> Any:
    """Return our network of these widths, with Adam."""
    import fastopt as fo

    widths = task["widths"]
    layers = [*(fo.Dense(width, "relu") for width in widths[1:-1]), fo.Dense(widths[-1], "softmax")]
    model = fo.Sequential(layers, seed=3, inputs=widths[0])
    model.compile(fo.Adam(lr=1e-3), "sparse_categorical_crossentropy")
    return model


def plain(task: dict[str, Any]) -> Turn:
    """`fit` of one process."""
    (x, y), model = data(task), network(task)

    def train() -> dict[str, Any]:
        history = model.fit(x, y, batch_size=task["rows"], shuffle=False, verbose=0)
        return {"seconds": history["seconds"][-1] / task["steps"], "loss": history["loss"][-1]}

    return train


def by_mpi(task: dict[str, Any]) -> Turn:
    """`fit` of all ranks; besides what a step costs, and has sent."""
    from fastopt.benchmarks.scaling_meter import Meter

    (x, y), model, meter = data(task), network(task), Meter()

    def train() -> dict[str, Any]:
        with meter:
            history = model.fit(x, y, batch_size=task["rows"], shuffle=False, verbose=0, distributed="mpi")
        seconds = history["seconds"][-1] / task["steps"]
        return {"seconds": seconds, "loss": history["loss"][-1], **meter.of_step(task["steps"], seconds)}

    return train


def links(task: dict[str, Any]) -> Turn:
    """Measures the links between two ranks, by messages of task["nbytes"]."""
    from fastopt import distributed

    return lambda: distributed.measure_links(nbytes=task["nbytes"])._asdict()


def by_torch(task: dict[str, Any]) -> Turn:
    """torch's DistributedDataParallel (gloo) with its fused Adam; each process takes its share of every batch."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    rank, ranks = task["index"], task["processes"]
    torch.set_num_threads(task["threads"])
    dist.init_process_group("gloo", init_method=f"file://{task['folder']}/store", rank=rank, world_size=ranks)
    x, y = map(torch.from_numpy, data(task))
    arrays, modules = network(task).get_weights(), list[Any]()
    for w, b in zip(arrays[::2], arrays[1::2], strict=True):
        modules += [torch.nn.Linear(*w.shape), torch.nn.ReLU()]
        with torch.no_grad():
            modules[-2].weight.copy_(torch.from_numpy(w).T)
            modules[-2].bias.copy_(torch.from_numpy(b))
    model = DistributedDataParallel(torch.nn.Sequential(*modules[:-1]), gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    own = task["rows"] // ranks

    def train() -> dict[str, Any]:
        dist.barrier()
        losses, begun = torch.zeros(task["steps"]), time.perf_counter()
        for step in range(task["steps"]):
            first = step * task["rows"] + rank * own
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x[first : first + own]), y[first : first + own])
            loss.backward()
            optimizer.step()
            losses[step] = loss.detach()
        seconds = (time.perf_counter() - begun) / task["steps"]
        dist.all_reduce(losses)
        return {"seconds": seconds, "loss": float(losses.mean() / ranks)}

    return train


KINDS: dict[str, Callable[[dict[str, Any]], Turn]] = {
    "plain": plain, "mpi": by_mpi, "links": links, "torch": by_torch,
}  # fmt: skip


def keep_to_own_processors(index: int, threads: int) -> None:
    """Bind the process to processors of its own, if there are as many."""
    if not hasattr(os, "sched_setaffinity"):  # macOS, Windows
        return
    present = sorted(os.sched_getaffinity(0))
    own = present[index * threads : (index + 1) * threads]
    if len(own) == threads:
        os.sched_setaffinity(0, own)


def serve(turn: Turn, folder: Path, index: int, parent: int) -> None:
    """Take turn after turn as files named after their numbers appear, until one is named `end`, or the parent ends."""
    number = 0
    while not (folder / "end").exists() and alive(parent):
        if not (folder / f"turn-{number}").exists():
            time.sleep(POLL_SECONDS)
            continue
        text = json.dumps(turn())
        written = folder / f"writing-{index}"
        written.write_text(text, encoding="utf-8")
        written.replace(folder / f"result-{number}-{index}")
        number += 1


def alive(process: int) -> bool:
    """True as long as a process runs."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def main(argument: str) -> None:
    """Do what a task says."""
    task = json.loads(argument)
    together: AbstractContextManager[object] = nullcontext()
    if task["kind"] in ("mpi", "links"):
        from fastopt import distributed

        together = distributed.together()
        if distributed.ranks() > 1:
            task["index"] = distributed.rank()
    keep_to_own_processors(task["index"], task["threads"])
    with together:
        serve(KINDS[task["kind"]](task), Path(task["folder"]), task["index"], task["parent"])


if __name__ == "__main__":
    main(sys.argv[1])
