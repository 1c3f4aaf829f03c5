"""Numbers from the files that users bring: CSV and .npz. Every error names the file and the place in it."""

from __future__ import annotations

import csv
import itertools
import math
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from .dataset import Dataset

HELD_OUT = 5  # one row in five is held out where a file brings no test part
NPZ_NAMES = (("x", "y"), ("x_train", "y_train"), ("x_train", "y_train", "x_test", "y_test"))


def read_table(path: str | os.PathLike[str], target: str | int | None = None, seed: int = 0) -> Dataset:
    """Return the numbers in a .npz or .csv file as a Dataset, values as they are (nothing is scaled).

    A .npz file holds the arrays x and y, or x_train, y_train and, if it has a test part, x_test, y_test; rows
    of more than one dimension are flattened. A CSV file holds numbers separated by commas, with or without a
    header line; `target` is the name or the index of the column to predict, by default the last. Whole-number
    targets are labels and must be 0 .. classes-1, each of them present; targets written with a point (or of
    a float type) mean regression. Without a test part, a fifth of the rows, drawn with `seed`, is held out.

    Raises FileNotFoundError; and ValueError, naming the file and the line, for cells that are not finite
    numbers, ragged rows, missing or mismatched arrays, and labels that leave a gap.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "xor.csv"
    ...     _ = path.write_text("a,b,xor\\n0,0,0\\n0,1,1\\n1,0,1\\n1,1,0\\n0,0,0\\n")
    ...     data = read_table(path)
    >>> data.x_train.shape, data.x_test.shape, data.classes
    ((4, 2), (1, 2), 2)
    """
    path = Path(path)
    x, y, x_test, y_test, classes = read_arrays(path, target, seed)
    description = f"{len(x) + len(x_test)} rows of {path.name}"
    return Dataset(path.stem, x, y, x_test, y_test, classes, description, source=str(path), licence="")


def read_arrays(
    path: Path, target: str | int | None, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Return x, y, x_test, y_test and the number of classes (0: regression) of a .npz or .csv file.

    x are float32 (rows, features); y int64 labels (rows,) or float32 (rows, outputs).
    See fastopt.datasets.read_table.
    """
    kind = path.suffix.lower()
    if kind not in (".npz", ".csv"):
        raise ValueError(f"{path}: expected a file whose name ends in .npz or .csv")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if kind == ".npz" and target is not None:
        raise ValueError(f"{path}: a target column is for CSV files; a .npz file names its targets y")
    arrays = read_npz(path) if kind == ".npz" else read_csv(path, target)
    parts = [_features_and_targets(path, x, y) for x, y in zip(arrays[::2], arrays[1::2], strict=True)]
    (x, y), (x_test, y_test) = parts if len(parts) == 2 else _hold_out(path, *parts[0], seed)
    if x.shape[1:] != x_test.shape[1:] or y.shape[1:] != y_test.shape[1:] or y.dtype != y_test.dtype:
        raise ValueError(
            f"{path}: expected the same columns and types in both parts: x {x.shape} and {x_test.shape}, "
            f"y {y.shape} {y.dtype} and {y_test.shape} {y_test.dtype}"
        )
    classes = _count_classes(path, np.concatenate([y, y_test])) if y.dtype == np.int64 else 0
    return x, y, x_test, y_test, classes


def read_npz(path: Path) -> tuple[np.ndarray, ...]:
    """Return the arrays of a .npz file in the order of NPZ_NAMES; nothing is unpickled."""
    with open(path, "rb") as file:  # np.load would leave a damaged file open
        try:
            return _npz_arrays(np.load(file, allow_pickle=False))
        # A damaged file makes NumPy raise almost anything: BadZipFile, TokenError, SyntaxError ...
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as a .npz file of numbers: {error}") from error


def _npz_arrays(archive: object) -> tuple[np.ndarray, ...]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single .npy array")
    names = next((names for names in NPZ_NAMES if set(names) == set(archive.files)), None)
    if names is None:
        known = "; or ".join(", ".join(names) for names in NPZ_NAMES)
        raise ValueError(f"expected the arrays {known}; it holds {', '.join(archive.files) or 'none'}")
    arrays = tuple(archive[name] for name in names)
    if not all(isinstance(array, np.ndarray) for array in arrays):  # bytes, where a member is no .npy file
        raise ValueError("expected every member to be an array")
    return arrays


def read_csv(path: Path, target: str | int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return (features, targets) of a CSV file: float64 (rows, columns - 1), and int64 or float64 (rows,).

    The targets are int64 where every cell of that column is written as a whole number. A first line without
    a single number in it is a header. `target` is a column's name or index, by default the last column's.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _parse(_rows(file), target)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {error}") from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error


def _rows(file: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Every row that is not blank, with the number of the line on which it ends."""
    reader = csv.reader(file, skipinitialspace=True)
    for row in reader:
        if len(row) > 1 or any(cell.strip() for cell in row):
            yield reader.line_num, row


def _parse(rows: Iterator[tuple[int, list[str]]], target: str | int | None) -> tuple[np.ndarray, np.ndarray]:
    first = next(rows, None)
    if first is None:
        raise ValueError("expected rows of numbers, but the file is empty")
    header = None if any(_is_number(cell) for cell in first[1]) else [cell.strip() for cell in first[1]]
    width = len(first[1])
    if width < 2:
        raise ValueError(
            f"line {first[0]}: expected at least two columns separated by commas, but it has one"
        )
    column = _target_column(target, header, width)
    values, whole = _numbers(rows if header else itertools.chain([first], rows), width, column)
    table = np.frombuffer(values, np.float64).reshape(-1, width)
    if not len(table):
        raise ValueError("expected rows of numbers, but there is only a header")
    targets = table[:, column]
    return np.delete(table, column, axis=1), targets.astype(np.int64) if whole else targets.copy()


def _numbers(rows: Iterable[tuple[int, list[str]]], width: int, column: int) -> tuple[array[float], bool]:
    """All cells in row order, and whether every cell of `column` is written as a whole number."""
    values = array("d")
    whole = True
    for line, row in rows:
        if len(row) != width:
            raise ValueError(
                f"line {line}: expected {width} columns, as in the first line, but it has {len(row)}"
            )
        try:
            numbers = [float(cell) for cell in row]
        except ValueError:
            bad = next(i for i, cell in enumerate(row) if not _is_number(cell))
            raise ValueError(f"line {line}, column {bad + 1}: expected a number: {row[bad][:40]!r}") from None
        # A sum is finite unless a term is not (or the sum overflows: then the slower test decides).
        if not math.isfinite(sum(numbers)) and not all(map(math.isfinite, numbers)):
            bad = next(i for i, number in enumerate(numbers) if not math.isfinite(number))
            raise ValueError(f"line {line}, column {bad + 1}: expected a finite number: {row[bad][:40]!r}")
        values.extend(numbers)
        whole = whole and row[column].strip().lstrip("+-").isdecimal() and abs(numbers[column]) < 2**53
    return values, whole


def _target_column(target: str | int | None, header: list[str] | None, width: int) -> int:
    if target is None:
        return width - 1
    if header and target in header:
        return header.index(str(target))
    try:
        column = int(target)
    except ValueError:
        names = (
            f"its columns are {', '.join(header)}" if header else "it has no header: give the column's index"
        )
        raise ValueError(f"there is no column {target!r}; {names}") from None
    if not -width <= column < width:
        raise ValueError(f"expected a target column from {-width} to {width - 1}, but came {column}")
    return column % width


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _features_and_targets(path: Path, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check one part; return x as float32 (rows, features), y as int64 (rows,) or float32 (rows, outputs)."""
    for name, dtype in (("x", x.dtype), ("y", y.dtype)):
        if dtype.kind not in "biuf":
            raise ValueError(f"{path}: expected numbers in {name}, but its type is {dtype}")
    if x.ndim < 2 or y.ndim not in (1, 2) or len(x) != len(y) or x.size == 0 or y.size == 0:
        raise ValueError(
            f"{path}: expected x (rows, features) and y (rows,), but came {x.shape} and {y.shape}"
        )
    rows = len(x)
    if y.dtype.kind in "biu":
        if y.size != rows:
            raise ValueError(f"{path}: expected one label a row (or y of floats), but came {y.shape}")
        if y.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{path}: expected labels that fit int64, but came {y.max()}")
        return _finite_float32(path, "x", x.reshape(rows, -1)), y.reshape(rows).astype(np.int64)
    return _finite_float32(path, "x", x.reshape(rows, -1)), _finite_float32(path, "y", y.reshape(rows, -1))


def _finite_float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = array.astype(np.float32)
    finite = np.isfinite(result)
    if not finite.all():
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        raise ValueError(
            f"{path}: expected finite float32 numbers: {name}[{row}, {column}] is {array[row, column]}"
        )
    return result


def _hold_out(
    path: Path, x: np.ndarray, y: np.ndarray, seed: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    if len(x) < 2:
        raise ValueError(f"{path}: expected at least two rows (train and test), but came {len(x)}")
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = np.split(order, [max(1, len(x) // HELD_OUT)])
    return (x[train], y[train]), (x[test], y[test])


def _count_classes(path: Path, labels: np.ndarray) -> int:
    found = np.unique(labels)
    if found[0] != 0 or found[-1] != len(found) - 1 or len(found) < 2:
        listed = ", ".join(str(label) for label in found[:8]) + (", ..." if len(found) > 8 else "")
        raise ValueError(
            f"{path}: expected labels 0, 1, ... without a gap, at least two of them, but came {listed}; "
            f"for regression write the targets as floats"
        )
    return len(found)
