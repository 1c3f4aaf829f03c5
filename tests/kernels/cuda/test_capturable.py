"""Optimizers with capturable=True: the same steps, counted on the device; what a captured step goes by."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from helpers_cuda import SIMULATED, on_device, require_device, to_device

require_device()
import fastopt as fo
from fastopt.kernels.cuda.optim import arrays
from fastopt.kernels.cuda.runtime import array_interface
from fastopt.kernels.cuda.runtime import gpu as gpu_

pytestmark = pytest.mark.gpu

SHAPES = [(4, 3), (), (37,), (2, 0)]
KINDS = {
    "sgd": lambda p, **more: fo.SGD(p, lr=0.1, **more),
    "momentum": lambda p, **more: fo.SGD(p, lr=0.1, momentum=0.9, dampening=0.2, **more),
    "adagrad": lambda p, **more: fo.Adagrad(p, lr=0.1, lr_decay=0.1, **more),
    "rmsprop": lambda p, **more: fo.RMSprop(p, lr=0.1, momentum=0.5, centered=True, **more),
    "adam": lambda p, **more: fo.Adam(p, lr=0.1, amsgrad=True, **more),
    "keras": lambda p, **more: fo.Adam(p, lr=0.1, convention="keras", **more),
    "adamw": lambda p, **more: fo.AdamW(p, lr=lambda step: 0.1 / (step + 1), **more),
}
THERE = {"backend": "cuda", "capturable": True}


def numbers(seed, dtype="float32"):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def twins(kind, dtype="float32"):
    host = numbers(0, dtype)
    device = on_device(*host)
    return KINDS[kind](host, backend="numpy"), KINDS[kind](device, **THERE), host, device


def check(device, host, rtol=1e-5):
    for ours, theirs in zip(device, host, strict=True):
        np.testing.assert_allclose(ours.copy_to_host(), theirs, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_hosts(kind):
    there, here, host, device = twins(kind)
    for seed, bad in enumerate([True, False, False, True, False]):
        grads = numbers(seed + 1)
        if bad:
            grads[0][1, 1] = np.inf
        if seed == 2:
            grads[2] = None
        there.step(grads, skip_nonfinite=True)
        assert here.step([None if g is None else to_device(g) for g in grads], skip_nonfinite=True) is True
        if kind == "adamw":  # schedules go by the steps that were given
            there._count = here._count
    assert here.settle() == [3, 3, 2, 3]
    assert here.settle()[:3] == there.settle()[:3]
    check(device, host)
    there.step(g := numbers(9), grad_scale=2.0)
    here.step(on_device(*g), grad_scale=2.0)
    check(device, host)


def test_saving_copying_and_another_group():
    there, here, host, device = twins("momentum")
    more = np.ones(5, "float32")
    on_gpu = to_device(more)
    for optimizer, grads in ((there, numbers(1)), (here, on_device(*numbers(1)))):
        optimizer.step(grads)
    there.add_param_group({"params": more, "momentum": 0.0})
    here.add_param_group({"params": on_gpu, "momentum": 0.0})
    for optimizer, to in ((there, list), (here, lambda some: on_device(*some))):
        for seed in (2, 3):
            optimizer.step([to(numbers(seed)), to([np.full(5, seed, "float32")])[0]])
    here.param_groups[1]["momentum"] = there.param_groups[1]["momentum"] = 0.5  # whose first step is yet to come
    saved = here.state_dict()
    assert [entry["step"] for entry in saved["state"].values()] == [3, 3, 3, 3, 2]
    here.load_state_dict(saved)
    there.load_state_dict(there.state_dict())
    for optimizer, to in ((there, list), (here, lambda some: on_device(*some))):
        optimizer.step([to(numbers(4)), to([np.ones(5, "float32")])[0]])
    check([*device, on_gpu], [*host, more])
    assert "capturable=True" in repr(here)
    assert here.capturable


def test_what_is_refused():
    with pytest.raises(ValueError, match="capturable=True is for GPUs: the backend must be 'cuda'; got 'cpu'"):
        fo.Adam(np.zeros(3), capturable=True)
    with pytest.raises(TypeError, match="capturable"):
        fo.Adam(to_device(np.zeros(3)), backend="cuda", capturable=3)


def test_an_optimizer_without_arrays_yet():
    optimizer = fo.Adam(**THERE)
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.capturable
    assert copy.deepcopy(again).capturable
    again.bind([p := to_device(np.zeros(3, "float32"))])
    again.step([to_device(np.ones(3, "float32"))])
    assert again.settle() == [1]
    np.testing.assert_allclose(p.copy_to_host(), -1e-3, rtol=1e-5)


@pytest.mark.skipif(not SIMULATED, reason="where there is a device, tests/test_torch_gpu.py captures")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_launches_of_a_graph_are_steps(monkeypatch):
    from helpers_driver import install

    install(monkeypatch)
    gpu, stream = gpu_.Gpu(1), 9
    for module in (arrays, array_interface):
        monkeypatch.setattr(module, "gpu_of", lambda addresses: gpu)
        monkeypatch.setattr(module, "current_stream", lambda array: stream)
    there, here, host, device = twins("adam")
    grads, captured = numbers(1), numbers(2)
    kept = on_device(*captured)
    replay = gpu.replay(stream, lambda: here.step(kept))

    def capture():
        with gpu.active():
            replay._executable = replay._captured()

    with pytest.raises(RuntimeError, match="the first step cannot be captured"):
        capture()
    first = on_device(*grads)
    here.step(first)
    there.step(grads)
    capture()
    for _ in range(3):
        with gpu.active():
            replay.launch()
        there.step(captured)
    assert here.settle() == [4, 4, 4, 4]
    check(device, host)
    saved = here.state_dict()
    here.load_state_dict(saved)  # the graph goes on from there, and so do steps one by one
    for _ in range(2):
        here.step(first)
        there.step(grads)
    with gpu.active():
        replay.launch()
    there.step(captured)
    check(device, host)
    here.lr = lambda step: 0.1
    with pytest.raises(RuntimeError, match="with a schedule"):
        capture()
