"""The GEMM in use, as an address that kernels call: a vendor's, or that of `matmul`.

A vendor's library is set to one thread, as kernels have threads of their own. `FASTOPT_BLAS` chooses "mkl", "fastopt"
(`matmul`), "openblas", "none" (plain loops) or the path of any CBLAS library. The default is the first that is there of
MKL, `matmul` and OpenBLAS; the processor may change their order.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...settings import path_in
from ..runtime.compile import Kernel, ffi
from ..runtime.primitives import INTERPRETED, python_address
from ..runtime.processors import NEON, microarchitecture, vector_unit
from ..runtime.storage import as_it_is
from .matmul import available, gemm_types, matmul_kernel, plain_of
from .matmul_bfloat16 import matmul_bfloat16_kernel

log = logging.getLogger("fastopt")

# The largest m n k of OpenBLAS's kernels for small products on AVX-512. They ran at 104 to 110 GFLOP/s; its others,
# which pack their operands first, at 83 to 98 (float32, Zen 4).
UNPACKED = 1_000_000

_GEMM_DECLARATION = "void {name}(int, int, int, int, int, int, {T}, intptr_t, int, intptr_t, int, {T}, intptr_t, int);"
_C_TYPES = {"float32": ("s", "float"), "float64": ("d", "double")}


class Blas(NamedTuple):
    """A BLAS in use; `gemm` maps a dtype's name to the address of cblas_?gemm."""

    name: str
    version: str
    path: str
    gemm: dict[str, int]
    unpacked: int = 0  # the largest m n k of a product whose operands it does not pack

    def kernels(self, dtype: str) -> list[Kernel]:
        """The kernels that it consists of."""
        return [self.gemm.kernel(dtype)] if isinstance(self.gemm, _Compiled) else []


def _openblas_path() -> Path | None:
    found = importlib.util.find_spec("scipy_openblas32")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "lib"
    names = [path for path in sorted(folder.glob("*scipy_openblas*")) if path.suffix in (".so", ".dylib", ".dll")]
    return names[0] if names else None


def _mkl_path() -> Path | None:
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    names = [file for file in files if file.name.startswith(("libmkl_rt.", "mkl_rt.")) and ".lib" not in file.name]
    return Path(str(names[0].locate())).resolve() if names else None


def _declare(library: Any, prefix: str) -> dict[str, int]:
    """The addresses of cblas_?gemm, whose names have a prefix."""
    found = {}
    for dtype, (letter, T) in _C_TYPES.items():
        name = f"{prefix}cblas_{letter}gemm"
        ffi.cdef(_GEMM_DECLARATION.format(name=name, T=T), override=True)
        function = getattr(library, name)
        found[dtype] = python_address(function) if INTERPRETED else int(ffi.cast("intptr_t", function))
    return found


def _open_openblas(path: Path) -> Blas:
    prefix = "scipy_" if "scipy_openblas" in path.name else ""
    ffi.cdef(
        f"void {prefix}openblas_set_num_threads(int); char *{prefix}openblas_get_config(void);"
        f"char *{prefix}openblas_get_corename(void);",
        override=True,
    )
    library = ffi.dlopen(str(path))
    getattr(library, f"{prefix}openblas_set_num_threads")(1)
    config = ffi.string(getattr(library, f"{prefix}openblas_get_config")()).decode()
    if "USE64BITINT" in config:
        raise OSError("it is built for 64-bit integers")
    version = config.split()[1]
    core = ffi.string(getattr(library, f"{prefix}openblas_get_corename")()).decode()
    unpacked = UNPACKED if core in ("SkylakeX", "Cooperlake", "SapphireRapids") else 0
    return Blas("openblas", f"{version} for {core}", str(path), _declare(library, prefix), unpacked)


def _open_mkl(path: Path) -> Blas:
    ffi.cdef(
        "int MKL_Set_Interface_Layer(int); int MKL_Set_Threading_Layer(int); int MKL_Disable_Fast_MM(void);"
        "void MKL_Get_Version_String(char *, int);",
        override=True,
    )
    library = ffi.dlopen(str(path))
    library.MKL_Set_Interface_Layer(0)  # 32-bit integers
    library.MKL_Set_Threading_Layer(1)  # sequential
    library.MKL_Disable_Fast_MM()  # its own allocator may loop for ever after a fork
    text = ffi.new("char[]", 200)
    library.MKL_Get_Version_String(text, 200)
    version = re.search(r"Version ([\d.]+)", ffi.string(text).decode())
    return Blas("mkl", version[1] if version else "unknown", str(path), _declare(library, ""))


def _open_path(path: Path) -> Blas:
    """Open any CBLAS library; known ones are set to one thread, others must use one."""
    for open_ in (_open_openblas, _open_mkl):
        with contextlib.suppress(AttributeError):  # it lacks the functions of that library
            return open_(path)
    return Blas("custom", "unknown", str(path), _declare(ffi.dlopen(str(path)), ""))


@cache
def plain_kernel(dtype: str) -> Kernel:
    """Plain loops, called like a BLAS."""
    return Kernel(plain_of(getattr(np, dtype), as_it_is), f"plain_gemm_{dtype}", gemm_types(dtype))


# Processors on which MKL uses half of a vector, 105 to 112 GFLOP/s where `matmul` has 220 to 265 (Zen 5), or spends its
# time on edges: a step of 784-100-10 with 200 rows took 1.3 times as long in float64, 1.1 to 1.2 in float32 (Zen 3).
SLOW_MKL = {"znver3", "znver5"}


def _by_speed() -> list[str]:
    """The names of the libraries to try, the fastest first."""
    if vector_unit() is NEON:  # on which `matmul` has never run
        return ["mkl", "openblas", "fastopt"]
    return ["fastopt", "mkl", "openblas"] if microarchitecture() in SLOW_MKL else ["mkl", "fastopt", "openblas"]


class _Compiled(dict[str, int]):
    """Addresses of kernels by dtype, compiled when first read."""

    def __init__(self, kernel: Callable[[str], Kernel]) -> None:
        self.kernel = kernel

    def __missing__(self, dtype: str) -> int:
        self[dtype] = self.kernel(dtype).address
        return self[dtype]


PLAIN = Blas("none", "plain loops", "", _Compiled(plain_kernel))
BFLOAT16 = Blas("fastopt", "of bfloat16", "", _Compiled(matmul_bfloat16_kernel), unpacked=1 << 62)


def products(compute: str) -> Blas:
    """The products of layers by the dtype that they compute in."""
    return BFLOAT16 if compute == "bfloat16" else blas()


@cache
def own() -> Blas:
    """The products of `matmul`."""
    unit = vector_unit()
    assert unit is not None, "ask `available` first"
    return Blas("fastopt", f"for {unit.name}", "", _Compiled(matmul_kernel), unpacked=1 << 62)


def _vendors() -> dict[str, tuple[Callable[[], Path | None], Callable[[Path], Blas], str]]:
    """By name: what finds the library, what opens it, and the package that brings it."""
    return {
        "mkl": (_mkl_path, _open_mkl, "fastopt[mkl]"),
        "openblas": (_openblas_path, _open_openblas, "scipy-openblas32"),
    }


_lent: ContextVar[Blas | None] = ContextVar("lent", default=None)  # by `using`


def blas() -> Blas:
    """The BLAS in use, opened on first use; inside `using`, the one given there."""
    return _lent.get() or chosen_blas()


@contextlib.contextmanager
def using(library: Blas) -> Iterator[None]:
    """While open, programs that this thread builds take another BLAS; those built before keep theirs.

    For comparisons of several in one process.
    """
    token = _lent.set(library)
    try:
        yield
    finally:
        _lent.reset(token)


@cache
def present() -> tuple[Blas, ...]:
    """Every BLAS that works here, without plain loops; the one in use stays what it was.

    A vendor's library that is opened is set to one thread, for the whole process.
    """
    found = [own()] if available() else []
    for name, (find, open_, _) in _vendors().items():
        path = find()
        if path is not None:
            try:
                found.append(open_(path))
            except (OSError, AttributeError) as error:
                log.debug("%s at %s could not be opened: %s", name, path, error)
    in_use = chosen_blas()
    if in_use is not PLAIN and in_use.path not in [library.path for library in found]:  # a path of the user's
        found.append(in_use)
    return tuple(found)


@cache
def chosen_blas() -> Blas:
    """The BLAS that `FASTOPT_BLAS` chooses, or the first of the default's order that can be opened."""
    chosen = os.environ.get("FASTOPT_BLAS", "").strip()
    if chosen.lower() == "none":
        return PLAIN
    if chosen.lower() == "fastopt":
        if not available():
            raise ValueError("FASTOPT_BLAS=fastopt needs a processor with AVX2, AVX-512 or NEON, and compiled kernels")
        return own()
    if chosen and chosen.lower() not in _vendors():
        path = path_in(chosen)
        if not path.is_file():
            raise ValueError(
                "FASTOPT_BLAS must be 'mkl', 'fastopt', 'openblas', 'none' or the path of a CBLAS library; "
                f"got {chosen!r}"
            )
        try:
            return _open_path(path)
        except (OSError, AttributeError) as error:
            raise ValueError(f"FASTOPT_BLAS={chosen} is not a CBLAS library that can be used: {error}") from error
    for name in [chosen.lower()] if chosen else _by_speed():
        if name == "fastopt":
            if available():
                return own()
            continue
        find, open_, package = _vendors()[name]
        path_found = find()
        if path_found is None:
            if chosen:
                raise ValueError(f"FASTOPT_BLAS={chosen}, but {chosen} is not installed (pip install {package})")
            continue
        try:
            return open_(path_found)
        except (OSError, AttributeError) as error:
            if chosen:
                raise ValueError(f"FASTOPT_BLAS={chosen}, but {path_found} could not be opened: {error}") from error
            log.warning("%s at %s could not be opened: %s", name, path_found, error)
    log.warning(
        "neither MKL nor OpenBLAS could be opened, so matrix products run on plain loops, several times slower; "
        "`pip install scipy-openblas32` (or fastopt[mkl]) brings one"
    )
    return PLAIN
