"""Exports in general, the file that needs NumPy alone, and the command."""

import io
import subprocess
import sys

import numpy as np
import pytest
from helpers_export import (
    CLASSIFIERS,
    INPUTS,
    MODELS,
    assert_close,
    assert_same_meaning,
    classifier,
    mixes,
    plain,
    regression,
    rows,
)
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from fastopt.cli.main import main
from fastopt.export import _torch

CALLS = {
    "to_onnx": lambda model: fo.export.to_onnx(model, io.BytesIO()),
    "to_numpy": lambda model: fo.export.to_numpy(model, io.BytesIO()),
    "to_torch": lambda model: fo.export.to_torch(model),
    "to_sklearn": lambda model: fo.export.to_sklearn(model),
    "to_keras_weights": lambda model: fo.export.to_keras_weights(model),
}


def predictor(model):
    """The names of the written module."""
    file, names = io.BytesIO(), {"__name__": "predictor"}
    fo.export.to_numpy(model, file)
    exec(compile(file.getvalue(), "predictor.py", "exec"), names)
    return names


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_the_file_for_numpy_predicts_the_same(name, dtype):
    model = MODELS[name](dtype)
    assert_close(predictor(model)["predict"](rows()), model.predict(rows()))


@given(model=mixes(), count=st.integers(1, 4))
def test_mixes_of_layers_in_the_file_for_numpy(model, count):
    assert_same_meaning(predictor(model)["predict"](rows(count)), model, rows(count))


def test_a_file_for_numpy_by_hand():
    """x = 2: (2 - 1) / 2 = 0.5, relu(0.5 * 3 + 1) = 2.5, 2.5 * -2 = -5, and in units of the targets -5 * 10 + 7."""
    model = fo.Sequential(
        [fo.Normalization(mean=1.0, variance=4.0), fo.Dense(1, "relu"), fo.Dense(1, use_bias=False)], inputs=1
    )
    model.set_weights([[[3.0]], [1.0], [[-2.0]]])
    model.target_scale = (7.0, 10.0)
    assert predictor(model)["predict"]([[2], [-9]]).tolist() == [[-43.0], [7.0]]


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_file_for_numpy_names_the_classes(name, labelled):
    outputs = max(CLASSIFIERS[name][2], 2)
    model = classifier(name, ["b'", 'a"""', "ü\n", "d"][:outputs] if labelled else None)
    found, wanted = predictor(model)["predict_classes"](rows(40)), model.predict_classes(rows(40))
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(wanted)) > 1


def test_a_file_for_numpy_needs_numpy_alone(tmp_path):
    """In a process of its own, which sees no fastopt; the names of columns are quoted."""
    model = classifier("softmax", ["low", "mid", "high"])
    model.feature_names = ['"""', "a\nb", "{x}", "\\", "ü"]
    fo.export.to_numpy(model, tmp_path / "predictor.py")
    np.save(tmp_path / "x.npy", rows())
    code = (
        "import sys, numpy as np; sys.path.insert(0, '.'); import predictor as p; x = np.load('x.npy');"
        "print(p.FEATURE_NAMES); print(*p.predict_classes(x));"
        "print(sorted(m for m in sys.modules if m.startswith(('fastopt', 'numba'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    names, classes, loaded = done.stdout.splitlines()
    assert names == repr(list(model.feature_names))
    assert classes.split() == model.predict_classes(rows()).tolist()
    assert loaded == "[]"


def test_a_file_for_numpy_checks_the_number_of_features():
    predict = predictor(plain(fo.Dense(2)))["predict"]
    with pytest.raises(ValueError, match="x must have 5 features; got 4"):
        predict(rows()[:, :4])
    assert predict(np.zeros((0, INPUTS))).shape == (0, 2)
    assert "predict_classes" not in predictor(plain(fo.Dense(2)))


@pytest.mark.parametrize("call", CALLS)
def test_refusals_that_all_exports_share(call):
    if call == "to_torch":
        pytest.importorskip("torch")
    with pytest.raises(TypeError, match="model must be a fastopt.Sequential; got"):
        CALLS[call]("model")
    with pytest.raises(ValueError, match=f"{call}: the model has no weights yet"):
        CALLS[call](fo.Sequential([fo.Dense(1)]))
    unknown = fo.Sequential([fo.Normalization(), fo.Dense(1)], inputs=2)
    with pytest.raises(ValueError, match=f"{call}: layer normalization_1 has no mean and variance yet"):
        CALLS[call](unknown)
    mixed = fo.Sequential([fo.Dense(1)], backend="numpy", compute_dtype="bfloat16", inputs=2)
    with pytest.raises(ValueError, match=f"{call} cannot carry over compute_dtype='bfloat16': set model.compute_dtype"):
        CALLS[call](mixed)
    fo.Activation.define("exported_square", lambda z: z * z, lambda z: 2 * z)
    own = fo.Sequential([fo.Dense(2, "exported_square", name="mine"), fo.Dense(1)], backend="numpy", inputs=2)
    with pytest.raises(ValueError, match=f"{call} cannot carry over the activation 'exported_square' of layer mine"):
        CALLS[call](own)


def test_nothing_is_written_for_a_refused_model(tmp_path):
    with pytest.raises(ValueError, match="no weights yet"):
        fo.export.to_numpy(fo.Sequential([fo.Dense(1)]), tmp_path / "p.py")
    assert list(tmp_path.iterdir()) == []


def test_the_model_stays_as_it_is():
    model = regression()
    before = model.get_weights()
    found = fo.export.to_keras_weights(plain(fo.Dense(2)))
    found[0][...] = 0
    predictor(model)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


def test_every_activation_is_in_every_table():
    from fastopt.export import _numpy, _onnx
    from fastopt.kernels.formulas import OUTPUTS

    assert set(_numpy.FUNCTIONS) | {"linear"} == set(_onnx.ACTIVATIONS) == set(OUTPUTS)
    assert set(_torch.ACTIVATIONS) | {"linear"} == set(OUTPUTS)


# ---------------------------------------------------------------- the command


@pytest.fixture
def saved(tmp_path):
    model = classifier("softmax", ["low", "mid", "high"])
    model.save(tmp_path / "model.safetensors")
    return model, tmp_path / "model.safetensors"


def test_the_command_writes_a_python_file(saved, capsys):
    model, path = saved
    assert main(["export", str(path), "--to", "numpy"]) == 0
    out = path.with_suffix(".py")
    assert capsys.readouterr() == (f"{out}\n", "")
    names = {}
    exec(out.read_text(encoding="utf-8"), names)
    assert names["predict_classes"](rows()).tolist() == model.predict_classes(rows()).tolist()


def test_the_command_writes_a_torch_file(saved, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    model, path = saved
    assert main(["export", str(path), "--to", "torch", "--out", str(tmp_path / "m.pt")]) == 0
    module = torch.load(tmp_path / "m.pt", weights_only=False)
    assert_close(module(torch.tensor(rows())).detach().numpy(), model.predict(rows()))


def test_the_command_writes_an_onnx_file(saved):
    onnx = pytest.importorskip("onnx")
    _, path = saved
    assert main(["export", str(path), "--to", "onnx"]) == 0
    assert onnx.load(path.with_suffix(".onnx")).graph.input[0].name == "x"


def test_the_command_tells_of_tables(saved, capsys):
    model, path = saved
    model.preparation = {"columns": ["a"]}
    model.save(path)
    assert main(["export", str(path), "--to", "numpy"]) == 0
    assert "features as numbers in the network's order" in capsys.readouterr().err


def test_the_command_refuses_files(saved, capsys):
    _, path = saved
    before = path.read_bytes()
    assert main(["export", str(path), "--to", "numpy", "--out", str(path)]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert main(["export", str(path.with_name("none")), "--to", "numpy"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(path), "--to", "pickle"])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
