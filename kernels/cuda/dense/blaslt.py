"""cuBLASLt, opened with cffi: its functions, constants of its header, descriptors that free themselves.

Everything but `Handle` works without a driver and a device, so declarations and constants are tested anywhere: an
attribute that is set is read back, and the constants are compared with the header that comes with the library.
"""

from __future__ import annotations

import logging
import sys
from enum import Enum, IntEnum
from functools import cache
from typing import Any, NamedTuple

import cffi

from ..runtime.driver import CudaError

log = logging.getLogger("fastopt")

ffi = cffi.FFI()
ffi.cdef("""
    typedef struct { uint64_t data[8]; } cublasLtMatmulAlgo_t;
    typedef struct {
        cublasLtMatmulAlgo_t algo;
        size_t workspaceSize;
        int state;
        float wavesCount;
        int reserved[4];
    } cublasLtMatmulHeuristicResult_t;
    size_t cublasLtGetVersion(void);
    size_t cublasLtGetCudartVersion(void);
    const char *cublasLtGetStatusName(int status);
    const char *cublasLtGetStatusString(int status);
    int cublasLtCreate(void **handle);
    int cublasLtDestroy(void *handle);
    int cublasLtMatmulDescCreate(void **descriptor, int compute, int scale);
    int cublasLtMatmulDescDestroy(void *descriptor);
    int cublasLtMatmulDescSetAttribute(void *descriptor, int attribute, const void *value, size_t size);
    int cublasLtMatmulDescGetAttribute(void *descriptor, int attribute, void *value, size_t size, size_t *written);
    int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t columns, int64_t stride);
    int cublasLtMatrixLayoutDestroy(void *layout);
    int cublasLtMatrixLayoutSetAttribute(void *layout, int attribute, const void *value, size_t size);
    int cublasLtMatrixLayoutGetAttribute(void *layout, int attribute, void *value, size_t size, size_t *written);
    int cublasLtMatmulPreferenceCreate(void **preference);
    int cublasLtMatmulPreferenceDestroy(void *preference);
    int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t size);
    int cublasLtMatmulPreferenceGetAttribute(void *preference, int attribute, void *value, size_t size,
                                             size_t *written);
    int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d,
                                       void *preference, int wanted, cublasLtMatmulHeuristicResult_t *results,
                                       int *found);
    int cublasLtMatmul(void *handle, void *operation, const void *alpha, const void *A, void *a, const void *B, void *b,
                       const void *beta, const void *C, void *c, void *D, void *d, const cublasLtMatmulAlgo_t *algo,
                       void *workspace, size_t workspaceSize, void *stream);
""")

NAMES = [("cublasLt64_{}.dll" if sys.platform == "win32" else "libcublasLt.so.{}").format(n) for n in (13, 12)]


# ---------------------------------------------------------------- constants, by the names that the header gives them
class Status(IntEnum):
    """CUBLAS_STATUS_..."""

    SUCCESS = 0
    NOT_INITIALIZED = 1
    ALLOC_FAILED = 3
    INVALID_VALUE = 7
    ARCH_MISMATCH = 8
    MAPPING_ERROR = 11
    EXECUTION_FAILED = 13
    INTERNAL_ERROR = 14
    NOT_SUPPORTED = 15
    LICENSE_ERROR = 16


class DataType(IntEnum):
    """CUDA_..."""

    R_32F = 0
    R_64F = 1
    R_16F = 2
    R_16BF = 14


class Compute(IntEnum):
    """CUBLAS_COMPUTE_..."""

    C_32F = 68
    C_64F = 70
    C_32F_FAST_TF32 = 77


class Operation(IntEnum):
    """CUBLAS_OP_..."""

    N = 0
    T = 1


class Order(IntEnum):
    """CUBLASLT_ORDER_..."""

    COL = 0
    ROW = 1


class Epilogue(IntEnum):
    """CUBLASLT_EPILOGUE_...: the combinations of bits that exist."""

    DEFAULT = 1
    RELU = 2
    RELU_AUX = 2 | 128
    BIAS = 4
    RELU_BIAS = 2 | 4
    RELU_AUX_BIAS = 2 | 128 | 4
    DRELU = 8 | 128
    DRELU_BGRAD = 8 | 128 | 16
    GELU = 32
    GELU_AUX = 32 | 128
    GELU_BIAS = 32 | 4
    GELU_AUX_BIAS = 32 | 128 | 4
    DGELU = 64 | 128
    DGELU_BGRAD = 64 | 128 | 16
    BGRADA = 256
    BGRADB = 512


class Reduction(IntEnum):
    """CUBLASLT_REDUCTION_SCHEME_...: ways to add up partial sums."""

    COMPUTE_TYPE = 2  # in the type of the arithmetic
    MASK = 7  # any way


class Attribute(Enum):
    """The number of an attribute and the C type of its value."""

    @property
    def number(self) -> int:
        return int(self.value[0])

    @property
    def kind(self) -> str:
        return str(self.value[1])


class Matmul(Attribute):
    """CUBLASLT_MATMUL_DESC_..."""

    COMPUTE_TYPE = (0, "int32_t")
    SCALE_TYPE = (1, "int32_t")
    TRANSA = (3, "int32_t")
    TRANSB = (4, "int32_t")
    EPILOGUE = (7, "uint32_t")
    BIAS_POINTER = (8, "uintptr_t")
    EPILOGUE_AUX_POINTER = (11, "uintptr_t")
    EPILOGUE_AUX_LD = (12, "int64_t")
    BIAS_DATA_TYPE = (26, "int32_t")


class Layout(Attribute):
    """CUBLASLT_MATRIX_LAYOUT_..."""

    TYPE = (0, "uint32_t")
    ORDER = (1, "int32_t")
    ROWS = (2, "uint64_t")
    COLS = (3, "uint64_t")
    LD = (4, "int64_t")


class Preference(Attribute):
    """CUBLASLT_MATMUL_PREF_..."""

    MAX_WORKSPACE_BYTES = (1, "uint64_t")
    REDUCTION_SCHEME_MASK = (3, "uint32_t")
    MIN_ALIGNMENT_A_BYTES = (5, "uint32_t")
    MIN_ALIGNMENT_B_BYTES = (6, "uint32_t")
    MIN_ALIGNMENT_C_BYTES = (7, "uint32_t")
    MIN_ALIGNMENT_D_BYTES = (8, "uint32_t")


# ---------------------------------------------------------------- the library
class BlasLtError(CudaError):
    """cuBLASLt cannot be opened, or a call of it failed; `status` is the returned status, None without a call."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def _path() -> str | None:
    """Path of the library in a wheel, conda or a toolkit, by the finder that comes with numba-cuda; else None."""
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError:
        return None
    try:
        return load_nvidia_dynamic_lib("cublasLt").abs_path
    except (DynamicLibNotFoundError, RuntimeError, OSError):
        return None


@cache
def library() -> Any:
    """The library, opened.

    Raises:
        BlasLtError: it is not installed.
    """
    path, reasons = _path(), []
    for name in (path,) if path else NAMES:
        try:
            return ffi.dlopen(name)
        except OSError as error:
            reasons.append(str(error).partition("  Additionally")[0])  # without the list of folders that cffi searched
    raise BlasLtError(f"cuBLASLt is not installed (pip install 'fastopt[cuda]' brings it): {'; '.join(reasons)}")


def lt_version() -> tuple[int, int, int]:
    """The library's version.

    13.0.2 calls itself 130002: two digits for each part but the first.
    """
    number = int(library().cublasLtGetVersion())
    return number // 10000, number // 100 % 100, number % 100


def cudart_version() -> tuple[int, int]:
    """The CUDA version that the library was built for."""
    number = int(library().cublasLtGetCudartVersion())
    return number // 1000, number % 1000 // 10


def check(status: int, doing: str) -> None:
    """Raise BlasLtError with the name and meaning of a status, unless it is success."""
    if status:
        lt = library()
        name = ffi.string(lt.cublasLtGetStatusName(status)).decode()
        text = ffi.string(lt.cublasLtGetStatusString(status)).decode()
        raise BlasLtError(f"{doing}: {name} ({status}): {text}", status)


class Descriptor:
    """One of cuBLASLt's descriptors: `kind` is its name there, `arguments` those of its create function."""

    def __init__(self, kind: str, *arguments: int) -> None:
        lt, pointer = library(), ffi.new("void **")
        self.kind = kind
        check(getattr(lt, f"cublasLt{kind}Create")(pointer, *arguments), f"creating a {kind}")
        self.pointer = ffi.gc(pointer[0], getattr(lt, f"cublasLt{kind}Destroy"))

    def __setitem__(self, attribute: Attribute, value: int) -> None:
        data = ffi.new(f"{attribute.kind} *", int(value))
        set_attribute = getattr(library(), f"cublasLt{self.kind}SetAttribute")
        status = set_attribute(self.pointer, attribute.number, data, ffi.sizeof(attribute.kind))
        check(status, f"setting {attribute.name} of a {self.kind} to {value}")

    def __getitem__(self, attribute: Attribute) -> int:
        data, written = ffi.new(f"{attribute.kind} *"), ffi.new("size_t *")
        get_attribute = getattr(library(), f"cublasLt{self.kind}GetAttribute")
        status = get_attribute(self.pointer, attribute.number, data, ffi.sizeof(attribute.kind), written)
        check(status, f"reading {attribute.name} of a {self.kind}")
        return int(data[0])


def matmul_descriptor(compute: Compute, scale: DataType) -> Descriptor:
    return Descriptor("MatmulDesc", compute, scale)


def layout_descriptor(kind: DataType, rows: int, columns: int, stride: int) -> Descriptor:
    """A matrix in column-major order; `stride`: elements from a column to the next."""
    return Descriptor("MatrixLayout", kind, rows, columns, stride)


def preference_descriptor() -> Descriptor:
    return Descriptor("MatmulPreference")


class Algorithm(NamedTuple):
    """cuBLASLt's description of an algorithm, valid for one version of the library."""

    code: bytes
    workspace: int  # bytes
    waves: float  # number of times that its blocks fill the device


class Problem(NamedTuple):
    """Descriptors of a product: the operation and the layouts of A, B and D; C has the layout of D."""

    operation: Descriptor
    a: Descriptor
    b: Descriptor
    d: Descriptor


class Handle:
    """cuBLASLt's state for the device that is current when it is made. Any thread may use it."""

    def __init__(self) -> None:
        pointer = ffi.new("void **")
        check(library().cublasLtCreate(pointer), "starting cuBLASLt")
        self.pointer = ffi.gc(pointer[0], library().cublasLtDestroy)

    def heuristic(self, problem: Problem, preference: Descriptor, wanted: int) -> list[Algorithm]:
        """At most `wanted` algorithms for a product, those first that cuBLASLt expects to be fastest; maybe none."""
        lt, found = library(), ffi.new("int *")
        results = ffi.new("cublasLtMatmulHeuristicResult_t[]", wanted)
        operation, a, b, d = (part.pointer for part in problem)
        status = lt.cublasLtMatmulAlgoGetHeuristic(
            self.pointer, operation, a, b, d, d, preference.pointer, wanted, results, found
        )
        if status in (Status.NOT_SUPPORTED, Status.INVALID_VALUE, Status.ARCH_MISMATCH):
            if status == Status.INVALID_VALUE:  # more likely our mistake than a product that cuBLASLt does not support
                log.warning("cuBLASLt calls a product invalid, so another way is taken")
            return []
        check(status, "choosing an algorithm")
        return [
            Algorithm(bytes(ffi.buffer(ffi.addressof(r, "algo"))), int(r.workspaceSize), float(r.wavesCount))
            for r in results[0 : found[0]]
            if r.state == Status.SUCCESS
        ]

    def matmul(
        self,
        problem: Problem,
        scalars: Any,
        operands: tuple[int, int, int],
        algorithm: Any,
        workspace: tuple[int, int],
        stream: int,
    ) -> None:
        """D = alpha op(A) op(B) + beta D, and the epilogue, in the order of a stream. Nothing is allocated.

        scalars: alpha and beta, of the operation's scale type; operands: addresses of A, B and D; algorithm: a
        cublasLtMatmulAlgo_t; workspace: its address and size; stream: a handle.
        """
        lt, operation = library(), problem.operation.pointer
        a, b, d = operands
        status = lt.cublasLtMatmul(
            self.pointer, operation, scalars, ffi.cast("void *", a), problem.a.pointer, ffi.cast("void *", b),
            problem.b.pointer, scalars + 1, ffi.cast("void *", d), problem.d.pointer, ffi.cast("void *", d),
            problem.d.pointer, algorithm, ffi.cast("void *", workspace[0]), workspace[1],
            ffi.cast("void *", stream),
        )  # fmt: skip
        check(status, "multiplying")
