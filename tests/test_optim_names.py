"""States belong to the arrays of their names, where arrays have names."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastopt as fo
from fastopt.conventions import NAMES
from fastopt.optim._param_names import names_of

from .optimizers import snapshot


def arrays(*names, size=3):
    return {name: np.full(size, float(i + 1)) for i, name in enumerate(names)}


def stepped(params, grads, **options):
    optimizer = fo.Adam(params, lr=0.25, backend="numpy", **options)
    optimizer.step(copy.deepcopy(grads))  # which may be the arrays themselves
    return optimizer


def moments(optimizer):
    """The number in each first moment, by the number in its array."""
    saved = optimizer.state_dict()
    given = [array for group in optimizer.param_groups for array in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    return {float(a.flat[0]): float(saved["state"][i]["exp_avg"].flat[0]) for a, i in zip(given, numbers, strict=True)}


def loaded(source, params):
    """Another optimizer after loading; its arrays are those of the source."""
    other = fo.Adam(params, lr=0.5, backend="numpy")
    other.load_state_dict(source.state_dict())
    return other


def test_the_order_of_a_mapping_does_not_matter():
    params = arrays("a", "b", "c")
    source = stepped(params, {"a": np.ones(3), "b": np.full(3, 2.0), "c": np.full(3, 3.0)})
    other = loaded(source, {name: params[name] for name in "cab"})
    assert moments(other) == moments(source)
    assert other.lr == 0.25


def test_names_of_nested_structures():
    a, b, c, d = (np.full(2, float(i)) for i in range(1, 5))
    tree = {"encoder": {"w": a, "b": b}, "layers": [c, d]}
    grads = {"encoder": {"w": a, "b": b}, "layers": [c, d]}
    source = stepped(tree, grads)
    assert source.state_dict()["param_groups"][0]["param_names"] == ["encoder.w", "encoder.b", "layers.0", "layers.1"]
    other = loaded(source, {"layers": (c, d), "encoder": {"b": b, "w": a}})
    assert moments(other) == moments(source)
    layers = [{"w": a, "b": b}, {"b": c, "w": d}]
    source = stepped(layers, layers)
    assert source.state_dict()["param_groups"][0]["param_names"] == ["0.w", "0.b", "1.b", "1.w"]
    assert moments(loaded(source, [{"b": b, "w": a}, {"w": d, "b": c}])) == moments(source)


def test_groups_are_those_of_the_same_names():
    params = arrays("a", "b", "c")
    a, b, c = params.values()
    groups = [{"params": {"a": a}, "lr": 0.125}, {"params": {"b": b, "c": c}, "lr": 2.0}]
    source = stepped(groups, [{"a": a}, {"b": b, "c": c}])
    other = loaded(source, [{"params": {"c": c, "b": b}}, {"params": {"a": a}}])
    assert moments(other) == moments(source)
    assert [group["lr"] for group in other.param_groups] == [2.0, 0.125]
    # of the same names in two groups, the groups' order decides
    twice = [{"params": {"w": a, "b": b}}, {"params": {"b": c, "w": np.full(3, 9.0)}}]
    source = stepped(twice, [group["params"] for group in twice])
    turned = [{"params": dict(reversed(group["params"].items()))} for group in twice]
    assert moments(loaded(source, turned)) == moments(source)


def test_groups_without_names_keep_their_order_among_the_others():
    a, b, c = arrays("a", "b", "c").values()
    source = stepped([{"params": [a]}, {"params": {"b": b}}, {"params": [c]}], [[a], {"b": b}, [c]])
    other = loaded(source, [{"params": {"b": b}}, {"params": [a]}, {"params": [c]}])
    assert moments(other) == moments(source)


def test_positions_decide_where_one_side_has_no_names():
    params = arrays("a", "b")
    grads = [np.ones(3), np.full(3, 2.0)]
    by_name = stepped(dict(params), dict(zip(params, grads, strict=True)))
    by_place = stepped(list(params.values()), grads)
    assert "param_names" not in by_place.state_dict()["param_groups"][0]
    assert "param_names" not in stepped(params["a"], np.ones(3)).state_dict()["param_groups"][0]
    for source, params_of_other in ((by_name, list(params.values())), (by_place, params)):
        assert list(moments(loaded(source, params_of_other)).values()) == list(moments(source).values())


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["a", "c"], ValueError, r"missing: \['b'\], unknown: \['c'\]; got \[\['a', 'c'\]\] for \[\['a', 'b'\]\]"),
        (["a", "a"], ValueError, "must be 2 different names, one for each array; got"),
        (["a"], ValueError, "must be 2 different names"),
        ("ab", TypeError, "param_names of param_groups.0. must be a list of strings; got 'ab'"),
        ([1, 2], TypeError, "must be a list of strings; got a list"),
        (3, TypeError, "must be a list of strings; got 3"),
    ],
)
def test_names_that_do_not_match_change_nothing(names, error, message):
    params = arrays("a", "b")
    optimizer = stepped(params, params)
    before = snapshot(optimizer, *params.values())
    saved = optimizer.state_dict()
    saved["param_groups"][0]["param_names"] = names
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    assert snapshot(optimizer, *params.values()) == before


def test_other_groups_of_the_same_names_are_refused():
    a, b, c, d = arrays("a", "b", "c", "d").values()
    source = stepped([{"params": {"a": a, "b": b}}, {"params": {"c": c, "d": d}}], [{"a": a, "b": b}, {"c": c, "d": d}])
    with pytest.raises(ValueError, match=r"in groups of the same ones .*positions decide\); got \[\['a', 'b'\]"):
        loaded(source, [{"params": {"a": a, "c": c}}, {"params": {"b": b, "d": d}}])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_and_added_groups_have_names(duplicate):
    params = arrays("a", "b")
    optimizer = stepped(params, params)
    optimizer.add_param_group({"params": {"a": np.zeros(2)}})
    _, other = duplicate((params, optimizer))
    assert [group["param_names"] for group in other.state_dict()["param_groups"]] == [["a", "b"], ["a"]]
    assert moments(other) == moments(optimizer)


@given(st.permutations(["a", "b", "c", "d", "e"]), st.sampled_from(NAMES))
def test_any_order_in_every_convention(order, convention):
    params = arrays(*"abcde")
    whole, source_params = copy.deepcopy(params), copy.deepcopy(params)
    for one in (whole, source_params):
        optimizer = fo.Adam(one, lr=0.25, convention=convention, backend="numpy")
        optimizer.step({name: array * 0.5 for name, array in params.items()})
        if one is source_params:
            other = fo.Adam({name: one[name] for name in order}, lr=1.0, convention=convention, backend="numpy")
            other.load_state_dict(optimizer.state_dict())
            optimizer = other
        optimizer.step({name: array * -0.25 for name, array in params.items()})
    for name in params:
        np.testing.assert_array_equal(whole[name], source_params[name])


def test_keys_that_would_get_one_name():
    assert names_of({"a.b": 0, "a": {"b": 1}}) == ("('a.b',)", "('a', 'b')")
    assert names_of({1: 0, "1": 1}) == ("(1,)", "('1',)")


def test_torchs_names():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    theirs = torch.optim.Adam(model.named_parameters(), lr=0.5)
    model(torch.ones(4, 2)).sum().backward()
    theirs.step()
    saved = theirs.state_dict()
    named = dict(model.named_parameters())
    ours = fo.Adam(dict(reversed(named.items())), backend="numpy")
    ours.load_state_dict({**saved, "param_groups": [
        {key: value for key, value in group.items() if key in ("params", "param_names", *ours.defaults)}
        for group in saved["param_groups"]
    ]})  # fmt: skip
    names = ours.state_dict()["param_groups"][0]["param_names"]
    assert names == list(reversed(named))
    for i, name in enumerate(names):
        np.testing.assert_array_equal(
            ours.state_dict()["state"][i]["exp_avg"], theirs.state[named[name]]["exp_avg"].numpy()
        )
    back = torch.optim.Adam(list(reversed(named.items())), lr=1.0)
    exported = ours.state_dict()
    for entry in exported["state"].values():
        entry.update({key: torch.as_tensor(value) for key, value in entry.items()})
    back.load_state_dict(exported)
    assert back.state_dict()["param_groups"][0]["param_names"] == names
    for name, parameter in named.items():
        assert torch.equal(back.state[parameter]["exp_avg"], theirs.state[parameter]["exp_avg"]), name
