"""Sources: features as their owner keeps them, and the way of their rows to a batch in the network's dtype.

Values of any real dtype, byte order and layout stay where they are, such as a memory map of bytes; a `Stage` scales
them. The functions here go that way in NumPy, block by block: for the reference, for copies to a GPU, and for checks.
`cpu/dense/gather` is the compiled twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

BLOCK = 1 << 20  # values converted at once, so that there is no whole copy
# Dtypes that kernels read. Others of real numbers (long double) are converted by whoever makes a source.
STORED = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip


class Stage(NamedTuple):
    """One preparation of all features, in float64: x * factor + term, or (x - term) / factor where it divides."""

    divides: bool
    factor: np.ndarray  # (inputs,) float64
    term: np.ndarray  # (inputs,) float64

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Return float64 rows (m, inputs), prepared.

        >>> Stage(True, np.array([2.0]), np.array([1.0])).apply(np.array([[4.0]])).tolist()
        [[1.5]]
        """
        return (x - self.term) / self.factor if self.divides else x * self.factor + self.term


def through(stages: tuple[Stage, ...], x: np.ndarray) -> np.ndarray:
    """Return float64 rows (m, inputs) after all stages; without any, x itself."""
    for stage in stages:
        x = stage.apply(x)
    return x


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows of which only some values are stored, the others being 0: compressed sparse rows (CSR).

    Row i has the values `stored[starts[i] : starts[i + 1]]` in the `columns` of the same places, each column once.

    >>> rows = SparseRows(np.array([5.0, 7.0]), np.array([2, 0]), np.array([0, 1, 2]), 3)
    >>> rows[[1, 0]].tolist(), rows.shape
    ([[7.0, 0.0, 0.0], [0.0, 0.0, 5.0]], (2, 3))
    """

    stored: np.ndarray  # (number of values,), of a dtype in STORED
    columns: np.ndarray  # the same shape, int32 or int64; those of a row ascend
    starts: np.ndarray  # (n + 1,) of the dtype of `columns`
    inputs: int

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.starts) - 1, self.inputs

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.stored.dtype

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes + self.columns.nbytes + self.starts.nbytes

    def __len__(self) -> int:
        return len(self.starts) - 1

    def _places(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of values of some rows, and the places of all of them, one row after the other."""
        first, end = self.starts[:-1][index], self.starts[1:][index]
        counts = end - first
        before = np.cumsum(counts) - counts
        return counts, np.arange(counts.sum()) + np.repeat(first - before, counts)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return rows, by a slice or their numbers, as a matrix of the values' dtype: a new array."""
        counts, places = self._places(index)
        rows = np.zeros((len(counts), self.inputs), self.dtype)
        rows[np.repeat(np.arange(len(counts)), counts), self.columns[places]] = self.stored[places]
        return rows

    def chosen(self, index: Any) -> SparseRows:
        """Return rows, by a slice or their numbers, as sparse ones."""
        counts, places = self._places(index)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(self.starts.dtype)
        return SparseRows(self.stored[places], self.columns[places], starts, self.inputs)


@dataclass(frozen=True, eq=False)
class Source:
    """Rows of features as they lie in memory, and the stages that prepare them on their way to a batch.

    A row goes there as T(stages(float64(x))), without stages as T(x), T being the network's dtype.

    >>> source = Source(np.array([[0, 255], [51, 102]], np.uint8), (Stage(False, np.full(2, 1 / 255), np.zeros(2)),))
    >>> source.take(slice(1, 2), np.dtype(np.float64)).round(6).tolist()
    [[0.2, 0.4]]
    """

    values: np.ndarray | SparseRows  # (n, inputs), of a dtype in STORED, in any byte order and layout
    stages: tuple[Stage, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Any, dtype: np.dtype[Any]) -> np.ndarray:
        """Return prepared rows, by a slice or their numbers: a C-contiguous matrix of `dtype`, maybe a view."""
        rows = self.values[index]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.stages:
                rows = through(self.stages, np.asarray(rows, np.float64))
            return np.ascontiguousarray(rows, dtype)

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over (number of the first, rows as stored), a block at a time; rows: their numbers, None: all."""
        num_rows, size = len(self) if rows is None else len(rows), block_rows(self.shape[1])
        for start in range(0, num_rows, size):
            part = slice(start, start + size)
            yield start, self.values[part if rows is None else rows[part]]


def block_rows(inputs: int) -> int:
    """The rows of a block."""
    return max(1, BLOCK // inputs)


def is_direct(x: np.ndarray, dtype: np.dtype[Any]) -> bool:
    """True for a matrix that kernels read as it is: of the network's dtype, rows one after the other, aligned."""
    return type(x) is np.ndarray and x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned


def stages_table(x: np.ndarray | Source) -> np.ndarray | None:
    """Factor and term of each stage, (stages, 2, inputs) float64; None without stages."""
    if not isinstance(x, Source) or not x.stages:
        return None
    return np.array([(stage.factor, stage.term) for stage in x.stages], np.float64)


def take(x: np.ndarray | Source, index: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """Return rows of a matrix or of a source, by a slice or their numbers, in the network's dtype."""
    return x.take(index, dtype) if isinstance(x, Source) else x[index]
