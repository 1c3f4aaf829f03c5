"""cuBLASLt on a machine without a device: the real library for descriptors, a simulation of the products."""

from __future__ import annotations

from collections import Counter

from fastopt.kernels.cuda.dense import blaslt
from fastopt.kernels.cuda.dense.blaslt import (
    Compute,
    Epilogue,
    Layout,
    Matmul,
    Operation,
    Order,
    Preference,
    Status,
    ffi,
)
from fastopt.kernels.cuda.dense.blaslt_simulator import matmul
from fastopt.kernels.cuda.dense.products import TYPES, Matrix, Product

KINDS = {number: kind for kind, number in TYPES.items()}


class Pointed:
    """A descriptor, by its pointer."""

    def __init__(self, kind, pointer):
        self.kind, self.pointer = kind, pointer

    __getitem__ = blaslt.Descriptor.__getitem__


class Library:
    """The real library, whose calls that need a device are simulated on memory of the process."""

    def __init__(self, real):
        self.real, self.calls, self.asked = real, Counter(), []
        self.lacks = lambda epilogue, alignments: False
        self.algorithms = 1
        self.status = Status.SUCCESS

    def __getattr__(self, name):
        return getattr(self.real, name)

    def cublasLtCreate(self, place):
        self.calls["create"] += 1
        place[0] = ffi.cast("void *", 0x1234)
        return self.status

    @property
    def cublasLtDestroy(self):
        return lambda pointer: self.calls.update(["destroy"])

    def cublasLtMatmulAlgoGetHeuristic(self, handle, operation, a, b, c, d, wish, wanted, results, found):
        self.calls["heuristic"] += 1
        assert handle == ffi.cast("void *", 0x1234)
        assert c == d
        wish, operation = Pointed("MatmulPreference", wish), Pointed("MatmulDesc", operation)
        asked = {attribute: wish[attribute] for attribute in Preference}
        self.asked.append(asked)
        if self.lacks(operation[Matmul.EPILOGUE], asked):
            return Status.NOT_SUPPORTED
        found[0] = min(wanted, self.algorithms)
        for i in range(found[0]):
            results[i].algo.data[0], results[i].algo.data[7] = 1000 + i, operation[Matmul.EPILOGUE]
            results[i].workspaceSize, results[i].wavesCount, results[i].state = 64 * i, 0.5, Status.SUCCESS
        if found[0] > 2:
            results[1].state = Status.NOT_SUPPORTED
        return Status.SUCCESS

    def cublasLtMatmul(self, handle, operation, alpha, A, a, B, b, beta, C, c, D, d, algo, workspace, size, stream):
        self.calls["matmul"] += 1
        self.calls["algorithm", algo.data[0]] += 1
        self.calls["stream", int(ffi.cast("intptr_t", stream))] += 1
        assert (C, c) == (D, d)
        assert int(ffi.cast("intptr_t", workspace)) % 256 == 0
        assert size == 32 << 20
        operation, layouts = Pointed("MatmulDesc", operation), [Pointed("MatrixLayout", p) for p in (a, b, d)]
        assert algo.data[7] == operation[Matmul.EPILOGUE]
        assert {layout[Layout.ORDER] for layout in layouts} == {Order.COL}
        kinds = [KINDS[layout[Layout.TYPE]] for layout in layouts]
        assert kinds[0] == kinds[1]
        matrices = [Matrix(*(layout[at] for at in (Layout.ROWS, Layout.COLS, Layout.LD))) for layout in layouts]
        product = Product(
            *matrices,
            operation[Matmul.TRANSA] == Operation.T,
            operation[Matmul.TRANSB] == Operation.T,
            kinds[0],
            kinds[2],
            operation[Matmul.COMPUTE_TYPE] == Compute.C_32F_FAST_TF32,
            Epilogue(operation[Matmul.EPILOGUE]),
            operation[Matmul.EPILOGUE_AUX_LD],
        )
        assert (product.compute, product.scale) == (operation[Matmul.COMPUTE_TYPE], operation[Matmul.SCALE_TYPE])
        scalars = [ffi.cast("double *" if product.dtype == "float64" else "float *", p)[0] for p in (alpha, beta)]
        places = [int(ffi.cast("intptr_t", p)) for p in (A, B, D)]
        matmul(product, *places, operation[Matmul.BIAS_POINTER], operation[Matmul.EPILOGUE_AUX_POINTER], *scalars)
        return self.status
