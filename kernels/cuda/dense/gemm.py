"""Products on a GPU by cuBLASLt: algorithms chosen once, memory laid out beforehand, calls that can be captured.

    gemm = gemm_of(gpu)                      # one for each device, for all threads
    call = gemm.call(product, a, b, d)       # chooses an algorithm, and binds it to addresses
    gemm.prepare(stream)                     # memory for what is to run on a stream
    call.run(stream)                         # launches; allocates nothing, waits for nothing, may be captured

A captured graph uses the memory of the stream it was captured on, so nothing else may run on that stream while the
graph is replayed on another.

cuBLASLt takes tens of microseconds to choose an algorithm, so choices are kept by product and alignment of its arrays.
With FASTOPT_CUDA_TUNE=n the n best candidates are timed and the fastest is used; which one that is, and so the last
bits of results, may differ from process to process.
"""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from ..runtime.compile import SIMULATED
from ..runtime.driver import ALIGNMENT
from ..runtime.rehearsal import RehearsedGpu
from . import blaslt
from .blaslt import (
    Algorithm,
    BlasLtError,
    Descriptor,
    Handle,
    Matmul,
    Operation,
    Preference,
    Problem,
    Reduction,
)
from .products import BYTES, TYPES, Matrix, Product, alignment, known

MIB = 1 << 20
WORKSPACE = {9: 32 * MIB, 10: 32 * MIB, 11: 32 * MIB, 12: 12 * MIB}  # by compute capability, as NVIDIA recommends
SMALL_WORKSPACE = 4 * MIB  # for all other devices
ANY_ADDRESS = 1 << 40  # stands for an operand when only its alignment matters
ROUNDS = 5  # timings of each candidate


class Operands(NamedTuple):
    """Addresses of the operands of a product; 0: there is none."""

    a: int
    b: int
    d: int
    bias: int = 0  # or its gradient
    aux: int = 0

    def alignments(self) -> Operands:
        return Operands(*map(alignment, self))


def problem(product: Product, operands: Operands) -> Problem:
    """A product as cuBLASLt's descriptors."""
    operation = blaslt.matmul_descriptor(product.compute, product.scale)
    operation[Matmul.TRANSA] = Operation.T if product.transpose_a else Operation.N
    operation[Matmul.TRANSB] = Operation.T if product.transpose_b else Operation.N
    operation[Matmul.EPILOGUE] = product.epilogue
    if product.reads_bias or product.sums:
        operation[Matmul.BIAS_POINTER] = operands.bias
    if product.aux_stride:
        operation[Matmul.EPILOGUE_AUX_POINTER] = operands.aux
        operation[Matmul.EPILOGUE_AUX_LD] = product.aux_stride
    kinds = product.dtype, product.dtype, product.result
    a, b, d = (_layout(m, kind) for m, kind in zip((product.a, product.b, product.d), kinds, strict=True))
    return Problem(operation, a, b, d)


def _layout(matrix: Matrix, kind: str) -> Descriptor:
    return blaslt.layout_descriptor(TYPES[kind], *matrix)


def preference(product: Product, operands: Operands, workspace: int) -> Descriptor:
    """Limits of an algorithm: workspace, ways to add up, alignment of its operands."""
    limits = blaslt.preference_descriptor()
    limits[Preference.MAX_WORKSPACE_BYTES] = workspace
    # Partial sums must not be rounded to 16 bits before they are added up.
    limits[Preference.REDUCTION_SCHEME_MASK] = Reduction.COMPUTE_TYPE if BYTES[product.result] == 2 else Reduction.MASK
    limits[Preference.MIN_ALIGNMENT_A_BYTES] = alignment(operands.a)
    limits[Preference.MIN_ALIGNMENT_B_BYTES] = alignment(operands.b)
    limits[Preference.MIN_ALIGNMENT_C_BYTES] = alignment(operands.d)
    limits[Preference.MIN_ALIGNMENT_D_BYTES] = alignment(operands.d)
    return limits


def fastest(candidates: Sequence[Algorithm], seconds: Callable[[Algorithm], float]) -> Algorithm:
    """The candidate with the smallest median time; candidates run alternately, and of equal ones the first wins."""
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(ROUNDS):
        for seconds_taken, candidate in zip(times, candidates, strict=True):
            seconds_taken.append(seconds(candidate))
    medians = [statistics.median(seconds_taken) for seconds_taken in times]
    return candidates[medians.index(min(medians))]


def tuned() -> int:
    """Number of algorithms to time, FASTOPT_CUDA_TUNE; 0: the first one is used."""
    text = os.environ.get("FASTOPT_CUDA_TUNE", "").strip() or "0"
    if not text.isdecimal():
        raise ValueError(f"FASTOPT_CUDA_TUNE must be a number of algorithms; got {text!r}")
    return int(text)


class Gemm:
    """The products of one device."""

    def __init__(self, gpu: Any) -> None:
        self.gpu = gpu
        with gpu.active():
            self.handle = Handle()
        self.workspace_size = WORKSPACE.get(gpu.capability[0], SMALL_WORKSPACE)
        self.tuned = tuned()
        # Held during launches that share the memory of a stream: two threads may launch on the same stream, and a
        # product may be more than one kernel.
        self.launching = threading.RLock()
        self._lock = threading.Lock()
        self._chosen: dict[tuple[Product, Operands], Algorithm | None] = {}
        self._workspaces: dict[int, Any] = {}
        self._scratch: dict[int, list[tuple[int, Any]]] = {}

    def prepare(self, stream: int, scratch: int = 0) -> None:
        """Allocate the workspace of a stream, and `scratch` bytes; to be called before the stream is captured."""
        self.workspace(stream)
        self.scratch(stream, scratch)

    def workspace(self, stream: int) -> int:
        """The address of `workspace_size` bytes, which the products of a stream use one after the other."""
        with self._lock:
            if stream not in self._workspaces:
                self._workspaces[stream] = self.gpu.allocate(self.workspace_size)
            return int(self._workspaces[stream].address)

    def scratch(self, stream: int, size: int) -> int:
        """The address of scratch memory of a stream, valid until the next call for the same stream.

        Memory that has become too small is kept, because a captured graph may use it: at most as much again, for sizes
        double.
        """
        with self._lock:
            kept = self._scratch.setdefault(stream, [])
            if size and (not kept or kept[-1][0] < size):
                size = max(size, 2 * kept[-1][0]) if kept else size
                kept.append((size, self.gpu.allocate(size)))
            return int(kept[-1][1].address) if kept else 0

    def supported(self, product: Product, aligned: int = ALIGNMENT) -> bool:
        """True if there is an algorithm for a product of arrays that are aligned to `aligned` bytes."""
        return known(product) and self.algorithm(product, Operands(*[ANY_ADDRESS + aligned] * 5)) is not None

    def algorithm(self, product: Product, operands: Operands) -> Algorithm | None:
        """The algorithm for a product of operands with these alignments; None: cuBLASLt has none."""
        key = product, operands.alignments()
        with self._lock:
            if key in self._chosen:
                return self._chosen[key]
        found = self._choose(product, operands)
        with self._lock:  # another thread may have been faster: one choice for all
            return self._chosen.setdefault(key, found)

    def _choose(self, product: Product, operands: Operands) -> Algorithm | None:
        with self.gpu.active():
            limits = preference(product, operands, self.workspace_size)
            found = self.handle.heuristic(problem(product, operands), limits, max(1, self.tuned))
        if len(found) < 2:
            return found[0] if found else None
        return self._timed(product, operands, found)

    def _timed(self, product: Product, operands: Operands, candidates: Sequence[Algorithm]) -> Algorithm:
        """The fastest candidate, timed on memory of our own with the same alignments."""
        from ..runtime.timing import Timer

        memory, at = [], []
        for size, address in zip(product.sizes(), operands, strict=True):
            memory.append(self.gpu.allocate(size + ALIGNMENT))
            at.append(memory[-1].address + alignment(address) % ALIGNMENT)
        calls = {c: Call(self, product, Operands(*at), c, 1.0, 0.0) for c in candidates}
        self.workspace(0)
        timer = Timer(self.gpu)
        for call in calls.values():  # the first run loads kernels
            call.run(0)
        return fastest(candidates, lambda candidate: timer.seconds(lambda: calls[candidate].run(0), 0))

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
    ) -> Call:
        """D = epilogue(alpha op(A) op(B) + beta D) on these addresses, which must stay valid as long as it is run.

        bias: read or written, as the epilogue says; aux: its mask, or the inputs of GELU.

        Raises:
            BlasLtError: cuBLASLt has no algorithm for it.
        """
        operands = Operands(a, b, d, bias, aux)
        algorithm = self.algorithm(product, operands)
        if algorithm is None:
            raise BlasLtError(f"cuBLASLt has no algorithm for {product} at {operands}")
        return Call(self, product, operands, algorithm, alpha, beta)


class Call:
    """A product bound to addresses. It never changes, so threads may share it and a graph may hold it."""

    def __init__(
        self, gemm: Gemm, product: Product, operands: Operands, algorithm: Algorithm, alpha: float, beta: float
    ) -> None:
        ffi = blaslt.ffi
        self._gemm, self._problem = gemm, problem(product, operands)
        self._operands = operands.a, operands.b, operands.d
        self._scalars = ffi.new("double[2]" if product.dtype == "float64" else "float[2]", [alpha, beta])
        self._algorithm = ffi.new("cublasLtMatmulAlgo_t *")
        ffi.buffer(self._algorithm)[:] = algorithm.code

    def run(self, stream: int) -> None:
        """Launch the product on a stream."""
        gemm = self._gemm
        workspace = gemm.workspace(stream), gemm.workspace_size
        with gemm.gpu.active(), gemm.launching:
            gemm.handle.matmul(self._problem, self._scalars, self._operands, self._algorithm, workspace, stream)


@cache
def _gemm(gpu: Any) -> Gemm:
    return Gemm(gpu)


class RehearsedGemm:
    """Products of a rehearsal: none is computed, and every product of our plans has an algorithm."""

    def __init__(self, gpu: RehearsedGpu) -> None:
        self.gpu = gpu

    def prepare(self, stream: int, scratch: int = 0) -> None:
        pass

    def scratch(self, stream: int, size: int) -> int:
        return self.gpu.allocate(size).address

    def supported(self, product: Product, aligned: int = ALIGNMENT) -> bool:
        return known(product)

    def call(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(run=lambda stream: None)


_starting = threading.Lock()


def gemm_of(gpu: Any) -> Any:
    """The products of a device; under Numba's simulator, a simulation of them."""
    if isinstance(gpu, RehearsedGpu):
        return RehearsedGemm(gpu)
    if SIMULATED:
        from .blaslt_simulator import SimulatedGemm

        return SimulatedGemm(gpu)
    with _starting:
        return _gemm(gpu)
