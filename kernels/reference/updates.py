"""Optimizer steps of the "numpy" backend."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..denormals import flushed
from ..spec import MASTER, SAME, STOCHASTIC, WHOLE, ArrayUpdate, OptimizerSteps, ParamSettings, Update
from .bits16 import is_16bit, is_rounding, store, store_stochastically, widened
from .blockwise import Coded
from .maths import total
from .optimizers import UPDATES, prepared

Array = np.ndarray


@flushed
@np.errstate(all="ignore")
def gradient_norm(gradients: Sequence[Array]) -> float:
    """Return the Euclidean norm of all gradients laid end to end, summed in float64.

    >>> gradient_norm([np.array([3.0]), np.array([[0.0, -4.0]])])
    5.0
    """
    wide = (widened(g) if is_16bit(g.dtype) else g for g in gradients)
    return math.sqrt(sum(total(np.square(g, dtype=np.float64)) for g in wide))


@flushed
@np.errstate(all="ignore")
def update(jobs: Sequence[Update], scale: float = 1.0) -> None:
    """Run one optimizer step per job, changing its p and its states in place.

    p, g and the states have one shape and one number type; `options` holds every option of the rule. Gradients are
    taken times `scale`, and are not changed. Arrays of 16 bits are worked on in float32, in the form that `form` says.

    >>> p = np.array([1.0, 2.0])
    >>> options = {"lr": 0.5, "weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None}
    >>> update([Update("sgd", p, np.array([1.0, -2.0]), (), options, step=1)])
    >>> p.tolist()
    [0.5, 3.0]
    """
    for job in jobs:
        _run_any(job, scale)


def _run_any(job: Update, scale: float, elements: Array | None = None) -> None:
    """elements: their numbers, where they are not 0, 1, 2, ..."""
    if job.storage != WHOLE and job.states:
        _run_coded(job, scale)
        return
    if is_16bit(job.p.dtype):
        _run_wide(job, scale, elements)
    else:
        _run(job, scale)


def _run(job: Update, scale: float) -> None:
    UPDATES[job.rule](job.p, prepared(job.g, job.options, scale), job.states, job.options, job.step)


def _run_coded(job: Update, scale: float) -> None:
    """Update an array whose states are codes: as one whose states are their numbers, rounded to codes afterwards."""
    coded = Coded(job.rule, job.states)
    real = np.float32 if is_16bit(job.p.dtype) else job.p.dtype
    numbers = [state.astype(real) for state in coded.numbers]
    whole = job._replace(states=(*numbers, *coded.rest), storage=WHOLE)
    if job.form != SAME or not is_16bit(job.p.dtype):
        _run_any(whole, scale)
    else:  # states are float32, whatever the array is, and p is rounded to nearest
        p = widened(job.p)
        _run(whole._replace(p=p, g=widened(job.g)), scale)
        store(p, job.p)
    coded.keep(numbers, job.storage, job.stream, job.step)


def _run_wide(job: Update, scale: float, elements: Array | None) -> None:
    wide = job._replace(p=widened(job.p), g=widened(job.g))
    if job.form == MASTER:
        *states, master = job.states
        master[...] = np.where(is_rounding(job.p, master), master, wide.p)
        _run(wide._replace(p=master, states=tuple(states)), scale)
        store(master, job.p)
    elif job.form == STOCHASTIC:
        _run(wide, scale)
        store_stochastically(wide.p, job.p, job.stream, job.step, elements)
    else:
        wide = wide._replace(states=tuple(widened(state) for state in job.states))
        _run(wide, scale)
        for into, value in zip((job.p, *job.states), (wide.p, *wide.states), strict=True):
            store(value, into)


def penalty(params: Sequence[Array], settings: Sequence[ParamSettings]) -> float:
    """Return what the regularisers of parameters add to the loss: the sum of l1 |p| + l2 p^2, in float64.

    settings: of each parameter; or () for none.

    >>> penalty([np.array([[1.0, -2.0]])], [ParamSettings(l1=0.5, l2=0.25)])
    2.75
    """
    if not any(own.has_penalty for own in settings):
        return 0.0
    sums = 0.0
    for p, own in zip(params, settings, strict=True):
        wide = p.astype(np.float64)
        if own.l1 != 0:
            sums += own.l1 * total(np.abs(wide))
        if own.l2 != 0:
            sums += own.l2 * total(np.square(wide))
    return sums


def updates_of_step(
    optimizer: OptimizerSteps, params: Sequence[Array], gradients: Sequence[Array], i: int
) -> list[Update]:
    """Return the updates of step i of the parameters that are updated, which `gradients` are those of."""
    given, updates = iter(gradients), []
    for k, (p, states) in enumerate(zip(params, optimizer.states, strict=True)):
        if states is None:
            continue
        own = optimizer.settings[k] if optimizer.settings else ParamSettings()
        decay = optimizer.options["weight_decay"] if own.weight_decay is None else own.weight_decay
        over = 1.0 if optimizer.penalty_divisors is None else float(optimizer.penalty_divisors[i])
        now = {
            **optimizer.options, "lr": float(optimizer.learning_rates[i]) * own.lr_scale, "weight_decay": decay,
            "l1": optimizer.options["l1"] + own.l1 / over, "l2": 2 * own.l2 / over,
        }  # fmt: skip
        step = optimizer.steps_done - own.late + i + 1
        storage = optimizer.storages[k] if optimizer.storages else WHOLE
        updates.append(Update(optimizer.rule, p, next(given), states, now, step, storage=storage))
    return updates


@flushed
@np.errstate(all="ignore")
def sum_rows(indices: Array, values: Array) -> tuple[Array, Array]:
    """Return the indices, sorted and each once, with the sums of their values, which are added up in their order.

    Values of 16 bits are added up in float32, and the sums of several are rounded, once.

    >>> rows, sums = sum_rows(np.array([2, 0, 2]), np.array([[1.0], [2.0], [3.0]]))
    >>> rows.tolist(), sums.tolist()
    ([0, 2], [[2.0], [4.0]])
    """
    rows, first, which = np.unique(indices, return_index=True, return_inverse=True)
    again = np.ones(len(indices), bool)
    again[first] = False
    wide = widened(values) if is_16bit(values.dtype) else values
    sums = wide[first]
    np.add.at(sums, which[again], wide[again])
    if wide is values:
        return rows, sums
    several = np.unique(which[again])
    rounded, parts = values[first], np.empty_like(values, shape=(len(several), *values.shape[1:]))
    store(sums[several], parts)
    rounded[several] = parts
    return rows, rounded


@flushed
@np.errstate(all="ignore")
def update_rows(job: Update, rows: Array, scale: float = 1.0) -> None:
    """Run one optimizer step on some rows of p and its states, which are listed once each; g has those rows only."""
    p, states = job.p[rows], tuple(state[rows] for state in job.states)
    _run_any(job._replace(p=p, states=states), scale, np.arange(job.p.size).reshape(job.p.shape)[rows])
    job.p[rows] = p
    for state, changed in zip(job.states, states, strict=True):
        state[rows] = changed


class ArrayPlan:
    """The updates of some arrays, to be run any number of times."""

    def __init__(self, planned: Sequence[ArrayUpdate], owners: Collection[int]) -> None:
        self.planned = planned

    def read(self, gradients: tuple[Any, ...]) -> tuple[list[Array | None], list[int]]:
        """A list of gradients for the other calls, and the indices of those that `put` must give: here all."""
        return [None] * len(self.planned), list(range(len(self.planned)))

    def put(self, gradients: list[Array | None], i: int, gradient: Array) -> None:
        gradients[i] = gradient

    def norm(self, gradients: list[Array | None]) -> float:
        return gradient_norm([g for g in gradients if g is not None])

    def norms(self, gradients: list[Array | None]) -> list[float]:
        return [0.0 if g is None else gradient_norm([g]) for g in gradients]

    def update(
        self,
        gradients: list[Array | None],
        steps: Sequence[int] | Array,
        options: Sequence[Mapping[str, Any]],
        scale: float,
        copies: Mapping[int, Array],
    ) -> None:
        """Update the arrays that have a gradient; `steps` are their step numbers, `options` each group's.

        copies: the parameters that are given in every step, by their index.
        """
        update(
            [
                Update(
                    t.rule,
                    copies[i] if t.p is None else t.p,
                    g,
                    t.states,
                    options[t.group],
                    int(step),
                    t.form,
                    t.stream,
                    t.storage,
                )
                for i, (t, g, step) in enumerate(zip(self.planned, gradients, steps, strict=True))
                if g is not None
            ],
            scale,
        )
