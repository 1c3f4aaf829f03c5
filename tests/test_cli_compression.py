"""`fastopt train` for smaller models, and what the other commands do with their files."""

import numpy as np
import pytest
from helpers_cli import write_classes

import fastopt as fo
from fastopt.cli import experiment

ROWS = 40


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    monkeypatch.setattr(experiment, "REST_SECONDS", 0.0)


@pytest.fixture
def data(tmp_path):
    """A .npz file of three classes."""
    return write_classes(tmp_path / "classes.npz", ROWS)


@pytest.fixture
def train(run, data, tmp_path):
    """A function that trains with some options, and returns the model that was saved, and what was printed."""

    def train(*options):
        path = tmp_path / "model.safetensors"
        always = ("--backend", "numpy", "--layers", "8", "--epochs", 3, "--batch-size", 8, "--save", path)
        status, out, err = run("train", data, *always, *options)
        assert (status, err) == (0, "")
        return fo.load_model(path), out

    return train


@pytest.mark.parametrize("option", ["--pruning", "--prune"])
def test_pruning(train, option):
    model, out = train(option, 0.5)
    shares = fo.compress.sparsity(model)
    assert shares == {"dense_1": 0.5, "dense_2": 0.5, "total": 0.5}
    assert "0.5 of the weights pruned" in out
    assert "Of the weights 50.0% are zero." in out


def test_scope_of_pruning(train):
    shares = fo.compress.sparsity(train("--pruning", 0.5, "--pruning-scope", "network")[0])
    assert shares["total"] == 0.5
    assert shares["dense_1"] != 0.5


@pytest.mark.parametrize(
    ("way", "bits", "has_ranges"), [("int8", 8, True), ("int8_weights", 8, False), ("int4", 4, False)]
)
def test_quantize(train, data, way, bits, has_ranges):
    model, out = train("--quantize", way)
    assert [(q.bits, q.input_scale > 0) for q in model.quantized] == [(bits, has_ranges)] * 2
    plain, _ = train("--quiet")
    rounded = fo.compress.quantize(plain, np.load(data)["x"], bits=bits, weights_only=not has_ranges)
    assert (rounded.parameters[2] != model.parameters[2]).any()  # biases, trained with the rounding, so other weights
    sizes = [sum(p.nbytes for p in some.parameters) for some in (model, plain)]
    assert f"of the quantized model, of {sizes[0]:,} bytes instead of {sizes[1]:,}." in out


def test_bits_of_states(run, data, tmp_path):
    path = tmp_path / "model.safetensors"
    options = ("--backend", "numpy", "--layers", "1024", "--epochs", 1, "--state-bits", 8, "--save", path)
    status, out, _ = run("train", data, *options)
    assert status == 0
    assert "state bits 8" in out
    assert fo.load_model(path).optimizer.param_groups[0]["state_bits"] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pruning", "1"), "argument --pruning/--prune: must be at least 0 and less than 1; got '1'"),
        (("--pruning", "90%"), "argument --pruning/--prune: must be at least 0 and less than 1; got '90%'"),
        (("--pruning-scope", "layer"), "--pruning-scope needs --pruning"),
        (("--quantize", "int5"), "argument --quantize: invalid choice: 'int5'"),
        (("--state-bits", "4"), "argument --state-bits: invalid choice: 4"),
        (("--quantize", "int8", "--dtype", "float64"), "quantize='int8' is for models that compute in float32"),
        (("--pruning", "0.5", "--state-bits", "8"), "which codes of 8 bits cannot: --state-bits 32"),
    ],
)
def test_errors(run, data, options, message):
    status, out, err = run("train", data, "--backend", "numpy", *options)
    assert (status, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("options", [("--pruning", 0.5), ("--quantize", "int8"), ("--quantize", "int4")])
def test_commands_on_a_small_model(run, train, data, tmp_path, options):
    model, _ = train(*options)
    path, x = tmp_path / "model.safetensors", np.load(data)["x"].astype(np.float32)
    status, out, _ = run("predict", path, data, "--backend", "numpy")
    assert (status, out.split()) == (0, [str(label) for label in model.predict_classes(x)])
    status, out, _ = run("evaluate", path, data, "--backend", "numpy")
    assert (status, "accuracy" in out) == (0, True)
    status, out, _ = run("summary", path)
    assert status == 0
    assert out.startswith(model.summary() + "\n")
    assert "loss       sparse_categorical_crossentropy\n" in out
    assert "classes    0, 1, 2\n" in out


def test_summary_of_a_bare_model(run, tmp_path):
    model = fo.Sequential([fo.Dense(1)], inputs=2)
    model.save(tmp_path / "m.safetensors")
    assert run("summary", tmp_path / "m.safetensors") == (0, model.summary() + "\n", "")
    status, out, err = run("summary", tmp_path / "none")
    assert (status, out, err.startswith("fastopt: error: ")) == (2, "", True)
