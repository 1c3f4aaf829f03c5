"""Files that are foreign, damaged, cut short or lying do nothing but raise a ValueError that names them."""

import json
import struct

import numpy as np
import pytest
from helpers_model import assert_same, blobs, snapshot, trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from fastopt import load_model
from fastopt.models.checkpoint import FORMAT

X, _ = blobs()


def refused(path, message=""):
    """Neither way of loading takes the file; a ValueError names it, and the model is untouched."""
    model = trained()
    before = snapshot(model)
    for load in (load_model, model.load_weights):
        with pytest.raises(ValueError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\x80\x04K\x01.",  # a pickle
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        bytes(64),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 10**5) + b"[" * 10**5,
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}'[:60],
    ],
)
def test_foreign_files(content, path):
    path.write_bytes(content)
    refused(path, "not a whole safetensors file")


def test_missing_file(path):
    model = trained()
    for load in (load_model, model.load_weights):
        with pytest.raises(FileNotFoundError):
            load(path)
        with pytest.raises(OSError, match=r"[Dd]irectory|denied"):
            load(path.parent)


def test_safetensors_of_somebody_else(path):
    save_file({"a": np.zeros(3)}, path)
    refused(path, "a safetensors file, but not one that fastopt wrote")
    save_file({"a": np.zeros(3)}, path, {"format": "pt"})
    refused(path, "not one that fastopt wrote")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Bytes, description and tensors of a good file."""
    path = tmp_path_factory.mktemp("good") / "m"
    trained().save(path)
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return path.read_bytes(), json.loads(file.metadata()["fastopt"]), tensors


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated(share, good, path):
    path.write_bytes(good[0][: int(len(good[0]) * share)])
    refused(path, "not a whole safetensors file")


def test_text_that_is_no_description(good, path):
    for text in ("", "{", "[]", "3", "null", "[" * 100_000, '{"format": 1}', '{"format": "1"}', '{"format": NaN}'):
        save_file(good[2], path, {"fastopt": text})
        refused(path, "not a usable model file")


def test_newer_format(good, path):
    save_file(good[2], path, {"fastopt": json.dumps({**good[1], "format": FORMAT + 1})})
    refused(path, f"it has format {FORMAT + 1}, and this version of fastopt reads up to {FORMAT}")


def put(tree, keys, value):
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value


BAD_MODEL = [
    (("layers",), []),
    (("layers",), None),
    (("layers",), [3]),
    (("layers", 0, "kind"), "conv"),
    (("layers", 0, "kind"), ["dense"]),
    (("layers", 0, "units"), 13),
    (("layers", 0, "units"), 10**30),
    (("layers", 0, "units"), -1),
    (("layers", 0, "activation"), "__import__"),
    (("layers", 0, "use_bias"), False),
    (("layers", 0, "use_bias"), "yes"),
    (("layers", 0, "extra"), 1),
    (("layers", 1, "rate"), 2.0),
    (("layers", 1), {"kind": "dropout"}),
    (("inputs",), 5),
    (("inputs",), None),
    (("inputs",), 2**70),
    (("seed",), -1),
    (("dtype",), "float64"),
    (("dtype",), "O"),
    (("epochs_done",), -1),
    (("epochs_done",), 1.5),
]
BAD_FOR_LOAD_MODEL = [  # `load_weights` needs neither backend nor optimizer
    (("backend",), "../../evil"),
    (("compile",), 3),
    (("compile",), {}),
    (("compile",), None),  # leaves the optimizer's tensors over
    (("compile", "group", "lr"), {"schedule": "os.system"}),
    (("compile", "group", "lr"), {"schedule": "Step", "lr": 0.1}),
    (("compile", "group", "lr"), {"schedule": "WarmUp", "steps": 3, "then": {"lr": 0.1}}),
    (("compile", "group", "lr"), {"schedule": "Join", "schedules": [0.1, "x"], "boundaries": [1]}),
    (("compile", "group", "lr"), {"foreign": "f"}),
    (("compile", "group", "lr"), {"foreign": "f", "value": "fast"}),
    (("compile", "group", "lr"), [0.1]),
    (("compile", "group", "convention"), "tf"),
    (("compile", "group", "convention"), 3),
    (("compile", "group", "lr_step"), -1),
    (("compile", "loss"), "os.system"),
    (("compile", "loss"), "mean_squared_error"),  # not with softmax
    (("compile", "loss_params"), {"delta": 1}),
    (("compile", "loss_params"), {"label_smoothing": 7}),
    (("compile", "metrics"), ["r2"]),
    (("compile", "metrics"), 5),
    (("compile", "optimizer"), "Optimizer"),
    (("compile", "optimizer"), "SGD"),
    (("compile", "states"), []),
    (("compile", "states"), [4, 4, 4, 4]),
    (("compile", "states", 3), {"step": 4}),
    (("compile", "states", 3, "step"), -1),
    (("compile", "states", 3, "step"), "4"),
    (("compile", "states", 3, "tensors"), ["exp_avg"]),
    (("compile", "states", 3, "tensors"), ["exp_avg", "exp_avg"]),
    (("compile", "states", 3, "tensors"), ["exp_avg", "exp_avg_sq", "step"]),
    (("compile", "states", 3, "tensors"), [[]]),
    (("compile", "group", "lr"), -1),
    (("compile", "group", "betas"), [0.9, 1.5]),
    (("compile", "group", "betas"), None),
    (("compile", "group", "momentum"), 0.9),
    (("compile", "group"), None),
]


@pytest.mark.parametrize(("keys", "value"), BAD_MODEL + BAD_FOR_LOAD_MODEL)
def test_description_that_lies(keys, value, good, path):
    description = json.loads(json.dumps(good[1]))
    put(description, keys, value)
    save_file(good[2], path, {"fastopt": json.dumps(description)})
    if (keys, value) in BAD_MODEL:
        refused(path, "not a usable model file")
    else:
        with pytest.raises(ValueError, match="not a usable model file"):
            load_model(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.0.kernel": None}, "it lacks 'layers.0.kernel'"),
        (
            {"layers.0.kernel": np.zeros((6, 13), np.float32)},
            r"must be float32 of shape \(6, 12\); got float32 of shape \(6, 13\)",
        ),
        ({"layers.0.kernel": np.zeros((6, 12))}, "layers.0.kernel must be float32 of shape"),
        ({"layers.9.kernel": np.zeros(3)}, "tensors that belong to nothing: layers.9.kernel"),
        ({"optimizer.1.exp_avg": None}, "it lacks 'optimizer.1.exp_avg'"),
        ({"optimizer.1.exp_avg": np.zeros(3, np.float32)}, "exp_avg"),
        ({"optimizer.1.momentum_buffer": np.zeros(12, np.float32)}, "belong to nothing: optimizer.1.momentum"),
        ({"optimizer.7.exp_avg": np.zeros(3)}, "tensors that belong to nothing: optimizer.7.exp_avg"),
    ],
)
def test_tensors_that_do_not_fit(changes, message, good, path):
    tensors = {name: value for name, value in {**good[2], **changes}.items() if value is not None}
    save_file(tensors, path, {"fastopt": json.dumps(good[1])})
    with pytest.raises(ValueError, match=message):
        load_model(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_raise_or_load(data, good, path):
    """Any change of a few bytes gives a ValueError, or a model where only numbers have changed; never another error."""
    content = bytearray(good[0])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1 if data.draw(st.booleans()) else 2000))] = data.draw(
            st.integers(0, 255)
        )
    path.write_bytes(content)
    try:
        model = load_model(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert model.predict(X).shape == (120, 3)
