"""Optimizers of torch's kind for rules of the user: torch's programs run with them, with the bits of ours."""

import copy
import pickle

import numpy as np
import pytest
from helpers_formulas import forget_formulas

import fastopt as fo

torch = pytest.importorskip("torch", reason="in the extra `torch`")

import fastopt.torch  # noqa: E402


def heavy_ball(p, g, s, lr, beta):
    velocity = beta * s[0] + g
    return p - lr * velocity, velocity


def rule():
    return fo.OptimizerRule.define("HeavyBall", heavy_ball, ["momentum_buffer"], {"beta": (0.9, 0, 1)}, lr=0.05)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).to(dtype)


def steps(model, optimizer, count=3, scheduler=None):
    x = torch.linspace(-1, 1, 30, dtype=next(model.parameters()).dtype).reshape(10, 3)
    for _ in range(count):
        optimizer.zero_grad()
        model(x).pow(2).mean().backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return [p.detach().clone() for p in model.parameters()]


def assert_same(found, wanted):
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "maximize": True}, {"clip_norm": 0.01}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_of_a_built_in_one(dtype, options):
    found = []
    for make in (fastopt.torch.class_of(rule()), fastopt.torch.SGD):
        model = network(dtype)
        momentum = {"beta": 0.9} if make is not fastopt.torch.SGD else {"momentum": 0.9}
        optimizer = make(model.parameters(), lr=0.1, **momentum, **options)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        found.append(steps(model, optimizer, 5, scheduler))
    assert_same(*found)


def test_groups_states_and_copies():
    cls = fastopt.torch.class_of(rule())
    assert cls is fastopt.torch.class_of(rule())
    assert (cls.__name__, issubclass(cls, torch.optim.Optimizer)) == ("HeavyBall", True)
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters(), "beta": 0.5}]
    optimizer = cls(groups, lr=0.1)
    steps(model, optimizer)
    saved = optimizer.state_dict()
    assert [group["lr"] for group in saved["param_groups"]] == [0.01, 0.1]
    assert [group["beta"] for group in saved["param_groups"]] == [0.9, 0.5]
    assert {i: (entry["step"].item(), entry["momentum_buffer"].shape) for i, entry in saved["state"].items()} == {
        i: (3, p.shape) for i, p in enumerate(model.parameters())
    }
    other_model = copy.deepcopy(model)
    other = cls([{"params": other_model[0].parameters()}, {"params": other_model[2].parameters()}])
    other.load_state_dict(saved)
    both, twins = copy.deepcopy((model, optimizer))
    restored, third = pickle.loads(pickle.dumps((model, optimizer)))
    wanted = steps(model, optimizer)
    assert_same(steps(other_model, other), wanted)
    assert_same(steps(both, twins), wanted)
    assert_same(steps(restored, third), wanted)
    forget_formulas()
    with pytest.raises(ValueError, match="the optimizer 'HeavyBall' is not defined here: call fo.OptimizerRule.define"):
        pickle.loads(pickle.dumps(optimizer))


def test_parameters_may_move_and_be_added():
    cls = fastopt.torch.class_of(rule())
    found = []
    for moves in (False, True):
        model, late = network(), torch.nn.Parameter(torch.ones(2))
        optimizer = cls(model.parameters(), lr=0.1)
        steps(model, optimizer)
        if moves:
            for p in model.parameters():
                p.data = p.data.clone()
        optimizer.add_param_group({"params": [late], "lr": 1.0})
        optimizer.zero_grad()
        late.grad = torch.ones(2)
        optimizer.step()  # of that one alone
        assert late.tolist() == [0.0, 0.0]
        found.append(steps(model, optimizer))
    assert_same(*found)


def test_closures_grad_scaler_and_no_gradients():
    cls = fastopt.torch.class_of(rule())
    w = torch.ones(2, requires_grad=True)
    optimizer = cls([w], lr=0.5)
    optimizer.step()
    assert w.tolist() == [1, 1]

    def closure():
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert w.tolist() == [0, 0]
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, expected in ((1.0, -0.5 - 0.9), (float("inf"), -0.5 - 0.9)):
        optimizer.zero_grad()
        scaler.scale((w * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        np.testing.assert_allclose(w.tolist(), [expected] * 2, rtol=1e-6)


def test_refusals():
    with pytest.raises(TypeError, match=r"rule must be a class of fo\.OptimizerRule\.define; got <class"):
        fastopt.torch.class_of(fo.Adam)
    cls = fastopt.torch.class_of(rule())
    with pytest.raises(ValueError, match=r"beta must be a number in \[0, 1\]; got 2"):
        cls([torch.ones(1)], beta=2)
    with pytest.raises(TypeError, match="gamma"):
        cls([torch.ones(1)], gamma=2)
    with pytest.raises(TypeError, match="must be one of torch.optim's"):
        fastopt.torch.accelerate(cls([torch.ones(1)]))
