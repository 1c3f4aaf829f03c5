"""Loading of models."""

from __future__ import annotations

import logging
from typing import Any

from .. import _backends
from .._files import Path, Readable
from . import _description, _quantized_training, checkpoint, quantized
from .sequential import Sequential

log = logging.getLogger("fastopt")


def load_model(path: Path | Readable, backend: str | None = None) -> Sequential:
    """Return the model in a file of `Sequential.save`, ready to predict or to continue training.

    `path` is a str, bytes or os.PathLike, or a file object open for reading in binary mode, such as a pipe, which is
    read from its present position to its end.

    Weights, optimizer with its states and steps, seed and `epochs_done` are those of the saved model, so that further
    training gives the same bits as training without the interruption. A file of a quantized model gives a
    `QuantizedModel` (see `fastopt.compress`), which is a `Sequential` that only predicts. `backend` replaces the saved
    one; where the backend does not compute in the model's `compute_dtype`, a warning is logged, and the model computes
    in its dtype.

    Raises ValueError for a file that is foreign, damaged or cut short, and for one of a newer format; OSError where it
    cannot be read. Nothing in a file is executed, and no more memory is used than twice the file's size.

    >>> import os, tempfile
    >>> from fastopt import Dense, Sequential
    >>> model = Sequential([Dense(2)], inputs=3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.safetensors")
    ...     model.save(path)
    ...     again = load_model(path)
    >>> bool((again.parameters[0] == model.parameters[0]).all())
    True
    """
    if backend is not None:
        _backends.known(backend)
    with checkpoint.opened(path) as (description, tensors):
        compute: Any = description.get("compute_dtype")
        runs_on = _backends.known(backend or description["backend"])
        refusal = _backends.compute_refusal(compute, runs_on) if compute in _backends.COMPUTE else ""
        if refusal:
            log.warning("%s: the model now computes in its dtype", refusal)
            description["compute_dtype"] = None
        if "quantized" in description:
            return quantized.build(description, tensors, backend)
        compiled = description["compile"] or {}
        if compiled.get("quantize") and runs_on not in _quantized_training.BACKENDS:
            log.warning("the backend %r does not round weights in training: training goes on without", runs_on)
            del compiled["quantize"]
        return _description.build_whole(Sequential, description, tensors, backend)
