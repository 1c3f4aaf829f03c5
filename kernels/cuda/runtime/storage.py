"""How the arrays of a step keep their numbers: float32 and float64 as they are, 16 bits as float32 to be computed with.

The forms of `spec.py`, and bit for bit what the CPU's `storage.py` and the reference make of them: a 16-bit number is
widened to float32, exactly; it is rounded to nearest, ties to even, or at random, by draws that are counted. bfloat16
has no denormal numbers when it is rounded to nearest, but zero.

One load takes 16 bytes, or as many elements as 16 bytes of the narrowest array hold: of the others two such loads then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import cuda

from ...formulas import dropout_draw
from ...spec import SAME, STOCHASTIC
from .compile import SIMULATED, THREADS, Kernel
from .float16 import NARROW, WIDEN, narrow, widen
from .primitives import VECTOR, check_aligned, pointer_to, view, word

U = np.uint32

# Beside the forms of `spec.py`, for networks: the array and its states are float32, and behind the states is one more,
# which is written and never read: the array rounded to 16 bits.
COPY = "copy"


# ---------------------------------------------------------------- bits
def _bits_python(x):
    return np.float32(x).view(U)


def _float32_python(bits):
    return U(bits).view(np.float32)


def _bitcast(takes: str, gives: str, kind: ir.Type) -> Any:
    from numba.cuda.extending import intrinsic

    taken, given = getattr(cuda.types, takes), getattr(cuda.types, gives)

    @intrinsic
    def cast(typingctx, x):
        def codegen(context, builder, signature, args):
            return builder.bitcast(args[0], kind)

        return given(taken), codegen

    return cast


to_half, from_half = narrow("float16"), widen("float16")
bits_of = _bits_python if SIMULATED else _bitcast("float32", "uint32", ir.IntType(32))
float32_of = _float32_python if SIMULATED else _bitcast("uint32", "float32", ir.FloatType())


# ---------------------------------------------------------------- is_rounding(p, x): of x to nearest; p is widened
def rounding_float16(p, x):
    return from_half(to_half(x)) == p


def rounding_bfloat16(p, x):
    return U(U(bits_of(x) + U(0x8000)) - bits_of(p)) <= U(0x10000)


# ---------------------------------------------------------------- at_random(x, key, element): float32 of 16 bits
def random_float16(x, key, element):
    # Below 2^-14 float16 has a fixed point, and its last place is 2^-24: with 2^-14 added, that is bit 13 here, too.
    b = bits_of(x)
    sign = U(b & U(0x80000000))
    size = float32_of(U(b ^ sign))
    lift = np.float32(0.00006103515625) if size < np.float32(0.00006103515625) else np.float32(0)
    draw = U(dropout_draw(key, word(element)) >> word(40))
    cut = np.float32(float32_of(U(U(bits_of(np.float32(size + lift)) + draw) & U(0xFFFFE000))) - lift)
    return float32_of(U(bits_of(cut) | sign)) if x == x else x


def random_bfloat16(x, key, element):
    b = bits_of(x)
    rounded = U(b + U(dropout_draw(key, word(element)) >> word(37)))
    return float32_of(rounded if x == x else U(b | U(0x400000)))


IS_ROUNDING = {"float16": rounding_float16, "bfloat16": rounding_bfloat16}
AT_RANDOM = {"float16": random_float16, "bfloat16": random_bfloat16}


# ---------------------------------------------------------------- what is written
def _cut(builder: Any, x: Any) -> Any:
    """The upper half."""
    i32 = ir.IntType(32)
    return builder.trunc(builder.lshr(builder.bitcast(x, i32), i32(16)), ir.IntType(16))


def _nearest(builder: Any, x: Any) -> Any:
    """bfloat16; half of what is dropped is added, or a little less if the result is even already."""
    i32 = ir.IntType(32)
    b = builder.bitcast(x, i32)
    odd = builder.and_(builder.lshr(b, i32(16)), i32(1))
    rounded = builder.add(builder.add(b, i32(0x7FFF)), odd)
    denormal = builder.icmp_unsigned("==", builder.and_(b, i32(0x7F800000)), i32(0))
    rounded = builder.select(denormal, builder.and_(b, i32(-0x80000000)), rounded)
    nan = builder.fcmp_unordered("uno", x, x)  # whose last bits might be all there is
    rounded = builder.select(nan, builder.or_(b, i32(0x400000)), rounded)
    return builder.trunc(builder.lshr(rounded, i32(16)), ir.IntType(16))


def _cut_python(x):
    return np.uint16(int(bits_of(x)) >> 16)


def _nearest_python(x):
    b = int(bits_of(x))
    if x != x:
        return np.uint16((b | 0x400000) >> 16)
    return np.uint16((b & 0x80000000 if b & 0x7F800000 == 0 else b + 0x7FFF + (b >> 16 & 1)) >> 16)


def _same(builder: Any, x: Any) -> Any:
    return x


class Store(NamedTuple):
    """How an array keeps its numbers: what they are in memory, what is computed with, the ways there and back."""

    kind: str
    real: str
    widen: Callable[[Any, Any], Any]  # LLVM's instructions
    narrow: Callable[[Any, Any], Any]
    widened: Callable[[Any], Any]  # the same in Python, for the simulator
    narrowed: Callable[[Any], Any]

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return np.dtype(self.kind).itemsize

    @property
    def width(self) -> int:
        """Elements of one load."""
        return VECTOR // self.size


def _plain(kind: str) -> Store:
    real = getattr(np, kind)
    return Store(kind, kind, _same, _same, real, real)


STORES = {
    "float32": _plain("float32"),
    "float64": _plain("float64"),
    "float16": Store("uint16", "float32", WIDEN["float16"], NARROW["float16"], from_half, to_half),
    "bfloat16": Store("uint16", "float32", WIDEN["bfloat16"], _nearest, widen("bfloat16"), _nearest_python),
}
# Of what was rounded before: bfloat16 may be denormal then.
ROUNDED = {
    "float16": STORES["float16"],
    "bfloat16": STORES["bfloat16"]._replace(narrow=_cut, narrowed=_cut_python),
}


def stores_of(dtype: str, states: int, form: str) -> tuple[Store, ...]:
    """Of a parameter, and of as many states."""
    if form == COPY:
        return *[STORES["float32"]] * states, STORES[dtype]
    own = ROUNDED[dtype] if form == STOCHASTIC else STORES[dtype]
    return own, *[STORES[dtype] if form == SAME else STORES["float32"]] * states


# ---------------------------------------------------------------- loads and stores
def _parts(store: Store, width: int) -> tuple[int, int]:
    """How many vectors hold `width` elements, and how many elements one holds."""
    each = min(width, store.width)
    return width // each, each


def _words(store: Store, each: int) -> ir.Type:
    """A vector's words. Of 16 bits LLVM makes two loads of a vector of eight: it gets four words of two."""
    if store.size == 2:
        return ir.VectorType(ir.IntType(32), each // 2)
    return ir.VectorType({4: ir.FloatType(), 8: ir.DoubleType()}[store.size], each)


def _places(context: Any, builder: Any, store: Store, width: int, address: Any, at: Any) -> list[Any]:
    """Pointers to the vectors, or to the one element, from element `at` on."""
    vectors, each = _parts(store, width)
    kind = context.get_value_type(getattr(cuda.types, store.kind)) if each == 1 else _words(store, each)
    first = builder.add(address, builder.mul(at, at.type(store.size)))
    return [pointer_to(builder, kind, builder.add(first, first.type(k * VECTOR))) for k in range(vectors)]


def _split(builder: Any, word: Any) -> list[Any]:
    i16, i32 = ir.IntType(16), ir.IntType(32)
    return [builder.trunc(word, i16), builder.trunc(builder.lshr(word, i32(16)), i16)]


def _join(builder: Any, low: Any, high: Any) -> Any:
    i32 = ir.IntType(32)
    return builder.or_(builder.zext(low, i32), builder.shl(builder.zext(high, i32), i32(16)))


def _load_one(context: Any, builder: Any, store: Store, width: int, address: Any, at: Any) -> list[Any]:
    """`width` elements from element `at` on, as they are computed with."""
    found = []
    for pointer in _places(context, builder, store, width, address, at):
        if width == 1:
            found.append(builder.load(pointer, align=store.size))
            continue
        vector = builder.load(pointer, align=VECTOR)
        words = [builder.extract_element(vector, ir.IntType(32)(i)) for i in range(vector.type.count)]
        found += [x for word in words for x in _split(builder, word)] if store.size == 2 else words
    return [store.widen(builder, x) for x in found]


def _store_one(context: Any, builder: Any, store: Store, width: int, address: Any, at: Any, values: list[Any]) -> None:
    values = [store.narrow(builder, x) for x in values]
    if store.size == 2 and width > 1:
        values = [_join(builder, low, high) for low, high in zip(values[::2], values[1::2], strict=True)]
    for pointer in _places(context, builder, store, width, address, at):
        if width == 1:
            builder.store(values[0], pointer, align=store.size)
            continue
        vector = ir.Constant(pointer.type.pointee, ir.Undefined)
        for i in range(vector.type.count):
            vector = builder.insert_element(vector, values.pop(0), ir.IntType(32)(i))
        builder.store(vector, pointer, align=VECTOR)


def _compiled_load(stores: tuple[Store, ...], width: int) -> Any:
    from numba.cuda.extending import intrinsic

    types = cuda.types
    lane = types.UniTuple(getattr(types, stores[0].real), len(stores))
    lanes = types.UniTuple(lane, width)

    @intrinsic
    def load(typingctx, addresses, at):
        def codegen(context, builder, signature, args):
            from numba.cuda import cgutils

            places = cgutils.unpack_tuple(builder, args[0], len(stores))
            columns = [
                _load_one(context, builder, store, width, place, args[1])
                for store, place in zip(stores, places, strict=True)
            ]
            items = [context.make_tuple(builder, lane, list(values)) for values in zip(*columns, strict=True)]
            return context.make_tuple(builder, lanes, items)

        return lanes(types.UniTuple(types.int64, len(stores)), types.int64), codegen

    return load


def _compiled_store(stores: tuple[Store, ...], width: int) -> Any:
    from numba.cuda.extending import intrinsic

    types, real = cuda.types, stores[0].real
    wanted = types.UniTuple(types.UniTuple(getattr(types, real), len(stores)), width)

    @intrinsic
    def store(typingctx, addresses, at, lanes):
        if lanes != wanted:
            raise TypeError(f"a kernel of {real} stores {lanes}: something in its formula is not of its type")

        def codegen(context, builder, signature, args):
            from numba.cuda import cgutils

            places = cgutils.unpack_tuple(builder, args[0], len(stores))
            rows = [
                cgutils.unpack_tuple(builder, row, len(stores)) for row in cgutils.unpack_tuple(builder, args[2], width)
            ]
            for one, place, values in zip(stores, places, zip(*rows, strict=True), strict=True):
                _store_one(context, builder, one, width, place, args[1], list(values))
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.int64, len(stores)), types.int64, lanes), codegen

    return store


def _simulated_load(stores: tuple[Store, ...], width: int) -> Any:
    def load(addresses, at):
        columns = []
        for store, address in zip(stores, addresses, strict=True):
            place = address + at * store.size
            check_aligned(place, store.kind, _parts(store, width)[1])
            columns.append([store.widened(x) for x in view(place, width, store.kind)])
        return tuple(zip(*columns, strict=True))

    return load


def _simulated_store(stores: tuple[Store, ...], width: int) -> Any:
    real = getattr(np, stores[0].real)

    def store(addresses, at, lanes):
        for one, address, values in zip(stores, addresses, zip(*lanes, strict=True), strict=True):
            for value in values:
                if type(value) is not real:
                    raise AssertionError(f"a kernel of {real.__name__} stores a {type(value).__name__}")
            place = address + at * one.size
            check_aligned(place, one.kind, _parts(one, width)[1])
            view(place, width, one.kind)[:] = [one.narrowed(x) for x in values]

    return store


# columns(stores, width)(addresses, at) -> `width` tuples: the elements of each array from element `at` on, widened
# into_columns(stores, width)(addresses, at, lanes) writes them; wider than 1, addresses are aligned to 16 bytes
columns = cache(_simulated_load if SIMULATED else _compiled_load)
into_columns = cache(_simulated_store if SIMULATED else _compiled_store)


# ---------------------------------------------------------------- elements
def _simulated_lanes(one, width, results):
    def lanes(x, h, tiny, key, i):
        return tuple([one(x[k], h, tiny, key, i + k) for k in range(width)])

    return lanes


def _compiled_lanes(one, width, results):
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    types = cuda.types

    def lane(x, h, tiny, key, i):
        return one(x, h, tiny, key, i)

    @intrinsic
    def lanes(typingctx, x, h, tiny, key, i):
        result = types.UniTuple(x.dtype.dtype, results)
        inner = result(x.dtype, h, tiny, key, types.int64)

        def codegen(context, builder, signature, args):
            found = []
            for k, elements in enumerate(cgutils.unpack_tuple(builder, args[0], width)):
                number = builder.add(args[4], args[4].type(k))
                found.append(context.compile_internal(builder, lane, inner, (elements, *args[1:4], number)))
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(result, width)(x, h, tiny, key, types.int64), codegen

    return lanes


# lanes(one, width, results): `one`, which gives so many results, for `width` elements at once, from number i on. Numba
# compiles it once, and LLVM puts it in place: to have Numba do that eight times takes 10 s.
lanes = _simulated_lanes if SIMULATED else _compiled_lanes


# ---------------------------------------------------------------- copies
def _convert(source_dtype, into_dtype):
    here, there = STORES[source_dtype], STORES[into_dtype]
    width = max(here.width, there.width)
    load, load1 = columns((here,), width), columns((here,), 1)
    keep, keep1 = into_columns((there,), width), into_columns((there,), 1)

    def convert(source, into, elements):
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        whole = elements - elements % width if source % VECTOR == 0 else 0  # `into` is our own
        for j in range(first * width, whole, step * width):
            keep((into,), j, load((source,), j))
        for j in range(whole + first, elements, step):
            keep1((into,), j, load1((source,), j))

    return convert


@cache
def widen_kernel(dtype: str) -> Kernel:
    """into = source, of one array of 16 bits; `into` is float32."""
    return Kernel(_convert(dtype, "float32"), f"widen_{dtype}")


@cache
def narrow_kernel(dtype: str) -> Kernel:
    """The other way: rounded to nearest."""
    return Kernel(_convert("float32", dtype), f"narrow_{dtype}")
