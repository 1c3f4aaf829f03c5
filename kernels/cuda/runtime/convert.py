"""Copies of arrays from one dtype to another."""

from __future__ import annotations

from functools import cache

from numba import cuda

from .compile import THREADS, Kernel
from .primitives import VECTOR
from .storage import STORES
from .vectors import array_loader, array_storer


def _convert(source_dtype, target_dtype):
    source_store, target_store = STORES[source_dtype], STORES[target_dtype]
    width = max(source_store.width, target_store.width)
    load, load1 = array_loader((source_store,), width), array_loader((source_store,), 1)
    store, store1 = array_storer((target_store,), width), array_storer((target_store,), 1)

    def convert(source, target, elements):
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        # whole vectors; the target is our own, and aligned
        whole = elements - elements % width if source % VECTOR == 0 else 0
        for j in range(first * width, whole, step * width):
            store((target,), j, load((source,), j))
        # the rest, element by element
        for j in range(whole + first, elements, step):
            store1((target,), j, load1((source,), j))

    return convert


@cache
def widen_kernel(dtype: str) -> Kernel:
    """target = source, from 16 bits to float32."""
    return Kernel(_convert(dtype, "float32"), f"widen_{dtype}")


@cache
def narrow_kernel(dtype: str) -> Kernel:
    """target = source, from float32 to 16 bits, rounded to nearest."""
    return Kernel(_convert("float32", dtype), f"narrow_{dtype}")
