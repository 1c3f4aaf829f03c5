"""fastopt.torch gives the numbers that torch gives, whatever the options, the dtype and the layout."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import (  # noqa: E402
    FUSED,
    NAMES,
    TELLING,
    all_params,
    assert_same,
    pair,
    parameters,
    run,
    set_gradients,
    twins,
    where,
)

import fastopt.torch  # noqa: E402

# All combinations of these, on top of values that tell.
OPTIONS: dict[str, dict[str, list]] = {
    "SGD": {"momentum": [0, 0.8], "dampening": [0, 0.3], "nesterov": [False, True], "weight_decay": [0, 0.1]},
    "Adagrad": {
        "lr_decay": [0, 0.05],
        "weight_decay": [0, 0.1],
        "initial_accumulator_value": [0, 0.3],
        "eps": [1e-10, 0.1],
    },
    "Adadelta": {"rho": [0.0, 0.9], "weight_decay": [0, 0.1], "eps": [1e-6, 0.1], "maximize": [False, True]},
    "RMSprop": {"momentum": [0, 0.5], "centered": [False, True], "weight_decay": [0, 0.1], "eps": [1e-8, 0.1]},
    "Adam": {
        "amsgrad": [False, True],
        "weight_decay": [0, 0.1],
        "eps": [1e-8, 0.1],
        "betas": [(0.9, 0.999), (0.0, 0.5)],
        "decoupled_weight_decay": [False, True],
    },
    "NAdam": {
        "momentum_decay": [4e-3, 0.5],
        "decoupled_weight_decay": [False, True],
        "weight_decay": [0, 0.1],
        "eps": [1e-8, 0.1],
        "betas": [(0.9, 0.999), (0.0, 0.5)],
    },
    "AdamW": {
        "amsgrad": [False, True],
        "weight_decay": [0, 0.1],
        "eps": [1e-8, 0.1],
        "betas": [(0.9, 0.999), (0.0, 0.5)],
    },
}
# float64 differs by the order of operations only. float32: 100 steps of at most lr times some roundings of 6e-8.
TOLERANCE = {torch.float64: {"rtol": 1e-12, "atol": 1e-13}, torch.float32: {"rtol": 2e-5, "atol": 2e-6}}


def combinations():
    for name, options in OPTIONS.items():
        for values in itertools.product(*options.values()):
            kwargs = dict(zip(options, values, strict=True))
            if kwargs.get("nesterov") and (not kwargs["momentum"] or kwargs["dampening"]):
                continue  # which torch refuses
            yield pytest.param(name, kwargs, id=f"{name}-{'-'.join(map(str, values))}")


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("name", "kwargs"), list(combinations()))
def test_every_combination_of_options(name, kwargs, maximize):
    ours, theirs = pair(name)
    left = parameters()
    right = twins(left)
    kwargs = {**TELLING[name], **kwargs, "maximize": maximize}
    one, other = ours(left, **kwargs), theirs(right, **kwargs)
    for step in range(100):
        set_gradients(left, right, step=step)
        one.step()
        other.step()
    assert set(where(one)) == {"fastopt"}
    assert_same(one, other, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "gaps", "expanded gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_layouts(name, dtype, layout):
    ours, theirs = pair(name)
    left = parameters(dtype, layout=layout)
    right = twins(left)
    assert left[0].stride() == right[0].stride() or layout == "gaps"
    one, other = ours(left, **TELLING[name]), theirs(right, **TELLING[name])
    for step in range(100):
        set_gradients(left, right, step=step, expanded=layout == "expanded gradient")
        before = [p.grad.clone() for p in left]
        one.step()
        other.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(left, before, strict=True))
    assert_same(one, other, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits_as_the_optimizers_for_arrays(name, dtype):
    """Which are bit by bit the reference's."""
    values = np.random.default_rng(0).standard_normal((6, 50)).astype(dtype)
    array, p = values[0].copy(), torch.tensor(values[0], requires_grad=True)
    one = fastopt.torch.__dict__[name]([p], **TELLING[name])
    other = getattr(fastopt, name)(array, backend="numpy", **TELLING[name])
    for g in values[1:]:
        p.grad = torch.tensor(g)
        one.step()
        other.step(g)
    np.testing.assert_array_equal(p.detach().numpy(), array)


@pytest.mark.parametrize("name", NAMES)
def test_channels_last(name):
    ours, theirs = pair(name)
    left = [torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))]
    right = twins(left)
    one, other = ours(left, **TELLING[name]), theirs(right, **TELLING[name])
    for step in range(20):
        set_gradients(left, right, step=step)
        if step % 2:  # a gradient in another order of memory
            left[0].grad = left[0].grad.contiguous()
        one.step()
        other.step()
    assert where(one) == ["fastopt"]
    assert_same(one, other, **TOLERANCE[torch.float32])


def makes_states_for_added_groups(cls):
    """Adagrad before torch 2.8 makes states when it is made, and none for groups that are added."""
    late = torch.zeros(1, requires_grad=True)
    optimizer = cls([torch.zeros(1)])
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(1)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_groups_and_parameters_without_gradients(name):
    ours, theirs = pair(name)
    if not makes_states_for_added_groups(theirs):
        pytest.skip("this torch's optimizer has no states for groups that are added")
    optimizers = []
    for cls in (ours, theirs):
        params = [*parameters(), *parameters(seed=1)]
        optimizer = cls(
            [{"params": params[:3]}, {"params": params[3:6], "lr": 0.5, "weight_decay": 0}], **TELLING[name]
        )
        optimizer.add_param_group({"params": params[6:], "maximize": True})
        optimizers.append(optimizer)
    for step in range(12):
        params = [all_params(optimizer) for optimizer in optimizers]
        set_gradients(*params, step=step)
        for i in range(len(params[0])):  # so that every parameter has made another number of steps
            if step % (i + 2) == 0:
                params[0][i].grad = params[1][i].grad = None
        for optimizer in optimizers:
            optimizer.param_groups[1]["lr"] *= 0.9
            optimizer.step()
    assert_same(*optimizers, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_may_change_between_steps(name):
    ours, theirs = pair(name)
    optimizers = [cls(parameters(), **TELLING[name]) for cls in (ours, theirs)]
    for optimizer in optimizers:
        params = all_params(optimizer)
        group = optimizer.param_groups[0]
        run(optimizer, params, range(3))
        group.update(lr=0.01, weight_decay=0.5, maximize=True)
        run(optimizer, params, range(3, 6))
        if name == "SGD":
            group["momentum"] = 0
            run(optimizer, params, range(6, 9))
            group.update(momentum=0.3, dampening=0.7)
        run(optimizer, params, range(9, 12))
    assert_same(*optimizers, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", NAMES)
def test_a_learning_rate_that_is_a_tensor(name):
    optimizers = []
    for cls in pair(name):
        params = parameters()
        rate = torch.tensor(0.03, dtype=torch.float64)
        optimizer = cls(params, **{**TELLING[name], "lr": rate})
        run(optimizer, params, range(10))
        rate.mul_(0.5)
        run(optimizer, params, range(10, 20))
        optimizers.append(optimizer)
    assert set(where(optimizers[0])) == {"fastopt"}
    assert_same(*optimizers, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("flags", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_foreach_and_fused(name, flags):
    if name not in FUSED and "fused" in flags:
        pytest.skip(f"torch has no fused {name}")
    optimizers = []
    for cls in pair(name):
        params = [p for p in parameters() if p.numel()]  # torch's fused SGD takes no empty ones
        optimizer = cls(params, **TELLING[name], **flags)
        run(optimizer, params, range(20))
        optimizers.append(optimizer)
    assert set(where(optimizers[0])) == {"fastopt"}
    assert_same(*optimizers, **TOLERANCE[torch.float64])


def test_torch_counts_in_float64_where_that_is_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        optimizers = []
        for cls in pair("Adam"):
            params = parameters()
            optimizers.append(cls(params))
            run(optimizers[-1], params, range(3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(*optimizers, **TOLERANCE[torch.float64])


@pytest.mark.slow
def test_large_arrays_are_shared_between_threads():
    left = [torch.randn(300, 1000), torch.randn(100_001)]
    right = twins(left)
    one, other = fastopt.torch.AdamW(left), torch.optim.AdamW(right)
    for step in range(3):
        set_gradients(left, right, step=step)
        one.step()
        other.step()
    assert_same(one, other, **TOLERANCE[torch.float32])
