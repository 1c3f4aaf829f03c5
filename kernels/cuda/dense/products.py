"""Plans of a dense layer as plain data: the calls of cuBLASLt, and the steps that are left to our kernels.

Our arrays are row-major, cuBLASLt's are column-major: it sees an array (r, c) as the transpose, a matrix (c, r). So the
operands are exchanged, and D is column-major, as epilogues need it (ORDER_ROW has no epilogue with a bias):

    y  = x w + b      D = y'  (outputs, rows)      A = w' (outputs, inputs)       B = x'  (inputs, rows)
    dx = dz w'        D = dx' (inputs, rows)       A = w' (outputs, inputs), T    B = dz' (outputs, rows)
    dw = x' dz        D = dw' (outputs, inputs)    A = dz' (outputs, rows)        B = x'  (inputs, rows), T

b is added to every column of D, so it has the length of D's rows: the outputs. BGRADA sums A over the rows of the
batch: that is db. The epilogues DRELU and DGELU of dx multiply by the slope of the layer *below*, and so make its dz;
with BGRAD its db, too.

Of our activations relu and gelu_tanh have epilogues. NVIDIA's GELU is 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
(cuBLAS documentation, cublasLtEpilogue_t, note 5).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from ...formulas import ACTIVATIONS
from ...spec import DenseSpec, LayerSpec
from ..runtime.driver import ALIGNMENT
from .blaslt import Compute, DataType, Epilogue

TYPES = {
    "float16": DataType.R_16F,
    "bfloat16": DataType.R_16BF,
    "float32": DataType.R_32F,
    "float64": DataType.R_64F,
}
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
MASK_STRIDE = 128  # bits: a column of the bit mask of ReLU is a multiple of it
Z_STRIDE = 8  # elements: so is a column of GELU's pre-activations
TENSOR_CORES = 16  # bytes: addresses and strides must be multiples of it for the fast kernels

BIAS, AUX, BGRAD = int(Epilogue.BIAS), 128, 16  # bits of epilogues
APPLIED = {"linear": 0, "relu": int(Epilogue.RELU), "gelu_tanh": int(Epilogue.GELU)}
SLOPES = {"relu": int(Epilogue.DRELU), "gelu_tanh": int(Epilogue.DGELU)}
KEPT = {"relu": "mask", "gelu_tanh": "z"}  # array that the forward epilogue writes for that of the slope


class Matrix(NamedTuple):
    """A column-major matrix; `stride`: elements from a column to the next."""

    rows: int
    columns: int
    stride: int


class Product(NamedTuple):
    """D = epilogue(op(A) op(B)), where op is the identity or the transpose."""

    a: Matrix
    b: Matrix
    d: Matrix
    transpose_a: bool
    transpose_b: bool
    dtype: str  # of A and B
    result: str  # dtype of D, and of a bias or its gradient
    tf32: bool = False
    epilogue: Epilogue = Epilogue.DEFAULT
    aux_stride: int = 0  # bits from a column of the mask to the next, or elements of z

    @property
    def depth(self) -> int:
        """The length of the sums, which cuBLAS calls k."""
        return self.a.rows if self.transpose_a else self.a.columns

    @property
    def compute(self) -> Compute:
        """Type of the arithmetic: float32 for 16-bit types, TF32 only if `tf32` is set."""
        if self.dtype == "float64":
            return Compute.C_64F
        return Compute.C_32F_FAST_TF32 if self.tf32 and self.dtype == "float32" else Compute.C_32F

    @property
    def scale(self) -> DataType:
        """Type of alpha and beta."""
        return DataType.R_64F if self.dtype == "float64" else DataType.R_32F

    @property
    def aligned(self) -> bool:
        """True if all columns begin at multiples of 16 bytes, given that the arrays do.

        Otherwise (an odd number of outputs, say) cuBLASLt has only kernels with narrower loads.
        """
        read = (self.a.stride | self.b.stride) * BYTES[self.dtype]
        return (read | self.d.stride * BYTES[self.result]) % TENSOR_CORES == 0

    @property
    def reads_bias(self) -> bool:
        return self.has(BIAS)

    @property
    def sums(self) -> int:
        """Number of column sums that the epilogue writes to the address of the bias."""
        if self.has(Epilogue.BGRADB):
            return self.d.columns
        return self.d.rows if self.has(BGRAD) or self.has(Epilogue.BGRADA) else 0

    def sizes(self) -> tuple[int, int, int, int, int]:
        """Bytes of A, B, D, the bias or its gradient, and the epilogue's mask or z."""
        a, b, d = (matrix.stride * matrix.columns for matrix in (self.a, self.b, self.d))
        wide, vector = BYTES[self.result], self.sums or self.d.rows * self.reads_bias
        aux = self.aux_stride * self.d.columns
        in_bits = self.has(Epilogue.RELU_AUX) or self.has(Epilogue.DRELU)
        read = BYTES[self.dtype]
        return a * read, b * read, d * wide, vector * wide, aux // 8 if in_bits else aux * wide

    def has(self, bits: int) -> bool:
        """True if the epilogue has all of these bits."""
        return self.epilogue & bits == bits


class Layer(NamedTuple):
    """A dense layer on a batch. Strides are of rows of our arrays: 0 stands for rows without gaps."""

    rows: int
    inputs: int
    outputs: int
    dtype: str
    tf32: bool = False
    x_stride: int = 0  # of x and dx
    y_stride: int = 0  # of y, z and dz
    gradient: str = ""  # dtype of dw and db, if another than that of the layer: float32 for 16-bit types
    output: str = ""  # of b, y and z, if another: float32 in the last layer; dz is rounded for the products

    @property
    def x(self) -> Matrix:
        return Matrix(self.inputs, self.rows, self.x_stride or self.inputs)

    @property
    def y(self) -> Matrix:
        return Matrix(self.outputs, self.rows, self.y_stride or self.outputs)

    @property
    def w(self) -> Matrix:
        return Matrix(self.outputs, self.inputs, self.outputs)


class Forward(NamedTuple):
    """Plan of y = f(x w + b)."""

    product: Product
    into: str  # array that the product writes, "y" or "z"
    aux: str  # array that its epilogue writes, too: "mask" for the slope of relu, "z", or ""
    activate: bool  # True: our kernel follows, y = f(z), after z += b unless the product has added b


class Backward(NamedTuple):
    """Plan of dz, db, dw and dx."""

    dz: str  # "dy": it is dy; "kernel": dy f'(s) by our kernel; "above": by the epilogue of dx of the layer above
    db: str  # "kernel": by our kernel; "weights": by the epilogue of dw; "above"; "": there is none
    weights: Product | None
    inputs: Product | None  # its epilogue is the slope of the layer below


class Plan(NamedTuple):
    """A layer of a network with both of its plans."""

    layer: Layer
    activation: str
    forward: Forward
    backward: Backward


# ---------------------------------------------------------------- the three products
def forward_product(layer: Layer, epilogue: Epilogue = Epilogue.DEFAULT, aux_stride: int = 0) -> Product:
    """x w, with D = y'."""
    kinds = layer.dtype, layer.output or layer.dtype, layer.tf32
    return Product(layer.w, layer.x, layer.y, False, False, *kinds, epilogue, aux_stride)


def inputs_product(layer: Layer, epilogue: Epilogue = Epilogue.DEFAULT, aux_stride: int = 0) -> Product:
    """dx = dz w', with D = dx'."""
    kinds = layer.dtype, layer.dtype, layer.tf32
    return Product(layer.w, layer.y, layer.x, True, False, *kinds, epilogue, aux_stride)


def weights_product(layer: Layer, epilogue: Epilogue = Epilogue.DEFAULT) -> Product:
    """dw = x' dz, with D = dw'."""
    kinds = layer.dtype, layer.gradient or layer.dtype, layer.tf32
    return Product(layer.y, layer.x, layer.w, False, True, *kinds, epilogue)


# ---------------------------------------------------------------- strides and alignment
def padded(columns: int) -> int:
    """Stride of the rows of our own arrays: a multiple of 16 bytes in every dtype, as GELU's epilogue needs it."""
    return -(-columns // Z_STRIDE) * Z_STRIDE


def mask_stride(columns: int) -> int:
    """Bits from a row of a mask to the next, for so many columns; bit i % 8 of byte i // 8 belongs to column i."""
    return -(-columns // MASK_STRIDE) * MASK_STRIDE


def alignment(address: int) -> int:
    """The largest power of two that an address is a multiple of, as far as cuBLASLt asks."""
    return min(address & -address, ALIGNMENT) if address else ALIGNMENT


def aux_stride(layer: Layer, activation: str) -> int:
    """Stride of the array that the forward epilogue writes for the slope: bits of a mask, or elements of z."""
    return mask_stride(layer.outputs) if activation == "relu" else layer.y.stride


# ---------------------------------------------------------------- choices
def known(product: Product) -> bool:
    """False if cuBLASLt is known to refuse a product's epilogue.

    DRELU and DGELU need sums of more than one term, and BGRADA more than one row and term (nvmath-python, which binds
    the same library, refuses them or leaves them out of its tests).
    """
    if product.depth == 1 and (product.has(Epilogue.DRELU) or product.has(Epilogue.DGELU)):
        return False
    if product.has(Epilogue.BGRADA) and (product.depth == 1 or product.d.rows == 1):
        return False
    if product.has(Epilogue.GELU_AUX) or product.has(Epilogue.DGELU):
        return product.aux_stride % Z_STRIDE == 0
    return True


Supported = Callable[[Product], bool]


def exact_activations(dtype: str) -> frozenset[str]:
    """The activations whose epilogue is as accurate as our formula, and which are therefore left to cuBLASLt.

    - relu is not: its epilogue turns NaN into 0 (NVIDIA's forum, 329783), and a network whose weights have become NaN
      would go on with a finite loss.
    - gelu_tanh is for 16-bit types alone: a tanh to 11 bits, which GPUs have as an instruction, would not show there.
    """
    return frozenset({"linear"} if BYTES[dtype] > 2 else {"linear", "gelu_tanh"})


def plan_forward(
    layer: Layer,
    activation: str,
    bias: bool,
    keep: str = "",
    fused: Collection[str] | None = None,
    supported: Supported = known,
) -> Forward:
    """The forward pass of a layer.

    keep: array to write besides y: "mask" (for DRELU; only for relu as an epilogue), "z", or "".
    fused: the activations that may be epilogues; None: those that are `exact_activations`.
    supported: True for a product for which cuBLASLt has an algorithm.
    """
    fused = exact_activations(layer.output or layer.dtype) if fused is None else fused
    if activation in fused and keep in ("", KEPT.get(activation)):
        product = _applied(layer, activation, bias, keep)
        if supported(product):
            return Forward(product, "y", keep, False)
    if keep == "mask":
        raise ValueError(f"no epilogue leaves the mask of {activation} in {layer.dtype}")
    product = forward_product(layer, _epilogue(BIAS if bias else 0))
    if not supported(product):
        product = forward_product(layer)
    finished = activation == "linear" and not keep and product.has(BIAS) == bias
    return Forward(product, "z" if keep else "y", "", not finished)


def _epilogue(bits: int) -> Epilogue:
    return Epilogue(bits) if bits else Epilogue.DEFAULT


def _applied(layer: Layer, activation: str, bias: bool, keep: str) -> Product:
    bits = APPLIED[activation] | (BIAS if bias else 0) | (AUX if keep else 0)
    return forward_product(layer, _epilogue(bits), aux_stride(layer, activation) if keep else 0)


def plan_backward(
    layer: Layer,
    activation: str,
    dx: bool = True,
    dw: bool = True,
    db: bool = True,
    supported: Supported = known,
) -> Backward:
    """The backward pass of a layer whose dy is given; dx, dw, db: which gradients are wanted."""
    dz = "dy" if activation == "linear" else "kernel"
    sums, weights = ("kernel" if db else ""), (weights_product(layer) if dw else None)
    if dz == "dy" and db and dw:  # otherwise our kernel reads dz anyway
        with_sums = weights_product(layer, Epilogue.BGRADA)
        if supported(with_sums):
            sums, weights = "weights", with_sums
    return Backward(dz, sums, weights, inputs_product(layer) if dx else None)


class Needs(NamedTuple):
    """Gradients of a layer that are computed: none of parameters that are not updated, dx only if one below is."""

    dw: bool
    db: bool
    dx: bool


def plan_network(
    specs: Sequence[LayerSpec],
    rows: int,
    dtype: str,
    tf32: bool = False,
    gradient: str = "",
    fused: Collection[str] | None = None,
    supported: Supported = known,
    output: str = "",
    needs: Sequence[Needs] | None = None,
) -> list[Plan]:
    """Plans of the dense layers of a network. x and the arrays between layers have rows `padded` elements apart.

    output: the dtype of the last layer's outputs, if another. needs: of each dense layer; None: all gradients but that
    of x.

    The slope of a layer is an epilogue of dx of the layer above if that is computed, nothing lies between them, and
    both epilogues exist: the one that writes the mask (z can be written by our kernel) and the one that reads it.
    """
    in_epilogues = exact_activations(dtype) if fused is None else fused
    dense = {i: spec for i, spec in enumerate(specs) if isinstance(spec, DenseSpec)}
    given = needs or [Needs(True, spec.bias, number > 0) for number, spec in enumerate(dense.values())]
    wanted = dict(zip(dense, given, strict=True))
    layers = {
        i: Layer(rows, spec.inputs, spec.outputs, dtype, tf32, padded(spec.inputs), padded(spec.outputs), gradient)
        for i, spec in dense.items()
    }
    last = max(layers)
    layers[last] = layers[last]._replace(output=output)
    slopes = {
        i: _slope(layers[i], layers[i + 1], spec, wanted[i].db, supported)
        for i, spec in dense.items()
        if i + 1 in dense and wanted[i + 1].dx and spec.activation in in_epilogues
    }
    plans: list[Plan] = []
    for i, spec in dense.items():
        above, layer = slopes.get(i), layers[i]
        keep = "z" if ACTIVATIONS[spec.activation].uses == "z" else "mask" if above else ""
        keep = keep if any(wanted[i]) else ""  # nothing asks for the slopes
        forward = plan_forward(layer, spec.activation, spec.bias, keep, fused, supported)
        dw, db, dx = wanted[i]
        backward = plan_backward(layer, spec.activation, dx, dw, db, supported)
        if above:
            backward = _from_above(layer, above, backward, db, supported)
        if below := slopes.get(i - 1):
            backward = backward._replace(inputs=below)
        plans.append(Plan(layer, spec.activation, forward, backward))
    return plans


def _slope(layer: Layer, above: Layer, spec: DenseSpec, db: bool, supported: Supported) -> Product | None:
    """dx of the layer above with the slope of this one as its epilogue; None where cuBLASLt has no such product."""
    if spec.activation not in SLOPES:
        return None
    if spec.activation == "relu" and not supported(_applied(layer, "relu", spec.bias, "mask")):
        return None
    bits, stride = SLOPES[spec.activation], aux_stride(layer, spec.activation)
    # The sums of BGRAD have the type of dx, which may differ from that of the gradients.
    choices = [bits | BGRAD, bits] if db and not layer.gradient else [bits]
    products = [inputs_product(above, Epilogue(choice), stride) for choice in choices]
    return next((product for product in products if supported(product)), None)


def _from_above(layer: Layer, above: Product, backward: Backward, db: bool, supported: Supported) -> Backward:
    """A layer's backward plan if dz, and db if it is wanted, are written by dx of the layer above."""
    if above.has(BGRAD) or not db:
        return backward._replace(dz="above", db="above" if db else "")
    with_sums = weights_product(layer, Epilogue.BGRADA)
    if backward.weights and supported(with_sums):
        return backward._replace(dz="above", db="weights", weights=with_sums)
    return backward._replace(dz="above", db="kernel")
