"""Dense layers and dropout of the reference: functions on arrays, and layers with gradients and buffers.

Products are NumPy's BLAS's, whose threads have settings of their own: denormal numbers count in them.
"""

from __future__ import annotations

import numpy as np

from ..denormals import flushed
from ..spec import DenseSpec, DropoutSpec
from .bits16 import store, widened
from .fake_quantized import fake_inputs, fake_weights
from .maths import ACTIVATIONS, kept, softmax
from .normalization import Cast

Array = np.ndarray


@flushed
@np.errstate(all="ignore")
def activate(name: str, z: Array, y: Array) -> None:
    """Write y = f(z), elementwise, or for "softmax" over the rows of a matrix; y may be z.

    >>> y = np.empty(2)
    >>> activate("relu", np.array([-1.0, 3.0]), y)
    >>> y.tolist()
    [0.0, 3.0]
    """
    if name == "softmax":
        softmax(z, y)
    else:
        ACTIVATIONS[name].value(z, y)


@np.errstate(all="ignore")
def dense_forward(x: Array, w: Array, b: Array | None, activation: str, y: Array, z: Array | None = None) -> None:
    """Write y = f(x w + b): x (batch, inputs), w (inputs, outputs), b (outputs,) or None, y (batch, outputs).

    z, of y's shape, receives x w + b; the activations whose derivative uses z need it.

    >>> y = np.empty((1, 2))
    >>> x, w, b = np.array([[1.0, 2.0]]), np.array([[1.0, -1.0], [1.0, -1.0]]), np.array([0.5, 0.0])
    >>> dense_forward(x, w, b, "relu", y)
    >>> y.tolist()
    [[3.5, 0.0]]
    """
    linear = y if z is None else z
    np.matmul(x, w, out=linear)
    if b is not None:
        linear += b
    if activation != "linear" or linear is not y:
        activate(activation, linear, y)


@flushed
def slopes(dy: Array, s: Array, activation: str) -> Array:
    """Return dz = dy f'(s), the gradient by what an activation is applied to."""
    return dy * (1 if activation == "linear" else ACTIVATIONS[activation].slope(s))


@np.errstate(all="ignore")
def dense_backward(
    dy: Array, x: Array, w: Array, s: Array, activation: str, dx: Array | None, dw: Array | None, db: Array | None
) -> None:
    """Write the gradients of a dense layer: dz = dy f'(s), dw = x^T dz, db = column sums of dz, dx = dz w^T.

    Those that are None are left out. dy (batch, outputs) is left alone; s is the layer's y or z, whichever the
    activation's derivative uses.

    >>> dx, dw, db = np.empty((1, 2)), np.empty((2, 1)), np.empty(1)
    >>> x, w, y = np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]), np.array([[11.0]])
    >>> dense_backward(np.array([[2.0]]), x, w, y, "relu", dx, dw, db)
    >>> dx.tolist(), dw.tolist(), db.tolist()
    ([[6.0, 8.0]], [[2.0], [4.0]], [2.0])
    """
    dz = slopes(dy, s, activation)
    if dw is not None:
        np.matmul(x.T, dz, out=dw)
    if db is not None:
        np.sum(dz, axis=0, out=db)
    if dx is not None:
        np.matmul(dz, w.T, out=dx)


class Buffer:
    """Rows of memory kept between batches; a call gives the first `rows` of them, and grows it if need be."""

    def __init__(self, width: int, dtype: np.dtype) -> None:
        self.array = np.empty((0, width), dtype)

    def __call__(self, rows: int) -> Array:
        if rows > len(self.array):
            self.array = np.empty((rows, self.array.shape[1]), self.array.dtype)
        return self.array[:rows]


def exact(x: Array) -> Array:
    """The cast to the dtype of the parameters, in which x is."""
    return x


def _bfloat16(x: Array) -> Array:
    bits = np.empty(x.shape, np.uint16)
    store(x, bits)
    return widened(bits)


# Dtypes for layers' arithmetic other than that of the parameters: a cast to them and back.
CASTS: dict[str, Cast] = {"bfloat16": _bfloat16}


class Dense:
    """A dense layer with its gradients and buffers.

    needs: says of w, b and x whether their gradients are computed: not those of parameters that are not updated, nor
    that of x where nothing below is.
    cast: of what is multiplied, and of what is given to other layers; the `last` one leaves its outputs as they are.
    """

    def __init__(
        self, spec: DenseSpec, activation: str, w: Array, b: Array | None, last: bool, cast: Cast
    ) -> None:
        self.activation, self.w, self.b, self.cast = activation, w, b, cast
        self.fake = spec.fake
        self.cast_outputs = exact if last else cast
        self.dw = np.empty_like(w)
        self.db = None if b is None else np.empty_like(b)
        self._y = Buffer(spec.outputs, w.dtype)
        self._z = Buffer(spec.outputs, w.dtype) if ACTIVATIONS[activation].uses == "z" else None
        self._dx = Buffer(spec.inputs, w.dtype)
        self.needs = True, b is not None, True

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return y; in training `spec.fake` is honoured."""
        w = self.w
        if training and self.fake is not None:
            x, w = fake_inputs(x) if self.fake.inputs else x, fake_weights(w, self.fake)
        self.x, self.y, self.multiplied = x, self._y(len(x)), w
        self.z = None if self._z is None else self._z(len(x))
        if self.cast is exact:
            dense_forward(x, w, self.b, self.activation, self.y, self.z)
            return self.y
        linear, b = self.y if self.z is None else self.z, self.b
        dense_forward(x, self.cast(w), b if b is None else self.cast_outputs(b), "linear", linear)
        linear[...] = self.cast_outputs(linear)
        activate(self.activation, linear, self.y)
        self.y[...] = self.cast_outputs(self.y)
        return self.y

    def backward(self, dy: Array) -> Array | None:
        needs_dw, needs_db, needs_dx = self.needs
        dx, dw, db = self._dx(len(dy)) if needs_dx else None, self.dw if needs_dw else None, self.db
        db = db if needs_db else None
        s = self.y if self.z is None else self.z
        if self.cast is exact:
            dense_backward(dy, self.x, self.multiplied, s, self.activation, dx, dw, db)
            return dx
        dz = slopes(dy, s, self.activation)
        dense_backward(self.cast(dz), self.x, self.cast(self.w), s, "linear", dx, dw, db)
        return None if dx is None else self.cast(dx)


class Dropout:
    """Inverted dropout: y = x / (1 - rate) where kept, otherwise 0."""

    def __init__(self, spec: DropoutSpec, index: int, cast: Cast = exact) -> None:
        self.rate, self.index, self.cast = spec.rate, index, cast

    def forward(self, x: Array, seed: int, step: int) -> Array:
        self.kept = kept(seed, self.index, step, (x.shape[0], x.shape[1]), self.rate)
        return self._masked(x)

    def predict(self, x: Array) -> Array:
        return x

    def backward(self, dy: Array) -> Array:
        return self._masked(dy)

    def _masked(self, x: Array) -> Array:
        T = x.dtype.type
        return self.cast(np.where(self.kept, x * T(1 / (1 - self.rate)), T(0)))
