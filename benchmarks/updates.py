"""Optimizer steps of one array and of many, as calls to be timed: ours, the reference's and torch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

import fastopt as fo
from fastopt.benchmarks.peers import need
from fastopt.kernels import reference
from fastopt.kernels.cpu.optim.plan import Plan
from fastopt.kernels.cpu.runtime.primitives import address_of
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import BufferUpdate, Update

LARGE = [10_000_000, 50_000_000]
REPORTED = ("sgd", "momentum", "adagrad", "adam")
TINY = (1e-2, 1e-20, 1e-40)  # gradients: usual, with denormal squares, denormal
DEEPSPEED = ("adam", "adagrad")  # rules of which DeepSpeed has an optimizer for the CPU
NO_DEEPSPEED = "{} is not installed: pip install deepspeed (it needs torch, and compiles its optimizers by g++)"
STEP = 10  # number of the step of `job`
SHAPES = {  # shapes of the arrays of a step
    "784-256-128-10": [(784, 256), (256,), (256, 128), (128,), (128, 10), (10,)],
    "100 x 1000": [(1000,)] * 100,
}


def job(rule: str, size: int, dtype: str = "float32") -> Update:
    """Return an update of new arrays, with the same values in every call."""
    rng = np.random.default_rng(0)
    p, g = (rng.random(size, dtype=dtype) - np.float32(0.5) for _ in range(2))
    states = tuple(rng.random(size, dtype=dtype) for _ in OPTIMIZERS[rule].states)
    return Update(rule, p, g, states, OPTIMIZERS[rule].options, STEP)


def torch_update(ours: Update) -> Callable[[], object]:
    """Return torch's fused step on the memory of the job's arrays and states. Raises Absent."""
    need("torch")
    import torch

    from fastopt.benchmarks.peers.with_torch import optimizer, use_our_threads

    use_our_threads()
    p = torch.nn.Parameter(torch.from_numpy(ours.p))
    p.grad = torch.from_numpy(ours.g)
    made = optimizer(ours.rule, [p], ours.options["lr"], fused=True)
    state = made.state[p]
    for name, values in zip(OPTIMIZERS[ours.rule].states, ours.states, strict=True):
        state[name] = torch.from_numpy(values)
    if ours.rule not in ("sgd", "momentum"):
        state["step"] = torch.tensor(float(STEP - 1))
    return made.step


def deepspeed_update(ours: Update) -> Callable[[], object]:
    """Return the step of DeepSpeedCPUAdam, or of its like for Adagrad, on the memory of the job. Raises Absent."""
    need("torch")
    need("deepspeed", message=NO_DEEPSPEED)
    from fastopt.benchmarks.peers.with_deepspeed import optimizer
    from fastopt.benchmarks.peers.with_torch import use_our_threads

    use_our_threads()
    return optimizer(ours.rule, ours.p, ours.g, ours.states, ours.options["lr"], STEP - 1).step


def transformer(layers: int, width: int) -> list[tuple[int, ...]]:
    """Shapes of weights and biases: per layer attention in and out, two dense layers, two norms; then norm, head."""
    dense = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width), (width,), (width,)]
    layer = [shape for out, *rest in dense for shape in ((out, *rest), (out,))]
    return layer * layers + [(width,), (width,), (width, width), (width,)]


def planned_update(ours: Update) -> Callable[[], None]:
    """Return our update, planned once, as by an optimizer."""
    states = [address_of(state) for state in ours.states]
    plan = Plan([BufferUpdate(ours.rule, ours.p.dtype.name, ours.p.size, address_of(ours.p), states)])
    gradients, numbers, options = np.array([address_of(ours.g)]), np.array([ours.step]), [ours.options]
    return lambda kept=ours: plan.update(gradients, numbers, options)


def update_by(name: str, ours: Update) -> Callable[[], object]:
    """Return the update of a job by a contestant: fastopt, numpy, torch-fused or deepspeed. Raises Absent."""
    if name == "numpy":
        return lambda: reference.update([ours])
    return {"fastopt": planned_update, "torch-fused": torch_update, "deepspeed": deepspeed_update}[name](ours)


def tiny_by(name: str, size: int, gradient: float, trained: bool) -> Callable[[], object]:
    """Return Adam's update with gradients of one order of magnitude, by a contestant: fastopt or torch-fused.

    trained  True: 20 updates with gradients of about 1e-2 come first, so that the states are those of a training

    Raises Absent.
    """
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(size, dtype="float32")
    ours = job("adam", size)
    for state in ours.states:
        state[...] = 0
    ours = ours._replace(g=normal * np.float32(1e-2))
    call = update_by(name, ours)
    for _ in range(20 if trained else 0):
        call()
    ours.g[...] = normal * np.float32(gradient)
    return call


def step_by(name: str, shapes: Sequence[tuple[int, ...]]) -> Callable[[], object]:
    """Adam's step on new arrays, by contestant: fastopt, numpy, torch-fused, torch-default. Raises Absent."""
    rng = np.random.default_rng(0)
    params = [rng.random(shape, dtype="float32") for shape in shapes]
    grads = [rng.random(shape, dtype="float32") for shape in shapes]
    if name in ("fastopt", "numpy"):
        made = fo.Adam(params, backend="numpy" if name == "numpy" else "cpu")
        return lambda: made.step(grads)
    need("torch")
    import torch

    from fastopt.benchmarks.peers.with_torch import optimizer, use_our_threads

    use_our_threads()
    tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    return optimizer("adam", tensors, 1e-3, **{"fused": True} if name == "torch-fused" else {}).step
