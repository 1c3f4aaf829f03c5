"""Arrays of the host that are updated in place; checks and layout of their gradients and states."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import numpy as np

from .._dlpack import BFLOAT16, ForeignArray, has_dlpack, view_of
from .._validation import FLOAT32, FLOAT64, describe, plain
from ._bits16 import to_float32

FLOAT16 = np.dtype(np.float16)
_NAMES: dict[np.dtype[Any], str] = {
    FLOAT32: "float32", FLOAT64: "float64", FLOAT16: "float16", BFLOAT16: "bfloat16",
}  # fmt: skip
_BITS = np.dtype(np.uint16)
# The dtypes of kernels, by name; bfloat16 is its bits.
KERNEL_DTYPES: dict[str, np.dtype[Any]] = {**{name: dtype for dtype, name in _NAMES.items()}, "bfloat16": _BITS}


def dtype_name_of(dtype: np.dtype) -> str:
    """Name of a dtype in either byte order: a key of KERNEL_DTYPES for those that are known."""
    return _NAMES.get(dtype) or _NAMES.get(dtype.newbyteorder("=")) or dtype.name  # that of ml_dtypes is "bfloat16"


def bits_of(array: np.ndarray) -> np.ndarray:
    """The bits of a bfloat16 array, which comes from ml_dtypes or through DLPack; a view."""
    return array.view(_BITS.newbyteorder(array.dtype.byteorder))


class Parameter:
    """An array that is updated in place, and the view of it that kernels use, which need contiguous arrays.

    `kernel_view` is a C-contiguous view of the same memory if the elements lie densely in some order of the axes (C or
    Fortran order, any transpose); `axes` is that order: `array.transpose(axes)` is C-contiguous. For other arrays
    (gaps, negative strides, swapped bytes, misaligned) it is None: `load` makes a copy, `store` writes it back.

    `array` is a NumPy view of another library's array, which is `foreign`. For bfloat16, which NumPy does not have,
    `array` and `kernel_view` hold the bits, `dtype_name` is "bfloat16", and `gradient_dtype` that of NumPy gradients.
    """

    __slots__ = (
        "array", "axes", "dtype", "dtype_name", "foreign", "gradient_dtype", "kernel_view", "name", "user_array",
    )  # fmt: skip

    def __init__(self, name: str, value: Any) -> None:
        foreign = not isinstance(value, np.ndarray)
        if foreign and not has_dlpack(value):
            raise TypeError(
                f"{name} must be a NumPy array, or another that speaks __dlpack__, which can be updated in place;"
                f" got {describe(value)}"
            )
        self.name = name
        self.foreign = ForeignArray(name, value) if foreign else None
        array = self.foreign.array if self.foreign else plain(name, value)
        self.user_array = value if foreign else array
        self.dtype_name = dtype_name_of(array.dtype)
        if self.dtype_name not in KERNEL_DTYPES:
            raise TypeError(f"{name} must be float32, float64, float16 or bfloat16; got {array.dtype}")
        self.dtype = self.gradient_dtype = KERNEL_DTYPES[self.dtype_name]
        if self.dtype_name == "bfloat16":
            self.gradient_dtype = self.dtype if foreign else np.dtype(array.dtype.type)
            array = bits_of(array)
        self.array = array
        if not array.flags.writeable:
            raise ValueError(f"{name} is read-only and cannot be updated in place")
        if _may_overlap_itself(array):
            raise ValueError(f"elements of {name} share memory (strides {array.strides}, shape {array.shape})")
        in_order = tuple(range(array.ndim))
        axes = in_order if array.flags.c_contiguous else tuple(sorted(in_order, key=lambda i: -array.strides[i]))
        transposed = array.transpose(axes)
        dense = transposed.flags.carray and array.dtype.isnative
        self.axes = axes if dense else in_order
        self.kernel_view = transposed.view(self.dtype) if dense else None

    @property
    def usable_as_is(self) -> bool:
        """True if kernels use the array, and C-contiguous gradients, exactly as they are."""
        return self.kernel_view is not None and self.array.flags.c_contiguous

    @property
    def is_16bit(self) -> bool:
        """True for float16 and bfloat16, whose states are float32."""
        return self.dtype.itemsize == 2

    @property
    def state_dtype(self) -> np.dtype:
        """The dtype of states."""
        return FLOAT32 if self.is_16bit else self.dtype

    def load(self) -> np.ndarray:
        """The array as kernels update it: `kernel_view`, or a copy that `store` writes back."""
        return np.array(self.array, self.dtype, order="C") if self.kernel_view is None else self.kernel_view

    def store(self, loaded: np.ndarray) -> None:
        if loaded is not self.kernel_view:
            self.array[...] = loaded

    def new_state(self, fill: float) -> np.ndarray:
        """A state for kernels, laid out like `kernel_view`."""
        return np.full([self.array.shape[axis] for axis in self.axes], fill, self.state_dtype)

    def new_copy(self) -> np.ndarray:
        """A master copy of a 16-bit array."""
        return to_float32(self.load())

    def to_kernel_layout(self, array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
        """An array of the parameter's shape, transposed like `kernel_view`, contiguous, native; copied only if needed.

        dtype: of the result; None: the parameter's.
        """
        dtype, transposed = dtype or self.dtype, array.transpose(self.axes)
        flags = transposed.flags
        if flags.c_contiguous and flags.aligned and transposed.dtype == dtype:  # half of the time of `require`
            return transposed
        return np.require(transposed, dtype, ["C", "A"])

    def to_user_layout(self, state: np.ndarray) -> np.ndarray:
        """A state in the parameter's own shape; a view."""
        if self.axes == tuple(range(len(self.axes))):
            return state
        return state.transpose([self.axes.index(axis) for axis in range(len(self.axes))])

    def check_like(self, name: str, value: Any, rows: int | None = None, state: bool = False) -> np.ndarray:
        """Checks the shape and dtype (in either byte order) of a gradient or state, and returns it as a NumPy array.

        rows: number of rows that it must have instead of the parameter's own.
        state: True admits float32 beside the dtype of a 16-bit parameter.
        """
        if isinstance(value, np.generic):  # arithmetic on 0-d arrays gives scalars
            value = np.asarray(value)
        if isinstance(value, np.ndarray):
            array = plain(name, value)
        elif has_dlpack(value):
            array = view_of(name, value)
        else:
            raise TypeError(
                f"{name} must be a NumPy array, or another that speaks __dlpack__, like {self.name};"
                f" got {describe(value)}"
            )
        kind = dtype_name_of(array.dtype)
        if kind != self.dtype_name and not (state and self.is_16bit and kind == "float32"):
            also = "float32, or " if state and self.is_16bit else ""
            raise TypeError(
                f"{name} must be {also}{self.dtype_name} like {self.name};"
                f" got {kind if array.dtype == BFLOAT16 else array.dtype}"
            )
        if rows is None and array.shape != self.array.shape:
            raise ValueError(f"{name} must have the shape {self.array.shape} of {self.name}; got {array.shape}")
        if rows is not None and array.shape != (rows, *self.array.shape[1:]):
            raise ValueError(
                f"{name} must have the shape {(rows, *self.array.shape[1:])}: a row for each index, like those of"
                f" {self.name}, whose shape is {self.array.shape}; got {array.shape}"
            )
        return bits_of(array) if kind == "bfloat16" else array


def root(array: np.ndarray) -> np.ndarray | None:
    """The array that owns the memory; None where that is not NumPy's (a memory map, a buffer, another library)."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array if array.base is None and array.flags.owndata else None


class Memory:
    """Memory of all parameters: refuses overlapping ones, and gradients that overlap any of them."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        spans = sorted(((*_span(p.array), p) for p in parameters if p.array.size), key=lambda span: span[:2])
        self._parameters = [parameter for _, _, parameter in spans]
        self.starts = [start for start, _, _ in spans]
        self.reach: list[int] = []  # the highest end of all spans up to this one
        for position, (start, end, parameter) in enumerate(spans):
            clash = self._find(parameter.array, start, position)
            if clash is not None:
                first, second = sorted((clash.name, parameter.name))
                raise ValueError(f"{first} and {second} share memory; each array must be given once")
            self.reach.append(max(end, self.reach[-1]) if position else end)
        owners = [root(p.array) for p in self._parameters]
        # A gradient that owns its memory, and whose memory no parameter uses, overlaps none: no addresses are compared.
        self.owners = {id(owner) for owner in owners if owner is not None}
        self.has_foreign = any(owner is None for owner in owners)

    def check_gradient(self, name: str, gradient: np.ndarray) -> None:
        owner = root(gradient)
        if gradient.size == 0 or not (self.has_foreign or owner is None or id(owner) in self.owners):
            return
        start, end = _span(gradient)
        clash = self._find(gradient, start, bisect_left(self.starts, end))
        if clash is not None:
            raise ValueError(f"{name} shares memory with {clash.name}, which the step changes")

    def _find(self, array: np.ndarray, start: int, position: int) -> Parameter | None:
        """The parameter among the first `position` that shares memory with the array, which begins at `start`."""
        while position and self.reach[position - 1] > start:
            position -= 1
            if _share_memory(self._parameters[position].array, array):
                return self._parameters[position]
        return None


def _span(array: np.ndarray) -> tuple[int, int]:
    """First byte, and one past the last."""
    start = end = array.__array_interface__["data"][0]
    if array.flags.c_contiguous:
        return start, start + max(array.nbytes, array.itemsize)
    if array.size:
        for length, stride in zip(array.shape, array.strides, strict=True):
            start, end = (start, end + (length - 1) * stride) if stride > 0 else (start + (length - 1) * stride, end)
    return start, end + array.itemsize


def _share_memory(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type] # stubs: 0 and -1 only
    except np.exceptions.TooHardError:  # interleaved in a way too hard to decide: taken for overlapping
        return True


def _may_overlap_itself(array: np.ndarray) -> bool:
    """True if an axis steps less far than the axes inside it reach, as in broadcast or sliding-window views."""
    if array.flags.forc or array.size == 0:
        return False
    reach = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += (length - 1) * stride
    return False
