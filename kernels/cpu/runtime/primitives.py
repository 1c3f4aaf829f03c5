"""Primitives that kernels need beyond Python: memory at an address, code at an address, atomics, denormals.

Kernels take 64-bit integers only: a number, the address of memory (`view` makes an array of it) or the address of code
(`call_phase` and its like call it). So each kernel is compiled once, and its operands, formula and BLAS are data.
Every primitive has a pure-Python twin, which `NUMBA_DISABLE_JIT=1` selects.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import cffi
import numpy as np
from llvmlite import ir

from ...denormals import ARM, FLUSH, MACHINE, X86
from .frontend import INTERPRETED as INTERPRETED
from .frontend import cgutils, intrinsic, register_jitable, target, types

word = int if INTERPRETED else np.uint64  # the type of counters of random numbers


def target_has(feature: str) -> bool:
    """True if kernels may use an instruction; feature: LLVM's name for it."""
    return not INTERPRETED and feature in target()[2].split(",")


def bitcast(source: str, result: str) -> Callable[[Any, Any], Any]:
    """The typing function of an intrinsic that reinterprets the bits of a number as another type, by their names."""

    def of_bits(typingctx: Any, bits: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], context.get_value_type(signature.return_type))

        return getattr(types, result)(getattr(types, source)), codegen

    return of_bits


def _unaligned_loader(kind: str, swapped: bool) -> Callable[[Any, Any], Any]:
    """The typing function of an intrinsic that reads a number at any address; swapped: its bytes in the other order."""

    def of_bytes(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            stored = context.get_value_type(signature.return_type)
            bits = ir.IntType(8 * context.get_abi_sizeof(stored))
            read = builder.load(builder.inttoptr(args[0], bits.as_pointer()), align=1)
            if swapped and bits.width > 8:
                read = builder.bswap(read)
            return builder.bitcast(read, stored)

        return getattr(types, kind)(types.int64), codegen

    return of_bytes


def _unaligned_loader_python(kind: str, swapped: bool) -> Callable[[int], Any]:
    dtype = np.dtype(kind).newbyteorder("S" if swapped else "=")
    native = np.dtype(kind).type

    def load(address: int) -> Any:
        return native(np.frombuffer(ctypes.string_at(int(address), dtype.itemsize), dtype)[0])

    return load


@cache
def load_unaligned(kind: str, swapped: bool) -> Any:
    """A function for kernels, address -> the number of dtype `kind` there, aligned or not."""
    if INTERPRETED:
        return _unaligned_loader_python(kind, swapped)
    define = _unaligned_loader(kind, swapped)
    define.__name__ = f"load_{kind}{'_swapped' * swapped}"
    return intrinsic(define)


# ---------------------------------------------------------------- compiled
@intrinsic
def _view(typingctx, address, size, dtype):
    """The array at an address, as of `numba.carray`: that would be two more functions to compile for each dtype."""
    from numba.core.typing.npydecl import parse_dtype
    from numba.np.arrayobj import make_array, populate_array

    array = types.Array(parse_dtype(dtype), 1, "C")

    def codegen(context, builder, signature, args):
        made = make_array(array)(context, builder)
        data = builder.inttoptr(args[0], context.get_data_type(array.dtype).as_pointer())
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(array.dtype)))
        populate_array(made, data=data, shape=[args[1]], strides=[itemsize], itemsize=itemsize, meminfo=None)
        return made._getvalue()

    return array(types.int64, types.intp, dtype), codegen


def _caller(result: Any, *parameters: Any) -> tuple[Any, Callable[..., Any]]:
    """Type and code of an intrinsic f(address, *arguments) that calls the C function at an address."""
    signature = result(types.int64, *parameters)

    def codegen(context, builder, signature, args):
        kinds = [context.get_value_type(kind) for kind in parameters]
        back = ir.VoidType() if result == types.void else context.get_value_type(result)
        function = builder.inttoptr(args[0], ir.FunctionType(back, kinds).as_pointer())
        called = builder.call(function, args[1:])
        return context.get_dummy_value() if result == types.void else called

    return signature, codegen


def _gemm_caller(T: Any) -> tuple[Any, Callable[..., Any]]:
    i32, i64 = types.int32, types.int64
    return _caller(types.void, *[i32] * 6, T, i64, i32, i64, i32, T, i64, i32)


# Numba needs the parameters of an intrinsic spelled out.
@intrinsic
def _call_phase(typingctx, code, work, step, rank, num_ranks):
    return _caller(types.void, *[types.int64] * 4)


@intrinsic
def _call_tile(typingctx, code, a, b, c, d, rows, columns, stride):
    return _caller(types.void, *[types.int64] * 7)


@intrinsic
def _call_update(typingctx, code, p, g, states, scalars, start, rows, columns, stride):
    return _caller(types.void, *[types.int64] * 8)


@intrinsic
def _call_int(typingctx, code):
    """A function without arguments that returns an int."""
    return _caller(types.int32)


@intrinsic
def _call_clock(typingctx, code, which, address):
    return _caller(types.int32, types.int64, types.int64)


@intrinsic
def _call_exchange(typingctx, code, object_address, tensor):
    """DLPack's dltensor_from_py_object_no_sync: 0 if it has filled the DLTensor at an address."""
    return _caller(types.int32, types.int64, types.int64)


@intrinsic
def _call_sgemm(typingctx, code, order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    return _gemm_caller(types.float32)


@intrinsic
def _call_dgemm(typingctx, code, order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    return _gemm_caller(types.float64)


def _word_pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def _atomic_add(typingctx, address, value):
    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _word_pointer(builder, args[0]), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _atomic_load(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(_word_pointer(builder, args[0]), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _relax(typingctx):
    """Hint that this is a waiting loop."""

    def codegen(context, builder, signature, args):
        void, i32 = ir.VoidType(), ir.IntType(32)
        if MACHINE in X86:
            kind = ir.FunctionType(void, [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        elif MACHINE in ARM:
            kind = ir.FunctionType(void, [i32])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.aarch64.hint"), [i32(1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _prefetch(typingctx, address):
    """Prefetch the cache line at an address into all levels."""

    def codegen(context, builder, signature, args):
        i32, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        code = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(code, [builder.inttoptr(args[0], byte), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# ---------------------------------------------------------------- denormal numbers
def read_control(builder: Any, machine: str = MACHINE) -> Any:
    """Emit a read of the floating-point control register, as 64 bits; 0 on processors without a known one."""
    i64, byte = ir.IntType(64), ir.IntType(8).as_pointer()
    if machine in X86:
        pointer = cgutils.alloca_once(builder, ir.IntType(32))
        kind = ir.FunctionType(ir.VoidType(), [byte])
        code = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.stmxcsr")
        builder.call(code, [builder.bitcast(pointer, byte)])
        return builder.zext(builder.load(pointer), i64)
    if machine in ARM:
        code = cgutils.get_or_insert_function(builder.module, ir.FunctionType(i64, []), "llvm.aarch64.get.fpcr")
        return builder.call(code, [])
    return i64(0)


def write_control(builder: Any, value: Any, machine: str = MACHINE) -> None:
    """Emit a write to the register that `read_control` reads."""
    i32, i64, byte, void = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer(), ir.VoidType()
    if machine in X86:
        pointer = cgutils.alloca_once(builder, i32)
        builder.store(builder.trunc(value, i32), pointer)
        code = cgutils.get_or_insert_function(builder.module, ir.FunctionType(void, [byte]), "llvm.x86.sse.ldmxcsr")
        builder.call(code, [builder.bitcast(pointer, byte)])
    elif machine in ARM:
        code = cgutils.get_or_insert_function(builder.module, ir.FunctionType(void, [i64]), "llvm.aarch64.set.fpcr")
        builder.call(code, [value])


@intrinsic
def _read_control(typingctx):
    return types.int64(), lambda context, builder, signature, args: read_control(builder)


@intrinsic
def _write_control(typingctx, value):
    def codegen(context, builder, signature, args):
        write_control(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@register_jitable
def enter(code, work, step, rank, num_ranks):
    """Call a phase with denormals flushed: the only entry to kernels that calculate.

    LLVM moves arithmetic past writes to the control register, but not past the call of an unknown function.
    """
    before = _read_control()
    _write_control(before | FLUSH)
    call_phase(code, work, step, rank, num_ranks)
    _write_control(before)


# ---------------------------------------------------------------- interpreted
PYTHON_CODE: dict[int, Callable[..., Any]] = {}  # "address" of code -> function
_addresses = itertools.count(1)
_atom = threading.Lock()


def python_address(function: Callable[..., Any]) -> int:
    """The "address" of an interpreted function."""
    address = next(_addresses)
    PYTHON_CODE[address] = np.errstate(all="ignore")(function)  # as compiled code, it does not warn
    return address


def _view_python(address, size, dtype):
    dtype = np.dtype(dtype)
    memory = (ctypes.c_char * (int(size) * dtype.itemsize)).from_address(int(address))
    array = np.frombuffer(memory, dtype)
    return array.view(np.recarray) if dtype.names else array


def _call_python(code, *args):
    return PYTHON_CODE[int(code)](*args)


def _atomic_add_python(address, value):
    with _atom:
        word = ctypes.c_int64.from_address(int(address))
        before = word.value
        word.value = before + int(value)
        return before


def _atomic_load_python(address):
    with _atom:
        return ctypes.c_int64.from_address(int(address)).value


def _relax_python():
    time.sleep(0)


def _prefetch_python(address):
    pass


if INTERPRETED:
    view, atomic_add, atomic_load, relax = _view_python, _atomic_add_python, _atomic_load_python, _relax_python
    prefetch = _prefetch_python
    call_phase = call_tile = call_update = call_int = call_clock = call_exchange = call_sgemm = call_dgemm = (
        _call_python
    )
else:
    view, atomic_add, atomic_load, relax, prefetch = _view, _atomic_add, _atomic_load, _relax, _prefetch
    call_phase, call_tile, call_update, call_int = _call_phase, _call_tile, _call_update, _call_int
    call_clock, call_exchange, call_sgemm, call_dgemm = _call_clock, _call_exchange, _call_sgemm, _call_dgemm

CALL_GEMM = {"float32": call_sgemm, "float64": call_dgemm}


_ffi = cffi.FFI()
_from_buffer, _cast, _INTPTR = _ffi.from_buffer, _ffi.cast, _ffi.typeof("intptr_t")


def address_of(array: np.ndarray | None) -> int:
    """The address of an array's first element; 0 stands for no array."""
    if array is None:
        return 0
    try:
        return int(_cast(_INTPTR, _from_buffer(array)))  # takes 0.4 of the time of `array.ctypes`
    except ValueError:  # the array is not contiguous
        return int(array.ctypes.data)


def aligned_zeros(size: int, dtype: Any) -> np.ndarray:
    """Zeros that start on a cache line, so that results cannot depend on where the allocator put them."""
    dtype = np.dtype(dtype)
    memory = np.zeros(size * dtype.itemsize + 64, np.uint8)
    start = -address_of(memory) % 64
    return memory[start : start + size * dtype.itemsize].view(dtype)
