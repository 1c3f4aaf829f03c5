"""The optimizers on arrays in a GPU's memory: the host's numbers, what is refused, what is skipped."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from helpers_cuda import assert_same_bits, on_device, require_device, to_device

require_device()
import fastopt as fo

pytestmark = pytest.mark.gpu

SHAPES = [(4, 3), (), (37,), (2, 0)]
KINDS = {
    "sgd": lambda p, b: fo.SGD(p, lr=0.1, weight_decay=0.01, l1=0.001, backend=b),
    "nesterov": lambda p, b: fo.SGD(p, lr=0.1, momentum=0.9, nesterov=True, backend=b),
    "adagrad": lambda p, b: fo.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.5, backend=b),
    "rmsprop": lambda p, b: fo.RMSprop(p, lr=0.1, momentum=0.5, centered=True, backend=b),
    "adam": lambda p, b: fo.Adam(p, lr=0.1, amsgrad=True, backend=b),
    "nadam": lambda p, b: fo.Adam(p, lr=0.1, convention="optax", nesterov=True, eps_root=0.01, backend=b),
    "adamw": lambda p, b: fo.AdamW(p, lr=lambda step: 0.1 / (step + 1), clip_value=0.5, backend=b),
}


def numbers(seed, dtype="float32", shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def twins(kind, dtype="float32"):
    """An optimizer on the host and one on the device, on the same numbers, and their arrays."""
    host = numbers(0, dtype)
    device = on_device(*host)
    return KINDS[kind](host, "numpy"), KINDS[kind](device, "cuda"), host, device


def assert_same(host, device):
    for ours, theirs in zip(device, host, strict=True):
        assert_same_bits(ours, theirs)


def test_clipping_of_each_is_for_the_host():
    _, optimizer, host, device = twins("sgd")
    optimizer.param_groups[0]["clip_each"] = 1.0
    with pytest.raises(ValueError, match="on the backend 'cuda' .* not each by its own norm; got clip_each=1.0"):
        optimizer.step(on_device(*numbers(1)))
    assert_same(host, device)
    assert optimizer.settle() == [0] * 4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_equal_the_hosts(kind, dtype):
    there, here, host, device = twins(kind, dtype)
    for step in range(3):
        grads = numbers(step + 1, dtype)
        given = on_device(*grads)
        if step == 1:
            grads[2] = given[2] = None
        assert there.step(grads, grad_scale=2.0)
        assert here.step(given, grad_scale=2.0)
    assert here.settle() == there.settle() == [3, 3, 2, 3]
    assert_same(host, device)
    for ours, theirs in zip(here.states, there.states, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)


def test_clipping_and_a_scale_on_the_device():
    host = numbers(0)
    device = on_device(*host)
    there, here = (fo.Adam(p, clip_norm=0.5, backend=b) for p, b in ((host, "numpy"), (device, "cuda")))
    for seed in (1, 2):
        grads = numbers(seed)
        there.step(grads, grad_scale=4.0)
        here.step(on_device(*grads), grad_scale=to_device(np.full(1, 4, "float32")))
        assert here.grad_norm is None
    here.settle()
    np.testing.assert_allclose(here.grad_norm, there.grad_norm, rtol=1e-14)
    assert here.grad_norm > 0.5
    for ours, theirs in zip(device, host, strict=True):
        np.testing.assert_allclose(ours.copy_to_host(), theirs, rtol=1e-6)


@pytest.mark.parametrize("by", ["skip_nonfinite", "found_inf"])
@pytest.mark.parametrize("kind", ["nesterov", "adam"])
def test_skipped_steps_do_not_count(kind, by):
    there, here, host, device = twins(kind)
    for seed, bad in enumerate([True, False, True, False, False]):
        grads = numbers(seed)
        if bad and by == "skip_nonfinite":
            grads[0][1, 1] = np.inf
        flag = {"skip_nonfinite": True} if by == "skip_nonfinite" else {}
        on = {"found_inf": to_device(np.full(1, float(bad), "float32"))} if by == "found_inf" else {}
        off = {"found_inf": bad} if by == "found_inf" else {}
        there.step(grads, **flag, **off)
        assert here.step(on_device(*grads), **flag, **on) is True
    assert_same(host, device)
    assert here.settle()[:3] == here.settle()[:3] == there.settle()[:3] == [3, 3, 3]
    grads = numbers(9)
    there.step(grads), here.step(on_device(*grads))
    assert here.settle()[:3] == [4, 4, 4]
    assert_same(host, device)


def test_a_rule_that_changes_after_skipped_steps():
    """Momentum, turned on while it is open what became of a step, starts from the gradient as on the host."""
    there, here, host, device = twins("sgd")
    for seed in range(4):
        grads = numbers(seed)
        if seed in (0, 2):
            grads[0][0, 0] = np.nan
        for opt in (there, here):
            opt.param_groups[0]["momentum"] = 0.9 if seed else 0.0
        there.step(grads, skip_nonfinite=True)
        here.step(on_device(*grads), skip_nonfinite=True)
    assert_same(host, device)


def test_a_flag_on_the_host_is_known_at_once():
    _, here, host, device = twins("adam")
    assert here.step(on_device(*numbers(1)), found_inf=np.ones(1)) is False
    assert here.settle() == [0, 0, 0, 0]
    assert_same(host, device)


def test_groups_and_more_of_them():
    host = numbers(0)
    device = on_device(*host)
    there, here = (
        fo.SGD([{"params": p[:2], "lr": 0.5}, {"params": p[2]}], lr=0.1, momentum=0.9, backend=b)
        for p, b in ((host, "numpy"), (device, "cuda"))
    )
    g = numbers(1)
    d = on_device(*g)
    there.step([g[:2], g[2]], skip_nonfinite=True), here.step([d[:2], d[2]], skip_nonfinite=True)
    there.add_param_group({"params": host[3], "lr": 1.0}), here.add_param_group({"params": device[3], "lr": 1.0})
    there.step([g[:2], g[2], g[3]]), here.step([d[:2], d[2], d[3]])
    assert here.settle() == [2, 2, 2, 1]
    assert_same(host, device)


def test_state_dicts_go_both_ways():
    there, here, host, device = twins("adam")
    grads = numbers(1)
    there.step(grads), here.step(on_device(*grads))
    saved = here.state_dict()
    for i, state in there.state_dict()["state"].items():
        for name, value in state.items():
            np.testing.assert_array_equal(saved["state"][i][name], value)
            assert isinstance(saved["state"][i][name], type(value))
    again = KINDS["adam"](device, "cuda")
    again.load_state_dict(there.state_dict())
    kept = again.states[0][0]
    again.load_state_dict({**saved, "state": dict(enumerate({**s} for s in saved["state"].values()))})
    assert again.states[0][0] is kept
    grads = numbers(2)
    there.step(grads), again.step(on_device(*grads))
    assert_same(host, device)
    from_device = {"step": 1, **dict(zip(("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), again.states[0], strict=True))}
    state = {**saved["state"], 0: from_device}
    here.load_state_dict({**saved, "state": state})
    np.testing.assert_array_equal(np.asarray(here.states[0][0]), np.asarray(again.states[0][0]))


def test_a_copy_has_arrays_of_its_own():
    _, here, _, _ = twins("adam")
    here.step(on_device(*numbers(1)))
    state = here.__getstate__()
    assert state["backend"] == "cuda"
    other = fo.Adam.__new__(fo.Adam)
    other.__setstate__({**state, "arrays": [on_device(*numbers(0))], "saved": copy.deepcopy(state["saved"])})
    assert other.settle() == [1, 1, 1, 1]
    for ours, theirs in zip(other.states, here.states, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
            assert a is not b


class Foreign:
    def __init__(self, shape=(4, 3), typestr="<f4", strides=None, address=4096):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "strides": strides, "data": (address, False), "version": 3,
        }  # fmt: skip


REFUSED = {
    "on the host": (np.zeros((4, 3), "float32"), TypeError, "must be in a GPU's memory"),
    "a number": (1.0, TypeError, "must be in a GPU's memory"),
    "another dtype": (Foreign(typestr="<u2"), TypeError, "must be float32, float64, float16 or bfloat16; got uint16"),
    "turned": (Foreign(strides=(4, 16)), ValueError, "must be C-contiguous"),
    "misaligned": (Foreign(address=4098), ValueError, "must be aligned"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_are_refused(case):
    array, error, words = REFUSED[case]
    with pytest.raises(error, match=f"^params {words}".replace("params ", r"params\[0\] ")):
        fo.SGD([array], lr=0.1, backend="cuda")
    opt = fo.SGD([to_device(np.zeros((4, 3), "float32"))], lr=0.1, backend="cuda")
    with pytest.raises(error, match=r"^grads\[0\] " + words):
        opt.step([array])
    assert opt.settle() == [0]


def test_gradients_that_do_not_fit():
    good = on_device(*numbers(0))
    opt = fo.SGD(good, lr=0.1, backend="cuda")
    cases = [
        ([to_device(np.zeros((4, 3))), None, None, None], TypeError, r"grads\[0\] must be float32 like params\[0\]"),
        ([to_device(np.zeros((3, 4), "float32")), None, None, None], ValueError, r"the shape \(4, 3\) of params\[0\]"),
        ([None, None, good[2], None], ValueError, r"grads\[2\] shares memory with params\[2\]"),
        ([(np.array([0]), good[0]), None, None, None], TypeError, "they are for the CPU alone"),
        ([None, None, None], ValueError, "must have 4 entries"),
    ]
    for grads, error, words in cases:
        with pytest.raises(error, match=words):
            opt.step(grads)
    with pytest.raises(TypeError, match="grad_scale must be a number, or in a GPU's memory one float32"):
        opt.step([None] * 4, grad_scale=to_device(np.zeros(1)))
    opt.backend = "cpu"
    with pytest.raises(ValueError, match="the backend must be 'cuda'; got 'cpu'"):
        opt.step([None] * 4)


def test_parameters_that_share_memory():
    whole = to_device(np.zeros(20, "float32"))
    with pytest.raises(ValueError, match=r"params\[0\] and params\[2\] share memory"):
        fo.SGD([whole[:10], whole[10:], whole[9:12]], lr=0.1, backend="cuda")
    opt = fo.SGD([whole[:10]], lr=0.1, backend="cuda")
    assert opt.step([whole[10:]])
    with pytest.raises(ValueError, match=r"grads\[0\] shares memory with params\[0\]"):
        opt.step([whole[9:19]])


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("exp_avg", np.zeros(3, "float32"), ValueError, "must have the shape"),
        ("exp_avg", np.zeros((4, 3)), TypeError, "must be float32 like"),
        ("exp_avg", "no", TypeError, "must be float32 like"),
    ],
)
def test_states_that_do_not_fit(name, value, error, words):
    _, here, _, _ = twins("adam")
    here.step(on_device(*numbers(1)))
    saved = here.state_dict()
    saved["state"][0][name] = value
    before = np.asarray(here.states[0][0])
    with pytest.raises(error, match=words):
        here.load_state_dict(saved)
    np.testing.assert_array_equal(np.asarray(here.states[0][0]), before)


def test_arrays_of_our_own():
    _, here, _, _ = twins("adam")
    state = here.states[0][0]
    assert repr(state) == "DeviceArray(shape=(4, 3), dtype=float32)"
    assert np.asarray(state, "float64").dtype == np.float64
    with pytest.raises(ValueError, match="can only be copied"):
        state.__array__(copy=False)
