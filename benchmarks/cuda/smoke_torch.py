"""Smoke checks with torch and CuPy: arrays in both directions, streams, graphs, and torch's own results."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from typing import Any

import numpy as np

from fastopt.benchmarks.cuda.child import device, torch_device
from fastopt.benchmarks.cuda.device import filled, tensor
from fastopt.benchmarks.cuda.waits import strict
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels.cuda.runtime.array_interface import see
from fastopt.kernels.cuda.runtime.compile import SIMULATED
from fastopt.kernels.cuda.runtime.memory import DeviceArray

HOME = "cpu" if SIMULATED else "cuda"  # device of the tensors
SHAPES = ((7, 5), (9,), (), (0, 3)) if SIMULATED else ((257, 33), (9,), (), (0, 3), (5000,))
STEPS = 10
REPEATS = 3 if SIMULATED else 100
# Values that show a misplaced term, and at which 16 bits do not turn the second moment into noise.
ADAM = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": 0.1}
OPTIONS = {"Adam": ADAM, "AdamW": ADAM, "SGD": {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}}
NEAR = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}


def parameters(torch: Any, dtype: str = "float32", seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [p.to(HOME, getattr(torch, dtype)).requires_grad_() for p in drawn]


def give(torch: Any, params: list[Any], seed: int) -> None:
    """Set gradients drawn with this seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)


def ours_and_theirs(torch: Any, name: str, dtype: str = "float32", **options: Any) -> list[tuple[Any, list[Any]]]:
    """Two optimizers on copies of the same parameters: ours, which must not fall back to torch, and torch's."""
    import fastopt.torch

    found = []
    for home in (fastopt.torch, torch.optim):
        params = parameters(torch, dtype)
        found.append((getattr(home, name)(params, **OPTIONS[name], **options), params))
    return found


def explained(optimizer: Any) -> None:
    """Raise AssertionError if a parameter is updated by torch."""
    import fastopt.torch

    reasons = {placement.reason for placement in fastopt.torch.explain(optimizer) if placement.reason}
    assert not reasons, f"left to torch: {reasons}"


def compare(torch: Any, ours: list[Any], theirs: list[Any], near: float) -> float:
    worst = 0.0
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=near, atol=near)
        if p.numel():
            worst = max(worst, float((p.detach().double() - q.detach().double()).abs().max()))
    return worst


def torch_arrays() -> str:
    """Exchange our arrays and tensors on the same memory, without a copy and without waiting."""
    torch, _ = torch_device()
    for kind in ("float32", "float64", "float16", "bfloat16"):
        array = filled((6, 4), np.arange(24), kind)
        made = tensor(array, kind)
        assert made.data_ptr() == array.address
        seen = see(made)
        assert (seen.address, seen.shape, seen.dtype, seen.contiguous) == (array.address, (6, 4), kind, True)
        made += 1
        torch.cuda.synchronize()
        np.testing.assert_array_equal(made.float().cpu().numpy().reshape(-1), np.arange(24) + 1)
    plain = DeviceArray(array.gpu, (1000,), "float32", fill=2)
    with strict(torch):
        made = torch.as_tensor(plain, device=HOME)
        again = torch.from_dlpack(made * 2)
    assert float(again.sum()) == 4000
    return "4 dtypes, both ways, on the same memory"


def torch_no_waiting() -> str:
    """Steps with scale, skips and learning rate on the device, in torch's mode that makes waiting an error."""
    torch, _ = torch_device(own=False)
    (ours, params), _ = ours_and_theirs(torch, "Adam", fused=True)
    ours.clip_norm = 0.5
    ours.found_inf, ours.grad_scale = torch.zeros((), device=HOME), torch.ones((), device=HOME)
    give(torch, params, 0)
    for _ in range(2):
        ours.step()
    explained(ours)
    with strict(torch):
        for _ in range(REPEATS):
            ours.step()
    assert float(ours.grad_norm) > 0
    return f"{REPEATS} steps, clipped and scaled"


def torch_streams() -> str:
    """Steps are done on torch's current stream, in its order."""
    torch, _ = torch_device()
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        (ours, params), _ = ours_and_theirs(torch, "Adam", fused=True)
        give(torch, params, 0)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(3):
                torch.cuda._sleep(5_000_000)
                for p in params:
                    p.grad.mul_(2)  # which a step on another stream would not see
                ours.step()
        torch.cuda.synchronize()
        results.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))
    return "the current one and another give the same bits"


def torch_graph() -> str:
    """Capture into torch's graph, in the strictest mode, while another thread makes streams and steps."""
    torch, gpu = torch_device()
    (captured, statics), _ = ours_and_theirs(torch, "AdamW", capturable=True)
    (plain, params), _ = ours_and_theirs(torch, "AdamW", capturable=True)
    for step in range(3):
        for optimizer, own in ((captured, statics), (plain, params)):
            give(torch, own, step)
            optimizer.step()
    explained(captured)
    torch.cuda.synchronize()
    graph, failures = torch.cuda.CUDAGraph(), []

    def meanwhile() -> None:
        try:
            with gpu.active(), gpu.side_stream() as stream:
                gpu.allocate(1 << 16, stream)
        except BaseException as error:
            failures.append(error)

    with torch.cuda.graph(graph):
        captured.step()
        thread = threading.Thread(target=meanwhile)
        thread.start()
        thread.join()
    assert not failures, f"beside a capture: {failures[0]}"
    for step in range(3, STEPS):
        for own in (statics, params):
            saved = [p.grad for p in own]
            give(torch, own, step)
            if own is statics:
                for p, place in zip(own, saved, strict=True):
                    place.copy_(p.grad)
                    p.grad = place
        graph.replay()
        plain.step()
    torch.cuda.synchronize()
    compare(torch, statics, params, 0)
    return f"{STEPS - 3} replays, the bits of {STEPS - 3} steps"


def torch_steps() -> str:
    """Compare with torch's own fused steps."""
    torch, _ = torch_device(own=False)
    worst: dict[str, float] = {}
    for dtype, near in NEAR.items():
        for name in OPTIONS:
            if SIMULATED and name == "SGD" and dtype != "float32":
                continue  # on the CPU torch 2.13's fused SGD leaves whole vectors of 16 bits as they are
            (ours, params), (theirs, twins) = ours_and_theirs(torch, name, dtype, fused=True)
            for step in range(STEPS):
                for optimizer, own in ((ours, params), (theirs, twins)):
                    give(torch, own, step)
                    optimizer.step()
            explained(ours)
            worst[dtype] = max(worst.get(dtype, 0), compare(torch, params, twins, near))
    return "differences: " + ", ".join(f"{dtype} {value:.1e}" for dtype, value in worst.items())


def torch_scaler() -> str:
    """A GradScaler with a scale that is sometimes too large: both skip the same steps."""
    torch, _ = torch_device(own=False)
    scales = []
    pairs = ours_and_theirs(torch, "Adam", fused=True)
    for optimizer, params in pairs:
        scaler = torch.amp.GradScaler(HOME, init_scale=2.0**10, growth_interval=2)
        for step in range(STEPS):
            optimizer.zero_grad()
            generator = torch.Generator().manual_seed(step)
            loss = sum((p * torch.randn(p.shape, generator=generator).to(HOME)).sum() for p in params)
            scaler.scale(loss * float("inf") if step in (1, 4) else loss).backward()
            scaler.step(optimizer)
            scaler.update()
        scales.append(scaler.get_scale())
    explained(pairs[0][0])
    assert scales[0] == scales[1], f"scales of {scales}"
    worst = compare(torch, pairs[0][1], pairs[1][1], 1e-5)
    return f"{STEPS} steps, 2 of them skipped, within {worst:.1e}; a scale of {scales[0]:g} in the end"


def cupy_arrays() -> str:
    """Update CuPy's arrays on its current stream."""
    if find_spec("cupy") is None:
        raise Absent("CuPy is not installed")
    import fastopt as fo

    host = np.random.default_rng(0).standard_normal((50, 40)).astype("float32")
    device()
    import cupy

    p, g = cupy.asarray(host), cupy.ones((50, 40), "float32")
    ours, theirs = fo.Adam(p, lr=0.1, backend="cuda"), fo.Adam(host, lr=0.1, backend="numpy")
    cupy.cuda.Device().synchronize()  # arrays are made on another stream
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for _ in range(3):
            g *= 2
            ours.step(g)
        stream.synchronize()
    for step in range(1, 4):
        theirs.step(np.full((50, 40), 2.0**step, "float32"))
    np.testing.assert_allclose(cupy.asnumpy(p), host, rtol=1e-5)
    return f"CuPy {cupy.__version__}, 3 steps on a stream of its own"
