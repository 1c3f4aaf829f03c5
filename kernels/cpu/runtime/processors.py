"""Processors as LLVM names them, and the registers of those for which kernels are written in vector instructions.

Kernels are compiled for the processor that Numba compiles for: this one, or that of NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from .frontend import INTERPRETED, target
from .primitives import target_has


class VectorUnit(NamedTuple):
    """Vector registers, and the tile of a matrix product that is kept in them.

    A tile of tile_rows x tile_vectors sums leaves registers for a row of B and one element of A; so does one of
    wide_rows x (tile_vectors + 1), which takes the columns that are left over with the last of the others.
    """

    name: str
    vector_bytes: int
    tile_rows: int
    tile_vectors: int
    has_masks: bool  # loads and stores of a part of a vector
    mask_registers: bool = False  # masks are in registers of their own
    wide_rows: int = 0  # 0: there are no such tiles

    def lanes(self, itemsize: int) -> int:
        """The number of elements in a vector."""
        return self.vector_bytes // itemsize


# Sums take 16 of 32 vector registers, 12 of 16, and 24 of 32.
AVX512 = VectorUnit("AVX-512", 64, tile_rows=8, tile_vectors=2, has_masks=True, mask_registers=True)
AVX2 = VectorUnit("AVX2", 32, tile_rows=6, tile_vectors=2, has_masks=True, wide_rows=4)
NEON = VectorUnit("NEON", 16, tile_rows=8, tile_vectors=3, has_masks=False)

# The rate of products of bfloat16 (AVX512_BF16) beside that of float32. Independent sums in registers ran at 535 and
# 267 GFLOP/s a core on Zen 5, at 91 and 185 on Emerald Rapids; the others are taken to be as their nearest kin.
BFLOAT16_RATES = {
    "znver4": 2.0, "znver5": 2.0,
    "cooperlake": 0.5, "sapphirerapids": 0.5, "emeraldrapids": 0.5, "graniterapids": 0.5, "graniterapids-d": 0.5,
}  # fmt: skip


@cache
def vector_unit() -> VectorUnit | None:
    """The vector unit that kernels are compiled for; None: unknown, or kernels are interpreted."""
    if INTERPRETED:
        return None
    if target_has("+avx512f"):
        return AVX512
    if target_has("+avx2") and target_has("+fma"):
        return AVX2
    return NEON if target()[0].startswith(("aarch64", "arm64")) else None


@cache
def microarchitecture() -> str:
    """LLVM's name of the processor that kernels are compiled for: "znver4", "emeraldrapids", "haswell", ..."""
    return target()[1]
