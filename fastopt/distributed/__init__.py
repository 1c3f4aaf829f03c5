"""Training on several processes, on one machine or many, by MPI (extra `mpi`).

    mpirun -n 4 python program.py

runs a program four times. Where it calls `model.fit(..., distributed="mpi")`, the four processes, the ranks, train one
model together: each takes its share of the rows of every step. All ranks make the same model and give the same data.

>>> from fastopt import distributed
>>> distributed.rank() < distributed.ranks()  # of a program that mpirun did not start there is one rank: 0
True
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ._exchange import Traffic
from ._links import measure_links
from ._model import Links, StepCost, StepTime, best_ranks, dense_step, ranks_that_pay, step_time
from ._network import DistributedNetwork, Settings
from ._options import ENGINES, OPTIONS, REDUCTIONS, check_options
from ._tree import num_pieces
from ._world import World, differences, world

__all__ = [
    "ENGINES",
    "OPTIONS",
    "REDUCTIONS",
    "DistributedNetwork",
    "Links",
    "Settings",
    "StepCost",
    "StepTime",
    "Traffic",
    "World",
    "best_ranks",
    "check_options",
    "dense_step",
    "differences",
    "is_one_of_several",
    "measure_links",
    "num_pieces",
    "rank",
    "ranks",
    "ranks_that_pay",
    "step_time",
    "together",
    "world",
]

# Variables of the launchers of Open MPI, MPICH and Slurm: the number of processes that they have started.
COUNTS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
LAUNCHED = (*COUNTS, "PMIX_RANK")  # and one that has no number


def is_launched() -> bool:
    """Return True if a launcher of MPI has started this process."""
    return any(name in os.environ for name in LAUNCHED)


def is_one_of_several() -> bool:
    """Return True if a launcher of MPI says that it has started other processes, too."""
    return any(os.environ.get(name, "1") != "1" for name in COUNTS)


def rank() -> int:
    """Number of this process among those of its job, from 0; 0 if no launcher of MPI has started it."""
    return world().rank if is_launched() else 0


def ranks() -> int:
    """Number of processes of the job; 1 if no launcher of MPI has started this one."""
    return world().ranks if is_launched() else 1


@contextmanager
def together() -> Iterator[bool]:
    """Context of a program that ends on all ranks where one of them fails; its value is true on the first of them."""
    with world().ending_together():
        yield world().is_first
        world().agree(None)  # nobody ends before all are done
