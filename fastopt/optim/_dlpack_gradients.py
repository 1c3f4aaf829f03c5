"""Gradients that are not NumPy's own, read quickly: where they are what they nearly always are.

`Optimizer.step` takes any array, with any number of checks, in 10 us. Here Python only asks each for its memory, and a
kernel looks at the answers. What is not just as its parameter wants it is left to those checks, and to their errors.
Nothing is kept from step to step: an array of another library may have moved, and says so only when it is asked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _backends
from .._dlpack import address_of, capsule_of, is_tensor, speaks_dlpack
from ._param_state import Slot
from ._parameters import Memory


class Lent:
    """Reads gradients of some parameters, and finds out whether those of other libraries are where they were."""

    def __init__(self, slots: Sequence[Slot], memory: Memory) -> None:
        kernels = _backends.get("cpu")
        self.parameters = [slot.parameter for slot in slots]
        self.lying = [
            (p.kind, p.array.shape, tuple(stride // p.dtype.itemsize for stride in p.array.strides))
            for p in self.parameters
        ]
        gradients = [(*one, 0) for one in self.lying]
        places = [p.array.__array_interface__["data"][0] for p in self.parameters]
        there = [(*one, place) for one, place in zip(self.lying, places, strict=True)]
        self.capsules = kernels.Capsules([*gradients, *there], memory.starts, memory.reach)

    def take(self, gradients: np.ndarray, leaves: Sequence[Any], others: Sequence[int]) -> tuple[list[int], Any]:
        """Writes the addresses of the gradients `others`; returns those that it could not, and what must stay alive.

        Raises ValueError for a tensor that was moved since it became a parameter.
        """
        count = len(self.parameters)
        capsules: list[Any] = [None] * (2 * count)
        known = [0] * (2 * count)
        for i in others:
            g, p = leaves[i], self.parameters[i]
            if p.work is None:
                continue
            if isinstance(g, np.ndarray):
                capsules[i] = _capsule(g) if type(g) is np.ndarray and g.dtype == p.dtype else None
            elif is_tensor(g):
                known[i] = _address(g, *self.lying[i])
            elif speaks_dlpack(g):
                capsules[i] = _capsule(g)
            if p.lender is None:
                continue
            if p.lender.tensor:
                p.lender.check_place()
            else:
                capsules[count + i] = _capsule(p.lender.value)
        kept = tuple(capsules)
        found = self.capsules.read(kept, known)
        rest = []
        for i in others:
            lender = self.parameters[i].lender
            if found[i] > 0 and (lender is None or lender.tensor or found[count + i] > 0):
                gradients[i] = found[i]
            else:
                rest.append(i)
        return rest, kept


def _capsule(value: Any) -> Any:
    """None where the array does not hand out its memory: why, the checks will say."""
    try:
        return capsule_of(value)
    except Exception:  # any, of any library
        return None


def _address(tensor: Any, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Of a tensor that lies like this; else 0."""
    if tensor.dtype is not getattr(sys.modules["torch"], dtype) or tensor.shape != shape:
        return 0
    address = address_of(tensor)
    return address if address and tensor.stride() == strides else 0
