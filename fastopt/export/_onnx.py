"""ONNX: a graph of standard operators, checked by onnx before it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _files
from .._files import Path, Writable
from ..kernels.sources import Stage
from ..layers import BatchNorm, Dense, LayerNorm
from ..models.sequential import Sequential
from ._reading import Integers, NamedLayer, Prediction, read, refusal

INSTALL = "ONNX files need the package onnx: pip install 'fastopt[onnx]'"
OPSET, IR_VERSION = 17, 8  # LayerNormalization came with 17; onnxruntime 1.13 and newer read them
LARGEST = 2**31 - 2**20  # bytes of weights: a file is one protocol buffer, which ends at 2 GB


def to_onnx(model: Sequential, path: Path | Writable) -> None:
    """Write a float32 model as an ONNX file: input `x`, float32 (rows, inputs), output `outputs`, (rows, outputs).

    Outputs are those of `predict`, to rounding, for any number of rows. Preparation by Normalization and Rescaling,
    and the scale of standardized targets, are computed in float64, as here. The metadata hold `classes` and
    `feature_names`, lists in JSON, where the model has them, and `rule`, the way from outputs to classes: "largest",
    "above 0.5" or "above 0".

    A quantized model becomes one of QuantizeLinear and DequantizeLinear, with int8 weights and uint8 inputs of dense
    layers, which onnxruntime makes products of integers; now and then a code differs by 1, as it divides by a scale
    where kernels multiply by the inverse. Weights of int8 alone stay int8 in the file, of which onnxruntime makes
    products of integers, too, unless its graph_optimization_level is basic; others are written as float32.

    path: of the file, or a file object open for writing in binary mode.

    Raises ImportError without the package onnx (extra `onnx`); TypeError, OSError; ValueError for a float64 model, and
    as all exports do. Nothing is written then.
    """
    found = read("to_onnx", model, integers=True)
    if found.dtype != np.float32:
        raise refusal(
            "to_onnx", f"dtype {found.dtype}", "save the model, and load_weights of its file in a float32 Sequential"
        )
    size = sum(array.nbytes for entry in found.layers for array in entry.arrays.values())
    if size > LARGEST:
        raise refusal("to_onnx", f"{size / 2**30:.1f} GB of weights", "an ONNX file holds less than 2 GB")
    _files.write(path, _built(found).SerializeToString())


def _built(found: Prediction) -> Any:
    """The checked model of onnx."""
    onnx = import_onnx()
    graph, x = Graph(onnx), "x"
    if found.stages:
        x = graph.cast(x, "DOUBLE")
        for i, stage in enumerate(found.stages):
            x = _stage(graph, stage, x, f"stage{i}")
        x = graph.cast(x, "FLOAT")
    for entry in found.without_noise():
        x = _layer(graph, entry, x)
    if found.unscale is not None:
        x = graph.cast(_stage(graph, found.unscale, graph.cast(x, "DOUBLE"), "targets"), "FLOAT")
    graph.add("Identity", [x], output="outputs")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    whole = helper.make_graph(
        graph.nodes,
        "fastopt",
        [helper.make_tensor_value_info("x", kind, ["rows", found.inputs])],
        [helper.make_tensor_value_info("outputs", kind, ["rows", found.outputs])],
        graph.arrays,
    )
    made = helper.make_model(
        whole, producer_name="fastopt", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    notes: dict[str, Any] = {
        "classes": None if found.labels is None else json.dumps(found.labels.tolist(), ensure_ascii=False),
        "feature_names": None if found.feature_names is None else json.dumps(found.feature_names, ensure_ascii=False),
        "rule": found.rule,
    }
    helper.set_model_props(made, {name: text for name, text in notes.items() if text is not None})
    onnx.checker.check_model(made, full_check=True)
    return made


def import_onnx() -> Any:
    """Return the package; ImportError, with the way to install it, if it is missing."""
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ModuleNotFoundError as error:
        raise ImportError(INSTALL) from error
    return onnx


class Graph:
    """Nodes and arrays of a graph under construction; outputs are named by their numbers."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.arrays = onnx, list[Any](), list[Any]()

    def add(self, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], **attributes))
        return output

    def array(self, name: str, values: Any) -> str:
        """Add an array, and return its name."""
        self.arrays.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def number(self, value: float) -> str:
        """Add a float32 number, and return its name."""
        return self.array(f"c{len(self.arrays)}", np.array(value, np.float32).reshape(()))

    def cast(self, x: str, kind: str) -> str:
        """Add a conversion to a type of TensorProto."""
        return self.add("Cast", [x], to=getattr(self.onnx.TensorProto, kind))


def _stage(graph: Graph, stage: Stage, x: str, name: str) -> str:
    factor, term = graph.array(f"{name}_factor", stage.factor), graph.array(f"{name}_term", stage.term)
    if stage.divides:
        return graph.add("Div", [graph.add("Sub", [x, term]), factor])
    return graph.add("Add", [graph.add("Mul", [x, factor]), term])


def _layer(graph: Graph, entry: NamedLayer, x: str) -> str:
    layer, prefix = entry.layer, f"l{len(graph.nodes)}_"
    if entry.integers is not None:
        return ACTIVATIONS[entry.activation](graph, _integer_layer(graph, entry, entry.integers, x, prefix))
    names = {which: graph.array(prefix + which, array) for which, array in entry.arrays.items()}
    if isinstance(layer, Dense):
        x = graph.add("Gemm", [x, *names.values()])
    elif isinstance(layer, LayerNorm | BatchNorm):
        gamma = names.get("gamma") or graph.array(f"{prefix}gamma", np.ones(entry.inputs, np.float32))
        beta = names.get("beta") or graph.array(f"{prefix}beta", np.zeros(entry.inputs, np.float32))
        if isinstance(layer, LayerNorm):
            return graph.add("LayerNormalization", [x, gamma, beta], axis=-1, epsilon=layer.epsilon)
        moving = [names["moving_mean"], names["moving_variance"]]
        return graph.add("BatchNormalization", [x, gamma, beta, *moving], epsilon=layer.epsilon)
    return ACTIVATIONS[entry.activation](graph, x)


def _integer_layer(graph: Graph, entry: NamedLayer, integers: Integers, x: str, prefix: str) -> str:
    """Return x w + b of codes: a pair of quantization and its reverse for x, the reverse alone for w."""
    if integers.input_scale:
        scale = graph.array(f"{prefix}input_scale", np.array(integers.input_scale, np.float32))
        zero = graph.array(f"{prefix}input_zero", np.array(integers.input_zero, np.uint8))
        x = graph.add("DequantizeLinear", [graph.add("QuantizeLinear", [x, scale, zero]), scale, zero])
    codes, scales = graph.array(f"{prefix}codes", integers.codes), graph.array(f"{prefix}scales", integers.scales)
    zeros = graph.array(f"{prefix}zeros", np.zeros(len(integers.scales), np.int8))
    x = graph.add("MatMul", [x, graph.add("DequantizeLinear", [codes, scales, zeros], axis=1)])
    bias = entry.arrays.get("bias")
    return x if bias is None else graph.add("Add", [x, graph.array(f"{prefix}bias", bias)])


def _op(name: str, **attributes: Any) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.add(name, [x], **attributes)


def _silu(graph: Graph, x: str) -> str:
    return graph.add("Mul", [x, graph.add("Sigmoid", [x])])


def _half_of(graph: Graph, x: str, share: str) -> str:
    """Return 0.5 x (1 + share)."""
    half = graph.add("Mul", [graph.number(0.5), x])
    return graph.add("Mul", [half, graph.add("Add", [share, graph.number(1.0)])])


def _gelu(graph: Graph, x: str) -> str:
    scaled = graph.add("Mul", [x, graph.number(0.7071067811865476)])
    return _half_of(graph, x, graph.add("Erf", [scaled]))


def _gelu_tanh(graph: Graph, x: str) -> str:
    cube = graph.add("Mul", [graph.add("Mul", [x, x]), x])
    inner = graph.add("Add", [x, graph.add("Mul", [graph.number(0.044715), cube])])
    return _half_of(graph, x, graph.add("Tanh", [graph.add("Mul", [graph.number(0.7978845608028654), inner])]))


def _softplus(graph: Graph, x: str) -> str:
    """Return max(x, 0) + log(1 + exp(-|x|)), which cannot overflow."""
    power = graph.add("Exp", [graph.add("Neg", [graph.add("Abs", [x])])])
    rest = graph.add("Log", [graph.add("Add", [power, graph.number(1.0)])])
    return graph.add("Add", [graph.add("Relu", [x]), rest])


def _mish(graph: Graph, x: str) -> str:
    return graph.add("Mul", [x, graph.add("Tanh", [_softplus(graph, x)])])


ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "linear": lambda graph, x: x,
    "relu": _op("Relu"),
    "leaky_relu": _op("LeakyRelu", alpha=0.01),
    "elu": _op("Elu", alpha=1.0),
    "sigmoid": _op("Sigmoid"),
    "tanh": _op("Tanh"),
    "softplus": _softplus,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hardswish": _op("HardSwish"),
    "mish": _mish,
    "softmax": _op("Softmax", axis=-1),
}
