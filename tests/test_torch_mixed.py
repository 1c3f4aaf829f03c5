"""Parameters that our kernels do not take are updated by torch's own code, in the same step; `explain` says which."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import (  # noqa: E402
    EXACT,
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
    twins,
    where,
)

import fastopt.torch  # noqa: E402


def both(name, make, steps=10, **kwargs):
    """Ours and torch's after some steps on the parameters that make() gives, anew for each of the two."""
    optimizers = []
    for cls in pair(name):
        params = make()
        optimizer = cls(params, **{**TELLING[name], **kwargs})
        run(optimizer, params, range(steps))
        optimizers.append(optimizer)
    return optimizers


class Tagged(torch.Tensor):
    """A subclass of Tensor, which may mean anything by the same operations."""


STRANGERS = {
    "dtype complex128": lambda: torch.ones(4, dtype=torch.complex128),
    "memory with gaps or overlaps: strides (2,)": lambda: torch.ones(8, dtype=torch.float64)[::2],
    "a subclass of Tensor: Tagged": lambda: torch.ones(4, dtype=torch.float64).as_subclass(Tagged),
    "on meta": lambda: torch.ones(4, device="meta"),
}


@pytest.mark.parametrize("reason", STRANGERS)
@pytest.mark.parametrize("name", NAMES)
def test_strangers_among_others(name, reason):
    def make():
        return [*parameters(), STRANGERS[reason]().requires_grad_()]

    if reason == "on meta":  # nothing to compare, but it runs
        (placement,) = fastopt.torch.explain(pair(name)[0]([STRANGERS[reason]().requires_grad_()]))
        assert (placement.where, placement.reason) == ("torch", reason)
        return
    one, other = both(name, make)
    assert where(one) == ["fastopt"] * 4 + ["torch"]
    assert fastopt.torch.explain(one)[-1].reason == reason
    assert_same(one, other, rtol=1e-12, atol=1e-13)
    stranger, peer = all_params(one)[-1], all_params(other)[-1]
    assert torch.equal(stranger, peer)  # bit by bit: it is torch's code


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # in torch's own Adagrad
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_sparse_gradients_every_other_step(name):
    kwargs = {"weight_decay": 0.0, "lr": 0.1, "maximize": False}
    optimizers = []
    for cls in pair(name):
        torch.manual_seed(0)
        table, dense = torch.nn.Embedding(10, 3, sparse=True, dtype=torch.float64), parameters()
        optimizer = cls([table.weight, *dense], **kwargs)
        for step in range(6):
            set_gradients([table.weight, *dense], step=step)
            if step % 2:
                table.weight.grad = None
                table(torch.tensor([1, 4, 4])).square().sum().backward()
                reasons = [placement.reason for placement in fastopt.torch.explain(optimizer)]
                assert cls.__module__ != "fastopt.torch" or reasons == ["gradient of layout sparse_coo", *[""] * 4]
            optimizer.step()
        optimizers.append(optimizer)
    assert_same(*optimizers, **NEAR)


def test_torchs_refusal_of_sparse_gradients_changes_nothing_of_ours():
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    optimizer = fastopt.torch.Adam([p, q])
    p.grad, q.grad = torch.ones(3), torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(p, torch.ones(3))
    assert p not in optimizer.state or not optimizer.state[p]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_share_memory(name):
    def make():
        whole = torch.linspace(-1, 1, 12, dtype=torch.float64)
        return [whole[:6].requires_grad_(), whole[4:10].detach().requires_grad_(), torch.ones(3).requires_grad_()]

    one, other = both(name, make)
    assert where(one) == ["torch", "torch", "fastopt"]
    assert fastopt.torch.explain(one)[0].reason == "shares memory with another parameter"
    assert torch.equal(all_params(one)[1], all_params(other)[1])


def test_a_parameter_given_twice():
    optimizers = []
    for cls in pair("SGD"):
        (p, *_) = parameters()
        optimizer = quietly(cls, [p, p], lr=0.1, momentum=0.9)
        run(optimizer, [p], range(3))
        optimizers.append(optimizer)
    assert where(optimizers[0]) == ["torch", "torch"]
    assert torch.equal(*(all_params(optimizer)[0] for optimizer in optimizers))


@pytest.mark.parametrize("name", NAMES)
def test_differentiable(name):
    results = []
    for cls in pair(name):
        start = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        p = start.clone()
        optimizer = cls([p], differentiable=True, **TELLING[name])
        p.grad = p.detach() * 2
        optimizer.step()
        p.square().sum().backward()
        results.append(start.grad)
        assert cls.__module__ != "fastopt.torch" or fastopt.torch.explain(optimizer)[0].reason == "differentiable=True"
    assert torch.equal(*results)


def test_capturable_is_torchs_business():
    for cls in pair("Adam"):
        params = parameters()
        optimizer = cls(params, capturable=True)
        set_gradients(params, step=0)
        with pytest.raises(AssertionError, match="capturable=True"):
            optimizer.step()


def test_rates_that_are_tensors_where_torch_needs_them():
    rate = torch.tensor(0.1, requires_grad=True)
    optimizer = fastopt.torch.SGD(parameters(), lr=rate)
    assert {placement.reason for placement in fastopt.torch.explain(optimizer)} == {
        "lr is a tensor that requires a gradient"
    }
    params = parameters()
    optimizer = fastopt.torch.SGD(params, lr=0.1, foreach=True)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    assert set(where(optimizer)) == {"torch"}


@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_states_that_an_option_lacks(name):
    """An option turned on too late is refused as torch does."""
    for cls in pair(name):
        params = parameters()
        optimizer = cls(params)
        run(optimizer, params, range(1))
        optimizer.param_groups[0].update({"amsgrad": True} if name == "Adam" else {"momentum": 0.9})
        before = twins(params)
        with pytest.raises(KeyError):
            run(optimizer, params, range(1, 2))
        assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_states_laid_out_otherwise():
    optimizers = []
    for cls in pair("Adam"):
        p = parameters(layout="transposed")[0]
        optimizer = cls([p], **TELLING["Adam"])
        run(optimizer, [p], range(2))
        optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].contiguous()
        run(optimizer, [p], range(2, 5))
        optimizers.append(optimizer)
    assert fastopt.torch.explain(optimizers[0])[0].reason == "state exp_avg has other strides than the parameter"
    assert_same(*optimizers, **NEAR)


def test_memory_that_is_not_aligned():
    optimizers = []
    for cls in pair("SGD"):
        memory = bytearray(8 * 5 + 1)
        p = torch.frombuffer(memory, dtype=torch.float64, offset=1, count=5)
        p.fill_(1.0)
        optimizer = cls([p.requires_grad_()], lr=0.1)
        run(optimizer, [p], range(2))
        optimizers.append(optimizer)
    assert where(optimizers[0]) == ["torch"]
    assert_same(*optimizers, **EXACT)


def test_gradients_that_are_views_of_something_odd():
    """Negated and misaligned ones, which our kernels get as copies, and one that is itself part of a graph."""
    optimizers = []
    for cls in pair("SGD"):
        params = [torch.ones(5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        optimizer = cls(params, lr=0.1, momentum=0.9)
        for step in range(3):
            z = torch.arange(5, dtype=torch.float64) + step
            params[0].grad = torch.complex(z, z).conj().imag
            assert params[0].grad.is_neg()
            memory = bytearray(8 * 5 + 1)
            params[1].grad = torch.frombuffer(memory, dtype=torch.float64, offset=1, count=5).copy_(z)
            params[2].grad = (torch.ones(5, dtype=torch.float64, requires_grad=True) * z).square()
            optimizer.step()
        optimizers.append(optimizer)
    assert set(where(optimizers[0])) == {"fastopt"}
    assert_same(*optimizers, **NEAR)


def test_explain():
    w, z = torch.zeros(2, 3, requires_grad=True), torch.zeros(4, dtype=torch.complex64, requires_grad=True)
    optimizer = fastopt.torch.Adam([("w", w), ("z", z)])
    explanation = fastopt.torch.explain(optimizer)
    assert explanation == [
        fastopt.torch.Placement(0, 0, "w", (2, 3), "float32", "fastopt", ""),
        fastopt.torch.Placement(0, 1, "z", (4,), "complex64", "torch", "dtype complex64"),
    ]
    assert str(explanation).splitlines() == [
        "1 of 2 parameters are updated by fastopt, 1 by torch",
        "group 0, parameter 0 w (2x3 float32): fastopt",
        "group 0, parameter 1 z (4 complex64): torch: dtype complex64",
    ]
    assert not optimizer.state
    assert "_fastopt_plans" not in vars(optimizer)


def test_explain_of_torchs_own():
    reason = fastopt.torch.explain(torch.optim.Adam(parameters()))[0].reason
    assert reason == "the optimizer is torch.optim.adam.Adam (fastopt.torch.accelerate would change that)"
    assert "accelerate" not in fastopt.torch.explain(torch.optim.Adamax(parameters()))[0].reason


def test_named_groups_of_mixed_kinds():
    """Groups with options of their own, one of which is torch's, one after the other."""
    optimizers = []
    for cls in pair("AdamW"):
        params = [*parameters(), *parameters(seed=1), *parameters(torch.float32, seed=2)]
        groups = [
            {"params": params[:3]},
            {"params": params[3:6], "lr": torch.tensor(0.02, dtype=torch.float64)},
            {"params": params[6:], "amsgrad": True, "weight_decay": 0.0},
        ]
        optimizer = cls(groups, lr=0.01)
        run(optimizer, params, range(8))
        optimizers.append(optimizer)
    assert set(where(optimizers[0])) == {"fastopt"}
    assert_same(*optimizers, rtol=2e-5, atol=2e-6)
