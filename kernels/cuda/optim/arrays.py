"""Steps on device arrays of any library: Numba, CuPy, torch, and all that have the CUDA array interface.

Nothing is copied and nothing waits: arrays are read and written in place, on the stream on which their library works at
the moment of the call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ...spec import ArrayUpdate, BufferUpdate, Update
from ..runtime.array_interface import current_stream, gpu_of, numpy_dtype, see
from .counted import CountedPlan, Number
from .plan import NO_GUARD, Guard, Plan


def _kernel_dtype(dtype: np.dtype[Any]) -> str:
    """Return the kernels' name of a dtype: uint16 has the bits of bfloat16."""
    return "bfloat16" if dtype == np.uint16 else dtype.name


class ArrayPlan:
    """Plan of an optimizer that updates arrays on a GPU; it owns none of them, and they must keep their addresses.

    owners: ids of arrays whose memory must not be a gradient's; they stay alive as long as the plan.
    counters, captured: as those of CountedPlan, for one whose steps the device counts.
    """

    def __init__(
        self,
        planned: Sequence[ArrayUpdate],
        owners: Collection[int],
        counters: Sequence[Number] | None = None,
        captured: list[Any] | None = None,
    ) -> None:
        self.planned, self.owners = planned, frozenset(owners)
        self.dtypes = [_kernel_dtype(t.dtype) for t in planned]
        targets = [
            BufferUpdate(
                t.rule, _kernel_dtype(t.dtype), t.elements, 0 if t.p is None else see(t.p).address,
                [see(s).address for s in t.states], t.group, t.form, t.stream, t.storage,
            )
            for t in planned
        ]  # fmt: skip
        gpu = gpu_of({address for t in targets for address in (t.p, *t.states)})
        self.plan: Any = Plan(targets, gpu) if counters is None else CountedPlan(targets, counters, gpu, captured)
        self.stream: Callable[[], int] = lambda: 0
        if first := next((a for t in planned for a in (t.p, *t.states) if a is not None), None):
            self.stream = lambda: current_stream(first)

    def read(self, gradients: tuple[Any, ...]) -> tuple[np.ndarray, list[int]]:
        """Return the addresses of gradients, (n,) int64, that need no further check, and the indices of the others.

        The address of an other is 0, until `put` sets it. All gradients must stay alive until they are used.
        """
        found, others = np.zeros(len(self.planned), np.int64), []
        for i, (g, t, dtype) in enumerate(zip(gradients, self.planned, self.dtypes, strict=True)):
            try:
                seen = see(g)
            except TypeError:
                others.append(i)
                continue
            fits = seen.shape == t.shape and seen.dtype == dtype and seen.contiguous and id(g) not in self.owners
            if fits and seen.address % t.dtype.itemsize == 0:
                found[i] = seen.address
            else:
                others.append(i)
        return found, others

    def put(self, gradients: np.ndarray, i: int, gradient: Any) -> None:
        """Set the address of a gradient with the array's number of elements, C-contiguous, on the same GPU."""
        gradients[i] = see(gradient).address

    def norm(self, gradients: np.ndarray) -> float:
        """Return the Euclidean norm of all gradients laid end to end. Waits for it."""
        return self.plan.norm(gradients, self.stream())

    def update(
        self,
        gradients: np.ndarray,
        steps: np.ndarray,
        options: Sequence[Mapping[str, Any]],
        scale: float,
        copies: Mapping[int, Any],
        guard: Guard = NO_GUARD,
    ) -> None:
        """Run `Plan.update`; copies: the parameters that are given in every step, by their index."""
        places = {i: see(p).address for i, p in copies.items()}
        self.plan.update(gradients, steps, options, scale, places, guard, self.stream())

    def update_counted(
        self,
        gradients: np.ndarray,
        present: Sequence[bool],
        options: Sequence[Mapping[str, Any]],
        scale: float,
        guard: Guard = NO_GUARD,
    ) -> None:
        """Run `CountedPlan.update`, for a plan with counters."""
        self.plan.update(gradients, options, scale, guard, self.stream(), present)


def update(jobs: Sequence[Update], scale: float = 1.0) -> None:
    """Update p and the states of every job in place; arrays are C-contiguous. For repeated steps there is `ArrayPlan`.

    Gradients are multiplied by `scale`, and are not changed themselves.
    """
    groups = {id(job.options): job.options for job in jobs}
    numbers = {key: number for number, key in enumerate(groups)}
    planned = []
    for job in jobs:
        p = see(job.p)
        group, elements = numbers[id(job.options)], math.prod(p.shape)
        dtype = numpy_dtype(p.dtype)
        planned.append(
            ArrayUpdate(job.rule, job.p, job.states, dtype, elements, p.shape, group, job.form, job.stream, job.storage)
        )
    plan = ArrayPlan(planned, ())
    gradients = np.array([see(job.g).address for job in jobs], np.int64)
    plan.update(gradients, np.array([job.step for job in jobs], np.int64), list(groups.values()), scale, {})


def gradient_norm(gradients: Sequence[Any]) -> float:
    """Return the Euclidean norm of all gradients laid end to end; they are C-contiguous. Waits for it."""
    seen = [see(g) for g in gradients]
    planned = [
        ArrayUpdate("sgd", g, (), numpy_dtype(s.dtype), math.prod(s.shape), s.shape, 0)
        for g, s in zip(gradients, seen, strict=True)
    ]
    return ArrayPlan(planned, ()).norm(np.array([s.address for s in seen], np.int64))
