"""`clip_norm`: what torch's clip_grad_norm_ before the step does, in the step, and without writing to the gradients."""

from __future__ import annotations

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import (  # noqa: E402
    NAMES,
    NEAR,
    TELLING,
    all_params,
    assert_same,
    pair,
    parameters,
    quietly,
    run,
    set_gradients,
    where,
)

import fastopt.torch  # noqa: E402

MOST = 6.5  # of gradients whose norms are 5 to 8


def clipped(optimizer, params, steps, change=None):
    """Steps of torch's, each after its own clipping; the norms."""
    norms = []
    for step in steps:
        set_gradients(params, step=step)
        if change:
            change(params)
        norms.append(float(torch.nn.utils.clip_grad_norm_(params, MOST)))
        optimizer.step()
    return norms


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_clipping_before_the_step(name):
    ours, theirs = pair(name)
    params, others = parameters(), parameters()
    one, other = ours(params, **TELLING[name], clip_norm=MOST), theirs(others, **TELLING[name])
    norms = []
    for step in range(30):
        set_gradients(params, step=step)
        before = [p.grad.clone() for p in params]
        one.step()
        norms.append(one.grad_norm)
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))
    assert norms == pytest.approx(clipped(other, others, range(30)), rel=1e-12)
    assert min(norms) < MOST < max(norms)
    assert_same(one, other, **NEAR)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", NAMES)
def test_infinity_and_nan(name, value):
    """An infinite norm makes all gradients 0 but the infinite one, and NaN makes all NaN, as in torch."""

    def change(params):
        params[0].grad[0, 0] = float(value)

    ours, theirs = pair(name)
    params, others = parameters(), parameters()
    one, other = ours(params, **TELLING[name], clip_norm=MOST), theirs(others, **TELLING[name])
    for step in range(2):
        set_gradients(params, step=step)
        change(params)
        one.step()
    norms = clipped(other, others, range(2), change)
    assert one.grad_norm == norms[-1] or (one.grad_norm != one.grad_norm and norms[-1] != norms[-1])
    assert torch.isnan(params[0]).sum() == torch.isnan(others[0]).sum() > 0
    assert_same(one, other, **NEAR, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_norms_of_every_dtype(dtype):
    """The norm is float64; torch's has the dtype of the gradients."""
    params = parameters(dtype)
    optimizer = fastopt.torch.SGD(params, lr=1.0, clip_norm=1.0)
    set_gradients(params, step=0)
    before = [p.detach().double() for p in params]
    norm = float(torch.cat([p.grad.double().flatten() for p in params]).norm())
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(norm, rel=1e-12)
    tolerance = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-22}[dtype]
    for p, q in zip(params, before, strict=True):
        torch.testing.assert_close(p.double(), q - p.grad.double() / norm, rtol=1.01 * tolerance, atol=1e-6)


def test_parameters_that_torch_updates_count_as_well():
    """Then torch clips all gradients, in place."""
    optimizers = []
    for cls in pair("Adam"):
        params = [*parameters(), torch.ones(4, dtype=torch.complex128, requires_grad=True)]
        own = {"clip_norm": MOST} if cls.__module__ == "fastopt.torch" else {}
        optimizer = cls(params, **TELLING["Adam"], **own)
        if own:
            run(optimizer, params, range(5))
        else:
            norms = clipped(optimizer, params, range(5))
        optimizers.append(optimizer)
    assert where(optimizers[0]) == ["fastopt"] * 4 + ["torch"]
    assert optimizers[0].grad_norm == pytest.approx(norms[-1], rel=1e-12)
    assert_same(*optimizers, **NEAR)
    for p, q in zip(*map(all_params, optimizers), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **NEAR)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_grad_scaler(name):
    """The norm is that of the unscaled gradients, and a step that is skipped takes none."""
    optimizers = []
    for cls in pair(name):
        params = [p for p in parameters(torch.float32) if p.numel()]
        own = {"clip_norm": MOST} if cls.__module__ == "fastopt.torch" else {}
        optimizer = cls(params, **TELLING[name], fused=True, **own)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(torch.zeros(()))
        for step in range(8):
            set_gradients(params, step=step)
            for p in params:
                p.grad.mul_(scaler.get_scale())
            if step == 3:
                params[0].grad[0, 0] = float("inf")
            if not own:
                scaler.unscale_(optimizer)
                norm = float(torch.nn.utils.clip_grad_norm_(params, MOST))
            scaler.step(optimizer)
            scaler.update()
        optimizers.append(optimizer)
    assert optimizers[0].grad_norm == pytest.approx(norm, rel=1e-6)
    assert_same(*optimizers, rtol=2e-5, atol=2e-6)


def test_closures_and_compiled_programs(monkeypatch):
    optimizers = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        p = torch.tensor([3.0, -4.0], dtype=torch.float64, requires_grad=True)
        optimizer = fastopt.torch.SGD([p], lr=1.0, clip_norm=1.0)

        def closure(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            loss = p.square().sum() / 2
            loss.backward()
            return loss

        assert quietly(optimizer.step, closure).item() == 12.5
        assert optimizer.grad_norm == 5
        optimizers.append(optimizer)
        torch.testing.assert_close(p.detach(), torch.tensor([2.4, -3.2], dtype=torch.float64), rtol=1e-6, atol=0)


def test_it_may_change_between_steps():
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = fastopt.torch.accelerate(torch.optim.SGD([p], lr=1.0))
    assert (optimizer.clip_norm, optimizer.grad_norm) == (None, None)
    p.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer.step()
    assert optimizer.grad_norm is None
    optimizer.clip_norm = 1
    optimizer.step()
    optimizer.clip_norm = None
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([-6.6, -8.8], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("value", "error"), [("1", TypeError), (True, TypeError), (-1.0, ValueError), (0, ValueError)])
def test_refusals(value, error):
    with pytest.raises(error, match="clip_norm must be"):
        fastopt.torch.Adam(parameters(), clip_norm=value)
    optimizer = fastopt.torch.Adam(parameters(), clip_norm=2.0)
    with pytest.raises(error, match="clip_norm must be"):
        optimizer.clip_norm = value
    assert optimizer.clip_norm == 2


@pytest.mark.parametrize("name", NAMES)
def test_copies_have_it_and_checkpoints_have_not(name):
    ours, theirs = pair(name)
    optimizer = ours(parameters(), clip_norm=2.0)
    state, its = optimizer.state_dict(), theirs(parameters()).state_dict()
    assert (set(state), state["param_groups"]) == (set(its), its["param_groups"])
    assert "clip_norm" not in optimizer.defaults
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.clip_norm == 2
    optimizer.load_state_dict(theirs(parameters()).state_dict())
    assert optimizer.clip_norm == 2
    assert copy.deepcopy(ours(parameters())).clip_norm is None


def test_a_class_of_the_users_own():
    class Mine(fastopt.torch.Adam):
        def __init__(self, params, more):
            super().__init__(params, lr=0.1, clip_norm=more)

    assert Mine(parameters(), 3.0).clip_norm == 3
