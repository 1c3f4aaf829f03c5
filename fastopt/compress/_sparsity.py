"""Share of the weights of a model that are zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._validation import describe
from ..models._magnitudes import kernel_indices
from ..models.quantized import QuantizedModel
from ..models.sequential import Sequential

TOTAL = "total"  # key of all weights together


def check_model(model: Any, instead: str = "prune the model that it was made of first") -> Sequential:
    """Return the model; TypeError for anything but a Sequential, ValueError for one without weights of its own.

    instead: advice to those who give a quantized model.
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model must be a Sequential; got {describe(model)}")
    if isinstance(model, QuantizedModel):
        raise ValueError(f"the weights of a quantized model are integers: {instead}")
    if not model.built:
        raise ValueError("the model has no weights yet: call build, or fit")
    return model


def sparsity(model: Sequential) -> dict[str, float]:
    """Return the share of zero weights of each dense layer's kernel, by the layer's name, and of all as "total".

    Biases, and the parameters of normalization, do not count.

    >>> import numpy as np, fastopt as fo
    >>> layers = [fo.Dense(2, kernel_initializer=np.eye(2)), fo.Dense(1, kernel_initializer=np.ones((2, 1)))]
    >>> model = fo.Sequential(layers, inputs=2)
    >>> {name: round(share, 3) for name, share in fo.compress.sparsity(model).items()}
    {'dense_1': 0.5, 'dense_2': 0.0, 'total': 0.333}
    """
    parameters = check_model(model, "ask for the sparsity of model.dequantize()").get_weights()
    kernels = {name: parameters[i] for name, i in kernel_indices(model.layers, model.names).items()}
    zeros = {name: w.size - int(np.count_nonzero(w)) for name, w in kernels.items()}
    shares = {name: zeros[name] / w.size for name, w in kernels.items()}
    return {**shares, TOTAL: sum(zeros.values()) / sum(w.size for w in kernels.values())}
