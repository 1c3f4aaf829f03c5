"""Limits of the GPU, measured in the same run as the figures that are compared with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numba import cuda

from fastopt.benchmarks.cuda.device import drawn, filled, numbers, the_gpu
from fastopt.benchmarks.cuda.turns import interleave
from fastopt.benchmarks.cuda.work import layer_of
from fastopt.kernels.cuda.dense.gemm import Gemm, gemm_of
from fastopt.kernels.cuda.dense.products import BYTES, Product, forward_product
from fastopt.kernels.cuda.runtime.compile import SIMULATED, THREADS, Kernel, device
from fastopt.kernels.cuda.runtime.device import launch
from fastopt.kernels.cuda.runtime.primitives import VECTOR
from fastopt.kernels.cuda.runtime.vectors import loader, storer

CACHES = 8  # size of a copy that shows the memory's speed, in sizes of the cache that multiprocessors share
LEAST = 1 << 28  # bytes, its least size
SIDES = {"float64": (4096,), "float32": (4096,), "tf32": (4096, 8192), "float16": (4096, 8192)}
SIDES["bfloat16"] = SIDES["float16"]
ALGORITHMS = 8  # algorithms that are timed
ROUNDS = 7


# ---------------------------------------------------------------- memory
# g - g is 0, but no compiler may assume that of a value that might be infinite: all values stay the same.
def _add0(x):
    return (x[0] + (x[1] - x[1]),)


def _add1(x):
    nothing = x[1] - x[1]
    return x[0] + nothing, x[2] + nothing


def _add2(x):
    nothing = x[1] - x[1]
    return x[0] + nothing, x[2] + nothing, x[3] + nothing


def _add3(x):
    nothing = x[1] - x[1]
    return x[0] + nothing, x[2] + nothing, x[3] + nothing, x[4] + nothing


def _read0(p, g, s, t, u):
    return p, g


def _read1(p, g, s, t, u):
    return p, g, s


def _read2(p, g, s, t, u):
    return p, g, s, t


def _read3(p, g, s, t, u):
    return p, g, s, t, u


def _written0(p, s, t, u):
    return (p,)


def _written1(p, s, t, u):
    return p, s


def _written2(p, s, t, u):
    return p, s, t


def _written3(p, s, t, u):
    return p, s, t, u


ADD, READ = (_add0, _add1, _add2, _add3), (_read0, _read1, _read2, _read3)
WRITTEN = _written0, _written1, _written2, _written3


def _stream(states: int, dtype: str) -> Callable[..., None]:
    width = VECTOR // np.dtype(dtype).itemsize
    load, store, add = loader(dtype, width), storer(dtype, width), device(ADD[states])
    read, written = device(READ[states]), device(WRITTEN[states])

    def wide2(x):
        return add(x[0]), add(x[1])

    def wide4(x):
        return add(x[0]), add(x[1]), add(x[2]), add(x[3])

    wide = device({2: wide2, 4: wide4}[width])

    def stream(p, g, s, t, u, vectors):
        places, results = read(p, g, s, t, u), written(p, s, t, u)
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for i in range(first, vectors, step):
            store(results, i * VECTOR, wide(load(places, i * VECTOR)))

    return stream


def _copy(source, into, vectors):
    first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
    for i in range(first, vectors, step):
        STORE((into,), i * VECTOR, LOAD((source,), i * VECTOR))


LOAD, STORE = loader("float32", VECTOR // 4), storer("float32", VECTOR // 4)
COPY = Kernel(_copy, "copy")


@cache
def stream_kernel(states: int, dtype: str) -> Kernel:
    """An update's reads and writes with one addition for each array that is written."""
    return Kernel(_stream(states, dtype), f"stream_{states}_{dtype}")


def stream(arrays: Sequence[Any], dtype: str) -> Callable[[], None]:
    """A call that moves the bytes of an update: p, g and the states. The size must fill vectors."""
    gpu, states = the_gpu(), len(arrays) - 2
    vectors = arrays[0].size * BYTES[dtype] // VECTOR
    places = [array.address for array in arrays] + [0] * (3 - states)
    kernel = stream_kernel(states, dtype)
    return lambda kept=arrays: launch(gpu, kernel, -(-vectors // THREADS), 0, *places, vectors)


class Copies:
    """A copy of `size` bytes by the driver, and by a kernel of 128-bit loads and stores."""

    def __init__(self, size: int) -> None:
        self.gpu, self.size, elements = the_gpu(), size, size // 4
        self.source = filled((elements,), drawn(elements, "float32", 0), "float32")
        self.into = filled((elements,), np.full(1, np.nan), "float32")
        self.calls = {"driver": self.by_driver, "kernel": self.by_kernel}

    def by_driver(self) -> None:
        with self.gpu.active():
            self.gpu.copy(self.into.address, self.source.address, self.size, 0)

    def by_kernel(self) -> None:
        vectors = self.size // VECTOR
        launch(self.gpu, COPY, -(-vectors // THREADS), 0, self.source.address, self.into.address, vectors)

    def check(self) -> None:
        for first in (0, self.source.size // 2, self.source.size - 64):
            ours, theirs = (numbers(array, "float32", first, 64) for array in (self.into, self.source))
            np.testing.assert_array_equal(ours, theirs)


def large() -> int:
    """Bytes of a copy whose speed is the memory's."""
    return 1 << 12 if SIMULATED else max(LEAST, CACHES * the_gpu().cache_bytes)


@cache
def copy_bandwidth() -> float:
    """Bytes a second, read and written, of the faster copy of an array that no cache holds."""
    size = large()
    return 2 * size / min(interleave(Copies(size).calls, ROUNDS).values())


# ---------------------------------------------------------------- products
class Operands:
    """Memory of a product: random values in A and B, and memory for the rest."""

    def __init__(self, product: Product) -> None:
        sizes = dict(zip(("a", "b", "d", "bias", "aux"), product.sizes(), strict=True))
        self.product, self.arrays = product, {}
        for seed, (name, size) in enumerate(sizes.items()):
            if size:
                kind = product.dtype if name in ("a", "b") else product.result
                elements = -(-size // BYTES[kind])
                self.arrays[name] = filled((elements,), drawn(elements, kind, seed), kind)
        self.places = {name: array.address for name, array in self.arrays.items()}


def best_product(product: Product) -> Callable[[int], None]:
    """A call of a product, given a stream, by the fastest algorithm that cuBLASLt proposes."""
    operands = Operands(product)
    call = tuned_gemm().call(product, **operands.places)
    return lambda stream, kept=operands: call.run(stream)


@cache
def tuned_gemm() -> Any:
    """Products whose algorithms are chosen by timing."""
    if SIMULATED:
        return gemm_of(the_gpu())
    made = Gemm(the_gpu())
    made.tuned = ALGORITHMS
    return made


@cache
def product_peak(kind: str) -> float:
    """FLOP/s of the fastest of some large square products; `kind` is a dtype, or "tf32"."""
    peaks = []
    for side in (8,) if SIMULATED else SIDES[kind]:
        call = best_product(forward_product(layer_of((side,) * 3, kind)))
        peaks.append(2 * side**3 / interleave({"product": partial(call, 0)}, ROUNDS)["product"])
    return max(peaks)
