"""Arrays of any library, by their capsules of DLPack, read by compiled code.

Python takes 8 us to read and check a capsule, field by field; a kernel does that in some 20 ns. It reads the layouts
that CPython defines for a capsule and DLPack for its content:

    PyCapsule            head, pointer, name
    dltensor             DLTensor
    dltensor_versioned   major and minor (32 bits each), manager, deleter, flags, DLTensor
    DLTensor             data, device's type and number (32 bits each), ndim (32) with code and bits (8 each) and lanes
                         (16), shape, strides, offset in bytes

`capsule_type` tests whether capsules lie so in this process. Source: https://dmlc.github.io/dlpack/latest/c_api.html.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.primitives import address_of, view
from ..runtime.records import CAPSULES, fill, read
from .arrays import HEADER_BYTES, ITEMS_OFFSET, LOW_32_BITS, layout_known, lower_bound

CODES = {"float32": (2, 32), "float64": (2, 64), "float16": (2, 16), "bfloat16": (4, 16)}
OLD, NEW = (np.frombuffer(name + b"\0", np.uint8) for name in (b"dltensor", b"dltensor_versioned"))
BEFORE_TENSOR = 32  # bytes in front of the DLTensor of a versioned capsule
EXPECTED = 7  # words of a row of `expected`
ExpectedArray = tuple[str, tuple[int, ...], tuple[int, ...], int]  # dtype, shape, strides, address


@register_jitable
def _same_text(a, b, size):
    """True if `size` bytes are the same; it reads none behind the first that differs."""
    x, y, i = view(a, size, np.uint8), view(b, size, np.uint8), 0
    while i < size and x[i] == y[i]:
        i += 1
    return i == size


@register_jitable
def _address(capsule, a, expected):
    """The address of an array's elements, if its capsule says what is expected; else -1."""
    # the object's type
    words = view(capsule + a.header_bytes - 8, 3, np.int64)
    if words[0] != a.capsule_type:
        return -1
    # the capsule's name, and the version of a versioned one
    tensor = words[1]
    if _same_text(words[2], a.new_name, NEW_SIZE):
        if (view(tensor, 1, np.int64)[0] & LOW_32_BITS) != 1:
            return -1
        tensor += BEFORE_TENSOR
    elif not _same_text(words[2], a.old_name, OLD_SIZE):
        return -1
    # data, device (CPU, or memory of CUDA or ROCm that the host may read), dtype and axes
    fields, axes = view(tensor, 6, np.int64), expected[0] & LOW_32_BITS
    device = fields[1] & LOW_32_BITS
    on_host = device == 1 or device == 3 or device == 11
    if fields[0] == 0 or not on_host or fields[2] != expected[0] or (fields[4] == 0 and expected[3] == 0):
        return -1
    # shape
    shape, lengths = view(fields[3], axes, np.int64), view(expected[1], 2 * axes, np.int64)
    for axis in range(axes):
        if shape[axis] != lengths[axis]:
            return -1
    # strides
    if fields[4] != 0:
        strides = view(fields[4], axes, np.int64)
        for axis in range(axes):
            if shape[axis] > 1 and strides[axis] != lengths[axes + axis]:
                return -1
    return fields[0] + fields[5]


def _read_capsules(work):
    """The address of each array: known, or read from its capsule; -1 where it is not as expected."""
    a = read(work, CAPSULES)
    objects, into = view(a.objects, a.count, np.int64), view(a.into, a.count, np.int64)
    starts, ends = view(a.starts, a.spans, np.int64), view(a.ends, a.spans, np.int64)
    for i in range(a.count):
        expected = view(a.expected + i * EXPECTED * 8, EXPECTED, np.int64)
        itemsize, size, required = expected[4], expected[5], expected[6]
        address = into[i] if into[i] > 0 else _address(objects[i], a, expected)
        # aligned
        if address > 0 and address & (itemsize - 1):
            address = -1
        # at the address that it must have, or in memory that it shares with none
        if required != 0:
            address = required if address == required else -1
        elif address > 0:
            before = lower_bound(starts, a.spans, address + size)
            if before > 0 and ends[before - 1] > address:
                address = -1
        into[i] = address


OLD_SIZE, NEW_SIZE = len(OLD), len(NEW)
READ_CAPSULES = Kernel(_read_capsules, "read_capsules")


@cache
def capsule_type() -> int:
    """The address of the type of capsules, if they lie in memory as the kernel expects (tried on one); else 0."""
    try:
        capsule = np.zeros((2, 3), np.float32).__dlpack__()
    except Exception:  # an older NumPy
        return 0
    if not layout_known() or type(capsule).__basicsize__ < HEADER_BYTES + 16:
        return 0
    kind, pointer, name = (ctypes.c_int64 * 3).from_address(id(capsule) + HEADER_BYTES - 8)
    ask = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    right = ask(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, b"dltensor") == pointer
    return kind if right and kind == id(type(capsule)) and ctypes.string_at(name) == b"dltensor" else 0


class Capsules:
    """Reader of some arrays' capsules: the address of each array that is as expected.

    arrays: dtype, shape, strides (in elements; those of axes of length 1 do not matter), and the address, or 0 for an
        array that may be anywhere in memory of its own.
    starts, ends: memory that those must not share: the first addresses of its spans, sorted, and for each the furthest
        end of the spans up to it.
    """

    def __init__(self, arrays: Sequence[ExpectedArray], starts: Sequence[int], ends: Sequence[int]) -> None:
        self.lengths = np.array([n for _, *both, _ in arrays for lengths in both for n in lengths], np.int64)
        self.expected = np.zeros((len(arrays), EXPECTED), np.int64)
        self.starts, self.ends = np.array(starts, np.int64), np.array(ends, np.int64)
        self.into = np.empty(len(arrays), np.int64)
        address = address_of(self.lengths)
        for row, (dtype, shape, strides, required) in zip(self.expected, arrays, strict=True):
            (code, bits), axes, size = CODES[dtype], len(shape), math.prod(shape)
            word = axes | code << 32 | bits << 40 | 1 << 48
            row[:] = (
                word, address, address + 8 * axes, _in_order(shape, strides), bits // 8, size * bits // 8, required,
            )  # fmt: skip
            address += 16 * axes
        self.record = fill(
            CAPSULES, count=len(arrays), header_bytes=HEADER_BYTES, capsule_type=capsule_type(), old_name=OLD,
            new_name=NEW, expected=self.expected, starts=self.starts, ends=self.ends, spans=len(starts), into=self.into,
        )  # fmt: skip
        self.objects, self.address = self.record["objects"], address_of(self.record)

    def read(self, capsules: tuple[Any, ...], known: Sequence[int]) -> list[int]:
        """The address of each array: the known one, else that of its capsule; -1 if it is not as expected.

        known: 0 where it is not. None instead of a capsule gives -1.
        """
        self.objects[0] = id(capsules) + ITEMS_OFFSET
        self.into[:] = known
        READ_CAPSULES(self.address)
        found: list[int] = self.into.tolist()
        return found


def _in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True if the strides are those of C order, which DLPack may leave out."""
    expected = 1
    for length, stride in zip(shape[::-1], strides[::-1], strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
