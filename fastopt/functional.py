"""A dense layer, forward and backward: arrays in, new arrays out."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from . import _backends
from ._validation import as_float_array, check_matrix, check_name, check_vector
from .activations import known, name_of
from .kernels.formulas import ACTIVATIONS
from .kernels.formulas.defined import key_of
from .kernels.formulas.defined import name_of as defined_name

__all__ = ["dense_backward", "dense_forward"]


@overload
def dense_forward(
    x: Any,
    w: Any,
    b: Any = None,
    activation: str = "linear",
    *,
    return_preactivation: Literal[False] = False,
    backend: str = _backends.DEFAULT,
) -> np.ndarray: ...
@overload
def dense_forward(
    x: Any,
    w: Any,
    b: Any = None,
    activation: str = "linear",
    *,
    return_preactivation: Literal[True],
    backend: str = _backends.DEFAULT,
) -> tuple[np.ndarray, np.ndarray]: ...
def dense_forward(
    x: Any,
    w: Any,
    b: Any = None,
    activation: str = "linear",
    *,
    return_preactivation: bool = False,
    backend: str = _backends.DEFAULT,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """y = activation(x w + b).

    Args:
        x: (batch, in), float32 or float64, any strides.
        w: (in, out), of x's dtype.
        b: (out,), of x's dtype; None for no bias.
        activation: linear, relu, leaky_relu (slope 0.01), elu, sigmoid, tanh, softplus, silu,
            hardswish, mish, gelu or gelu_tanh.
        return_preactivation: return z = x w + b as well, which `dense_backward` needs for hardswish, mish,
            silu, gelu and gelu_tanh.
        backend: "cpu" for compiled kernels, or "numpy" for the reference.

    Lists of numbers are taken for float64 arrays, or arrays of the dtype of those that are arrays. torch's tensors on
    the CPU are taken for their values alone: autograd does not follow.

    Returns:
        y: (batch, out), a new array of x's dtype; or (y, z).

    Raises:
        TypeError: an array that is not float32 or float64, or not of the same dtype as the others.
        ValueError: shapes that do not fit, an empty batch, or an unknown activation or backend.

    Example:
        >>> import numpy as np, fastopt as fo
        >>> x, w, b = np.array([[1.0, 2.0]]), np.array([[1.0, 0.5], [-1.0, 1.0]]), np.array([0.0, 0.5])
        >>> print(fo.dense_forward(x, w, b, activation="relu", backend="numpy"))
        [[0. 3.]]
    """
    kernels = _backends.get(backend)
    activation = _key(activation)
    x, w, b = _arrays(x=x, w=w, b=b)
    check_matrix("x", x, shape="(batch, in)")
    check_matrix("w", w, rows=x.shape[1], shape="(in, out)")
    if b is not None:
        check_vector("b", b, w.shape[1], "(out,)")
    y = np.empty((len(x), w.shape[1]), x.dtype)
    z = np.empty_like(y) if return_preactivation or ACTIVATIONS[activation].uses == "z" else None
    kernels.dense_forward(x, w, b, activation, y, z)
    return (y, z) if z is not None and return_preactivation else y


def dense_backward(
    dy: Any,
    x: Any,
    w: Any,
    y: Any,
    activation: str = "linear",
    *,
    z: Any = None,
    backend: str = _backends.DEFAULT,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of a loss with respect to a dense layer's input, weights and bias.

    With dz = dy * activation'(z): dx = dz w^T, dw = x^T dz, db = the sum of dz over the batch.

    Args:
        dy: (batch, out), the loss's gradient with respect to y; float32 or float64, any strides.
        x, w: the layer's input (batch, in) and weights (in, out), of dy's dtype.
        y: (batch, out), what `dense_forward` returned.
        activation: as given to `dense_forward`.
        z: (batch, out), the pre-activation; needed for silu, hardswish, mish, gelu and gelu_tanh, else not used.
        backend: "cpu" for compiled kernels, or "numpy" for the reference.

    Returns:
        dx (batch, in), dw (in, out), db (out,): new arrays of dy's dtype.

    Raises:
        TypeError: an array that is not float32 or float64, or not of the same dtype as the others.
        ValueError: shapes that do not fit, an empty batch, an unknown activation or backend, or z is needed but not
            given.

    Example:
        >>> import numpy as np, fastopt as fo
        >>> x, w = np.array([[1.0, 2.0]]), np.array([[1.0, 0.5], [-1.0, 1.0]])
        >>> y = fo.dense_forward(x, w, activation="relu", backend="numpy")
        >>> dx, dw, db = fo.dense_backward(np.ones((1, 2)), x, w, y, activation="relu", backend="numpy")
        >>> print(dx, dw, db, sep="\\n")
        [[0.5 1. ]]
        [[0. 1.]
         [0. 2.]]
        [0. 1.]
    """
    kernels = _backends.get(backend)
    activation = _key(activation)
    dy, x, w, y, z = _arrays(dy=dy, x=x, w=w, y=y, z=z)
    check_matrix("x", x, shape="(batch, in)")
    check_matrix("w", w, rows=x.shape[1], shape="(in, out)")
    for name, array in (("dy", dy), ("y", y), ("z", z)):
        if array is not None:
            check_matrix(name, array, rows=len(x), columns=w.shape[1], shape="(batch, out)")
    if ACTIVATIONS[activation].uses == "z" and z is None:
        raise ValueError(
            f"the derivative of {defined_name(activation)} needs the pre-activation: give z,"
            " from dense_forward(..., return_preactivation=True)"
        )
    dx, dw, db = np.empty_like(x), np.empty_like(w), np.empty(w.shape[1], w.dtype)
    kernels.dense_backward(dy, x, w, y if ACTIVATIONS[activation].uses == "y" else z, activation, dx, dw, db)
    return dx, dw, db


def _key(activation: Any) -> str:
    """The row of ACTIVATIONS of a name, or of an Activation."""
    return key_of("activation", check_name("activation", name_of(activation), [n for n in known() if n != "softmax"]))


def _arrays(**values: Any) -> list[Any]:
    """All of them as contiguous arrays of one dtype, that of the first that is an array; None stays None."""
    dtype = None
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            dtype = as_float_array(name, value).dtype
            break
    return [None if v is None and n in ("b", "z") else as_float_array(n, v, dtype) for n, v in values.items()]
