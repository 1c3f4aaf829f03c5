"""Reads and writes of the one-block kernel: fields of its records in shared memory, and rows asked for ahead."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import cuda

from ..runtime.compile import SIMULATED
from ..runtime.primitives import SHARED, pointer_to, reader, view, writer

SECTOR = 32  # bytes of global memory that are fetched at once

read_word, write_word = reader("int64", 1, SHARED), writer("int64", SHARED)
read_double, write_double = reader("float64", 1, SHARED), writer("float64", SHARED)


def _compiled() -> Any:
    from numba.cuda.extending import intrinsic

    i64 = cuda.types.int64

    def load(builder, address):
        return builder.load(pointer_to(builder, ir.IntType(64), address, SHARED))

    @intrinsic
    def field(typingctx, address):
        return i64(i64), lambda context, builder, signature, args: load(builder, args[0])

    @intrinsic
    def resolve(typingctx, table, address):
        def codegen(context, builder, signature, args):
            return builder.add(args[0], load(builder, args[1]))

        return i64(i64, i64), codegen

    @intrinsic
    def prefetch(typingctx, address):
        def codegen(context, builder, signature, args):
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
            builder.asm(kind, "prefetch.global.L2 [$0];", "l", args, side_effect=True)
            return context.get_dummy_value()

        return cuda.types.void(i64), codegen

    return field, resolve, prefetch


def _simulated() -> Any:
    def field(address):
        return view(address, 1, "int64").item()

    def resolve(table, address):
        return table + field(address)

    def prefetch(address):
        pass

    return field, resolve, prefetch


# field(address): the integer there.
# resolve(table, address): the address whose offset from `table` is the integer there.
# prefetch(address): ask for the sector around an address of global memory, without waiting for it.
field, resolve, prefetch = _simulated() if SIMULATED else _compiled()
