"""`cublasLtMatmul` in NumPy, on the memory of this process: for Numba's simulator, and for tests of plans.

Written from NVIDIA's documentation and not from `products.py`: matrices are read by their layouts, in columns, and an
epilogue is made from its bits. Whatever the documentation forbids is an error here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..runtime.primitives import view
from .blaslt import Compute, Epilogue
from .products import BYTES, Matrix, Product, known

GELU_A, GELU_B = np.sqrt(2 / np.pi), 0.044715


def decode(words: np.ndarray, kind: str) -> np.ndarray:
    """Values from the words in memory: those of bfloat16 are the upper halves of float32."""
    if kind != "bfloat16":
        return words
    return (words.astype(np.uint32) << 16).view(np.float32)


def encode(numbers: np.ndarray, kind: str) -> np.ndarray:
    """Words in memory of values, rounded to nearest, ties to even."""
    if kind != "bfloat16":
        return numbers.astype(kind)
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(numbers), 0x7FC0, rounded).astype(np.uint16)


def storage(kind: str) -> str:
    """NumPy's type of the words in memory."""
    return "uint16" if kind == "bfloat16" else kind


def tf32(numbers: np.ndarray) -> np.ndarray:
    """Values rounded to the 10 bits of mantissa that tensor cores read of a float32."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return np.where(np.isfinite(numbers), ((bits + 0x1000) & 0xFFFFE000).view(np.float32), numbers)


def _columns(address: int, matrix: Matrix, kind: str) -> np.ndarray:
    """View of a matrix in memory, (rows, columns)."""
    if matrix.stride < matrix.rows:
        raise ValueError(f"columns of {matrix.rows} elements lie {matrix.stride} apart")
    if address % BYTES[kind]:
        raise ValueError(f"an array of {kind} at {address}")
    words = view(address, matrix.stride * (matrix.columns - 1) + matrix.rows, storage(kind))
    strides = (words.itemsize, words.itemsize * matrix.stride)
    return np.lib.stride_tricks.as_strided(words, (matrix.rows, matrix.columns), strides)


def _mask(address: int, product: Product) -> np.ndarray:
    """View of a bit mask, (bytes of a column, columns)."""
    stride = product.aux_stride
    if stride % 128 or stride < product.d.rows:
        raise ValueError(f"a mask's column of {stride} bits for {product.d.rows} rows")
    if address % 16:
        raise ValueError(f"a mask at {address}")
    return view(address, stride // 8 * product.d.columns, "uint8").reshape(product.d.columns, stride // 8).T


def _aux(address: int, product: Product) -> np.ndarray:
    """View of the inputs of GELU, (rows of D, columns)."""
    if product.aux_stride % 8:
        raise ValueError(f"columns of GELU's inputs lie {product.aux_stride} apart")
    return _columns(address, Matrix(product.d.rows, product.d.columns, product.aux_stride), product.result)


def _gelu(z: np.ndarray) -> np.ndarray:
    return 0.5 * z * (1 + np.tanh(GELU_A * (z + GELU_B * z**3)))


def _gelu_slope(z: np.ndarray) -> np.ndarray:
    t = np.tanh(GELU_A * (z + GELU_B * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * GELU_A * (1 + 3 * GELU_B * z * z)


@np.errstate(all="ignore")
def matmul(
    product: Product, a: int, b: int, d: int, bias: int = 0, aux: int = 0, alpha: float = 1.0, beta: float = 0.0
) -> None:
    """D = epilogue(alpha op(A) op(B) + beta D), on addresses of this process."""
    compute = np.float64 if product.compute == Compute.C_64F else np.float32
    A = decode(_columns(a, product.a, product.dtype), product.dtype).astype(compute)
    B = decode(_columns(b, product.b, product.dtype), product.dtype).astype(compute)
    A, B = A.T if product.transpose_a else A, B.T if product.transpose_b else B
    if product.compute == Compute.C_32F_FAST_TF32:
        A, B = tf32(A), tf32(B)
    D, kind, e = _columns(d, product.d, product.result), product.result, product.epilogue
    if (A.shape[0], B.shape[1]) != D.shape or A.shape[1] != B.shape[0]:
        raise ValueError(f"{A.shape} times {B.shape} is not {D.shape}")
    if A.shape[1] == 1 and (e & 8 or e & 64):
        raise ValueError(f"{e.name} of sums of one term")
    z = compute(alpha) * (A @ B)
    if beta:
        z += compute(beta) * decode(D, kind).astype(compute)
    if e & Epilogue.BIAS:
        z += decode(view(bias, D.shape[0], storage(kind)), kind).astype(compute)[:, None]
    if e & Epilogue.RELU:
        if e & 128:
            mask = _mask(aux, product)
            packed = np.packbits(z > 0, axis=0, bitorder="little")
            mask[: len(packed)] = packed
        z = np.fmax(z, 0)  # 0 for NaN, as in the library
    elif e & Epilogue.GELU:
        if e & 128:
            _aux(aux, product)[...] = encode(z, kind)
        z = _gelu(z)
    elif e & 8:
        z = z * np.unpackbits(_mask(aux, product), axis=0, bitorder="little")[: D.shape[0]]
    elif e & 64:
        z = z * _gelu_slope(decode(_aux(aux, product), kind).astype(compute))
    sums = {16: z.sum(axis=1), 256: A.sum(axis=1), 512: B.sum(axis=0)}
    for bit, values in sums.items():
        if e & bit:
            view(bias, len(values), storage(kind))[:] = encode(values, kind)
    D[...] = encode(z, kind)


class SimulatedGemm:
    """Twin of `gemm.Gemm`."""

    def __init__(self, gpu: Any) -> None:
        self.gpu, self._scratch = gpu, gpu.allocate(0)
        self.launching = threading.RLock()

    def prepare(self, stream: int, scratch: int = 0) -> None:
        pass

    def scratch(self, stream: int, size: int) -> int:
        self._scratch = self.gpu.allocate(size)
        return int(self._scratch.address)

    def supported(self, product: Product, aligned: int = 256) -> bool:
        return known(product)

    def call(
        self,
        product: Product,
        a: int,
        b: int,
        d: int,
        bias: int = 0,
        aux: int = 0,
        alpha: float = 1.0,
        beta: float = 0.0,
    ) -> SimulatedCall:
        return SimulatedCall(partial(matmul, product, a, b, d, bias, aux, alpha, beta))


class SimulatedCall:
    """Twin of `gemm.Call`."""

    def __init__(self, compute: Callable[[], None]) -> None:
        self.compute = compute

    def run(self, stream: int) -> None:
        self.compute()
