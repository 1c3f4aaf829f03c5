"""Matrix products of every BLAS that is present, called alike: by address, in a compiled loop, one on each thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fastopt.kernels.cpu.dense.blas import BFLOAT16, Blas, present
from fastopt.kernels.cpu.dense.matmul import AS_IS, ROW_MAJOR, TRANSPOSED
from fastopt.kernels.cpu.dense.matmul_bfloat16 import bfloat16_refusal
from fastopt.kernels.cpu.runtime import teams
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import CALL_GEMM, address_of, aligned_zeros
from fastopt.kernels.cpu.runtime.records import fill, read

TITLES = {"fastopt": "fastopt", "mkl": "MKL", "openblas": "OpenBLAS"}
TURN_FLOPS = 2e9  # operations of a turn of one thread: some 10 ms, beside which the start of a team is nothing

PRODUCT = np.dtype([
    (name, "i8")
    for name in (
        "gemm",  # code
        "ta", "tb",  # AS_IS or TRANSPOSED
        "m", "n", "k",
        "a", "lda", "b", "ldb",  # the same operands for all threads
        "c", "c_bytes",  # (threads, m, n) and the bytes of one thread's result
        "count",  # products of a call
    )
])  # fmt: skip


class Shape(NamedTuple):
    """C (m, n) = A B, summed over k, with A (m, k) or B (k, n) stored transposed."""

    m: int
    n: int
    k: int
    ta: int = AS_IS
    tb: int = AS_IS

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.n * self.k

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n}"


def label(library: Blas) -> str:
    """Name and version of a BLAS, as people write them.

    >>> label(Blas("openblas", "0.3.30 for SkylakeX", "", {}))
    'OpenBLAS 0.3.30 for SkylakeX'
    """
    return f"{TITLES.get(library.name, library.name)} {library.version}"


def libraries(dtype: str = "float32") -> dict[str, Blas]:
    """Every BLAS that is present and has products of a dtype, by name, ours first.

    "bfloat16" are products of float32 arrays whose operands are rounded, where the processor gains by them.
    """
    if dtype == "bfloat16":
        return {} if bfloat16_refusal() else {BFLOAT16.name: BFLOAT16}
    return {library.name: library for library in present()} if dtype in CALL_GEMM else {}


def _products(gemm: Any, T: Any) -> Callable[..., None]:
    def products(work, step, rank, num_ranks):
        p = read(work, PRODUCT)
        for _ in range(p.count):
            gemm(
                p.gemm, ROW_MAJOR, p.ta, p.tb, p.m, p.n, p.k, T(1), p.a, p.lda, p.b, p.ldb,
                T(0), p.c + rank * p.c_bytes, p.n,
            )  # fmt: skip

    return products


@cache
def _kernel(dtype: str) -> Kernel:
    return Kernel(_products(CALL_GEMM[dtype], getattr(np, dtype)), f"products_{dtype}")


def _rounded(x: np.ndarray) -> np.ndarray:
    """The nearest numbers of bfloat16, which are the upper halves of float32, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


class Operands:
    """A and B of one shape, drawn from a fixed seed, and a C for each thread; bfloat16 as arrays of float32."""

    def __init__(self, shape: Shape, dtype: str, threads: int) -> None:
        self.rounds = dtype == "bfloat16"
        dtype = "float32" if self.rounds else dtype
        self.shape, self.dtype, self.threads = shape, dtype, threads
        rng = np.random.default_rng(0)
        a, b = (shape.k, shape.m) if shape.ta == TRANSPOSED else (shape.m, shape.k), (shape.k, shape.n)
        b = b[::-1] if shape.tb == TRANSPOSED else b
        self.a, self.b = self._random(rng, a), self._random(rng, b)
        self.c = aligned_zeros(threads * shape.m * shape.n, dtype).reshape(threads, shape.m, shape.n)

    def _random(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
        array = aligned_zeros(shape[0] * shape[1], self.dtype).reshape(shape)
        array[...] = rng.standard_normal(shape, dtype="float32")
        return array

    def expected(self, rows: np.ndarray) -> np.ndarray:
        """Some rows of the product in float64."""
        a, b = (_rounded(x) for x in (self.a, self.b)) if self.rounds else (self.a, self.b)
        a = a.T if self.shape.ta == TRANSPOSED else a
        b = b.T if self.shape.tb == TRANSPOSED else b
        return a[rows].astype("float64") @ b.astype("float64")

    def _work(self, library: Blas, count: int) -> np.ndarray:
        return fill(
            PRODUCT, gemm=library.gemm[self.dtype], a=self.a, b=self.b, c=self.c, count=count, ta=self.shape.ta,
            tb=self.shape.tb, m=self.shape.m, n=self.shape.n, k=self.shape.k, lda=self.a.shape[1],
            ldb=self.b.shape[1], c_bytes=self.c[0].nbytes,
        )  # fmt: skip

    def call(self, library: Blas, count: int) -> Callable[[], None]:
        """Return a call that multiplies `count` times on every thread; the threads are started and waited for."""
        work, kernel = self._work(library, count), _kernel(self.dtype)
        return lambda: teams.run_team(kernel, address_of(work), self.threads)

    def call_of_thread(self, library: Blas, count: int) -> Callable[[int], None]:
        """Return a call(rank) that multiplies `count` times as one of the threads, on the calling one."""
        work, kernel = self._work(library, count), _kernel(self.dtype)
        _ = kernel.address  # compiled here
        return lambda rank: kernel(address_of(work), 0, rank, self.threads)


def turn_count(shape: Shape, turn_flops: float = TURN_FLOPS) -> int:
    """Products of a turn."""
    return max(1, int(turn_flops // shape.flops))

