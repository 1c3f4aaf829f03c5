"""Models whose layers compute in another dtype than that of their weights."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from helpers_model import assert_same, blobs, classifier, snapshot
from safetensors import safe_open
from safetensors.numpy import save_file

import fastopt as fo
from fastopt.kernels import cpu, reference
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


@pytest.fixture
def processor(monkeypatch):
    """processor(reason): the processor does not compute in bfloat16 for a reason, or does with ""."""

    def use(refusal):
        monkeypatch.setattr(cpu, "bfloat16_refusal", lambda: refusal)

    return use


REFUSAL = "the backend 'cpu' does not compute in bfloat16 here, because abacus is slow; those that do: cuda, numpy"


def test_the_backend_must_be_one_that_can(processor):
    processor("abacus is slow")
    model = classifier(compute_dtype="bfloat16")
    before = snapshot(model)
    with pytest.raises(ValueError, match=REFUSAL):
        model.backend = "cpu"
    assert snapshot(model)["counts"] == before["counts"]
    model.backend = "cuda"  # nothing is asked of it yet
    model.compute_dtype = None
    model.backend = "cpu"
    with pytest.raises(ValueError, match=REFUSAL):
        model.compute_dtype = "bfloat16"
    with pytest.raises(ValueError, match="the backend 'cpu' does not compute in tf32; those that do: cuda"):
        model.compute_dtype = "tf32"
    assert model.compute_dtype == "float32"
    with pytest.raises(ValueError, match=REFUSAL):
        classifier("cpu", compute_dtype="bfloat16")


def test_the_cpu_where_its_processor_can(processor):
    processor("")
    with pytest.raises(ValueError, match="compute_dtype='bfloat16' goes with dtype='float32'; got float64"):
        classifier("cpu", compute_dtype="bfloat16", dtype="float64")
    x, y = blobs()
    ours, theirs = (classifier(backend, compute_dtype="bfloat16") for backend in ("cpu", "numpy"))
    assert "backend='cpu'" in repr(ours)
    for model in (ours, theirs):
        model.fit(x, y, epochs=3, validation_split=0.2)
    for name in ("loss", "accuracy", "val_loss"):
        np.testing.assert_allclose(ours.history[name], theirs.history[name], rtol=2e-3)
    np.testing.assert_allclose(ours.predict(x), theirs.predict(x), atol=4e-3)
    ours.backend = "numpy"
    ours.set_weights(theirs.get_weights())
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    ours.backend, ours.compute_dtype = "cpu", None
    exact = classifier("cpu", inputs=6)
    exact.set_weights(ours.get_weights())
    np.testing.assert_array_equal(ours.predict(x), exact.predict(x))


def test_a_model_that_has_come_from_another_processor(processor):
    processor("")
    model = classifier("cpu", compute_dtype="bfloat16", inputs=6)
    before = snapshot(model)
    processor("abacus is slow")
    with pytest.raises(ValueError, match=REFUSAL):
        model.predict(blobs()[0])
    with pytest.raises(ValueError, match=REFUSAL):
        model.fit(*blobs())
    assert_same(snapshot(model), before)
    model.compute_dtype = None
    model.fit(*blobs())


def test_a_file_from_another_processor(tmp_path, processor, caplog):
    path = tmp_path / "model.safetensors"
    processor("")
    classifier("cpu", compute_dtype="bfloat16", inputs=6).save(path)
    with caplog.at_level(logging.WARNING, "fastopt"):
        assert fo.load_model(path).compute_dtype == "bfloat16"
        processor("abacus is slow")
        assert fo.load_model(path, backend="numpy").compute_dtype == "bfloat16"
        assert not caplog.records
        assert fo.load_model(path).compute_dtype == "float32"
    assert f"{REFUSAL}: the model now computes in its dtype" in caplog.text


def test_files(tmp_path, caplog, processor):
    processor("abacus is slow")
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
    assert REFUSAL in caplog.text


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
