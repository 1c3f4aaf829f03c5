"""Networks with normalization and noise on the CPU: against the reference, in every mix, for any number of threads."""

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_network import Run, assert_agree, compare, data_for
from hypothesis import given, settings

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense import layer as dense
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.spec import (
    MOVING,
    ActivationSpec,
    BatchNormSpec,
    DenseSpec,
    DropoutSpec,
    GaussianNoiseSpec,
    LayerNormSpec,
    parameter_shapes,
)

MSE, LABELS = "mean_squared_error", "sparse_categorical_crossentropy"
NETWORKS = {
    "batch norm": [DenseSpec(5, 70), BatchNormSpec(70), DenseSpec(70, 3, "tanh")],
    "layer norm": [DenseSpec(5, 70, "tanh"), LayerNormSpec(70), DenseSpec(70, 3, "tanh")],
    "first": [BatchNormSpec(5), LayerNormSpec(5), DenseSpec(5, 3)],
    "first, without gamma and beta": [BatchNormSpec(5, center=False, scale=False), DenseSpec(5, 3)],
    "layer norm first": [LayerNormSpec(5, center=False), DenseSpec(5, 3)],
    "in a row": [DenseSpec(5, 9, "silu"), BatchNormSpec(9, scale=False), BatchNormSpec(9), LayerNormSpec(9),
                 DenseSpec(9, 3)],
    "with dropout and noise": [GaussianNoiseSpec(0.2), DenseSpec(5, 33, "tanh"), BatchNormSpec(33), DropoutSpec(0.3),
                               DenseSpec(33, 8, "sigmoid"), DropoutSpec(0.2), LayerNormSpec(8), GaussianNoiseSpec(0.3),
                               DenseSpec(8, 3)],
    "activations": [BatchNormSpec(5), ActivationSpec(5, "tanh"), DenseSpec(5, 70), BatchNormSpec(70),
                    ActivationSpec(70, "silu"), ActivationSpec(70, "linear"), DenseSpec(70, 40), LayerNormSpec(40),
                    ActivationSpec(40, "sigmoid"), DropoutSpec(0.2), DenseSpec(40, 3)],
    "noise": [GaussianNoiseSpec(0.0), DenseSpec(5, 6, "relu"), GaussianNoiseSpec(0.5), GaussianNoiseSpec(0.1),
              DenseSpec(6, 3)],
}  # fmt: skip


def names_of(layers):
    return [name for layer in layers for name in parameter_shapes(layer)]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.repeats)])
@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_networks(layers, dtype):
    """Not by Adam: the gradient of a bias below a BatchNorm is rounding alone, which Adam would divide by itself."""
    compare(layers, LABELS, ["accuracy"], dtype, "momentum", n=21, batch_size=10, backend=cpu, weight_decay=0.1)


@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_bfloat16(layers):
    compare(layers, LABELS, [], "bfloat16", "sgd", n=10, batch_size=10, epochs=1, backend=cpu)


@pytest.mark.parametrize(("accumulate", "clip_norm"), [(1, 0.05), (2, None), (3, 0.1)])
@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_steps_of_several_batches_and_clipping(layers, accumulate, clip_norm):
    options = {"accumulate": accumulate, "clip_norm": clip_norm}
    compare(layers, MSE, [], "float64", "momentum", n=29, batch_size=6, backend=cpu, **options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rows_with_weights(accumulate):
    """A step whose weights sum to 0 leaves the moving averages, too; in other steps rows of weight 0 count in them."""
    weights = np.random.default_rng(0).integers(0, 3, 24).astype(float)
    weights[np.random.default_rng(0).permutation(24)[: 4 * accumulate]] = 0  # the first step of the first epoch
    layers = [BatchNormSpec(5), DenseSpec(5, 6, "tanh"), LayerNormSpec(6), DenseSpec(6, 3)]
    more = {"batch_size": 4, "accumulate": accumulate, "weights": weights}
    compare(layers, MSE, [], "float64", "momentum", n=24, backend=cpu, **more)


def test_a_step_without_weight_moves_nothing():
    run = Run(cpu, [BatchNormSpec(5), DenseSpec(5, 3)], MSE, [], "float64")
    before = [p.copy() for p in run.params]
    x, y = data_for(np.random.default_rng(0), MSE, 4, 5, 3, "float64")
    run.train(x, y, np.arange(4), 4, weights=np.zeros(4))
    assert all(map(np.array_equal, run.params, before))
    run.train(x, y, np.arange(4), 4, weights=np.eye(4)[0])
    assert not any(map(np.array_equal, run.params, before))


def test_fixed_layers():
    """Between layers that are trained, and after passes in which they were not fixed, or others were."""
    layers = [BatchNormSpec(5), DenseSpec(5, 70), BatchNormSpec(70), DenseSpec(70, 3), BatchNormSpec(3, scale=False),
              DenseSpec(3, 3)]  # fmt: skip
    ours, theirs = (Run(backend, layers, MSE, [], "float64", "momentum") for backend in (cpu, reference))
    x, y = data_for(np.random.default_rng(0), MSE, 21, 5, 3, "float64")
    for fixed in ((), (2, 4), (4,), ()):
        before = [p.copy() for p in ours.params]
        assert_agree(*(run.train(x, y, np.arange(21), 10, fixed=fixed) for run in (ours, theirs)), "float64")
        for owner, name, p, was in zip(ours.owners, names_of(layers), ours.params, before, strict=True):
            if owner in fixed or name in MOVING:
                assert np.array_equal(p, was) == (owner in fixed), name
    for p, q in zip(ours.params, theirs.params, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-9)


def test_batches_of_a_single_row():
    """Each column is then its own mean, and nothing flows through a BatchNorm but beta."""
    compare(NETWORKS["in a row"], MSE, [], "float64", "momentum", n=3, batch_size=1, backend=cpu)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_random_networks(data):
    """Rows in whole tiles and others, columns in whole pieces and others, parameters that are left out, splits."""
    width, layers = data.draw(st.integers(1, 150)), []
    for _ in range(data.draw(st.integers(1, 3))):
        epsilon, center, scale = 0.1, data.draw(st.booleans()), data.draw(st.booleans())
        kinds = [LayerNormSpec(width, epsilon, center, scale), BatchNormSpec(width, epsilon, center, scale, 0.7)]
        kinds += [DropoutSpec(0.2), GaussianNoiseSpec(0.1)]
        layers += data.draw(st.lists(st.sampled_from(kinds), max_size=2))
        wide = data.draw(st.integers(1, 150))
        layers.append(DenseSpec(width, wide, data.draw(st.sampled_from(["linear", "tanh", "silu"]))))
        width = wide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "SPLIT_FLOPS", data.draw(st.sampled_from([0, dense.SPLIT_FLOPS])))
        n, batch_size = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
        compare(layers, MSE, [], "float64", "momentum", n=n, batch_size=batch_size, epochs=1, backend=cpu)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.repeats)])
def test_bits_do_not_depend_on_the_number_of_threads(dtype, threads):
    n, columns = (20, 70) if INTERPRETED else (700, 300)
    layers = [
        GaussianNoiseSpec(0.1), DenseSpec(9, columns), BatchNormSpec(columns), DenseSpec(columns, 130, "relu"),
        LayerNormSpec(130), GaussianNoiseSpec(0.1), DenseSpec(130, 10),
    ]  # fmt: skip
    x, y = data_for(np.random.default_rng(0), LABELS, n, 9, 10, dtype)
    results = []
    for count in (1, 2, 4):
        with threads(count):
            run = Run(cpu, layers, LABELS, ["accuracy"], dtype)
            losses = run.train(x, y, np.arange(n), 100).losses
            results.append((*run.params, losses, run.net.evaluate(x, y, 300).losses, run.net.predict(x, 300)))
    for others in results[1:]:
        for ours, first in zip(others, results[0], strict=True):
            np.testing.assert_array_equal(ours, first)
