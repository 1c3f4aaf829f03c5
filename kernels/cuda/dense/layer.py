"""Dense layers on the device: products by cuBLASLt, with its epilogues where plans have them, and our kernels.

`run_forward` and `run_backward` carry out a plan of `products.py` on addresses, launch by launch. The verbs, on arrays
of any library, plan for the one call; a network plans once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

from ... import costs
from ...profile import Cost
from ..runtime.array_interface import current_stream, gpu_of, see
from .epilogues import Shape, activate, sums_bytes, tile_slopes, total_sums
from .gemm import gemm_of
from .mixed import narrow
from .products import BYTES, TYPES, Backward, Forward, Layer, Product, alignment, plan_backward, plan_forward

ALIGNED = 256  # bytes: alignment of the arrays in our own memory

# Receives each launch of a layer with a function that computes its cost: does it at once, or lists it.
Emit = Callable[[Callable[[], Cost], Callable[[], None]], None]


def at_once(cost: Callable[[], Cost], launch: Callable[[], None]) -> None:
    launch()


class Outputs(NamedTuple):
    """Addresses of the arrays that a forward pass writes; 0: not there."""

    y: int
    z: int = 0
    mask: int = 0


class Gradients(NamedTuple):
    """Addresses of the arrays that a backward pass writes; 0: not wanted. dz may be dy.

    narrow: dz in the dtype of the products, where the layer's outputs are of another.
    """

    dz: int
    dx: int = 0
    dw: int = 0
    db: int = 0
    narrow: int = 0


def shape_of(layer: Layer) -> Shape:
    return Shape(layer.rows, layer.outputs, layer.y.stride, layer.output or layer.dtype, layer.gradient)


def _multiply(gemm: Any, stream: int, product: Product, *addresses: int) -> None:
    gemm.call(product, *addresses).run(stream)


def run_forward(
    gemm: Any, stream: int, plan: Forward, layer: Layer, activation: str, x: int, w: int, b: int, out: Outputs,
    emit: Emit = at_once,
) -> None:  # fmt: skip
    """y = f(x w + b)."""
    product, width = plan.product, BYTES[layer.dtype]
    into = out.z if plan.into == "z" else out.y
    aux = {"": 0, "mask": out.mask, "z": out.z}[plan.aux]
    bias = 0 if product.reads_bias else b  # of our kernel

    def product_cost() -> Cost:
        in_epilogue = "linear" if plan.activate else activation
        sizes = layer.inputs, layer.outputs
        return costs.forward(*sizes, in_epilogue, product.reads_bias, bool(product.aux_stride), width)

    # z = x w + b, or y
    emit(product_cost, partial(_multiply, gemm, stream, product, w, x, into, b if product.reads_bias else 0, aux))
    # y = f(z)
    if plan.activate:
        cost = partial(costs.activate, layer.outputs, activation, bool(bias), width)
        emit(cost, partial(activate, gemm.gpu, stream, activation, into, bias, out.y, shape_of(layer)))


def run_backward(
    gemm: Any, stream: int, plan: Backward, layer: Layer, activation: str, dy: int, x: int, w: int, s: int,
    out: Gradients, sums: int = 0, below: tuple[int, int] = (0, 0), emit: Emit = at_once,
) -> None:  # fmt: skip
    """dz = dy f'(s), db, dw and dx.

    s: y or z, as the activation's row says; sums: `sums_bytes` of memory; below: mask or z, and db, of the layer below,
    where the plan makes its dz, and db, of dx.
    """
    gpu, shape, width = gemm.gpu, shape_of(layer), BYTES[layer.dtype]
    inputs, outputs = layer.inputs, layer.outputs
    dz, db = dy, out.db if plan.db == "kernel" else 0
    # dz = dy f'(s), db
    if plan.dz == "kernel":
        dz = out.dz
        cost: Callable[[], Cost] = partial(costs.slopes, outputs, activation, plan.db == "kernel", None, width)
        emit(cost, partial(tile_slopes, gpu, stream, activation, dy, s, dz, sums, db, shape))
    elif plan.db == "kernel":
        cost = partial(costs.bias_gradient, outputs, width)
        emit(cost, partial(tile_slopes, gpu, stream, "linear", dz, dz, 0, sums, db, shape))
    if db and sums_bytes(shape):
        emit(lambda: Cost(f"totals {outputs}"), partial(total_sums, gpu, stream, sums, db, shape))
    # dz in the dtype of the products
    if layer.output:
        launch = partial(narrow, gpu, stream, layer.dtype, dz, out.narrow, layer.rows * layer.y.stride)
        emit(lambda: Cost(f"narrow {outputs}"), launch)
        dz = out.narrow
    # dw = x' dz
    if plan.weights:
        with_db = plan.db == "weights"

        def weights_cost() -> Cost:
            cost, sums = costs.weights(inputs, outputs, None, width), with_db * outputs  # dz is read anyway
            return cost._replace(bytes=cost.bytes + sums * width, row_flops=cost.row_flops + sums)

        emit(weights_cost, partial(_multiply, gemm, stream, plan.weights, dz, x, out.dw, out.db if with_db else 0))
    # dx = dz w'
    if plan.inputs:
        aux, db = below if plan.inputs.aux_stride else (0, 0)
        addresses = w, dz, out.dx, db if plan.inputs.sums else 0, aux
        cost = partial(costs.inputs_gradient, inputs, outputs, width)
        emit(cost, partial(_multiply, gemm, stream, plan.inputs, *addresses))


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
    """Addresses of arrays, 0 for None, and their dtype."""
    seen = [None if array is None else see(array) for array in arrays]
    dtypes = {s.dtype for s in seen if s is not None}
    if len(dtypes) > 1 or not dtypes <= set(TYPES):
        raise TypeError(f"arrays must be of one dtype, {', '.join(TYPES)}; got {', '.join(sorted(dtypes))}")
    return [s.address if s is not None else 0 for s in seen], dtypes.pop()


def _size(array: Any) -> tuple[int, ...]:
    return see(array).shape


def dense_forward(x: Any, w: Any, b: Any, activation: str, y: Any, z: Any = None, tf32: bool = False) -> None:
    """y = f(x w + b), and z the pre-activation, if given: arrays on one device, C-contiguous, none overlapping another.

    tf32: let products of float32 be computed from operands rounded to 10 bits, several times as fast.
    """
    (rows, inputs), outputs = _size(x), _size(w)[1]
    if not rows * outputs:
        return
    addresses, dtype = _seen((x, w, b, y, z))
    gpu, stream = gpu_of(addresses), current_stream(y)
    layer = Layer(rows, inputs, outputs, dtype, tf32)
    X, W, B, Y, Z = addresses
    if not inputs:  # a sum of nothing
        with gpu.active():
            gpu.zero(Z or Y, rows * outputs * BYTES[dtype], stream)
        activate(gpu, stream, activation, Z or Y, B, Y, shape_of(layer))
        return
    gemm = gemm_of(gpu)
    plan = _forward_plan(gemm, min(map(alignment, addresses)), layer, activation, b is not None, "z" if Z else "")
    run_forward(gemm, stream, plan, layer, activation, X, W, B, Outputs(Y, Z))


def dense_backward(
    dy: Any, x: Any, w: Any, s: Any, activation: str, dx: Any, dw: Any, db: Any, tf32: bool = False
) -> None:
    """Write dx, dw and db (each may be None) for y = f(x w + b); s is y or z, as the activation's row says.

    dy is not changed.
    """
    (rows, inputs), outputs = _size(x), _size(w)[1]
    addresses, dtype = _seen((dy, x, w, s, dx, dw, db))
    gpu, stream = gpu_of(addresses), current_stream(dy)
    DY, X, W, S, DX, DW, DB = addresses
    if not rows * outputs:
        with gpu.active():
            for address, count in ((DX, rows * inputs), (DW, inputs * outputs), (DB, outputs)):
                if address and count:
                    gpu.zero(address, count * BYTES[dtype], stream)
        return
    gemm, layer = gemm_of(gpu), Layer(rows, inputs, outputs, dtype, tf32)
    wanted = bool(DX and inputs), bool(DW and inputs), bool(DB)
    plan = _backward_plan(gemm, min(map(alignment, addresses)), layer, activation, *wanted)
    size = -(-rows * outputs * BYTES[dtype] // ALIGNED) * ALIGNED if plan.dz == "kernel" else 0
    with gemm.launching:  # no other thread may use the scratch memory until all that reads dz has been launched
        memory = gemm.scratch(stream, size + sums_bytes(shape_of(layer)))
        out = Gradients(memory, DX, DW, DB)
        run_backward(gemm, stream, plan, layer, activation, DY, X, W, S, out, memory + size)
