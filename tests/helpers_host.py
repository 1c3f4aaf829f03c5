"""CUDA kernels, compiled for the host and run there by one thread: barriers and kinds of memory mean nothing.

The simulator runs a kernel's Python, with stand-ins for what Python cannot say. This runs what Numba has made of it,
types and LLVM's own instructions included, before it becomes a device's machine code.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from numba import cuda
from numba.cuda.compiler import compile_cuda

SHARED = 1 << 19  # bytes of shared memory
POINTER = re.compile(r"(\{[^{}]*\}|\[[^\[\]]*\]|<[^<>]*>|\bi\d+|\bfloat|\bdouble|\bptr)\s?\*")


def _for_host(code: str) -> str:
    """LLVM code for a device as code for a host: pointers of one kind, without barriers."""
    code = re.sub(r"target (triple|datalayout).*", "", code)
    memory = f"= global [{SHARED // 8} x double] zeroinitializer, align 16"
    code = re.sub(r"= external addrspace\(3\) global \[0 x double\](, align \d+)?", memory, code)
    code = re.sub(r"addrspace\(\d\) ?", "", code).replace("addrspacecast", "bitcast")
    found = 1
    while found:  # older LLVMs' pointers are of a type, which may be one of pointers
        code, found = POINTER.subn("ptr", code)
    code = re.sub(r'declare \w+ @"llvm\.nvvm\..*', "", code)
    code = re.sub(r'call i32 @"llvm\.nvvm\.read\.ptx\.sreg\.tid\.\w"\(\)', "add i32 0, 0", code)
    size = r'call i32 asm sideeffect "mov\.u32 \$0, %dynamic_smem_size;", "=r"\(\)'
    code = re.sub(size, f"add i32 0, {SHARED}", code)
    code = re.sub(r'call void asm sideeffect "prefetch[^\n]*', "", code)
    return re.sub(r'call void @"llvm\.nvvm\.barrier0"\(\)', "", code)


def on_host(kernel: Callable[..., None], arguments: int) -> Callable[..., None]:
    """Return a kernel of some integers as a function of the host."""
    signature = (cuda.types.int64,) * arguments
    compiled = compile_cuda(kernel, cuda.types.void, signature, debug=False, lineinfo=False, cc=(7, 5))
    code = _for_host("\n".join(compiled.library.llvm_strs))
    libm: Any = ctypes.CDLL(ctypes.util.find_library("m"))
    for name in set(re.findall(r'@"__nv_(\w+)"', code)):
        llvm.add_symbol(f"__nv_{name}", ctypes.cast(getattr(libm, name), ctypes.c_void_p).value)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(code)
    name = next(f.name for f in module.functions if not f.is_declaration and kernel.__name__ in f.name)
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, *[ctypes.c_int64] * arguments)
    function, nowhere = prototype(engine.get_function_address(name)), ctypes.c_void_p()

    def run(*args: int) -> None:
        assert engine  # it owns the code
        assert function(ctypes.addressof(nowhere), *args) == 0

    return run
