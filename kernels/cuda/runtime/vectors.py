"""Vectors: elements of arrays, `width` at once, that are loaded and stored, converted on the way, and mapped.

One load takes 16 bytes, or one element; a wider vector takes several. Addresses are aligned to what is loaded at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import cuda

from .compile import SIMULATED, device
from .primitives import GLOBAL, VECTOR, check_aligned, pointer_to, view


class Store(NamedTuple):
    """Format of an array's values: their dtype in memory, that of arithmetic, and the conversions between the two."""

    kind: str
    real: str
    widen: Callable[[Any, Any], Any]  # instructions of LLVM, from a builder and a value
    narrow: Callable[[Any, Any], Any]
    widened: Callable[[Any], Any]  # the same in Python, for the simulator
    narrowed: Callable[[Any], Any]

    @property
    def size(self) -> int:
        """Bytes of a value in memory."""
        return np.dtype(self.kind).itemsize

    @property
    def width(self) -> int:
        """Elements of one load."""
        return VECTOR // self.size


def _same(builder: Any, x: Any) -> Any:
    return x


@cache
def plain(kind: str) -> Store:
    """Return the format of an array whose values are computed with as they lie in memory."""
    return Store(kind, kind, _same, _same, getattr(np, kind), getattr(np, kind))


def _stores_of(stores: tuple[Store, ...], count: int) -> tuple[Store, ...]:
    """Return one format for each of so many arrays; a single one is that of all."""
    return stores * count if len(stores) == 1 else stores


def _vectors(store: Store, width: int) -> tuple[int, int]:
    """Return the number of loads that `width` elements take, and the elements of each."""
    each = min(width, store.width)
    return width // each, each


# ---------------------------------------------------------------- compiled
def _pointers(
    context: Any, builder: Any, store: Store, width: int, address: Any, at: Any, space: int, unit: int
) -> list[Any]:
    """Return pointers to the vectors, or to the one element, `at` units past an address."""
    count, each = _vectors(store, width)
    kind = context.get_value_type(getattr(cuda.types, store.kind))
    if each > 1:  # LLVM makes two loads of a vector of eight 16-bit values, and one of four words with two in each
        kind = ir.VectorType(ir.IntType(32), each // 2) if store.size == 2 else ir.VectorType(kind, each)
    first = builder.add(address, builder.mul(at, at.type(unit)))
    return [pointer_to(builder, kind, builder.add(first, first.type(k * VECTOR)), space) for k in range(count)]


def _split(builder: Any, word: Any) -> list[Any]:
    """Return the two 16-bit values of a word."""
    i16, i32 = ir.IntType(16), ir.IntType(32)
    return [builder.trunc(word, i16), builder.trunc(builder.lshr(word, i32(16)), i16)]


def _join(builder: Any, low: Any, high: Any) -> Any:
    """Return the word of two 16-bit values."""
    i32 = ir.IntType(32)
    return builder.or_(builder.zext(low, i32), builder.shl(builder.zext(high, i32), i32(16)))


def _load_one(builder: Any, store: Store, each: int, pointers: list[Any]) -> list[Any]:
    """Load the elements of one array, and widen them."""
    found = []
    for pointer in pointers:
        loaded = builder.load(pointer, align=each * store.size)
        if each == 1:
            found.append(loaded)
            continue
        items = [builder.extract_element(loaded, ir.IntType(32)(i)) for i in range(loaded.type.count)]
        found += [x for word in items for x in _split(builder, word)] if store.size == 2 else items
    return [store.widen(builder, x) for x in found]


def _store_one(builder: Any, store: Store, each: int, pointers: list[Any], values: list[Any]) -> None:
    """Narrow the elements of one array, and store them."""
    values = [store.narrow(builder, x) for x in values]
    if store.size == 2 and each > 1:
        values = [_join(builder, low, high) for low, high in zip(values[::2], values[1::2], strict=True)]
    for pointer in pointers:
        stored = values[0]
        if each > 1:
            stored = ir.Constant(pointer.type.pointee, ir.Undefined)
            for i in range(stored.type.count):
                stored = builder.insert_element(stored, values.pop(0), ir.IntType(32)(i))
        builder.store(stored, pointer, align=each * store.size)


def _compiled_load(stores: tuple[Store, ...], width: int, space: int, by_bytes: bool) -> Any:
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    types = cuda.types

    @intrinsic
    def load(typingctx, addresses, at):
        lane = types.UniTuple(getattr(types, stores[0].real), addresses.count)
        lanes = types.UniTuple(lane, width)

        def codegen(context, builder, signature, args):
            columns = []
            starts = cgutils.unpack_tuple(builder, args[0], addresses.count)
            for store, start in zip(_stores_of(stores, addresses.count), starts, strict=True):
                unit, each = 1 if by_bytes else store.size, _vectors(store, width)[1]
                pointers = _pointers(context, builder, store, width, start, args[1], space, unit)
                columns.append(_load_one(builder, store, each, pointers))
            items = [context.make_tuple(builder, lane, list(values)) for values in zip(*columns, strict=True)]
            return context.make_tuple(builder, lanes, items)

        return lanes(types.UniTuple(types.int64, addresses.count), types.int64), codegen

    return load


def _compiled_store(stores: tuple[Store, ...], width: int, space: int, by_bytes: bool) -> Any:
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    types, real = cuda.types, stores[0].real

    @intrinsic
    def store(typingctx, addresses, at, lanes):
        expected = types.UniTuple(types.UniTuple(getattr(types, real), addresses.count), width)
        if lanes != expected:
            raise TypeError(f"a kernel of {real} must store {expected}; got {lanes}: see the dtypes in its formula")

        def codegen(context, builder, signature, args):
            rows = [cgutils.unpack_tuple(builder, row, addresses.count)
                    for row in cgutils.unpack_tuple(builder, args[2], width)]  # fmt: skip
            starts = cgutils.unpack_tuple(builder, args[0], addresses.count)
            own = _stores_of(stores, addresses.count)
            for one, start, values in zip(own, starts, zip(*rows, strict=True), strict=True):
                unit, each = 1 if by_bytes else one.size, _vectors(one, width)[1]
                pointers = _pointers(context, builder, one, width, start, args[1], space, unit)
                _store_one(builder, one, each, pointers, list(values))
            return context.get_dummy_value()

        return types.void(types.UniTuple(types.int64, addresses.count), types.int64, lanes), codegen

    return store


# ---------------------------------------------------------------- simulated
def _simulated_load(stores: tuple[Store, ...], width: int, space: int, by_bytes: bool) -> Any:
    def load(addresses, at):
        columns = []
        for store, address in zip(_stores_of(stores, len(addresses)), addresses, strict=True):
            first = address + at * (1 if by_bytes else store.size)
            check_aligned(first, store.kind, _vectors(store, width)[1])
            columns.append([store.widened(x) for x in view(first, width, store.kind)])
        return tuple(zip(*columns, strict=True))

    return load


def _simulated_store(stores: tuple[Store, ...], width: int, space: int, by_bytes: bool) -> Any:
    real = getattr(np, stores[0].real)

    def store(addresses, at, lanes):
        own = _stores_of(stores, len(addresses))
        for one, address, values in zip(own, addresses, zip(*lanes, strict=True), strict=True):
            for value in values:
                if type(value) is not real:
                    raise AssertionError(f"a kernel of {real.__name__} stores a {type(value).__name__}")
            first = address + at * (1 if by_bytes else one.size)
            check_aligned(first, one.kind, _vectors(one, width)[1])
            view(first, width, one.kind)[:] = [one.narrowed(x) for x in values]

    return store


# ---------------------------------------------------------------- either
_vector_load = _simulated_load if SIMULATED else _compiled_load
_vector_store = _simulated_store if SIMULATED else _compiled_store


@cache
def array_loader(stores: tuple[Store, ...], width: int) -> Any:
    """Return load(addresses, at): `width` tuples, with the elements of each array from element `at` on, widened.

    stores: a format for each array, or one for all. Addresses are aligned to the vectors that are loaded.
    """
    return _vector_load(stores, width, GLOBAL, False)


@cache
def array_storer(stores: tuple[Store, ...], width: int) -> Any:
    """Return store(addresses, at, lanes), which narrows and writes the tuples that `array_loader` loads."""
    return _vector_store(stores, width, GLOBAL, False)


@cache
def loader(kind: str, width: int, space: int = GLOBAL) -> Any:
    """Return load(addresses, at), as `array_loader`, of values as they lie in memory; `at` is in bytes.

    space: that of the addresses. Addresses in SHARED are of another space than those of the same memory in ANY.
    """
    return _vector_load((plain(kind),), width, space, True)


@cache
def storer(kind: str, width: int, space: int = GLOBAL) -> Any:
    """Return store(addresses, at, lanes), the counterpart of `loader`."""
    return _vector_store((plain(kind),), width, space, True)


# ---------------------------------------------------------------- functions of an element, for vectors
def _simulated_map(one, width, results, numbered):
    def mapped(x, *args):
        if numbered:
            return tuple([one(x[k], *args[:-1], args[-1] + k) for k in range(width)])
        return tuple([one(x[k], *args) for k in range(width)])

    return mapped


def _compiled_map(one, width, results, numbered):
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    types = cuda.types

    @intrinsic
    def mapped(typingctx, x, *args):
        result = types.UniTuple(x.dtype.dtype, results)
        inner = result(x.dtype, *args)

        def codegen(context, builder, signature, values):
            found = []
            for k, elements in enumerate(cgutils.unpack_tuple(builder, values[0], width)):
                others = cgutils.unpack_tuple(builder, values[1], len(args))
                if numbered:
                    others[-1] = builder.add(others[-1], others[-1].type(k))
                found.append(context.compile_internal(builder, one.py_func, inner, (elements, *others)))
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(result, width)(x, types.StarArgTuple(args)), codegen

    return mapped


def vector_map(one: Any, width: int, results: int = 1, numbered: bool = False) -> Any:
    """Return f(x, *args): one(x[k], *args), a tuple of so many results, for each of `width` tuples of elements.

    numbered: the last of the arguments is the number of the first element; `one` is called with that of its own.

    Numba compiles `one` once, and LLVM inlines it: eight compilations by Numba take 10 s.
    """
    return (_simulated_map if SIMULATED else _compiled_map)(device(one), width, results, numbered)


def pair_map(one: Any, width: int) -> Any:
    """Return f(u, v): one(u[k], v[k]) for each of `width` elements of two vectors; for small functions."""
    one, half = device(one), width // 2
    if width == 1:

        def pair(u, v):
            return (one(u[0], v[0]),)

        return device(pair)
    halved = pair_map(one, half)

    def pairs(u, v):
        return (*halved(u[:half], v[:half]), *halved(u[half:], v[half:]))

    return device(pairs)
