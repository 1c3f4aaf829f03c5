"""How a Python function becomes a kernel: compile options, compilation on first use, and the cache between processes.

A kernel takes 64-bit integers and returns nothing. `Kernel.address` is where its machine code lies; asking for it loads
the code from the cache folder or compiles it. Calling a kernel from Python releases the GIL.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import os
import pickle
import sys
import tempfile
import threading
import time
import types as pytypes
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cffi
import llvmlite
import numba
from numba import types
from numba.core import serialize
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.extending import register_jitable

from .. import formulas
from .primitives import INTERPRETED, PYTHON_CODE, python_address

log = logging.getLogger("fastopt")

# No fastmath, anywhere: updates equal the reference bit for bit, and they wait for memory anyway. The "numpy" error model
# makes x / 0 an infinity instead of an exception, without which no loop with a division would be vectorised.
OPTIONS = {"nopython": True, "error_model": "numpy"}

ffi = cffi.FFI()
_lock = threading.RLock()

if not INTERPRETED:
    for _function in list(vars(formulas).values()):
        if isinstance(_function, pytypes.FunctionType) and _function.__module__ == formulas.__name__:
            register_jitable(error_model="numpy")(_function)


# ---------------------------------------------------------------- cache folder
def cache_root() -> Path:
    """The folder for compiled kernels: FASTOPT_CACHE_DIR, or the user's cache folder."""
    if chosen := os.environ.get("FASTOPT_CACHE_DIR"):
        return Path(chosen)
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "fastopt" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "fastopt"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "fastopt"


@cache
def _digest() -> str:
    """Of all that the machine code depends on: kernel sources, compilers, processor, Python."""
    digest = hashlib.sha256()
    folder = Path(formulas.__file__).parent
    for source in sorted([*folder.glob("*.py"), *folder.glob("cpu/*.py")]):
        digest.update(source.read_bytes())
    target = CFunc._targetdescr.target_context.codegen().magic_tuple()
    versions = numba.__version__, llvmlite.__version__, sys.version_info[:3], numba.config.OPT
    digest.update(repr((target, versions)).encode())
    return digest.hexdigest()[:20]


def cache_folder() -> Path:
    """Where this version's kernels for this processor are kept."""
    return cache_root() / _digest()


def _own(status: os.stat_result) -> bool:
    """Code is only loaded from files that nobody but this user (or root) can have written."""
    return not hasattr(os, "getuid") or (status.st_uid in (os.getuid(), 0) and not status.st_mode & 0o022)


class _Disk:
    """The cache of one kernel, in the form Numba asks for. It may fail in any way; then the kernel is compiled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def load_overload(self, signature: Any, context: Any) -> Any:
        try:
            path = cache_folder() / f"{self.name}.bin"
            with open(path, "rb") as file:
                if not _own(os.fstat(file.fileno())):
                    return None
                content = file.read()
            checksum, payload = content[:32], content[32:]
            if hashlib.sha256(payload).digest() != checksum:
                return None
            context.refresh()
            return CompileResult._rebuild(context, *pickle.loads(payload))
        except FileNotFoundError:
            return None
        except Exception as error:  # the cache is an accelerator, never a reason to fail
            log.debug("compiled kernel %s could not be loaded: %r", self.name, error)
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        temporary = None
        try:
            if result.library.has_dynamic_globals:
                raise AssertionError("its code contains addresses of this process")
            folder = cache_folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            payload = serialize.dumps(result._reduce())
            handle, temporary = tempfile.mkstemp(prefix=self.name, dir=folder)
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, folder / f"{self.name}.bin")
        except Exception as error:  # read-only folder, full disk, ...
            log.debug("compiled kernel %s could not be kept: %r", self.name, error)
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)


# ---------------------------------------------------------------- telling the user
class _Notice:
    """Says that a call waits for the compiler, once it has for a second."""

    listeners: list[Callable[[str], None]] = []
    depth, spent, kernels = 0, 0.0, 0

    @classmethod
    def before(cls, name: str) -> None:
        for listener in cls.listeners:
            listener(name)

    @classmethod
    def after(cls, seconds: float) -> None:
        announced = cls.spent > 1.0
        cls.spent += seconds
        cls.kernels += 1
        if cls.spent > 1.0 and not announced:
            log.info("compiling kernels; they are kept in %s for the next time", cache_folder())


@contextlib.contextmanager
def compiling(listener: Callable[[str], None] | None = None) -> Iterator[None]:
    """While open, `listener(name)` hears of each kernel before it is compiled; the end is logged if it took a second."""
    with _lock:
        if listener:
            _Notice.listeners.append(listener)
        if _Notice.depth == 0:
            _Notice.spent, _Notice.kernels = 0.0, 0
        _Notice.depth += 1
    try:
        yield
    finally:
        with _lock:
            if listener:
                _Notice.listeners.remove(listener)
            _Notice.depth -= 1
            if _Notice.depth == 0 and _Notice.spent > 1.0:
                log.info("compiled %d kernels in %.1f s", _Notice.kernels, _Notice.spent)


# ---------------------------------------------------------------- kernels
class Kernel:
    """A function of integers, compiled when its address is first asked for.

    `name` names one function for good: it is the key of the cache. `parameters` overrides the types of the parameters,
    which are int64 otherwise. `parallel` is for the one kernel with a prange, which launches all others.
    """

    names: dict[str, Kernel] = {}

    def __init__(
        self,
        function: Callable[..., None],
        name: str,
        parameters: tuple[Any, ...] | None = None,
        parallel: bool = False,
    ) -> None:
        if name in Kernel.names:
            raise AssertionError(f"two kernels are called {name}: they would share a place in the cache")
        Kernel.names[name] = self
        self.function, self.name = function, name
        self.options = {**OPTIONS, "parallel": True} if parallel else OPTIONS
        count = len(inspect.signature(function).parameters)
        self.parameters = parameters or (types.int64,) * count
        self.compiled = self.loaded = False  # in this process, for `fastopt info` and the tests
        self._address = 0
        self._call: Callable[..., None] = self._first_call

    @property
    def address(self) -> int:
        if not self._address:
            with _lock:
                if not self._address:
                    self._address = python_address(self.function) if INTERPRETED else self._compile()
        return self._address

    def _compile(self) -> int:
        disk, start = _Disk(self.name), time.perf_counter()
        code = CFunc(self.function, (self.parameters, types.void), {}, self.options)
        code._cache = _Heard(disk, self.name)
        code.compile()
        self.loaded = code.cache_hits > 0
        self.compiled = not self.loaded
        if self.compiled:
            _Notice.after(time.perf_counter() - start)
        self._code = code  # owns the machine code
        return int(code.address)

    def _first_call(self, *args: int) -> None:
        if INTERPRETED:
            self._call = PYTHON_CODE[self.address]
        else:
            pointer = f"void(*)({', '.join(['int64_t'] * len(self.parameters))})"
            self._call = ffi.cast(pointer, self.address)
        self._call(*args)

    def __call__(self, *args: int) -> None:
        self._call(*args)


class _Heard:
    """A cache that announces the compilation that follows a miss."""

    def __init__(self, disk: _Disk, name: str) -> None:
        self.disk, self.name = disk, name

    def load_overload(self, signature: Any, context: Any) -> Any:
        found = self.disk.load_overload(signature, context)
        if found is None:
            _Notice.before(self.name)
        return found

    def save_overload(self, signature: Any, result: Any) -> None:
        self.disk.save_overload(signature, result)
