"""Peaks of the processor's arithmetic: of multiplications and additions in registers, and of matrix products.

`fma_peak` is what no kernel exceeds. `product_peak` is what the best of the libraries on this machine reaches, where it
is best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastopt.benchmarks.limits import thread_times
from fastopt.benchmarks.products import Operands, Shape, label, libraries, turn_count
from fastopt.kernels.cpu.runtime import teams
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, address_of, aligned_zeros, target_has
from fastopt.kernels.cpu.runtime.records import fill, read
from fastopt.kernels.cpu.runtime.storage import BFloat
from fastopt.kernels.denormals import MACHINE, X86

ROUND_FLOPS = 5e8  # of a thread: some 2 ms, short enough for a few rounds to pass undisturbed on a busy machine
FMA_ROUNDS, FIRST_ROUNDS, PRODUCT_ROUNDS = 60, 3, 25
UNROLLED = 4  # operations of each chain in a turn of the loop
# The factor and the addend that every chain takes: x -> 0.5 x + 1 stays below 2, and x + 2 (2**-20 * 1) grows slowly.
OPERANDS = {"float32": (0.5, 1.0), "float64": (0.5, 1.0), "bfloat16": (2.0**-20, 1.0)}

CHAINS = np.dtype([
    ("memory", "i8"),  # a vector of factors, one of addends, then those of the chains
    ("count", "i8"),  # turns of the loop
])  # fmt: skip


def vector_bytes() -> int:
    """Bytes of the widest vectors that kernels are compiled for."""
    return 64 if target_has("+avx512f") else 32 if target_has("+avx") else 16


def num_chains() -> int:
    """Independent chains: enough for two units of a latency of 4, and with two operands few enough for the registers.

    x86 without AVX-512 has 16 registers, x86 with it and aarch64 have 32.
    """
    return 12 if MACHINE in X86 and not target_has("+avx512f") else 16


def has_peak(dtype: str) -> bool:
    """True if the processor has arithmetic for a dtype whose peak can be measured."""
    return not INTERPRETED and dtype in OPERANDS and (dtype != "bfloat16" or target_has("+avx512bf16"))


def _vectors(dtype: str) -> tuple[ir.VectorType, ir.VectorType, str]:
    """Vectors of the chains and of their operands, and LLVM's function for a step of a chain."""
    size = vector_bytes()
    if dtype == "bfloat16":
        pairs = ir.VectorType(BFloat(), size // 2)
        return ir.VectorType(ir.FloatType(), size // 4), pairs, f"llvm.x86.avx512bf16.dpbf16ps.{8 * size}"
    vector = ir.VectorType(*((ir.FloatType(), size // 4) if dtype == "float32" else (ir.DoubleType(), size // 8)))
    return vector, vector, f"llvm.fma.v{vector.count}f{32 if dtype == 'float32' else 64}"


@cache
def _chains_of(dtype: str) -> Any:
    """An intrinsic that runs the chains for some turns of a loop. Only first and last values are in memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        memory, count = args
        i64 = ir.IntType(64)
        vector, operand, name = _vectors(dtype)
        kind = ir.FunctionType(vector, [vector, operand, operand])
        fused = dtype == "bfloat16" or MACHINE not in X86 or target_has("+fma")

        def pointer(index: int, pointee: ir.Type) -> Any:
            address = builder.add(memory, i64(index * vector_bytes()))
            return builder.inttoptr(address, pointee.as_pointer())

        def step(x: Any) -> Any:
            if not fused:  # a multiplication and an addition, which are two operations as well
                return builder.fadd(builder.fmul(factor, x), addend)
            function = cgutils.get_or_insert_function(builder.module, kind, name)
            # LLVM's functions have the sum last, those of x86 first
            return builder.call(function, [x, factor, addend] if dtype == "bfloat16" else [factor, x, addend])

        factor, addend = (builder.load(pointer(index, operand), align=64) for index in range(2))
        first = [builder.load(pointer(2 + chain, vector), align=64) for chain in range(num_chains())]
        before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("chains", "end"))
        builder.branch(loop)
        # a turn of the loop: one step of every chain, several times
        builder.position_at_end(loop)
        turn = builder.phi(i64)
        phis = [builder.phi(vector) for _ in first]
        values = list(phis)
        for _ in range(UNROLLED):
            values = [step(x) for x in values]
        following = builder.add(turn, i64(1))
        for phi, start, value in zip([turn, *phis], [i64(0), *first], [following, *values], strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        # the last values, so that no chain is left out as useless
        builder.position_at_end(after)
        for chain, value in enumerate(values):
            builder.store(value, pointer(2 + chain, vector), align=64)
        return context.get_dummy_value()

    @intrinsic
    def chains(typingctx, memory, count):
        return types.void(types.int64, types.int64), codegen

    return chains


def _fma(chains: Any, thread_bytes: int) -> Callable[..., None]:
    def fma(work, step, rank, num_ranks):
        c = read(work, CHAINS)
        chains(c.memory + rank * thread_bytes, c.count)

    return fma


@cache
def fma_kernel(dtype: str) -> Kernel:
    """The kernel whose speed `fma_peak` measures, for its machine code to be looked at."""
    return Kernel(_fma(_chains_of(dtype), (2 + num_chains()) * vector_bytes()), f"fma_{dtype}")


def _chain_values(dtype: str, threads: int) -> np.ndarray:
    """Memory of the chains of all threads: their operands, and zeros that they start from."""
    size, (factor, addend) = vector_bytes(), OPERANDS[dtype]
    memory = aligned_zeros(threads * (2 + num_chains()) * size, np.uint8).reshape(threads, 2 + num_chains(), size)
    for row, value in enumerate((factor, addend)):
        if dtype == "bfloat16":  # the upper half of a float32, whose lower half is zero for these
            memory[:, row].view(np.uint16)[...] = np.float32(value).view(np.uint32) >> 16
        else:
            memory[:, row].view(dtype)[...] = value
    return memory


class Chains:
    """The chains of some threads, and the operations of a round on each of them.

    Raises:
        ValueError: the processor, or the interpreted mode, has no such arithmetic.
    """

    def __init__(self, dtype: str, threads: int, thread_flops: float) -> None:
        if not has_peak(dtype):
            raise ValueError(f"dtype must be one that the processor calculates in; got {dtype!r}")
        # two operations for each element of a vector of sums, and twice as many if each sums a pair
        lanes = vector_bytes() // (8 if dtype == "float64" else 4) * (2 if dtype == "bfloat16" else 1)
        flops = 2 * lanes * num_chains() * UNROLLED
        count = max(1, int(thread_flops // flops))
        self.threads, self.thread_flops = threads, float(count * flops)
        self.memory = _chain_values(dtype, threads)
        self.kernel = fma_kernel(dtype)
        self.work = fill(CHAINS, memory=self.memory, count=count)

    @property
    def flops(self) -> float:
        """Operations of a round on all threads."""
        return self.threads * self.thread_flops

    def run(self) -> None:
        """Do a round on all threads, started together and waited for."""
        teams.run_team(self.kernel, address_of(self.work), self.threads)

    def run_thread(self, rank: int) -> None:
        """Do a round as one of the threads, on the calling one."""
        self.kernel(address_of(self.work), 0, rank, self.threads)


@cache
def fma_peak(dtype: str, threads: int) -> float:
    """FLOP/s of independent multiplications and additions in registers, on some threads at the same time.

    The best round of each thread: whatever disturbs one of them makes it slower. dtype "bfloat16" are products of pairs
    that are added up in float32.

    Raises:
        ValueError: as of `Chains`.
    """
    chains = Chains(dtype, threads, ROUND_FLOPS)
    _ = chains.kernel.address  # compiled here, not on a thread
    times = thread_times({"fma": chains.run_thread}, threads, FMA_ROUNDS)["fma"]
    return sum(chains.thread_flops / min(own) for own in times)


class ProductPeak(NamedTuple):
    """The fastest products of a machine."""

    flops: float  # FLOP/s of all threads together; 0 if there is no library
    library: str  # name and version
    shape: str  # rows of A x sum x columns of B


# Shapes at which libraries are at their best: a strip in the first-level cache, and squares whose operands are packed
# once. Larger squares are hardly faster: MKL's 2048 by 1 % on Intel, OpenBLAS's not at all on Zen 5.
SHAPES = (Shape(64, 32, 256), Shape(512, 512, 512), Shape(1024, 1024, 1024))
MOST_BYTES = 1 << 28  # of the results of all threads: larger shapes are left out
FINAL = 3  # pairs of a library and a shape that are measured again


@cache
def product_peak(dtype: str, threads: int) -> ProductPeak:
    """The best rate of matrix products, one on each thread at the same time, by any BLAS that is present.

    Each library multiplies each of SHAPES for some milliseconds; the fastest pairs of both are then measured in turns,
    and the best round of each thread counts. It takes a second.
    """
    width = 8 if dtype == "float64" else 4
    shapes = [shape for shape in SHAPES if threads * shape.m * shape.n * width <= MOST_BYTES]
    operands = {shape: Operands(shape, dtype, threads) for shape in shapes}
    calls = {
        (name, shape): operands[shape].call_of_thread(library, turn_count(shape, ROUND_FLOPS))
        for name, library in libraries(dtype).items()
        for shape in shapes
    }
    if not calls:
        return ProductPeak(0.0, "none", "")

    def rates(pairs: Iterable[tuple[str, Shape]], rounds: int) -> dict[tuple[str, Shape], float]:
        found = {}
        for (name, shape), times in thread_times({pair: calls[pair] for pair in pairs}, threads, rounds).items():
            flops = turn_count(shape, ROUND_FLOPS) * shape.flops
            found[name, shape] = sum(flops / min(own) for own in times)
        return found

    first = rates(calls, FIRST_ROUNDS)
    final = rates(sorted(first, key=lambda pair: -first[pair])[:FINAL], PRODUCT_ROUNDS)
    name, shape = max(final, key=lambda pair: final[pair])
    return ProductPeak(final[name, shape], label(libraries(dtype)[name]), str(shape))
