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
from ...formulas.blockwise import BLOCK, codebook_of
from ...formulas.dropout import WORD
from ...spec import BLOCKWISE_RANDOM, MASTER, SAME, STOCHASTIC
from ..runtime.compile import Kernel, lock
from ..runtime.frontend import cgutils, intrinsic, register_jitable, types
from ..runtime.primitives import INTERPRETED, address_of, view, word
from ..runtime.storage import IS_ROUNDING, STOCHASTIC_STORES, STORES, Store
from . import blockwise_vectors
from .blockwise_codes import dequantizer, mix_word, quantizer
from .loops import MAX_STATES, on_master, read_key, read_scalars, state_loader, state_storer

CODED = MAX_STATES - 1  # states that a rule may have
FLOAT_STATE, SHARE = 2 * CODED, 2 * CODED + 1  # words of the master copy or average, and of its share
STATE_TABLE_WORDS = 2 * CODED + 2
BLOCK_BYTES = 4 * BLOCK

_inlined = register_jitable(error_model="numpy", forceinline=True)


@intrinsic
def _stack(typingctx):
    """The address of memory for the states of a block as float32."""

    def codegen(context, builder, signature, args):
        memory = cgutils.alloca_once(builder, ir.ArrayType(ir.FloatType(), CODED * BLOCK))
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


def _codecs(states: Sequence[str], at_random: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """dequantize(addresses, first, numbers, size), and quantize(addresses, first, numbers, size, key): all states."""
    books = [codebook_of(state) for state in states]
    in_vectors = blockwise_vectors.AVAILABLE
    read = [dequantizer(book) for book in books]
    write = [quantizer(book, at_random) for book in books]
    read_whole: list[Any] = [blockwise_vectors.dequantizer(book) for book in books] if in_vectors else read
    write_whole: list[Any] = [blockwise_vectors.quantizer(book) for book in books] if in_vectors else write
    quick_write = in_vectors and not at_random

    def one(k: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Both for state k, if there is one."""
        if k >= len(states):
            return _inlined(lambda A, first, numbers, size: None), _inlined(lambda A, first, numbers, size, key: None)
        part, whole, keep, keep_whole = read[k], read_whole[k], write[k], write_whole[k]

        def dequantize(A, first, numbers, size):
            codes, largest = A[2 * k] + first, A[2 * k + 1] + first // BLOCK * 4
            if in_vectors and size == BLOCK:
                whole(codes, largest, numbers + k * BLOCK_BYTES)
            else:
                part(codes, largest, numbers + k * BLOCK_BYTES, size)

        def quantize(A, first, numbers, size, key):
            codes, largest = A[2 * k] + first, A[2 * k + 1] + first // BLOCK * 4
            if quick_write and size == BLOCK:
                keep_whole(numbers + k * BLOCK_BYTES, codes, largest)
            else:
                own = mix_word((key + word(k + 1)) & word(WORD)) if at_random else key
                keep(numbers + k * BLOCK_BYTES, codes, largest, size, own, first)

        return _inlined(dequantize), _inlined(quantize)

    (read0, write0), (read1, write1), (read2, write2) = one(0), one(1), one(2)

    def dequantize_all(A, first, numbers, size):
        read0(A, first, numbers, size)
        read1(A, first, numbers, size)
        read2(A, first, numbers, size)

    def quantize_all(A, first, numbers, size, key):
        write0(A, first, numbers, size, key)
        write1(A, first, numbers, size, key)
        write2(A, first, numbers, size, key)

    return _inlined(dequantize_all), _inlined(quantize_all)


def blockwise_loop(
    rule: Callable[..., Any], states: Sequence[str], own: Store, has_copy: bool, averages: bool, at_random: bool
) -> Callable[..., None]:
    """The loop of a rule with these states; own: the storage of p and g.

    has_copy: the rule has one state more, the master copy. averages: p is taken into its average.
    """
    T, dtype, itemsize, widen, narrow, coded = own.T, own.dtype, own.itemsize, own.widen, own.narrow, len(states)
    dequantize, quantize = _codecs(states, at_random)
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

    def update(p, g, states, scalars, start, rows, columns, stride):
        A, key, numbers = view(view(states, 1, np.int64)[0], STATE_TABLE_WORDS, np.int64), read_key(states), stack()
        h, tiny = read_scalars(scalars, T)
        share = view(A[SHARE], 1, T)[0] if averages else T(0)
        end = start + columns
        for first in range(start, end, BLOCK):
            of_g, size = g + (first - start) * itemsize, min(BLOCK, end - first)
            dequantize(A, first, numbers, size)
            if size == BLOCK:  # a constant number, which LLVM unrolls
                update_block(p, of_g, A, first, BLOCK, h, tiny, share, key, numbers)
            else:
                update_block(p, of_g, A, first, size, h, tiny, share, key, numbers)
            quantize(A, first, numbers, size, key)

    return update


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
