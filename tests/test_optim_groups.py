"""`add_param_group`: arrays that join later."""

import copy
import pickle

import numpy as np
import pytest

import fastopt as fo

from .optimizers import MAKE, drawn, make, snapshot


@pytest.mark.parametrize("rule", MAKE)
def test_it_is_as_if_they_had_been_apart(rule, backend):
    a, b, c = (drawn((n,), "float32", n) for n in (3, 4, 5))
    twins = [x.copy() for x in (a, b, c)]
    joint = make(rule, [a, b], lr=0.1, backend=backend)
    early = make(rule, twins[:2], lr=0.1, backend=backend)
    late = make(rule, twins[2], lr=0.3, weight_decay=0.2, backend=backend)
    for step in range(6):
        grads = [drawn((n,), "float32", 10 * step + n) for n in (3, 4, 5)]
        if step == 3:
            joint.add_param_group({"params": c, "lr": 0.3, "weight_decay": 0.2})
        early.step(grads[:2])
        if step < 3:
            joint.step(grads[:2])
        else:
            joint.step([grads[:2], grads[2]])
            late.step(grads[2])
    for x, twin in zip((a, b, c), twins, strict=True):
        np.testing.assert_array_equal(x, twin)
    for mine, other in zip(joint.states, [*early.states, *late.states], strict=True):
        for x, y in zip(mine, other, strict=True):
            np.testing.assert_array_equal(x, y)
    assert [entry["step"] for entry in joint.state_dict()["state"].values()] == [6, 6, 3]


def test_structures_groups_and_unchanged_results(backend):
    w, nested, last = np.zeros((2, 2), order="F"), {"a": np.zeros(2), "b": [np.zeros(3)[::2]]}, np.zeros(())
    optimizer = fo.SGD([{"params": w, "lr": 2.0}], lr=1.0, momentum=0.5, backend=backend)
    optimizer.step([np.ones((2, 2))])
    first, buffer = optimizer.param_groups[0], optimizer.states[0][0]
    optimizer.add_param_group({"params": nested})
    optimizer.add_param_group({"params": iter([last]), "momentum": 0.0})
    assert optimizer.param_groups[0] is first
    assert optimizer.states[0][0].base is buffer.base  # the same memory: nothing was copied
    assert np.shares_memory(optimizer.states[0][0], buffer)
    assert [group["lr"] for group in optimizer.param_groups] == [2.0, 1.0, 1.0]
    assert optimizer.param_groups[2]["params"][0] is last
    optimizer.step([np.ones((2, 2)), {"b": [np.ones(2)], "a": None}, [np.ones(())]])
    assert (w == -5).all()
    assert nested["a"].tolist() == [0, 0]
    assert nested["b"][0].tolist() == [-1, -1]
    assert last == -1
    first["lr"] = 0.0
    optimizer.step([np.ones((2, 2)), None, None])
    assert (w == -5).all()


def test_an_optimizer_of_one_array_takes_groups_from_then_on(backend):
    a, b = np.zeros(2), np.zeros(2)
    optimizer = fo.SGD({"a": a}, lr=1.0, backend=backend)
    optimizer.add_param_group({"params": {"b": b}})
    optimizer.step([{"a": np.ones(2)}, {"b": np.ones(2)}])
    assert (a.tolist(), b.tolist()) == ([-1, -1], [-1, -1])
    with pytest.raises(TypeError, match="grads must be a sequence of 2"):
        optimizer.step({"a": np.ones(2)})
    with pytest.raises(ValueError, match=r"grads\[0\]\['a'\] must have the shape \(2,\) of params\[0\]\['a'\]"):
        optimizer.step([{"a": np.ones(3)}, None])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_saved_copied_and_extended_again(duplicate):
    a, b, c = (np.ones(n) for n in (1, 2, 3))
    optimizer = fo.Adam(a, lr=0.5, backend="numpy")
    optimizer.step(np.ones(1))
    optimizer.add_param_group({"params": [b], "lr": 0.25})
    optimizer.step([np.ones(1), [np.ones(2)]])
    saved = optimizer.state_dict()
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1]]
    fo.Adam([{"params": a.copy()}, {"params": [b.copy()]}], backend="numpy").load_state_dict(saved)
    (a, b), twin = duplicate(((a, b), optimizer))
    twin.add_param_group({"params": c})
    twin.step([np.ones(1), [np.ones(2)], np.ones(3)])
    optimizer.step([np.ones(1), [np.ones(2)]])
    for old, new in zip(optimizer.states, twin.states, strict=False):
        np.testing.assert_array_equal(old[0], new[0])
    assert c.tolist() == pytest.approx([0.5] * 3)


def test_other_libraries_arrays(backend):
    torch = pytest.importorskip("torch")
    w, b = torch.nn.Parameter(torch.zeros(2, 3)), torch.zeros(2, dtype=torch.float64)
    optimizer = fo.SGD(w, lr=1.0, momentum=0.5, backend=backend)
    optimizer.step(torch.ones(2, 3))
    optimizer.add_param_group({"params": [b]})
    assert optimizer.param_groups[0]["params"][0] is w
    assert optimizer.param_groups[1]["params"][0] is b
    optimizer.step([torch.ones(2, 3), [torch.ones(2, dtype=torch.float64)]])
    assert w.tolist() == [[-2.5] * 3] * 2
    assert b.tolist() == [-1, -1]
    w.data = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="is no longer where it was"):
        optimizer.add_param_group({"params": np.ones(1)})
    assert len(optimizer.param_groups) == 2


WRONG = [
    (lambda a: a, TypeError, "a group must be a mapping with the key 'params'; got a float64 array"),
    (lambda a: {"lr": 0.1}, TypeError, "a group must be a mapping with the key 'params'"),
    (lambda a: {"params": []}, ValueError, "params of the group holds no array"),
    (lambda a: {"params": np.ones(2, int)}, TypeError, r"params\[1\] must be float32, float64, .*; got int64"),
    (lambda a: {"params": [np.ones(2), None]}, TypeError, r"params\[1\]\[1\] must be a NumPy array"),
    (lambda a: {"params": a}, ValueError, r"params\[0\]\['a'\] and params\[1\] share memory"),
    (lambda a: {"params": [np.ones(1), a[1:]]}, ValueError, r"params\[0\]\['a'\] and params\[1\]\[1\] share memory"),
    (lambda a: {"params": [a.copy()] * 2}, ValueError, r"params\[1\]\[0\] and params\[1\]\[1\] share memory"),
    (lambda a: {"params": np.ones(2), "lr": -1}, ValueError, "lr must be a finite number of at least 0; got -1"),
    (lambda a: {"params": np.ones(2), "rate": 1}, ValueError, r"unknown: \['rate'\]"),
    (lambda a: {"params": np.ones(2), "dampening": 0.1}, ValueError, "keras.optimizers.SGD has no dampening"),
    (lambda a: {"params": np.ones(2), "clip_value": 1.0}, ValueError, "clipped in one way, not in several"),
    (lambda a: {"params": np.broadcast_to(np.ones(1), 3)}, ValueError, r"params\[1\] is read-only"),
]


@pytest.mark.parametrize(("group", "error", "message"), WRONG)
def test_refused_calls_change_nothing(group, error, message, backend):
    a = np.ones(3)
    optimizer = fo.SGD({"a": a}, momentum=0.5, convention="keras", clip_norm=1.0, backend=backend)
    optimizer.step({"a": np.ones(3)})
    before, groups = snapshot(optimizer, a), list(optimizer.param_groups)
    with pytest.raises(error, match=message):
        optimizer.add_param_group(group(a))
    assert snapshot(optimizer, a) == before
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0] is groups[0]
    optimizer.step({"a": np.ones(3)})  # the structure is what it was
    assert optimizer.steps == 2


def test_arrays_must_be_there_first():
    with pytest.raises(ValueError, match="has no arrays yet: give it params, or call bind"):
        fo.SGD().add_param_group({"params": np.ones(2)})
