"""Dense layers on a GPU as calls to be timed: ours, with more epilogues, cuBLASLt's products alone, torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from fastopt.benchmarks.cuda.device import drawn, filled, numbers, tensor, the_gpu
from fastopt.benchmarks.cuda.limits import best_product
from fastopt.benchmarks.cuda.torch_graphs import captured, on_stream
from fastopt.benchmarks.cuda.turns import INNER, as_graph, graph_stream
from fastopt.benchmarks.cuda.work import NEAR, layer_of
from fastopt.benchmarks.peers import need
from fastopt.kernels import reference
from fastopt.kernels.cuda.dense.epilogues import sums_bytes
from fastopt.kernels.cuda.dense.gemm import gemm_of
from fastopt.kernels.cuda.dense.layer import Gradients, Outputs, run_backward, run_forward, shape_of
from fastopt.kernels.cuda.dense.products import (
    BYTES,
    SLOPES,
    forward_product,
    inputs_product,
    plan_backward,
    plan_forward,
    weights_product,
)
from fastopt.kernels.cuda.runtime.compile import SIMULATED
from fastopt.kernels.cuda.runtime.memory import DeviceArray
from fastopt.kernels.reference.maths import ACTIVATIONS

PASSES = {"forward": 1, "backward": 2}  # products of a layer
ALL, LAST = slice(None), slice(-128, None)  # rows and columns that are compared: all would take the host too long


class Dense:
    """A layer on the device: x, w, b, dy, and memory for y, dz, dx, dw and db."""

    def __init__(self, sizes: tuple[int, int, int], activation: str, kind: str) -> None:
        rows, inputs, outputs = sizes
        self.layer, self.activation, self.kind = layer_of(sizes, kind), activation, kind
        self.dtype = self.layer.dtype
        self.gpu, self.gemm = the_gpu(), gemm_of(the_gpu())
        shapes = {"x": (rows, inputs), "w": (inputs, outputs), "b": (outputs,), "dy": (rows, outputs)}
        scales = {"x": 1.0, "w": 2 / inputs**0.5, "b": 1.0, "dy": 1.0}
        self.arrays: dict[str, DeviceArray] = {}
        for seed, (name, shape) in enumerate(shapes.items()):
            values = drawn(int(np.prod(shape)), self.dtype, seed) * scales[name]
            self.arrays[name] = filled(shape, values, self.dtype)
        for name, like in {"y": "dy", "z": "dy", "dz": "dy", "dx": "x", "dw": "w", "db": "b"}.items():
            self.arrays[name] = filled(shapes[like], np.full(1, np.nan), self.dtype)
        self.at = {name: array.address for name, array in self.arrays.items()}
        self.sums = self.gpu.allocate(sums_bytes(shape_of(self.layer)))

    def forward(self, fused: frozenset[str] | None) -> Callable[[int], None]:
        """y = f(x w + b); fused: activations that may be epilogues, None: those that are exact."""
        plan = plan_forward(self.layer, self.activation, True, "", fused, self.gemm.supported)
        at, out = self.at, Outputs(self.at["y"])
        given = self.layer, self.activation, at["x"], at["w"], at["b"]
        return lambda stream: run_forward(self.gemm, stream, plan, *given, out)

    def backward(self) -> Callable[[int], None]:
        """dz, db, dw and dx, from y."""
        plan, at = plan_backward(self.layer, self.activation, supported=self.gemm.supported), self.at
        out = Gradients(at["dz"], at["dx"], at["dw"], at["db"])
        given = self.layer, self.activation, at["dy"], at["x"], at["w"], at["y"]
        return lambda stream: run_backward(self.gemm, stream, plan, *given, out, self.sums.address)

    def flops(self, which: str) -> float:
        return 2.0 * PASSES[which] * self.layer.rows * self.layer.inputs * self.layer.outputs

    def moved(self, which: str) -> int:
        """Each array once: x, w, b, y; backward dy, y, x, w and the three gradients."""
        sizes = {name: array.size for name, array in self.arrays.items()}
        names = ("x", "w", "b", "y") if which == "forward" else ("dy", "y", "x", "w", "dx", "dw", "db")
        return sum(sizes[name] for name in names) * BYTES[self.dtype]

    # -- checks

    def _host(self, name: str, rows: slice = LAST, columns: slice = LAST) -> np.ndarray:
        array = self.arrays[name]
        found = numbers(array, self.dtype).reshape(array.shape if array.shape[1:] else (1, -1))
        return found[rows, columns].astype("float64")

    def check(self, which: str) -> None:
        """AssertionError unless the last call's results, in the last rows and columns, are those of float64."""
        if which == "forward":
            x, w, b = self._host("x", columns=ALL), self._host("w", rows=ALL), self._host("b")
            theirs = np.empty((len(x), w.shape[1]))
            reference.dense_forward(x, w, b[0], self.activation, theirs)
            self._near("y", theirs, np.abs(x) @ np.abs(w) + np.abs(b))
            return
        for name, dz_at, other in (("dx", (LAST, ALL), "w"), ("dw", (ALL, LAST), "x"), ("db", (ALL, LAST), "")):
            dz = self._host("dy", *dz_at) * ACTIVATIONS[self.activation].slope(self._host("y", *dz_at))
            if name == "dx":
                w = self._host(other, columns=ALL)
                self._near(name, dz @ w.T, np.abs(dz) @ np.abs(w).T)
            else:
                x = self._host(other, rows=ALL) if other else np.ones((len(dz), 1))
                self._near(name, x.T @ dz, np.abs(x).T @ np.abs(dz))

    def _near(self, name: str, theirs: np.ndarray, sizes: np.ndarray) -> None:
        np.testing.assert_allclose(self._host(name), theirs, rtol=0, atol=NEAR[self.kind] * sizes.max())


def alone(which: str, dense: Dense) -> Callable[[int], None]:
    """Only the products of a pass, each by the fastest algorithm of cuBLASLt."""
    layer = dense.layer
    products = [forward_product(layer)] if which == "forward" else [weights_product(layer), inputs_product(layer)]
    calls = [best_product(product) for product in products]

    def call(stream: int) -> None:
        for one in calls:
            one(stream)

    return call


@contextmanager
def _tf32(kind: str) -> Iterator[None]:
    """While open, torch multiplies float32 in TF32 if `kind` is that."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def by_torch(which: str, dense: Dense) -> Callable[[int], None]:
    """The same by torch, on its current stream and into our memory; relu alone. Raises Absent."""
    need("torch")
    import torch

    x, w, b, dy, y = (tensor(dense.arrays[name], dense.dtype) for name in ("x", "w", "b", "dy", "y"))
    places = {name: tensor(dense.arrays[name], dense.dtype) for name in ("dx", "dw", "db")}

    def forward(_: int) -> None:
        with _tf32(dense.kind):
            torch.relu_(torch.addmm(b, x, w, out=y))

    def backward(_: int) -> None:
        with _tf32(dense.kind):
            dz = torch.ops.aten.threshold_backward(dy, y, 0)
            torch.mm(x.T, dz, out=places["dw"])
            torch.sum(dz, 0, out=places["db"])
            torch.mm(dz, w.T, out=places["dx"])

    return {"forward": forward, "backward": backward}[which]


def dense_by(name: str, which: str, dense: Dense) -> Callable[[int], None]:
    """A pass of a layer, on a stream: by fastopt, fastopt-epilogues, cublaslt or torch-eager. Raises Absent."""
    if name == "cublaslt":
        return alone(which, dense)
    if name == "torch-eager":
        return by_torch(which, dense)
    if which == "backward":
        return dense.backward()
    return dense.forward(frozenset({*SLOPES, "linear"}) if name == "fastopt-epilogues" else None)


def graph_by(name: str, run: Callable[[int], None]) -> Callable[[], None]:
    """INNER runs of the call of `dense_by` as one CUDA graph, on the stream of graphs."""
    if name != "torch-eager" or SIMULATED:
        return as_graph(run)

    def several() -> None:
        for _ in range(INNER):
            run(0)

    return on_stream(graph_stream().handle, captured(several))
