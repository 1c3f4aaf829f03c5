"""The loop of an update whose states are codes of 8 bits: block after block dequantized, updated, and requantized.

A block's states are float32 on the stack, in the nearest cache, from the first pass, which updates it, to the second,
which knows its largest magnitudes. Adam of float32 moves 16 bytes a parameter, and 28 with whole states. So it
calculates for as long as it waits for memory: see `blockwise_vectors`.

    update(p, g, states, scalars, start, rows, columns, stride)

is called as `loops.update_loop`'s, for one row that starts where a block does. The first of the words of the states is
the address of these, STATE_TABLE_WORDS for each array:

    codes and largest magnitudes of each of CODED states, a master copy or an average, the address of a share
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from ...formulas import OPTIMIZERS, averaged
from ...formulas.blockwise import BLOCK, Codebook, codebook_of
from ...formulas.dropout import WORD
from ...spec import BLOCKWISE_RANDOM, MASTER, SAME, STOCHASTIC
from ..runtime.compile import Kernel, lock
from ..runtime.frontend import cgutils, intrinsic, register_jitable, types
from ..runtime.primitives import INTERPRETED, address_of, view, word
from ..runtime.storage import IS_ROUNDING, STOCHASTIC_STORES, STORES, Store
from . import blockwise_vectors as vectors
from .blockwise_codes import dequantizer, mix_word, quantizer
from .loops import MAX_STATES, on_master, read_key, read_scalars, state_loader, state_storer

CODED = MAX_STATES - 1  # states that a rule may have
FLOAT_STATE, SHARE = 2 * CODED, 2 * CODED + 1  # words of the master copy or average, and of its share
STATE_TABLE_WORDS = 2 * CODED + 2
BLOCK_BYTES = 4 * BLOCK
SET_BYTES = CODED * BLOCK_BYTES  # of the states of a block; there are two sets

_inlined = register_jitable(error_model="numpy", forceinline=True)


@intrinsic
def _stack(typingctx):
    """The address of memory for the states of two blocks as float32."""

    def codegen(context, builder, signature, args):
        memory = cgutils.alloca_once(builder, ir.ArrayType(ir.FloatType(), 2 * CODED * BLOCK))
        memory.align = 64
        return builder.ptrtoint(memory, ir.IntType(64))

    return types.int64(), codegen


_memory = threading.local()


def _stack_python():
    if not hasattr(_memory, "numbers"):
        _memory.numbers = np.zeros(CODED * BLOCK, np.float32)
    return address_of(_memory.numbers)


stack = _stack_python if INTERPRETED else _stack


@cache
def _views(coded: int) -> Callable[..., Any]:
    """views(numbers, last, size): a block's states for `state_loader`: so many on the stack, then one elsewhere."""

    def views1(numbers, last, size):
        A, L = view(numbers, size, np.float32), view(last, size, np.float32)
        return A, L, L, L

    def views2(numbers, last, size):
        A, B = view(numbers, size, np.float32), view(numbers + BLOCK_BYTES, size, np.float32)
        L = view(last, size, np.float32)
        return A, B, L, L

    def views3(numbers, last, size):
        A, B = view(numbers, size, np.float32), view(numbers + BLOCK_BYTES, size, np.float32)
        return A, B, view(numbers + 2 * BLOCK_BYTES, size, np.float32), view(last, size, np.float32)

    return _inlined((views1, views2, views3)[coded - 1])


def _nothing(A, first, numbers, size):
    pass


def _nothing_with_key(A, first, numbers, size, key):
    pass


def _no_factor(A, first, numbers):
    return np.float32(0)


def _nothing_ahead(A, first, numbers, factor, after, ahead):
    pass


def _codec(book: Codebook, k: int, at_random: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """dequantize(A, first, numbers, size) and quantize(A, first, numbers, size, key) of state k; A: its addresses."""
    read, write = dequantizer(book), quantizer(book, at_random)

    def dequantize(A, first, numbers, size):
        read(A[2 * k] + first, A[2 * k + 1] + first // BLOCK * 4, numbers + k * BLOCK_BYTES, size)

    def quantize(A, first, numbers, size, key):
        codes, largest = A[2 * k] + first, A[2 * k + 1] + first // BLOCK * 4
        own = mix_word((key + word(k + 1)) & word(WORD)) if at_random else key
        write(numbers + k * BLOCK_BYTES, codes, largest, size, own, first)

    return dequantize, quantize


def _codec_of_vectors(book: Codebook, k: int) -> tuple[Callable[..., Any], ...]:
    """dequantize, measure and exchange of a whole block of state k."""
    read, find, both = (make(book) for make in (vectors.dequantizer, vectors.measurer, vectors.exchanger))

    def dequantize(A, first, numbers, size):
        read(A[2 * k] + first, A[2 * k + 1] + first // BLOCK * 4, numbers + k * BLOCK_BYTES)

    def measure(A, first, numbers):
        return find(numbers + k * BLOCK_BYTES, A[2 * k + 1] + first // BLOCK * 4)

    def exchange(A, first, numbers, factor, after, ahead):
        skip, largest = k * BLOCK_BYTES, A[2 * k + 1] + after // BLOCK * 4
        both(numbers + skip, A[2 * k] + first, factor, A[2 * k] + after, largest, ahead + skip)

    return dequantize, measure, exchange


def _of_all(parts: Sequence[Callable[..., Any]], nothing: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """A function of each of CODED states, for kernels."""
    of_states = [_inlined(part) for part in parts]
    of_states += [_inlined(nothing)] * (CODED - len(of_states))
    return of_states[0], of_states[1], of_states[2]


def blockwise_loop(
    rule: Callable[..., Any], states: Sequence[str], own: Store, has_copy: bool, averages: bool, at_random: bool
) -> Callable[..., None]:
    """The loop of a rule with these states; own: the storage of p and g.

    has_copy: the rule has one state more, the master copy. averages: p is taken into its average.
    """
    T, dtype, itemsize, widen, narrow, coded = own.T, own.dtype, own.itemsize, own.widen, own.narrow, len(states)
    books = [codebook_of(state) for state in states]
    views, widened = _views(coded), register_jitable(forceinline=True)(lambda x: T(x))
    narrowed = register_jitable(forceinline=True)(lambda x, key, element: np.float32(x))
    load, store = state_loader(coded + has_copy, widened), state_storer(coded + has_copy, narrowed)

    def update_block(p, g, A, first, size, h, tiny, share, key, numbers):
        P, G = view(p + first * itemsize, size, dtype), view(g, size, dtype)
        S = views(numbers, A[FLOAT_STATE] + first * 4, size)
        mean = view(A[FLOAT_STATE] + first * itemsize, size, T)
        for i in range(size):
            new, s = rule(widen(P[i]), widen(G[i]), load(S, i), h, tiny)
            P[i] = narrow(new, key, first + i)
            if averages:
                mean[i] = averaged(mean[i], new, share)
            store(S, i, s)

    update_block = _inlined(update_block)
    codecs = [_codec(book, k, at_random) for k, book in enumerate(books)]
    read0, read1, read2 = _of_all([read for read, _ in codecs], _nothing)
    write0, write1, write2 = _of_all([write for _, write in codecs], _nothing_with_key)

    def update(p, g, states, scalars, start, rows, columns, stride):
        A, key, numbers = view(view(states, 1, np.int64)[0], STATE_TABLE_WORDS, np.int64), read_key(states), stack()
        h, tiny = read_scalars(scalars, T)
        share = view(A[SHARE], 1, T)[0] if averages else T(0)
        end = start + columns
        for first in range(start, end, BLOCK):
            of_g, size = g + (first - start) * itemsize, min(BLOCK, end - first)
            read0(A, first, numbers, size)
            read1(A, first, numbers, size)
            read2(A, first, numbers, size)
            update_block(p, of_g, A, first, size, h, tiny, share, key, numbers)
            write0(A, first, numbers, size, key)
            write1(A, first, numbers, size, key)
            write2(A, first, numbers, size, key)

    if at_random or vectors.UNIT is None:
        return update
    rest_update = register_jitable(error_model="numpy")(update)
    of_vectors = [_codec_of_vectors(book, k) for k, book in enumerate(books)]
    load0, load1, load2 = _of_all([parts[0] for parts in of_vectors], _nothing)
    measure0, measure1, measure2 = _of_all([parts[1] for parts in of_vectors], _no_factor)
    exchange0, exchange1, exchange2 = _of_all([parts[2] for parts in of_vectors], _nothing_ahead)

    def update_in_vectors(p, g, states, scalars, start, rows, columns, stride):
        A, key, numbers = view(view(states, 1, np.int64)[0], STATE_TABLE_WORDS, np.int64), read_key(states), stack()
        h, tiny = read_scalars(scalars, T)
        share = view(A[SHARE], 1, T)[0] if averages else T(0)
        whole = start + columns // BLOCK * BLOCK
        ahead = numbers + SET_BYTES
        if start < whole:
            load0(A, start, numbers, BLOCK)
            load1(A, start, numbers, BLOCK)
            load2(A, start, numbers, BLOCK)
        for first in range(start, whole, BLOCK):
            of_g = g + (first - start) * itemsize
            update_block(p, of_g, A, first, BLOCK, h, tiny, share, key, numbers)
            factor0, factor1 = measure0(A, first, numbers), measure1(A, first, numbers)
            factor2 = measure2(A, first, numbers)
            # codes of this block, and numbers of the next; the last one takes its own, which nobody reads
            after = min(first + BLOCK, whole - BLOCK)
            exchange0(A, first, numbers, factor0, after, ahead)
            exchange1(A, first, numbers, factor1, after, ahead)
            exchange2(A, first, numbers, factor2, after, ahead)
            numbers, ahead = ahead, numbers
        if whole < start + columns:
            left = start + columns - whole
            rest_update(p, g + (whole - start) * itemsize, states, scalars, whole, 1, left, 0)

    return update_in_vectors


def state_words(states: Sequence[int], last: int = 0, share: int = 0) -> list[int]:
    """The words of an array in a table, from the addresses of its states: codes, magnitudes, then a master copy.

    last: address of an average in the place of the copy, and of its share.
    """
    coded = 2 * (len(states) // 2)
    copy = states[coded] if len(states) > coded else last
    return [*states[:coded], *[0] * (2 * CODED - coded), copy, share]


def blockwise_kernel(name: str, dtype: str, form: str, storage: str, averages: bool = False) -> Kernel:
    """The loop of an optimizer, a row of OPTIMIZERS with states, in a form of 16-bit arrays."""
    with lock:  # two threads would make two different loops
        return _blockwise_kernel(name, dtype, form, storage, averages)


@cache
def _blockwise_kernel(name: str, dtype: str, form: str, storage: str, averages: bool) -> Kernel:
    row, own = OPTIMIZERS[name], STORES[dtype]
    assert 1 <= len(row.states) <= CODED
    rule = on_master(row.rule, IS_ROUNDING[dtype]) if form == MASTER else row.rule
    own = STOCHASTIC_STORES[dtype] if form == STOCHASTIC else own
    loop = blockwise_loop(rule, row.states, own, form == MASTER, averages, storage == BLOCKWISE_RANDOM)
    words = ["update", name, dtype, *([form] * (form != SAME)), *(["averaging"] * averages), storage]
    return Kernel(loop, "_".join(words))
