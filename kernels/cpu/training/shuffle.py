"""The phase that draws the order of rows of an epoch: the compiled twin of `spec.Shuffle`, with the same bits.

A new generator of NumPy's costs 14 us an epoch, as much as an epoch of 150 rows in one batch; this one 0.7 us.

The generator is PCG64: a linear congruence of 128 bits, whose outputs are xor-folded and rotated (O'Neill 2014, "PCG: a
family of simple fast space-efficient statistically good algorithms for random number generation", XSL-RR 128/64). The
hash of NumPy's SeedSequence makes its state and its increment of seed and key. The order is Fisher and Yates'
(Durstenfeld 1964, "Algorithm 235: random permutation"); a place is random bits, drawn again while they are too large.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ...spec import SHUFFLE_STREAM
from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.partition import epoch_of_batch, num_pieces
from ..runtime.primitives import view, word
from ..runtime.records import RUN, SHUFFLE, read

WORD, HALF = word(0xFFFFFFFFFFFFFFFF), word(0xFFFFFFFF)
ZERO, ONE, HALF_BITS = word(0), word(1), word(32)
# the hash of SeedSequence
INIT_A, MULT_A, INIT_B, MULT_B = word(0x43B0D7E5), word(0x931E8875), word(0x8B51F9DD), word(0x58F38DED)
MIX_LEFT, MIX_RIGHT, SHIFT = word(0xCA01F9DD), word(0x4973F715), word(16)
# the multiplier of PCG64
PCG_HIGH, PCG_LOW = word(2549297995355413924), word(4865540595714422341)


@register_jitable
def _hashed(value, constant):
    """Hash of 32 bits, and the constant of the next one."""
    after = (constant * MULT_A) & HALF
    value = ((value ^ constant) * after) & HALF
    return value ^ (value >> SHIFT), after


@register_jitable
def _mixed(x, y):
    # the sum of x MIX_LEFT and -y MIX_RIGHT, modulo 2^32
    value = (x * MIX_LEFT + (((y * MIX_RIGHT) & HALF) ^ HALF) + ONE) & HALF
    return value ^ (value >> SHIFT)


@register_jitable
def _absorbed(value, constant, a, b, c, d):
    """Mix 32 bits of entropy into the four words of a pool."""
    hashed, constant = _hashed(value, constant)
    a = _mixed(a, hashed)
    hashed, constant = _hashed(value, constant)
    b = _mixed(b, hashed)
    hashed, constant = _hashed(value, constant)
    c = _mixed(c, hashed)
    hashed, constant = _hashed(value, constant)
    return constant, a, b, c, _mixed(d, hashed)


@register_jitable
def _pool(seed, stream, epoch):
    """Four words of 32 bits: SeedSequence's pool for a seed of 64 bits and the key (stream, epoch)."""
    # the seed fills the pool, zeros behind it
    a, constant = _hashed(seed & HALF, INIT_A)
    b, constant = _hashed(seed >> HALF_BITS, constant)
    c, constant = _hashed(ZERO, constant)
    d, constant = _hashed(ZERO, constant)
    # each word is mixed into the others
    hashed, constant = _hashed(a, constant)
    b = _mixed(b, hashed)
    hashed, constant = _hashed(a, constant)
    c = _mixed(c, hashed)
    hashed, constant = _hashed(a, constant)
    d = _mixed(d, hashed)
    hashed, constant = _hashed(b, constant)
    a = _mixed(a, hashed)
    hashed, constant = _hashed(b, constant)
    c = _mixed(c, hashed)
    hashed, constant = _hashed(b, constant)
    d = _mixed(d, hashed)
    hashed, constant = _hashed(c, constant)
    a = _mixed(a, hashed)
    hashed, constant = _hashed(c, constant)
    b = _mixed(b, hashed)
    hashed, constant = _hashed(c, constant)
    d = _mixed(d, hashed)
    hashed, constant = _hashed(d, constant)
    a = _mixed(a, hashed)
    hashed, constant = _hashed(d, constant)
    b = _mixed(b, hashed)
    hashed, constant = _hashed(d, constant)
    c = _mixed(c, hashed)
    # the key, whose numbers take another word each where they need more than 32 bits
    constant, a, b, c, d = _absorbed(stream, constant, a, b, c, d)
    constant, a, b, c, d = _absorbed(epoch & HALF, constant, a, b, c, d)
    if epoch >> HALF_BITS:
        constant, a, b, c, d = _absorbed(epoch >> HALF_BITS, constant, a, b, c, d)
    return a, b, c, d


@register_jitable
def _state_word(low, high, constant):
    """64 bits of the generator's state from two words of the pool, and the constant of the next ones."""
    after = (constant * MULT_B) & HALF
    low = ((low ^ constant) * after) & HALF
    last = (after * MULT_B) & HALF
    high = ((high ^ after) * last) & HALF
    return (low ^ (low >> SHIFT)) | ((high ^ (high >> SHIFT)) << HALF_BITS), last


@register_jitable
def _high_product(x, y):
    """The upper 64 of the 128 bits of x y."""
    x_high, x_low, y_high, y_low = x >> HALF_BITS, x & HALF, y >> HALF_BITS, y & HALF
    upper = x_high * y_low + ((x_low * y_low) >> HALF_BITS)
    lower = x_low * y_high + (upper & HALF)
    return x_high * y_high + (upper >> HALF_BITS) + (lower >> HALF_BITS)


@register_jitable
def _sum(x_high, x_low, y_high, y_low):
    """x + y modulo 2^128."""
    low = (x_low + y_low) & WORD
    return (x_high + y_high + (ONE if low < x_low else ZERO)) & WORD, low


@register_jitable
def _advanced(high, low, increment_high, increment_low):
    """The next state of the generator, of 128 bits."""
    product = (high * PCG_LOW + low * PCG_HIGH + _high_product(low, PCG_LOW)) & WORD
    return _sum(product, (low * PCG_LOW) & WORD, increment_high, increment_low)


@register_jitable
def _output(high, low):
    """64 random bits from a state."""
    folded, turn = high ^ low, high >> word(58)
    return ((folded >> turn) | (folded << ((word(64) - turn) & word(63)))) & WORD


@register_jitable
def _permute(order, first, count, state):
    """Put `count` numbers of `order`, from place `first` on, in random order; return the state of the generator.

    state: (high, low) and (high, low) of the increment, and the half of the last random bits that is not used yet.
    """
    high, low, inc_high, inc_low, spare, has_spare = state
    # from the last place down, each changes places with one at or before it
    mask = WORD
    for i in range(count - 1, 0, -1):
        # as many random bits as the place has, drawn until they are no later place
        while (mask >> ONE) >= word(i):
            mask = mask >> ONE
        j = word(i) + ONE
        while j > word(i):
            if has_spare and mask <= HALF:
                j, has_spare = spare & mask, False
                continue
            high, low = _advanced(high, low, inc_high, inc_low)
            j = _output(high, low)
            if mask <= HALF:
                # the lower half of the bits comes first
                spare, has_spare = j >> HALF_BITS, True
            j = j & mask
        order[first + i], order[first + np.int64(j)] = order[first + np.int64(j)], order[first + i]
    return high, low, inc_high, inc_low, spare, has_spare


@register_jitable
def _generator(seed, epoch):
    """The state of an epoch's generator."""
    a, b, c, d = _pool(seed, word(SHUFFLE_STREAM), epoch)
    start_high, constant = _state_word(a, b, INIT_B)
    start_low, constant = _state_word(c, d, constant)
    stream_high, constant = _state_word(a, b, constant)
    stream_low, constant = _state_word(c, d, constant)
    inc_high, inc_low = ((stream_high << ONE) & WORD) | (stream_low >> word(63)), ((stream_low << ONE) & WORD) | ONE
    high, low = _sum(inc_high, inc_low, start_high, start_low)
    high, low = _advanced(high, low, inc_high, inc_low)
    return high, low, inc_high, inc_low, ZERO, False


def _shuffle(Order, in_blocks):
    """Write the rows of the epoch of batch `step`, in its order, to `order` of RUN."""

    def shuffle(work, step, rank, num_ranks):
        if rank > 0:
            return
        s = read(work, SHUFFLE)
        run = read(s.run, RUN)
        rows, order = view(s.rows, s.count, Order), view(run.order, s.count, Order)
        state = _generator(word(s.seed), word(s.first_epoch + epoch_of_batch(run, step)))
        if not in_blocks:
            for i in range(s.count):
                order[i] = rows[i]
            _permute(order, 0, s.count, state)
            return
        # blocks of neighbours in random order
        num_blocks = num_pieces(s.count, s.block_rows)
        blocks = view(s.blocks, num_blocks, Order)
        for i in range(num_blocks):
            blocks[i] = i
        state = _permute(blocks, 0, num_blocks, state)
        done = 0
        for i in range(num_blocks):
            start = np.int64(blocks[i]) * s.block_rows
            for j in range(start, min(start + s.block_rows, s.count)):
                order[done] = rows[j]
                done += 1
        # rows in random order within each window
        for start in range(0, s.count, s.window_rows):
            state = _permute(order, start, min(s.window_rows, s.count - start), state)

    return shuffle


@cache
def shuffle_kernel(order: str, in_blocks: bool) -> Kernel:
    """order: the dtype of row numbers; in_blocks: as `Shuffle` with blocks."""
    name = "shuffle" + "_blocks" * in_blocks + ("" if order == "uint32" else f"_{order}")
    return Kernel(_shuffle(getattr(np, order), in_blocks), name)
