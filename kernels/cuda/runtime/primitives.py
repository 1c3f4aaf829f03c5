"""What a kernel needs and Python cannot say: memory at an address, in vectors of 128 bits.

Plain indexing gives scalar loads; a load of a vector from an aligned address is one instruction for 16 bytes. Every
primitive has a pure-Python twin for the simulator, where the device's memory is that of the process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda

from ...formulas.dropout import WORD
from .compile import SIMULATED

VECTOR = 16  # bytes of the widest load
ANY, GLOBAL, SHARED = 0, 1, 3  # where an address lies, as NVVM numbers it: ANY costs a little to find out


def _word(x):
    return int(x) & WORD


# An unsigned number of 64 bits, as draws at random are made of: in Python its own integers are.
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


def pointer_to(builder: Any, kind: ir.Type, place: Any, space: int = GLOBAL) -> Any:
    return builder.inttoptr(place, ir.PointerType(kind, addrspace=space))


def _lane_pointer(
    context: Any, builder: Any, real: Any, width: int, address: Any, at: Any, space: int
) -> tuple[Any, int]:
    """A pointer to the vector `at` bytes behind an address, and its alignment."""
    kind = context.get_value_type(real)
    vector = ir.VectorType(kind, width) if width > 1 else kind
    place = builder.add(address, at)
    return pointer_to(builder, vector, place, space), width * real.bitwidth // 8


def _compiled_load(kind: str, width: int, space: int = GLOBAL) -> Any:
    from numba.cuda.extending import intrinsic

    types = cuda.types
    real = getattr(types, kind)

    @intrinsic
    def load(typingctx, addresses, at):
        lane = types.UniTuple(real, addresses.count)
        lanes = types.UniTuple(lane, width)

        def codegen(context, builder, signature, args):
            from numba.cuda import cgutils

            vectors = []
            for address in cgutils.unpack_tuple(builder, args[0], addresses.count):
                pointer, align = _lane_pointer(context, builder, real, width, address, args[1], space)
                vector = builder.load(pointer, align=align)
                vectors.append(
                    [builder.extract_element(vector, ir.IntType(32)(i)) if width > 1 else vector for i in range(width)]
                )
            items = [context.make_tuple(builder, lane, list(values)) for values in zip(*vectors, strict=True)]
            return context.make_tuple(builder, lanes, items)

        return lanes(addresses, types.int64), codegen

    return load


def _compiled_store(kind: str, width: int, space: int = GLOBAL) -> Any:
    from numba.cuda.extending import intrinsic

    types = cuda.types
    real = getattr(types, kind)

    @intrinsic
    def store(typingctx, addresses, at, lanes):
        if lanes != types.UniTuple(types.UniTuple(real, addresses.count), width):
            raise TypeError(f"a kernel of {kind} stores {lanes}: something in its formula is not of its type")

        def codegen(context, builder, signature, args):
            from numba.cuda import cgutils

            rows = [
                cgutils.unpack_tuple(builder, row, addresses.count)
                for row in cgutils.unpack_tuple(builder, args[2], width)
            ]
            for i, address in enumerate(cgutils.unpack_tuple(builder, args[0], addresses.count)):
                pointer, align = _lane_pointer(context, builder, real, width, address, args[1], space)
                value = rows[0][i]
                if width > 1:
                    value = ir.Constant(pointer.type.pointee, ir.Undefined)
                    for k in range(width):
                        value = builder.insert_element(value, rows[k][i], ir.IntType(32)(k))
                builder.store(value, pointer, align=align)
            return context.get_dummy_value()

        return types.void(addresses, types.int64, lanes), codegen

    return store


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
    """Memory of this process as an array."""
    if count and not address:  # of which NumPy makes memory of its own
        raise AssertionError("memory at address 0: a device would stop here")
    dtype = np.dtype(kind)
    memory = (ctypes.c_char * (int(count) * dtype.itemsize)).from_address(int(address))
    array: np.ndarray = np.frombuffer(memory, dtype)  # type: ignore[call-overload]
    return array


def _simulated_reader(kind: str, count: int, space: int = GLOBAL) -> Any:
    whole = kind.startswith("int")

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
    """Raises where a device would stop."""
    if address % (width * np.dtype(kind).itemsize):
        raise AssertionError(f"{width} values of {kind} at once from {address}: a device would stop here")


def _simulated_load(kind: str, width: int, space: int = GLOBAL) -> Any:
    def load(addresses, at):
        for address in addresses:
            check_aligned(address + at, kind, width)
        return tuple(zip(*[view(address + at, width, kind) for address in addresses], strict=True))

    return load


def _simulated_store(kind: str, width: int, space: int = GLOBAL) -> Any:
    def store(addresses, at, lanes):
        for address, values in zip(addresses, zip(*lanes, strict=True), strict=True):
            check_aligned(address + at, kind, width)
            for value in values:
                if type(value) is not np.dtype(kind).type:
                    raise AssertionError(f"a kernel of {kind} stores a {type(value).__name__}")
            view(address + at, width, kind)[:] = values

    return store


def _either(compiled: Callable[..., Any], simulated: Callable[..., Any]) -> Callable[..., Any]:
    return cache(simulated if SIMULATED else compiled)


# reader(kind, count)(address) -> a tuple of `count` values that lie there
# writer(kind)(address, value)
# loader(kind, width)(addresses, at) -> `width` tuples: the elements at each address + at, one tuple for each element
# storer(kind, width)(addresses, at, lanes) writes them; places are aligned to `width` elements
# All take one more argument, the space of the addresses: of SHARED ones as of those that have been made generic.
# address_in(space)(array) -> where an array of Numba's lies, as an address of that space
reader = _either(_compiled_reader, _simulated_reader)
writer = _either(_compiled_writer, _simulated_writer)
loader = _either(_compiled_load, _simulated_load)
storer = _either(_compiled_store, _simulated_store)
address_in = _either(_compiled_address_in, _simulated_address_in)
