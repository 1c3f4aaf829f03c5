"""State of fastopt.torch's optimizers: saved, loaded, copied, pickled, and moved from and to torch's."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import (  # noqa: E402
    CLASSES,
    EXACT,
    NAMES,
    NEAR,
    TELLING,
    all_params,
    assert_same,
    pair,
    parameters,
    run,
    twins,
    where,
)

import fastopt.torch  # noqa: E402


@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
def test_they_are_torchs(ours, theirs):
    assert issubclass(ours, theirs)
    known, of_torch = (list(inspect.signature(cls).parameters.values()) for cls in (ours, theirs))
    assert known[: len(of_torch)] == of_torch
    own = known[len(of_torch) :]
    assert {p.kind for p in own} == {inspect.Parameter.KEYWORD_ONLY}
    defaults = {"clip_norm": None, "state_bits": 32, "state_rounding": "nearest", "seed": 0}
    assert {p.name: p.default for p in own} == defaults
    assert inspect.signature(ours.step) == inspect.signature(theirs.step) or list(
        inspect.signature(ours.step).parameters
    ) == ["self", "closure"]
    one, other = ours(parameters()), theirs(parameters())
    assert one.defaults == other.defaults
    assert repr(one) == repr(other)
    assert_same(one, other, **EXACT)


@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "through a file"])
@pytest.mark.parametrize("towards", [0, 1], ids=["to ours", "to torch's"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_moves_both_ways_midway(name, towards, saved):
    first, second = pair(name)[::-1] if towards == 0 else pair(name)
    params = parameters()
    start = first(params, **TELLING[name])
    run(start, params, range(10))
    state = copy.deepcopy(start.state_dict())  # the tensors of a dictionary that is loaded are used themselves
    if saved:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    rest = twins(params)
    end = second(rest, lr=0.5)
    end.load_state_dict(state)
    run(start, params, range(10, 20))
    run(end, rest, range(10, 20))
    assert_same(end, start, **NEAR)


@pytest.mark.parametrize("name", NAMES)
def test_loading_in_the_midst_of_training(name):
    """The states are other tensors afterwards."""
    params = parameters()
    optimizer = pair(name)[0](params, **TELLING[name])
    run(optimizer, params, range(3))
    values, state = twins(params), copy.deepcopy(optimizer.state_dict())
    run(optimizer, params, range(3, 6))
    expected, after = twins(params), copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        for p, value in zip(params, values, strict=True):
            p.copy_(value)
    optimizer.load_state_dict(state)
    run(optimizer, params, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(params, expected, strict=True))
    assert str(optimizer.state_dict()) == str(after)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", NAMES)
def test_copies(name, copied):
    cls = pair(name)[0]
    params = parameters()
    optimizer = cls(params, **TELLING[name])
    run(optimizer, params, range(5))
    twin, its = copied((optimizer, params))
    assert type(twin) is cls
    assert all(p is q for p, q in zip(all_params(twin), its, strict=True))
    run(optimizer, params, range(5, 8))
    run(twin, its, range(5, 8))
    assert_same(twin, optimizer, **EXACT)


def test_replaced_parameters_and_states():
    """Programs grow, prune or move parameters: every step checks where the memory is."""
    optimizers = []
    for cls in pair("Adam"):
        params = parameters()
        optimizer = cls(params, **TELLING["Adam"])
        run(optimizer, params, range(3))
        params[0].data = params[0].data.clone() * 2
        optimizer.state[params[1]]["exp_avg"] = optimizer.state[params[1]]["exp_avg"] * 3
        optimizer.state[params[1]]["exp_avg_sq"].data = optimizer.state[params[1]]["exp_avg_sq"].clone() * 3
        optimizer.state[params[1]]["step"] = optimizer.state[params[1]]["step"] + 5
        run(optimizer, params, range(3, 6))
        longer = torch.nn.Parameter(torch.cat([params[1].detach(), torch.ones(4, dtype=torch.float64)]))
        optimizer.state[longer] = {
            key: value if key == "step" else torch.cat([value, torch.zeros(4, dtype=torch.float64)])
            for key, value in optimizer.state.pop(params[1]).items()
        }
        optimizer.param_groups[0]["params"][1] = params[1] = longer
        run(optimizer, params, range(6, 9))
        optimizer.state.clear()
        run(optimizer, params, range(9, 12))
        params[0].data = params[0].data.t().contiguous().t()  # the states lie otherwise now: torch's code
        run(optimizer, params, range(12, 15))
        optimizers.append(optimizer)
    assert where(optimizers[0]) == ["torch", "fastopt", "fastopt", "fastopt"]
    assert_same(*optimizers, **NEAR)


def test_other_dtypes_after_a_while():
    """`model.double()` in the midst: the states do not follow, and torch's own code says what it says to that."""
    results = []
    for cls in pair("Adam"):
        params = parameters(torch.float32)
        optimizer = cls(params, **TELLING["Adam"])
        run(optimizer, params, range(3))
        for p in params:
            p.grad, p.data = None, p.data.double()
        try:
            run(optimizer, params, range(3, 6))
        except RuntimeError as error:
            results.append(str(error))
        else:
            results.append(None)
    assert results[0] == results[1]


@pytest.mark.parametrize(("ours", "theirs"), CLASSES)
def test_accelerate(ours, theirs):
    name = ours.__name__
    params, others = parameters(), parameters()
    optimizer, other = theirs(params, **TELLING[name]), theirs(others, **TELLING[name])
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(type(optimizer)))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    its = torch.optim.lr_scheduler.ExponentialLR(other, 0.9)
    run(optimizer, params, range(5))
    assert fastopt.torch.accelerate(optimizer) is optimizer
    assert type(optimizer) is ours
    run(optimizer, params, range(5, 10))
    run(other, others, range(10))
    scheduler.step()  # would warn if it had lost sight of the steps
    its.step()
    run(optimizer, params, range(10, 15))
    run(other, others, range(10, 15))
    assert seen == [theirs] * 5 + [ours] * 10
    assert "_fastopt_plans" in vars(optimizer)  # the kernels did run
    assert_same(optimizer, other, **NEAR)
    assert fastopt.torch.accelerate(optimizer) is optimizer


def test_refusals_of_accelerate():
    class Mine(torch.optim.Adam):
        pass

    with pytest.raises(TypeError, match=r"Mine is a class derived from Adam, .* derive it from fastopt.torch.Adam"):
        fastopt.torch.accelerate(Mine(parameters()))
    with pytest.raises(TypeError, match=f"one of torch.optim's {', '.join(NAMES)}; got .*Adamax"):
        fastopt.torch.accelerate(torch.optim.Adamax(parameters()))
    optimizer = torch.optim.SGD(parameters())
    optimizer.step = lambda: None
    with pytest.raises(ValueError, match="`step` replaced"):
        fastopt.torch.accelerate(optimizer)
    assert type(optimizer) is torch.optim.SGD


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_state_loaded_between_the_first_steps_is_the_one_that_is_updated(name, steps):
    """The plan is made in the first step, and its fast path, for parameters with elements, in the second."""
    optimizers = [cls([p for p in parameters() if p.numel()], **TELLING[name]) for cls in pair(name)]
    for optimizer in optimizers:
        run(optimizer, all_params(optimizer), range(steps))
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        run(optimizer, all_params(optimizer), range(steps, steps + 3))
    assert_same(*optimizers, **NEAR)


@pytest.mark.parametrize("change", ["another group", "another rule", "another order", "fewer parameters"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_groups_that_change_between_the_first_steps(steps, change):
    optimizers = []
    for cls in pair("Adam"):
        params = [p for p in parameters() if p.numel()]
        optimizer = cls(params[:2], **TELLING["Adam"])
        optimizers.append(optimizer)
        run(optimizer, params, range(steps))
        [group] = optimizer.param_groups
        if change == "another group":
            optimizer.add_param_group({"params": params[2:], "lr": 0.3})
        elif change == "another rule":
            group["amsgrad"] = True
            for state in optimizer.state.values():
                state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
        elif change == "another order":
            group["params"].reverse()
        else:
            group["params"].pop()
        run(optimizer, params, range(steps, steps + 3))
    if change == "fewer parameters":  # its state stays the optimizer's, which a state_dict then refuses
        pairs = (all_params(optimizer) for optimizer in optimizers)
        assert all(torch.allclose(p, q, **NEAR) for p, q in zip(*pairs, strict=True))
    else:
        assert_same(*optimizers, **NEAR)
