"""Masks of pruned weights in the updates of a training: against the reference, and bit for bit."""

import numpy as np
import pytest

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import (
    AfterStep,
    Batches,
    Constraint,
    DenseSpec,
    DropoutSpec,
    LayerNormSpec,
    LossSpec,
    OptimizerSteps,
    ParamSettings,
    parameter_shapes,
)

from .test_network import TOLERANCE, data_for

LOSS = "mean_squared_error"
LAYERS = [DenseSpec(6, 9, "tanh"), DropoutSpec(0.2), LayerNormSpec(9), DenseSpec(9, 7, "relu", bias=False)]
LAYERS += [DenseSpec(7, 3)]
KERNELS, SETTINGS = (0, 4, 5), [ParamSettings(l1=1e-3, l2=1e-2), *[ParamSettings()] * 6]
HOW = {
    "fused": {},
    "averages": {"averages": True},
    "clipped": {"clip_norm": 0.1},
    "clipped averages": {"clip_norm": 0.1, "averages": True},
    "accumulated": {"accumulate": 3},
    "clipped and accumulated": {"clip_norm": 0.1, "accumulate": 2},
    "constrained": {"limits": [Constraint("max_norm", (0,), 0.5), *[None] * 6], "averages": True},
    "penalised": {"settings": SETTINGS},
    "weighted": {"weights": True},
    "frozen": {"frozen": (0, 1)},
    "some layers": {"masked": (4,)},
}


def params_for(rng, layers, dtype):
    shapes = [shape for layer in layers for shape in parameter_shapes(layer).values()]
    return [rng.normal(0, 0.5, shape).astype(dtype) for shape in shapes]


def masks_for(params, masked, ones=False):
    rng = np.random.default_rng(5)
    return [
        None if i not in masked else np.ones(p.shape, np.uint8) if ones else rng.integers(0, 2, p.shape, np.uint8)
        for i, p in enumerate(params)
    ]


def trained(backend, rule="adam", dtype="float64", masked=KERNELS, ones=False, layers=LAYERS, n=22, size=4, **how):
    """Parameters, states, averages and masks after two epochs."""
    rng = np.random.default_rng(0)
    params, frozen = params_for(rng, layers, dtype), how.pop("frozen", ())
    states = [
        None if i in frozen else tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states) for i, p in enumerate(params)
    ]
    x, y = data_for(rng, LOSS, n, layers[0].inputs, layers[-1].outputs, dtype)
    averages = [None if i in frozen else np.zeros_like(p) for i, p in enumerate(params)]
    averages = averages if how.pop("averages", False) else []
    w = rng.integers(0, 2, n).astype(dtype) if how.pop("weights", False) else None
    batches = Batches(x, y, np.arange(n), size, how.pop("accumulate", 1), how.pop("epochs", 2), weights=w)
    steps = batches.epochs * batches.steps
    after = AfterStep(how.pop("limits", ()), averages, np.full(steps, 0.25))
    masks = masks_for(params, masked, ones) if masked else ()
    optimizer = OptimizerSteps(
        rule, states, OPTIMIZERS[rule].options, np.full(steps, 1e-2), after=after, masks=masks, **how
    )
    network = backend.Network(layers, params, dtype, LossSpec(LOSS), [])
    network.train(batches, optimizer, seed=3)
    return params, states, averages, masks


def arrays_of(result):
    params, states, averages, _ = result
    return [*params, *(array for of_param in states for array in of_param or ()), *averages]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.repeats)])
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_against_the_reference(how, dtype):
    ours, theirs = (trained(backend, dtype=dtype, **dict(how)) for backend in (cpu, reference))
    for a, b in zip(arrays_of(ours), arrays_of(theirs), strict=True):
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    zeros_where_pruned(ours, how.get("frozen", ()))
    zeros_where_pruned(theirs, how.get("frozen", ()))


def zeros_where_pruned(result, frozen=()):
    params, states, averages, masks = result
    for i, mask in enumerate(masks):
        if mask is not None and i not in frozen:
            arrays = [params[i], *states[i], *averages[i : i + 1]]
            for array in arrays:
                assert not array[mask == 0].any()
            assert arrays[0][mask == 1].all()  # the others are trained


@pytest.mark.repeats
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_rule_leaves_pruned_weights_and_their_states_at_zero(rule):
    zeros_where_pruned(trained(cpu, rule, "float32", n=8, size=2, averages=True))


@pytest.mark.parametrize("how", [HOW["fused"], HOW["averages"], HOW["clipped"], HOW["accumulated"]], ids=str)
def test_a_mask_of_ones_changes_no_bit(how):
    with_ones, without = (trained(cpu, ones=True, masked=masked, **dict(how)) for masked in (KERNELS, ()))
    for a, b in zip(arrays_of(with_ones), arrays_of(without), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pruned_weights_have_no_part_in_the_norm():
    """A clipped step of plain descent moves those that are left by the rate times the largest norm, together."""
    layers = [DenseSpec(5, 4, bias=False)]
    before = params_for(np.random.default_rng(0), layers, "float64")[0]
    for backend in (cpu, reference):
        params, _, _, masks = trained(backend, "sgd", layers=layers, masked=(0,), n=4, epochs=1, clip_norm=1e-3)
        moved = (params[0] - before)[masks[0] == 1]
        np.testing.assert_allclose(np.sqrt(np.sum(moved**2)), 1e-2 * 1e-3, rtol=1e-5)


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
def test_bits_do_not_depend_on_the_number_of_threads(threads):
    results = []
    for count in (1, 2, 4):
        with threads(count):
            layers = [DenseSpec(64, 300, "relu"), DenseSpec(300, 130)]
            results.append(trained(cpu, "adam", "float32", (0, 2), layers=layers, n=700, size=160, averages=True))
    for other in results[1:]:
        for a, b in zip(arrays_of(results[0]), arrays_of(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_masks_may_change_between_passes():
    """A mask that is changed in place is that of the next pass, with the program of the one before."""
    rng, layers = np.random.default_rng(0), [DenseSpec(6, 3)]
    params = params_for(rng, layers, "float32")
    x, y = data_for(rng, LOSS, 8, 6, 3, "float32")
    mask, states = np.ones((6, 3), np.uint8), [(np.zeros_like(p),) * 2 for p in params]
    steps = OptimizerSteps("adam", states, OPTIMIZERS["adam"].options, np.full(2, 1e-2), masks=[mask, None])
    network = cpu.Network(layers, params, "float32", LossSpec(LOSS), [])
    network.train(Batches(x, y, np.arange(8), 4), steps, seed=0)
    assert params[0].all()
    mask[:, 1] = 0
    network.train(Batches(x, y, np.arange(8), 4), steps, seed=0)
    assert not params[0][:, 1].any()
    assert params[0][:, [0, 2]].all()
