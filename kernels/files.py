"""Where compiled code is kept between processes: sealed files in a folder that only the user can have written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from pathlib import Path


def cache_root() -> Path:
    """The folder for compiled kernels: FASTOPT_CACHE_DIR, or the user's cache folder."""
    if chosen := os.environ.get("FASTOPT_CACHE_DIR"):
        return Path(chosen)
    try:
        home = Path.home()
    except RuntimeError:  # a container that runs as a user without a name or a home
        return Path(tempfile.gettempdir()) / f"fastopt-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "fastopt" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fastopt"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fastopt"


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


def own(status: os.stat_result) -> bool:
    """Code is only loaded from files that nobody but this user (or root) can have written."""
    return not hasattr(os, "geteuid") or (status.st_uid in (os.geteuid(), 0) and not status.st_mode & 0o022)


def _seal(identity: str, payload: bytes) -> bytes:
    """A checksum that fits nothing else and no other version, whatever a file is renamed to."""
    return hashlib.sha256(f"{identity}\n".encode() + payload).digest()


def read_sealed(path: Path, identity: str) -> bytes | None:
    """What `write_sealed` has written, if it is there, whole, and of this identity; OSError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            if not own(os.fstat(file.fileno())):
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
        os.replace(temporary, path)
        temporary = None
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
