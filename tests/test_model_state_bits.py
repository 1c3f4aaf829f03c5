"""Networks whose optimizer keeps states as codes of 8 bits: epochs, options, files, and how well they learn."""

import io

import numpy as np
import pytest

import fastopt as fo
from fastopt.models import checkpoint

ROWS, INPUTS, UNITS, CLASSES = 150, 40, 110, 3  # 4,400 weights in the first layer: codes; others are whole


def data(dtype="f4"):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, INPUTS)).astype(dtype)
    return x, (x @ rng.standard_normal((INPUTS, CLASSES))).argmax(axis=1)


def model(backend="cpu", dtype="float64", layer=None, ema=None, **options):
    made = fo.Sequential(
        [fo.Dense(UNITS, "relu", **(layer or {})), fo.Dense(CLASSES, "softmax")], seed=1, dtype=dtype, backend=backend
    )
    optimizer = fo.Adam(**{"lr": 1e-2, "state_bits": 8, **options})
    made.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"], ema)
    return made


def trained(made, epochs=2, **more):
    x, y = data(made.dtype)
    made.fit(x, y, epochs=epochs, batch_size=32, verbose=False, **more)
    return made


OPTIONS = {
    "plain": ({}, {}, {}),
    "clip_norm": ({"clip_norm": 0.5}, {}, {}),
    "accumulate": ({"weight_decay": 0.1, "l1": 1e-3}, {}, {"accumulate": 2}),
    "constraint": ({}, {"kernel_constraint": fo.constraints.MaxNorm(1.0)}, {}),
    "regularizer": ({"clip_value": 0.01}, {"kernel_regularizer": fo.regularizers.L2(1e-3)}, {}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_epochs_agree_with_the_reference(name):
    options, layer, more = OPTIONS[name]
    ours, reference = (trained(model(backend, layer=layer, **options), **more) for backend in ("cpu", "numpy"))
    states = ours.optimizer.states[0], reference.optimizer.states[0]
    assert [array.dtype for array in states[0]] == [np.uint8, np.float32] * 2
    for a, b in zip(ours.parameters, reference.parameters, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    for a, b in zip(*states, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_averages_agree_with_the_reference():
    ours, reference = (trained(model(backend, ema=fo.EMA(0.9))) for backend in ("cpu", "numpy"))
    for a, b in zip(ours.averages, reference.averages, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_it_learns_as_with_whole_states():
    made = trained(model(dtype="float32"), epochs=15)
    whole = fo.Sequential([fo.Dense(UNITS, "relu"), fo.Dense(CLASSES, "softmax")], seed=1)
    whole.compile(fo.Adam(lr=1e-2), "sparse_categorical_crossentropy", ["accuracy"])
    trained(whole, epochs=15)
    x, y = data()
    assert abs(made.evaluate(x, y)["loss"] - whole.evaluate(x, y)["loss"]) < 0.02


def test_files_continue_with_the_same_bits():
    made = trained(model(dtype="float32"))
    file = io.BytesIO()
    made.save(file)
    file.seek(0)
    other = fo.load_model(file)
    assert other.optimizer.param_groups[0]["state_bits"] == 8
    for one in (made, other):
        trained(one)
    assert all(np.array_equal(a, b) for a, b in zip(made.parameters, other.parameters, strict=True))


def test_the_format_of_files_with_codes():
    file = io.BytesIO()
    trained(model(dtype="float32")).save(file)
    file.seek(0)
    with checkpoint.opened(file) as (description, tensors):
        assert description["format"] == checkpoint.CODED
        assert tensors["optimizer.0.state1"].dtype == np.uint8
        tensors.clear()


@pytest.mark.parametrize("bits", [(8, 32), (32, 8), (8, 8)])
def test_a_resumed_training_has_the_bits_of_its_checkpoint(bits, tmp_path):
    made, other = (model(dtype="float32", state_bits=of_model) for of_model in bits)
    trained(made, epochs=1, checkpoint=tmp_path / "training")
    trained(made, epochs=1)
    trained(other, epochs=2, checkpoint=tmp_path / "training", resume=True)
    assert other.optimizer.param_groups[0]["state_bits"] == bits[0]
    assert all(np.array_equal(a, b) for a, b in zip(made.parameters, other.parameters, strict=True))


def test_pruning_is_refused():
    with pytest.raises(ValueError, match="compile the model with state_bits=32"):
        trained(model(dtype="float32"), pruning=0.5)


@pytest.mark.parametrize("backend", ["cpu", "numpy", "cuda"])
def test_fit_refuses_to_round_at_random(backend):
    with pytest.raises(ValueError, match="state_rounding must be 'nearest'; got 'stochastic'"):
        trained(model(backend, dtype="float32", state_rounding="stochastic"))
