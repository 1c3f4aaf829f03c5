"""Probabilities of classes from the outputs of a network."""

from __future__ import annotations

import numpy as np

from ..kernels.formulas import LOSSES
from ..kernels.spec import LossSpec


def refusal(loss: LossSpec | None, activation: str) -> str:
    """The reason for which outputs are no probabilities, nor logits of any; "" if they are."""
    row = None if loss is None else LOSSES[loss.name]
    if activation in ("softmax", "sigmoid") and (row is None or not row.signs):
        return ""
    if activation == "linear" and row is not None and row.link is not None:
        return ""
    return f"this one ends in {activation} and has {'no loss' if loss is None else f'the loss {loss.name}'}"


def probabilities(outputs: np.ndarray, loss: LossSpec | None, activation: str) -> np.ndarray:
    """Return the probabilities (rows, classes) that outputs (rows, K) stand for; one output tells two classes apart.

    Linear outputs under a cross-entropy are logits: of softmax or of the sigmoid, as the loss has it. Their
    probabilities are exact to rounding for logits of any size.

    >>> logits = np.array([[0.0], [-1000.0]])
    >>> probabilities(logits, LossSpec("binary_crossentropy"), "linear")
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    link = None if loss is None else LOSSES[loss.name].link
    if link == "softmax" and activation == "linear":
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        outputs = np.asarray(powers / powers.sum(axis=1, keepdims=True))
    elif link == "sigmoid" and activation == "linear":
        # a power that cannot overflow
        small = np.exp(-np.abs(outputs))
        outputs = np.where(outputs >= 0, outputs.dtype.type(1), small) / (1 + small)
    return np.concatenate([1 - outputs, outputs], axis=1) if outputs.shape[1] == 1 else outputs
