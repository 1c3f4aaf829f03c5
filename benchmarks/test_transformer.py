"""Adam's step on the 148 tensors of a transformer (12 layers of width 768, 86 M parameters): fastopt.torch and torch.

The timed call is `step`; with clipping, torch's clip_grad_norm_ before it, or ours within it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times
from fastopt.benchmarks.peers import need, tolerant
from fastopt.benchmarks.updates import transformer
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels.costs import update_flops

CONTESTANTS = ("fastopt", "torch-fused", "torch-default")
ROUNDS = 11
CLIP_NORM = 1.0
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of an element


def parameters(dtype: str, quick: bool) -> list[Any]:
    """Return tensors with gradients. Raises Absent."""
    need("torch")
    import torch

    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in transformer(1, 64) if quick else transformer(12, 768):
        p = torch.randn(shape, generator=generator).mul_(0.02).to(getattr(torch, dtype))
        p.grad = torch.randn(shape, generator=generator).mul_(0.01).to(p.dtype)
        params.append(p)
    return params


def steps_of(names: list[str], params: list[Any], clipped: bool) -> dict[str, Callable[[], object]]:
    """Return a step by contestant, all on the same tensors and states: the speed of memory depends on its address."""
    import torch

    import fastopt.torch
    from fastopt.benchmarks.peers.with_torch import use_our_threads

    use_our_threads()
    calls: dict[str, Callable[[], object]] = {}
    states = torch.optim.Adam(params, fused=True)
    states.step()
    for name in names:
        if name == "fastopt":
            ours = fastopt.torch.Adam(params, clip_norm=CLIP_NORM if clipped else None)
            ours.state = states.state
            calls[name] = ours.step
            continue
        theirs = torch.optim.Adam(params, fused=True if name == "torch-fused" else None)
        theirs.state = states.state

        def clip_and_step(step: Callable[[], object] = theirs.step) -> None:
            torch.nn.utils.clip_grad_norm_(params, CLIP_NORM)
            step()

        calls[name] = clip_and_step if clipped else theirs.step
    return calls


@interleaved
@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize(("dtype", "clipped"), [*((dtype, False) for dtype in BYTES), ("float32", True)])
def test_transformer(benchmark, note, request, quick, contestant, dtype, clipped):
    benchmark.group = f"Adam step of a transformer, {dtype}{', clipped by norm' if clipped else ''}"
    try:
        with tolerant():
            steps_of([contestant], parameters(dtype, quick=True), clipped)[contestant]()
    except Absent as reason:
        pytest.skip(str(reason))
    if benchmark.disabled:
        benchmark(lambda: None)
        return

    def measured(names: list[str]) -> dict[str, list[float]]:
        with tolerant():
            return interleaved_times(steps_of(names, parameters(dtype, quick), clipped), 3 if quick else ROUNDS)

    record(benchmark, shared_result(request, measured)[contestant])
    size = sum(int(np.prod(shape)) for shape in (transformer(1, 64) if quick else transformer(12, 768)))
    passes = 7 + clipped  # p, m and v read and written, g read: once more for its norm
    shape = f"transformer, {dtype}{', clipped' if clipped else ''}"
    note("step", "adam", contestant, size=size, shape=shape, moved=passes * BYTES[dtype] * size,
         flops=update_flops("adam") * size)  # fmt: skip
