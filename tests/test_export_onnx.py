"""ONNX: files that onnx checks and onnxruntime runs."""

import io
import json

import numpy as np
import pytest
from helpers_export import MODELS, classifier, plain, rows

import fastopt as fo
from fastopt.export import to_onnx

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")


def written(model):
    file = io.BytesIO()
    to_onnx(model, file)
    return file.getvalue()


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_predicts_the_same(name):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = MODELS[name]("float32")
    session = onnxruntime.InferenceSession(written(model), providers=["CPUExecutionProvider"])
    for count in (1, 9):
        (found,) = session.run(["outputs"], {"x": rows(count)})
        wanted = model.predict(rows(count))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_of_onnx_predicts_the_same(name):
    model = MODELS[name]("float32")
    with np.errstate(over="ignore", invalid="ignore"):  # in the sigmoid and elu of onnx, which it discards
        (found,) = reference.ReferenceEvaluator(onnx.load_from_string(written(model))).run(None, {"x": rows()})
    wanted = model.predict(rows())
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_metadata_and_form():
    model = classifier("softmax", ["low", "mid", "hoch ü"])
    model.feature_names = list("abcde")
    made = onnx.load_from_string(written(model))
    notes = {entry.key: entry.value for entry in made.metadata_props}
    assert json.loads(notes["classes"]) == ["low", "mid", "hoch ü"]
    assert json.loads(notes["feature_names"]) == list("abcde")
    assert notes["rule"] == "largest"
    shapes = [
        [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*made.graph.input, *made.graph.output)
    ]
    assert shapes == [["rows", 5], ["rows", 3]]
    assert [entry.version for entry in made.opset_import] == [17]
    assert not onnx.load_from_string(written(plain(fo.Dense(2)))).metadata_props


def test_float64_is_refused():
    with pytest.raises(ValueError, match="to_onnx cannot carry over dtype float64: save the model, and load_weights"):
        written(plain(fo.Dense(2), dtype="float64"))


def test_too_large_a_model_is_refused(monkeypatch):
    monkeypatch.setattr("fastopt.export._onnx.LARGEST", 47)
    with pytest.raises(ValueError, match="an ONNX file holds less than 2 GB"):
        written(plain(fo.Dense(2)))


def test_without_onnx(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'fastopt\[onnx\]'"):
        written(plain(fo.Dense(2)))
