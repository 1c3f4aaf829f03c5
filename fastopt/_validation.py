"""Checks of users' arrays and numbers, which are returned as kernels need them.

All error messages about a single array are here, except those of arrays that are updated in place (`_parameters`).
TypeError is for a wrong kind or dtype, ValueError for a wrong shape or value: "x must be ...; got ...". Nothing here
changes an array.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ._dlpack import detached
from .kernels.formulas import Domain

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
FLOATS = (FLOAT32, FLOAT64)
BLOCK = 1 << 20  # values that are looked at together


def describe(value: Any) -> str:
    """Description of a value for error messages: "got ..."."""
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return repr(value) if value is None or isinstance(value, str | bool | int | float) else f"a {type(value).__name__}"


def check_name(what: str, name: Any, known: Iterable[str]) -> str:
    """Checks that `name` is one of the known ones; the error lists them in their order."""
    known = tuple(known)
    if not isinstance(name, str):
        raise TypeError(f"{what} must be one of {', '.join(known)}; got {describe(name)}")
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return name


def check_class(what: str, name: Any, classes: Mapping[str, Any], *others: tuple[str, str]) -> Any:
    """Return the class of a name, however it is written: "max_norm", "MaxNorm" or "maxnorm".

    others: names of another library and ours.

    >>> check_class("a constraint", "NonNeg", {"non_negative": bool}, ("non_neg", "non_negative"))
    <class 'bool'>
    """
    known = {_bare(ours): ours for ours in classes} | {_bare(theirs): ours for theirs, ours in others}
    return classes[check_name(what, known.get(_bare(name), name) if isinstance(name, str) else name, classes)]


def _bare(name: str) -> str:
    return name.replace("_", "").lower()


def plain(name: str, value: Any) -> np.ndarray:
    """A NumPy array of any dtype and layout; of the base class, and a view of the user's memory if that is possible.

    A tensor that requires gradients is detached: the caller computes its gradients.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: the mask would be ignored (use .filled)")
    try:
        return np.asarray(detached(value))
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}") from None
    except (RuntimeError, TypeError) as error:  # such as torch's, of tensors on other devices
        raise TypeError(f"{name}, {describe(value)}, cannot be read as a NumPy array: {error}") from None


def native_float(name: str, array: np.ndarray, dtype: np.dtype | None = None) -> np.dtype:
    """Native dtype of an array of float32 or float64 in any byte order; if `dtype` is given, it must be that."""
    native = array.dtype.newbyteorder("=")
    if native not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64; got {array.dtype}")
    if dtype is not None and native != dtype:
        raise TypeError(f"{name} must be {dtype} like the arrays it is used with; got {array.dtype}")
    return FLOAT32 if native == FLOAT32 else FLOAT64


def as_float_array(name: str, value: Any, dtype: np.dtype | None = None) -> np.ndarray:
    """A float array for kernels: C-contiguous, aligned, native; copied only if needed.

    Arrays must be float32 or float64, and `dtype` if that is given. Lists and numbers become `dtype`, or float64.
    """
    array = plain(name, value)
    if isinstance(value, list | tuple | int | float):
        check_real(name, array, value)
        return np.ascontiguousarray(array, dtype or FLOAT64).reshape(array.shape)
    return np.require(array, native_float(name, array, dtype), ["C", "A"])


def own(array: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Copy of an array that we keep: C-contiguous, aligned, writeable, of the native `dtype`.

    `astype` and `np.array` keep the order of the axes by default: a transposed array would stay columns first, and
    kernels would read its columns as rows.

    >>> own(np.arange(6.0).reshape(2, 3).T, np.float32).flags.c_contiguous
    True
    """
    return np.array(array, np.dtype(dtype).newbyteorder("="), order="C", copy=True, subok=False)


def as_numbers(name: str, value: Any, dtype: np.dtype | type) -> np.ndarray:
    """Real numbers of any dtype (such as the bytes of images, or a table of counts), converted to `dtype`."""
    array = plain(name, value)
    check_real(name, array, value)
    with np.errstate(over="ignore"):  # values out of range become inf, which `check_finite` reports
        return np.require(array, dtype, ["C", "A"])


def check_real(name: str, array: np.ndarray, value: Any) -> None:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers; got {array.dtype} ({describe(value)})")


def check_matrix(
    name: str, array: np.ndarray, columns: int | None = None, rows: int | None = None, shape: str = "(batch, features)"
) -> np.ndarray:
    """Checks for a matrix of at least one row and one column, and of exactly `rows` and `columns` if given."""
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
    """Checks for NaN and infinity; the error has the index of the first one."""
    is_small = array.size <= BLOCK
    if not (np.isfinite(array).all() if is_small else all(np.isfinite(block).all() for block in blocks_of(array))):
        bad = ~np.isfinite(array)
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name} must be finite; got {array[first]} at index {first if len(first) != 1 else first[0]}"
            f" ({np.count_nonzero(bad)} such value(s))"
        )
    return array


def check_labels(name: str, value: Any, classes: int, rows: int | None = None) -> np.ndarray:
    """Class numbers 0 ... classes - 1 as a contiguous int64 vector; floats must be whole numbers."""
    array = plain(name, value)
    check_real(name, array, value)
    if array.dtype.kind == "b":
        raise TypeError(f"{name} must be integer class labels; got bool")
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
    """Indices of rows of an array, integers from 0 to rows - 1, as a new int64 vector."""
    array = plain(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers; got {array.dtype} ({describe(value)})")
    if array.ndim != 1:
        raise ValueError(f"{name} must be a vector of row indices, of shape (k,); got shape {array.shape}")
    wrong = (array < 0) | (array >= rows)
    if wrong.any():
        first = int(np.argmax(wrong))
        expected = f"in 0 ... {rows - 1}" if rows else "none"
        raise ValueError(f"{name} must be {expected}, as {of} has {rows} row(s); got {array[first]} at index {first}")
    return own(array, np.int64)


def blocks_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """Iterate over an array's rows, some BLOCK values at a time: what is made of a block stays in the cache."""
    if array.size <= BLOCK or not array.ndim:
        yield array
        return
    rows = max(1, BLOCK * len(array) // array.size)
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def check_range(name: str, array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Checks for finite values in [low, high]."""
    check_finite(name, array)
    wrong = (array < low) | (array > high)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name} must be in [{low:g}, {high:g}]; got {array[first]} at index {first}")
    return array


def check_row_sums(name: str, array: np.ndarray, tolerance: float = 1e-3) -> np.ndarray:
    """Checks that rows sum to 1, like one-hot targets and probabilities; the tolerance admits three decimals."""
    sums = array.sum(axis=1, dtype=np.float64)
    wrong = np.abs(sums - 1.0) > tolerance
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"every row of {name} must sum to 1 (one-hot or probabilities); row {first} sums to {sums[first]:g}"
        )
    return array


def as_signs(name: str, array: np.ndarray) -> np.ndarray:
    """Targets as -1 and 1; 0 stands for -1 if there are only 0 and 1."""
    for first, second in ((-1, 1), (0, 1)):
        if ((array == first) | (array == second)).all():
            return np.where(array == first, array.dtype.type(-1), array.dtype.type(1))
    raise ValueError(f"{name} must be -1 and 1, or 0 and 1; got values {_some(array)}")


def _some(array: np.ndarray) -> str:
    values = np.unique(array)
    return ", ".join(str(v) for v in values[:5]) + (" ..." if len(values) > 5 else "")


# ---------------------------------------------------------------- numbers, and rows of a data set


def check_count(what: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`, as a Python int."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{what} must be a whole number; got {describe(value)}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}; got {value}")
    return int(value)


def check_number(what: str, value: Any, low: float, high: float = float("inf")) -> float:
    """A number in [low, high), as a Python float."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{what} must be a number; got {describe(value)}")
    if not low <= value < high:
        expected = f"at least {low:g}, and finite" if high == float("inf") else f"in [{low:g}, {high:g})"
        raise ValueError(f"{what} must be {expected}; got {value}")
    return float(value)


def check_in_domain(name: str, value: Any, domain: Domain) -> float | bool | None:
    """A number, flag or None of the domain, as Python's own; the error names the domain."""
    if value is None and domain.optional:
        return None
    kinds = bool | int | float | np.bool_ | np.integer | np.floating
    if not isinstance(value, kinds) or (isinstance(value, bool | np.bool_) and not domain.flag):
        raise TypeError(f"{name} must be {domain}; got {describe(value)}")
    if value not in domain:
        raise ValueError(f"{name} must be {domain}; got {value}")
    if domain.choices:
        return int(value)
    return bool(value) if domain.flag else float(value)


def check_flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{what} must be True or False; got {describe(value)}")
    return bool(value)


def finite_rows(array: np.ndarray) -> np.ndarray:
    """Boolean vector: rows (along the first axis) of an array of real numbers without NaN and infinity."""
    if array.dtype.kind != "f":
        return np.ones(len(array), bool)
    finite = [np.isfinite(block).reshape(len(block), -1).all(axis=1) for block in blocks_of(array)]
    return np.concatenate(finite)
