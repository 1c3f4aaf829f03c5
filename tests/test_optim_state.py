"""Saving and loading optimizers: state_dict, pickle, copies."""

import copy
import pickle

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.formulas import OPTIMIZERS

from .optimizers import DTYPES, LAYOUTS, drawn, make, snapshot


def steps(optimizer, seeds, dtype):
    for seed in seeds:
        optimizer.step({"w": drawn((3, 4), dtype, seed), "b": drawn((4,), dtype, seed + 100)})


def params(dtype, layout="contiguous"):
    return {"w": LAYOUTS[layout](drawn((3, 4), dtype)), "b": drawn((4,), dtype)}


@pytest.mark.parametrize("layout", ["contiguous", "fortran", "gaps"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_resuming_gives_the_same_bits(rule, dtype, layout, backend):
    whole = params(dtype)
    optimizer = make(rule, whole, lr=0.05, weight_decay=0.1, backend=backend)
    steps(optimizer, range(4), dtype)
    saved, at_half = optimizer.state_dict(), copy.deepcopy(whole)
    frozen = repr(saved)
    steps(optimizer, range(4, 8), dtype)
    assert repr(saved) == frozen  # copies

    resumed = {"w": LAYOUTS[layout](at_half["w"]), "b": at_half["b"]}
    other = make(rule, resumed, lr=0.5, backend=backend)
    held = other.states
    other.load_state_dict(saved)
    assert all(
        np.shares_memory(a, b)
        for old, new in zip(held, other.states, strict=True)
        for a, b in zip(old, new, strict=True)
    )
    steps(other, range(4, 8), dtype)
    np.testing.assert_array_equal(resumed["w"], whole["w"])
    np.testing.assert_array_equal(resumed["b"], whole["b"])
    assert other.steps == 8


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_copies_and_pickles_go_on_with_their_own_arrays(rule, duplicate):
    arrays = params("float32", "fortran")
    optimizer = make(rule, arrays, lr=0.05, backend="numpy")
    steps(optimizer, range(3), "float32")
    copied, other = duplicate((arrays, optimizer))
    assert other.param_groups[0]["params"][0] is copied["w"]
    steps(other, range(3, 6), "float32")
    assert not np.array_equal(copied["w"], arrays["w"])
    steps(optimizer, range(3, 6), "float32")
    np.testing.assert_array_equal(copied["w"], arrays["w"])
    unbound = duplicate(make(rule, lr=0.25))
    assert (unbound.bound, unbound.lr) == (False, 0.25)


def test_layout_of_a_state_dict():
    w, b = np.ones((2, 3), order="F"), np.ones(3)
    optimizer = fo.Adam([{"params": [w]}, {"params": b, "lr": 0.5}], backend="numpy")
    optimizer.step([[np.ones((2, 3))], None])
    saved = optimizer.state_dict()
    assert list(saved) == ["state", "param_groups"]
    assert {k: type(v).__name__ for k, v in saved["state"][0].items()} == {
        "step": "int",
        "exp_avg": "ndarray",
        "exp_avg_sq": "ndarray",
    }
    assert saved["state"][0]["exp_avg"].shape == (2, 3)
    assert [entry["step"] for entry in saved["state"].values()] == [1, 0]
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1]]
    assert saved["param_groups"][1] == {
        "lr": 0.5,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsgrad": False,
        "maximize": False,
        "l1": 0.0,
        "clip_value": None,
        "clip_each": None,
        "clip_norm": None,
        "eps_root": 0.0,
        "nesterov": False,
        "convention": "torch",
        "lr_step": 1,
        "decoupled_weight_decay": False,
        "params": [1],
    }


def test_state_dicts_of_torch_are_read():
    """Its extra switches, a 0-d step, no entry for an array without a step, and no step for SGD."""
    torch_only = {"foreach": None, "fused": True, "capturable": False, "differentiable": False}
    group = fo.Adam(np.ones(2)).state_dict()["param_groups"][0]
    entry = {"step": np.array(7.0, np.float32), "exp_avg": np.full(2, 0.5), "exp_avg_sq": np.full(2, 0.25)}
    optimizer = fo.Adam([np.ones(2), np.ones(3)])
    optimizer.load_state_dict({"state": {0: entry}, "param_groups": [{**group, **torch_only, "params": [0, 1]}]})
    assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [7, 0]
    assert optimizer.states[0][0].tolist() == [0.5, 0.5]

    p = np.zeros(2)
    sgd = fo.SGD(p, lr=1.0, momentum=0.5, dampening=0.5, backend="numpy")
    group = sgd.state_dict()["param_groups"][0]
    sgd.load_state_dict({"state": {0: {"momentum_buffer": np.full(2, 4.0)}}, "param_groups": [group]})
    sgd.step(np.full(2, 2.0))
    assert p.tolist() == [-3, -3]  # 0.5 * 4 + 0.5 * 2: not the first step
    sgd.load_state_dict({"state": {0: {"momentum_buffer": None}}, "param_groups": [group]})
    assert sgd.steps == 0
    sgd.step(np.full(2, 2.0))
    assert p.tolist() == [-5, -5]  # the first


def test_a_first_momentum_buffer_that_is_still_to_come_is_not_saved():
    p = np.zeros(1)
    optimizer = fo.SGD(p, lr=1.0, backend="numpy")
    optimizer.step(np.ones(1))
    optimizer.param_groups[0].update(momentum=0.5, dampening=0.5)
    saved = optimizer.state_dict()
    other = fo.SGD(p, backend="numpy")
    other.load_state_dict(saved)
    other.step(np.full(1, 2.0))
    assert p.tolist() == [-3]


def test_states_that_the_optimizer_did_not_have_are_copied():
    p = np.zeros(2)
    optimizer = fo.SGD(p, lr=1.0, momentum=0.5, backend="numpy")
    optimizer.step(np.ones(2))
    saved = optimizer.state_dict()
    plain = fo.SGD(p, backend="numpy")
    plain.load_state_dict(saved)
    plain.step(np.ones(2))
    assert p.tolist() == [-2.5, -2.5]
    assert saved["state"][0]["momentum_buffer"].tolist() == [1, 1]


def altered(saved, **changes):
    return {**saved, **changes}


def entry(saved, **changes):
    return altered(saved, state={**saved["state"], 0: {**saved["state"][0], **changes}})


def group(saved, **changes):
    return altered(saved, param_groups=[{**saved["param_groups"][0], **changes}])


BAD = {
    "not a mapping": (lambda s: [s], TypeError, "a state_dict must be a mapping"),
    "no groups": (lambda s: {"state": s["state"]}, TypeError, "a state_dict must be a mapping"),
    "two groups": (lambda s: altered(s, param_groups=s["param_groups"] * 2), ValueError, r"groups of \[2, 2\] arrays"),
    "fewer arrays": (lambda s: group(s, params=[0]), ValueError, r"groups of \[1\] arrays, this optimizer of \[2\]"),
    "a group without arrays": (lambda s: altered(s, param_groups=[{}]), TypeError, "every group"),
    "a group that is none": (lambda s: altered(s, param_groups=[3]), TypeError, "every group"),
    "another class": (lambda s: fo.SGD([np.ones((2, 3)), np.ones(3)]).state_dict(), ValueError, "missing: .'betas'"),
    "Adam for AdamW": (lambda s: group(s, decoupled_weight_decay=True), ValueError, "decoupled_weight_decay=True"),
    "hyper-parameter": (lambda s: group(s, lr=float("nan")), ValueError, "lr must be"),
    "unknown option": (lambda s: group(s, rho=1.0), ValueError, "unknown: .'rho'"),
    "unknown array": (lambda s: altered(s, state={**s["state"], 5: {}}), ValueError, r"in none of its groups: \[5\]"),
    "shape": (lambda s: entry(s, exp_avg=np.ones((3, 2))), ValueError, r"exp_avg of the state of params\[0\].*shape"),
    "dtype": (lambda s: entry(s, exp_avg=np.ones((2, 3), "f4")), TypeError, r"must be float64 .*float32"),
    "kind": (lambda s: entry(s, exp_avg="zero"), TypeError, "exp_avg"),
    "lacking": (lambda s: entry(s, exp_avg=None), ValueError, "lacks exp_avg, which the rule 'adam' has after 1 steps"),
    "unknown state": (lambda s: entry(s, sum=np.ones((2, 3))), ValueError, "unknown entries .'sum'"),
    "amsgrad without": (lambda s: group(s, amsgrad=True), ValueError, "lacks max_exp_avg_sq"),
    "negative step": (lambda s: entry(s, step=-1), ValueError, "step .* whole number"),
    "fractional step": (lambda s: entry(s, step=1.5), ValueError, "step .* whole number"),
    "step nan": (lambda s: entry(s, step=float("nan")), ValueError, "step .* whole number"),
    "step text": (lambda s: entry(s, step="one"), TypeError, "step"),
    "entry": (lambda s: altered(s, state={0: [1]}), TypeError, r"state of params\[0\] must be a mapping"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_state_dicts_leave_everything_alone(case):
    spoil, error, message = BAD[case]
    arrays = [np.ones((2, 3)), np.ones(3)]
    optimizer = fo.Adam(arrays, backend="numpy")
    optimizer.step([np.ones((2, 3)), np.ones(3)])
    saved = optimizer.state_dict()
    optimizer.step([np.ones((2, 3)), np.ones(3)])
    before = snapshot(optimizer, *arrays)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(spoil(saved))
    assert snapshot(optimizer, *arrays) == before
    optimizer.load_state_dict(saved)
    assert optimizer.steps == 1
