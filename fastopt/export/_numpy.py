"""A predictor in one Python file: readable code, the weights in text, NumPy alone."""

from __future__ import annotations

import base64
import io
import textwrap

import numpy as np

from .. import _files
from .._files import Path, Writable
from ..layers import BatchNorm, Dense, LayerNorm
from ..models.sequential import Sequential
from ._reading import NamedLayer, Prediction, read

# Functions of a file by their names; one stands behind those that it calls.
FUNCTIONS = {
    "relu": "return np.maximum(z, 0)",
    "leaky_relu": "return np.where(z > 0, z, 0.01 * z)",
    "elu": "return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))",
    "sigmoid": """e = np.exp(-np.abs(z))  # at most 1: never overflows
return np.where(z >= 0, z.dtype.type(1), e) / (1 + e)""",
    "tanh": "return np.tanh(z)",
    "softplus": "return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))",
    "silu": "return z * sigmoid(z)",
    "gelu": """erf = np.vectorize(math.erf, otypes=[np.float64])  # NumPy has none
return (0.5 * z * (1 + erf(z * 0.7071067811865476))).astype(z.dtype)""",
    "gelu_tanh": "return 0.5 * z * (1 + np.tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))",
    "hardswish": "return z * np.clip(z + 3, 0, 6) / 6",
    "mish": "return z * np.tanh(softplus(z))",
    "softmax": """e = np.exp(z - z.max(axis=1, keepdims=True))
return e / e.sum(axis=1, keepdims=True)""",
}
CALLED = {"silu": ("sigmoid",), "mish": ("softplus",)}

HEAD = '''"""Predictions of a network, with NumPy alone; written by fastopt.

predict(x) takes rows (n, {inputs}) and returns the outputs (n, {outputs}), {dtype}.{classes}
{details}
"""

import base64
import io
import math

import numpy as np

INPUTS = {inputs}
FEATURE_NAMES = {names}
'''
CLASSES = "\npredict_classes(x) returns the label of every row's class."
READ = '''def read_rows(x):
    """Return x as a matrix (n, INPUTS); images are flattened."""
    x = np.asarray(x)
    x = x.reshape(len(x), math.prod(x.shape[1:]))
    if x.shape[1] != INPUTS:
        raise ValueError(f"x must have {INPUTS} features; got {x.shape[1]}")
    return x
'''
LAYER_NORM = '''def standardized(x, epsilon):
    """Return rows of mean 0 and variance 1."""
    deviation = x - x.mean(axis=1, keepdims=True, dtype=np.float64)
    variance = (deviation * deviation).mean(axis=1, keepdims=True)
    return (deviation / np.sqrt(variance + epsilon)).astype(x.dtype)
'''
DECISIONS = {
    "largest": ["codes = outputs.argmax(axis=1)"],
    "above 0.5": ["codes = (outputs > 0.5).astype(np.int64)"],
    "above 0": ["codes = (outputs > 0).astype(np.int64)"],
}
TAIL = """W = np.load(io.BytesIO(base64.b64decode(WEIGHTS)), allow_pickle=False)
W = {name: W[name] for name in W.files}
"""


def to_numpy(model: Sequential, path: Path | Writable) -> None:
    """Write a Python file with `predict`, and `predict_classes` where outputs are classes, that needs NumPy alone.

    The file is a module to import, or to run: its code is the formulas of the model's layers, and its weights are an
    .npz archive in base64. `predict(x)` takes rows (n, inputs) of numbers and returns (n, outputs) in the model's
    dtype. It checks the number of features and nothing else; all rows are computed at once.

    path: of the file, or a file object open for writing in binary mode.

    Raises TypeError, OSError; ValueError as all exports do. Nothing is written then.

    >>> import io, fastopt as fo
    >>> model, file = fo.Sequential([fo.Dense(2, "relu"), fo.Dense(1)], inputs=3), io.BytesIO()
    >>> to_numpy(model, file)
    >>> predictor = {}
    >>> exec(file.getvalue(), predictor)
    >>> x = np.ones((4, 3), np.float32)
    >>> bool(np.allclose(predictor["predict"](x), model.predict(x)))
    True
    """
    _files.write(path, source_of(read("to_numpy", model)).encode("utf-8"))


def source_of(found: Prediction) -> str:
    """Return the text of the file."""
    arrays: dict[str, np.ndarray] = {}
    body = _body(found, arrays)
    layers = found.without_noise()
    parts = [_head(found, layers), READ]
    used = {entry.activation for entry in layers} - {"linear"}
    used |= {called for name in used for called in CALLED.get(name, ())}
    parts += [_function(name, "z", FUNCTIONS[name].split("\n")) for name in FUNCTIONS if name in used]
    if any(isinstance(entry.layer, LayerNorm) for entry in layers):
        parts.append(LAYER_NORM)
    parts.append(_function("predict", "x", body, f"Return the outputs (n, {found.outputs}) for rows x (n, INPUTS)."))
    if found.rule is not None:
        parts.append(_function("predict_classes", "x", _decision(found, arrays), "Return the class of every row of x."))
    archive = io.BytesIO()
    np.savez(archive, **arrays)  # type: ignore[arg-type]
    lines = textwrap.wrap(base64.b64encode(archive.getvalue()).decode("ascii"), 116)
    parts.append('WEIGHTS = """\n' + "\n".join(lines) + '\n"""\n' + TAIL)
    return "\n\n".join(parts)


def _head(found: Prediction, layers: tuple[NamedLayer, ...]) -> str:
    """The docstring, with a line a layer, the imports and the constants; names of users are quoted, as Python does."""
    details = "".join(f"\n    {_words(entry)}" for entry in layers)
    classes = "" if found.rule is None else CLASSES
    names = None if found.feature_names is None else list(found.feature_names)
    return HEAD.format(
        inputs=found.inputs, outputs=found.outputs, dtype=found.dtype, classes=classes, details=details, names=names
    )


def _words(entry: NamedLayer) -> str:
    if isinstance(entry.layer, Dense):
        return f"{entry.inputs} -> {entry.layer.units} {entry.activation}"
    return entry.activation if entry.activation != "linear" else type(entry.layer).__name__


def _function(name: str, argument: str, lines: list[str], doc: str = "") -> str:
    text = [f'    """{doc}"""'] if doc else []
    return "\n".join([f"def {name}({argument}):", *text, *(f"    {line}" for line in lines), ""])


def _body(found: Prediction, arrays: dict[str, np.ndarray]) -> list[str]:
    """The lines of `predict`; the arrays that they read are added to `arrays`."""

    def keep(name: str, array: np.ndarray) -> str:
        arrays[name] = array
        return f'W["{name}"]'

    lines = ["x = read_rows(x)"]
    if found.stages:
        lines.append("x = x.astype(np.float64)")
    for i, stage in enumerate(found.stages, 1):
        factor, term = keep(f"scale_{i}", stage.factor), keep(f"shift_{i}", stage.term)
        lines.append(f"x = (x - {term}) / {factor}" if stage.divides else f"x = x * {factor} + {term}")
    lines.append(f"x = x.astype(np.{found.dtype.name}, copy=False)")
    for i, entry in enumerate(found.without_noise(), 1):
        lines += _layer(entry, {which: keep(f"{which}_{i}", array) for which, array in entry.arrays.items()})
    if found.unscale is not None:
        scaled = f"x * {keep('deviation', found.unscale.factor)} + {keep('mean', found.unscale.term)}"
        lines.append(f"x = ({scaled}).astype(x.dtype)  # in the units of the targets")
    return [*lines, "return x"]


def _layer(entry: NamedLayer, names: dict[str, str]) -> list[str]:
    layer, lines = entry.layer, []
    if isinstance(layer, Dense):
        product = f"x @ {names['kernel']}" + (f" + {names['bias']}" if "bias" in names else "")
        return [f"x = {product}" if entry.activation == "linear" else f"x = {entry.activation}({product})"]
    if isinstance(layer, LayerNorm | BatchNorm):
        if isinstance(layer, LayerNorm):
            lines.append(f"x = standardized(x, {layer.epsilon!r})")
        else:
            moving = names["moving_mean"], names["moving_variance"]
            lines.append(f"x = (x - {moving[0]}) / np.sqrt({moving[1]} + {layer.epsilon!r})")
        affine = "x" + (f" * {names['gamma']}" if "gamma" in names else "")
        affine += f" + {names['beta']}" if "beta" in names else ""
        return lines + ([f"x = {affine}"] if affine != "x" else [])
    return [] if entry.activation == "linear" else [f"x = {entry.activation}(x)"]


def _decision(found: Prediction, arrays: dict[str, np.ndarray]) -> list[str]:
    """The lines of `predict_classes`."""
    assert found.rule is not None
    lines = ["outputs = predict(x)", *DECISIONS[found.rule]]
    if found.rule != "largest" and found.outputs > 1:
        return [*lines, "return codes  # yes or no each"]
    if found.rule != "largest":
        lines.append("codes = codes[:, 0]")
    if found.classes is None:
        return [*lines, "return codes"]
    arrays["classes"] = found.classes
    return [*lines, 'return W["classes"][codes]']
