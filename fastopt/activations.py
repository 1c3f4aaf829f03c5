"""Activations of your own: two Python functions of a number become kernels on every backend.

    fo.Activation.define("snake", lambda z: z + math.sin(z) ** 2, lambda z: 1 + math.sin(2 * z))
    fo.Dense(64, "snake")

**What a formula may be.** A function or lambda of numbers: arithmetic (+ - * / **), comparisons, and, or, not, `if`
and conditional expressions, assignments, `for` over `range(n)` with a known n, tuples, and calls of other such
functions. Of `math` and NumPy it may call exp, exp2, expm1, log, log2, log10, log1p, sqrt, tanh, sinh, cosh, erf, sin,
cos, tan, atan, abs, sign, min, max, minimum, maximum, clip, where, pow, logaddexp and tests for NaN and infinity.
Global names and variables of an enclosing function are constants, with the values that they have when the formula is
defined. An error quotes the line that is no formula. The source must be readable: a file, a notebook or IPython.

**What becomes of it.** The function is read once and written anew for each backend; it is never called by a kernel.
All its numbers have the dtype of the arrays, so `1 + abs(z)` stays float32. On "cpu" and "cuda" it is compiled into the
loops that have the built-in formulas, with the same bits where the text is the same. All of it is vector code but sin,
cos, tan, atan and powers that are neither whole nor a half, which the C library computes one by one. Both sides of a
branch are computed, and one is taken. The "numpy" backend does the same operations on whole arrays.

**Names.** Layers, files and messages have the formula's name. A name may be given to another formula, as in a notebook:
what was made before keeps the old one. Compiled kernels, also those on disk, belong to the formula, not to its name.
A file of a model holds names alone, so a program that loads it defines them first; so does one that unpickles it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _definitions
from ._validation import check_flag, check_name, describe
from .kernels.formulas import ACTIVATIONS, OUTPUTS, defined
from .kernels.spec import ActivationSpec

__all__ = ["ALIASES", "Activation"]

ALIASES = {
    "hard_silu": "hardswish",
    "hard_swish": "hardswish",
    "identity": "linear",
    "leakyrelu": "leaky_relu",
    "logistic": "sigmoid",
    "swish": "silu",
}  # names of other libraries


@dataclass(frozen=True)
class Activation:
    """An activation by its name: an argument of `Dense`, or a layer of its own; `define` makes new ones.

    As a layer it is y = f(x), for behind a BatchNorm or LayerNorm; softmax is for the last Dense alone.

    name   one of those of `Dense` or of ALIASES, in any letters, or of one that was defined
    label  the layer's name in `summary` and error messages; by default activation_1, activation_2, ... in a model

    Raises TypeError for what is no str, ValueError for an unknown name.

    >>> import fastopt as fo
    >>> fo.Activation("relu")
    Activation('relu')
    >>> layers = [fo.Dense(2, use_bias=False), fo.BatchNorm(), fo.Activation("relu"), fo.Dense(1)]
    >>> fo.Sequential(layers, inputs=3).names
    ('dense_1', 'batch_norm_1', 'activation_1', 'dense_2')
    """

    name: str
    label: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_name("activation", name_of(self.name), known()))
        if self.label is not None and not isinstance(self.label, str):
            raise TypeError(f"label must be a string; got {describe(self.label)}")
        if self.label == "":
            raise ValueError("label must not be empty")
        object.__setattr__(self, "_key", defined.key_of("activation", self.name))  # of the formula that it has now

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}{'' if self.label is None else f', label={self.label!r}'})"

    def activation_key(self) -> str:
        """Row of ACTIVATIONS, or softmax; ValueError for a user's formula that this process does not know."""
        key = getattr(self, "_key", self.name)
        return key if key == "softmax" else _definitions.check_known("activation", self.name, key, ACTIVATIONS)

    def spec(self, inputs: int) -> ActivationSpec:
        """Return the layer as backends take it, for `inputs` features."""
        return ActivationSpec(inputs, self.activation_key())

    def formula(self) -> str:
        """Return what `summary` says of it."""
        return self.name

    @classmethod
    def define(cls, name: str, value: Any, slope: Any, slope_of: str = "z", check: bool = True) -> Activation:
        """Define an activation by a function of a number and its derivative; `Dense` then takes its name.

        Args:
            name: for layers and files: letters, digits and _, and none that fastopt has.
            value: y = value(z), a Python function or lambda of a number; see the module for what it may be.
            slope: dy/dz = slope(z), or slope(y) with `slope_of="y"`, which needs no memory for z.
            slope_of: "z" or "y", the number that `slope` takes.
            check: False leaves out the comparison of `slope` with finite differences of `value`, for a slope that is
                none on purpose (as in straight-through estimators).

        Returns:
            The activation, for `Dense(units, activation)`; its name does as well.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: a name that fastopt has itself, or a function that is no formula, not the derivative, or other
                numbers when it is compiled; with the line of the function. Nothing is defined then.

        Example:
            >>> import fastopt as fo
            >>> softsign = fo.Activation.define("softsign", lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2)
            >>> fo.Dense(8, softsign)
            Dense(8, 'softsign')
            >>> fo.dense_forward([[1.0, -3.0]], [[1.0, 0.0], [0.0, 1.0]], activation="softsign").tolist()
            [[0.5, -0.75]]
        """
        from .kernels import definitions

        _definitions.check_new_name("activation", name, OUTPUTS)
        check_name("slope_of", slope_of, ("z", "y"))
        check_flag("check", check)
        with defined.lock:
            before = defined.present("activation", name)
            key = definitions.define_activation(name, value, slope, slope_of, check)
            if key != before:
                try:
                    _definitions.check_activation(name, key)
                except BaseException:
                    definitions.withdraw("activation", name, before)
                    raise
            return cls(name)


def known() -> tuple[str, ...]:
    """The names of all activations that a last layer may have."""
    return (*OUTPUTS, *defined.keys["activation"])


def name_of(activation: Any) -> Any:
    """The name of an Activation, or of its name in other letters or in another library; what is none stays as it is.

    >>> name_of("swish"), name_of("ReLU"), name_of("LeakyReLU"), name_of("snake")
    ('silu', 'relu', 'leaky_relu', 'snake')
    """
    name = activation.name if isinstance(activation, Activation) else activation
    if not isinstance(name, str) or name in known():  # a formula may be defined by such a name
        return name
    bare = ALIASES.get(name.lower(), name.lower())
    return bare if bare in OUTPUTS else name
