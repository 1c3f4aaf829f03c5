"""fastopt.torch with states of 8 bits on tensors that our code takes for CUDA's, in the simulator: the CPU's bits."""

from __future__ import annotations

import copy

import pytest
from helpers_cuda import SIMULATED, require_device

torch = pytest.importorskip("torch", reason="in the extra `torch`")
require_device()
import fastopt.torch as ft
from fastopt.kernels.cuda.runtime.simulator import SimulatedGpu
from fastopt.torch import _devices

pytestmark = pytest.mark.skipif(not SIMULATED, reason="its tensors on the CPU stand for those on a GPU")

LARGE, SMALL = (65, 64), (40,)
CLASSES = {
    "AdamW": (ft.AdamW, {"weight_decay": 0.1}),
    "SGD": (ft.SGD, {"lr": 0.1, "momentum": 0.9}),
    "Adagrad": (ft.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5}),
    "stochastic": (ft.RMSprop, {"state_rounding": "stochastic", "seed": 5}),
}


@pytest.fixture
def on_gpu(monkeypatch):
    """Has all tensors on the GPU, but for numbers of steps if they are to be on the host; off: has none there."""

    def said(steps_there=False, off=False):
        def kind(t):
            return _devices.HOST if off or (t.dim() == 0 and not steps_there) else _devices.DEVICE

        monkeypatch.setattr(_devices, "device_kind", kind)

    return said


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=generator).to(dtype) for shape in (LARGE, SMALL)]
    found[0] = found[0].t().contiguous().t()  # not in C order
    return [p.requires_grad_() for p in found]


def run(optimizer, params, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def assert_same(params, others, ours, theirs):
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
        assert set(ours.state[p]) == set(theirs.state[q])
        for name, value in theirs.state[q].items():
            assert torch.equal(ours.state[p][name].to(value.dtype), value), name


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, torch.float32) for name in CLASSES), ("AdamW", torch.bfloat16)], ids=str
)
def test_steps_have_the_bits_of_the_cpus(name, dtype, on_gpu, monkeypatch):
    cls, options = CLASSES[name]
    pairs, launched, launch = [], [], SimulatedGpu.launch

    def spy(self, kernel, *args):
        launched.append(kernel.name)
        launch(self, kernel, *args)

    monkeypatch.setattr(SimulatedGpu, "launch", spy)
    for off in (True, False):
        on_gpu(off=off)
        params = parameters(dtype)
        optimizer = cls(params, state_bits=8, **options)
        run(optimizer, params, 0, 3)
        pairs.append((params, optimizer))
    (others, theirs), (params, ours) = pairs
    assert sum("blockwise" in name for name in launched) == 3
    assert ours.state[params[0]]["state1"].dtype == torch.uint8
    assert ours.state[params[0]]["state1"].stride() == params[0].stride()
    assert_same(params, others, ours, theirs)


def test_steps_that_the_device_counts(on_gpu):
    """Their scalars are computed on the device, within rounding of the host's; conditions are read there."""
    on_gpu(steps_there=True)
    params, others = parameters(), parameters()
    ours = ft.AdamW(params, state_bits=8, capturable=True, clip_norm=1.0)
    run(ours, params, 0, 3)
    on_gpu(off=True)
    theirs = ft.AdamW(others, state_bits=8, clip_norm=1.0)
    run(theirs, others, 0, 3)
    assert ours.state[params[0]]["step"] == 3
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_states_are_converted_saved_and_loaded(on_gpu):
    on_gpu()
    params, others = parameters(), parameters()
    ours = ft.AdamW(params, state_bits=8)
    run(ours, params, 0, 1)
    theirs = ft.AdamW(others, state_bits=8)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for optimizer, own in ((ours, params), (theirs, others)):
        run(optimizer, own, 1, 2)
        optimizer.param_groups[0]["state_bits"] = 32
        run(optimizer, own, 2, 3)
        assert optimizer.state[own[0]]["exp_avg"].dtype == torch.float32
        optimizer.param_groups[0]["state_bits"] = 8
        run(optimizer, own, 3, 4)
        assert optimizer.state[own[0]]["state1"].dtype == torch.uint8
    assert_same(params, others, ours, theirs)


def test_what_torchs_code_would_update_is_refused(on_gpu):
    on_gpu()
    p = torch.randn(128, 66)[:, ::2].requires_grad_()  # gaps
    optimizer = ft.AdamW([p], state_bits=8)
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    with pytest.raises(ValueError, match="state_bits must be 32 for a parameter that torch's code updates: .*gaps"):
        optimizer.step()
    assert torch.equal(p, before)
