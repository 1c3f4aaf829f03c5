"""Loops of steps that must not wait for the device: calls that wait, or may make the driver wait, are counted."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any
from unittest import mock

import fastopt as fo
from fastopt.benchmarks.cuda.child import device, tell
from fastopt.benchmarks.cuda.device import drawn, filled, tensor
from fastopt.benchmarks.cuda.spin import occupy
from fastopt.kernels.cuda.runtime.compile import SIMULATED
from fastopt.kernels.cuda.runtime.memory import DeviceArray

HOME = "cpu" if SIMULATED else "cuda"  # device of the tensors
STEPS = 20 if SIMULATED else 1000
BEHIND = 2 if SIMULATED else 20  # steps that are launched while the device is busy
ARRAYS, ELEMENTS = (3, 5) if SIMULATED else (100, 1000)


@contextlib.contextmanager
def watched(gpu: Any) -> Iterator[Counter[str]]:
    """While open, count the calls that wait, allocate or free, by name."""
    counts: Counter[str] = Counter()
    kind = type(gpu)
    event = type(gpu.event())

    def counted(home: Any, name: str, what: str, waits: Callable[..., bool] = lambda *_: True) -> Any:
        real = getattr(home, name)

        def call(*args: Any, **more: Any) -> Any:
            counts[what] += waits(*args)
            return real(*args, **more)

        return mock.patch.object(home, name, call)

    def not_reached(one: Any) -> bool:
        return not SIMULATED and not one.reached()

    with contextlib.ExitStack() as stack:
        stack.enter_context(counted(kind, "wait", "wait for a stream"))
        stack.enter_context(counted(event, "wait", "wait for an event", not_reached))
        stack.enter_context(counted(kind, "allocate", "allocation"))
        stack.enter_context(counted(kind, "pinned", "allocation of pinned memory"))
        yield counts


@contextlib.contextmanager
def strict(torch: Any) -> Iterator[None]:
    """While open, waiting is an error in torch, if it has a device."""
    if SIMULATED:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _arrays() -> tuple[list[Any], list[Any]]:
    return tuple(  # type: ignore[return-value]
        [filled((ELEMENTS,), drawn(ELEMENTS, "float32", 2 * i + seed), "float32") for i in range(ARRAYS)]
        for seed in (0, 1)
    )


def plain() -> Callable[[], object]:
    """fo.Adam of many arrays."""
    params, grads = _arrays()
    made = fo.Adam(params, backend="cuda")
    return lambda: made.step(grads)


def guarded() -> Callable[[], object]:
    """fo.Adam with clipping, and with skips of steps whose gradient is not finite."""
    params, grads = _arrays()
    made = fo.Adam(params, clip_norm=1.0, backend="cuda")
    return lambda: made.step(grads, grad_scale=2.0, skip_nonfinite=True)


def on_tensors() -> Callable[[], object]:
    """fastopt.torch with scale, skips and learning rate on the device."""
    import torch

    import fastopt.torch

    params, grads = _arrays()
    tensors = [torch.nn.Parameter(tensor(array, "float32")) for array in params]
    for parameter, array in zip(tensors, grads, strict=True):
        parameter.grad = tensor(array, "float32")
    made = fastopt.torch.Adam(tensors, fused=True, clip_norm=1.0)
    made.found_inf, made.grad_scale = torch.zeros((), device=HOME), torch.ones((), device=HOME)

    def step() -> None:
        with strict(torch):
            made.step()

    return step


def nothing_waits() -> str:
    """Count waits of steps in a loop, and of steps behind slow work."""
    loops = {"fo.Adam": plain, "fo.Adam, guarded": guarded}
    if find_spec("torch"):
        loops["fastopt.torch"] = on_tensors
    gpu = device()
    found: dict[str, Any] = {}
    total = 0
    for name, make in loops.items():
        step = make()
        for _ in range(3):  # plans are made now
            step()
        wait(gpu)
        with watched(gpu) as counts:
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            seconds = (time.perf_counter() - start) / STEPS
        wait(gpu)
        late = behind(gpu, step)
        waits = sum(counts.values()) + late
        total += waits
        found[name] = {"seconds": seconds, "waits": waits, "which": dict(counts), "late": late}
        tell(loops=found)
    tell(measured={"waits": total}, seconds={name: loop["seconds"] for name, loop in found.items()})
    return f"{STEPS} steps: " + ", ".join(f"{name} {loop['waits']} waits" for name, loop in found.items())


def wait(gpu: Any) -> None:
    with gpu.active():
        gpu.wait(0)


def behind(gpu: Any, step: Callable[[], object]) -> int:
    """Return 1 if steps after slow work return only when that work is done, else 0."""
    room, event = DeviceArray(gpu, (1,), "float64"), gpu.event()
    with gpu.active():
        occupy(gpu, 0, room.address)
        event.record(0)
    for _ in range(BEHIND):
        step()
    with gpu.active():
        late = not SIMULATED and event.reached()
        gpu.wait(0)
    return int(late)
