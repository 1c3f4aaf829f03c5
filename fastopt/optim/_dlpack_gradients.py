"""Fast path for gradients of other libraries (torch, DLPack) on the CPU.

The checks of `Parameter.check_like` take 10 us a gradient. Here Python only asks each array for its memory, and one
kernel compares dtype, shape and strides with the parameter's and reads the address; torch's tensors (from 2.10 on) the
kernel asks itself. Gradients that differ in any way go through those checks, and get their errors. Nothing is kept from
step to step, since the arrays of other libraries may move without notice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _backends
from .._dlpack import address_of, capsule_of, has_dlpack, is_tensor
from ._param_state import ParamState
from ._parameters import Memory


class GradientReader:
    """Reads gradients of some parameters, and checks that parameters of other libraries have not moved."""

    def __init__(self, param_states: Sequence[ParamState], memory: Memory) -> None:
        kernels = _backends.get("cpu")
        self.parameters = [state.parameter for state in param_states]
        self.layouts = [
            (p.dtype_name, p.array.shape, tuple(stride // p.dtype.itemsize for stride in p.array.strides))
            for p in self.parameters
        ]
        # Expected are: gradients anywhere (address 0), and parameters where they were.
        gradients = [(*layout, 0) for layout in self.layouts]
        addresses = [p.array.__array_interface__["data"][0] for p in self.parameters]
        parameters = [(*layout, address) for layout, address in zip(self.layouts, addresses, strict=True)]
        self.reader = kernels.ForeignReader([*gradients, *parameters], memory.starts, memory.reach)

    def read(self, addresses: np.ndarray, gradients: Sequence[Any], unread: Sequence[int]) -> tuple[list[int], Any]:
        """Writes the addresses of the `unread` gradients; returns those still unread, and what must stay alive.

        Raises ValueError for a tensor that was moved since it became a parameter.
        """
        count = len(self.parameters)
        objects: list[Any] = [None] * (2 * count)  # capsules and tensors
        known = [0] * (2 * count)  # addresses that need neither
        reads_tensors = self.reader.reads_tensors()
        for i in unread:
            g, p = gradients[i], self.parameters[i]
            if p.kernel_view is None:
                continue
            if isinstance(g, np.ndarray):
                objects[i] = _capsule(g) if type(g) is np.ndarray and g.dtype == p.dtype else None
            elif is_tensor(g):
                if not reads_tensors:
                    known[i] = _address(g, *self.layouts[i])
                elif not g.is_neg():  # the exchange API describes its memory nevertheless
                    objects[i] = g
            elif has_dlpack(g):
                objects[i] = _capsule(g)
            if p.foreign is None:
                continue
            if not p.foreign.is_tensor:
                objects[count + i] = _capsule(p.foreign.value)
            elif reads_tensors:
                objects[count + i] = p.foreign.value
            else:
                p.foreign.check_unmoved()
                known[count + i] = p.foreign.location[0]
        kept = tuple(objects)
        found = self.reader.read(kept, known)
        rest = []
        for i in unread:
            foreign = self.parameters[i].foreign
            if found[i] > 0 and (foreign is None or found[count + i] > 0):
                addresses[i] = found[i]
            else:
                rest.append(i)
        return rest, kept


def _capsule(value: Any) -> Any:
    """The DLPack capsule of an array; None if it hands out none, for which the checks have an error."""
    try:
        return capsule_of(value)
    except Exception:  # any, of any library
        return None


def _address(tensor: Any, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Address of a tensor with this dtype, shape and strides; else 0."""
    if tensor.dtype is not getattr(sys.modules["torch"], dtype) or tensor.shape != shape:
        return 0
    address = address_of(tensor)
    return address if address and tensor.stride() == strides else 0
