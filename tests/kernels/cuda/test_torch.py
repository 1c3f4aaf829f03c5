"""fastopt.torch on CUDA tensors, without CUDA: tensors on the CPU that our code takes for CUDA's, in the simulator.

One function says where a tensor is, and it alone is replaced; kernels then run on the CPU's memory.
"""

from __future__ import annotations

import copy

import pytest
from helpers_cuda import SIMULATED, require_device

torch = pytest.importorskip("torch", reason="in the extra `torch`")
require_device()
from helpers_driver import install
from helpers_torch import (
    CAPTURABLE,
    FUSED,
    NAMES,
    TELLING,
    all_params,
    assert_close,
    assert_same,
    pair,
    run,
    set_gradients,
    twins,
    where,
)

import fastopt.torch
from fastopt.kernels.cuda.optim import arrays
from fastopt.kernels.cuda.runtime import array_interface
from fastopt.kernels.cuda.runtime import gpu as gpu_
from fastopt.kernels.cuda.runtime.simulator import SimulatedGpu
from fastopt.torch import _cuda, _devices, _in_backward

pytestmark = pytest.mark.skipif(not SIMULATED, reason="where there is a GPU, tests/test_torch_gpu.py asks torch for it")

NEAR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


class Where:
    """Tensors that are on the CPU for our code as well; all others are said to be on a GPU."""

    def __init__(self):
        self.host = []
        self.steps_there = True

    def __call__(self, t):
        step = t.dim() == 0 and not self.steps_there
        return _devices.HOST if step or any(t is one for one in self.host) else _devices.DEVICE


@pytest.fixture
def there(monkeypatch):
    """Has all tensors on the GPU, but for numbers of steps where `steps_there` is False, and those of `host`."""
    found = Where()
    monkeypatch.setattr(_devices, "device_kind", found)
    return found


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = (7, 5), (9,), (1,), (0, 3)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def made(name, there, params, mode, **more):
    """Ours on the GPU, and torch's on the CPU, on the same numbers."""
    ours, theirs = pair(name)
    there.steps_there = mode != "default"
    flags = {} if mode == "default" else {mode: True}
    others = twins(params)
    return ours(params, **TELLING[name], **flags, **more), theirs(others, **TELLING[name], **more)


def modes():
    for name in NAMES:
        yield name, "default"
        if name in FUSED:
            yield name, "fused"
        if name in CAPTURABLE and name != "NAdam":  # of which torch keeps a product on the GPU
            yield name, "capturable"


def assert_states(ours, theirs, rtol):
    """Of torch's names and shapes, and near its values; `step` may be of another type."""
    for p, q in zip(all_params(ours), all_params(theirs), strict=True):
        assert set(ours.state[p]) == set(theirs.state[q])
        for key, value in theirs.state[q].items():
            assert_close(ours.state[p][key].to(value.dtype), value, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize(("name", "mode"), list(modes()))
def test_steps_are_torchs(name, mode, dtype, there):
    params = parameters(dtype)
    ours, theirs = made(name, there, params, mode)
    assert set(where(ours)) == {"fastopt"}
    for step in range(4):
        set_gradients(params, all_params(theirs), step=step)
        if step == 2:
            params[1].grad = all_params(theirs)[1].grad = None
        ours.step()
        theirs.step()
    rtol = NEAR[dtype]
    for p, q in zip(params, all_params(theirs), strict=True):
        assert_close(p, q, rtol=rtol, atol=rtol)
    assert_states(ours, theirs, 4 * rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_steps_that_the_host_counts_are_those_of_the_cpu(name, dtype, there, monkeypatch):
    params = parameters(dtype)
    ours, _ = made(name, there, params, "default", maximize=True)
    others = twins(params)
    run(ours, params, range(4))
    monkeypatch.undo()
    host = pair(name)[0](others, **TELLING[name], maximize=True)
    run(host, others, range(4))
    assert_same(ours, host, rtol=0, atol=0)


@pytest.mark.parametrize("waiting", [0, 100, 2**22], ids=["each alone", "some together", "all together"])
@pytest.mark.parametrize(("name", "mode"), list(modes()))
def test_steps_in_backward_have_the_bits_of_steps_after_it(name, mode, waiting, there, monkeypatch):
    monkeypatch.setattr(_in_backward, "WAITING_BYTES", waiting)
    there.steps_there = mode != "default"
    both = [parameters(), parameters()]
    flags = {} if mode == "default" else {mode: True}
    optimizers = [pair(name)[0](params, **TELLING[name], **flags) for params in both]
    handle = fastopt.torch.step_in_backward(optimizers[0])
    assert set(where(optimizers[0])) == {"fastopt"}
    for step in range(4):
        for params, optimizer in zip(both, optimizers, strict=True):
            used = params[1:] if step == 2 else params
            sum((p * (step + 1)).sin().sum() for p in used).backward()
            if optimizer is optimizers[1]:
                optimizer.step()
                optimizer.zero_grad()
        assert all(p.grad is None for p in both[0])
    assert_same(*optimizers, rtol=0, atol=0)
    handle.remove()


@pytest.mark.parametrize("name", sorted(FUSED))
def test_a_scaler_leaves_its_verdict_on_the_gpu(name, there):
    params = parameters()
    ours, theirs = made(name, there, params, "fused")
    scale = torch.tensor(8.0)
    for step, bad in enumerate([True, False, True, False]):
        set_gradients(params, all_params(theirs), step=step)
        for p in params:
            p.grad *= 8
        kept = [p.grad.clone() for p in params]
        ours.grad_scale, ours.found_inf = scale, torch.tensor(float(bad))
        assert set(where(ours)) == {"fastopt"}
        ours.step()
        for p, g in zip(params, kept, strict=True):
            assert_close(p.grad, g if bad else g / 8, rtol=0, atol=0)
        if not bad:
            theirs.step()
    for p, q in zip(params, all_params(theirs), strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-5)
    assert_states(ours, theirs, 1e-5)


@pytest.mark.parametrize("bad", [False, True])
def test_a_scaled_gradient_that_lies_in_another_order(bad, there):
    """Kernels have a copy of it; the gradient itself is left unscaled all the same."""
    params = [torch.ones(3, 4, requires_grad=True), torch.ones(5, requires_grad=True)]
    ours, _ = made("Adam", there, params, "fused")
    turned, plain = torch.arange(12.0).reshape(4, 3).T * 8, torch.arange(5.0) * 8
    params[0].grad, params[1].grad = turned.clone(memory_format=torch.preserve_format), plain.clone()
    assert not params[0].grad.is_contiguous()
    ours.grad_scale, ours.found_inf = torch.tensor(8.0), torch.tensor(float(bad))
    ours.step()
    assert set(where(ours)) == {"fastopt"}
    divisor = 1 if bad else 8
    assert torch.equal(params[0].grad, turned / divisor)
    assert torch.equal(params[1].grad, plain / divisor)


@pytest.mark.parametrize(("name", "mode"), list(modes()))
def test_checkpoints_go_both_ways(name, mode, there):
    params = parameters(torch.float64)
    ours, theirs = made(name, there, params, mode)
    run(ours, params, range(3))
    run(theirs, all_params(theirs), range(3))
    saved = copy.deepcopy((ours.state_dict(), theirs.state_dict()))
    for one, other, state in ((ours, theirs, saved[1]), (theirs, ours, saved[0])):
        flags = [{flag: group[flag] for flag in ("fused", "capturable") if flag in group} for group in one.param_groups]
        one.load_state_dict(state)
        for group, own in zip(one.param_groups, flags, strict=True):
            group.update(own)
        assert other is not one
    for state in theirs.state.values():  # those that came from a GPU
        if "step" in state:
            state["step"] = state["step"].float()
    if mode != "default":
        for state in ours.state.values():
            if "step" in state:
                state["step"] = state["step"].float()
    assert set(where(ours)) == {"fastopt"}
    for step in range(3, 6):
        set_gradients(params, all_params(theirs), step=step)
        ours.step()
        theirs.step()
    for p, q in zip(params, all_params(theirs), strict=True):
        assert_close(p, q, rtol=1e-11, atol=1e-11)
    assert_states(ours, theirs, 1e-11)


@pytest.mark.parametrize("mode", ["fused", "capturable"])
def test_a_learning_rate_on_the_gpu(mode, there):
    params, rate = parameters(), torch.tensor(0.02)
    others = twins(params)
    ours = fastopt.torch.AdamW(params, lr=rate, weight_decay=0.1, **{mode: True})
    theirs = torch.optim.AdamW(others, lr=0.02, weight_decay=0.1)
    for step, lr in enumerate((0.02, 0.2)):
        rate.fill_(lr)
        theirs.param_groups[0]["lr"] = lr
        set_gradients(params, others, step=step)
        ours.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["default", "fused"])
def test_clipping(mode, there):
    params = parameters()
    ours, theirs = made("Adam", there, params, mode)
    ours.clip_norm = 0.5
    for step in range(3):
        set_gradients(params, all_params(theirs), step=step)
        norm = torch.nn.utils.clip_grad_norm_(all_params(theirs), 0.5)
        ours.step()
        theirs.step()
        assert isinstance(ours.grad_norm, torch.Tensor)
        assert ours.grad_norm.dtype is torch.float64
        assert_close(ours.grad_norm.float(), norm, rtol=1e-5, atol=0)
    for p, q in zip(params, all_params(theirs), strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_parameters_on_both(clip_norm, there):
    params = parameters()
    there.host = params[:1]
    ours, theirs = made("SGD", there, params, "default")
    there.host = [params[0]]
    ours.clip_norm = clip_norm
    for step in range(3):
        set_gradients(params, all_params(theirs), step=step)
        there.host = [params[0], params[0].grad]
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(all_params(theirs), clip_norm)
        ours.step()
        theirs.step()
    assert set(where(ours)) == {"fastopt"}
    for p, q in zip(params, all_params(theirs), strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "mode", "launched"), [
    ("Adam", "fused", ["count", "update_adam_float32"]),
    ("SGD", "default", ["count", "update_momentum_float32"]),
    ("Adagrad", "default", ["update_adagrad_float32"]),
])  # fmt: skip
def test_one_launch_for_all_tensors(name, mode, launched, there, monkeypatch):
    params = parameters()
    ours, _ = made(name, there, params, mode)
    run(ours, params, range(1))
    found, launch = [], SimulatedGpu.launch

    def spy(self, kernel, *args):
        found.append(kernel.name)
        launch(self, kernel, *args)

    monkeypatch.setattr(SimulatedGpu, "launch", spy)
    run(ours, params, range(1, 2))
    assert found == launched


def test_other_strides_and_several_groups(there):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(6, 4, generator=generator).t().requires_grad_() for _ in range(3)]
    others = twins(params)
    groups = [[{"params": some[:2]}, {"params": some[2:], "lr": 0.5, "amsgrad": True}] for some in (params, others)]
    ours, theirs = (cls(own, lr=0.1) for cls, own in zip(pair("Adam"), groups, strict=True))
    for step in range(3):
        set_gradients(params, others, step=step)
        params[0].grad = params[0].grad.contiguous()  # which is not how the parameter lies
        ours.step()
        theirs.step()
    for p, q in zip(params, others, strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-5)


def test_what_is_left_to_torch(there, monkeypatch):
    w = torch.ones(3, requires_grad=True)
    there.steps_there = False
    cases = [
        (fastopt.torch.Adam([w], differentiable=True), "differentiable=True"),
        (fastopt.torch.Adam([w], lr=torch.tensor([0.1])), "lr is a tensor on cpu and the state step on the CPU"),
    ]
    for optimizer, reason in cases:
        (placement,) = fastopt.torch.explain(optimizer)
        assert (placement.where, placement.reason) == ("torch", reason)
    optimizer = fastopt.torch.Adam([w], fused=True)
    w.grad = torch.ones(3)
    optimizer.step()  # whose number of steps is on the CPU, for our code
    optimizer.grad_scale = torch.ones(1)
    (placement,) = fastopt.torch.explain(optimizer)
    assert placement.reason == "grad_scale and found_inf are given, and the state step is on the CPU"
    monkeypatch.setattr(_devices, "why_no_cuda", lambda: "the backend 'cuda' lacks a device")
    monkeypatch.setattr("fastopt.torch._param_states.why_no_cuda", _devices.why_no_cuda)
    (placement,) = fastopt.torch.explain(fastopt.torch.SGD([w]))
    assert placement.reason == "on cpu: the backend 'cuda' lacks a device"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_captured_step_goes_on(name, there, monkeypatch):
    install(monkeypatch)
    gpu, stream = gpu_.Gpu(1), 9
    for module in (arrays, array_interface):
        monkeypatch.setattr(module, "gpu_of", lambda addresses: gpu)
    monkeypatch.setattr(_cuda, "_stream", lambda p: stream)
    params = parameters()
    ours, theirs = made(name, there, params, "capturable" if name == "Adam" else "fused")
    replay = gpu.replay(stream, ours.step)

    def capture():
        with gpu.active():
            replay._executable = replay._captured()

    set_gradients(params, step=0)
    with pytest.raises(RuntimeError, match="the first step cannot be captured"):
        capture()
    run(ours, params, range(1))
    set_gradients(params, step=1)
    capture()
    run(theirs, all_params(theirs), range(1))
    for _ in range(3):
        with gpu.active():
            replay.launch()
        set_gradients(all_params(theirs), step=1)
        theirs.step()
    for p, q in zip(params, all_params(theirs), strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-5)
    assert_states(ours, theirs, 1e-5)


def test_a_step_that_the_host_counts_cannot_be_captured(there, monkeypatch):
    install(monkeypatch)
    gpu, stream = gpu_.Gpu(1), 9
    for module in (arrays, array_interface):
        monkeypatch.setattr(module, "gpu_of", lambda addresses: gpu)
    monkeypatch.setattr(_cuda, "_stream", lambda p: stream)
    params = parameters()
    ours, _ = made("Adam", there, params, "default")
    run(ours, params, range(1))
    with pytest.raises(RuntimeError, match="cannot be captured"), gpu.active():
        gpu.replay(stream, ours.step)._captured()
