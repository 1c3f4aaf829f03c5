"""Arrays of any library, by their capsules of DLPack, read by compiled code.

Python takes 8 us to read a capsule, field by field, and to check what it says; a kernel does that in some 20 ns. It
reads what CPython lays down of a capsule, and what DLPack says:

    PyCapsule            head, pointer, name
    dltensor             DLTensor
    dltensor_versioned   major and minor (32 bits each), manager, deleter, flags, DLTensor
    DLTensor             data, device's type and number (32 bits each), ndim (32) with code and bits (8 each) and lanes
                         (16), shape, strides, offset in bytes

`capsule_type` finds out whether capsules lie so here. Source: https://dmlc.github.io/dlpack/latest/c_api.html.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from ..runtime.compile import Kernel
from ..runtime.primitives import address_of, view
from ..runtime.records import CAPSULES, fill, read
from .arrays import HEAD, ITEMS, LOW, layout_known

CODES = {"float32": (2, 32), "float64": (2, 64), "float16": (2, 16), "bfloat16": (4, 16)}
OLD, NEW = (np.frombuffer(name + b"\0", np.uint8) for name in (b"dltensor", b"dltensor_versioned"))
BEFORE_TENSOR = 32  # bytes of what precedes the DLTensor in a versioned one
FIELDS = 7  # of a row of `expected`
Lying = tuple[str, tuple[int, ...], tuple[int, ...], int]  # dtype, shape, strides, address


@register_jitable
def _same_text(a, b, size):
    # Stops at the first difference, so never behind the end of the shorter one.
    x, y, i = view(a, size, np.uint8), view(b, size, np.uint8), 0
    while i < size and x[i] == y[i]:
        i += 1
    return i == size


@register_jitable
def _address(capsule, a, expected):
    # Of the elements, where the capsule says what is expected; else -1.
    words = view(capsule + a.head - 8, 3, np.int64)
    if words[0] != a.kind:
        return -1
    tensor = words[1]
    if _same_text(words[2], a.new_name, NEW_SIZE):
        if (view(tensor, 1, np.int64)[0] & LOW) != 1:
            return -1
        tensor += BEFORE_TENSOR
    elif not _same_text(words[2], a.old_name, OLD_SIZE):
        return -1
    fields, axes = view(tensor, 6, np.int64), expected[0] & LOW
    device = fields[1] & LOW
    on_host = device == 1 or device == 3 or device == 11
    if fields[0] == 0 or not on_host or fields[2] != expected[0] or (fields[4] == 0 and expected[3] == 0):
        return -1
    shape, wanted = view(fields[3], axes, np.int64), view(expected[1], 2 * axes, np.int64)
    for axis in range(axes):
        if shape[axis] != wanted[axis]:
            return -1
    if fields[4] != 0:
        strides = view(fields[4], axes, np.int64)
        for axis in range(axes):
            if shape[axis] > 1 and strides[axis] != wanted[axes + axis]:
                return -1
    return fields[0] + fields[5]


def _read_capsules(work):
    a = read(work, CAPSULES)
    objects, into = view(a.objects, a.count, np.int64), view(a.into, a.count, np.int64)
    starts, ends = view(a.starts, a.spans, np.int64), view(a.ends, a.spans, np.int64)
    for i in range(a.count):
        expected = view(a.expected + i * FIELDS * 8, FIELDS, np.int64)
        itemsize, size, place = expected[4], expected[5], expected[6]
        address = into[i] if into[i] > 0 else _address(objects[i], a, expected)
        if address > 0 and address & (itemsize - 1):
            address = -1
        if place != 0:
            address = place if address == place else -1
        elif address > 0:
            low, high = 0, a.spans
            while low < high:
                middle = (low + high) // 2
                if starts[middle] < address + size:
                    low = middle + 1
                else:
                    high = middle
            if low > 0 and ends[low - 1] > address:
                address = -1
        into[i] = address


OLD_SIZE, NEW_SIZE = len(OLD), len(NEW)
READ_CAPSULES = Kernel(_read_capsules, "read_capsules")


@cache
def capsule_type() -> int:
    """The address of the type of capsules, where they lie in memory as the kernel expects (tried on one); else 0."""
    try:
        capsule = np.zeros((2, 3), np.float32).__dlpack__()
    except Exception:  # an older NumPy
        return 0
    if not layout_known() or type(capsule).__basicsize__ < HEAD + 16:
        return 0
    kind, pointer, name = (ctypes.c_int64 * 3).from_address(id(capsule) + HEAD - 8)
    ask = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    right = ask(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, b"dltensor") == pointer
    return kind if right and kind == id(type(capsule)) and ctypes.string_at(name) == b"dltensor" else 0


class Capsules:
    """What capsules say of some arrays: where each lies, if it lies as it is to.

    arrays: dtype, shape, strides (in elements; those of axes of length 1 do not matter), and the address; 0 for one
        that may be anywhere in memory of its own.
    starts, ends: memory that arrays must not share: the first addresses of its pieces, sorted, and for each the end of
    what reaches furthest of the pieces up to it.
    """

    def __init__(self, arrays: Sequence[Lying], starts: Sequence[int], ends: Sequence[int]) -> None:
        self.lengths = np.array([n for _, *both, _ in arrays for lengths in both for n in lengths], np.int64)
        self.expected = np.zeros((len(arrays), FIELDS), np.int64)
        self.starts, self.ends = np.array(starts, np.int64), np.array(ends, np.int64)
        self.into = np.empty(len(arrays), np.int64)
        at = address_of(self.lengths)
        for row, (dtype, shape, strides, place) in zip(self.expected, arrays, strict=True):
            (code, bits), axes, size = CODES[dtype], len(shape), math.prod(shape)
            word = axes | code << 32 | bits << 40 | 1 << 48
            row[:] = word, at, at + 8 * axes, _in_order(shape, strides), bits // 8, size * bits // 8, place
            at += 16 * axes
        self.record = fill(
            CAPSULES, count=len(arrays), head=HEAD, kind=capsule_type(), old_name=OLD, new_name=NEW,
            expected=self.expected, starts=self.starts, ends=self.ends, spans=len(starts), into=self.into,
        )  # fmt: skip
        self.objects, self.at = self.record["objects"], address_of(self.record)

    def read(self, capsules: tuple[Any, ...], known: Sequence[int]) -> list[int]:
        """The address of each array: what is `known` of it, else what its capsule says; -1 where that is not to be.

        Known is 0 where it is not; None instead of a capsule gives -1.
        """
        self.objects[0] = id(capsules) + ITEMS
        self.into[:] = known
        READ_CAPSULES(self.at)
        found: list[int] = self.into.tolist()
        return found


def _in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether the strides are those of C order, which DLPack may leave out."""
    expected = 1
    for length, stride in zip(shape[::-1], strides[::-1], strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
