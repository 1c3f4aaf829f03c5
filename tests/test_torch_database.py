"""torch's own database of optimizer tests drives our classes: its options, its refusals, its schedulers."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_torch import NAMES, all_params, assert_same, pair, parameters, quietly, run, where  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    common = pytest.importorskip(
        "torch.testing._internal.common_optimizers", reason="needs expecttest", exc_type=ImportError
    )

DATABASE = {info.optim_cls.__name__: info for info in common.optim_db if info.optim_cls.__name__ in NAMES}
FLAGS = [{}, {"foreach": False}, {"foreach": True}, {"fused": True}, {"differentiable": True}]


def inputs():
    for name, info in DATABASE.items():
        for entry in info.optim_inputs_func(device="cpu", dtype=torch.float64):
            for flags in FLAGS:
                if all(flag in info.supported_impls or flag == "foreach" for flag in flags):
                    yield pytest.param(name, {**entry.kwargs, **flags}, id=f"{name}, {entry.desc}, {flags}")


def errors():
    for name, info in DATABASE.items():
        for entry in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
            yield pytest.param(name, entry, id=f"{name}, {entry.optimizer_error_input.desc}")


@pytest.mark.parametrize(("name", "kwargs"), list(inputs()))
def test_options(name, kwargs):
    optimizers = []
    for cls in pair(name):
        params = [p for p in parameters() if p.numel()]
        if kwargs.get("differentiable"):
            params = [p.clone() for p in params]
        optimizer = cls(params, **kwargs)
        run(optimizer, params, range(7))
        optimizers.append(optimizer)
    refused = kwargs.get("differentiable") or (kwargs.get("foreach") and torch.is_tensor(kwargs.get("lr")))
    assert set(where(optimizers[0])) == {"torch" if refused else "fastopt"}
    if not kwargs.get("differentiable"):
        assert_same(*optimizers, rtol=1e-12, atol=1e-13)
    for p, q in zip(*map(all_params, optimizers), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "entry"), list(errors()))
def test_refusals(name, entry):
    given = entry.optimizer_error_input
    if entry.error_on == common.OptimizerErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(entry.error_type, match=entry.error_regex):
            pair(name)[0](given.params, **given.kwargs)
    else:
        optimizer = pair(name)[0](given.params, **given.kwargs)
        with pytest.raises(entry.error_type, match=entry.error_regex):
            optimizer.step()


@pytest.mark.parametrize("name", list(DATABASE))
def test_schedulers(name):
    for make_schedulers in DATABASE[name].scheduler_inputs if name in ("SGD", "Adam") else ():
        optimizers = []
        for cls in pair(name):
            params = parameters()
            optimizer = cls(params, lr=0.05)
            schedulers = [
                make(optimizer)
                for make in (make_schedulers if isinstance(make_schedulers, list) else [make_schedulers])
            ]
            for step in range(12):
                run(optimizer, params, range(step, step + 1))
                for scheduler in schedulers:
                    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                    quietly(scheduler.step, *([1.0] if plateau else []))
            optimizers.append(optimizer)
        assert_same(*optimizers, rtol=1e-12, atol=1e-13)
