"""Dense layers on the device: products by cuBLASLt, with its epilogues where plans have them, and our kernels.

`run_forward` and `run_backward` carry out a plan of `products.py` on addresses. The verbs, on arrays of any library,
plan for the one call; a network plans once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

from ..runtime.array_interface import current_stream, gpu_of, see
from .epilogues import Shape, activate, slopes, sums_bytes
from .gemm import gemm_of
from .mixed import narrow
from .products import BYTES, TYPES, Backward, Forward, Layer, Product, alignment, plan_backward, plan_forward

ALIGNED = 256  # bytes that the parts of our own memory begin at


class Outputs(NamedTuple):
    """Addresses of what a forward pass writes; 0: not there."""

    y: int
    z: int = 0
    mask: int = 0


class Gradients(NamedTuple):
    """Addresses of what a backward pass writes; 0: not wanted. dz may be dy.

    narrow: dz in the dtype of the products, where the layer's outputs are of another.
    """

    dz: int
    dx: int = 0
    dw: int = 0
    db: int = 0
    narrow: int = 0


def shape_of(layer: Layer) -> Shape:
    return Shape(layer.rows, layer.outputs, layer.y.stride, layer.output or layer.dtype, layer.gradient)


def run_forward(
    gemm: Any, stream: int, plan: Forward, layer: Layer, activation: str, x: int, w: int, b: int, out: Outputs
) -> None:
    """y = f(x w + b)."""
    into = out.z if plan.into == "z" else out.y
    aux = {"": 0, "mask": out.mask, "z": out.z}[plan.aux]
    added = plan.product.reads_bias
    gemm.call(plan.product, w, x, into, b if added else 0, aux).run(stream)
    if plan.activate:
        activate(gemm.gpu, stream, activation, into, 0 if added else b, out.y, shape_of(layer))


def run_backward(
    gemm: Any,
    stream: int,
    plan: Backward,
    layer: Layer,
    activation: str,
    dy: int,
    x: int,
    w: int,
    s: int,
    out: Gradients,
    sums: int = 0,
    below: tuple[int, int] = (0, 0),
) -> None:
    """dz = dy f'(s), db, dw and dx.

    s: y or z, as the activation's row says; sums: `sums_bytes` of memory; below: mask or z, and db, of the layer below,
    where the plan makes its dz, and db, of dx.
    """
    dz = dy
    if plan.dz == "kernel":
        dz = out.dz
        slopes(gemm.gpu, stream, activation, dy, s, dz, sums, out.db if plan.db == "kernel" else 0, shape_of(layer))
    elif plan.db == "kernel":
        slopes(gemm.gpu, stream, "linear", dz, dz, 0, sums, out.db, shape_of(layer))
    if layer.output:
        narrow(gemm.gpu, stream, layer.dtype, dz, out.narrow, layer.rows * layer.y.stride)
        dz = out.narrow
    if plan.weights:
        gemm.call(plan.weights, dz, x, out.dw, out.db if plan.db == "weights" else 0).run(stream)
    if plan.inputs:
        aux, db = below if plan.inputs.aux_stride else (0, 0)
        gemm.call(plan.inputs, w, dz, out.dx, db if plan.inputs.sums else 0, aux).run(stream)


# ---------------------------------------------------------------- verbs
@lru_cache(maxsize=1024)
def _forward_plan(gemm: Any, aligned: int, layer: Layer, activation: str, bias: bool, keep: str) -> Forward:
    return plan_forward(layer, activation, bias, keep, None, _supported(gemm, aligned))


@lru_cache(maxsize=1024)
def _backward_plan(gemm: Any, aligned: int, layer: Layer, activation: str, dx: bool, dw: bool, db: bool) -> Backward:
    return plan_backward(layer, activation, dx, dw, db, _supported(gemm, aligned))


def _supported(gemm: Any, aligned: int) -> Callable[[Product], bool]:
    return partial(gemm.supported, aligned=aligned)


def _seen(arrays: tuple[Any, ...]) -> tuple[list[int], str]:
    """The addresses of arrays, None: 0, and their dtype."""
    seen = [None if array is None else see(array) for array in arrays]
    kinds = {s.dtype for s in seen if s is not None}
    if len(kinds) > 1 or not kinds <= set(TYPES):
        raise TypeError(f"arrays must be of one dtype, {', '.join(TYPES)}; got {', '.join(sorted(kinds))}")
    return [s.address if s is not None else 0 for s in seen], kinds.pop()


def _size(array: Any) -> tuple[int, ...]:
    return see(array).shape


def dense_forward(x: Any, w: Any, b: Any, activation: str, y: Any, z: Any = None, tf32: bool = False) -> None:
    """y = f(x w + b), and z the pre-activation, if given: arrays on one device, C-contiguous, none overlapping another.

    tf32: let products of float32 be computed from operands rounded to 10 bits, several times as fast.
    """
    (rows, inputs), outputs = _size(x), _size(w)[1]
    if not rows * outputs:
        return
    places, kind = _seen((x, w, b, y, z))
    gpu, stream = gpu_of(places), current_stream(y)
    layer = Layer(rows, inputs, outputs, kind, tf32)
    X, W, B, Y, Z = places
    if not inputs:  # a sum of nothing
        with gpu.active():
            gpu.zero(Z or Y, rows * outputs * BYTES[kind], stream)
        activate(gpu, stream, activation, Z or Y, B, Y, shape_of(layer))
        return
    gemm = gemm_of(gpu)
    plan = _forward_plan(gemm, min(map(alignment, places)), layer, activation, b is not None, "z" if Z else "")
    run_forward(gemm, stream, plan, layer, activation, X, W, B, Outputs(Y, Z))


def dense_backward(
    dy: Any, x: Any, w: Any, s: Any, activation: str, dx: Any, dw: Any, db: Any, tf32: bool = False
) -> None:
    """Write dx, dw and db (each may be None) for y = f(x w + b); s is y or z, as the activation's row says.

    dy is left alone.
    """
    (rows, inputs), outputs = _size(x), _size(w)[1]
    places, kind = _seen((dy, x, w, s, dx, dw, db))
    gpu, stream = gpu_of(places), current_stream(dy)
    DY, X, W, S, DX, DW, DB = places
    if not rows * outputs:
        with gpu.active():
            for address, count in ((DX, rows * inputs), (DW, inputs * outputs), (DB, outputs)):
                if address and count:
                    gpu.zero(address, count * BYTES[kind], stream)
        return
    gemm, layer = gemm_of(gpu), Layer(rows, inputs, outputs, kind, tf32)
    wanted = bool(DX and inputs), bool(DW and inputs), bool(DB)
    plan = _backward_plan(gemm, min(map(alignment, places)), layer, activation, *wanted)
    size = -(-rows * outputs * BYTES[kind] // ALIGNED) * ALIGNED if plan.dz == "kernel" else 0
    with gemm.launching:  # dz is the caller's until all that reads it has been launched
        memory = gemm.scratch(stream, size + sums_bytes(shape_of(layer)))
        out = Gradients(memory, DX, DW, DB)
        run_backward(gemm, stream, plan, layer, activation, DY, X, W, S, out, memory + size)
