"""From a Python function to a CUDA kernel: compile options, the way to machine code, the cache.

Kernels speak integers, as those of the CPU do: their arguments are addresses and numbers, and they return nothing. So a
kernel has one signature, a launch is one call of the driver with nothing to convert, and arrays of any library will do.

    Python --Numba, libNVVM--> LTO-IR --nvJitLink--> cubin --driver--> device

We link LTO-IR ourselves because only there can contraction be turned off: a * b + c with one rounding instead of two
would be other bits than the CPU's. That needs no driver and no device, so every kernel can be compiled, and its machine
code inspected, on any machine. Under Numba's simulator (NUMBA_ENABLE_CUDASIM=1) kernels run as Python.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import re
import threading
import types as pytypes
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numba
from numba import cuda

from ...disk_cache import SOURCES, cache_root, read_sealed, warn_not_kept, write_sealed
from ...formulas import functions
from ...interrupts import interrupts_held
from . import nvjitlink
from .driver import OLDEST

SIMULATED = bool(numba.config.ENABLE_CUDASIM)
THREADS = 8 if SIMULATED else 256  # in a block; the simulator starts a thread of Python for each

# IEEE arithmetic: denormals are kept, division and square root are rounded correctly, nothing is contracted.
LINK_OPTIONS = ("-lto", "-ftz=0", "-prec-div=1", "-prec-sqrt=1", "-fma=0")

# Packages that cubins depend on, besides the sources, the linker and the device. It does not matter where NVIDIA's
# libraries come from: a folder of cubins that was made with its wheels serves a machine with a toolkit.
PACKAGES = ("numba-cuda", "numba", "llvmlite")


def _exp(x):
    return math.exp(x)  # overflows to inf on a device, without the exception that the host's catches


def _sqrt(x):
    return math.sqrt(x)


def _power(x, y):
    return math.pow(x, y)


def _sin(x):
    return math.sin(x)


def _cos(x):
    return math.cos(x)


# Functions to compile instead of those that no device can compile, or that test for what a device does by itself.
STAND_INS: dict[Callable[..., Any], Callable[..., Any]] = {
    functions.exp: _exp,
    functions.sqrt: _sqrt,
    functions.power: _power,
    functions.sin: _sin,
    functions.cos: _cos,
}
lock = threading.RLock()  # one compilation at a time
_device_functions: dict[Callable[..., Any], Any] = {}
# Under the simulator: one function of each module whose functions kernels of other modules call.
simulated_modules: dict[int, Callable[..., Any]] = {}


def device(function: Callable[..., Any]) -> Any:
    """Return a function that kernels can call, with the formulas that it calls itself.

    Everything is inlined: a call of a function that is not makes Numba ask for the current device.
    """
    if SIMULATED and function.__globals__.get("cuda") is cuda:
        simulated_modules[id(function.__globals__)] = function
    if SIMULATED or not isinstance(function, pytypes.FunctionType):  # made one before
        return function
    function = STAND_INS.get(function, function)
    if function not in _device_functions:
        names = dict(function.__globals__)
        for name in function.__code__.co_names:
            callee = names.get(name)
            if not isinstance(callee, pytypes.FunctionType) or callee is function:  # as tanh is, which calls math.tanh
                continue
            if callee.__module__.startswith(__name__.split(".")[0]):
                names[name] = device(callee)
        own = pytypes.FunctionType(
            function.__code__, names, function.__name__, function.__defaults__, function.__closure__
        )
        _device_functions[function] = cuda.jit(device=True, inline="always")(own)
    return _device_functions[function]


_listeners: list[Callable[[str], None]] = []


@contextlib.contextmanager
def compiling(listener: Callable[[str], None]) -> Iterator[None]:
    """While open, call `listener(name)` before each kernel is compiled."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Listing(NamedTuple):
    """Machine code of a kernel and the compiler's report, for tests and for people."""

    cubin: bytes
    ptx: str
    log: str

    @property
    def registers(self) -> int:
        return int(re.findall(r"Used (\d+) registers", self.log)[0])

    @property
    def local_bytes(self) -> int:
        """Bytes of a thread's stack, spills included."""
        return sum(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads|lmem)", self.log)))


def cache_folder() -> Path:
    """Return the folder of cubins of these sources and compilers, for all devices."""
    return cache_root() / f"cuda-{_digest()}"


class Kernel:
    """A function of 64-bit integers, compiled for a compute capability when its cubin is first needed.

    `name` names one function for good: it is the key of the cache. registers: the limit per thread; 0: ptxas chooses.
    """

    names: ClassVar[dict[str, Kernel]] = {}

    def __init__(self, function: Callable[..., None], name: str, registers: int = 0) -> None:
        self.function, self.name, self.registers = function, name, registers
        if Kernel.names.setdefault(name, self) is not self:
            raise AssertionError(f"two kernels are called {name}: they would share a file of the cache")
        self.arguments = len(inspect.signature(function).parameters)
        self._cubins: dict[tuple[int, int], bytes] = {}

    def cubin(self, capability: tuple[int, int]) -> bytes:
        """Return the machine code for devices of a compute capability, from the cache if it is there."""
        with interrupts_held(), lock:  # an interrupt inside a callback of LLVM would be lost
            if capability not in self._cubins:
                self._cubins[capability] = self._cached(capability)
            return self._cubins[capability]

    def path(self, capability: tuple[int, int]) -> Path:
        """Return the file that keeps the machine code for a compute capability."""
        return cache_folder() / f"{self.name}-{capability[0]}{capability[1]}.cubin"

    def _cached(self, capability: tuple[int, int]) -> bytes:
        identity, path = f"{_digest()} {self.name} {capability}", self.path(capability)
        try:
            found = read_sealed(path, identity)
        except OSError:
            found = None
        if found is None:
            for listener in _listeners:
                listener(self.name)
            found, _ = self._link(capability, "cubin")
            try:
                write_sealed(path, identity, found)
            except OSError as error:  # the cache is an accelerator, never a reason to fail
                warn_not_kept(path.parent, error)
        return found

    def listing(self, capability: tuple[int, int]) -> Listing:
        """Compile the kernel anew; return it with its PTX and the report of ptxas."""
        with interrupts_held():
            ptx, _ = self._link(capability, "ptx")
            cubin, log = self._link(capability, "cubin")
        return Listing(cubin, ptx.decode(errors="replace"), log)

    @cache  # noqa: B019 (kernels live as long as the process)
    def _lto_ir(self) -> bytes:
        with lock:
            signature = cuda.types.void(*[cuda.types.int64] * self.arguments)
            (code,), _ = cuda.compile_all(
                self.function, signature, device=False, abi="numba", cc=OLDEST, output="ltoir"
            )
        return bytes(code)

    def _link(self, capability: tuple[int, int], output: str) -> tuple[bytes, str]:
        """Return a cubin, or the PTX that it would be made of, and the linker's report."""
        options = [f"-arch=sm_{capability[0]}{capability[1]}", *LINK_OPTIONS, "-Xptxas=-v", "-verbose"]
        if self.registers:
            options.append(f"-maxrregcount={self.registers}")
        if output == "ptx":
            options.append("-ptx")
        return nvjitlink.link(self._lto_ir(), self.name, options, output)


def entry(cubin: bytes) -> bytes:
    """Return the name of a cubin's only kernel, read from its section: Numba makes it up anew in every process."""
    (name,) = set(re.findall(rb"\x00\.text\.([^\x00]+)\x00", cubin))
    return name


@cache
def _digest() -> str:
    versions = [("nvJitLink", nvjitlink.version()), *((name, version(name)) for name in PACKAGES)]
    return hashlib.sha256(repr((SOURCES, versions, OLDEST, LINK_OPTIONS)).encode()).hexdigest()[:20]
