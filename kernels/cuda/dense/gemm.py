"""Products on a GPU by cuBLASLt: algorithms chosen once, memory laid out beforehand, calls that can be captured.

    gemm = gemm_of(gpu)                      # one for each device, for all threads
    call = gemm.call(product, a, b, d)       # chooses an algorithm, and binds it to addresses
    gemm.prepare(stream)                     # memory for what is to run on a stream
    call.run(stream)                         # launches; allocates nothing, waits for nothing, may be captured

What is captured uses the memory of the stream it was captured on, so nothing else may run there while it is replayed on
another.

cuBLASLt takes tens of microseconds to choose an algorithm, so a choice is kept for all that it depends on: the product
and how its arrays are aligned. With FASTOPT_CUDA_TUNE=n the n algorithms that promise most are timed, and the fastest
is taken; which one that is, and so the last bits of results, may differ from process to process.
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
SMALL_WORKSPACE = 4 * MIB  # for all others
SOMEWHERE = 1 << 40  # an address, for questions about alignment
ROUNDS = 5  # of timing


class Places(NamedTuple):
    """Where the operands of a product lie; 0: there is none."""

    a: int
    b: int
    d: int
    bias: int = 0  # or its gradient
    aux: int = 0

    def alignments(self) -> Places:
        return Places(*map(alignment, self))


def problem(product: Product, places: Places) -> Problem:
    """A product in cuBLASLt's words."""
    operation = blaslt.matmul_descriptor(product.compute, product.scale)
    operation[Matmul.TRANSA] = Operation.T if product.transpose_a else Operation.N
    operation[Matmul.TRANSB] = Operation.T if product.transpose_b else Operation.N
    operation[Matmul.EPILOGUE] = product.epilogue
    if product.reads_bias or product.sums:
        operation[Matmul.BIAS_POINTER] = places.bias
    if product.aux_stride:
        operation[Matmul.EPILOGUE_AUX_POINTER] = places.aux
        operation[Matmul.EPILOGUE_AUX_LD] = product.aux_stride
    kinds = product.dtype, product.dtype, product.result
    a, b, d = (_layout(m, kind) for m, kind in zip((product.a, product.b, product.d), kinds, strict=True))
    return Problem(operation, a, b, d)


def _layout(matrix: Matrix, kind: str) -> Descriptor:
    return blaslt.layout_descriptor(TYPES[kind], *matrix)


def preference(product: Product, places: Places, workspace: int) -> Descriptor:
    """What an algorithm must do with."""
    wish = blaslt.preference_descriptor()
    wish[Preference.MAX_WORKSPACE_BYTES] = workspace
    # Parts of a sum are not to be rounded to 16 bits before they are added up.
    wish[Preference.REDUCTION_SCHEME_MASK] = Reduction.COMPUTE_TYPE if BYTES[product.result] == 2 else Reduction.MASK
    wish[Preference.MIN_ALIGNMENT_A_BYTES] = alignment(places.a)
    wish[Preference.MIN_ALIGNMENT_B_BYTES] = alignment(places.b)
    wish[Preference.MIN_ALIGNMENT_C_BYTES] = alignment(places.d)
    wish[Preference.MIN_ALIGNMENT_D_BYTES] = alignment(places.d)
    return wish


def fastest(candidates: Sequence[Algorithm], seconds: Callable[[Algorithm], float]) -> Algorithm:
    """The one with the smallest median time; candidates take turns, and of equal ones the first wins."""
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(ROUNDS):
        for taken, candidate in zip(times, candidates, strict=True):
            taken.append(seconds(candidate))
    medians = [statistics.median(taken) for taken in times]
    return candidates[medians.index(min(medians))]


def tuned() -> int:
    """How many algorithms are timed: FASTOPT_CUDA_TUNE; 0: none, the first is taken."""
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
        # Held while launching what shares the memory of a stream: two threads may launch on the same one, and a product
        # may be more than one kernel.
        self.launching = threading.RLock()
        self._lock = threading.Lock()
        self._chosen: dict[tuple[Product, Places], Algorithm | None] = {}
        self._workspaces: dict[int, Any] = {}
        self._scratch: dict[int, list[tuple[int, Any]]] = {}

    def prepare(self, stream: int, scratch: int = 0) -> None:
        """Have memory ready for calls on a stream, and `scratch` bytes besides; to be called before it is captured."""
        self.workspace(stream)
        self.scratch(stream, scratch)

    def workspace(self, stream: int) -> int:
        """The address of `workspace_size` bytes for what runs on a stream, one after the other."""
        with self._lock:
            if stream not in self._workspaces:
                self._workspaces[stream] = self.gpu.allocate(self.workspace_size)
            return int(self._workspaces[stream].address)

    def scratch(self, stream: int, size: int) -> int:
        """The address of memory for what runs on a stream, until `scratch` is called for it again.

        What has grown too small is kept, because a captured graph may use it: at most as much again, as sizes double.
        """
        with self._lock:
            kept = self._scratch.setdefault(stream, [])
            if size and (not kept or kept[-1][0] < size):
                size = max(size, 2 * kept[-1][0]) if kept else size
                kept.append((size, self.gpu.allocate(size)))
            return int(kept[-1][1].address) if kept else 0

    def supported(self, product: Product, aligned: int = ALIGNMENT) -> bool:
        """Whether there is an algorithm for a product of arrays that are aligned to so many bytes at least."""
        return known(product) and self.algorithm(product, Places(*[SOMEWHERE + aligned] * 5)) is not None

    def algorithm(self, product: Product, places: Places) -> Algorithm | None:
        """How a product of arrays with such alignments is computed; None: cuBLASLt cannot."""
        key = product, places.alignments()
        with self._lock:
            if key in self._chosen:
                return self._chosen[key]
        found = self._choose(product, places)
        with self._lock:  # another thread may have been faster: one choice for all
            return self._chosen.setdefault(key, found)

    def _choose(self, product: Product, places: Places) -> Algorithm | None:
        with self.gpu.active():
            wish = preference(product, places, self.workspace_size)
            found = self.handle.heuristic(problem(product, places), wish, max(1, self.tuned))
        if len(found) < 2:
            return found[0] if found else None
        return self._timed(product, places, found)

    def _timed(self, product: Product, places: Places, candidates: Sequence[Algorithm]) -> Algorithm:
        """The fastest, on memory of our own with the same alignments."""
        from ..runtime.timing import Timer

        memory, at = [], []
        for size, address in zip(product.sizes(), places, strict=True):
            memory.append(self.gpu.allocate(size + ALIGNMENT))
            at.append(memory[-1].address + alignment(address) % ALIGNMENT)
        calls = {c: Call(self, product, Places(*at), c, 1.0, 0.0) for c in candidates}
        self.workspace(0)
        timer = Timer(self.gpu)
        for call in calls.values():  # what is first run is loaded first
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
        places = Places(a, b, d, bias, aux)
        algorithm = self.algorithm(product, places)
        if algorithm is None:
            raise BlasLtError(f"cuBLASLt has no algorithm for {product} at {places}")
        return Call(self, product, places, algorithm, alpha, beta)


class Call:
    """A product bound to addresses. Nothing of it changes, so that threads may share it and a graph may hold it."""

    def __init__(
        self, gemm: Gemm, product: Product, places: Places, algorithm: Algorithm, alpha: float, beta: float
    ) -> None:
        ffi = blaslt.ffi
        self._gemm, self._problem = gemm, problem(product, places)
        self._places = places.a, places.b, places.d
        self._scalars = ffi.new("double[2]" if product.dtype == "float64" else "float[2]", [alpha, beta])
        self._algorithm = ffi.new("cublasLtMatmulAlgo_t *")
        ffi.buffer(self._algorithm)[:] = algorithm.code

    def run(self, stream: int) -> None:
        """Once all that was given to the stream before is done."""
        gemm = self._gemm
        workspace = gemm.workspace(stream), gemm.workspace_size
        with gemm.gpu.active(), gemm.launching:
            gemm.handle.matmul(self._problem, self._scalars, self._places, self._algorithm, workspace, stream)


@cache
def _gemm(gpu: Any) -> Gemm:
    return Gemm(gpu)


class RehearsedGemm:
    """Products of a device that is not there: none is made, and all that our plans ask for exist."""

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
