"""Kernels made of Python functions: compile options, compilation on first use, and the cache between processes.

A kernel takes 64-bit integers and returns nothing. `Kernel.address` is that of its machine code; asking for it loads
the code from the cache folder or compiles it. Calling a kernel from Python releases the GIL.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import inspect
import logging
import os
import pickle
import secrets
import threading
import time
import types as pytypes
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import cffi

from ... import formulas
from ...denormals import flushed
from ...disk_cache import FOLDER, SOURCES, cache_root, read_sealed, warn_not_kept, write_sealed
from ...interrupts import interrupts_held
from . import (
    frontend,
    objects,
    vector_math,  # noqa: F401 (kernels use it in place of formulas.functions)
)
from .frontend import register_jitable
from .primitives import INTERPRETED, PYTHON_CODE, enter, python_address

log = logging.getLogger("fastopt")

# No fastmath, anywhere: updates equal the reference bit for bit, and they wait for memory anyway. The "numpy" error
# model makes x / 0 an infinity instead of an exception, without which no loop with a division would be vectorised.
OPTIONS = {"nopython": True, "error_model": "numpy"}

ffi = cffi.FFI()
lock = threading.RLock()  # one compilation at a time
if hasattr(os, "register_at_fork"):  # a child would inherit a compilation that none of its threads finishes
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)

_as_formula = register_jitable(error_model="numpy", forceinline=True)
_num_defined = 0  # functions of formulas.defined that kernels can call

if not INTERPRETED:
    for _module in formulas.MODULES:
        for _function in [f for f in vars(_module).values() if isinstance(f, pytypes.FunctionType)]:
            if _function.__module__ == _module.__name__:
                _as_formula(_function)


def _prepare() -> None:
    """Prepare Numba, and let kernels call the formulas that users have defined since. Call it with `lock`."""
    global _num_defined
    new = formulas.defined.FUNCTIONS[_num_defined:]
    for function in new:
        _as_formula(function)
    _num_defined += len(new)
    frontend.prepare()


# ---------------------------------------------------------------- cache
def _digest() -> str:
    """Digest of all that the machine code depends on: kernel sources, compilers, processor, Python."""
    parts = SOURCES, frontend.target(), frontend.versions(), frontend.code_settings()
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]


@cache
def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _written_elsewhere(function: Callable[..., None]) -> str:
    """Digest of the file that a function comes from; "" if that is one of the kernels' sources."""
    path = Path(function.__code__.co_filename)
    inside = path.resolve().is_relative_to(FOLDER.resolve())
    return "" if inside or not path.is_file() else _file_digest(path)


def cache_folder() -> Path:
    """Folder of this version's kernels for this processor."""
    return cache_root() / _digest()


@contextlib.contextmanager
def _unique_symbols() -> Iterator[None]:
    """Context in which Numba numbers functions at random, for code that it keeps itself.

    Numba counts functions from 1 in every process, and only the number distinguishes the symbols of two closures of one
    factory. So kernels compiled in two processes could both have a function of the same name, and in a third process
    that loads both, one would call the other's: https://github.com/numba/numba/issues/10486.
    """
    from numba.core.bytecode import FunctionIdentity

    before = FunctionIdentity._unique_ids
    FunctionIdentity._unique_ids = iter(lambda: secrets.randbits(63), None)  # a forked process draws its own, too
    try:
        yield
    finally:
        FunctionIdentity._unique_ids = before


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Context without collections of garbage, which a compilation makes little of: they took a tenth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Disk:
    """File of one kernel in the cache. Whatever fails, the kernel is compiled."""

    def __init__(self, name: str, identity: str) -> None:
        self.name, self.identity = name, identity
        self.trouble: Exception | None = None

    def _identity(self) -> str:
        return f"{_digest()} {self.name} {self.identity}"

    def read(self, use: Callable[[bytes], Any]) -> Any:
        """The value of use(content), or None."""
        try:
            payload = read_sealed(cache_folder() / f"{self.name}.bin", self._identity())
            return None if payload is None else use(payload)
        except Exception as error:  # the cache is an accelerator, never a reason to fail
            log.debug("compiled kernel %s could not be loaded: %r", self.name, error)
            return None

    def write(self, payload: Callable[[], bytes]) -> None:
        """Keep what `payload` returns."""
        try:
            write_sealed(cache_folder() / f"{self.name}.bin", self._identity(), payload())
        except Exception as error:  # read-only folder, full disk, ...
            self.trouble = error
            log.debug("compiled kernel %s could not be kept: %r", self.name, error)


# ---------------------------------------------------------------- messages
class _CompileNotice:
    """Log message that a call waits for the compiler: after a second, or at once if no code can be kept."""

    listeners: ClassVar[list[Callable[[str], None]]] = []
    depth, spent, kernels = 0, 0.0, 0  # `compiling` contexts that are open, seconds, kernels compiled

    @classmethod
    def before(cls, name: str) -> None:
        for listener in cls.listeners:
            listener(name)

    @classmethod
    def after(cls, seconds: float, trouble: Exception | None) -> None:
        announced = cls.spent > 1.0
        cls.spent += seconds
        cls.kernels += 1
        if trouble is not None:
            warn_not_kept(cache_folder(), trouble)
        elif cls.spent > 1.0 and not announced:
            log.info("compiling kernels; they are kept in %s for the next time", cache_folder())


@contextlib.contextmanager
def compiling(listener: Callable[[str], None] | None = None) -> Iterator[None]:
    """Context that calls `listener(name)` before each kernel is compiled, and logs more than a second of compiling."""
    with lock:
        if listener:
            _CompileNotice.listeners.append(listener)
        if _CompileNotice.depth == 0:
            _CompileNotice.spent, _CompileNotice.kernels = 0.0, 0
        _CompileNotice.depth += 1
    try:
        yield
    finally:
        with lock:
            if listener:
                _CompileNotice.listeners.remove(listener)
            _CompileNotice.depth -= 1
            if _CompileNotice.depth == 0 and _CompileNotice.spent > 1.0:
                log.info("compiled %d kernels in %.1f s", _CompileNotice.kernels, _CompileNotice.spent)


# ---------------------------------------------------------------- kernels
PHASE = ["work", "step", "rank", "num_ranks"]


class Kernel:
    """A function of integers, compiled when its address is first asked for.

    A phase is a kernel whose parameters are named as in PHASE. Denormals are flushed while it runs, on any thread.
    Other kernels run under the setting of their caller.

    name: of this function alone: it is the key of the cache.
    parameters: names of Numba's types of the parameters, int64 by default.
    layer: starts the threading layer, which Numba would otherwise choose itself when it compiles or loads the code.
    Only for the one kernel with a prange, which launches all others.
    """

    names: ClassVar[dict[str, Kernel]] = {}

    def __init__(
        self,
        function: Callable[..., None],
        name: str,
        parameters: Iterable[str] | None = None,
        layer: Callable[[], object] | None = None,
    ) -> None:
        self.function, self.name = function, name
        self.layer = layer
        self.options = {**OPTIONS, "parallel": True} if layer else {**OPTIONS, **frontend.NO_RUNTIME}
        known = Kernel.names.setdefault(name, self)
        if not known._has_code_of(self):  # it has if two threads made the same kernel at the same time
            raise AssertionError(f"two kernels are called {name}: they would share a file of the cache")
        names = list(inspect.signature(function).parameters)
        self.parameters = tuple(map(str, parameters or ["int64"] * len(names)))
        self.is_phase = names == PHASE
        self.compiled = self.loaded = False  # in this process; for `fastopt info` and the tests
        self._address = 0
        self._code: Any = None  # Numba's library of code, if this process has compiled the kernel
        self.run: Callable[..., None] = self._first_run  # the same as a call of the kernel, without a Python frame

    def _has_code_of(self, other: Kernel) -> bool:
        """True if two kernels are made of the same code, closed over the same values, and compiled alike."""
        mine, its = self.function, other.function
        values = [[cell.cell_contents for cell in f.__closure__ or ()] for f in (mine, its)]
        return mine.__code__ == its.__code__ and values[0] == values[1] and self.options == other.options

    @property
    def address(self) -> int:
        if not self._address:
            # an interrupt inside one of LLVM's callbacks would be printed and forgotten
            with interrupts_held(), lock, _collector_paused():
                if not self._address:
                    self._address = python_address(self.function) if INTERPRETED else self._load_or_compile()
        return self._address

    def _load_or_compile(self) -> int:
        if self.layer:
            self.layer()
        if objects.usable() and not self.layer:
            disk = self._disk("object")
            if address := self._load_object(disk) or self._compile_object(disk):
                return address
        return self._by_numba(self._disk("library"))

    def _disk(self, kind: str) -> _Disk:
        written = _written_elsewhere(self.function)
        return _Disk(self.name, f"{kind} ({', '.join(self.parameters)}) {self.options} {written}")

    def _load_object(self, disk: _Disk) -> int:
        """Address of the kernel, linked from the cache without Numba; 0 if it is not there."""
        address = disk.read(objects.link)
        if address is None and not frontend.prepared():
            before = cache_folder()
            _prepare()
            if cache_folder() != before:  # Numba has settings that could not be told without importing it
                address = disk.read(objects.link)
        self.loaded = address is not None
        return address or 0

    def _compile_object(self, disk: _Disk) -> int:
        """Address of the kernel, compiled by Numba and linked as from the cache; 0 if it calls what is not found."""
        from numba.core.compiler_lock import global_compiler_lock

        start = time.perf_counter()
        _prepare()
        _CompileNotice.before(self.name)
        with global_compiler_lock:
            self._code = objects.lower(self.function, self.name, self.parameters, self.options)
            code = objects.emit(self._code)
        try:
            address = objects.link(code)
        except RuntimeError as error:  # such as a function of a compiler's own library
            log.debug("the object of %s could not be loaded: %s", self.name, error)
            return 0
        self.compiled = True
        disk.write(lambda: code)
        _CompileNotice.after(time.perf_counter() - start, disk.trouble)
        return address

    def _by_numba(self, disk: _Disk) -> int:
        """Load or compile the kernel by Numba, whose thread layer or tools it needs."""
        _prepare()
        from numba.core.ccallback import CFunc

        start = time.perf_counter()
        types = tuple(getattr(frontend.types, name) for name in self.parameters)
        code = CFunc(self.function, (types, frontend.types.void), {}, self.options)
        code._cache = _NumbaCache(disk)
        with _unique_symbols():
            code.compile()
        self.loaded = code.cache_hits > 0
        self.compiled = not self.loaded
        if self.compiled:
            _CompileNotice.after(time.perf_counter() - start, disk.trouble)
        self._code, self._numba = code._library, code  # which owns the machine code
        return int(code.address)

    def llvm(self) -> str:
        """The optimised code of a kernel that this process has compiled, in LLVM's language."""
        return str(self._code.get_llvm_str())

    def _first_run(self, *args: int) -> None:
        if INTERPRETED:
            self.run = flushed(PYTHON_CODE[self.address])
        elif self.is_phase:
            self.run = partial(_pointer(ENTER), self.address)
        else:
            self.run = _pointer(self)
        self.run(*args)

    def __call__(self, *args: int) -> None:
        self.run(*args)


def _pointer(kernel: Kernel) -> Any:
    """A kernel as a C function that Python can call."""
    return ffi.cast(f"void(*)({', '.join(['int64_t'] * len(kernel.parameters))})", kernel.address)


def _enter(code, work, step, rank, num_ranks):
    enter(code, work, step, rank, num_ranks)


ENTER = Kernel(_enter, "enter")


class _NumbaCache:
    """The cache of one kernel with the methods that Numba calls."""

    def __init__(self, disk: _Disk) -> None:
        self.disk = disk

    def load_overload(self, signature: Any, context: Any) -> Any:
        def rebuild(payload: bytes) -> Any:
            from numba.core.compiler import CompileResult

            context.refresh()
            return CompileResult._rebuild(context, *pickle.loads(payload))

        found = self.disk.read(rebuild)
        if found is None:
            _CompileNotice.before(self.disk.name)
        return found

    def save_overload(self, signature: Any, result: Any) -> None:
        def payload() -> bytes:
            from numba.core import serialize

            if result.library.has_dynamic_globals:
                raise AssertionError("its code contains addresses of this process")
            return bytes(serialize.dumps(result._reduce()))

        self.disk.write(payload)
