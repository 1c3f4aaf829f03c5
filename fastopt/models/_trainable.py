"""Frozen layers: which layers of a model are trained, and what their parameters have for themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .._validation import describe
from ..kernels.spec import MOVING, Constraint, ParamSettings
from ..layers import BatchNorm, Dense, Layer, Trained
from ..optim import Optimizer
from ..preprocessing import Preprocessing


def check_names(names: Any, layers: Sequence[Layer], known: Sequence[str]) -> set[str]:
    """Return the names of layers as a set; TypeError or ValueError unless they are those of layers with weights."""
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, Sequence) or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"names must be the name of a layer, or a list of names; got {describe(names)}")
    with_weights = [name for layer, name in zip(layers, known, strict=True) if isinstance(layer, Trained)]
    for name in listed:
        if name not in with_weights:
            why = "has no weights" if name in known else "is no layer of the model"
            raise ValueError(f"{name!r} {why}; layers with weights: {', '.join(with_weights)}")
    return set(listed)


def named(layers: Sequence[Layer], names: Sequence[str], trainable: bool) -> list[str]:
    """Names of the layers with weights that are trainable, or of those that are not."""
    pairs = zip(layers, names, strict=True)
    return [name for layer, name in pairs if isinstance(layer, Trained) and layer.trainable == trainable]


def with_trainable(
    layers: Sequence[Layer], names: Sequence[str], changed: set[str], trainable: bool
) -> tuple[Layer, ...]:
    """Return the layers, those of the names `changed` trainable or not."""
    return tuple(
        replace(layer, trainable=trainable) if isinstance(layer, Trained) and name in changed else layer
        for layer, name in zip(layers, names, strict=True)
    )


def frozen_params(layers: Sequence[Layer]) -> list[bool]:
    """For each parameter of the layers, in their order: True if it is frozen, or never an optimizer's."""
    trained = [layer for layer in layers if isinstance(layer, Trained)]
    return [not layer.trainable or name in MOVING for layer in trained for name in layer.arrays]


def fixed_layers(layers: Sequence[Layer]) -> tuple[int, ...]:
    """Numbers of the frozen BatchNorms, as `OptimizerSteps.fixed` has them: without layers that prepare data."""
    own = [layer for layer in layers if not isinstance(layer, Preprocessing)]
    return tuple(i for i, layer in enumerate(own) if isinstance(layer, BatchNorm) and not layer.trainable)


def settings_of(layers: Sequence[Layer], decay_biases: bool) -> tuple[ParamSettings, ...]:
    """Settings of each parameter of the layers; () if none has any of its own."""
    trained = [layer for layer in layers if isinstance(layer, Trained)]
    settings = tuple(own for layer in trained for own in layer.settings(decay_biases))
    return settings if any(own != ParamSettings() for own in settings) else ()


def constraints_of(layers: Sequence[Layer]) -> tuple[Constraint | None, ...]:
    """The constraint of each parameter of the layers, as backends take it; () if none has any."""
    limits: list[Constraint | None] = []
    for layer in layers:
        if isinstance(layer, Trained):
            limits += layer.constraints() if isinstance(layer, Dense) else [None] * len(layer.arrays)
    return tuple(limits) if any(limit is not None for limit in limits) else ()


def check_trainable(settings: Sequence[ParamSettings], all_frozen: bool, optimizer: Optimizer) -> None:
    """Raise ValueError for layers that the optimizer cannot train; settings: of their parameters."""
    if optimizer.options["maximize"] and any(own.has_penalty for own in settings):
        raise ValueError(
            "regularizers are for losses that are minimized; with maximize=True weights would grow without bound. Use"
            " the optimizer's weight_decay or l1, which shrink them either way"
        )
    if all_frozen:
        raise ValueError("all layers are frozen, so there is nothing to train: call unfreeze with the names of some")
