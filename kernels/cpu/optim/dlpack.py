"""Arrays of any library, read by compiled code: by their capsules of DLPack, or by DLPack's C exchange API.

Python takes 8 us to read and check a capsule, field by field; a kernel does that in some 20 ns. It reads the layouts
that CPython defines for a capsule and DLPack for its content:

    PyCapsule            head, pointer, name
    dltensor             DLTensor
    dltensor_versioned   major and minor (32 bits each), manager, deleter, flags, DLTensor
    DLTensor             data, device's type and number (32 bits each), ndim (32) with code and bits (8 each) and lanes
                         (16), shape, strides, offset in bytes
    DLPackExchangeAPI    major and minor (32 bits each), an older API or null, five functions: the fourth,
                         dltensor_from_py_object_no_sync(object, DLTensor*), describes an array without owning it

Tensors of torch 2.10 and newer are read without capsules: the kernel itself calls the exchange API's function, 40 ns a
tensor. The GIL is held meanwhile, as that function requires.

`capsule_type` and `tensor_exchange` test whether all lies so in this process.
Source: https://dmlc.github.io/dlpack/latest/c_api.html.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.primitives import INTERPRETED, address_of, call_exchange, python_address, view
from ..runtime.records import FOREIGN, fill, read
from .arrays import HEADER_BYTES, ITEMS_OFFSET, LOW_32_BITS, layout_known, lower_bound

CODES = {"float32": (2, 32), "float64": (2, 64), "float16": (2, 16), "bfloat16": (4, 16), "uint8": (1, 8)}
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
def _capsule_tensor(capsule, a):
    """The address of a capsule's DLTensor; 0 if its name or version is not known."""
    words = view(capsule + a.header_bytes, 2, np.int64)
    if _same_text(words[1], a.old_name, OLD_SIZE):
        return words[0]
    if _same_text(words[1], a.new_name, NEW_SIZE) and (view(words[0], 1, np.int64)[0] & LOW_32_BITS) == 1:
        return words[0] + BEFORE_TENSOR
    return 0


@register_jitable
def _address(tensor, expected):
    """The address of an array's elements, if its DLTensor says what is expected; else -1."""
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


def _read_foreign(work):
    """The address of each array: known, or read from its capsule or tensor; -1 where it is not as expected."""
    a = read(work, FOREIGN)
    a.unfit = 0
    objects, into = view(a.objects, a.count, np.int64), view(a.into, a.count, np.int64)
    starts, ends = view(a.starts, a.spans, np.int64), view(a.ends, a.spans, np.int64)
    rows = view(a.rows, a.count, np.int64)
    for i in range(a.count):
        expected = view(a.expected + (rows[i] if a.rows else i) * EXPECTED * 8, EXPECTED, np.int64)
        itemsize, size, required = expected[4], expected[5], expected[6]
        # known, or by the object's type
        address = into[i] if a.knows else 0
        if address <= 0:
            kind, tensor = view(objects[i] + a.header_bytes - 8, 1, np.int64)[0], 0
            if kind == a.capsule_type:
                tensor = _capsule_tensor(objects[i], a)
            elif a.exchange != 0 and (kind == a.tensor_type or kind == a.parameter_type):
                if call_exchange(a.exchange, objects[i], a.tensor) != 0:
                    # Python's error is set, under which nothing of Python's may be called: the others stay unread
                    into[i:] = -1
                    a.unfit += a.count - i
                    return
                tensor = a.tensor
            address = _address(tensor, expected) if tensor != 0 else -1
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
        a.unfit += address <= 0


OLD_SIZE, NEW_SIZE = len(OLD), len(NEW)
READ_FOREIGN = Kernel(_read_foreign, "read_foreign")


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


class TensorExchange(NamedTuple):
    """torch's side of DLPack's C exchange API."""

    code: int  # address of dltensor_from_py_object_no_sync
    tensor_type: int  # addresses of the types whose objects it may be given
    parameter_type: int


def tensor_exchange() -> TensorExchange | None:
    """The exchange API of torch, if it is imported, has one, and describes tensors as the kernel expects; else None."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "nn") or not hasattr(torch, "zeros"):  # missing while torch is imported
        return None
    return _tensor_exchange(torch)


@cache
def _tensor_exchange(torch: Any) -> TensorExchange | None:
    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)  # from torch 2.10 on
    if capsule is None or not layout_known():
        return None
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    try:
        table = pointer_of(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, b"dlpack_exchange_api")
        code = _exchange_code(table)
        if code and all(_is_described(code, tensor) for tensor in _samples(torch)):
            address = python_address(_exchange_function(code)) if INTERPRETED else code
            return TensorExchange(address, id(torch.Tensor), id(torch.nn.Parameter))
    except Exception:  # a capsule of another name, or a torch that was built without DLPack
        return None
    return None


def _exchange_code(table: int) -> int:
    """The address of dltensor_from_py_object_no_sync in a DLPackExchangeAPI of version 1, or in an older one that it
    names; 0 if there is none."""
    while table:
        version, older, *functions = (ctypes.c_int64 * 7).from_address(table)
        if version & LOW_32_BITS == 1:
            return functions[3]
        table = older
    return 0


def _exchange_function(code: int) -> Callable[[int, int], int]:
    """dltensor_from_py_object_no_sync as a function of Python's, given the addresses of an object and a DLTensor."""
    function = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(code)
    return lambda address, tensor: function(int(address), int(tensor))  # interpreted kernels give NumPy's integers


def _samples(torch: Any) -> list[Any]:
    part = torch.zeros(5, 4, dtype=torch.bfloat16)[1:, ::2]
    return [torch.zeros(2, 3, 4).transpose(0, 2), torch.zeros((), dtype=torch.float64), part]


def _is_described(code: int, tensor: Any) -> bool:
    """True if the function describes a tensor as the kernel expects."""
    fields = (ctypes.c_int64 * 6)()
    if _exchange_function(code)(id(tensor), ctypes.addressof(fields)) != 0:
        return False
    (dtype_code, bits), axes = CODES[str(tensor.dtype).removeprefix("torch.")], tensor.dim()
    described = fields[0], fields[1] & LOW_32_BITS, fields[2], fields[5]
    if described != (tensor.data_ptr(), 1, axes | dtype_code << 32 | bits << 40 | 1 << 48, 0):
        return False
    lengths = [tuple((ctypes.c_int64 * axes).from_address(address)) if axes else () for address in fields[3:5]]
    return lengths == [tuple(tensor.shape), tensor.stride()]


@cache
def _read_with_gil() -> Callable[[int], None]:
    """The kernel as a function that keeps the GIL, and raises what a call of the exchange API has raised."""
    return READ_FOREIGN.run if INTERPRETED else ctypes.PYFUNCTYPE(None, ctypes.c_int64)(READ_FOREIGN.address)


class ForeignReader:
    """Reader of the addresses of arrays of other libraries, if those are as expected.

    It reads capsules of DLPack, and where `reads_tensors()` tensors of torch without one. One call at a time.

    arrays: dtype, shape, strides (in elements; those of axes of length 1 do not matter), and the address, or 0 for an
        array that may be anywhere in memory of its own.
    starts, ends: memory that those must not share: the first addresses of its spans, sorted, and for each the furthest
        end of the spans up to it.
    """

    def __init__(self, arrays: Sequence[ExpectedArray], starts: Sequence[int], ends: Sequence[int]) -> None:
        self.lengths = np.array([n for _, *both, _ in arrays for lengths in both for n in lengths], np.int64)
        self.expected = np.zeros((len(arrays), EXPECTED), np.int64)
        self.starts, self.ends = np.array(starts, np.int64), np.array(ends, np.int64)
        self.into, self.tensor = np.empty(len(arrays), np.int64), np.zeros(6, np.int64)
        address = address_of(self.lengths)
        for row, (dtype, shape, strides, required) in zip(self.expected, arrays, strict=True):
            (code, bits), axes, size = CODES[dtype], len(shape), math.prod(shape)
            word = axes | code << 32 | bits << 40 | 1 << 48
            row[:] = (
                word, address, address + 8 * axes, _in_order(shape, strides), bits // 8, size * bits // 8, required,
            )  # fmt: skip
            address += 16 * axes
        self.record = fill(
            FOREIGN, header_bytes=HEADER_BYTES, capsule_type=capsule_type(), old_name=OLD, new_name=NEW,
            tensor=self.tensor, expected=self.expected, starts=self.starts, ends=self.ends, spans=len(starts),
            into=self.into,
        )  # fmt: skip
        names = ("count", "objects", "knows", "rows", "unfit")
        self.count, self.objects, self.knows, self.rows, self.unfit = (self.record[name] for name in names)
        self.address = address_of(self.record)

    def reads_tensors(self) -> bool:
        """True if tensors of torch can be read without capsules; torch may be imported at any time."""
        exchange = tensor_exchange()
        if exchange is not None:
            row = self.record[0]
            row["exchange"], row["tensor_type"], row["parameter_type"] = exchange
        return exchange is not None

    def locate(self, objects: tuple[Any, ...], rows: np.ndarray | None = None) -> bool:
        """Write the address of each object to `into`, or -1 if it is not as expected; return True if all are.

        rows: (n,) int64, the numbers of the arrays that the n objects stand for; None: 0, 1, ...
        """
        return self._run(objects, 0, 0 if rows is None else address_of(rows))

    def read(self, objects: tuple[Any, ...], known: Sequence[int]) -> list[int]:
        """The address of each array: the known one, else that of its object; -1 if it is not as expected.

        known: 0 where it is not. None instead of an object gives -1.
        """
        self.into[:] = known
        self._run(objects, 1, 0)
        found: list[int] = self.into.tolist()
        return found

    def _run(self, objects: tuple[Any, ...], knows: int, rows: int) -> bool:
        self.count[0], self.objects[0] = len(objects), id(objects) + ITEMS_OFFSET
        self.knows[0], self.rows[0] = knows, rows
        try:
            _read_with_gil()(self.address)
        except Exception:  # of the exchange API, such as for a sparse tensor
            if INTERPRETED:  # a compiled kernel has gone on to its end
                self.into[: len(objects)] = -1
            return False
        return not self.unfit[0]


def _in_order(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True if the strides are those of C order, which DLPack may leave out."""
    expected = 1
    for length, stride in zip(shape[::-1], strides[::-1], strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
