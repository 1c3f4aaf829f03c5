"""Steps on NumPy arrays: a plan, and the addresses of gradients read by compiled code.

NumPy takes a microsecond to tell the address of an array, as long as the update of 2000 elements takes, and checks of
its type, shape, dtype and layout in Python cost as much again. A kernel does all that in some 10 ns an array. It reads
what CPython and NumPy lay down in their headers for every extension:

    PyTupleObject           head, items                                              items: from tuple.__basicsize__ on
    PyArrayObject_fields    head, data, nd, dimensions, strides, base, descr, flags  data: from object.__basicsize__ on

`layout_known` finds out whether they do so here; otherwise every gradient takes the way of those that need a look.
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
from ..runtime.primitives import address_of, view
from ..runtime.records import ARRAYS, fill, read
from ..runtime.storage import name_of
from .plan import Plan, Pool

HEAD, ITEMS = object.__basicsize__, tuple.__basicsize__
DATA, NDIM, DIMENSIONS, DESCR, FLAGS = 0, 1, 2, 5, 6  # words behind the head
WANTED = 0x0001 | 0x0004 | 0x0100  # NumPy's flags C_CONTIGUOUS, OWNDATA, ALIGNED
LOW = 0xFFFFFFFF  # nd and flags have 32 bits


def _read_arrays(work):
    a = read(work, ARRAYS)
    objects, expected = view(a.objects, a.count, np.int64), view(a.expected, 3 * a.count, np.int64)
    into, owners = view(a.into, a.count, np.int64), view(a.owners, a.owned, np.int64)
    others = 0
    for i in range(a.count):
        dtype, axes, shape = expected[3 * i], expected[3 * i + 1], expected[3 * i + 2]
        fits = axes >= 0 and view(objects[i] + a.head - 8, 1, np.int64)[0] == a.ndarray
        into[i] = -1
        if fits:
            array = view(objects[i] + a.head, FLAGS + 1, np.int64)
            fits = array[DESCR] == dtype and (array[NDIM] & LOW) == axes and (array[FLAGS] & WANTED) == WANTED
            if fits:
                dimensions, wanted = view(array[DIMENSIONS], axes, np.int64), view(shape, axes, np.int64)
                for axis in range(axes):
                    fits = fits and dimensions[axis] == wanted[axis]
                place, end = 0, a.owned
                while place < end:
                    middle = (place + end) // 2
                    if owners[middle] < objects[i]:
                        place = middle + 1
                    else:
                        end = middle
                if fits and (place == a.owned or owners[place] != objects[i]):
                    into[i] = array[DATA]
        others += into[i] == -1
    a.others = others


READ_ARRAYS = Kernel(_read_arrays, "read_arrays")


def _words(address: int, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).from_address(address))


@cache
def layout_known() -> bool:
    """Whether tuples and arrays lie in memory as the kernel expects: tried on some."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8 or sys.byteorder != "little":
        return False
    arrays = np.ones((3, 5), np.float32), np.ones(9)[2:], np.ones(()), np.ones((4, 2, 3), order="F"), np.ones((0, 2))
    if tuple.__itemsize__ != 8 or _words(id(arrays) + ITEMS, len(arrays)) != [id(array) for array in arrays]:
        return False
    if np.ndarray.__basicsize__ < HEAD + 8 * (FLAGS + 1):
        return False
    for array in arrays:
        kind, *fields = _words(id(array) + HEAD - 8, FLAGS + 2)
        found = kind, fields[DATA], fields[NDIM] & LOW, fields[DESCR], fields[FLAGS] & LOW
        if found != (id(np.ndarray), array.ctypes.data, array.ndim, id(array.dtype), array.flags.num):
            return False
        if tuple(_words(fields[DIMENSIONS], array.ndim)) != array.shape:
            return False
    return True


class ArrayPlan:
    """The plan of an optimizer that updates NumPy arrays; it owns none of them, and they must stay where they are.

    owners: ids of arrays whose memory must not be a gradient's; they stay alive as long as the plan.
    """

    def __init__(self, planned: Sequence[ArrayUpdate], owners: Collection[int]) -> None:
        self.plan = Plan([
            BufferUpdate(
                t.rule, name_of(t.dtype), t.elements, address_of(t.p), [address_of(s) for s in t.states], t.group,
                t.form, t.stream,
            )
            for t in planned
        ])  # fmt: skip
        shapes = [t.shape if t.shape is not None and layout_known() else None for t in planned]
        self.dimensions = np.array([length for shape in shapes for length in shape or ()], np.int64)
        self.expected = np.full((len(planned), 3), -1, np.int64)
        at = address_of(self.dimensions)
        for row, t, shape in zip(self.expected, planned, shapes, strict=True):
            if shape is not None:
                row[:] = id(t.dtype), len(shape), at
                at += 8 * len(shape)
        self.dtypes = {t.dtype for t in planned}  # for their addresses
        self.owners = np.array(sorted(owners), np.int64)
        self._idle = Pool(lambda: _Reading(self))

    def read(self, gradients: tuple[Any, ...]) -> tuple[np.ndarray, list[int]]:
        """What the other calls take, (n,) int64, with the gradients that need no further check, and 0 for the others.

        The others are those whose indices come with it: `put` gives them. All must stay alive.
        """
        reading = self._idle.acquire()
        reading.objects[0] = id(gradients) + ITEMS
        READ_ARRAYS.run(reading.at)
        found, others = reading.into.copy(), []
        if reading.others[0]:
            others = np.flatnonzero(found == -1).tolist()
            found[others] = 0
        self._idle.release(reading)
        return found, others

    def put(self, gradients: np.ndarray, i: int, gradient: np.ndarray) -> None:
        """A gradient of the same elements as the array, C-contiguous."""
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
        """As `Plan.update`; copies: the parameters that are given in every step, by their index."""
        places = {i: address_of(p) for i, p in copies.items()} if copies else None
        self.plan.update(gradients, steps, options, scale, places)


class _Reading:
    """What one call of `read` at a time writes to."""

    def __init__(self, plan: ArrayPlan) -> None:
        count = len(plan.expected)
        self.into = np.empty(count, np.int64)
        self.record = fill(
            ARRAYS, count=count, head=HEAD, ndarray=id(np.ndarray), expected=plan.expected, owners=plan.owners,
            owned=len(plan.owners), into=self.into,
        )  # fmt: skip
        self.objects, self.others, self.at = self.record["objects"], self.record["others"], address_of(self.record)
