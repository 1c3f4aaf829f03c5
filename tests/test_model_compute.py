"""Models whose layers compute in another dtype than that of their weights."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from helpers_model import blobs, classifier, snapshot
from safetensors import safe_open
from safetensors.numpy import save_file

import fastopt as fo
from fastopt.kernels import reference
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.spec import DenseSpec, LossSpec


def rounded(x):
    bits = np.zeros(x.shape, np.uint16)
    store(x, bits)
    return widened(bits)


def test_products_are_of_rounded_numbers_and_outputs_are_not():
    rng = np.random.default_rng(0)
    x, v, a, w, b = (rng.standard_normal(s).astype("float32") for s in ((5, 4), (4, 3), (3,), (3, 2), (2,)))
    layers = [DenseSpec(4, 3, "tanh"), DenseSpec(3, 2)]
    network = reference.Network(layers, [v, a, w, b], "float32", LossSpec("mean_squared_error"), [], "bfloat16")
    hidden = rounded(np.tanh(rounded(rounded(x) @ rounded(v) + rounded(a))))
    outputs = hidden @ rounded(w) + b
    np.testing.assert_allclose(network.predict(x), outputs, rtol=1e-6)
    assert (rounded(outputs) != outputs).any()


def test_training_is_that_of_float32_but_for_rounding():
    x, y = blobs()
    mixed, exact = (classifier(compute_dtype=compute) for compute in ("bfloat16", None))
    for model in (mixed, exact):
        model.fit(x, y, epochs=5)
    assert {p.dtype for p in mixed.parameters} == {np.dtype("float32")}
    assert mixed.predict(x).dtype == np.float32
    np.testing.assert_allclose(mixed.history["loss"], exact.history["loss"], rtol=0.03)
    assert (mixed.predict(x) != exact.predict(x)).any()
    np.testing.assert_allclose(mixed.predict(x), exact.predict(x), atol=0.05)
    mixed.compute_dtype = "float32"
    exact.set_weights(mixed.get_weights())
    np.testing.assert_array_equal(mixed.predict(x), exact.predict(x))


def test_texts():
    model = classifier(compute_dtype="bfloat16", inputs=6)
    assert "compute_dtype='bfloat16'" in repr(model)
    assert model.summary().endswith("float32, computed in bfloat16")
    model.compute_dtype = None
    assert "compute_dtype" not in repr(model)
    assert model.summary().endswith("float32")


def test_the_backend_must_be_one_that_can():
    model = classifier(compute_dtype="bfloat16")
    before = snapshot(model)
    with pytest.raises(ValueError, match="the backend 'cpu' does not compute in bfloat16"):
        model.backend = "cpu"
    assert snapshot(model)["counts"] == before["counts"]
    model.backend = "cuda"  # nothing is asked of it yet
    model.compute_dtype = None
    model.backend = "cpu"
    with pytest.raises(ValueError, match="the backend 'cpu' does not compute in bfloat16"):
        model.compute_dtype = "bfloat16"
    assert model.compute_dtype == "float32"


def test_files(tmp_path, caplog):
    path = tmp_path / "model.safetensors"
    whole, first = (classifier(compute_dtype="bfloat16") for _ in range(2))
    whole.fit(*blobs(), epochs=2)
    first.fit(*blobs(), epochs=1)
    first.save(path)
    second = fo.load_model(path)
    assert second.compute_dtype == "bfloat16"
    second.fit(*blobs(), epochs=2, initial_epoch=1)
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        np.testing.assert_array_equal(a, b)
    with caplog.at_level(logging.WARNING, "fastopt"):
        assert fo.load_model(path, backend="cuda").compute_dtype == "bfloat16"
        classifier("cpu").load_weights(path)
        assert not caplog.records
        other = fo.load_model(path, backend="cpu")
    assert (other.backend, other.compute_dtype) == ("cpu", "float32")
    assert "the backend 'cpu' does not compute in bfloat16" in caplog.text


def test_a_file_from_before_there_was_such_a_thing(tmp_path):
    path = tmp_path / "model.safetensors"
    model = classifier(inputs=6)
    model.save(path)
    with safe_open(path, framework="numpy") as file:
        description = json.loads(file.metadata()["fastopt"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del description["compute_dtype"]
    save_file(tensors, path, {"fastopt": json.dumps(description)})
    assert fo.load_model(path).compute_dtype == "float32"
