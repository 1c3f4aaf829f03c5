"""Reader of IDX files, the format of MNIST and Fashion-MNIST. Nothing in a file is trusted.

An IDX file holds two zero bytes, the type of its values (8: unsigned bytes, the only type read here), the number of
dimensions, every dimension as a big-endian uint32, and the values in C order.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

GZIP_MAGIC = b"\x1f\x8b"
UNSIGNED_BYTE = 8
CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str], shape: Sequence[int | None]) -> np.ndarray:
    """Return the array in the IDX file `path` as a new uint8 array. The file may be gzipped, whatever its name.

    `shape` is the shape that the array must have, with None for a dimension of any size.

    Memory stays in proportion to the file's contents: nothing is allocated because a header says so, and a gzip stream
    is read to at most one byte beyond the size that the header announces.

    Raises:
        ValueError: the file is of another kind, type or shape, too short, too long, or a damaged gzip stream.
        OSError: it cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path, (None,))
    array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as raw:
        packed = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        raw.seek(0)
        if not packed:
            return _read(raw, path, shape, size)
        # Deflate packs at most 1032 bytes into one, so a header that announces more is wrong.
        try:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _read(unpacked, path, shape, 1032 * size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path}: must be a whole gzip file; got one that is damaged or cut: {error}"
            ) from error


def _read(stream: BinaryIO | gzip.GzipFile, path: Path, shape: Sequence[int | None], max_bytes: int) -> np.ndarray:
    dims = _read_header(stream, path, len(shape))
    if any(want not in (None, got) for want, got in zip(shape, dims, strict=True)):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{path}: must hold an array of shape ({expected}); got {dims} in its header")
    announced = math.prod(dims)  # Python integers: no overflow, whatever the header says
    if announced > max_bytes:
        raise ValueError(
            f"{path}: must hold {announced} bytes of data for shape {dims}, as its header says; got a file that is too "
            "small for them: it is truncated or mislabelled"
        )
    data = io.BytesIO()
    while chunk := stream.read(min(CHUNK, announced + 1 - data.tell())):
        data.write(chunk)
    got = data.tell()
    if got != announced:
        found = "more" if got > announced else f"only {got}: it is truncated"
        raise ValueError(f"{path}: must hold {announced} bytes of data for shape {dims}; got {found}")
    return np.frombuffer(data.getbuffer(), np.uint8).reshape(dims)


def _read_header(stream: BinaryIO | gzip.GzipFile, path: Path, ndim: int) -> tuple[int, ...]:
    expected = bytes([0, 0, UNSIGNED_BYTE, ndim])
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise ValueError(
            f"{path}: must be an IDX file, which starts with {expected.hex(' ')}; got "
            f"{magic.hex(' ') or 'an empty file'}"
        )
    if magic[2] != UNSIGNED_BYTE:
        raise ValueError(f"{path}: must have the IDX type code 0x08 (unsigned bytes); got 0x{magic[2]:02x}")
    if magic[3] != ndim:
        raise ValueError(f"{path}: must have {ndim} dimension(s); got {magic[3]}")
    sizes = stream.read(4 * ndim)
    if len(sizes) < 4 * ndim:
        raise ValueError(f"{path}: must have a header of {4 + 4 * ndim} bytes; got a file that ends inside it")
    return struct.unpack(f">{ndim}I", sizes)
