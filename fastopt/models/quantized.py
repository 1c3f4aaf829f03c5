"""Models of integers: predictions, evaluation and files of a network whose weights are quantized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from .. import _backends
from .._exclusive import Exclusive
from .._files import Path, Writable
from .._validation import check_flag, own
from ..kernels.spec import DenseSpec, LayerSpec, Quantized, parameter_shapes
from ..layers import Dense, Layer, Trained
from . import _quantized_file, checkpoint
from .sequential import Sequential
from .training import FitOptions

BACKENDS = ("cpu", "numpy")
REASON = (
    "the weights of a quantized model are integers, which stay as they are: train the model that it was made of, and"
    " quantize that again"
)
WEIGHTS = {8: "int8", 4: "int4", 16: "bfloat16"}


class _ReadOnly(Exclusive):
    """The lock of weights that nobody changes."""

    def __reduce__(self) -> tuple[type[Exclusive], tuple[()]]:
        return _ReadOnly, ()

    @contextmanager
    def exclusive(self, call: str, trains: bool = False) -> Iterator[None]:
        """Raise ValueError, with the name of the method."""
        raise ValueError(f"{call}: {REASON}")
        yield


class QuantizedModel(Sequential):
    """A model that `fastopt.compress.quantize` has made: a `Sequential` that predicts, and is not trained.

    `predict`, `predict_classes`, `predict_proba`, `evaluate`, `summary` and `save` are those of `Sequential`, with all
    kinds of data; loss, metrics, labels and the preparation of data are those of the model that it was made of. Methods
    that change weights raise ValueError. Backends are "cpu" and "numpy", which have the same integers.

    `parameters` are the arrays of the dense layers, `codes`, `scales` and bias, in the order of the layers:

    - codes int8 (inputs, outputs), scales float32 (1, outputs): w = scales codes
    - 4 bits: codes uint8 (inputs / 2, outputs), rounded up, two in a byte, scales (groups, outputs)
    - 16 bits: codes uint16 (inputs, outputs), the bits of bfloat16 weights, without scales

    `quantized` has of each dense layer, in order, its bits, the rows of a group, and the scale and the zero of its
    inputs, x = input_scale (code - input_zero); input_scale is 0 where weights alone are codes.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        quantized: Sequence[Quantized],
        inputs: int,
        parameters: Sequence[np.ndarray],
        seed: int = 0,
        backend: str = _backends.DEFAULT,
    ) -> None:
        self._quantized = tuple(quantized)
        super().__init__(layers, seed, _check_backend(backend))
        self._use = _ReadOnly()
        self._adopt(inputs, [own(array, array.dtype) for array in parameters])

    @property
    def quantized(self) -> tuple[Quantized, ...]:
        """Bits, group, input_scale and input_zero of every dense layer."""
        return self._quantized

    @property
    def backend(self) -> str:
        """The name of the backend that runs the kernels: "cpu" or "numpy"."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        self._backend = _check_backend(name)

    @property
    def compute_dtype(self) -> str:
        """The dtype of whatever is no integer: "float32"."""
        return self._compute

    @compute_dtype.setter
    def compute_dtype(self, name: str | None) -> None:
        if name not in (None, "float32"):
            raise ValueError(f"compute_dtype of a quantized model must be None; got {name!r}")
        self._compute = "float32"

    def specs(self, inputs: int) -> list[LayerSpec]:
        """Specs of the layers for `inputs` features, as backends take them; ValueError where layers clash."""
        return quantized_specs(super().specs(inputs), self._quantized)

    def _trainable_loss(self, options: FitOptions | None = None) -> NoReturn:
        raise ValueError(f"fit: {REASON}")

    def set_weights(self, weights: Any, averages: Any = None) -> NoReturn:
        """Raise ValueError: codes stay as they are."""
        raise ValueError(f"set_weights: {REASON}")

    def dequantize(self) -> Sequential:
        """Return a float32 model with the weights that the codes stand for; it is not compiled.

        Where weights alone are codes its predictions are the same to rounding.

        >>> import numpy as np, fastopt as fo
        >>> model = fo.Sequential([fo.Dense(2)], inputs=3)
        >>> again = fo.compress.quantize(model, bits=16).dequantize()
        >>> bool(np.allclose(again.parameters[0], model.parameters[0], rtol=1 / 256))
        True
        """
        assert self.inputs is not None
        arrays, found = iter(self._parameters), []
        for spec in self.specs(self.inputs):
            own_arrays = dict(zip(parameter_shapes(spec), arrays, strict=False))
            if isinstance(spec, DenseSpec):
                found.append(weights_of(spec, own_arrays.pop("codes"), own_arrays.pop("scales", None)))
            found += own_arrays.values()
        model = Sequential(self.layers, self.seed, self.backend)
        model.adopt(self.inputs, found)
        model.learnt, model.preparation = self.learnt, self.preparation
        return model

    # -- files and texts

    def save(self, path: Path | Writable, weights_only: bool = False) -> None:
        """Write layers, codes and scales to a safetensors file for `fastopt.load_model`; see `Sequential.save`.

        weights_only: leave out loss and metrics.
        """
        check_flag("weights_only", weights_only)
        checkpoint.write(path, *_quantized_file.describe(self, self._quantized, bool(weights_only)))

    def summary(self) -> str:
        """Return a table of the layers: what they give, what their weights are, and their bytes.

        >>> import fastopt as fo
        >>> model = fo.Sequential([fo.Dense(16, "relu"), fo.Dropout(0.2), fo.Dense(3)], inputs=8)
        >>> print(fo.compress.quantize(model, bits=8, weights_only=True).summary())
        layer      activation  outputs  weights  bytes
        dense_1    relu             16     int8    256
        dropout_1  rate 0.2         16              0
        dense_2    linear            3     int8     72
        total: 195 parameters, 328 bytes (0.42 of float32), 8 inputs
        """
        assert self.inputs is not None
        rows = [("layer", "activation", "outputs", "weights", "bytes")]
        of_dense, arrays = iter(self._quantized), iter(self._parameters)
        specs = iter(self.specs(self.inputs))
        width, floats, total = self.inputs, 0, 0
        for layer, name in zip(self.layers, self.names, strict=True):
            if layer in self.preprocessing:
                rows.append((name, layer.formula(), f"{width:,}", "", "0"))
                continue
            spec, weights, num_bytes = next(specs), "", 0
            for _ in parameter_shapes(spec):
                num_bytes += next(arrays).nbytes
            what = getattr(layer, "activation", None) or _formula(layer)
            if isinstance(layer, Dense):
                quantized = next(of_dense)
                floats += (width + layer.use_bias) * layer.units
                width = layer.units
                weights = WEIGHTS[quantized.bits] + ", uint8 inputs" * (quantized.input_scale > 0)
            elif isinstance(layer, Trained):
                floats += num_bytes // 4
            total += num_bytes
            rows.append((name, what, f"{width:,}", weights, f"{num_bytes:,}"))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{name:<{sizes[0]}}  {what:<{sizes[1]}}  {outputs:>{sizes[2]}}  {weights:>{sizes[3]}}  {size:>{sizes[4]}}"
            for name, what, outputs, weights, size in rows
        ]
        share = total / (4 * floats)
        end = f"total: {floats:,} parameters, {total:,} bytes ({share:.2f} of float32), {self.inputs:,} inputs"
        return "\n".join([*lines, end])

    def __repr__(self) -> str:
        layers = ", ".join(map(repr, self.layers))
        bits = ", ".join(WEIGHTS[quantized.bits] for quantized in self._quantized)
        return f"QuantizedModel([{layers}], {bits}, inputs={self.inputs}, backend={self.backend!r})"


def _formula(layer: Any) -> str:
    return f"rate {layer.rate:g}" if hasattr(layer, "rate") else str(layer.formula())


def _check_backend(name: Any) -> str:
    name = _backends.known(name)
    if name not in BACKENDS:
        raise ValueError(f"the backend {name!r} has no layers of integers; those that do: {', '.join(BACKENDS)}")
    return name


def quantized_specs(specs: Sequence[LayerSpec], quantized: Sequence[Quantized]) -> list[LayerSpec]:
    """Return the specs with the dense ones made those of codes, of which `quantized` says which."""
    of_dense = iter(quantized)
    return [spec._replace(quantized=next(of_dense)) if isinstance(spec, DenseSpec) else spec for spec in specs]


def weights_of(spec: DenseSpec, codes: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """Return the float32 weights (inputs, outputs) that the codes of a layer stand for."""
    assert spec.quantized is not None
    found: np.ndarray = _backends.get("numpy").weights_of(spec.quantized, spec.inputs, codes, scales)
    return found


def build(description: Mapping[str, Any], tensors: dict[str, np.ndarray], backend: str | None) -> QuantizedModel:
    """Make the quantized model of a file; ValueError for a damaged one."""
    parts = _quantized_file.parts_of(description)
    specs: list[LayerSpec] = []
    model: Any = Sequential(parts.layers, parts.seed)
    specs = quantized_specs(model.specs(parts.inputs), parts.quantized)
    arrays = _quantized_file.arrays_of(model.layers, specs, tensors)
    made = QuantizedModel(
        parts.layers, parts.quantized, parts.inputs, arrays, parts.seed, backend or description["backend"]
    )
    _quantized_file.restore(made, description, tensors)
    return made
