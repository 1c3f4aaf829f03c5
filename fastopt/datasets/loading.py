"""Data sets by name: one ships with the package; two are read from IDX files, which pooch can download."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..kernels.settings import folder_setting
from ._idx import read_idx
from .dataset import Dataset


class _Source(NamedTuple):
    """Origin of the four IDX files of a data set, and labels that tell it from the other one."""

    title: str
    description: str
    url: str
    folders: tuple[str, ...]  # in which a system package installs them
    first_test_labels: bytes
    sha256: dict[str, str]  # of the gzipped files at `url`
    source: str
    licence: str


# Training images and labels, test images and labels, with their numbers of rows in both data sets.
_IDX_FILES = {
    "train-images-idx3-ubyte": 60000,
    "train-labels-idx1-ubyte": 60000,
    "t10k-images-idx3-ubyte": 10000,
    "t10k-labels-idx1-ubyte": 10000,
}
_SOURCES = {
    "fashion-mnist": _Source(
        title="Fashion-MNIST",
        description="28 x 28 grey images of ten kinds of clothing, 60000 to train and 10000 to test",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        folders=("/usr/share/datasets/fashion-mnist",),
        first_test_labels=bytes([9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
        sha256={
            "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        source="H. Xiao, K. Rasul, R. Vollgraf (2017), https://github.com/zalandoresearch/fashion-mnist",
        licence="MIT, Zalando SE",
    ),
    "mnist": _Source(
        title="MNIST",
        description="28 x 28 grey images of handwritten digits, 60000 to train and 10000 to test",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        folders=(),
        first_test_labels=bytes([7, 2, 1, 0, 4, 1, 4, 9, 5, 9]),
        sha256={
            "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        source="Y. LeCun, C. Cortes, C. Burges (1998), http://yann.lecun.com/exdb/mnist",
        licence="CC BY-SA 3.0",
    ),
}
NAMES = ("digits", *_SOURCES)


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Dataset:
    """Return the data set `name`: "digits", "fashion-mnist" or "mnist".

    Features are float32 in 0 ... 1 (rows, pixels): images divided by 255, digits by 16. Targets are int64 (rows,).

    "digits" ships with the package and takes no folder: 1797 images of 8 x 8 pixels, of which the last 360, in the
    published file's order, are the test part. The IDX files of the other two, 28 x 28 pixels, gzipped or not, are
    looked for
    1. in `folder`, or its sub-folder `name`; it is an error if they are not there. Without `folder`:
    2. in the folder that the environment variable FASTOPT_DATA_DIR names, or its sub-folder `name`,
    3. in the folder of Debian's package dataset-fashion-mnist (Fashion-MNIST only).
    Otherwise pooch downloads them, checks their SHA-256 and keeps them in its cache folder for fastopt. Files with
    fewer rows than the original are accepted.

    Raises:
        ValueError: the name is unknown, or a file is damaged or of another data set.
        FileNotFoundError: there are no files, and pooch is not installed.
        OSError: the download fails.

    >>> load("digits").y_test[:5]
    array([2, 3, 4, 5, 6])
    >>> load("digit")
    Traceback (most recent call last):
    ValueError: unknown data set 'digit'; known: digits, fashion-mnist, mnist
    """
    if name == "digits":
        if folder is not None:
            raise ValueError(f"folder must be None for the data set digits, which ships with fastopt; got {folder!r}")
        return _load_digits()
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(NAMES)}")
    return _load_idx(name, _find_files(name, folder))


def _load_digits() -> Dataset:
    with resources.files("fastopt.datasets.data").joinpath("digits.npz").open("rb") as file, np.load(file) as archive:
        x, y = archive["x"], archive["y"].astype(np.int64)
    x = np.divide(x, 16, dtype=np.float32)
    train, test = slice(0, -360), slice(-360, None)
    return Dataset(
        name="digits",
        x_train=x[train].copy(),
        y_train=y[train].copy(),
        x_test=x[test].copy(),
        y_test=y[test].copy(),
        classes=10,
        description="8 x 8 grey images of handwritten digits, 1437 to train and 360 to test",
        source="E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, "
        "UCI Machine Learning Repository, doi:10.24432/C50P49",
        licence="CC BY 4.0",
    )


def _load_idx(name: str, paths: dict[str, Path]) -> Dataset:
    source = _SOURCES[name]
    parts = []
    for images_name, labels_name in (tuple(_IDX_FILES)[:2], tuple(_IDX_FILES)[2:]):
        # Labels first: they are few, and they tell the data set.
        labels = read_idx(paths[labels_name], (None,))
        _check_labels(name, paths[labels_name], labels, _IDX_FILES[labels_name])
        images = read_idx(paths[images_name], (len(labels), 28, 28))
        x = np.divide(images.reshape(len(images), -1), 255, dtype=np.float32)
        parts += [x, labels.astype(np.int64)]
    x_train, y_train, x_test, y_test = parts
    return Dataset(
        name, x_train, y_train, x_test, y_test, 10, source.description, source.source, source.licence
    )


def _check_labels(name: str, path: Path, labels: np.ndarray, max_rows: int) -> None:
    title = _SOURCES[name].title
    if not 0 < len(labels) <= max_rows:
        raise ValueError(f"{path}: must hold 1 to {max_rows} labels ({title}); got {len(labels)}")
    if labels.max() > 9:
        row = int(np.argmax(labels > 9))
        raise ValueError(f"{path}: must hold labels from 0 to 9; got {labels[row]} at index {row}")
    for other, source in _SOURCES.items():
        if other != name and labels[:10].tobytes() == source.first_test_labels:
            raise ValueError(f"{path}: must hold the labels of {title}; got {source.title}'s")


def _find_files(name: str, folder: str | os.PathLike[str] | None) -> dict[str, Path]:
    source = _SOURCES[name]
    if folder is not None:
        folders = [Path(folder), Path(folder) / name]
    else:
        setting = folder_setting("FASTOPT_DATA_DIR")
        folders = [setting, setting / name] if setting else []
        folders += [Path(path) for path in source.folders]
    for candidate in folders:
        found = {file: path for file in _IDX_FILES for path in [_find(candidate, file)] if path}
        if len(found) == len(_IDX_FILES):
            return found
        if found:
            missing = ", ".join(file for file in _IDX_FILES if file not in found)
            raise FileNotFoundError(
                f"{candidate}: must hold the four IDX files of {source.title}; missing: {missing}"
            )
    if folder is not None:
        raise FileNotFoundError(
            f"{folder}: must hold the IDX files of {source.title}, itself or in its sub-folder {name}: "
            + ", ".join(f"{file}[.gz]" for file in _IDX_FILES)
        )
    return _download(name)


def _find(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def _download(name: str) -> dict[str, Path]:
    source = _SOURCES[name]
    debian = ", or apt install dataset-fashion-mnist" if source.folders else ""
    ways = (
        f"pass the folder that holds its IDX files, or name that folder in FASTOPT_DATA_DIR{debian}, "
        "or let fastopt download them: pip install 'fastopt[data]'"
    )
    try:
        import pooch
    except ImportError:
        raise FileNotFoundError(f"{source.title} is not on this machine; {ways}") from None
    cache = Path(pooch.os_cache("fastopt")) / name
    try:
        return {
            file: Path(
                pooch.retrieve(f"{source.url}{file}.gz", f"sha256:{digest}", fname=f"{file}.gz", path=cache)
            )
            for file, digest in source.sha256.items()
        }
    except OSError as error:
        raise OSError(
            f"{source.title} could not be downloaded from {source.url} to {cache}: {error}; {ways}"
        ) from error
