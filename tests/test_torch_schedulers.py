"""fastopt's optimizers on arrays go on from the state_dict of torch's, whatever torch has put into its groups."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import NAMES, TELLING  # noqa: E402
from torch.optim import lr_scheduler, swa_utils  # noqa: E402

import fastopt as fo  # noqa: E402

SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.9),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [1, 3]),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.5, 2),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.5, total_iters=8),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.5, 9), lr_scheduler.ExponentialLR(opt, 0.9)], [2]
    ),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 10),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.5, 9), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 3, cycle_momentum=_has_momentum(opt)),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, 20, cycle_momentum=_has_momentum(opt)),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 8),
    "SWALR": lambda opt: swa_utils.SWALR(opt, 0.01, anneal_epochs=3),
}
# Flags of torch's that change who computes, and options that change what is computed.
FLAGS = {
    "none": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "differentiable": {"differentiable": True},
    "maximize": {"maximize": True},
    "tensor lr": {"lr": torch.tensor(0.05, dtype=torch.float64)},
    "tensor lr of one": {"lr": torch.tensor([0.05], dtype=torch.float64)},
    "amsgrad": {"amsgrad": True},
    "centered": {"centered": True},
    "nesterov": {"nesterov": True},
    "tensor betas": {
        "betas": (torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.95, dtype=torch.float64)),
        "foreach": False,
        "lr": torch.tensor(0.05, dtype=torch.float64),
    },
}


def _has_momentum(opt):
    return "betas" in opt.defaults or opt.defaults.get("momentum", 0) > 0


def modules():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double()


def trained(name, steps=5, named=False, scheduler=None, groups=False, **options):
    """A module and its optimizer of torch's after some steps."""
    net = modules()
    params = list(net.named_parameters() if named else net.parameters())
    if groups:
        params = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.05}]
    opt = getattr(torch.optim, name)(params, **{**TELLING[name], **options})
    schedule = scheduler and SCHEDULERS[scheduler](opt)
    for step in range(steps):
        stepped(net, opt, step)
        if schedule:
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
    return net, opt


def stepped(net, opt, step):
    """Do a step, and return the gradients."""
    generator = torch.Generator().manual_seed(step)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    opt.step()
    return [p.grad.numpy().copy() for p in net.parameters()]


def goes_on(net, opt, name, ours_of, backend):
    """Ours, loaded with torch's state_dict, does the next steps as torch does them."""
    arrays = [p.detach().numpy().copy() for p in net.parameters()]
    ours = getattr(fo, name)(ours_of(arrays), backend=backend)
    ours.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert type(ours.param_groups[0]["lr"]) is float
    for step in range(100, 103):
        grads = stepped(net, opt, step)
        ours.step(ours_of(grads) if not isinstance(ours_of(grads)[0], dict) else [grads[:2], grads[2:]])
    for array, p in zip(arrays, net.parameters(), strict=True):
        np.testing.assert_allclose(array, p.detach().numpy(), rtol=1e-9, atol=1e-12)
    return ours


def flat(arrays):
    return arrays


def grouped(arrays):
    return [{"params": arrays[:2]}, {"params": arrays[2:]}]


def test_the_table_has_every_scheduler():
    known = {name for name in lr_scheduler.__all__ if name != "LRScheduler"}
    assert known <= set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", NAMES)
def test_after_a_scheduler(name, scheduler, backend):
    net, opt = trained(name, scheduler=scheduler)
    if name == "NAdam" and scheduler in ("CyclicLR", "OneCycleLR"):  # which change beta1
        ours = fo.NAdam([p.detach().numpy() for p in net.parameters()], backend=backend)
        with pytest.raises(ValueError, match="mu_product of the state_dict must be .* have changed between steps"):
            ours.load_state_dict(opt.state_dict())
        return
    ours = goes_on(net, opt, name, flat, backend)
    again = getattr(fo, name)([p.detach().numpy() for p in net.parameters()], backend=backend)
    again.load_state_dict(ours.state_dict())
    assert again.lr == opt.param_groups[0]["lr"]


@pytest.mark.parametrize("scheduler", [None, "OneCycleLR"])
@pytest.mark.parametrize("groups", [False, True], ids=["one group", "groups"])
@pytest.mark.parametrize("name", NAMES)
def test_of_named_parameters(name, groups, scheduler):
    if name == "NAdam" and scheduler:
        pytest.skip("its steps are not of one beta1")
    net, opt = trained(name, named=True, groups=groups, scheduler=scheduler)
    assert "param_names" in opt.state_dict()["param_groups"][0]
    goes_on(net, opt, name, grouped if groups else flat, "numpy")


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("name", NAMES)
def test_flags_and_tensors(name, flag):
    options = FLAGS[flag]
    if not set(options) <= set(getattr(torch.optim, name)([torch.zeros(1)]).defaults):
        pytest.skip(f"{name} has no {flag}")
    net = modules()
    if flag == "differentiable":  # torch cannot step leaves then, but it can save
        opt = getattr(torch.optim, name)(net.parameters(), **{**TELLING[name], **options})
        ours = getattr(fo, name)([p.detach().numpy() for p in net.parameters()], backend="numpy")
        ours.load_state_dict(opt.state_dict())
        return
    net, opt = trained(name, **options)
    goes_on(net, opt, name, flat, "numpy")


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop", "Adam", "AdamW"])
def test_steps_in_all_forms(name):
    net, opt = trained(name)
    saved = opt.state_dict()
    arrays = [p.detach().numpy().copy() for p in net.parameters()]
    found = []
    for form in (int, float, lambda step: step, lambda step: step.reshape(1), lambda step: step.long()):
        state = {i: {**entry, "step": form(entry["step"])} for i, entry in saved["state"].items()}
        ours = getattr(fo, name)([a.copy() for a in arrays], backend="numpy")
        ours.load_state_dict({**saved, "state": state})
        found.append(ours.steps)
    assert found == [5] * 5


def test_groups_with_unknown_keys_or_values_are_refused():
    net, opt = trained("Adam")
    ours = fo.Adam([p.detach().numpy() for p in net.parameters()], backend="numpy")
    before = repr(ours.state_dict())
    for name, value, kind, message in [
        ("initial_rl", 0.1, ValueError, "unknown: .'initial_rl'"),
        ("lr", torch.ones(2), TypeError, "lr must be"),
        ("lr", torch.tensor(-1.0), ValueError, "lr must be"),
        ("betas", torch.tensor(0.9), TypeError, "betas must be two numbers"),
    ]:
        saved = opt.state_dict()
        saved["param_groups"][0][name] = value
        with pytest.raises(kind, match=message):
            ours.load_state_dict(saved)
    assert repr(ours.state_dict()) == before
