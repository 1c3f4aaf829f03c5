"""Updates of arrays whose states are codes of 8 bits: dequantized, updated and requantized in one pass.

A block of threads works on a block of BLOCK elements at a time, on a device a thread an element; its arithmetic is that
of `formulas.blockwise`, and gives the bits of the CPU. Adam of float32 moves 16 bytes a parameter instead of 28: p read
and written, g read, two codes read and written. The states' numbers never leave shared memory, where they wait for the
largest magnitude of the block. The 256 numbers of the codes lie there, too: threads of a warp look up different ones,
which constant memory would serve one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from ...formulas import NUM_SCALARS, OPTIMIZERS, dropout_draw
from ...formulas import blockwise as formulas
from ...formulas.blockwise import (
    BLOCK,
    INFINITE,
    RANDOM_BITS,
    RANDOM_UNIT,
    SIGNED,
    UNSIGNED,
    ZERO,
    Codebook,
    codebook_of,
)
from ...formulas.dropout import WORD, mix
from ...spec import BLOCKWISE, BLOCKWISE_RANDOM, MASTER, SAME, STOCHASTIC, WHOLE, BufferUpdate
from ..runtime.compile import SIMULATED, THREADS, Kernel, device
from ..runtime.float16 import bits_of, float32_of
from ..runtime.primitives import reader, word, writer
from ..runtime.records import CONTROL, MAX_CODED, STEP, TILE, offset
from ..runtime.storage import COPY, stores_of
from ..runtime.vectors import array_loader, array_storer
from .updates import (
    DIVISOR,
    POINTERS_BYTES,
    RECORD_BYTES,
    STATES,
    STREAM,
    key_of_step,
    no_key,
    of_one,
    read_owner,
    read_word,
    read_words2,
    read_words3,
    unscaling,
    update_kernel,
)

# Elements from the start of a tile that its blocks of threads work on: the simulator's tiles are smaller than a block,
# and only those that a block begins with have work.
SPAN = max(TILE, BLOCK)
TILES = SPAN // TILE
TURNS = BLOCK // THREADS  # elements of a block of each thread: 1 on a device
LANES = 2 if SIMULATED else 16  # threads that bring the magnitudes of all threads down to as many
CODES = 256
U = np.uint32

read_code, read_float = reader("uint8", 1), reader("float32", 1)
write_code, write_float = writer("uint8"), writer("float32")
mix_word = device(mix)


def _quantizer(book: Codebook, at_random: bool) -> Any:
    """Return quantize(x, factor, table, key, element): the code of a number; factor: 1 / largest magnitude.

    table: the numbers of all codes.
    """
    find, code_of = device(formulas.entry_of(book)), device(formulas.code_of(book))
    zero, top, least = (ZERO, 255 - ZERO, 0) if book.signed else (0, 255, 1)

    def nearest(u, table, key, element):
        return np.int32(find(u))

    def random(u, table, key, element):
        # the entry below, or the number itself
        entry = np.int32(find(u))
        if table[zero + entry] > u:
            entry = max(entry - 1, least)
        above = min(entry + 1, top)
        draw = np.float32(dropout_draw(key, word(element)) >> word(53 - RANDOM_BITS)) * np.float32(RANDOM_UNIT)
        low, high = table[zero + entry], table[zero + above]
        return above if draw * (high - low) < u - low else entry

    entry_of = device(random if at_random else nearest)

    def quantize(x, factor, table, key, element):
        return code_of(entry_of(abs(x) * factor, table, key, element), x)

    return device(quantize)


def _magnitude(x):
    """The bits of a magnitude, which compare as magnitudes do; 0 for NaN."""
    bits = U(bits_of(x) & U(0x7FFFFFFF))
    return bits if bits <= U(INFINITE) else U(0)


magnitude_of, factor_of = device(_magnitude), device(formulas.inverse)


def _whole_block(largest, tid, states):
    """Bring the magnitudes of all threads, (states, THREADS), down to LANES for each state, in its first cells."""
    cuda.syncthreads()
    k, lane = tid // LANES, tid % LANES
    if k < states:
        most = largest[k, lane]
        for other in range(lane + LANES, THREADS, LANES):
            most = max(most, largest[k, other])
        largest[k, lane] = most
    cuda.syncthreads()


def _of_lanes(largest, k):
    most = largest[k, 0]
    for lane in range(1, LANES):
        most = max(most, largest[k, lane])
    return float32_of(most)


whole_block, of_lanes = device(_whole_block), device(_of_lanes)


def _reader_of(k: int, book: Codebook) -> Any:
    """Return read(s, j, tables): the number of element j of state k; s: addresses of codes and magnitudes."""
    own = int(book is UNSIGNED)

    def read(s, j, tables):
        return tables[own, read_code(s[2 * k] + j)[0]] * read_float(s[2 * k + 1] + j // BLOCK * 4)[0]

    return device(read)


def _writer_of(k: int, book: Codebook, at_random: bool) -> Any:
    """Return write(s, start, size, numbers, largest, tables, key): the codes and the magnitude of a block of state k.

    numbers: of the block; size: its elements, from element `start` of the array on.
    """
    own, quantize = int(book is UNSIGNED), _quantizer(book, at_random)

    def own_key(key):
        return mix_word((key + word(k + 1)) & word(WORD))

    key_of_state = device(own_key if at_random else _same)

    def write(s, start, size, numbers, largest, tables, key):
        magnitude, own_draws = of_lanes(largest, k), key_of_state(key)
        factor = factor_of(magnitude)
        if cuda.threadIdx.x == 0:
            write_float(s[2 * k + 1] + start // BLOCK * 4, magnitude)
        for turn in range(TURNS):
            j = turn * THREADS + cuda.threadIdx.x
            if j < size:
                code = quantize(numbers[k, j], factor, tables[own], own_draws, start + j)
                write_code(s[2 * k] + start + j, np.uint8(code))

    return device(write)


def _same(x):
    return x


def _all_numbers(reads: list[Any]) -> Any:
    """Return read(s, j, tables): a tuple of the numbers of all states."""
    first, second, third = (reads * 3)[:3]

    def read1(s, j, tables):
        return (first(s, j, tables),)

    def read2(s, j, tables):
        return first(s, j, tables), second(s, j, tables)

    def read3(s, j, tables):
        return first(s, j, tables), second(s, j, tables), third(s, j, tables)

    return device((read1, read2, read3)[len(reads) - 1])


def _all_codes(writes: list[Any]) -> Any:
    """Return write(...), as `_writer_of`, of all states."""
    *others, last = writes
    if not others:
        return last
    before = _all_codes(others)

    def write(s, start, size, numbers, largest, tables, key):
        before(s, start, size, numbers, largest, tables, key)
        last(s, start, size, numbers, largest, tables, key)

    return device(write)


def _as_real(states: int, real: Any) -> Any:
    """Return a function of a tuple of so many numbers: the same numbers in the dtype of arithmetic."""

    def as_real1(x):
        return (real(x[0]),)

    def as_real2(x):
        return real(x[0]), real(x[1])

    def as_real3(x):
        return real(x[0]), real(x[1]), real(x[2])

    return device((as_real1, as_real2, as_real3)[states - 1])


def _keeper(states: int, first: int) -> Any:
    """Return keep(numbers, largest, j, found): the states of an element's results, from number `first` on.

    They go to column j of numbers; largest: (states, THREADS) magnitudes, those of the thread's earlier elements too.
    """

    def keep(numbers, largest, j, found):
        tid = cuda.threadIdx.x
        for k in range(states):
            x = np.float32(found[first + k])
            numbers[k, j] = x
            largest[k, tid] = max(largest[k, tid], magnitude_of(x))

    return device(keep)


def _update(rule: Callable[..., Any], states: tuple[str, ...], dtype: str, form: str, at_random: bool, unscales: bool):
    # arrays that are no codes: p, g, a master copy; what is written of them: p, g if it is unscaled, the copy
    count, has_copy = len(states), form in (MASTER, COPY)
    own, *others = stores_of(dtype, int(has_copy), form)
    read = (own, own, *(others if form == MASTER else ()))
    written = (own, *[own] * unscales, *others)
    num_read, first = len(read), len(written) - has_copy  # results before the states
    real = getattr(np, own.real)
    one = of_one(rule, dtype, form)
    if unscales:
        one = unscaling(one)
    books = [codebook_of(state) for state in states]
    load, store = array_loader(read, 1), array_storer(written, 1)
    dequantize = _all_numbers([_reader_of(k, book) for k, book in enumerate(books)])
    write_codes = _all_codes([_writer_of(k, book, at_random) for k, book in enumerate(books)])
    as_real, keep = _as_real(count, real), _keeper(count, first)
    read_row, read_factor = reader(own.real, NUM_SCALARS + 1), reader(own.real, 1)
    read_states, factor_at = reader("int64", 2 * count + has_copy), offset(CONTROL, own.real)
    read_divisor = reader("float32", 1)
    key_of = device(key_of_step if form == STOCHASTIC or at_random else no_key)
    signed, unsigned = SIGNED.values, UNSIGNED.values
    coded, after = 2 * count, first + count

    def update(records, pointers, owners, tiles, control):
        tables = cuda.shared.array((2, CODES), np.float32)
        numbers = cuda.shared.array((count, BLOCK), np.float32)
        largest = cuda.shared.array((count, THREADS), np.uint32)
        tid = cuda.threadIdx.x
        # what the device has found out about the step
        factor, divisor, shift = real(1), real(1), 0
        if control != 0:
            skip, shift = read_words2(control)
            if skip != 0:
                return
            factor = read_factor(control + factor_at)[0]
            if unscales:
                divisor = real(read_divisor(control + DIVISOR)[0])
        # the numbers of the codes
        for code in range(tid, CODES, THREADS):
            tables[0, code], tables[1, code] = signed[code], unsigned[code]
        cuda.syncthreads()
        for tile in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            # the array of the tile
            i = read_owner(owners + tile * 4)[0]
            p, g, row = read_words3(pointers + i * POINTERS_BYTES)
            record = records + i * RECORD_BYTES
            elements, first_tile = read_words2(record)
            if g == 0 or (tile - first_tile) % TILES != 0:
                continue
            s = read_states(record + STATES)
            # its scalars, with the divisor past those that rules read
            scalars = read_row(row + shift)
            h = (scalars[0] * factor, *scalars[1:NUM_SCALARS], divisor)
            tiny = scalars[NUM_SCALARS]
            key = key_of(read_word(record + STREAM)[0], read_word(row + shift + STEP)[0])
            addresses = (p, g, *s[coded:])
            results = (*addresses[:first], *s[coded:])
            start = (tile - first_tile) * TILE
            end = min(start + SPAN, elements)
            for block in range(start, end, BLOCK):
                size = min(BLOCK, end - block)
                for k in range(count):
                    largest[k, tid] = 0
                # the update, element by element
                for turn in range(TURNS):
                    j = turn * THREADS + tid
                    if j < size:
                        x = load(addresses[:num_read], block + j)[0]
                        old = as_real(dequantize(s, block + j, tables))
                        found = one((x[0], x[1], *old, *x[2:]), h, tiny, key, block + j)
                        store(results, block + j, ((*found[:first], *found[after:]),))
                        keep(numbers, largest, j, found)
                # the largest magnitudes, and the codes
                whole_block(largest, tid, count)
                write_codes(s, block, size, numbers, largest, tables, key)
                cuda.syncthreads()  # the next block begins with largest

    return update


@cache
def _kernel(
    rule: Callable[..., Any], states: tuple[str, ...], dtype: str, form: str, storage: str, unscales: bool
) -> Kernel:
    signs = "".join("su"[codebook_of(state) is UNSIGNED] for state in states)
    words = ["unscale"] * unscales + ["update", rule.__name__, signs, dtype] + [form] * (form != SAME)
    at_random = storage == BLOCKWISE_RANDOM
    return Kernel(_update(rule, states, dtype, form, at_random, unscales), "_".join([*words, storage]))


def blockwise_kernel(
    name: str, dtype: str, form: str = SAME, storage: str = BLOCKWISE, unscales: bool = False
) -> Kernel:
    """Return the kernel of a row of OPTIMIZERS with states, as `update_kernel`; they are codes."""
    row = OPTIMIZERS[name]
    assert 1 <= len(row.states) <= MAX_CODED
    return _kernel(row.rule, tuple(row.states), dtype, form, storage, unscales)


def kernel_of(target: BufferUpdate, unscales: bool = False) -> Kernel:
    """Return the kernel that updates an array as its states are stored."""
    if target.storage == WHOLE or not OPTIMIZERS[target.rule].states:
        return update_kernel(target.rule, target.dtype, target.form, unscales)
    return blockwise_kernel(target.rule, target.dtype, target.form, target.storage, unscales)
