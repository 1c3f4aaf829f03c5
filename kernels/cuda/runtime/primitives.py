"""Primitives of kernels that Python cannot express: values at an address. Vectors of 128 bits are in `vectors.py`.

Every primitive has a pure-Python twin for the simulator, where the device's memory is that of the process.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda

from ...formulas.dropout import WORD
from .compile import SIMULATED

VECTOR = 16  # bytes of the widest load
ANY, GLOBAL, SHARED = 0, 1, 3  # address spaces, by NVVM's numbers; an access to ANY must find out which it is


def _word(x):
    return int(x) & WORD


# An unsigned integer of 64 bits, for random draws; in Python an int.
word = _word if SIMULATED else np.uint64


def _compiled_reader(kind: str, count: int, space: int = GLOBAL) -> Any:
    from numba.cuda.extending import intrinsic

    types = cuda.types
    real, result = getattr(types, kind), types.UniTuple(getattr(types, kind), count)

    @intrinsic
    def read(typingctx, address):
        def codegen(context, builder, signature, args):
            pointer = pointer_to(builder, context.get_value_type(real), args[0], space)
            items = [builder.load(builder.gep(pointer, [ir.IntType(32)(i)])) for i in range(count)]
            return context.make_tuple(builder, result, items)

        return result(types.int64), codegen

    return read


def _compiled_writer(kind: str, space: int = GLOBAL) -> Any:
    from numba.cuda.extending import intrinsic

    types = cuda.types
    real = getattr(types, kind)

    @intrinsic
    def write(typingctx, address, value):
        def codegen(context, builder, signature, args):
            pointer = pointer_to(builder, context.get_value_type(real), args[0], space)
            builder.store(args[1], pointer)
            return context.get_dummy_value()

        return types.void(types.int64, real), codegen

    return write


def pointer_to(builder: Any, kind: ir.Type, address: Any, space: int = GLOBAL) -> Any:
    return builder.inttoptr(address, ir.PointerType(kind, addrspace=space))


def _compiled_address_in(space: int) -> Any:
    from numba.cuda.extending import intrinsic

    types = cuda.types

    @intrinsic
    def address_in(typingctx, array):
        def codegen(context, builder, signature, args):
            pointer = context.make_array(signature.args[0])(context, builder, args[0]).data
            if space != ANY:
                pointer = builder.addrspacecast(pointer, ir.PointerType(pointer.type.pointee, addrspace=space))
            return builder.ptrtoint(pointer, ir.IntType(64))

        return types.int64(array), codegen

    return address_in


# ---------------------------------------------------------------- simulated
def view(address: int, count: int, kind: str) -> np.ndarray:
    """Return memory of this process as an array."""
    if count and not address:  # NumPy would allocate memory for it
        raise AssertionError("memory at address 0: a device would stop here")
    dtype = np.dtype(kind)
    memory = (ctypes.c_char * (int(count) * dtype.itemsize)).from_address(int(address))
    array: np.ndarray = np.frombuffer(memory, dtype)  # type: ignore[call-overload]
    return array


def _simulated_reader(kind: str, count: int, space: int = GLOBAL) -> Any:
    whole = kind.startswith(("int", "uint32"))

    def read(address):
        values = view(address, count, kind)
        return tuple(values.tolist()) if whole else tuple(values)  # integers are of 64 bits in kernels

    return read


def _simulated_writer(kind: str, space: int = GLOBAL) -> Any:
    def write(address, value):
        view(address, 1, kind)[0] = value

    return write


def _simulated_address_in(space: int) -> Any:
    def address_in(array):
        return array.ctypes.data

    return address_in


def check_aligned(address: int, kind: str, width: int) -> None:
    """Raise AssertionError for an access that would stop a device."""
    if address % (width * np.dtype(kind).itemsize):
        raise AssertionError(f"{width} values of {kind} at once from {address}: a device would stop here")


# ---------------------------------------------------------------- either
# reader(kind, count)(address) -> a tuple of `count` values at an address
# writer(kind)(address, value)
# address_in(space)(array) -> the address of an array of Numba's, in that space
reader = cache(_simulated_reader if SIMULATED else _compiled_reader)
writer = cache(_simulated_writer if SIMULATED else _compiled_writer)
address_in = cache(_simulated_address_in if SIMULATED else _compiled_address_in)
