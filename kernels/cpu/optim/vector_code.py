"""LLVM's instructions on vectors of float32 numbers, for a number of lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from ..runtime.frontend import cgutils

BYTE, HALF, WORD, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()


def constant(values: Any, kind: Any = WORD) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), [value.item() for value in values])


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call one of LLVM's functions, such as an instruction of the processor."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}"), args)


def shuffle(builder: Any, a: Any, b: Any, indices: Any) -> Any:
    return builder.shuffle_vector(a, b, constant(np.asarray(indices)))


def load(builder: Any, address: Any, skip: int, kind: Any, align: int) -> Any:
    at = builder.add(address, ir.Constant(ir.IntType(64), skip))
    return builder.load(builder.inttoptr(at, kind.as_pointer()), align=align)


def store(builder: Any, value: Any, address: Any, skip: int, align: int) -> None:
    at = builder.add(address, ir.Constant(ir.IntType(64), skip))
    builder.store(value, builder.inttoptr(at, value.type.as_pointer()), align=align)


def larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger one; b where a is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


class Lanes:
    """Vectors of so many float32 numbers, and of as many words of 32 bits."""

    def __init__(self, lanes: int) -> None:
        self.lanes, self.bytes = lanes, 4 * lanes
        self.words, self.floats = ir.VectorType(WORD, lanes), ir.VectorType(FLOAT, lanes)
        self.octets = ir.VectorType(BYTE, 4 * lanes)  # the bytes of a register

    def same(self, number: float, kind: Any = FLOAT) -> Any:
        """A number in all lanes."""
        return ir.Constant(ir.VectorType(kind, self.lanes), [number] * self.lanes)

    def same_octets(self, value: int) -> Any:
        return ir.Constant(self.octets, [value] * self.octets.count)

    def broadcast(self, builder: Any, number: Any) -> Any:
        one = builder.insert_element(ir.Constant(self.floats, ir.Undefined), number, WORD(0))
        return shuffle(builder, one, one, np.zeros(self.lanes, np.int32))

    def magnitude(self, builder: Any, x: Any) -> Any:
        bits = builder.and_(builder.bitcast(x, self.words), self.same(0x7FFFFFFF, WORD))
        return builder.bitcast(bits, self.floats)

    def other_sign(self, builder: Any, x: Any, magnitude: Any) -> Any:
        """Magnitudes, as words, with the sign that x has not."""
        sign = builder.and_(builder.not_(builder.bitcast(x, self.words)), self.same(-(1 << 31), WORD))
        return builder.bitcast(builder.or_(magnitude, sign), self.floats)
