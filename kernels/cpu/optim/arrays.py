"""Steps on NumPy arrays: a plan, and the addresses of gradients read by compiled code.

NumPy takes a microsecond to tell the address of an array, as long as the update of 2000 elements takes, and checks of
its type, shape, dtype and layout in Python take as long again. A kernel does all that in some 10 ns an array. It reads
the headers that CPython and NumPy define for extensions:

    PyTupleObject           head, items                                              items: from tuple.__basicsize__ on
    PyArrayObject_fields    head, data, nd, dimensions, strides, base, descr, flags  data: from object.__basicsize__ on

`layout_known` tests whether they lie so in this process; otherwise every gradient is checked in Python.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ...spec import ArrayUpdate, BufferUpdate
from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.primitives import address_of, view
from ..runtime.records import ARRAYS, fill, read
from ..runtime.storage import name_of
from .plan import Plan, Pool

HEADER_BYTES, ITEMS_OFFSET = object.__basicsize__, tuple.__basicsize__
DATA, NDIM, DIMENSIONS, DESCR, FLAGS = 0, 1, 2, 5, 6  # words behind the header
REQUIRED_FLAGS = 0x0001 | 0x0004 | 0x0100  # NumPy's flags C_CONTIGUOUS, OWNDATA, ALIGNED
LOW_32_BITS = 0xFFFFFFFF  # nd and flags have 32 bits


@register_jitable
def lower_bound(values, size, x):
    """The number of sorted values that are smaller than x."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if values[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low


def _read_arrays(work):
    """The address of each gradient that is an array as expected, else -1."""
    a = read(work, ARRAYS)
    objects, expected = view(a.objects, a.count, np.int64), view(a.expected, 3 * a.count, np.int64)
    into, owners = view(a.into, a.count, np.int64), view(a.owners, a.num_owners, np.int64)
    others = 0
    for i in range(a.count):
        dtype, axes, shape = expected[3 * i], expected[3 * i + 1], expected[3 * i + 2]
        into[i] = -1
        # its type
        fits = axes >= 0 and view(objects[i] + a.header_bytes - 8, 1, np.int64)[0] == a.ndarray
        if fits:
            # its dtype, number of axes and flags
            array = view(objects[i] + a.header_bytes, FLAGS + 1, np.int64)
            fits = array[DESCR] == dtype and (array[NDIM] & LOW_32_BITS) == axes
            if fits and (array[FLAGS] & REQUIRED_FLAGS) == REQUIRED_FLAGS:
                # its shape
                dimensions, expected_dimensions = view(array[DIMENSIONS], axes, np.int64), view(shape, axes, np.int64)
                for axis in range(axes):
                    fits = fits and dimensions[axis] == expected_dimensions[axis]
                # it is none of the owners
                owner = lower_bound(owners, a.num_owners, objects[i])
                if fits and (owner == a.num_owners or owners[owner] != objects[i]):
                    into[i] = array[DATA]
        others += into[i] == -1
    a.num_others = others


READ_ARRAYS = Kernel(_read_arrays, "read_arrays")


def _words(address: int, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).from_address(address))


@cache
def layout_known() -> bool:
    """True if tuples and arrays lie in memory as the kernel expects: tried on some."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8 or sys.byteorder != "little":
        return False
    arrays = np.ones((3, 5), np.float32), np.ones(9)[2:], np.ones(()), np.ones((4, 2, 3), order="F"), np.ones((0, 2))
    if tuple.__itemsize__ != 8 or _words(id(arrays) + ITEMS_OFFSET, len(arrays)) != [id(array) for array in arrays]:
        return False
    if np.ndarray.__basicsize__ < HEADER_BYTES + 8 * (FLAGS + 1):
        return False
    for array in arrays:
        kind, *fields = _words(id(array) + HEADER_BYTES - 8, FLAGS + 2)
        found = kind, fields[DATA], fields[NDIM] & LOW_32_BITS, fields[DESCR], fields[FLAGS] & LOW_32_BITS
        if found != (id(np.ndarray), array.ctypes.data, array.ndim, id(array.dtype), array.flags.num):
            return False
        if tuple(_words(fields[DIMENSIONS], array.ndim)) != array.shape:
            return False
    return True


class ArrayPlan:
    """The plan of an optimizer that updates NumPy arrays; it owns none of them, and none may move.

    owners: ids of arrays that must not be gradients; they stay alive as long as the plan.
    """

    def __init__(self, planned: Sequence[ArrayUpdate], owners: Collection[int]) -> None:
        self.plan = Plan([
            BufferUpdate(
                t.rule, name_of(t.dtype), t.elements, address_of(t.p), [address_of(s) for s in t.states], t.group,
                t.form, t.stream, t.storage,
            )
            for t in planned
        ])  # fmt: skip
        shapes = [t.shape if t.shape is not None and layout_known() else None for t in planned]
        self.dimensions = np.array([length for shape in shapes for length in shape or ()], np.int64)
        self.expected = np.full((len(planned), 3), -1, np.int64)
        address = address_of(self.dimensions)
        for row, t, shape in zip(self.expected, planned, shapes, strict=True):
            if shape is not None:
                row[:] = id(t.dtype), len(shape), address
                address += 8 * len(shape)
        self.dtypes = {t.dtype for t in planned}  # kept alive for their addresses
        self.owners = np.array(sorted(owners), np.int64)
        self._idle = Pool(lambda: _ReadBuffers(self))

    def read(self, gradients: tuple[Any, ...]) -> tuple[np.ndarray, list[int]]:
        """The gradients as the other calls take them, (n,) int64, and the indices of those that need a further check.

        Those are 0 until `put` sets them. All gradients must stay alive.
        """
        buffers = self._idle.acquire()
        buffers.objects[0] = id(gradients) + ITEMS_OFFSET
        READ_ARRAYS.run(buffers.address)
        found, others = buffers.into.copy(), []
        if buffers.num_others[0]:
            others = np.flatnonzero(found == -1).tolist()
            found[others] = 0
        self._idle.release(buffers)
        return found, others

    def put(self, gradients: np.ndarray, i: int, gradient: np.ndarray) -> None:
        """Set gradient i: as many elements as the array, C-contiguous."""
        gradients[i] = address_of(gradient)

    def norm(self, gradients: np.ndarray) -> float:
        """The Euclidean norm of all gradients laid end to end."""
        return self.plan.norm(gradients)

    def norms(self, gradients: np.ndarray) -> list[float]:
        """The norm of each gradient; 0 where there is none."""
        return self.plan.norms(gradients)

    def update(
        self,
        gradients: np.ndarray,
        steps: np.ndarray,
        options: Sequence[Mapping[str, Any]],
        scale: float,
        copies: Mapping[int, np.ndarray],
    ) -> None:
        """Update as `Plan.update` does; copies: the parameters that are given in every step, by their index."""
        addresses = {i: address_of(p) for i, p in copies.items()} if copies else None
        self.plan.update(gradients, steps, options, scale, addresses)


class _ReadBuffers:
    """Memory that one call of `read` at a time writes to."""

    def __init__(self, plan: ArrayPlan) -> None:
        count = len(plan.expected)
        self.into = np.empty(count, np.int64)
        self.record = fill(
            ARRAYS, count=count, header_bytes=HEADER_BYTES, ndarray=id(np.ndarray), expected=plan.expected,
            owners=plan.owners, num_owners=len(plan.owners), into=self.into,
        )  # fmt: skip
        self.objects, self.num_others = self.record["objects"], self.record["num_others"]
        self.address = address_of(self.record)
