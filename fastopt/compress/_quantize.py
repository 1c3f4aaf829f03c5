"""Quantization of a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .. import _backends
from .._validation import check_count, check_name, check_number, describe
from ..kernels.spec import LARGEST_INPUTS, DenseSpec, Quantized, parameter_shapes
from ..models import _intake, _quantized_file
from ..models.quantized import QuantizedModel
from ..models.sequential import Sequential
from ._calibration import METHODS, Codes, calibrate
from ._weights import bfloat16_bits, codes_of_weights, packed_int4

BITS = (8, 4, 16)
GROUP = 64  # rows of w that share a scale of 4 bits
BATCH = 1024  # rows at a time


def quantize(
    model: Sequential,
    x: Any = None,
    bits: int = 8,
    weights_only: bool | None = None,
    calibration: str = "minmax",
    percentile: float = 99.99,
    group_size: int | None = None,
    backend: str | None = None,
) -> QuantizedModel:
    """Return a model whose dense layers have integers for weights; `model` stays as it is.

    x             (n, inputs), rows such as the model will be given, as in `predict`: the ranges of what comes into each
                  dense layer are found from them. Some hundred rows of training data will do. Not needed, and not read,
                  for weights alone
    bits          of a weight: 8, 4 or 16, which stands for bfloat16
    weights_only  True: layers compute in float32, with weights that are made of their codes as they are read, so files
                  and memory are smaller, and predictions not faster. False, for 8 bits: what comes into a dense layer
                  becomes uint8 codes, products of codes are added up in int32, exactly, and bias, activation and the
                  codes of the next layer follow while the sums are in cache. None: True for 4 and 16 bits, else False
    calibration   the range of inputs that the 256 codes are spread over; 0 always has a code, and numbers outside of it
                  get the code of its end. "minmax": from the least to the largest in x. "percentile": of so many
                  percent of them. "mse": the share of "minmax" for which the squares of the errors add up to the least
    percentile    in (0, 100], for that calibration
    group_size    rows of w that share a scale in each column, for weights only of 8 or 4 bits; 0: all. None: 64 for 4
                  bits, else all
    backend       of the new model, "cpu" or "numpy"; None: that of `model`

    w = scale code, with scale = max |w| / 127 (for 4 bits 7) of each column or group, so of each output; x = scale
    (code - zero) of each layer (Jacob et al. 2018, arXiv:1712.05877, with symmetric weights). Kernels use VNNI, AVX2 or
    plain loops, with the same integers. Other layers, biases and the preparation of data stay as they are; averages
    over steps, of a model with an EMA, are what becomes integers. The loss, for `evaluate`, and the metrics come along.

    Raises TypeError or ValueError for wrong arguments, for a model without weights, of float64, or with weights that
    are not finite, and for a backend without layers of integers ("cuda").

    >>> import numpy as np, fastopt as fo
    >>> x = np.linspace(-1, 1, 256).reshape(-1, 1)
    >>> model = fo.Sequential([fo.Dense(16, "tanh"), fo.Dense(1)], seed=1)
    >>> model.compile(fo.Adam(lr=0.03), "mean_squared_error", ["r2"])
    >>> history = model.fit(x, x**2, epochs=60, batch_size=16, verbose=0)
    >>> small = fo.compress.quantize(model, x)
    >>> small.evaluate(x, x**2)["r2"] > 0.98
    True
    >>> small.parameters[0].dtype
    dtype('int8')
    """
    weights_only = _check_options(model, x, bits, weights_only, calibration)
    percentile = check_number("percentile", percentile, 0.0)
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be in (0, 100]; got {percentile:g}")
    group = _check_group(group_size, bits, weights_only)
    backend = _backends.known(model.backend if backend is None else backend)
    inputs = model.inputs
    assert inputs is not None
    specs = [spec for spec in model.specs(inputs) if isinstance(spec, DenseSpec)]
    arrays = model.get_averages() or model.get_weights()
    for i, array in enumerate(arrays):
        if not np.isfinite(array).all():
            raise ValueError(f"the weights must be finite; got NaN or infinity in parameters[{i}]")
    if not weights_only:
        _check_sums(specs)
        codes: Sequence[Codes] = _calibrated(model, x, arrays, calibration, percentile)
        quantized = [Quantized(8, 0, of_layer.scale, of_layer.zero) for of_layer in codes]
    else:
        quantized = [Quantized(bits, group if group < spec.inputs else 0) for spec in specs]
    layers = [_quantized_file.plain(layer) for layer in model.layers]
    parameters = list(_parameters(model, arrays, quantized))
    made = QuantizedModel(layers, quantized, inputs, parameters, model.seed, backend)
    made.learnt, made.preparation, made.epochs_done = model.learnt, model.preparation, model.epochs_done
    made.loss, made.metrics, made.metric_functions = model.loss, model.metrics, dict(model.metric_functions)
    return made


def _check_options(model: Any, x: Any, bits: Any, weights_only: Any, calibration: Any) -> bool:
    """Return True if weights alone become codes."""
    if isinstance(model, QuantizedModel):
        raise ValueError("quantize: the model is quantized already: quantize the model that it was made of")
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a fastopt.Sequential; got {describe(model)}")
    if model.inputs is None:
        raise ValueError("quantize: the model has no weights yet: call build, or fit")
    if model.dtype != np.float32:
        raise ValueError(
            f"quantize: the model must be float32; got {model.dtype}: save it, and load_weights of its file in a"
            " float32 Sequential"
        )
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or bits not in BITS:
        raise ValueError(f"bits must be 8, 4 or 16; got {bits!r}")
    if weights_only is not None and not isinstance(weights_only, bool | np.bool_):
        raise TypeError(f"weights_only must be True, False or None; got {describe(weights_only)}")
    check_name("calibration", calibration, METHODS)
    alone = bits != 8 if weights_only is None else bool(weights_only)
    if not alone and bits != 8:
        raise ValueError(f"bits={bits} is for weights alone: set weights_only=True; inputs have 8 bits, as bits=8")
    if not alone and x is None:
        raise ValueError(
            "quantize: x must be given: the ranges of activations are found from some rows of data; or set"
            " weights_only=True"
        )
    return alone


def _check_group(group_size: Any, bits: int, weights_only: bool) -> int:
    """Return the rows of a group; 0: all."""
    if group_size is None:
        return GROUP if bits == 4 else 0
    group = check_count("group_size", group_size, least=0)
    if group and not weights_only:
        raise ValueError("group_size is for weights_only=True: sums of codes have one scale for each output")
    if group and bits == 16:
        raise ValueError("group_size is for 8 or 4 bits: bfloat16 weights have no scales")
    return group


def _check_sums(specs: Iterable[DenseSpec]) -> None:
    for spec in specs:
        if spec.inputs > LARGEST_INPUTS:
            raise ValueError(
                f"quantize: a layer must have at most {LARGEST_INPUTS:,} inputs, for its sums to fit in 32 bits; got"
                f" {spec.inputs:,}: set weights_only=True"
            )


def _calibrated(
    model: Sequential, x: Any, arrays: list[np.ndarray], calibration: str, percentile: float
) -> list[Codes]:
    """The codes of what comes into each dense layer, found from rows x."""
    assert model.inputs is not None
    features = _intake.read_x(model, "x", x)
    rows = _intake.prepared(model, "x", features, model.learnt)
    if not len(rows):
        raise ValueError("x must have at least one row; got none")
    network = _backends.network("numpy")(model.specs(model.inputs), arrays, np.float32, None, ())
    return calibrate(lambda: network.dense_inputs(rows, BATCH), calibration, percentile)


def _parameters(
    model: Sequential, arrays: Iterable[np.ndarray], quantized: Iterable[Quantized]
) -> Iterable[np.ndarray]:
    """The arrays of the quantized model, in order."""
    assert model.inputs is not None
    remaining, of_dense = iter(arrays), iter(quantized)
    for spec in model.specs(model.inputs):
        own = {name: next(remaining) for name in parameter_shapes(spec)}
        if isinstance(spec, DenseSpec):
            of_layer, w = next(of_dense), own.pop("kernel")
            if of_layer.bits == 16:
                yield bfloat16_bits(w)
            else:
                codes, scales = codes_of_weights(w, of_layer.bits, of_layer.group)
                yield packed_int4(codes) if of_layer.bits == 4 else codes
                yield scales
        yield from own.values()
