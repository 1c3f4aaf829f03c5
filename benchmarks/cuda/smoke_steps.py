"""Smoke checks of optimizer steps: against float64, and to the bit against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastopt as fo
from fastopt.benchmarks.cuda.child import device
from fastopt.benchmarks.cuda.updates import Job, planned
from fastopt.benchmarks.updates import REPORTED
from fastopt.kernels import reference
from fastopt.kernels.cuda.dense.blaslt_simulator import decode, encode
from fastopt.kernels.cuda.optim.plan import Plan
from fastopt.kernels.cuda.optim.updates import update_kernel
from fastopt.kernels.cuda.runtime.compile import SIMULATED
from fastopt.kernels.cuda.runtime.convert import widen_kernel
from fastopt.kernels.cuda.runtime.float16 import DTYPES_16BIT
from fastopt.kernels.cuda.runtime.memory import DeviceArray
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import FORMS, SAME, BufferUpdate, Update

SHAPES = ((3, 5), (), (0, 2), (17,)) if SIMULATED else ((257, 33), (), (0, 2), (100_003,), (64, 64))
SIZE = 40 if SIMULATED else 1_000_003
KINDS: dict[str, Callable[..., Any]] = {
    "SGD": lambda p, **more: fo.SGD(p, lr=0.1, **more),
    "momentum": lambda p, **more: fo.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, **more),
    "Adagrad": lambda p, **more: fo.Adagrad(p, lr=0.1, **more),
    "RMSprop": lambda p, **more: fo.RMSprop(p, lr=0.1, **more),
    "centered RMSprop": lambda p, **more: fo.RMSprop(p, lr=0.1, momentum=0.5, centered=True, **more),
    "Adam": lambda p, **more: fo.Adam(p, lr=0.1, **more),
    "AMSGrad": lambda p, **more: fo.Adam(p, lr=0.1, amsgrad=True, **more),
    "AdamW": lambda p, **more: fo.AdamW(p, lr=0.1, weight_decay=0.1, **more),
}


def numbers(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), "float32") for shape in SHAPES]


def on_gpu(gpu: Any, arrays: list[np.ndarray]) -> list[DeviceArray]:
    """Copies of arrays on the device."""
    made = [DeviceArray(gpu, array.shape, array.dtype) for array in arrays]
    for place, array in zip(made, arrays, strict=True):
        place.write(array, 0)
    return made


def wide(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [array.astype("float64") for array in arrays]


def compare(ours: list[DeviceArray], theirs: list[np.ndarray], what: str) -> float:
    """Return the largest difference; raise AssertionError if it is too large."""
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        got = one.copy_to_host().astype("float64")
        np.testing.assert_allclose(got, other, rtol=1e-5, atol=1e-5, err_msg=what)
        worst = max(worst, float(np.abs(got - other).max(initial=0)))
    return worst


def first_steps() -> str:
    """The first steps of every optimizer, against float64 on the host."""
    host, gradients = numbers(0), [numbers(seed) for seed in (1, 2, 3)]
    gpu, worst = device(), 0.0
    for name, make in KINDS.items():
        here, exact = on_gpu(gpu, host), wide(host)
        ours, theirs = make(here, backend="cuda"), make(exact, backend="numpy")
        for given in gradients:
            ours.step(on_gpu(gpu, given))
            theirs.step(wide(given))
            worst = max(worst, compare(here, exact, name))
    return f"{len(KINDS)} optimizers, 3 steps each: within {worst:.1e} of float64"


def _bits(dtype: str, rules: list[str], forms: tuple[str, ...]) -> str:
    device()
    for rule in rules:
        for form in forms:
            job = Job(rule, SIZE, dtype, form)
            planned(job)()
            job.check(exactly=True)
    return f"{len(rules)} rules, {len(forms)} forms of arrays: the reference's bits"


def _rules() -> list[str]:
    """Return one rule for each kernel."""
    return list({update_kernel(rule, "float32"): rule for rule in reversed(OPTIMIZERS)}.values())


def bits_float32() -> str:
    return _bits("float32", _rules(), (SAME,))


def bits_float64() -> str:
    return _bits("float64", list(REPORTED), (SAME,))


def bits_float16() -> str:
    return _bits("float16", ["momentum", "adam"], FORMS)


def bits_bfloat16() -> str:
    return _bits("bfloat16", ["momentum", "adam"], FORMS)


def rounding() -> str:
    """All values of 16 bits, widened, and rounded after an update: with infinities, NaN and denormals."""
    every = np.arange(0, 1 << 16, 640 if SIMULATED else 1).astype("uint16")
    other = np.random.default_rng(0).permutation(every)
    gpu = device()
    for kind in DTYPES_16BIT:
        stored = encode(np.zeros(1), kind).dtype
        p, g = every.view(stored).copy(), other.view(stored).copy()
        (here, gradient), wide_there = on_gpu(gpu, [p, g]), DeviceArray(gpu, p.shape, "float32")
        with gpu.active():
            gpu.launch(widen_kernel(kind), 1, 0, here.address, wide_there.address, p.size)
        np.testing.assert_array_equal(wide_there.copy_to_host(), decode(p, kind), err_msg=kind)
        options = {**OPTIMIZERS["sgd"].options, "lr": 0.37}
        plan = Plan([BufferUpdate("sgd", kind, p.size, here.address, ())], gpu)
        plan.update([gradient.address], [1], [options])
        with np.errstate(all="ignore"):
            reference.update([Update("sgd", p, g, (), options, 1)])
        ours, numbers_ = here.copy_to_host(), ~np.isnan(decode(p, kind))
        np.testing.assert_array_equal(np.isnan(decode(ours, kind)), ~numbers_, err_msg=kind)
        np.testing.assert_array_equal(ours.view("uint16")[numbers_], p.view("uint16")[numbers_], err_msg=kind)
    return f"{every.size:,} numbers of {' and '.join(DTYPES_16BIT)}, to the bit"


def clipping() -> str:
    host, given = numbers(0), numbers(1)
    norm = float(np.sqrt(sum((g.astype("float64") ** 2).sum() for g in given)))
    gpu = device()
    here, exact = on_gpu(gpu, host), wide(host)
    ours = fo.Adam(here, lr=0.1, clip_norm=norm / 3, backend="cuda")
    theirs = fo.Adam(exact, lr=0.1, clip_norm=norm / 3, backend="numpy")
    ours.step(on_gpu(gpu, given))
    theirs.step(wide(given))
    ours.settle()  # from then on its norm is that of the step
    compare(here, exact, "clipped")
    np.testing.assert_allclose(float(ours.grad_norm), norm, rtol=1e-12)
    return f"a norm of {norm:.6g}, to a third of it"


def skipping() -> str:
    """The device skips steps with a gradient that is not finite, and does not count them."""
    host = numbers(0)
    gpu = device()
    here, exact = on_gpu(gpu, host), wide(host)
    ours, theirs = fo.Adam(here, lr=0.1, backend="cuda"), fo.Adam(exact, lr=0.1, backend="numpy")
    steps = 12 if SIMULATED else 150  # more than the host may be ahead
    for seed in range(steps):
        given = numbers(seed)
        if seed % 5 == 1:
            given[3][7] = np.inf if seed % 2 else np.nan
        ours.step(on_gpu(gpu, given), grad_scale=4.0, skip_nonfinite=True)
        theirs.step(wide(given), grad_scale=4.0, skip_nonfinite=True)
    compare(here, exact, "after skipped steps")
    done = [count for count, p in zip(ours.settle(), host, strict=True) if p.size]
    assert set(done) == {theirs.steps}, f"{done} steps are counted, {theirs.steps} were done"
    return f"{steps} steps, {steps - theirs.steps} of them skipped"
