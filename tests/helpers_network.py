"""Networks on a backend and on the reference, with identical inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastopt.kernels import cuda, reference
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, METRICS, OPTIMIZERS
from fastopt.kernels.spec import (
    MOVING,
    Batches,
    DenseSpec,
    DropoutSpec,
    LayerSpec,
    LossSpec,
    OptimizerSteps,
    PassResult,
    parameter_shapes,
)

# Rounding grows from step to step; float64 shows that nothing else does. In bfloat16 layers
# compute, and all else is float32: both round at the same steps, except the inputs of GELU's epilogue.
TOLERANCE = {"float32": 2e-4, "float64": 1e-10, "bfloat16": 5e-4}
LAYERS = [DenseSpec(3, 5, "relu"), DropoutSpec(0.25), DenseSpec(5, 4, "gelu", False), DenseSpec(4, 3)]


def kept_in(dtype: str) -> str:
    """The dtype of parameters and data."""
    return "float32" if dtype == "bfloat16" else dtype


def data_for(
    rng: np.random.Generator, loss: str, n: int, inputs: int, outputs: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of features with targets of the kind that the loss takes."""
    row = LOSSES[loss]
    x = rng.standard_normal((n, inputs)).astype(dtype)
    if row.targets == "labels":
        return x, rng.integers(0, outputs, n)
    y = (rng.random((n, outputs)) > 0.5).astype(dtype)
    if row.signs:
        y = 2 * y - 1
    if row.by_row:
        y = np.eye(outputs, dtype=dtype)[rng.integers(0, outputs, n)]
    return x, y


def params_for(rng: np.random.Generator, layers: list[LayerSpec], dtype: str) -> list[np.ndarray]:
    params = []
    for layer in layers:
        for name, shape in parameter_shapes(layer).items():
            drawn = 0.1 * rng.standard_normal(shape)
            if name == "kernel":
                drawn *= 10 / shape[0] ** 0.5
            params.append((drawn + (name in ("gamma", "moving_variance"))).astype(dtype))
    return params


def states_for(rule: str, layers: list[LayerSpec], params: list[np.ndarray]) -> list[tuple[np.ndarray, ...] | None]:
    """States of zeros; None of parameters that no optimizer updates."""
    names = [name for layer in layers for name in parameter_shapes(layer)]
    return [
        None if name in MOVING else tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states)
        for name, p in zip(names, params, strict=True)
    ]


class Run:
    """A network with its own copies of parameters and states on one backend."""

    def __init__(
        self, backend: Any, layers: list[LayerSpec], loss: str, metrics: list[str], dtype: str, rule: str = "adam",
        seed: int = 0, **more: Any,
    ) -> None:  # fmt: skip
        more |= {"compute": dtype} if dtype == "bfloat16" else {}
        dtype = kept_in(dtype)
        self.params = params_for(np.random.default_rng(seed), layers, dtype)
        self.states = states_for(rule, layers, self.params)
        self.net = backend.Network(layers, self.params, dtype, LossSpec(loss), metrics, **more)
        self.rule, self.step = rule, 0
        self.owners = [i for i, layer in enumerate(layers) for _ in parameter_shapes(layer)]

    def train(
        self, x: np.ndarray, y: np.ndarray, order: np.ndarray, batch_size: int, seed: int = 3, lr: Any = 1e-2,
        progress: Any = None, accumulate: int = 1, clip_norm: float | None = None, weights: Any = None,
        used: int | None = None, sizes: np.ndarray | None = None, fixed: tuple[int, ...] = (), **options: Any,
    ) -> PassResult:  # fmt: skip
        """fixed: indices of layers whose parameters stay as they are."""
        batches = Batches(x, y, order, batch_size, accumulate, weights=weights, used=used, sizes=sizes)
        rates = np.broadcast_to(lr, batches.steps).astype(float)
        options = {**OPTIMIZERS[self.rule].options, **options}
        try:
            states = [
                None if owner in fixed else of_param for owner, of_param in zip(self.owners, self.states, strict=True)
            ]
            steps = OptimizerSteps(self.rule, states, options, rates, self.step, clip_norm, fixed=fixed)
            return self.net.train(batches, steps, seed, progress)
        finally:
            self.step += self.net.steps_done


def assert_agree(ours: PassResult, theirs: PassResult, dtype: str) -> None:
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert (ours.weights is None) == (theirs.weights is None)
    if ours.weights is not None and theirs.weights is not None:
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-12)
    assert list(ours.metrics) == list(theirs.metrics)
    for name, value in theirs.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], value, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def compare(
    layers: list[LayerSpec], loss: str, metrics: list[str], dtype: str, rule: str = "adam", n: int = 10,
    batch_size: int = 4, epochs: int = 2, backend: Any = cuda, weights: Any = None, **options: Any,
) -> None:  # fmt: skip
    """Some epochs, an evaluation and a prediction on a backend and on the reference."""
    ends = [layer for layer in layers if isinstance(layer, DenseSpec)]
    x, y = data_for(np.random.default_rng(0), loss, n, ends[0].inputs, ends[-1].outputs, kept_in(dtype))
    ours, theirs = (Run(backend, layers, loss, metrics, dtype, rule) for backend in (backend, reference))
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(n)
        trained = [run.train(x, y, order, batch_size, weights=weights, **options) for run in (ours, theirs)]
        assert_agree(*trained, dtype)
        assert ours.step == theirs.step > 0
    rounding = {"rtol": 10 * TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    for ours_all, theirs_all in ((ours.params, theirs.params), (ours.states, theirs.states)):
        for a, b in zip(ours_all, theirs_all, strict=True):
            if a is None:
                continue
            np.testing.assert_allclose(np.array(a), np.array(b), **rounding)
    assert_agree(ours.net.evaluate(x, y, 6, weights), theirs.net.evaluate(x, y, 6, weights), dtype)
    np.testing.assert_allclose(ours.net.predict(x, 6), theirs.net.predict(x, 6), **rounding)


def compare_sizes(backend: Any, epochs: list[list[int]], accumulate: int = 1, **options: Any) -> Run:
    """Train on epochs of batches of these sizes, and on the reference by passes of one step of equal batches each.

    The last row of each epoch's order is left out. weights: a function of the number of rows. The steps of the
    reference are whole where dropout does not tell batches apart; return the network that was trained.
    """
    layers = [DenseSpec(3, 5, "tanh"), DropoutSpec(0.3 if accumulate == 1 else 0.0), DenseSpec(5, 3)]
    loss, most = "sparse_categorical_crossentropy", max(max(sizes) for sizes in epochs)
    rows = max(map(sum, epochs)) + 1
    x, y = data_for(np.random.default_rng(0), loss, rows, 3, 3, "float64")
    weights = options.pop("weights")(rows) if "weights" in options else None
    ours, theirs = (Run(which, layers, loss, ["accuracy"], "float64") for which in (backend, reference))
    for epoch, sizes in enumerate(epochs):
        order = np.random.default_rng(epoch).permutation(rows)[: sum(sizes) + 1]
        told = {"weights": weights, **options}
        result = ours.train(x, y, order, most, accumulate=accumulate, sizes=np.array(sizes), **told)
        steps = [sum(sizes[i : i + accumulate]) for i in range(0, len(sizes), accumulate)]
        losses, right, total, start = [], 0.0, 0.0, 0
        for size in steps:
            of_step = theirs.train(x, y, order[start : start + size], size, **told)
            share = size if of_step.weights is None else of_step.weights[0]
            losses.append(of_step.losses[0])
            right += share * of_step.metrics["accuracy"] if share else 0.0
            total, start = total + share, start + size
        np.testing.assert_allclose(result.losses, losses, rtol=1e-10, atol=1e-12)
        assert result.metrics["accuracy"] == pytest.approx(right / total, rel=1e-12)
    assert ours.step == theirs.step
    for a, b in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-9, atol=1e-11)
    return ours


class Bfloat16Options:
    """Tests of every option of networks whose layers compute in bfloat16, for a backend that a subclass names."""

    backend: Any

    def compare(self, layers: list[LayerSpec], loss: str, metrics: list[str], rule: str, **options: Any) -> None:
        compare(layers, loss, metrics, "bfloat16", rule, epochs=1, backend=self.backend, **options)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_every_loss(self, loss):
        row = LOSSES[loss]
        metrics = [name for name, metric in METRICS.items() if metric.goes_with(row)]
        layers = [DenseSpec(3, 4, "tanh"), DenseSpec(4, 3, row.link or "linear")]
        self.compare(layers, loss, metrics, "sgd", n=6)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_activation(self, activation):
        """Between layers, and of the last one, whose outputs are float32."""
        layers = [DenseSpec(8, 5, activation), DenseSpec(5, 8, activation, False), DenseSpec(8, 2, activation)]
        self.compare(layers, "mean_squared_error", [], "sgd", n=5)

    @pytest.mark.parametrize("rule", {row.rule: name for name, row in OPTIMIZERS.items()}.values())
    def test_every_optimizer(self, rule):
        """Some steps: copies that layers read are those of the parameters after each."""
        self.compare([DenseSpec(3, 2)], "mean_squared_error", [], rule, n=6, batch_size=3, weight_decay=0.1)

    @pytest.mark.parametrize("bias", [False, True])
    def test_dropout_clipping_and_steps_of_several_batches(self, bias):
        layers = [DropoutSpec(0.2), DenseSpec(3, 9, "silu"), DropoutSpec(0.4), DenseSpec(9, 3, "linear", bias)]
        options = {"accumulate": 2, "clip_norm": 0.05, "batch_size": 3}
        self.compare(layers, "sparse_categorical_crossentropy", ["accuracy"], "momentum", n=8, **options)
