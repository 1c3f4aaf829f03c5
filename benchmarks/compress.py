"""Compressed networks on Fashion-MNIST: size, accuracy and time of `predict`, beside int8 of torch and onnxruntime.

A row of CONTESTANTS makes a predictor of a trained network. Calibrations read the same rows. Where the package of the
images is absent, bytes at random take their place.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import fastopt as fo
from fastopt.benchmarks.workloads import Absent

HIDDEN = {"784-256-128-10": (256, 128), "784-1024-1024-10": (1024, 1024)}
EPOCHS, TUNING, BATCH, CALIBRATION = 10, 3, 128, 2000  # TUNING: epochs after pruning, or with rounded weights
QUICK = 3000  # rows of a quick run


class Predictor(NamedTuple):
    """A compressed network: outputs of rows (n, 784) float32, and the bytes of its file."""

    predict: Callable[[np.ndarray], np.ndarray]
    num_bytes: int


class Contestant(NamedTuple):
    """A way to compress; loss: the most that it may cost of the accuracy."""

    title: str
    make: Callable[[fo.Sequential, np.ndarray, np.ndarray], Predictor]  # trained model, training rows, labels
    loss: float = 0.01


@cache
def images(quick: bool) -> tuple[np.ndarray, ...]:
    """Return x_train, y_train, x_test, y_test: rows of 784 float32 in [0, 1], labels."""
    try:
        data = fo.datasets.load("fashion-mnist")
        arrays = data.x_train, data.y_train, data.x_test, data.y_test
    except (OSError, ValueError):
        rng = np.random.default_rng(0)
        x, y = rng.random((70_000, 784), np.float32), rng.integers(0, 10, 70_000)
        arrays = x[:60_000], y[:60_000], x[60_000:], y[60_000:]
    x_train, y_train, x_test, y_test = arrays
    train, test = (QUICK, QUICK) if quick else (len(x_train), len(x_test))
    rows = [np.ascontiguousarray(x, np.float32) for x in (x_train[:train], x_test[:test])]
    return rows[0], y_train[:train], rows[1], y_test[:test]


@cache
def trained(shape: str, quick: bool) -> fo.Sequential:
    """Return the network of this shape, trained in float32."""
    x, y, _, _ = images(quick)
    layers = [*(fo.Dense(width, "relu") for width in HIDDEN[shape]), fo.Dense(10, "softmax")]
    model, epochs = fo.Sequential(layers, seed=1), 2 if quick else EPOCHS
    _train(model, x, y, 1e-3, epochs)
    return model


def _train(model: fo.Sequential, x: np.ndarray, y: np.ndarray, lr: float, epochs: int, **options: Any) -> None:
    """Train the model, at a rate that falls to 0, so that more epochs would gain little."""
    steps = epochs * -(-len(x) // BATCH)
    optimizer = fo.Adam(lr=fo.schedules.Cosine(lr, steps=steps))
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], **options)
    model.fit(x, y, epochs=epochs, batch_size=BATCH, verbose=0)


# ---------------------------------------------------------------- ours
def _of(model: fo.Sequential) -> Predictor:
    model.save(file := io.BytesIO(), weights_only=True)
    return Predictor(model.predict, len(file.getvalue()))


def _quantized(**options: Any) -> Callable[..., Predictor]:
    return lambda model, x, y: _of(fo.compress.quantize(model, x[:CALIBRATION], **options))


def _aware(model: fo.Sequential, x: np.ndarray, y: np.ndarray) -> Predictor:
    tuned = copy.deepcopy(model)
    _train(tuned, x, y, 3e-4, TUNING, quantize="int8")
    return _of(fo.compress.quantize(tuned, x[:CALIBRATION]))


def _pruned(share: float) -> Callable[..., Predictor]:
    def make(model: fo.Sequential, x: np.ndarray, y: np.ndarray) -> Predictor:
        pruned = copy.deepcopy(model)
        fo.compress.prune(pruned, share=share, scope="network")
        _train(pruned, x, y, 2e-3, TUNING)
        return _of(pruned)

    return make


# ---------------------------------------------------------------- others
def _torch_module(model: fo.Sequential) -> Any:
    """A torch module of the model, without softmax."""
    try:
        import torch
    except ImportError as error:
        raise Absent("torch is not installed") from error
    torch.set_num_threads(fo.get_num_threads())
    module = fo.export.to_torch(model)
    return module[:-1] if isinstance(module[-1], torch.nn.Softmax) else module


def _torch_predictor(module: Any) -> Predictor:
    import torch

    file = io.BytesIO()
    torch.save(module.state_dict(), file)

    def predict(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs: np.ndarray = module(torch.from_numpy(x)).numpy()
        return outputs

    return Predictor(predict, len(file.getvalue()))


def _torch(model: fo.Sequential, x: np.ndarray, y: np.ndarray) -> Predictor:
    return _torch_predictor(_torch_module(model))


def _torch_int8(model: fo.Sequential, x: np.ndarray, y: np.ndarray) -> Predictor:
    module = _torch_module(model)
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its announced successor, torchao
        from torch.ao import quantization

        if "x86" not in torch.backends.quantized.supported_engines:
            raise Absent("this torch has no int8 kernels for x86")
        wrapped = quantization.QuantWrapper(module).eval()
        pairs = [[f"module.{i}", f"module.{i + 1}"] for i in range(0, len(module) - 1, 2)]
        fused = quantization.fuse_modules(wrapped, pairs)
        fused.qconfig = quantization.get_default_qconfig("x86")
        observed = quantization.prepare(fused)
        with torch.inference_mode():
            observed(torch.from_numpy(x[:CALIBRATION]))
        return _torch_predictor(quantization.convert(observed))


def _onnxruntime(model: fo.Sequential, quantize: Callable[[fo.Sequential], fo.Sequential]) -> Predictor:
    try:
        import onnxruntime

        fo.export.to_onnx(quantize(model), file := io.BytesIO())
    except ImportError as error:
        raise Absent("onnx or onnxruntime is not installed") from error
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = fo.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), how, providers=["CPUExecutionProvider"])
    return Predictor(lambda x: session.run(["outputs"], {"x": x})[0], len(file.getvalue()))


CONTESTANTS = {
    "float32": Contestant("fastopt, float32", lambda model, x, y: _of(model)),
    "bfloat16": Contestant("fastopt, bfloat16 weights", _quantized(bits=16)),
    "int8-weights": Contestant("fastopt, int8 weights", _quantized(weights_only=True)),
    "int8": Contestant("fastopt, int8", _quantized()),
    "int8-aware": Contestant("fastopt, int8, tuned with rounded weights", _aware),
    "int4": Contestant("fastopt, int4 weights", _quantized(bits=4), 0.02),
    "pruned-80": Contestant("fastopt, 80 % pruned, tuned", _pruned(0.8), 0.01),
    "pruned-90": Contestant("fastopt, 90 % pruned, tuned", _pruned(0.9), 0.02),
    "torch": Contestant("torch, float32", _torch),
    "torch-int8": Contestant("torch, int8", _torch_int8),
    "onnxruntime": Contestant("onnxruntime, float32", lambda model, x, y: _onnxruntime(model, lambda m: m)),
    "onnxruntime-int8": Contestant(
        "onnxruntime, int8",
        lambda model, x, y: _onnxruntime(model, lambda m: fo.compress.quantize(m, x[:CALIBRATION])),
    ),
}


@cache
def predictor(name: str, shape: str, quick: bool) -> Predictor:
    """Return the contestant's predictor of the network of this shape; Absent if what it needs is not here."""
    x, y, _, _ = images(quick)
    return CONTESTANTS[name].make(trained(shape, quick), x, y)
