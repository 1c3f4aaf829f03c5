"""The cache of compiled code between processes: sealed files in a folder that only the user can have written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
import sys
import tempfile
from pathlib import Path

from .settings import folder_setting

log = logging.getLogger("fastopt")


def cache_root() -> Path:
    """The folder for compiled kernels: FASTOPT_CACHE_DIR, or the user's cache folder."""
    if chosen := folder_setting("FASTOPT_CACHE_DIR"):
        return chosen
    try:
        home = Path.home()
    except RuntimeError:  # a container that runs as a user without a name or a home
        return Path(tempfile.gettempdir()) / f"fastopt-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "fastopt" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fastopt"
    return (folder_setting("XDG_CACHE_HOME") or home / ".cache") / "fastopt"


def sources_digest(folder: Path) -> str:
    """Digest of the sources of all kernels."""
    digest = hashlib.sha256()
    for source in sorted(folder.rglob("*.py")):
        content = source.read_bytes()
        digest.update(f"{source.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


# Computed when this process imports the sources: later edits must not share a cache with what it compiles.
FOLDER = Path(__file__).parent
SOURCES = sources_digest(FOLDER)


def why_not_trusted(status: os.stat_result) -> str:
    """Reason why no code is loaded from a file; "" if only this user or root can have written it."""
    if not hasattr(os, "geteuid"):
        return ""
    if status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to another user ({_user(status.st_uid)})"
    if status.st_mode & 0o022:
        return f"other users may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def _user(number: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"number {number}"


def why_not_loaded(path: Path) -> str:
    """Reason why no code can be loaded from a file of the cache; "" if there is none."""
    try:
        return why_not_trusted(os.stat(path))
    except OSError as error:
        return str(error.strerror)


def why_not_kept(folder: Path) -> str:
    """Reason why this user cannot keep files in a folder, which may not exist yet; "" if none is known."""
    with contextlib.suppress(OSError):
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            return f"{folder} is not a folder"
        if not os.access(folder, os.W_OK | os.X_OK):
            owner = folder.stat().st_uid
            other = hasattr(os, "geteuid") and owner != os.geteuid()
            of = f"; it belongs to another user ({_user(owner)})" if other else ""
            return f"{folder} cannot be written to{of}"
    return ""


_warned: set[str] = set()  # messages that this process has logged


def warn_once(message: str) -> None:
    """Log a warning, unless this process has done so."""
    if message not in _warned:
        _warned.add(message)
        log.warning("%s", message)


def warn_not_kept(folder: Path, error: Exception) -> None:
    """Warn that compiled kernels could not be kept, and why."""
    reason = why_not_kept(folder) or (error.strerror if isinstance(error, OSError) else None) or str(error)
    if reason.startswith(f"{folder} "):
        reason = f"it{reason.removeprefix(str(folder))}"
    warn_once(f"compiling kernels, as every process will, for they could not be kept in {folder}: {reason}")


def _seal(identity: str, payload: bytes) -> bytes:
    """A checksum of payload and identity, so that a renamed file or one of another version has a wrong one."""
    return hashlib.sha256(f"{identity}\n".encode() + payload).digest()


def read_sealed(path: Path, identity: str) -> bytes | None:
    """The payload that `write_sealed` wrote, if it is whole and of this identity, else None; OSError if unreadable.

    A file that is not trusted is not read, with a warning that says why.
    """
    try:
        with open(path, "rb") as file:
            reason = why_not_trusted(os.fstat(file.fileno()))
            if reason:
                warn_once(
                    f"compiled kernels in {path.parent} are not loaded but compiled anew; of {path.name}: {reason}."
                    " Code is only loaded from files that nobody but you and root can write; FASTOPT_CACHE_DIR chooses"
                    " another folder"
                )
                return None
            content = file.read()
    except FileNotFoundError:
        return None
    seal, payload = content[:32], content[32:]
    return payload if seal == _seal(identity, payload) else None


def write_sealed(path: Path, identity: str, payload: bytes) -> None:
    """Write a file under a temporary name and rename it, so that processes may do so at the same time; or OSError."""
    temporary = None
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=path.stem, dir=path.parent)
        with open(handle, "wb") as file:
            file.write(_seal(identity, payload) + payload)
        os.chmod(temporary, 0o644)  # so that users of an image may load what root has compiled
        if reason := why_not_trusted(os.stat(temporary)):  # as on file systems without modes
            raise PermissionError(errno.EACCES, f"a new file there could not be loaded: {reason}")
        os.replace(temporary, path)
        temporary = None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
