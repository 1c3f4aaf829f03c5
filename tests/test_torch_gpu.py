"""fastopt.torch on CUDA tensors, on a GPU: torch's own database, its fused steps, scalers, streams, graphs."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest

import fastopt as fo

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from helpers_gpu import settled  # noqa: E402, F401 (a fixture)
from helpers_torch import CAPTURABLE, FUSED, NAMES, TELLING, all_params, assert_close, assert_same, pair, where  # noqa: E402

import fastopt.torch  # noqa: E402
from fastopt.torch import step_in_backward  # noqa: E402
from fastopt.torch._devices import why_no_cuda  # noqa: E402

if not torch.cuda.is_available():
    pytest.skip("needs a torch with CUDA, and a GPU", allow_module_level=True)
if why_no_cuda():
    pytest.skip(why_no_cuda(), allow_module_level=True)

pytestmark = [
    pytest.mark.gpu,
    # Warnings of torch's own: of a mode that looks for waiting, and of a graph that a refused step leaves empty.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),
]

TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SHAPES = [(257, 33), (9,), (), (0, 3), (5000,)]


def parameters(dtype=torch.float32, device="cuda", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in SHAPES]


def give(params, step):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)


def steps(optimizer, numbers):
    for step in numbers:
        give(all_params(optimizer), step)
        optimizer.step()


def supported(name, flags):
    """torch's optimizer, or None where it does not know these flags for these parameters."""
    try:
        return pair(name)[1](parameters(), **TELLING[name], **flags)
    except (RuntimeError, TypeError):
        return None


def database():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            common = importlib.import_module("torch.testing._internal.common_optimizers")
        except ImportError as error:  # the other tests need none of it
            skip = pytest.mark.skip(reason=f"needs expecttest: {error}")
            yield pytest.param("", {}, id="torch's database", marks=skip)
            return
    for info in common.optim_db:
        name = info.optim_cls.__name__
        if name in NAMES:
            for entry in info.optim_inputs_func(device="cuda", dtype=torch.float64):
                for flags in ({}, {"fused": True}, {"capturable": True}):
                    if supported(name, flags) is not None:
                        yield pytest.param(name, {**entry.kwargs, **flags}, id=f"{name}, {entry.desc}, {flags}")


@pytest.mark.parametrize(("name", "kwargs"), list(database()))
def test_options(name, kwargs):
    optimizers = []
    for cls in pair(name):
        optimizer = cls(parameters(torch.float64), **kwargs)
        try:
            steps(optimizer, range(7))
        except RuntimeError:
            if optimizers:
                pytest.skip("torch refuses this")
        optimizers.append(optimizer)
    assert_same(*optimizers, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_steps_are_those_of_torchs_fused(name, dtype):
    if supported(name, {"fused": True}) is None:
        pytest.skip("torch has no such fused optimizer here")
    ours, theirs = (cls(parameters(dtype), **TELLING[name], fused=True) for cls in pair(name))
    for optimizer in (ours, theirs):
        steps(optimizer, range(20))
    assert set(where(ours)) == {"fastopt"}
    assert_same(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_steps_that_the_host_counts_are_those_of_the_cpu(name, dtype):
    if name == "SGD":
        pytest.skip("its steps are counted on the GPU")
    ours, host = (pair(name)[0](parameters(dtype, device), **TELLING[name]) for device in ("cuda", "cpu"))
    for step in range(5):
        give(all_params(host), step)
        for p, q in zip(all_params(ours), all_params(host), strict=True):
            p.grad = q.grad.cuda()
        ours.step()
        host.step()
    assert set(where(ours)) == {"fastopt"}
    for p, q in zip(all_params(ours), all_params(host), strict=True):
        assert torch.equal(p.cpu(), q)


@pytest.mark.parametrize("name", FUSED)
def test_a_scaler(name):
    if supported(name, {"fused": True}) is None:
        pytest.skip("torch has no such fused optimizer here")
    optimizers = []
    for cls in pair(name):
        optimizer = cls(parameters(), **TELLING[name], fused=True)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10, growth_interval=2)
        for step in range(6):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            loss = sum((p * torch.randn(p.shape, generator=generator).cuda()).sum() for p in all_params(optimizer))
            if step in (1, 4):
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        optimizers.append((optimizer, scaler.get_scale()))
    (ours, one), (theirs, other) = optimizers
    assert one == other
    assert_same(ours, theirs, rtol=1e-5, atol=1e-5)


def test_nothing_waits():
    optimizer = pair("Adam")[0](parameters(), fused=True)
    optimizer.clip_norm = 0.5
    optimizer.found_inf = torch.zeros((), device="cuda")
    optimizer.grad_scale = torch.ones((), device="cuda")
    steps(optimizer, range(2))
    give(all_params(optimizer), 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.grad_norm.item() > 0


def test_torchs_current_stream_is_ours():
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        optimizer = pair("Adam")[0](parameters(), lr=0.1, fused=True)
        give(all_params(optimizer), 0)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(3):
                torch.cuda._sleep(1_000_000)
                for p in all_params(optimizer):
                    p.grad.mul_(2)  # which a step on another stream would not see
                optimizer.step()
        torch.cuda.synchronize()
        results.append([p.detach().clone() for p in all_params(optimizer)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", CAPTURABLE)
def test_replays_of_a_captured_step(name):
    captured, plain = (pair(name)[0](parameters(), **TELLING[name], capturable=True) for _ in range(2))
    statics = all_params(captured)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        steps(captured, range(3))
    torch.cuda.current_stream().wait_stream(side)
    steps(plain, range(3))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for step in range(3, 8):
        give(all_params(plain), step)
        for p, q in zip(statics, all_params(plain), strict=True):
            p.grad.copy_(q.grad)
        graph.replay()
        plain.step()
    steps(captured, range(8, 9))  # and one by one
    steps(plain, range(8, 9))
    assert_same(captured, plain, rtol=0, atol=0)


def test_an_array_optimizer_in_torchs_graph():
    w, g, host = torch.ones(1000, device="cuda"), torch.ones(1000, device="cuda"), np.ones(1000, "float32")
    there, here = fo.Adam(w, lr=0.1, backend="cuda", capturable=True), fo.Adam(host, lr=0.1)
    there.step(g)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        there.step(g)
    for _ in range(5):
        graph.replay()
    for _ in range(6):
        here.step(np.ones(1000, "float32"))
    assert there.settle() == [6]
    np.testing.assert_allclose(w.cpu().numpy(), host, rtol=1e-6)


def test_a_host_that_counts_cannot_be_captured():
    optimizer = pair("Adam")[0](parameters())
    steps(optimizer, range(2))
    with pytest.raises(RuntimeError, match="captur"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus():
    def both(cls):
        halves = [parameters(device=f"cuda:{i}", seed=i) for i in range(2)]
        return cls([p for half in halves for p in half], fused=True)

    ours, theirs = map(both, pair("AdamW"))
    for optimizer in (ours, theirs):
        steps(optimizer, range(4))
    assert set(where(ours)) == {"fastopt"}
    assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


def test_states_go_to_torch_and_back():
    ours, theirs = (cls(parameters(), fused=True) for cls in pair("Adam"))
    for optimizer in (ours, theirs):
        steps(optimizer, range(3))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for optimizer in (ours, theirs):
        steps(optimizer, range(3, 6))
    assert set(where(ours)) == {"fastopt"}
    for p, q in zip(all_params(ours), all_params(theirs), strict=True):
        assert_close(p, q, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- steps in backward
def layers(count, width):
    torch.manual_seed(0)
    made = [layer for _ in range(count) for layer in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    return torch.nn.Sequential(*made[:-1]).cuda()


@pytest.mark.parametrize("side", [False, True], ids=["one stream", "a stream of each layer"])
@pytest.mark.parametrize("name", NAMES)
def test_steps_in_backward_have_the_bits_of_steps_after_it(name, side):
    models = [layers(3, 64), layers(3, 64)]
    optimizers = [pair(name)[0](model.parameters(), **TELLING[name]) for model in models]
    streams = [torch.cuda.Stream() for _ in models[0]]
    handle = step_in_backward(optimizers[0])

    def loss(model, x):
        for layer, stream in zip(model, streams, strict=True):
            if side:
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    x = layer(x)
                torch.cuda.current_stream().wait_stream(stream)
            else:
                x = layer(x)
        return x.square().mean()

    for step in range(5):
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step)).cuda()
        loss(models[0], x).backward()
        assert all(p.grad is None for p in models[0].parameters())
        optimizers[1].zero_grad()
        loss(models[1], x).backward()
        optimizers[1].step()
    assert_same(*optimizers, rtol=0, atol=0)
    handle.remove()


def test_steps_in_backward_need_the_memory_of_one_layers_gradients():
    peaks = []
    for in_backward in (False, True):
        model = layers(5, 2048)
        optimizer = fastopt.torch.AdamW(model.parameters(), lr=1e-4)
        handle = step_in_backward(optimizer) if in_backward else None
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats()
            optimizer.zero_grad()
            model(torch.ones(4, 2048, device="cuda")).square().mean().backward()
            if handle is None:
                optimizer.step()
        peaks.append(torch.cuda.max_memory_allocated())
        total = sum(p.nbytes for p in model.parameters())
        del model, optimizer, handle
    assert peaks[0] - peaks[1] >= 0.75 * total  # 0.8, less the workspace of a product and activations
