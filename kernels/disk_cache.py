"""Where compiled code is kept between processes: sealed files in a folder that only the user can have written."""

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
    """Of the sources of all kernels."""
    digest = hashlib.sha256()
    for source in sorted(folder.rglob("*.py")):
        content = source.read_bytes()
        digest.update(f"{source.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


# Taken now, when this process imports them: a later edit must not pass for what was compiled here.
FOLDER = Path(__file__).parent
SOURCES = sources_digest(FOLDER)


def distrust(status: os.stat_result) -> str:
    """Reason why no code is loaded from a file; "": nobody but this user (or root) can have written it."""
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
    """Reason why no code can be loaded from a file of the cache; "" where nothing is against it."""
    try:
        return distrust(os.stat(path))
    except OSError as error:
        return str(error.strerror)


def why_not_kept(folder: Path) -> str:
    """Reason why this user cannot keep files in a folder, which may be yet to be made; "" where nothing is known."""
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


_said: set[str] = set()  # once in a process is enough


def say_once(message: str) -> None:
    """Log a warning, unless this process has done so."""
    if message not in _said:
        _said.add(message)
        log.warning("%s", message)


def say_lost(folder: Path, error: Exception) -> None:
    """Warn that compiled kernels could not be kept, and why."""
    reason = why_not_kept(folder) or (error.strerror if isinstance(error, OSError) else None) or str(error)
    if reason.startswith(f"{folder} "):
        reason = f"it{reason.removeprefix(str(folder))}"
    say_once(f"compiling kernels, as every process will, for they could not be kept in {folder}: {reason}")


def _seal(identity: str, payload: bytes) -> bytes:
    """A checksum that fits nothing else and no other version, whatever a file is renamed to."""
    return hashlib.sha256(f"{identity}\n".encode() + payload).digest()


def read_sealed(path: Path, identity: str) -> bytes | None:
    """Content that `write_sealed` has written, if it is whole and of this identity, else None; OSError if unreadable.

    A warning says why a file is not trusted.
    """
    try:
        with open(path, "rb") as file:
            reason = distrust(os.fstat(file.fileno()))
            if reason:
                say_once(
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
    """Write a file under a temporary name and rename it, so that many processes may do so at once; or OSError."""
    temporary = None
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=path.stem, dir=path.parent)
        with open(handle, "wb") as file:
            file.write(_seal(identity, payload) + payload)
        os.chmod(temporary, 0o644)  # what root has compiled for an image, its users may load
        if reason := distrust(os.stat(temporary)):  # as on file systems that have no modes
            raise PermissionError(errno.EACCES, f"a new file there could not be loaded: {reason}")
        os.replace(temporary, path)
        temporary = None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
