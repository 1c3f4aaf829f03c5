"""Object code of kernels: made of what Numba has lowered, and linked into the process by LLVM alone.

Numba's own files of compiled code need Numba, whose import takes longer than loading all kernels of a training. An
object of ours shows one function, ENTRY, which takes the kernel's integers and returns nothing. It calls nothing of
Numba's: an exception, of which kernels have none, would be reported by `_report`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from llvmlite import binding, ir

from .frontend import config, pipeline, types

log = logging.getLogger("fastopt")

ENTRY, REPORT = "fastopt_kernel", "fastopt_exception"


# ---------------------------------------------------------------- making
def usable() -> bool:
    """True if kernels are kept as objects, and not by Numba.

    Its listings and its profiling are of code in its own hands; on Windows objects have not been tried.
    """
    found = config()
    names = ("ENABLE_PROFILING", "DUMP_OPTIMIZED", "DUMP_ASSEMBLY", "DUMP_FUNC_OPT", "DEBUGINFO_DEFAULT")
    return sys.platform != "win32" and not any(getattr(found, name, False) for name in names)


def lower(function: Callable[..., None], name: str, parameters: Sequence[str], options: dict[str, Any]) -> Any:
    """Library of Numba's with the code of a kernel, and of what it calls, in LLVM's language, not optimised as a whole.

    Call it with Numba's compiler lock.
    """
    from numba.core.dispatcher import _FunctionCompiler
    from numba.core.registry import cpu_target

    class Compiler(_FunctionCompiler):  # type: ignore[misc]
        def _customize_flags(self, flags: Any) -> Any:
            flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
            return flags

    compile_ = Compiler(function, cpu_target, options, {}, pipeline()).compile
    with _parts_not_loaded(cpu_target.target_context):
        result = compile_(tuple(getattr(types, parameter) for parameter in parameters), types.void)
    _add_entry(result.library, result.fndesc, name, cpu_target.target_context)
    return result.library


@contextlib.contextmanager
def _parts_not_loaded(context: Any) -> Iterator[None]:
    """Context in which functions of ours that a kernel calls are kept as LLVM's code alone, which is all it needs.

    Numba would also run all passes on each, which go over the kernel's module anyway, make machine code of it and load
    that: 1 of the 4 s that the kernels of a training took. Trainings are as fast without.
    """
    from numba import _dynfunc

    load, codegen = context.get_executable, context.codegen()

    def keep(library: Any) -> None:
        library._finalize_dynamic_globals()
        library._verify_declare_only_symbols()
        library._finalized = True

    def get_executable(library: Any, native: Any, environment: Any) -> Any:
        if not native.modname.startswith(f"{__name__.partition('.')[0]}."):
            return load(library, native, environment)
        library._optimize_final_module, library._finalize_final_module = lambda: None, partial(keep, library)
        return _dynfunc.make_function(native.lookup_module(), native.qualname, "", 0, environment, (library,))

    context.get_executable, codegen._function_pass_manager = get_executable, lambda: (_NoPasses(), None)
    try:
        yield
    finally:
        del context.get_executable, codegen._function_pass_manager


class _NoPasses:
    """A pass manager that does nothing."""

    def run(self, function: Any, builder: Any) -> None:
        pass


def _add_entry(library: Any, native: Any, name: str, context: Any) -> None:
    """Add ENTRY, which calls Numba's function: that returns a status, and takes addresses for a result and an error."""
    module = library.create_ir_module(ENTRY)
    callee = ir.Function(module, context.call_conv.get_function_type(native.restype, native.argtypes),
                         native.llvm_func_name)  # fmt: skip
    kinds = [context.get_value_type(kind) for kind in native.argtypes]
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), ENTRY)
    builder = ir.IRBuilder(entry.append_basic_block())
    status, _ = context.call_conv.call_function(builder, callee, native.restype, native.argtypes, entry.args)
    with builder.if_then(status.is_error, likely=False):
        text = context.insert_const_string(module, name)
        report = ir.Function(module, ir.FunctionType(ir.VoidType(), [text.type]), REPORT)
        builder.call(report, [text])
    builder.ret_void()
    library.add_ir_module(module)


def emit(library: Any) -> bytes:
    """Object code of a library that `lower` has made, optimised by Numba's passes."""
    module = library._final_module
    for part in dict.fromkeys(library._linking_libraries):
        module.link_in(part._get_module_for_linking(), preserve=True)
    # Numba's own function of the kernel, which ENTRY then replaces. Functions that it calls stay as Numba links them:
    # LLVM inlines more of internal ones, and an epoch at batch 256 took 1.02 times as long.
    _make_internal(module, lambda value: value.linkage == binding.Linkage.external)
    library._optimize_final_module()
    _make_internal(module, lambda value: True)
    module.verify()
    return bytes(library.codegen._tm.emit_object(module))


def _make_internal(module: Any, chosen: Callable[[Any], bool]) -> None:
    """Make what a module defines, and what is chosen of it, unknown outside, but for ENTRY."""
    for value in itertools.chain(module.functions, module.global_variables):
        if value.name.startswith("numba.dynamic.globals"):
            raise ValueError("its code contains addresses of this process")
        if not value.is_declaration and value.name != ENTRY and chosen(value):
            value.linkage = binding.Linkage.internal


# ---------------------------------------------------------------- linking
_numbers = itertools.count()
_kept: list[Any] = []  # code is never unloaded: a thread may be in it when the process ends


@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def _report(name: bytes) -> None:
    log.error("the kernel %s has raised an exception, and its results are incomplete", name.decode())


@cache
def _linker() -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    linker = binding.create_lljit_compiler(use_jit_link=True, suppress_errors=True)
    _kept.append(linker)
    return linker


def link(code: bytes) -> int:
    """Load an object into the process and return the address of its ENTRY; RuntimeError if LLVM cannot.

    Functions of C that it calls, such as memset and logf, are those that the process finds.
    """
    builder = binding.JITLibraryBuilder().add_object_img(code).add_current_process().export_symbol(ENTRY)
    builder.import_symbol(REPORT, ctypes.cast(_report, ctypes.c_void_p).value)
    linked = builder.link(_linker(), f"fastopt-{next(_numbers)}")
    _kept.append(linked)
    return int(linked[ENTRY])
