"""Codes of 8 bits in the vector instructions of each kind of processor, beside the reference: the same bits.

Instructions of AVX-512 are tried where there are none, too: each is made of LLVM's own, which any processor has.
"""

import numpy as np
import pytest
from llvmlite import ir

from fastopt.kernels.cpu.optim import blockwise_avx2, blockwise_avx512, blockwise_vectors
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.frontend import cgutils
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, address_of, aligned_zeros
from fastopt.kernels.formulas.blockwise import BLOCK, SIGNED, UNSIGNED
from fastopt.kernels.reference.blockwise import dequantized, quantize

PART = 64  # elements of a block, in the place of 256
UNITS = {"avx2": blockwise_avx2, "avx512": blockwise_avx512}
pytestmark = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels have no vector instructions")


def elementwise(builder, result, function):
    """A vector of one function's results."""
    found = ir.Constant(result, ir.Undefined)
    for lane in range(result.count):
        found = builder.insert_element(found, function(lane), ir.IntType(32)(lane))
    return found


def at(builder, vector, index):
    return builder.extract_element(vector, index)


def looked_up(builder, result, tables, index):
    """Elements of tables behind each other, by the lower bits of each index."""
    i64, count = ir.IntType(64), result.count * len(tables)
    memory = cgutils.alloca_once(builder, result, len(tables))
    for k, table in enumerate(tables):
        builder.store(table, builder.gep(memory, [i64(k)]))
    elements = builder.bitcast(memory, result.element.as_pointer())

    def one(lane):
        place = builder.and_(builder.zext(at(builder, index, ir.IntType(32)(lane)), i64), i64(count - 1))
        return builder.load(builder.gep(elements, [place]))

    return elementwise(builder, result, one)


def packed(builder, result, a, b, signed):
    """Integers of half the width, with saturation, by parts of 128 bits: of a, then of b."""
    narrow, wide = result.element, a.type.element
    per_part = 128 // wide.width
    low, high = (-(1 << narrow.width - 1), (1 << narrow.width - 1) - 1) if signed else (0, (1 << narrow.width) - 1)

    def one(lane):
        part, within = divmod(lane, 2 * per_part)
        source, skip = (a, within) if within < per_part else (b, within - per_part)
        value = at(builder, source, ir.IntType(32)(part * per_part + skip))
        value = builder.select(builder.icmp_signed("<", value, wide(low)), wide(low), value)
        return builder.trunc(builder.select(builder.icmp_signed(">", value, wide(high)), wide(high), value), narrow)

    return elementwise(builder, result, one)


def larger_magnitude(builder, result, a, b):
    mask, words = ir.IntType(32)(0x7FFFFFFF), ir.VectorType(ir.IntType(32), result.count)

    def one(lane):
        x, y = (at(builder, builder.bitcast(v, words), ir.IntType(32)(lane)) for v in (a, b))
        x, y = (builder.bitcast(builder.and_(v, mask), ir.FloatType()) for v in (x, y))
        return builder.select(builder.fcmp_ordered(">", x, y), x, y)

    return elementwise(builder, result, one)


def without_avx512(builder, name, result, *args):
    """`vector_code.call` of an instruction of AVX-512, made of LLVM's own."""
    if name == "x86.avx512.mask.range.ps.512":
        return larger_magnitude(builder, result, *args[:2])
    if "vpermi2var" in name:
        return looked_up(builder, result, [args[0], args[2]], args[1])
    if "permvar" in name:
        return looked_up(builder, result, [args[0]], args[1])
    assert "pack" in name, name
    return packed(builder, result, *args, signed="packss" in name)


@pytest.fixture(params=UNITS)
def unit(request, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))  # for what is made of other instructions here
    if request.param == "avx2" and not blockwise_avx2.AVAILABLE:
        pytest.skip("the processor has no AVX2")
    if request.param == "avx512" and not blockwise_avx512.AVAILABLE:
        monkeypatch.setattr(blockwise_avx512, "call", without_avx512)
        monkeypatch.setattr(blockwise_vectors, "BLOCK", PART)  # whole blocks would be compiled for minutes
    monkeypatch.setattr(blockwise_vectors, "UNIT", UNITS[request.param])
    return request.param


def kernels(unit, book):
    """Kernels of whole blocks that stand behind each other."""
    makers = (blockwise_vectors.dequantizer, blockwise_vectors.measurer, blockwise_vectors.exchanger)
    read, measure, both = (make.__wrapped__(book) for make in makers)
    steps = BLOCK * 4

    def to_numbers(numbers, codes, largest, others, blocks):
        for k in range(blocks):
            read(codes + k * BLOCK, largest + 4 * k, others + k * steps)

    def exchange(numbers, codes, largest, others, blocks):
        # the codes of each block, and the numbers of the block before, which has codes by then
        for k in range(blocks):
            n, last = numbers + k * steps, max(k - 1, 0)
            factor = measure(n, largest + 4 * k)
            both(n, codes + k * BLOCK, factor, codes + last * BLOCK, largest + 4 * last, others + last * steps)

    name = f"test_codes_{unit}_{'signed' if book.signed else 'unsigned'}"
    return [Kernel(f, f"{name}_{f.__name__}") for f in (to_numbers, exchange)]


def magnitudes(rng, book):
    """Numbers of all sizes, and those around where pieces begin and between neighbouring entries."""
    upper = np.arange(0x2E00, 0x3F80, dtype=np.uint32) << 16  # from 3e-11 to 1
    found = [(upper | rng.integers(0, 1 << 16, len(upper), dtype=np.uint32)).view("f4") for _ in range(4)]
    edges = np.concatenate([book.begins, (book.entries[:-1] + book.entries[1:]) / 2, book.entries]).astype("f4")
    around = [edges]
    for direction in (0, 2):
        for _ in range(3):
            around.append(np.nextafter(around[-1] if len(around) not in (1, 4) else edges, np.float32(direction)))
    return np.concatenate([*found, *around])


@pytest.mark.parametrize("book", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
def test_bits(unit, book):
    rng = np.random.default_rng(0)
    x = np.minimum(magnitudes(rng, book), np.float32(1))
    size = blockwise_vectors.BLOCK  # of each block; what is behind it is 0, and has no codes
    blocks = -(-len(x) // (size - 1))
    numbers = aligned_zeros(blocks * BLOCK, "float32").reshape(blocks, BLOCK)
    numbers[:, 1:size] = np.resize(x, (blocks, size - 1)) * rng.choice([-1, 1], (blocks, size - 1))
    numbers[:, 0] = 1  # the largest
    numbers[1::2] *= 10.0 ** rng.uniform(-20, 20, (len(numbers[1::2]), 1))
    numbers[0, 5:9] = np.nan, -np.nan, 0.0, -0.0
    numbers[2], numbers[4, 3] = 0, np.inf
    codes, expected = np.zeros((blocks, BLOCK), "u1"), np.zeros((blocks, BLOCK), "u1")
    found, largest, of_reference = (aligned_zeros(size, "float32") for size in (numbers.size, blocks, blocks))
    with np.errstate(all="ignore"):
        if book.signed:
            quantize(numbers, expected, of_reference, True)
        else:  # magnitudes of squares are the numbers themselves
            quantize(np.where(numbers > 0, numbers, 0), expected, of_reference, False)
    to_numbers, exchange = kernels(unit, book)
    arguments = (*map(address_of, (numbers, codes, largest, found)), blocks)
    exchange(*arguments)
    np.testing.assert_array_equal(largest, of_reference)
    np.testing.assert_array_equal(codes[:, :size], expected[:, :size])
    with np.errstate(all="ignore"):
        values = dequantized(codes.ravel(), largest, book.signed)
    found, values = (array.reshape(blocks, BLOCK)[:, :size] for array in (found, values))
    np.testing.assert_array_equal(found[:-1], values[:-1])
    to_numbers(*arguments)
    np.testing.assert_array_equal(found, values)
