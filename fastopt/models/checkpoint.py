"""Model files: safetensors, never pickle. The weights and the optimizer's states are tensors, the rest is JSON.

Tensors: "layers.<i>.kernel", "layers.<i>.bias", "optimizer.<parameter>.<state>"; since format 2 also what the model
remembers of its data (see `_data_memory`): "layers.<i>.mean", "layers.<i>.variance", "targets.mean",
"targets.deviation"; since format 3 also the parameters of normalization, "layers.<i>.gamma", "layers.<i>.beta",
"layers.<i>.moving_mean", "layers.<i>.moving_variance", averages of the weights, "averages." before their names, and in
checkpoints of `fit` those of a training that goes on, "training.<i>" (see `_checkpoints`), which make no difference to
whoever loads the model; since format 4 also masks of pruned weights, a bit each, "masks." before their names. Metadata:
one entry, "fastopt", the JSON text of a description (see `_description`).
`fastopt._files` writes a file, whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .. import _files
from .._files import Path, Readable, Writable
from .._validation import check_count, own

# Formats. QUANTIZED is the newest one, that of models of integers, and of those trained for it. CODED is that of
# optimizers with states of 8 bits. PRUNED is that of models with pruned weights. LAYERED is that of checkpoints, of
# models with averages, with layers other than Dense and Dropout, or layers that have constraints, regularizers, rates
# or a decay of their own, or are frozen. Format 2 is that of models that remember something of their data; of others
# format 1 says all.
LAYERED, PRUNED, CODED, QUANTIZED = 3, 4, 5, 6
FORMAT = QUANTIZED
KEY = "fastopt"
TRAINING = "training"  # entry of the description, and first part of the names of tensors
# Errors, besides ValueError, of reading a file with wrong contents; they become ValueErrors.
DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)

Description = dict[str, Any]
Tensors = dict[str, np.ndarray]


def write(
    path: Path | Writable, description: Mapping[str, Any], tensors: Tensors, keep: str | None = None
) -> None:
    """Write a model file; OSError where it cannot be written. keep: name of the file that it replaces, from then on."""
    from safetensors.numpy import save as to_bytes

    _files.write(path, to_bytes(tensors, {KEY: json.dumps(description, allow_nan=False)}), keep=keep)


@contextlib.contextmanager
def opened(path: Path | Readable, training: bool = False) -> Iterator[tuple[Description, Tensors]]:
    """Read a model file: its description, and its tensors, which are copies in memory of their own.

    training: also what a checkpoint has of its training.

    Errors of reading it, also those raised while this is open, become a ValueError that names the file and the reason.
    """
    from safetensors import SafetensorError

    content = _files.read(path)
    try:
        description, tensors = _parse(content)
        if not training:
            description.pop(TRAINING, None)
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{TRAINING}.")}
        yield description, tensors
    except SafetensorError as error:
        raise ValueError(f"{_files.shown(path)} is not a whole safetensors file: {error}") from error
    except DAMAGE as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        kind = "checkpoint" if training else "model file"
        raise ValueError(f"{_files.shown(path)} is not a usable {kind}: {reason}") from error


def _parse(content: bytes) -> tuple[Description, Tensors]:
    from safetensors.numpy import load

    found = load(content)  # checks all of it
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get("__metadata__", {}).get(KEY)
    if text is None:
        raise ValueError("it is a safetensors file, but not one that fastopt wrote")
    tensors = {name: own(found[name], found.pop(name).dtype) for name in list(found)}
    description = json.loads(text)
    if not isinstance(description, dict):
        raise ValueError("its description is not a JSON object")
    if check_count("its format", description["format"]) > FORMAT:
        raise ValueError(f"it has format {description['format']}, and this version of fastopt reads up to {FORMAT}")
    return description, tensors
