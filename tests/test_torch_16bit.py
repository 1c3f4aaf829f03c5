"""float16 and bfloat16 parameters of torch's: each step is float64's, rounded once, with torch's states."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import NAMES, TELLING, all_params, pair, parameters, run, set_gradients, twins, where  # noqa: E402

import fastopt.torch  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16]
# Half a unit in the last place of a rounded number, and 1 % for what float32 arithmetic adds before it is rounded; and
# where terms cancel, or float16 has a fixed point, a part of the terms, which are about 1.
ROUNDED = {torch.float16: {"rtol": 2**-11 * 1.01, "atol": 1e-6}, torch.bfloat16: {"rtol": 2**-8 * 1.01, "atol": 1e-6}}
MORE = {
    "SGD": [{}, {"momentum": 0}, {"nesterov": True}, {"maximize": True}],
    "Adagrad": [{}],
    "Adadelta": [{}, {"maximize": True}],
    "RMSprop": [{}, {"momentum": 0}, {"centered": True, "weight_decay": 0}],
    "Adam": [{}, {"amsgrad": True}, {"maximize": True}],
    "NAdam": [{}, {"decoupled_weight_decay": True}],
    "AdamW": [{}, {"amsgrad": True}],
}
CASES = [pytest.param(name, more, id=f"{name}-{more}") for name in NAMES for more in MORE[name]]


def after_one_step(optimizer, dtype, **kwargs):
    """Result of torch's optimizer for the same parameters, gradients and states in another dtype."""
    params = all_params(optimizer)
    others = [p.detach().to(dtype).requires_grad_() for p in params]
    for p, q in zip(params, others, strict=True):
        q.grad = p.grad.to(dtype)
    other = type(optimizer).__mro__[2](others, **kwargs)
    if any(optimizer.state.values()):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for group in other.param_groups:
            group.update(kwargs)
    other.step()
    return other


def numbers(optimizer):
    """Parameters and states in order, as float64."""
    for p in all_params(optimizer):
        yield p.detach().double()
        yield from (value.double() for _, value in sorted(optimizer.state[p].items()) if value is not None)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded gradient"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "more"), CASES)
def test_every_step_is_that_of_float64_rounded_once(name, more, dtype, layout):
    kwargs = {**TELLING[name], **more}
    params = parameters(dtype, layout=layout)
    optimizer = pair(name)[0](params, **kwargs)
    for step in range(12):
        set_gradients(params, step=step, expanded=layout == "expanded gradient")
        other = after_one_step(optimizer, torch.float64, **kwargs)
        optimizer.step()
        for ours, exact in zip(numbers(optimizer), numbers(other), strict=True):
            torch.testing.assert_close(ours, exact, **ROUNDED[dtype])
    assert set(where(optimizer)) == {"fastopt"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_steps_are_torchs_fused_ones_but_for_a_unit_now_and_then(name, dtype):
    """Both calculate in float32 and round once: they differ where that falls to either side of halfway.

    Without an L2 penalty, with which torch 2.13 rounds the gradient in between; and not SGD, whose fused step in torch
    2.13 loses most of such updates.
    """
    params = [torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()]
    kwargs = {**TELLING[name], **({"weight_decay": 0} if name == "Adam" else {})}
    optimizer = pair(name)[0](params, **kwargs)
    for step in range(10):
        set_gradients(params, step=step)
        other = after_one_step(optimizer, dtype, **kwargs, fused=True)
        optimizer.step()
        for ours, theirs in zip(numbers(optimizer), numbers(other), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2 * ROUNDED[dtype]["rtol"], atol=1e-6)
            assert (ours != theirs).double().mean() < 0.01


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_that_torch_makes(name, dtype):
    made = []
    for cls in pair(name):
        params = parameters(dtype)
        optimizer = cls(params, **TELLING[name])
        run(optimizer, params, range(2))
        state = optimizer.state_dict()["state"].values()
        made.append([{k: (v.dtype, v.shape, v.stride()) for k, v in one.items() if v is not None} for one in state])
    assert made[0] == made[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_checkpoint_moves_both_ways(name, dtype):
    ours, theirs = pair(name)
    params = parameters(dtype)[:2]
    straight = ours(params, **TELLING[name])
    others = twins(params)
    optimizer = ours(others, **TELLING[name])
    for cls in (theirs, ours):
        run(optimizer, others, range(2))
        state = copy.deepcopy(optimizer.state_dict())
        optimizer = cls(others, fused=True)
        optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["fused"] = True
    run(optimizer, others, range(2))
    for _ in range(3):
        run(straight, params, range(2))
    assert [len(optimizer.state[p]) for p in others] == [3, 3]
    for one, other in zip(numbers(straight), numbers(optimizer), strict=True):
        torch.testing.assert_close(one, other, rtol=4 * ROUNDED[dtype]["rtol"], atol=1e-4)  # two steps are torch's


def test_all_dtypes_in_one_optimizer():
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
    lists = [parameters(dtype, seed=i) for i, dtype in enumerate(dtypes)]
    together = fastopt.torch.AdamW(
        [{"params": lists[0] + lists[1]}, {"params": lists[2] + lists[3], "lr": 0.3}], lr=0.1
    )
    alone = [fastopt.torch.AdamW(twins(params), lr=0.1 if i < 2 else 0.3) for i, params in enumerate(lists)]
    for step in range(5):
        for params, optimizer in zip(lists, alone, strict=True):
            set_gradients(params, step=step)
            for p, q in zip(params, all_params(optimizer), strict=True):
                q.grad = p.grad.clone()
            optimizer.step()
        together.step()
    assert set(where(together)) == {"fastopt"}
    for params, optimizer in zip(lists, alone, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(params, all_params(optimizer), strict=True))


def test_gradients_of_another_dtype_are_torchs_business():
    p = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    optimizer = fastopt.torch.Adam([p])
    optimizer.step()
    p.grad = torch.ones(3, dtype=torch.bfloat16)
    optimizer.step()
    optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].float()
    (placement,) = fastopt.torch.explain(optimizer)
    assert placement.reason == "state exp_avg differs from the parameter in dtype or shape"


def scaled_steps(optimizer, p):
    """Three steps on gradients of 2^-11, or 2^-27 when unscaled; the second is infinite, which halves the scale."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(torch.zeros(()))
    for step in range(3):
        p.grad = torch.full_like(p, 2.0**-11)
        if step == 1:
            p.grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**15
    return p.detach().double()


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_gradients_that_float16_holds_only_scaled(name):
    results = []
    for cls in pair(name):
        p = torch.zeros(40, dtype=torch.float16, requires_grad=True)
        results.append(scaled_steps(cls([p], lr=0.1, eps=1e-12, fused=True), p))
    assert (results[0] < 0).all()
    torch.testing.assert_close(*results, rtol=2**-10, atol=0)


def test_gradients_that_float16_holds_only_scaled_in_exact_numbers():
    p = torch.zeros(40, dtype=torch.float16, requires_grad=True)
    assert (scaled_steps(fastopt.torch.SGD([p], lr=2.0**20, fused=True), p) == -(2.0**-7) - 2.0**-6).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(dtype):
    """Infinity, NaN, denormal numbers and overflow become what they are for torch."""
    results = []
    for cls in pair("Adam"):
        values = [float("inf"), float("-inf"), float("nan"), 6e-8, -1e-39, 65504.0, 3e38, 0.0]
        p = torch.tensor(values, dtype=dtype, requires_grad=True)
        optimizer = cls([p], lr=0.5, weight_decay=0.1, **({} if cls.__module__ == "fastopt.torch" else {"fused": True}))
        for g in (values[::-1], [1e4] * 8, [0.0] * 8):
            p.grad = torch.tensor(g, dtype=dtype)
            optimizer.step()
        results.append(optimizer)
    for ours, theirs in zip(numbers(results[0]), numbers(results[1]), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=2 * ROUNDED[dtype]["rtol"], atol=1e-6)
