"""Quantized models: codes, ranges, predictions, files, and what is refused."""

from __future__ import annotations

import copy
import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.compress import QuantizedModel, quantize
from fastopt.compress._calibration import calibrate, codes_between
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED

WAYS = {
    "int8": {},
    "percentile": {"calibration": "percentile", "percentile": 99.0},
    "mse": {"calibration": "mse"},
    "weights": {"weights_only": True},
    "groups": {"weights_only": True, "group_size": 3},
    "int4": {"bits": 4, "group_size": 4},
    "bfloat16": {"bits": 16},
}


def trained(backend="cpu"):
    """A classifier of digits with everything that a file must keep, and its data.

    An interpreted run, where a row takes milliseconds, trains it by NumPy and has fewer rows to predict.
    """
    rows = 30 if INTERPRETED else None
    digits = fo.datasets.load("digits")
    labels = np.array([f"digit {i}" for i in range(10)])
    model = fo.Sequential(
        [fo.Rescaling(1 / 16, name="scaled"), fo.Dense(48, "relu"), fo.Dropout(0.1), fo.Dense(10, "softmax")], seed=1
    )
    model.compile(fo.Adam(lr=0.005), "sparse_categorical_crossentropy", ["accuracy", "f1_macro"])
    model.backend = "numpy" if INTERPRETED else "cpu"
    model.fit(digits.x_train, labels[digits.y_train], epochs=10, batch_size=64, verbose=0)
    model.backend = backend
    return model, digits.x_train, digits.x_test[:rows], labels[digits.y_test[:rows]]


@pytest.fixture(scope="module")
def digits():
    return trained()


def reloaded(model):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return fo.load_model(file)


def description_of(model):
    file = io.BytesIO()
    model.save(file)
    content = file.getvalue()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["fastopt"])


# ---------------------------------------------------------------- what they predict
@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_accuracy_survives(digits, name):
    model, x_train, x_test, y_test = digits
    small = quantize(model, x_train, **WAYS[name])
    before, after = model.evaluate(x_test, y_test), small.evaluate(x_test, y_test)
    assert list(after) == list(before)
    assert after["accuracy"] >= before["accuracy"] - (0.015 if name == "int4" else 0.005)
    assert not np.array_equal(small.predict(x_test), model.predict(x_test))
    np.testing.assert_allclose(small.predict(x_test), model.predict(x_test), atol=0.3)
    assert (small.predict_classes(x_test) == model.predict_classes(x_test)).mean() > 0.98
    assert small.predict_classes(x_test)[0].startswith("digit")
    np.testing.assert_allclose(small.predict_proba(x_test).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_backends_agree(digits, name):
    model, x_train, x_test, _ = digits
    small, other = (quantize(model, x_train, backend=backend, **WAYS[name]) for backend in ("cpu", "numpy"))
    for a, b in zip(small.parameters, other.parameters, strict=True):
        np.testing.assert_array_equal(a, b)
    assert other.backend == "numpy"
    np.testing.assert_allclose(small.predict(x_test), other.predict(x_test), rtol=1e-4, atol=1e-6)


def test_formula_of_int8():
    """y = s_x s_w sum (q_x - zero) q_w + b, by int64 sums, with the ranges of the rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (50, 6)).astype("f4")
    model = fo.Sequential([fo.Dense(5, "relu"), fo.Dense(3)], seed=2, inputs=6)
    model.set_weights([rng.normal(size=p.shape) for p in model.parameters])
    (w1, b1, w2, b2), small = model.get_weights(), quantize(model, x)
    hidden = np.maximum(x @ w1 + b1, 0)
    y = x
    for w, b, seen, act in ((w1, b1, x, True), (w2, b2, hidden, False)):
        low, high = min(float(seen.min()), 0), max(float(seen.max()), 0)
        scale = np.float32((high - low) / 255)
        zero = round(-low / float(scale))
        columns = (np.abs(w).max(axis=0).astype("f8") / 127).astype("f4")
        q_w = np.rint(w / columns.astype("f8")).astype("i8")
        q_x = np.clip(np.rint(y * (np.float32(1) / scale)), -zero, 255 - zero).astype("i8")
        y = (q_x @ q_w).astype("f4") * (scale * columns) + b
        y = np.maximum(y, 0) if act else y
    np.testing.assert_array_equal(small.predict(x), y)


def test_formulas_of_weights():
    """Weights alone: int8 and int4 by groups, bfloat16 to nearest."""
    w = np.random.default_rng(1).normal(size=(7, 5)).astype("f4")
    model = fo.Sequential([fo.Dense(5, use_bias=False, kernel_initializer=w)], inputs=7)
    for bits, most in ((8, 127), (4, 7)):
        wanted = np.empty_like(w)
        for rows in (slice(0, 4), slice(4, 7)):
            scale = (np.abs(w[rows]).max(axis=0).astype("f8") / most).astype("f4")
            wanted[rows] = np.rint(w[rows] / scale.astype("f8")).astype("f4") * scale
        small = quantize(model, bits=bits, weights_only=True, group_size=4)
        np.testing.assert_array_equal(small.dequantize().parameters[0], wanted)
        assert small.parameters[0].shape == ((7, 5) if bits == 8 else (4, 5))
    halves = quantize(model, bits=16).dequantize().parameters[0]
    assert (np.abs(halves - w) <= np.abs(w) / 256).all()
    assert not (halves.view("u4") & 0xFFFF).any()
    x = np.eye(7, dtype="f4")
    np.testing.assert_allclose(quantize(model, bits=4).predict(x), quantize(model, bits=4).dequantize().predict(x))


@settings(deadline=None, max_examples=30)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    method=st.sampled_from(["minmax", "percentile", "mse"]),
)
@example(values=[0.0, 2.7563540793269152e-42], method="percentile")  # denormal numbers
@example(values=[1e3, np.nextafter(np.float32(1e3), np.float32(0)).item()], method="percentile")  # neighbours
@example(values=[-3e38, 3e38], method="percentile")
def test_ranges_hold_zero_and_the_values(values, method):
    x = np.array([values], "f4")
    (codes,) = calibrate(lambda: [[x]], method, 100.0)
    assert 0 <= codes.zero <= 255
    assert codes.scale > 0
    if method != "mse":
        found = codes.scale * (np.clip(np.rint(x / codes.scale), -codes.zero, 255 - codes.zero))
        assert np.abs(found - x).max() <= 1.01 * codes.scale  # half a step, and half of one by the rounding of zero


def test_outliers_are_cut_off():
    x = np.append(np.random.default_rng(0).uniform(-1, 1, 200_000), [20.0])[np.newaxis].astype("f4")
    ranges = {m: calibrate(lambda: [[x[:, :9999]], [x[:, 9999:]]], m, 99.9)[0] for m in ("minmax", "percentile", "mse")}
    assert ranges["minmax"].scale > 20.9 / 255
    assert ranges["percentile"].scale < 2.1 / 255
    assert ranges["percentile"].scale < ranges["mse"].scale < ranges["minmax"].scale
    positive = np.append(np.linspace(0, 1, 1000), 100)[np.newaxis].astype("f4")
    codes = calibrate(lambda: [[positive]], "percentile", 99.0)[0]
    assert codes.zero == 0
    assert codes.scale < 0.005


@pytest.mark.parametrize(("low", "high"), [(0, 0), (-0.0, 0.0), (1e-45, 1e-44), (0.0, 1e-38)])
def test_a_range_of_nothing(low, high):
    assert codes_between(low, high) == (1.0, 0)


def test_columns_of_zeros():
    model = fo.Sequential([fo.Dense(3, kernel_initializer="zeros", bias_initializer=[1, 2, 3])], inputs=2)
    for small in (quantize(model, [[0.0, 0.0]]), quantize(model, bits=4), quantize(model, bits=16)):
        assert small.predict([[5.0, 6.0]]).tolist() == [[1, 2, 3]]


def test_other_layers_averages_and_scales():
    rng = np.random.default_rng(3)
    x, y = rng.normal(50, 3, (64, 4)), rng.normal(1000, 5, (64, 2))
    model = fo.Sequential(
        [
            fo.Normalization(), fo.LayerNorm(), fo.Dense(9, kernel_regularizer="l2"), fo.BatchNorm(),
            fo.layers.Activation("relu"), fo.Dense(2, use_bias=False, kernel_constraint="non_negative"),
        ],
        seed=3,
    )  # fmt: skip
    model.compile(fo.Adam(lr=0.01), "mean_squared_error", ["r2"], ema=fo.EMA(0.9))
    model.fit(x, y, epochs=5, batch_size=16, verbose=0, standardize_targets=True)
    small = quantize(model, x)
    np.testing.assert_allclose(small.predict(x), model.predict(x), atol=0.5)
    assert abs(small.predict(x).mean() - 1000) < 5
    assert small.evaluate(x, y)["r2"] == pytest.approx(model.evaluate(x, y)["r2"], abs=0.02)
    averages = model.get_averages()
    np.testing.assert_allclose(small.dequantize().parameters[2], averages[2], atol=np.abs(averages[2]).max() / 127)
    np.testing.assert_array_equal(reloaded(small).predict(x), small.predict(x))


# ---------------------------------------------------------------- files and copies
@pytest.mark.parametrize("name", WAYS)
def test_files(digits, name):
    model, x_train, x_test, y_test = digits
    model.preparation = {"note": 1}
    small = quantize(model, x_train, **WAYS[name])
    again = reloaded(small)
    assert type(again) is QuantizedModel
    assert again.quantized == small.quantized
    assert again.preparation == {"note": 1}
    assert again.epochs_done == 10
    assert repr(again) == repr(small)
    assert again.summary() == small.summary()
    np.testing.assert_array_equal(again.predict(x_test), small.predict(x_test))
    assert again.evaluate(x_test, y_test) == small.evaluate(x_test, y_test)
    assert description_of(small)["format"] == 6
    assert description_of(model)["format"] < 6


def test_files_are_small():
    model = fo.Sequential([fo.Dense(256, "relu"), fo.Dense(128, "relu"), fo.Dense(10)], inputs=784)
    whole, most = 4 * sum(p.size for p in model.parameters), {8: 0.26, 4: 0.15, 16: 0.51}
    for bits, share in most.items():
        file = io.BytesIO()
        quantize(model, bits=bits, weights_only=True).save(file)
        assert len(file.getvalue()) < share * whole


def test_copies(digits):
    model, x_train, x_test, _ = digits
    small = quantize(model, x_train)
    for again in (copy.deepcopy(small), copy.copy(small), pickle.loads(pickle.dumps(small))):
        np.testing.assert_array_equal(again.predict(x_test), small.predict(x_test))
        with pytest.raises(ValueError, match="quantize that again"):
            again.freeze("dense_1")
    again = reloaded(quantize(model, x_train))
    again.save(file := io.BytesIO(), weights_only=True)
    file.seek(0)
    assert fo.load_model(file).loss is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d["quantized"]["dense"][0].update(bits=5), "must have 8, 4, 16 bits"),
        (lambda d, t: d["quantized"]["dense"][0].update(input_zero=256), "at most 255"),
        (lambda d, t: d["quantized"]["dense"][0].update(input_scale=-1.0), "input_scale"),
        (lambda d, t: d["quantized"]["dense"][0].update(group=3), "one group"),
        (lambda d, t: d["quantized"]["dense"].pop(), "2 dense layers, and says of 1"),
        (lambda d, t: t.update({"layers.1.codes": t["layers.1.codes"][1:]}), r"must be int8 of shape \(64, 48\)"),
        (lambda d, t: t["layers.1.codes"].fill(-128), "-127 to 127"),
        (lambda d, t: t.pop("layers.3.scales"), "it lacks 'layers.3.scales'"),
        (lambda d, t: t.update(other=np.zeros(1)), "belong to nothing: other"),
        (lambda d, t: d.update(format=99), "format 99"),
    ],
)
def test_damaged_files(digits, change, message):
    from fastopt.models import _quantized_file, checkpoint

    small = quantize(digits[0], digits[1])
    description, tensors = _quantized_file.describe(small, small.quantized, False)
    description, tensors = json.loads(json.dumps(description)), {name: t.copy() for name, t in tensors.items()}
    change(description, tensors)
    checkpoint.write(file := io.BytesIO(), description, tensors)
    file.seek(0)
    with pytest.raises(ValueError, match=message):
        fo.load_model(file)


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": None}, ValueError, "x must be given"),
        ({"x": np.zeros((0, 64))}, ValueError, "at least one row|x must"),
        ({"x": np.zeros((3, 5))}, ValueError, "64"),
        ({"x": np.full((2, 64), np.nan)}, ValueError, "NaN|finite"),
        ({"bits": 3}, ValueError, "bits must be 8, 4 or 16; got 3"),
        ({"bits": True}, ValueError, "bits must be"),
        ({"bits": "int8"}, ValueError, "bits must be 8, 4 or 16; got 'int8'"),
        ({"bits": 4, "weights_only": False}, ValueError, "weights_only=True"),
        ({"weights_only": 1}, TypeError, "weights_only must be True, False or None"),
        ({"calibration": "entropy"}, ValueError, "known: minmax, percentile, mse"),
        ({"percentile": 0}, ValueError, r"percentile must be in \(0, 100\]; got 0"),
        ({"percentile": 101}, ValueError, r"percentile must be in \(0, 100\]; got 101"),
        ({"percentile": float("nan")}, ValueError, "percentile must be at least 0, and finite; got nan"),
        ({"group_size": 8}, ValueError, "group_size is for weights_only=True"),
        ({"group_size": 8, "bits": 16}, ValueError, "have no scales"),
        ({"group_size": -1, "bits": 4}, ValueError, "group_size"),
        ({"backend": "cuda"}, ValueError, "'cuda' has no layers of integers; those that do: cpu, numpy"),
        ({"backend": "gpu"}, ValueError, "known"),
    ],
)
def test_wrong_arguments(digits, options, error, message):
    with pytest.raises(error, match=message):
        quantize(digits[0], **{"x": digits[1], **options})


def test_all_percent_of_the_values_are_those_between_the_limits(digits):
    whole, limits = (quantize(*digits[:2], calibration=name, percentile=100) for name in ("percentile", "minmax"))
    assert [layer.input_scale for layer in whole.quantized] == [layer.input_scale for layer in limits.quantized]


def test_wrong_models(digits):
    small = quantize(digits[0], digits[1])
    with pytest.raises(ValueError, match="quantized already"):
        quantize(small, digits[1])
    small.save(file := io.BytesIO())
    file.seek(0)
    with pytest.raises(ValueError, match="it is of a quantized model, whose weights are integers: load_model reads it"):
        copy.deepcopy(digits[0]).load_weights(file)
    with pytest.raises(TypeError, match="model must be a fastopt.Sequential; got 3"):
        quantize(3)
    with pytest.raises(ValueError, match="no weights yet"):
        quantize(fo.Sequential([fo.Dense(1)]))
    with pytest.raises(ValueError, match="must be float32; got float64"):
        quantize(fo.Sequential([fo.Dense(1)], dtype="float64", inputs=2), bits=4)
    broken = fo.Sequential([fo.Dense(1)], inputs=2)
    broken.set_weights([[[1], [2]], [0]])
    broken.parameters[0][0] = np.inf
    with pytest.raises(ValueError, match="must be finite"):
        quantize(broken, bits=4)
    wide = fo.Sequential([fo.Dense(1, kernel_initializer="zeros")], inputs=66_312)
    with pytest.raises(ValueError, match="at most 66,311 inputs"):
        quantize(wide, np.zeros((1, 66_312)))


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x, y: m.fit(x, y),
        lambda m, x, y: m.fit([(x, y)]),
        lambda m, x, y: m.train_on_batch(x, y),
        lambda m, x, y: m.partial_fit(x, y),
        lambda m, x, y: m.compile("adam", "sparse_categorical_crossentropy"),
        lambda m, x, y: m.set_weights(m.get_weights()),
        lambda m, x, y: m.set_weights(m.dequantize().get_weights()),
        lambda m, x, y: fo.lr_finder(m, x, y),
        lambda m, x, y: m.freeze("dense_1"),
        lambda m, x, y: fo.fit_many([m], x, y),
        lambda m, x, y: setattr(m, "compute_dtype", "bfloat16"),
        lambda m, x, y: setattr(m, "backend", "cuda"),
    ],
)
def test_training_is_refused(digits, call):
    model, x_train, x_test, y_test = digits
    small = quantize(model, x_train)
    before = small.predict(x_test)
    with pytest.raises(ValueError, match="quantize that again|must be None|no layers of integers"):
        call(small, x_test, y_test)
    np.testing.assert_array_equal(small.predict(x_test), before)
