"""Masks of pruned weights in a training on a GPU: against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device
from helpers_network import TOLERANCE, data_for, kept_in, params_for
from optimizers import first_of_its_kind

require_device()

import fastopt as fo
from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.runtime.array_interface import gpu_of
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import AfterStep, Batches, Constraint, DenseSpec, DropoutSpec, LossSpec, OptimizerSteps

pytestmark = pytest.mark.gpu

LOSS = "mean_squared_error"
LAYERS = [DenseSpec(3, 5, "tanh"), DropoutSpec(0.2), DenseSpec(5, 2)]
HOW = {
    "plain": {},
    "clipped": {"clip_norm": 0.05},
    "clipped and accumulated": {"clip_norm": 0.05, "accumulate": 2},
    "averages and a constraint": {"averages": True, "limits": [Constraint("max_norm", (0,), 0.5), None, None, None]},
    "frozen": {"frozen": (0, 1)},
}


def trained(backend, dtype="float64", rule="adam", frozen=(), limits=(), averages=False, changes=False, **how):
    """Parameters, states and averages after two epochs, each a pass by itself, and the masks."""
    rng, kept = np.random.default_rng(0), kept_in(dtype)
    params = params_for(rng, LAYERS, kept)
    masks = [rng.integers(0, 2, p.shape, np.uint8) if p.ndim == 2 else None for p in params]
    averaged = [None if i in frozen else np.zeros_like(p) for i, p in enumerate(params)] if averages else []
    x, y = data_for(rng, LOSS, 7, 3, 2, kept)
    compute = {"compute": dtype} if dtype == "bfloat16" else {}
    network = backend.Network(LAYERS, params, kept, LossSpec(LOSS), [], **compute)
    batches = Batches(x, y, np.arange(7), 2, how.pop("accumulate", 1))
    states = [
        None if i in frozen else tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states) for i, p in enumerate(params)
    ]
    for epoch in range(2):
        if changes and epoch:
            masks[0][:, 0] = 0
        after = AfterStep(limits, averaged, np.full(batches.steps, 0.25) if averages else None)
        rates, done = np.full(batches.steps, 0.05), epoch * batches.steps
        optimizer = OptimizerSteps(rule, states, OPTIMIZERS[rule].options, rates, done, after=after, masks=masks, **how)
        network.train(batches, optimizer, seed=3)
    return params, states, averaged, masks, network.predict(x)


def assert_agree(dtype="float64", **how):
    ours, theirs = (trained(backend, dtype, **how) for backend in (cuda, reference))
    rounding = {"rtol": 10 * TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    for a, b in zip([*ours[0], *ours[2], ours[4]], [*theirs[0], *theirs[2], theirs[4]], strict=True):
        if a is not None:
            np.testing.assert_allclose(a, b, **rounding)
    for i, mask in enumerate(ours[3]):
        if mask is not None and ours[1][i] is not None:
            for array in (ours[0][i], *ours[1][i], *ours[2][i : i + 1]):
                assert not array[mask == 0].any()
            assert ours[0][i][mask == 1].all()


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_against_the_reference(how):
    assert_agree(**how)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes(dtype):
    assert_agree(dtype, rule="momentum")


@pytest.mark.parametrize("rule", [rule for rule in OPTIMIZERS if first_of_its_kind(rule)])
def test_rules(rule):
    """One with each number of states: those behind the mask are written, too."""
    assert_agree("bfloat16" if rule == "amsgrad" else "float64", rule=rule)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_the_update_reads_the_mask(clip_norm, monkeypatch):
    """Gradients have a launch of their own where a norm is taken of them; nothing else has."""
    gpu, launched = type(gpu_of(())), []
    launch = gpu.launch

    def spy(self, kernel, *args):
        launched.append(kernel.name)
        launch(self, kernel, *args)

    monkeypatch.setattr(gpu, "launch", spy)
    trained(cuda, clip_norm=clip_norm)
    masked, others, of_gradients = (
        launched.count(f"update_{name}_float64") for name in ("adam_masked", "adam", "pruned")
    )
    assert masked == others > 0  # of kernels, and of biases, which have no masks
    assert of_gradients == (masked if clip_norm else 0)


def test_masks_may_change_between_passes():
    assert_agree(changes=True)


def test_gradual_pruning_of_a_model_whose_weights_stay_on_the_device():
    x, y = np.random.default_rng(0).standard_normal((12, 3)), np.arange(12) % 2
    models = []
    for backend in ("cuda", "numpy"):
        model = fo.Sequential([fo.Dense(4, "tanh"), fo.Dense(2, "softmax")], 1, backend, "float64", inputs=3)
        model.compile(fo.Adam(lr=0.05), "sparse_categorical_crossentropy", ema=fo.EMA(0.75))
        model.fit(x, y, epochs=2, batch_size=3, pruning=fo.compress.Pruning(0.6, every=2, end=6), verbose=0)
        models.append(model)
    ours, theirs = models
    for a, b in zip([*ours.get_weights(), *ours.averages], [*theirs.get_weights(), *theirs.averages], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert fo.compress.sparsity(ours) == fo.compress.sparsity(theirs)
    assert fo.compress.sparsity(ours)["dense_1"] == 7 / 12
