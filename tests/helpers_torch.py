"""What the tests of fastopt.torch share: twins of ours and of torch's, given the same gradients."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

import fastopt.torch  # noqa: E402
from fastopt.conventions import CONVENTIONS  # noqa: E402

EXACT = {"rtol": 0, "atol": 0}
NEAR = {"rtol": 1e-12, "atol": 1e-13}
CLASSES = [
    (getattr(fastopt.torch, name), getattr(torch.optim, name))
    for name, conventions in CONVENTIONS.items()
    if "torch" in conventions
]
NAMES = [ours.__name__ for ours, _ in CLASSES]
FUSED = [name for name in NAMES if "fused" in inspect.signature(getattr(torch.optim, name)).parameters]
CAPTURABLE = [name for name in NAMES if "capturable" in inspect.signature(getattr(torch.optim, name)).parameters]

# Every class with values at which a term in the wrong place shows.
TELLING: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1},
    "Adagrad": {"lr": 0.1, "lr_decay": 0.05, "weight_decay": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-2},
    "Adadelta": {"lr": 0.5, "rho": 0.8, "eps": 1e-2, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.02, "alpha": 0.9, "eps": 1e-2, "weight_decay": 0.1, "momentum": 0.5},
    "Adam": {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.1},
    "NAdam": {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.1, "momentum_decay": 0.02},
    "AdamW": {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.1},
}


def pair(name: str) -> tuple[type, type]:
    return getattr(fastopt.torch, name), getattr(torch.optim, name)


LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "transposed": lambda t: t.t().contiguous().t(),
    "gaps": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded gradient": lambda t: t.clone(),
}


def parameters(dtype=torch.float64, seed: int = 0, layout: str = "contiguous") -> list[Any]:
    """A matrix, a vector, one number, and nothing."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    others = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9,), (), (0, 3))]
    return [LAYOUTS[layout](matrix.to(dtype)).requires_grad_(), *(t.to(dtype).requires_grad_() for t in others)]


def twins(params: list[Any]) -> list[Any]:
    """The same values in the same layout, in memory of their own."""
    return [copy.deepcopy(p) for p in params]


def set_gradients(*lists: list[Any], step: int, expanded: bool = False) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for same in zip(*lists, strict=True):
        g = torch.randn(same[0].shape, generator=generator, dtype=torch.float64)
        for p in same:
            if expanded and p.dim():
                p.grad = g.to(p.dtype).sum(0, keepdim=True).expand(p.shape)
            else:
                p.grad = torch.empty_like(p).copy_(g).detach()


def run(optimizer: Any, params: list[Any], steps: range) -> None:
    for step in steps:
        set_gradients(params, step=step)
        optimizer.step()


def assert_same(ours: Any, theirs: Any, **tolerance: float) -> None:
    """Equal parameters, groups, and states: values within the tolerance, names, dtypes, shapes and strides exactly."""
    for p, q in zip(all_params(ours), all_params(theirs), strict=True):
        assert_close(p, q, **tolerance)
    one, other = ours.state_dict(), theirs.state_dict()
    assert one["param_groups"] == other["param_groups"]
    assert set(one["state"]) == set(other["state"])
    for key, state in other["state"].items():
        assert set(one["state"][key]) == set(state)
        for name, value in state.items():
            assert_close(one["state"][key][name], value, **tolerance)


def assert_close(left: Any, right: Any, **tolerance: float) -> None:
    if not isinstance(right, torch.Tensor):
        assert left == right
        return
    assert type(left) is type(right)
    assert left.requires_grad == right.requires_grad
    torch.testing.assert_close(left.detach(), right.detach(), check_stride=True, **tolerance)


def all_params(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def where(optimizer: Any) -> list[str]:
    return [placement.where for placement in fastopt.torch.explain(optimizer)]


def quietly(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what warns in torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)
