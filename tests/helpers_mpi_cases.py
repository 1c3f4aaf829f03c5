"""Trainings that are compared on several ranks, as a program for each of them and for this process."""

from __future__ import annotations

from typing import Any

import pytest

# Layers, optimizers, losses and options whose trainings are compared: NAME of the command line is one of CASES.
PROGRAM = """
import copy, hashlib, sys
import numpy as np
import fastopt as fo

def digest(arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()

rng = np.random.default_rng(5)
x = rng.normal(size=(203, 6)).astype("float32")
labels = (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)
numbers = np.stack([x[:, 0] * x[:, 1], x.sum(axis=1)], axis=1)

CASES = {
    "adam": dict(optimizer=fo.Adam(lr=0.01, clip_norm=0.5)),
    "sgd": dict(optimizer=fo.SGD(lr=0.1), labels=False, fit=dict(accumulate=3, batch_size=16)),
    "weighted": dict(optimizer=fo.AdamW(lr=0.01), fit=dict(sample_weight=np.arange(203) % 4, drop_last=True)),
    "regularized": dict(
        optimizer=fo.RMSprop(lr=0.01, momentum=0.9), labels=False, hidden=dict(
            kernel_regularizer=fo.regularizers.L1L2(1e-3, 1e-3), kernel_constraint=fo.constraints.MaxNorm(1.0))),
    "averaged": dict(optimizer=fo.Lion(lr=0.003), compile=dict(ema=fo.EMA(decay=0.9)), layer=fo.LayerNorm()),
    "sizes": dict(optimizer="nadam", fit=dict(batch_size=fo.batches.Random(20, 40), validation_split=0.2)),
    "frozen": dict(optimizer="adagrad", hidden=dict(trainable=False)),
    "steps": dict(optimizer="adadelta", fit=dict(steps_per_epoch=5, max_steps=12, batch_size=50)),
}

def train(name, **more):
    case = CASES[name]
    of_classes = case.get("labels", True)
    first = fo.Dense(9, "relu", **case.get("hidden", {}))
    layers = [first, case.get("layer", fo.Dropout(0.3)), fo.Dense(3 if of_classes else 2)]
    model = fo.Sequential(layers, seed=2)
    loss, metrics = ("sparse_categorical_crossentropy", ["accuracy", "f1_macro"]) if of_classes else (
        "mean_squared_error", ["r2", "mae"])
    model.compile(copy.copy(case["optimizer"]), loss, metrics, **case.get("compile", {}))
    options = {"batch_size": 64, "epochs": 2, "verbose": 0, **case.get("fit", {}), **more}
    history = model.fit(x, labels if of_classes else numbers, **options)
    states = [v for s in model.optimizer.state_dict()["state"].values() for v in s.values() if hasattr(v, "shape")]
    figures = {k: v for k, v in history.history.items() if k not in ("seconds", "samples_per_second")}
    averages = model.get_averages() if "compile" in case else []
    told = [digest(model.parameters), digest(states), digest(averages), figures, history.step_losses.tolist()]
    return told, model, history
"""
NAMES = ("adam", "sgd", "weighted", "regularized", "averaged", "sizes", "frozen", "steps")


def alone(name: str, **more: Any) -> Any:
    """The same training on one rank, in this process: its figures, the model and the history."""
    pytest.importorskip("mpi4py")
    space: dict[str, Any] = {}
    exec(PROGRAM, space)
    return space["train"](name, **more)
