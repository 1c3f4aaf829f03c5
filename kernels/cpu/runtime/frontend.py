"""Numba, the front end of the compiler: its decorators and names for kernels, without its import.

Importing Numba and its implementations takes half a second, and a process that finds its kernels in the cache needs
none of it. So the decorators note what they are given, and `prepare` hands it to Numba before something is compiled.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
from llvmlite import binding

F = TypeVar("F", bound=Callable[..., Any])


# ---------------------------------------------------------------- settings
# Numba's settings that change its machine code, with their defaults as texts. With SVML the code calls a library that
# another environment may lack.
_DEFAULTS = {
    "OPT": "_OptLevel(3)",
    "USING_SVML": "False",
    "LOOP_VECTORIZE": "1",
    "SLP_VECTORIZE": "0",
    "BOUNDSCHECK": "None",
    "DEBUGINFO_DEFAULT": "0",
}
_WITHOUT_EFFECT = {"NUMBA_NUM_THREADS", "NUMBA_CACHE_DIR"}  # on kernels


def config() -> Any:
    """Numba's settings; None, without importing Numba, if all have their defaults."""
    if "numba.core.config" not in sys.modules:
        chosen = any(name.startswith("NUMBA_") and name not in _WITHOUT_EFFECT for name in os.environ)
        if not chosen and not os.path.exists(".numba_config.yaml"):
            return None
    return importlib.import_module("numba").config


def code_settings() -> tuple[str, ...]:
    """The settings that machine code depends on."""
    found = config()
    return tuple(default if found is None else str(getattr(found, name, None)) for name, default in _DEFAULTS.items())


def target() -> tuple[str, str, str]:
    """Triple, processor and features that Numba compiles for, as its `magic_tuple` has them."""
    found = config()
    name, features, avx = found and found.CPU_NAME, found and found.CPU_FEATURES, not found or found.ENABLE_AVX
    if features is None:
        features = _host_features(bool(avx))
    return binding.get_process_triple(), binding.get_host_cpu_name() if name is None else name, features


@cache
def _host_features(avx: bool) -> str:
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM knows none of this processor
        return ""
    if not avx:
        features.update({name: False for name in features if name.startswith("avx")})
    return str(features.flatten())


def versions() -> tuple[str, str, tuple[int, ...]]:
    """Versions of Numba, llvmlite and Python; Numba's is "" if it cannot be told without importing it."""
    return _numba_version("numba" in sys.modules), llvmlite.__version__, sys.version_info[:3]


@cache
def _numba_version(imported: bool) -> str:
    if imported:
        return str(importlib.import_module("numba").__version__)
    spec = importlib.util.find_spec("numba")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / "_version.py"
        found = file.is_file() and re.search(r'"version": "([^"]+)"', file.read_text(encoding="utf-8"))
        if found:
            return found[1]
    return ""


INTERPRETED = bool(getattr(config(), "DISABLE_JIT", False))


# ---------------------------------------------------------------- names
class _Names:
    """A module's names, imported when the first is asked for."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


types: Any = _Names("numba.core.types")
cgutils: Any = _Names("numba.core.cgutils")


# ---------------------------------------------------------------- decorators
# Without Numba's runtime, whose counts of references kernels do not need: it would have to be imported with Numba.
NO_RUNTIME = {"_nrt": False}

# Numba's passes for expressions of whole arrays and for functions within functions, which kernels do not have.
_LEFT_OUT = {"NopythonRewrites", "InlineClosureLikes"}


@cache
def pipeline() -> Any:
    """Numba's class of compilers, without passes that change nothing in a kernel, and without checks of every pass.

    The machine code is the same; the kernels of a first training take 0.3 of 4.2 s less.
    """
    compiler = importlib.import_module("numba.core.compiler")

    class Passes(compiler.PassManager):  # type: ignore[misc, name-defined]
        _ENFORCING = False

    class Pipeline(compiler.Compiler):  # type: ignore[misc, name-defined]
        def define_pipelines(self) -> list[Any]:
            (whole,) = super().define_pipelines()
            passes = Passes(whole.pipeline_name)
            passes.passes = [each for each in whole.passes if each[0].__name__ not in _LEFT_OUT]
            passes.finalize()
            return [passes]

    return Pipeline


def _of_parts() -> dict[str, Any]:
    """Options of functions that kernels call: no code is made that would call them from elsewhere."""
    return {**NO_RUNTIME, "no_cfunc_wrapper": True, "pipeline_class": pipeline()}

_noted: list[Callable[[], object]] = []  # calls of Numba's decorators that `prepare` makes


def register_jitable(*function: Any, **options: Any) -> Any:
    """Decorator: kernels may call the function. As Numba's, with or without options, but it must allocate nothing."""

    def note(function: F) -> F:
        _noted.append(lambda: _extending().register_jitable(**_of_parts(), **options)(function))
        return function

    return note(*function) if function else note


def overload(function: Callable[..., Any], **options: Any) -> Callable[[F], F]:
    """Decorator: kernels that call `function` call what the decorated one returns for the types of its arguments."""

    def note(choose: F) -> F:
        _noted.append(lambda: _extending().overload(function, **options)(choose))
        return choose

    return note


class Intrinsic:
    """A function of kernels that is written in LLVM's instructions: Numba's intrinsic, made when it is needed."""

    __name__: str

    def __init__(self, define: Callable[..., Any]) -> None:
        self.define = define
        functools.update_wrapper(self, define)
        _noted.append(self._register)

    def _register(self) -> None:
        templates = importlib.import_module("numba.core.typing.templates")
        template = templates.make_intrinsic_template(self, self.define, self.__name__)
        templates.infer(template)
        templates.infer_global(self, types.Function(template))

    def __call__(self, *args: Any) -> Any:
        raise NotImplementedError(f"{self.__name__} must be called by a kernel")


intrinsic = Intrinsic


def _extending() -> Any:
    return importlib.import_module("numba.extending")


def prepared() -> bool:
    """True if Numba has all that the decorators have noted."""
    return not _noted and "numba" in sys.modules


def prepare() -> None:
    """Import Numba and hand it what the decorators have noted, unless that is done."""
    importlib.import_module("numba")
    while _noted:
        _noted.pop(0)()
