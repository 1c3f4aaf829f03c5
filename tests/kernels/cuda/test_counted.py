"""Steps that the device counts: the host's scalars, learning rates on the device, skipped steps, captured ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers_cuda import SIMULATED, on_device, require_device, to_device

require_device()
from fastopt.kernels import reference
from fastopt.kernels.cuda import CountedPlan, Guard, Number
from fastopt.kernels.cuda.runtime import gpu as gpu_
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.formulas import OPTIMIZERS, clip_factor
from fastopt.kernels.spec import STOCHASTIC, BufferUpdate, Update

pytestmark = pytest.mark.gpu

# The device's powers are some ulp from the host's; in the simulator both are Python's.
NEAR = {"rtol": 0} if SIMULATED else {"rtol": 1e-6}


def at(array):
    return see(array).address


def norm_of(gradients):
    return math.sqrt(sum(float(np.sum(g.astype("f8") ** 2)) for g in gradients))


class Counted:
    """Arrays of one rule on the device and on the host, their counters, and the plan."""

    def __init__(self, rule, dtype="float32", sizes=(40, 3, 0), gpu=None, counter="float32"):
        rng = np.random.default_rng(0)
        self.rule, self.dtype, self.sizes = rule, dtype, sizes
        states = range(len(OPTIMIZERS[rule].states))
        self.host = [[np.abs(rng.standard_normal(n)).astype(dtype) for _ in (0, *states)] for n in sizes]
        self.device = [on_device(*arrays) for arrays in self.host]
        self.done = [0] * len(sizes)
        self.steps = to_device(np.zeros(len(sizes), counter))
        width = np.dtype(counter).itemsize
        targets = [
            BufferUpdate(rule, dtype, n, at(p), [at(s) for s in own])
            for n, (p, *own) in zip(sizes, self.device, strict=True)
        ]
        counters = [Number(at(self.steps) + width * i, width) for i in range(len(sizes))]
        self.plan = CountedPlan(targets, counters, gpu or gpu_of({at(self.steps)}))

    def gradients(self, seed):
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(n).astype(self.dtype) for n in self.sizes]

    def places(self, gradients):
        """Addresses of copies on the device, which live until the next call."""
        self.kept = [None if g is None else to_device(g) for g in gradients]
        return [0 if g is None else at(g) for g in self.kept]

    def expect(self, gradients, options, scale=1.0):
        for i, (g, (p, *states)) in enumerate(zip(gradients, self.host, strict=True)):
            if g is not None:
                self.done[i] += 1
                with np.errstate(all="ignore"):
                    reference.update([Update(self.rule, p, g, tuple(states), options, self.done[i])], scale)

    def check(self, **near):
        assert self.steps.copy_to_host().tolist() == self.done
        for ours, theirs in zip(self.device, self.host, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a.copy_to_host(), b, **(near or NEAR))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_scalars_are_the_hosts(rule, dtype):
    arrays = Counted(rule, dtype, counter=dtype)
    own = {"weight_decay": 0.1, "lr_decay": 0.2, "dampening": 0.3}
    own |= dict.fromkeys(("decoupled", "maximize", "nesterov"), True)
    base = OPTIMIZERS[rule].options
    options = {**base, **{name: value for name, value in own.items() if name in base}}
    for step in range(5):
        gradients = arrays.gradients(step)
        if step == 2:
            gradients[1] = None
            options["lr"] = 0.01
        there = [g is not None for g in gradients]
        arrays.plan.update(arrays.places(gradients), [options], 0.5, present=there)
        arrays.expect(gradients, options, 0.5)
        arrays.check()


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_learning_rate_on_the_device(kind):
    arrays, options = Counted("adamw"), OPTIMIZERS["adamw"].options
    rate = to_device(np.array([0.5], kind))
    for step, lr in enumerate((0.5, 0.25)):
        rate.copy_to_device(np.array([lr], kind))
        on = {**options, "lr": Number(at(rate), np.dtype(kind).itemsize)}
        arrays.plan.update(arrays.places([*arrays.gradients(step)[:2], None]), [on])
        arrays.expect([*arrays.gradients(step)[:2], None], {**options, "lr": lr})
        arrays.check()


@pytest.mark.parametrize("by", ["found_inf", "skip_nonfinite"])
@pytest.mark.parametrize("rule", ["adam", "momentum"])
def test_skipped_steps_do_not_count(rule, by):
    arrays, options = Counted(rule, sizes=(40, 3)), OPTIMIZERS[rule].options
    scale = to_device(np.array([4.0], "float32"))
    for step, bad in enumerate([True, False, True, False]):
        gradients = arrays.gradients(step)
        flag = to_device(np.array([float(bad)], "float32"))
        if bad and by == "skip_nonfinite":
            gradients[1][0] = np.inf
        guard = Guard(None, at(scale), at(flag)) if by == "found_inf" else Guard(None, at(scale), 0, True)
        arrays.plan.update(arrays.places(gradients), [options], guard=guard)
        if not bad:
            arrays.expect(gradients, options, 0.25)
        arrays.check()


def test_clipping():
    arrays, options = Counted("adam", sizes=(40, 3)), OPTIMIZERS["adam"].options
    norm = np.zeros(1)
    for step in range(2):
        gradients = arrays.gradients(step)
        arrays.plan.update(arrays.places(gradients), [options], guard=Guard(0.5))
        true = norm_of(gradients)
        arrays.expect(gradients, options, clip_factor(0.5, true))
        arrays.check(rtol=1e-5)
        gpu = arrays.plan.gpu
        gpu.copy_out(norm, arrays.plan.norm_address, 0)
        gpu.wait(0)
        np.testing.assert_allclose(norm[0], true, rtol=1e-12)


def test_rounding_at_random_goes_by_the_steps_that_the_device_counts():
    rng = np.random.default_rng(0)
    g = to_device(rng.standard_normal(40).astype("float16"))
    results = []
    for begin in (0, 0, 1):
        p, steps = to_device(np.ones(40, "float16")), to_device(np.full(1, begin, "float32"))
        target = BufferUpdate("sgd", "float16", 40, at(p), (), 0, STOCHASTIC, 7)
        plan = CountedPlan([target], [Number(at(steps), 4)], gpu_of({at(p)}))
        plan.update([at(g)], [OPTIMIZERS["sgd"].options])
        results.append(p.copy_to_host().tolist())
    assert results[0] == results[1] != results[2]


def captured_on(gpu, stream, run):
    """Capture what `run` gives to the stream; return a function that launches the graph."""
    replay = gpu.replay(stream, run)
    with gpu.active():
        replay._executable = replay._captured()

    def launch():
        with gpu.active():
            replay.launch()

    return launch


@pytest.mark.skipif(not SIMULATED, reason="where there is a device, fastopt.torch's tests capture")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_captured_step_goes_on(monkeypatch):
    from helpers_driver import install

    fake = install(monkeypatch)
    gpu, stream = gpu_.Gpu(1), 9
    arrays, options = Counted("adam", sizes=(40, 3), gpu=gpu), OPTIMIZERS["adam"].options
    gradients, captured = arrays.gradients(0), arrays.gradients(1)
    there = on_device(*captured)

    def capture():
        arrays.plan.update([at(g) for g in there], [options], guard=Guard(0.5), stream=stream)

    with pytest.raises(RuntimeError, match="the first step cannot be captured"):
        captured_on(gpu, stream, capture)
    arrays.plan.update(arrays.places(gradients), [options], guard=Guard(0.5), stream=stream)
    scale = [clip_factor(0.5, norm_of(some)) for some in (gradients, captured)]
    arrays.expect(gradients, options, scale[0])
    replay = captured_on(gpu, stream, capture)
    arrays.check(rtol=1e-5)  # nothing was done
    assert len(arrays.plan.captured) == 1
    for _ in range(3):
        replay()
        arrays.expect(captured, options, scale[1])
        arrays.check(rtol=1e-5)
    # And one by one, with other gradients and another rate, between two launches of the graph.
    arrays.plan.update(arrays.places(gradients), [{**options, "lr": 0.1}], stream=stream)
    arrays.expect(gradients, {**options, "lr": 0.1})
    replay()
    arrays.expect(captured, options, scale[1])
    arrays.check(rtol=1e-5)
    assert not fake.relaxed
