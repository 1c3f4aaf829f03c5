"""Reader of .npz files. Their arrays are checked; every error names the file and the array."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

NPZ_NAMES = (("x", "y"), ("x_train", "y_train"), ("x_train", "y_train", "x_test", "y_test"))
FEATURES_ALONE = (("x",), ("x_test",))


class Part(NamedTuple):
    """Features x (rows, features) in the chosen dtype, and targets y of the file, (rows,) or (rows, outputs)."""

    x: np.ndarray
    y: np.ndarray


def read_npz(path: Path, dtype: str) -> list[Part]:
    """Return the parts of a .npz file: one, or one for training and one for testing. Nothing is unpickled."""
    arrays = _arrays(path, NPZ_NAMES)
    values = list(arrays.values())
    return [_checked(path, x, y, dtype) for x, y in zip(values[::2], values[1::2], strict=True)]


def read_features(path: Path, dtype: str) -> np.ndarray:
    """Return the features of a .npz file to predict from: x, else x_test, else x_train."""
    arrays = _arrays(path, (*FEATURES_ALONE, *NPZ_NAMES))
    name = next(name for name in ("x", "x_test", "x_train") if name in arrays)
    x = arrays[name]
    if x.dtype.kind not in "biuf" or x.ndim < 2 or x.size == 0:
        raise ValueError(f"{path}: {name} must be numbers of shape (rows, features); got {x.dtype} {x.shape}")
    return _finite(path, name, x.reshape(len(x), -1), dtype)


def _arrays(path: Path, allowed: tuple[tuple[str, ...], ...]) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:  # np.load would leave a damaged file open
        try:
            return _members(np.load(file, allow_pickle=False), allowed)
        # A damaged file makes NumPy raise almost anything: BadZipFile, TokenError, SyntaxError ...
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as a .npz file of numbers: {error}") from error


def _members(archive: object, allowed: tuple[tuple[str, ...], ...]) -> dict[str, np.ndarray]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it must be an archive of arrays; got a single .npy array")
    names = next((names for names in allowed if set(names) == set(archive.files)), None)
    if names is None:
        known = "; or ".join(", ".join(names) for names in allowed)
        raise ValueError(f"it must hold the arrays {known}; got {', '.join(archive.files) or 'none'}")
    arrays = {name: archive[name] for name in names}
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # bytes, where a member is no .npy file
        raise ValueError("every member must be an array; got a file of another kind")
    return arrays


def _checked(path: Path, x: np.ndarray, y: np.ndarray, dtype: str) -> Part:
    for name, kind, known in (("x", x.dtype, "biuf"), ("y", y.dtype, "biufU")):
        if kind.kind not in known:
            raise ValueError(f"{path}: {name} must hold numbers{' or text' * (name == 'y')}; got {kind}")
    if x.ndim < 2 or y.ndim not in (1, 2) or len(x) != len(y) or x.size == 0 or y.size == 0:
        raise ValueError(f"{path}: x must have shape (rows, features) and y (rows,); got {x.shape} and {y.shape}")
    if y.dtype.kind != "f":
        if y.size != len(x):
            raise ValueError(f"{path}: y must be one label a row, or floats; got shape {y.shape}")
        if y.dtype.kind == "u" and y.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{path}: labels must fit int64; got {y.max()}")
        y = y.reshape(-1)
        y = y.astype(np.int64) if y.dtype.kind in "iu" else y
    else:
        _finite(path, "y", y.reshape(len(y), -1), dtype)
    return Part(_finite(path, "x", x.reshape(len(x), -1), dtype), y)


def _finite(path: Path, name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    finite = np.isfinite(result)
    if not finite.all():
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        raise ValueError(
            f"{path}: {name}[{row}, {column}] must be a finite {np.dtype(dtype)} number; got {array[row, column]}"
        )
    return result
