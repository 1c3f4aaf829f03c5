"""ONNX: files that onnx checks and onnxruntime runs."""

import io
import json
from importlib.util import find_spec

import numpy as np
import pytest
from helpers_export import MODELS, classifier, plain, rows

import fastopt as fo
from fastopt.export import to_onnx

onnx = pytest.importorskip("onnx")
reference = pytest.importorskip("onnx.reference")
version_converter = pytest.importorskip("onnx.version_converter")


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


# ---------------------------------------------------------------- quantized models
def quantized(**options):
    """A quantized classifier of digits, which has learnt them, and rows."""
    digits = fo.datasets.load("digits")
    layers = [fo.Rescaling(1 / 16), fo.Dense(32, "relu"), fo.BatchNorm(), fo.Dense(16, "tanh"), fo.Dense(10, "softmax")]
    model = fo.Sequential(layers, seed=1)
    model.compile(fo.Adam(lr=0.01), "sparse_categorical_crossentropy")
    model.fit(digits.x_train, digits.y_train, epochs=5, verbose=0)
    return fo.compress.quantize(model, digits.x_train, **options), digits.x_test.astype("f4")


@pytest.mark.parametrize("options", [{}, {"weights_only": True}, {"bits": 4}, {"bits": 16}])
def test_quantized_models(options):
    model, x = quantized(**options)
    content, wanted = written(model), model.predict(x)
    made = onnx.load_from_string(content)
    ops = [node.op_type for node in made.graph.node]
    assert ops.count("QuantizeLinear") == (0 if options else 3)
    assert ops.count("DequantizeLinear") == {8: 3 + 3 * (not options)}.get(options.get("bits", 8), 0)
    later = version_converter.convert_version(made, 19)  # the first whose reference has these operators
    ways = [lambda: reference.ReferenceEvaluator(later).run(None, {"x": x})[0]]
    if find_spec("onnxruntime"):
        import onnxruntime

        how = onnxruntime.SessionOptions()
        if options:  # with all optimizations it makes products of integers where weights alone are codes
            how.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session = onnxruntime.InferenceSession(content, how, providers=["CPUExecutionProvider"])
        ways.append(lambda: session.run(None, {"x": x})[0])
    for run in ways:
        found = run()
        assert (found.argmax(axis=1) == wanted.argmax(axis=1)).mean() >= 0.995
        np.testing.assert_allclose(found, wanted, atol=1e-5 if options else 0.05)


def test_other_exports_of_quantized_models():
    model, x = quantized()
    with pytest.raises(ValueError, match=r"to_numpy cannot carry over products of integers: model.dequantize\(\)"):
        fo.export.to_numpy(model, io.BytesIO())
    fo.export.to_numpy(quantized(bits=16)[0], file := io.BytesIO())
    space = {}
    exec(file.getvalue(), space)
    np.testing.assert_allclose(space["predict"](x), quantized(bits=16)[0].predict(x), atol=1e-5)
