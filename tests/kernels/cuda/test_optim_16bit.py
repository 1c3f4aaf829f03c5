"""The optimizers on float16 and bfloat16 arrays in a GPU's memory: the host's numbers and state_dicts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from helpers_cuda import Bits, require_device, to_device

require_device()
import fastopt as fo
from fastopt import _dlpack
from fastopt.kernels.reference.bits16 import store, widened

pytestmark = pytest.mark.gpu

KINDS = ("float16", "bfloat16")
SHAPES = [(4, 3), (), (37,), (2, 0)]
FORMS = {"master": {}, "stochastic": {"master_weights": False, "seed": 7}}
CLASSES = {
    "sgd": lambda p, **more: fo.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, **more),
    "adagrad": lambda p, **more: fo.Adagrad(p, lr=0.1, initial_accumulator_value=0.5, **more),
    "rmsprop": lambda p, **more: fo.RMSprop(p, lr=0.1, centered=True, momentum=0.5, **more),
    "adam": lambda p, **more: fo.Adam(p, lr=0.1, amsgrad=True, **more),
    "adamw": lambda p, **more: fo.AdamW(p, lr=0.1, **more),
}


def numbers(seed, kind, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    found = []
    for shape in shapes:
        found.append(np.zeros(shape, np.float16 if kind == "float16" else np.uint16))
        store(rng.standard_normal(shape).astype("float32"), found[-1])
    return found


def there(array):
    """On the host, as optimizers take it."""
    return array if array.dtype == np.float16 else array.view(_dlpack.BFLOAT16)


def here(array):
    return to_device(array) if array.dtype == np.float16 else Bits(array)


def twins(cls, kind, **more):
    host = numbers(0, kind)
    device = [here(a) for a in host]
    make = CLASSES[cls]
    return make([there(a) for a in host], backend="numpy", **more), make(device, backend="cuda", **more), host, device


def assert_same(host, device):
    for theirs, ours in zip(host, device, strict=True):
        np.testing.assert_array_equal(widened(ours.copy_to_host()), widened(theirs))


def assert_same_states(one, other):
    for ours, theirs in zip(one.states, other.states, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype == np.float32
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", CLASSES)
def test_steps_equal_the_hosts(cls, kind, form):
    on_host, on_device, host, device = twins(cls, kind, **FORMS[form])
    for step in range(3):
        grads = numbers(step + 1, kind)
        if step == 1:
            grads[2] = None
        on_host.step([None if g is None else there(g) for g in grads], grad_scale=2.0)
        on_device.step([None if g is None else here(g) for g in grads], grad_scale=2.0)
    assert on_device.settle() == on_host.settle()
    assert_same(host, device)
    assert_same_states(on_device, on_host)


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_between_steps_is_taken_over(kind):
    on_host, on_device, host, device = twins("sgd", kind)
    for step in range(3):
        grads = numbers(step + 1, kind)
        on_host.step([there(g) for g in grads]), on_device.step([here(g) for g in grads])
        (new,) = numbers(step + 9, kind, [37])
        host[2][...] = new
        (device[2] if kind == "float16" else device[2].array).copy_to_device(to_device(new))
    assert_same(host, device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["clip_norm", "skip_nonfinite"])
def test_clipping_and_skipping(kind, way):
    on_host, on_device, host, device = twins("adam", kind, clip_norm=0.5 if way == "clip_norm" else None)
    for step in range(4):
        grads = numbers(step + 1, kind)
        if way == "skip_nonfinite" and step in (0, 2):
            store(np.full((), np.inf, "float32"), grads[1])
        flag = {"skip_nonfinite": way == "skip_nonfinite"}
        on_host.step([there(g) for g in grads], **flag), on_device.step([here(g) for g in grads], **flag)
    assert on_device.settle()[:3] == on_host.settle()[:3]
    if way == "clip_norm":
        np.testing.assert_allclose(on_device.grad_norm, on_host.grad_norm, rtol=1e-14)
    else:
        assert_same(host, device)
        assert_same_states(on_device, on_host)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_go_both_ways(kind, form):
    on_host, on_device, host, device = twins("adam", kind, **FORMS[form])
    grads = numbers(1, kind)
    on_host.step([there(g) for g in grads]), on_device.step([here(g) for g in grads])
    saved, theirs = on_device.state_dict(), on_host.state_dict()
    assert saved["param_groups"] == theirs["param_groups"]
    for i, state in theirs["state"].items():
        assert list(saved["state"][i]) == list(state)
        assert ("master" in state) == (form == "master")
        for name, value in state.items():
            np.testing.assert_array_equal(saved["state"][i][name], value)
    make = CLASSES["adam"]
    again = make(device, backend="cuda", **FORMS[form])
    again.load_state_dict(copy.deepcopy(theirs))
    back = make([there(a) for a in host], backend="numpy", **FORMS[form])
    back.load_state_dict(copy.deepcopy(saved))
    grads = numbers(2, kind)
    back.step([there(g) for g in grads]), again.step([here(g) for g in grads])
    assert_same(host, device)
    assert_same_states(again, back)


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_16_bits_as_torch_keeps_them(kind):
    on_host, on_device, host, device = twins("adamw", kind)
    moments = {}
    for i, (m, v) in enumerate(zip(numbers(5, kind), numbers(6, kind), strict=True)):
        moments[i] = {"step": 3, "exp_avg": m, "exp_avg_sq": (v.view(np.uint16) & 0x7FFF).view(v.dtype)}
    groups = on_host.state_dict()["param_groups"]
    for opt, given in ((on_host, there), (on_device, here)):
        state = {i: {k: v if k == "step" else given(v) for k, v in s.items()} for i, s in moments.items()}
        opt.load_state_dict({"state": state, "param_groups": groups})
    grads = numbers(2, kind)
    on_host.step([there(g) for g in grads]), on_device.step([here(g) for g in grads])
    assert_same(host, device)
    assert_same_states(on_device, on_host)


def test_dtypes_that_do_not_go_together():
    opt = fo.SGD([here(a) for a in numbers(0, "bfloat16")], lr=0.1, momentum=0.5, backend="cuda")
    with pytest.raises(TypeError, match=r"grads\[0\] must be bfloat16 like params\[0\]; got float16"):
        opt.step([to_device(np.zeros((4, 3), "float16")), None, None, None])
    opt.step([here(a) for a in numbers(0, "bfloat16")])
    saved = opt.state_dict()
    saved["state"][0]["momentum_buffer"] = np.zeros((4, 3), "float16")
    with pytest.raises(TypeError, match=r"must be float32, or bfloat16 like params\[0\]; got float16"):
        opt.load_state_dict(saved)
    with pytest.raises(TypeError, match="float16 or bfloat16; got uint16"):
        fo.SGD(to_device(np.zeros(3, np.uint16)), lr=0.1, backend="cuda")
