"""Files of users: read, and written whole or not at all.

A regular file is written under a temporary name in its folder, then renamed. So there is the old file or the new one,
never half of one, also after a crash; an error, a full disk or an interrupt leaves no temporary file either. The new
file has the mode of the old one, and its owner and group if the system allows that. A link stays, and its target is
replaced. Other names of the old file (hard links) keep the old content; extended attributes are not copied. The old
file may be kept under another name: at every moment one of the two names has a whole file.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import secrets
import shutil
import stat
from typing import Any, Protocol

from ._validation import describe
from .kernels.interrupts import interrupts_held


class Writable(Protocol):
    """A file object that takes bytes."""

    def write(self, data: bytes, /) -> Any:
        """Write some or all of `data`, and return how many."""


class Readable(Protocol):
    """A file object that gives bytes."""

    def read(self) -> bytes:
        """Return everything up to the end."""


Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_CHUNK = 1 << 24  # bytes between two checks for an interrupt
_BINARY = getattr(os, "O_BINARY", 0)  # Windows
# Names of files that the process has open: a new file by such a name would not be seen through the open one.
_OPEN = ("/dev/fd/", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/proc/")


def path_of(name: str, value: Any, what: str = "") -> str:
    """Return a user's path as a string; TypeError for anything else. name: of the argument."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"{name} must be a path (str, bytes or os.PathLike){what}; got {describe(value)}")
    return os.fsdecode(value)


def check_writable(option: str, path: str) -> None:
    """Raise an OSError if the file that `option` names cannot be written: called before the work that it is to hold.

    A link is followed. A pipe or a device needs no writable folder.
    """
    target = pathlib.Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: there is no folder {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"{option} {path} must be the name of a file; got a folder")
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"{option} {path}: the file cannot be written to")
    if (target.is_file() or not target.exists()) and not os.access(target.parent, os.W_OK):
        raise PermissionError(f"{option} {path}: the folder {target.parent} cannot be written to")


def shown(value: Any) -> str:
    """Return the name of a path or file object for messages."""
    if isinstance(value, str | bytes | os.PathLike):
        return os.fsdecode(value)
    name = getattr(value, "name", None)
    return name if isinstance(name, str) and name else f"the {type(value).__name__}"


def write(target: Path | Writable, data: bytes, name: str = "path", keep: str | None = None) -> None:
    """Write `data` to a path, or to a file object open for writing in binary mode, from its position on.

    keep: path in the same folder that a file which is replaced goes by from then on; what had that name is lost.

    Raises TypeError for anything else, and OSError, with the path as it was given, if the file cannot be written; an
    existing file is then unchanged. A file that the user must not write to is not replaced either. A pipe or a device
    is written to directly.
    """
    if not isinstance(target, str | bytes | os.PathLike) and hasattr(target, "write"):
        _write_all(target, data)
        return
    path = path_of(name, target, ", or a binary file object with the method write")
    try:
        replaced = _replaced(path)
        if replaced is None:
            with open(path, "wb", buffering=0) as file:
                _write_all(file, data)
        else:
            _replace(os.path.realpath(path), data, replaced, keep)
    except OSError as error:
        raise _with_path(error, path) from None


def read(source: Path | Readable, name: str = "path") -> bytes:
    """Return the content of a file, or of a file object open for reading in binary mode, from its position on.

    Raises TypeError for anything else, OSError if it cannot be read.
    """
    if not isinstance(source, str | bytes | os.PathLike) and hasattr(source, "read"):
        data: Any = b"" if isinstance(source, io.TextIOBase) else source.read()
        if isinstance(source, io.TextIOBase) or not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"{shown(source)} must be open in binary mode, to give bytes; got {describe(source)}")
        return bytes(data)
    path = path_of(name, source, ", or a binary file object with the method read")
    with open(path, "rb") as file:
        return file.read()


def _replaced(path: str) -> os.stat_result | bool | None:
    """Return the status of the regular file to replace; False if there is none, None to write directly."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        if not path or path.endswith(os.sep):
            raise _error(errno.EISDIR if path else errno.ENOENT) from None
        return False
    if stat.S_ISDIR(found.st_mode):
        raise _error(errno.EISDIR)
    if not os.access(path, os.W_OK):
        raise _error(errno.EACCES)
    whole = os.path.abspath(path)
    return found if stat.S_ISREG(found.st_mode) and not whole.startswith(_OPEN) else None


def _temporary_beside(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".fastopt-{secrets.token_hex(8)}.tmp")


def _replace(path: str, data: bytes, replaced: os.stat_result | bool, keep: str | None = None) -> None:
    temporary = _temporary_beside(path)
    # At no moment may somebody read the new file who could not read the old one.
    mode = 0o600 if isinstance(replaced, os.stat_result) else 0o666
    with interrupts_held() as check:
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode)
            with open(handle, "wb", buffering=0) as file:
                _write_all(file, data, check)
                if isinstance(replaced, os.stat_result):
                    _copy_ownership(handle, replaced)
                os.fsync(handle)
            if keep is not None and replaced:
                _name_also(path, keep)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _name_also(path: str, other: str) -> None:
    """Give a file another name, too, in one step; a copy of it where the file system has no hard links."""
    temporary = _temporary_beside(other)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copy2(path, temporary)
        os.replace(temporary, other)
    finally:  # also where both were names of the same file already: then `replace` does nothing
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _copy_ownership(handle: int, old: os.stat_result) -> None:
    """Give an open file the owner, group and mode of another one."""
    if not hasattr(os, "fchown"):
        return
    new, mode = os.fstat(handle), stat.S_IMODE(old.st_mode)
    if new.st_uid != old.st_uid:
        with contextlib.suppress(OSError):
            os.fchown(handle, old.st_uid, -1)
    if new.st_gid != old.st_gid:
        try:
            os.fchown(handle, -1, old.st_gid)
        except OSError:  # another group gets no more rights than everybody
            mode = mode & ~0o070 | (mode & 0o007) << 3 & mode
    os.fchmod(handle, mode)


def _write_all(file: Writable, data: bytes, check: Any = None) -> None:
    """Write all of `data`: an unbuffered file may take only some of it at a time."""
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{shown(file)} must be open in binary mode, to take bytes; got {describe(file)}")
    if check is None and not isinstance(file, io.RawIOBase):
        file.write(data)
        return
    rest = memoryview(data)
    while rest:
        count = file.write(rest[:_CHUNK])  # type: ignore[arg-type]
        if count is None:
            raise BlockingIOError(errno.EAGAIN, "a file object that does not block took nothing", shown(file))
        rest = rest[count:]
        if check is not None:
            check()


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _with_path(error: OSError, path: str) -> OSError:
    """Return the same error, with the path that the user gave."""
    if error.errno is None:
        return error
    return OSError(error.errno, error.strerror, path)
