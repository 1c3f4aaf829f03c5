"""Optimizer steps on a GPU as calls to be timed, of one array and of many: ours, torch's, and streaming the bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fastopt as fo
from fastopt.benchmarks.cuda.device import PERIOD, drawn, filled, numbers, refill, tensor, the_gpu
from fastopt.benchmarks.cuda.limits import stream
from fastopt.benchmarks.cuda.torch_graphs import WARM, captured
from fastopt.benchmarks.peers import need
from fastopt.benchmarks.updates import STEP
from fastopt.benchmarks.workloads import Absent
from fastopt.kernels import reference
from fastopt.kernels.cuda.dense.blaslt_simulator import decode, encode
from fastopt.kernels.cuda.optim.plan import Plan
from fastopt.kernels.formulas import OPTIMIZERS, dropout_stream
from fastopt.kernels.spec import MASTER, SAME, STOCHASTIC, BufferUpdate, Update

# torch's optimizer for a rule, with the options that are not its defaults.
TORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {}), "momentum": ("SGD", {"momentum": 0.9}), "adagrad": ("Adagrad", {}), "rmsprop": ("RMSprop", {}),
    "rmsprop_momentum": ("RMSprop", {"momentum": 0.9}), "rmsprop_centered": ("RMSprop", {"centered": True}),
    "rmsprop_centered_momentum": ("RMSprop", {"centered": True, "momentum": 0.9}),
    "adam": ("Adam", {}), "amsgrad": ("Adam", {"amsgrad": True}),
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "torch-fused": {"fused": True}, "torch-foreach": {"foreach": True}, "torch-graph": {"fused": True},
}  # fmt: skip
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1.6e-2}  # of torch: it contracts, reorders
NEAR = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}  # of a few steps of Adam, to float64


class Job:
    """Arrays of an update on the device: the parameter, the gradient, the states, and in one form the master copy."""

    def __init__(self, rule: str, size: int, dtype: str, form: str = SAME) -> None:
        self.rule, self.size, self.dtype, self.form = rule, size, dtype, form
        self.stream = dropout_stream(0, 0) if form == STOCHASTIC else 0  # of the draws
        states, kind = len(OPTIMIZERS[rule].states), dtype if form == SAME else "float32"
        self.kinds = [dtype, dtype, *[kind] * states, *["float32"] * (form == MASTER)]
        self.start = [drawn(size, dtype, 0), drawn(size, dtype, 1)]
        self.start += [drawn(size, kind, 2 + i, low=0.0) for i in range(states)]
        self.start += [self.start[0].astype("float32")] * (form == MASTER)
        self.arrays = [filled((size,), values, kind) for values, kind in zip(self.start, self.kinds, strict=True)]

    @property
    def moved(self) -> int:
        """Bytes that an update reads and writes."""
        read = sum(array.nbytes for array in self.arrays)
        return read + read - self.arrays[1].nbytes

    def restore(self) -> None:
        """Write the initial values again."""
        for array, values, kind in zip(self.arrays, self.start, self.kinds, strict=True):
            refill(array, values, kind)

    def expected(self) -> list[np.ndarray]:
        """The parameter and the states after one update by the reference, without repetitions."""
        p, g, *states = (np.array(encode(values, kind)) for values, kind in zip(self.start, self.kinds, strict=True))
        options = OPTIMIZERS[self.rule].options
        reference.update([Update(self.rule, p, g, tuple(states), options, STEP, self.form, self.stream)])
        return [decode(array, kind) for array, kind in zip((p, *states), self._written, strict=True)]

    @property
    def _written(self) -> list[str]:
        return [self.kinds[0], *self.kinds[2:]]

    def check(self, exactly: bool, updated: bool = True) -> None:
        """Raise AssertionError unless the arrays are as after one update (or none), at their beginning and end."""
        written = list(zip([self.arrays[0], *self.arrays[2:]], self._written, strict=True))
        expected = self.expected() if updated else [self.start[0], *self.start[2:]]
        for (array, kind), theirs in zip(written, expected, strict=True):
            last = (self.size - 1) // PERIOD * PERIOD
            places = {(0, len(theirs)), (last, self.size - last)}
            for first, count in places if self.form != STOCHASTIC else {(0, len(theirs))}:  # whose draws go on
                ours = numbers(array, kind, first, count)
                if exactly:
                    np.testing.assert_array_equal(ours, theirs[:count])
                else:
                    near = TOLERANCE[self.dtype]
                    np.testing.assert_allclose(ours, theirs[:count], rtol=near, atol=near)


def planned(job: Job) -> Callable[[], None]:
    """Our update by a plan, as in an optimizer."""
    p, g, *states = (array.address for array in job.arrays)
    plan = Plan([BufferUpdate(job.rule, job.dtype, job.size, p, states, 0, job.form, job.stream)], the_gpu())
    gradients, numbers_, options = np.array([g]), np.array([STEP]), [OPTIMIZERS[job.rule].options]
    return lambda kept=job: plan.update(gradients, numbers_, options)


def torch_update(way: str, job: Job) -> Callable[[], object]:
    """torch's step on the memory of the job's arrays, its states included. Raises Absent."""
    need("torch")
    import torch

    if job.rule not in TORCH:
        raise Absent(f"torch has no {job.rule}")
    if job.form != SAME:
        raise Absent(f"torch's states are {job.dtype}, like the parameter")
    p, g, *states = (tensor(array, job.dtype) for array in job.arrays)
    name, options = TORCH[job.rule]
    parameter = torch.nn.Parameter(p)
    parameter.grad = g
    lr = OPTIMIZERS[job.rule].options["lr"]
    made = _torch_optimizer(name, [parameter], way, lr=lr, **options)
    state = made.state[parameter]
    state |= dict(zip(OPTIMIZERS[job.rule].states, states, strict=True))
    if name != "SGD":
        # The count is on the device for fused and captured steps, else on the host.
        on = p.device if way != "torch-foreach" else "cpu"
        state["step"] = torch.tensor(float(STEP - 1), device=on)
    if way != "torch-graph":
        return made.step

    def restore() -> None:
        job.restore()
        if "step" in state:
            state["step"].fill_(STEP - 1)

    return captured(made.step, restore)


def _torch_optimizer(name: str, parameters: list[Any], way: str, **options: Any) -> Any:
    """torch's optimizer. Raises Absent if torch does not have it in this way."""
    import torch

    ways = dict(WAYS[way])
    if way == "torch-graph" and name in ("Adam", "AdamW"):
        ways["capturable"] = True
    try:
        return getattr(torch.optim, name)(parameters, **options, **ways)
    except (TypeError, RuntimeError) as error:  # RMSprop has no option `fused`, Adagrad's is for the CPU alone
        raise Absent(f"torch has no {name} with {', '.join(ways)}: {error}") from None


def update_by(name: str, job: Job) -> Callable[[], object]:
    """The update of a job as a call, by contestant: fastopt, stream, or one of torch's WAYS. Raises Absent."""
    if name == "stream":
        return stream(job.arrays, job.dtype)
    return planned(job) if name == "fastopt" else torch_update(name, job)


# ---------------------------------------------------------------- many arrays
class Steps:
    """Adam on many arrays: the call of a step, and the parameters."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], kind: str) -> None:
        self.shapes, self.kind, self.done = shapes, kind, 0
        self.params, self.grads = (
            [filled(shape, self._values(i, seed), kind) for i, shape in enumerate(shapes)] for seed in (0, 1)
        )
        self.call: Callable[[], object] = lambda: None

    def _values(self, i: int, seed: int) -> np.ndarray:
        return drawn(int(np.prod(self.shapes[i])), self.kind, 2 * i + seed)

    def check(self, every: int) -> None:
        """Raise AssertionError unless samples of the parameters are as after `done` steps."""
        for i in range(0, len(self.shapes), every):
            p, g = (self._values(i, seed).astype("float64") for seed in (0, 1))
            m, v = np.zeros_like(p), np.zeros_like(p)
            for step in range(1, self.done + 1):
                reference.update([Update("adam", p, g, (m, v), OPTIMIZERS["adam"].options, step)])
            ours = numbers(self.params[i], self.kind, 0, len(p))
            near = NEAR[self.kind]
            np.testing.assert_allclose(ours, p, rtol=near, atol=near / 10)


def steps_by(name: str, shapes: Sequence[tuple[int, ...]], kind: str = "float32") -> Steps:
    """Adam's steps on new arrays, by contestant: fastopt, fastopt-torch, or a way of torch. Raises Absent."""
    made = Steps(shapes, kind)
    if name == "fastopt":
        if kind != "float32":
            raise Absent("arrays of 16 bits are torch's")
        ours = fo.Adam(made.params, backend="cuda")
        made.call = lambda: ours.step(made.grads)
        return made
    need("torch")
    import torch

    tensors = [torch.nn.Parameter(tensor(array, kind)) for array in made.params]
    for parameter, array in zip(tensors, made.grads, strict=True):
        parameter.grad = tensor(array, kind)
    if name == "fastopt-torch":
        made.call = _ours_on_tensors(tensors)
        return made
    theirs = _torch_optimizer("Adam", tensors, name)
    made.call = theirs.step
    if name == "torch-graph":
        made.call, made.done = captured(theirs.step), WARM
    return made


def _ours_on_tensors(tensors: list[Any]) -> Callable[[], object]:
    """The step of fastopt.torch. Raises Absent if it falls back to torch's."""
    import fastopt.torch

    made = fastopt.torch.Adam(tensors)
    for placement in fastopt.torch.explain(made):
        if placement.reason:
            raise Absent(f"fastopt.torch leaves these tensors to torch: {placement.reason}")
    return made.step
