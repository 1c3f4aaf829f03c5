"""Features of users as kernels read them: in their own dtype and memory, prepared as a batch is gathered."""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from .. import _frames, _validation
from .._frames import Features
from ..kernels.sources import STORED, Source, SparseRows, Stage, is_direct, through

# Numbers up to which rows that are a single batch are prepared here: `predict` of a row through a Normalization takes
# 18 us for 33. Of 1,000 rows of 784 bytes through a Rescaling it would take 4.5 ms for 0.24.
SMALL = 4096
ONE_BATCH = 1 << 62  # a batch size for rows that are one batch, however many they are
FEW = 4096  # numbers of which the BLAS adds up the squares on the calling thread
# Bytes up to which an array columns first is copied. An epoch of 20,032 x 784 float32 takes 1.45 times as long without,
# as a row is read from as many places as it has columns; but a large copy may not fit in memory.
COPIED = 128 << 20
log = logging.getLogger("fastopt")
NATIVE = frozenset(map(np.dtype, STORED))


def readable(values: np.ndarray | SparseRows, dtype: np.dtype) -> np.ndarray | SparseRows:
    """Return a matrix in a layout that kernels read: the same memory, or a copy if it is small and not memory-mapped.

    Copied, in their own dtype, are arrays columns first, and those that are not aligned. Long double becomes `dtype`.
    """
    if isinstance(values, SparseRows):
        return values
    if type(values) is not np.ndarray:
        values = np.asarray(values)
    if values.dtype not in NATIVE and values.dtype.newbyteorder("=") not in NATIVE:
        with np.errstate(over="ignore"):
            return np.require(values, dtype, ["C", "A"])
    flags = values.flags
    if (flags.c_contiguous and flags.aligned) or is_mapped(values):
        return values
    by_columns = abs(values.strides[1]) > abs(values.strides[0]) and len(values) > 1
    if not by_columns and flags.aligned:
        return values
    if values.nbytes <= COPIED:
        return np.array(values, order="C")
    log.info("x has its columns first in memory: np.ascontiguousarray(x), of %d bytes, trains faster", values.nbytes)
    return values


def is_mapped(array: np.ndarray) -> bool:
    """Return true for an array in a memory-mapped file."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap):
            return True
        owner = owner.base
    while isinstance(owner, memoryview):
        owner = owner.obj
    return isinstance(owner, mmap.mmap)


def source_of(
    name: str, x: Features, stages: tuple[Stage, ...], dtype: np.dtype, rows: np.ndarray | None = None,
    batch_size: int = 0,
) -> np.ndarray | Source:  # fmt: skip
    """Return features for kernels; ValueError unless they are finite, and stay so in the model's dtype.

    rows        numbers of those that are used, None: all; others may hold NaN
    batch_size  rows that are gathered together, where there is a single pass: no more than these, they are prepared
                here, as the batch that they are. Others stay where they are, as a `Source`
    """
    values = x.values
    if not stages and is_direct(values, dtype):
        check(name, x, rows)
        return values
    source = Source(values, stages)
    if not stages:
        if _all_finite_in(values.dtype, dtype):
            check(name, x, rows)
            return source
        if _squares_are_finite_in(values, dtype):
            return source
    if len(values) <= batch_size and values.shape[0] * values.shape[1] <= SMALL:
        if stages:  # without any, NaN and infinity stay what they are
            check(name, x, rows)
        converted = source.take(slice(None), dtype)
        check(name, Features(converted, x.names), rows)
        return converted
    may_overflow = not stages or not _stays_finite(source, _limits(values.dtype), dtype)
    if may_overflow:
        extremes = _extremes(source, rows)
        if extremes is not None and _stays_finite(source, extremes, dtype):
            return source
    check(name, x, rows)
    if may_overflow:
        _check_prepared(name, source, x.names, dtype, rows)
    return source


@cache
def _all_finite_in(stored: np.dtype, dtype: np.dtype) -> bool:
    """Return true if all finite numbers of a dtype are finite in another."""
    return _stays_finite(Source(np.empty((0, 1), stored)), _limits(stored), dtype)


def _squares_are_finite_in(values: np.ndarray | SparseRows, dtype: np.dtype) -> bool:
    """Return true for a few numbers that are finite in a dtype, since the sum of their squares is below its largest's.

    Takes 1 us; their extremes take 10.
    """
    if not isinstance(values, np.ndarray) or values.size > FEW or not values.flags.c_contiguous:
        return False
    return values.dtype == np.float64 and math.sqrt(np.vdot(values, values)) <= float(np.finfo(dtype).max)


def check(name: str, x: Features, rows: np.ndarray | None = None) -> None:
    """Raise ValueError, naming the place, if features hold NaN or infinity; rows: those that are used, None: all."""
    if x.values.dtype.kind != "f":
        return
    sparse = isinstance(x.values, SparseRows)
    if rows is None or (sparse and not finite_rows(x.values, None)[rows].all()):
        _frames.check_cells(name, *x)
    elif not sparse and not all(np.isfinite(block).all() for _, block in Source(x.values).blocks(rows)):
        _frames.check_cells(name, x.values[rows], x.names)


def finite_rows(values: np.ndarray | SparseRows, dtype: np.dtype | None) -> np.ndarray:
    """Boolean vector: rows without NaN and infinity, also in `dtype`, if that is given."""
    if isinstance(values, SparseRows):
        good = np.ones(len(values), bool)
        with np.errstate(over="ignore"):
            bad = np.flatnonzero(~_validation.finite_rows(values.stored.astype(dtype or values.dtype)))
        good[np.searchsorted(values.starts, bad, side="right") - 1] = False
        return good
    if values.dtype.kind != "f" or dtype is None or values.dtype.itemsize <= dtype.itemsize:
        return _validation.finite_rows(values)
    blocks = (Source(block).take(slice(None), dtype) for _, block in Source(values).blocks())
    return np.concatenate([_validation.finite_rows(block) for block in blocks])


def _limits(dtype: np.dtype) -> tuple[float, float]:
    """The least and the largest finite number of a dtype."""
    if dtype.kind == "b":
        return 0.0, 1.0
    info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return float(info.min), float(info.max)


def _extremes(source: Source, rows: np.ndarray | None) -> tuple[float, float] | None:
    """The least and the largest value; None where there is NaN."""
    if isinstance(source.values, SparseRows):
        blocks: Iterable[np.ndarray] = [np.append(source.values.stored, source.dtype.type(0))]
    else:
        blocks = (block for _, block in source.blocks(rows))
    ends = [(float(block.min()), float(block.max())) for block in blocks]
    if any(math.isnan(least) for least, _ in ends):
        return None
    return min(least for least, _ in ends), max(most for _, most in ends)


def _stays_finite(source: Source, ends: tuple[float, float], dtype: np.dtype) -> bool:
    """Return true if all values between the ends become finite: every stage is monotonic, rounding included."""
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.array(ends)[:, np.newaxis]
        if source.stages:
            rows = through(source.stages, np.repeat(rows, source.shape[1], axis=1))
        return bool(np.isfinite(rows.astype(dtype)).all())


def _check_prepared(
    name: str, source: Source, names: tuple[str, ...] | None, dtype: np.dtype, rows: np.ndarray | None
) -> None:
    """Raise ValueError for the first value that is too large for the dtype once it is prepared."""
    for start, block in source.blocks(rows):
        found = Source(block, source.stages).take(slice(None), dtype)
        if np.isfinite(found).all():
            continue
        row, column = (int(i) for i in np.argwhere(~np.isfinite(found))[0])
        number = start + row if rows is None else int(rows[start + row])
        value = found[row, column]
        if names is not None:
            raise ValueError(f"{name}: column {names[column]!r} has {value} in row {number}; {name} must be finite")
        raise ValueError(f"{name} must be finite; got {value} at index {(number, column)}")
