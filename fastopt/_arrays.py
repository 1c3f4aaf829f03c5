"""Any array a user hands over -> a validated one. Every error message about a single array is written here.

TypeError for a wrong kind or dtype, ValueError for a wrong shape or value; a message says what was expected and what
came. Nothing here changes an array.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import numpy as np

from ._dlpack import Lender, detached, speaks_dlpack, view_of

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FLOATS = (FLOAT32, FLOAT64)


def describe(value: Any) -> str:
    """What came, in the words of an error message."""
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return repr(value) if value is None or isinstance(value, str | bool | int | float) else f"a {type(value).__name__}"


def check_name(what: str, name: Any, known: Iterable[str]) -> str:
    """`name` where it is one of the known ones; else a ValueError that lists them in their order."""
    known = tuple(known)
    if not isinstance(name, str):
        raise TypeError(f"{what} must be one of {', '.join(known)}; got {describe(name)}")
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return name


def plain(name: str, value: Any) -> np.ndarray:
    """An array of any dtype and layout, as a base-class view of the user's memory where that is an array already.

    What requires gradients in its own library is taken without them: they are for the caller to work out.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: the mask would be ignored (use .filled)")
    try:
        return np.asarray(detached(value))
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from None
    except (RuntimeError, TypeError) as error:  # such as torch's, of tensors on other devices
        raise TypeError(f"{name}, {describe(value)}, cannot be read as a NumPy array: {error}") from None


def native_float(name: str, array: np.ndarray, dtype: np.dtype | None = None) -> np.dtype:
    """The native float32 or float64 of the array, whatever its byte order; it must be `dtype` where one is given."""
    native = array.dtype.newbyteorder("=")
    if native not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64, not {array.dtype}")
    if dtype is not None and native != dtype:
        raise TypeError(f"{name} must be {dtype} like the arrays it is used with, not {array.dtype}")
    return FLOAT32 if native == FLOAT32 else FLOAT64


def as_float_array(name: str, value: Any, dtype: np.dtype | None = None) -> np.ndarray:
    """A float array for a kernel: C-contiguous, aligned, native; the user's own memory where it is that already.

    Arrays must be float32 or float64, and `dtype` where one is given. Lists and numbers become `dtype`, or float64.
    """
    array = plain(name, value)
    if isinstance(value, list | tuple | int | float):
        check_real(name, array, value)
        return np.ascontiguousarray(array, dtype or FLOAT64).reshape(array.shape)
    return np.require(array, native_float(name, array, dtype), ["C", "A"])


def as_numbers(name: str, value: Any, dtype: np.dtype | type) -> np.ndarray:
    """Real numbers of any dtype (such as the bytes of images, or a table of counts), converted to `dtype`."""
    array = plain(name, value)
    check_real(name, array, value)
    with np.errstate(over="ignore"):  # what does not fit becomes inf, which `check_finite` reports
        return np.require(array, dtype, ["C", "A"])


def check_real(name: str, array: np.ndarray, value: Any) -> None:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, not {array.dtype} (got {describe(value)})")


def check_matrix(
    name: str, array: np.ndarray, columns: int | None = None, rows: int | None = None, shape: str = "(batch, features)"
) -> np.ndarray:
    """A matrix of at least one row and one column, and of exactly `rows` and `columns` where they are given."""
    expected = f"{name} must have shape {shape}"
    if rows is not None or columns is not None:
        expected += f", here ({'any' if rows is None else rows}, {'any' if columns is None else columns})"
    if array.ndim != 2:
        raise ValueError(f"{expected}; got {array.ndim} dimension(s), shape {array.shape}")
    if rows not in (None, array.shape[0]) or columns not in (None, array.shape[1]):
        raise ValueError(f"{expected}; got shape {array.shape}")
    if 0 in array.shape:
        raise ValueError(f"{name} must have at least one row and one column; got shape {array.shape}")
    return array


def check_vector(name: str, array: np.ndarray, length: int, shape: str) -> np.ndarray:
    if array.shape != (length,):
        raise ValueError(f"{name} must have shape {shape}, here ({length},); got shape {array.shape}")
    return array


def check_finite(name: str, array: np.ndarray) -> np.ndarray:
    """No NaN and no infinity; the message says where the first one is."""
    if not np.isfinite(array).all():
        bad = ~np.isfinite(array)
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} must be finite; got {array[first]} at index {first if len(first) != 1 else first[0]}"
            f" ({np.count_nonzero(bad)} such value(s))"
        )
    return array


def check_labels(name: str, value: Any, classes: int, rows: int | None = None) -> np.ndarray:
    """Class numbers 0 ... classes - 1 as a contiguous int64 vector; floats only where they are whole numbers."""
    array = plain(name, value)
    check_real(name, array, value)
    if array.dtype.kind == "b":
        raise TypeError(f"{name} must be integer class labels, not bool")
    expected = f"({'n' if rows is None else rows},)"
    if array.ndim != 1 or (rows is not None and len(array) != rows):
        raise ValueError(f"{name} must be class labels of shape {expected}; got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must have at least one label; got shape {array.shape}")
    if array.dtype.kind == "f":
        check_finite(name, array)
        fractional = array != np.floor(array)
        if fractional.any():
            first = int(np.argmax(fractional))
            raise ValueError(f"{name} must be whole class labels; got {array[first]} at index {first}")
    wrong = (array < 0) | (array >= classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"{name} must be class labels 0 ... {classes - 1}, one for each of the {classes} outputs;"
            f" got {array[first]} at index {first}"
        )
    return np.require(array, np.int64, ["C", "A"])


def check_indices(name: str, value: Any, rows: int, of: str) -> np.ndarray:
    """Indices of the rows of an array as an int64 vector of its own memory: whole numbers from 0 to rows - 1."""
    array = plain(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {array.dtype} (got {describe(value)})")
    if array.ndim != 1:
        raise ValueError(f"{name} must be a vector of row indices, of shape (k,); got shape {array.shape}")
    wrong = (array < 0) | (array >= rows)
    if wrong.any():
        first = int(np.argmax(wrong))
        expected = f"in 0 ... {rows - 1}" if rows else "none"
        raise ValueError(f"{name} must be {expected}, as {of} has {rows} row(s); got {array[first]} at index {first}")
    return np.array(array, np.int64)


def check_range(name: str, array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Finite values in [low, high]."""
    check_finite(name, array)
    wrong = (array < low) | (array > high)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name} must be in [{low:g}, {high:g}]; got {array[first]} at index {first}")
    return array


def check_row_sums(name: str, array: np.ndarray, tolerance: float = 1e-3) -> np.ndarray:
    """Rows that sum to 1, as one-hot targets and probabilities do; the tolerance admits three decimals."""
    sums = array.sum(axis=1, dtype=np.float64)
    wrong = np.abs(sums - 1.0) > tolerance
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"every row of {name} must sum to 1 (one-hot or probabilities); row {first} sums to {sums[first]:g}"
        )
    return array


def as_signs(name: str, array: np.ndarray) -> np.ndarray:
    """Targets -1 and 1; 0 and 1 are taken to mean -1 and 1."""
    for first, second in ((-1, 1), (0, 1)):
        if ((array == first) | (array == second)).all():
            return np.where(array == first, array.dtype.type(-1), array.dtype.type(1))
    raise ValueError(f"{name} must be -1 and 1, or 0 and 1; got values {_some(array)}")


def _some(array: np.ndarray) -> str:
    values = np.unique(array)
    return ", ".join(str(v) for v in values[:5]) + (" ..." if len(values) > 5 else "")


# ---------------------------------------------------------------- arrays that are updated in place


class Parameter:
    """An array that is updated in place, and how kernels, which take contiguous arrays, reach it.

    `work` is a C-contiguous view of the same memory wherever the elements lie densely in some order of the axes (C or
    Fortran order, any transpose); `axes` is that order, so that `array.transpose(axes)` is C-contiguous. Elsewhere
    (gaps, negative strides, swapped bytes, misaligned) `work` is None: `load` copies, `store` writes the copy back.
    Of another library's array, `array` is a view, and `lender` knows it.
    """

    __slots__ = ("array", "axes", "dtype", "lender", "name", "work")

    def __init__(self, name: str, value: Any) -> None:
        foreign = not isinstance(value, np.ndarray)
        if foreign and not speaks_dlpack(value):
            raise TypeError(
                f"{name} must be a NumPy array, or another that speaks __dlpack__, which can be updated in place;"
                f" got {describe(value)}"
            )
        self.name = name
        self.lender = Lender(name, value) if foreign else None
        self.array = array = self.lender.array if self.lender else plain(name, value)
        self.dtype = native_float(name, array)
        if not array.flags.writeable:
            raise ValueError(f"{name} is read-only and cannot be updated in place")
        if _may_overlap_itself(array):
            raise ValueError(f"elements of {name} share memory (strides {array.strides}, shape {array.shape})")
        in_order = tuple(range(array.ndim))
        axes = in_order if array.flags.c_contiguous else tuple(sorted(in_order, key=lambda i: -array.strides[i]))
        turned = array.transpose(axes)
        dense = turned.flags.carray and array.dtype.isnative
        self.axes = axes if dense else in_order
        self.work = turned.view(self.dtype) if dense else None

    @property
    def direct(self) -> bool:
        """Whether kernels use the array, and C-contiguous gradients, exactly as they are."""
        return self.work is not None and self.array.flags.c_contiguous

    def load(self) -> np.ndarray:
        return np.array(self.array, self.dtype, order="C") if self.work is None else self.work

    def store(self, work: np.ndarray) -> None:
        if work is not self.work:
            self.array[...] = work

    def new_state(self, fill: float) -> np.ndarray:
        """A state for kernels, laid out as `work`; `outward` shows it in the array's own shape."""
        return np.full([self.array.shape[axis] for axis in self.axes], fill, self.dtype)

    def inward(self, array: np.ndarray) -> np.ndarray:
        """An array of the parameter's shape as kernels see it: turned, contiguous, native; copied only if needed."""
        turned = array.transpose(self.axes)
        flags = turned.flags
        if flags.c_contiguous and flags.aligned and turned.dtype == self.dtype:  # half of the time of `require`
            return turned
        return np.require(turned, self.dtype, ["C", "A"])

    def outward(self, state: np.ndarray) -> np.ndarray:
        """A state in the parameter's own shape; the same memory."""
        if self.axes == tuple(range(len(self.axes))):
            return state
        return state.transpose([self.axes.index(axis) for axis in range(len(self.axes))])

    def check_like(self, name: str, value: Any, rows: int | None = None) -> np.ndarray:
        """An array of the parameter's shape and dtype (in either byte order): a gradient, or a state.

        rows: how many the array must have instead of the parameter's own number.
        """
        if isinstance(value, np.generic):  # arithmetic on 0-d arrays gives scalars
            value = np.asarray(value)
        if isinstance(value, np.ndarray):
            array = plain(name, value)
        elif speaks_dlpack(value):
            array = view_of(name, value)
        else:
            raise TypeError(
                f"{name} must be a NumPy array, or another that speaks __dlpack__, like {self.name};"
                f" got {describe(value)}"
            )
        if array.dtype.newbyteorder("=") != self.dtype:
            raise TypeError(f"{name} must be {self.dtype} like {self.name}; got {array.dtype}")
        if rows is None and array.shape != self.array.shape:
            raise ValueError(f"{name} must have the shape {self.array.shape} of {self.name}; got {array.shape}")
        if rows is not None and array.shape != (rows, *self.array.shape[1:]):
            raise ValueError(
                f"{name} must have the shape {(rows, *self.array.shape[1:])}: a row for each index, like those of"
                f" {self.name}, whose shape is {self.array.shape}; got {array.shape}"
            )
        return array


def root(array: np.ndarray) -> np.ndarray | None:
    """The array that owns the memory; None where that is not NumPy's (a memory map, a buffer, another library)."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array if array.base is None and array.flags.owndata else None


class Memory:
    """Where the parameters lie: refuses overlapping ones, and gradients that overlap any of them."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        spans = sorted(((*_span(p.array), p) for p in parameters if p.array.size), key=lambda span: span[:2])
        self._parameters = [parameter for _, _, parameter in spans]
        self._starts = [start for start, _, _ in spans]
        self._reach: list[int] = []  # the highest end of all up to this one
        for position, (start, end, parameter) in enumerate(spans):
            clash = self._find(parameter.array, start, position)
            if clash is not None:
                first, second = sorted((clash.name, parameter.name))
                raise ValueError(f"{first} and {second} share memory; each array must be given once")
            self._reach.append(max(end, self._reach[-1]) if position else end)
        owners = [root(p.array) for p in self._parameters]
        # A gradient that owns its memory, and whose memory no parameter uses, overlaps none: no addresses are compared.
        self.owners = {id(owner) for owner in owners if owner is not None}
        self.foreign = any(owner is None for owner in owners)

    def check_gradient(self, name: str, gradient: np.ndarray) -> None:
        owner = root(gradient)
        if gradient.size == 0 or not (self.foreign or owner is None or id(owner) in self.owners):
            return
        start, end = _span(gradient)
        clash = self._find(gradient, start, bisect_left(self._starts, end))
        if clash is not None:
            raise ValueError(f"{name} shares memory with {clash.name}, which the step changes")

    def _find(self, array: np.ndarray, start: int, position: int) -> Parameter | None:
        """The parameter among the first `position` that shares memory with the array, which begins at `start`."""
        while position and self._reach[position - 1] > start:
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
    """Whether an axis steps less far than the axes inside it reach, as in broadcast or sliding-window views."""
    if array.flags.forc or array.size == 0:
        return False
    reach = array.itemsize
    for stride, length in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach += (length - 1) * stride
    return False


# ---------------------------------------------------------------- numbers, and rows of a data set


def check_count(what: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`, as Python's own."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{what} must be a whole number; got {describe(value)}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}; got {value}")
    return int(value)


def check_number(what: str, value: Any, low: float, high: float = float("inf")) -> float:
    """A number in [low, high), as Python's own."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{what} must be a number; got {describe(value)}")
    if not low <= value < high:
        expected = f"at least {low:g}, and finite" if high == float("inf") else f"in [{low:g}, {high:g})"
        raise ValueError(f"{what} must be {expected}; got {value}")
    return float(value)


def check_flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{what} must be True or False; got {describe(value)}")
    return bool(value)


def finite_rows(array: np.ndarray) -> np.ndarray:
    """Which rows (along the first axis) of an array of real numbers hold no NaN and no infinity."""
    if array.dtype.kind != "f":
        return np.ones(len(array), bool)
    return np.isfinite(array).reshape(len(array), -1).all(axis=1)
