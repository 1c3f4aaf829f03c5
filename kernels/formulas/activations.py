"""Activations of dense layers and their derivatives.

value(z) -> y, and slope(s) -> dy/dz, where s is y wherever the derivative is a function of y alone (nothing but y
need then be kept for the backward pass), and z elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .functions import erf, exp, expm1, log1pexp, tanh


def linear(z):
    return z


def linear_slope(y):
    return type(y)(1)


def relu(z):
    return z if z > 0 or z != z else type(z)(0)


def relu_slope(y):
    return type(y)(1) if y > 0 else type(y)(0)


def leaky_relu(z):
    return z if z > 0 else type(z)(0.01) * z


def leaky_relu_slope(y):
    return type(y)(1) if y > 0 else type(y)(0.01)


def elu(z):
    return z if z > 0 else type(z)(expm1(z))


def elu_slope(y):
    return type(y)(1) if y > 0 else y + type(y)(1)


def sigmoid(z):
    one = type(z)(1)
    e = type(z)(exp(-abs(z)))  # at most 1: never overflows
    return one / (one + e) if z >= 0 else e / (one + e)


def sigmoid_slope(y):
    return y * (type(y)(1) - y)


def hyperbolic_tangent(z):
    return type(z)(tanh(z))


def hyperbolic_tangent_slope(y):
    return type(y)(1) - y * y


def softplus(z):
    return (z if z > 0 else type(z)(0)) + type(z)(log1pexp(-abs(z)))


def softplus_slope(y):
    return -type(y)(expm1(-y))


def silu(z):
    return z * sigmoid(z)


def silu_slope(z):
    one, y = type(z)(1), sigmoid(z)
    return y * (one + z * (one - y))


def hardswish(z):
    T = type(z)
    return z if z > 3 else (z * (z + T(3)) / T(6) if z > -3 else T(0) * z)  # NaN stays NaN


def hardswish_slope(z):
    T = type(z)
    return T(1) if z >= 3 else (z / T(3) + T(0.5) if z > -3 else T(0) * z)


def mish(z):
    T = type(z)
    return z * T(tanh(softplus(z)))


def mish_slope(z):
    T = type(z)
    t = T(tanh(softplus(z)))
    return t + z * sigmoid(z) * (T(1) - t * t)


def gelu(z):
    T = type(z)
    return T(0.5) * z * (T(1) + T(erf(T(0.7071067811865476) * z)))


def gelu_slope(z):
    T = type(z)
    cumulative = T(0.5) * (T(1) + T(erf(T(0.7071067811865476) * z)))
    return cumulative + z * T(0.3989422804014327) * T(exp(T(-0.5) * z * z))


def gelu_tanh(z):
    T = type(z)
    return T(0.5) * z * (T(1) + T(tanh(T(0.7978845608028654) * (z + T(0.044715) * z * z * z))))


def gelu_tanh_slope(z):
    T = type(z)
    t = T(tanh(T(0.7978845608028654) * (z + T(0.044715) * z * z * z)))
    inner = T(0.7978845608028654) * (T(1) + T(0.134145) * z * z)
    return T(0.5) * (T(1) + t) + T(0.5) * z * (T(1) - t * t) * inner


@dataclass(frozen=True)
class Activation:
    """A row of ACTIVATIONS; `uses` says whether `slope` takes the output "y" or the pre-activation "z"."""

    value: Callable[..., Any]
    slope: Callable[..., Any]
    uses: str
    source: str


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(linear, linear_slope, "y", "y = z"),
    "relu": Activation(relu, relu_slope, "y", "Nair & Hinton 2010"),
    "leaky_relu": Activation(leaky_relu, leaky_relu_slope, "y", "Maas, Hannun & Ng 2013, slope 0.01"),
    "elu": Activation(elu, elu_slope, "y", "Clevert, Unterthiner & Hochreiter 2016, alpha 1"),
    "sigmoid": Activation(sigmoid, sigmoid_slope, "y", "1 / (1 + exp(-z))"),
    "tanh": Activation(hyperbolic_tangent, hyperbolic_tangent_slope, "y", "tanh(z)"),
    "softplus": Activation(softplus, softplus_slope, "y", "Dugas et al. 2001: log(1 + exp(z))"),
    "silu": Activation(silu, silu_slope, "z", "Elfwing, Uchibe & Doya 2018: z sigmoid(z)"),
    "gelu": Activation(gelu, gelu_slope, "z", "Hendrycks & Gimpel 2016, erf form"),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_slope, "z", "Hendrycks & Gimpel 2016, tanh form"),
    "hardswish": Activation(hardswish, hardswish_slope, "z", "Howard et al. 2019: z min(max(z + 3, 0), 6) / 6"),
    "mish": Activation(mish, mish_slope, "z", "Misra 2020: z tanh(softplus(z))"),
}

OUTPUTS = (*ACTIVATIONS, "softmax")  # what the last layer may use; softmax needs the whole row
