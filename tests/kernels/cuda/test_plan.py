"""Steps of a plan on the device: values that change from step to step, and values that only the device knows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers_cuda import SIMULATED, assert_same_bits, on_device, require_device, to_device

require_device()
from fastopt.kernels import reference
from fastopt.kernels.cuda import Guard, Plan
from fastopt.kernels.cuda.optim import plan as plan_
from fastopt.kernels.cuda.runtime.array_interface import current_stream, gpu_of, see
from fastopt.kernels.formulas import OPTIMIZERS, clip_factor
from fastopt.kernels.spec import BufferUpdate, Update

pytestmark = pytest.mark.gpu

ADAM = OPTIMIZERS["adam"].options


def at(array):
    return see(array).address


class Arrays:
    """A parameter and its states, on the device and, as the reference has them, on the host."""

    def __init__(self, rng, rule, size, group=0, dtype="float32"):
        self.rule, self.size, self.group, self.dtype = rule, size, group, dtype
        self.host = [rng.standard_normal(size).astype(dtype)]
        self.host += [np.abs(rng.standard_normal(size)).astype(dtype) for _ in OPTIMIZERS[rule].states]
        self.device = on_device(*self.host)

    @property
    def target(self):
        p, *states = map(at, self.device)
        return BufferUpdate(self.rule, self.dtype, self.size, p, states, self.group)

    def expect(self, g, options, step, scale=1.0):
        p, *states = self.host
        with np.errstate(all="ignore"):
            reference.update([Update(self.rule, p, g, tuple(states), options, step)], scale)

    def check(self):
        for ours, theirs in zip(self.device, self.host, strict=True):
            assert_same_bits(ours, theirs)


def planned(arrays):
    return Plan([a.target for a in arrays], gpu_of([at(a.device[0]) for a in arrays]))


def gradients(rng, arrays):
    return [rng.standard_normal(a.size).astype(a.dtype) for a in arrays]


def test_groups_missing_gradients_and_steps_of_their_own():
    rng = np.random.default_rng(0)
    arrays = [
        Arrays(rng, rule, size, group, dtype)
        for group, (rule, dtype) in enumerate([("adam", "float32"), ("adamw", "float32"), ("momentum", "float64")])
        for size in (40, 0, 3, 200)
    ]
    plan, done = planned(arrays), [0] * len(arrays)
    for call in range(6):
        given = [g if call < 2 or rng.random() < 0.7 else None for g in gradients(rng, arrays)]
        kept = [None if g is None else to_device(g) for g in given]
        options = [{**OPTIMIZERS[rule].options, "lr": 0.1 / (call + 1)} for rule in ("adam", "adamw", "momentum")]
        scale = 0.5 if call % 2 else 1.0
        plan.update([0 if g is None else at(g) for g in kept], [n + 1 for n in done], options, scale)
        for i, (a, g) in enumerate(zip(arrays, given, strict=True)):
            if g is not None:
                done[i] += 1
                a.expect(g, options[a.group], done[i], scale)
            a.check()
    assert len(set(done)) > 2


def test_a_parameter_that_is_given_its_place_in_every_call():
    rng = np.random.default_rng(1)
    a, b = Arrays(rng, "adam", 9), Arrays(rng, "adam", 4)
    plan = Plan([a.target._replace(p=0), b.target], gpu_of([at(b.device[0])]))
    for step in (1, 2):
        g, h = gradients(rng, [a, b])
        a.device[0] = to_device(a.device[0].copy_to_host())
        kept = on_device(g, h)
        plan.update([at(k) for k in kept], [step] * 2, [ADAM], places={0: at(a.device[0])})
        for x, y in ((a, g), (b, h)):
            x.expect(y, ADAM, step)
            x.check()


def test_more_step_numbers_than_there_is_room_for_at_first():
    rng = np.random.default_rng(12)
    arrays = [Arrays(rng, "adam", 1) for _ in range(plan_.MAX_PENDING + 10)]
    plan = planned(arrays)
    for call in (1, 2, 3):
        given = gradients(rng, arrays)
        kept = on_device(*given)
        steps = [call + i * (call > 1) for i in range(len(arrays))]
        plan.update([at(k) for k in kept], steps, [ADAM])
        for a, g, step in zip(arrays, given, steps, strict=True):
            a.expect(g, ADAM, step)
            a.check()


def test_nothing_to_do():
    a = Arrays(np.random.default_rng(2), "sgd", 3)
    for arrays in ([], [a]):
        plan = planned(arrays)
        plan.update([0] * len(arrays), [1] * len(arrays), [OPTIMIZERS["sgd"].options], guard=Guard(clip_norm=1.0))
        assert plan.norm([0] * len(arrays)) == 0
        assert plan.count_skipped().tolist() == [0] * len(arrays)
    a.check()


def test_one_copy_and_one_launch_a_step_and_turns_that_did_not_change_are_not_sent_again(monkeypatch):
    rng = np.random.default_rng(3)
    arrays = [Arrays(rng, "adam", 20) for _ in range(10)]
    plan = planned(arrays)
    kept = on_device(*gradients(rng, arrays))
    sent, launched = [], []
    gpu = type(plan.gpu)
    copy_in, launch = gpu.copy_in, gpu.launch
    monkeypatch.setattr(gpu, "copy_in", lambda self, *a: (sent.append(a[1].nbytes), copy_in(self, *a)))
    monkeypatch.setattr(gpu, "launch", lambda self, *a: (launched.append(a[0].name), launch(self, *a)))
    for step in (1, 2, 3):
        plan.update([at(g) for g in kept], [step] * 10, [ADAM])
    assert launched == ["update_adam_float32"] * 3
    assert sent[0] > sent[1] == sent[2] < 256


# ---------------------------------------------------------------- values that only the device knows
@pytest.mark.parametrize("most", [1.0, 1e6, math.inf])
@pytest.mark.parametrize("grad_scale", [None, 64.0, 3.0])
def test_clipping_and_scaling_on_the_device(most, grad_scale):
    rng = np.random.default_rng(4)
    arrays = [Arrays(rng, "adam", 300), Arrays(rng, "sgd", 7, 1, "float64")]
    plan = planned(arrays)
    options = [ADAM, {**OPTIMIZERS["sgd"].options, "maximize": True}]
    for step in (1, 2):
        given = gradients(rng, arrays)
        kept = on_device(*given)
        scalar = to_device(np.array([grad_scale or 1.0], "float32"))
        guard = Guard(clip_norm=most, grad_scale=at(scalar) if grad_scale else 0)
        scale = 0.5 if step == 2 else 1.0
        plan.update([at(g) for g in kept], [step] * 2, options, scale, guard=guard)
        scale *= 1.0 / grad_scale if grad_scale else 1.0
        norm = scale * plan.norm([at(g) for g in kept])  # its bits may differ from the reference's
        assert math.isclose(norm, scale * reference.gradient_norm(given), rel_tol=1e-14)
        for a, g, o in zip(arrays, given, options, strict=True):
            a.expect(g, o, step, scale * clip_factor(most, norm) if most < math.inf else scale)
            a.check()


def test_the_norm_of_a_clipped_step_can_be_asked_for():
    rng = np.random.default_rng(5)
    arrays = [Arrays(rng, "sgd", 9)]
    (g,) = gradients(rng, arrays)
    kept, scalar = to_device(g), to_device(np.array([4.0], "float32"))
    plan = planned(arrays)
    plan.update([at(kept)], [1], [OPTIMIZERS["sgd"].options], guard=Guard(clip_norm=0.1, grad_scale=at(scalar)))
    assert math.isclose(plan.last_norm(), reference.gradient_norm([g]) / 4, rel_tol=1e-14)


class Late:
    """A device that lags: it reports the outcomes of its steps only when they are waited for."""

    def __init__(self, plan, monkeypatch):
        self.plan, self.letters, self.waits = plan, [], 0
        gpu, self.gpu = type(plan.gpu), plan.gpu
        self.copy_out, self.wait = gpu.copy_out, gpu.wait
        monkeypatch.setattr(gpu, "copy_out", self.keep)
        monkeypatch.setattr(type(self.gpu.event()), "wait", lambda event: self.deliver_all())

    def keep(self, array, address, stream):
        word = np.zeros(1, np.int64)
        self.copy_out(self.gpu, word, address, stream)
        self.wait(self.gpu, stream)
        self.letters.append((array, int(word[0])))

    def deliver(self, count):
        for array, word in self.letters[:count]:
            array[0] = word
        del self.letters[:count]

    def deliver_all(self):
        self.waits += bool(self.letters)  # when all is reported, one more event costs no time
        self.wait(self.gpu, 0)
        self.deliver(len(self.letters))


@pytest.mark.parametrize("lag", [0, 1, 3, 1000])
@pytest.mark.parametrize("way", ["found_inf", "careful"])
def test_skipped_steps_do_not_count_however_late_the_host_hears_of_them(way, lag, monkeypatch):
    rng = np.random.default_rng(6)
    arrays = [Arrays(rng, "adam", 30), Arrays(rng, "momentum", 5, 1, "float64"), Arrays(rng, "adam", 140, 2)]
    plan = planned(arrays)
    late = Late(plan, monkeypatch) if lag else None
    done, flags = 0, to_device(np.array([0.0, 1.0], "float32"))
    bad = {1, 2, 5, 8, 9, 10, 15}
    for call in range(1, 21):
        options = [{**row, "lr": 0.1 / call} for row in (ADAM, OPTIMIZERS["momentum"].options, ADAM)]
        given = gradients(rng, arrays)
        if way == "careful" and call in bad:
            given[call % 3][-1] = (np.inf, -np.inf, np.nan)[call % 3]
        found = at(flags) + 4 * (call in bad)
        guard = Guard(found_inf=found) if way == "found_inf" else Guard(skip_nonfinite=True)
        kept = on_device(*given)
        if call == 12:  # a step between them that cannot be skipped
            guard = Guard()
        plan.update([at(g) for g in kept], [call] * 3, options, guard=guard)
        if late and len(late.letters) > lag:
            late.deliver(len(late.letters) - lag)
        if call not in bad:
            done += 1
            for a, g, o in zip(arrays, given, options, strict=True):
                a.expect(g, o, done)
        for a in arrays:
            a.check()
    if late:
        assert late.waits == 0
    assert plan.count_skipped().tolist() == [len(bad)] * 3


def test_arrays_that_were_left_out_of_a_skipped_step_have_not_skipped_it(monkeypatch):
    rng = np.random.default_rng(7)
    arrays = [Arrays(rng, "adam", 30), Arrays(rng, "adam", 5)]
    plan = planned(arrays)
    late = Late(plan, monkeypatch)
    flags = to_device(np.array([0.0, 1.0], "float32"))
    counted, done = [0, 0], [0, 0]
    for here, skip in [((1, 1), 0), ((1, 0), 1), ((0, 1), 0), ((1, 1), 1), ((1, 1), 0), ((1, 0), 0), ((1, 1), 0)]:
        given = gradients(rng, arrays)
        kept = on_device(*given)
        counted = [n + h for n, h in zip(counted, here, strict=True)]
        places = [at(g) if h else 0 for g, h in zip(kept, here, strict=True)]
        plan.update(places, counted, [ADAM], guard=Guard(found_inf=at(flags) + 4 * skip))
        for i in range(2):
            if here[i] and not skip:
                done[i] += 1
                arrays[i].expect(given[i], ADAM, done[i])
            arrays[i].check()
    assert late.waits  # where it had to know
    assert plan.count_skipped().tolist() == [2, 1] == [c - d for c, d in zip(counted, done, strict=True)]


def test_the_host_is_never_too_far_ahead(monkeypatch):
    rng = np.random.default_rng(8)
    arrays = [Arrays(rng, "adam", 3)]
    plan = planned(arrays)
    late = Late(plan, monkeypatch)
    flags = to_device(np.array([0.0, 1.0], "float32"))
    done = 0
    for call in range(1, plan_.MAX_PENDING * 2 + 10):
        (g,) = gradients(rng, arrays)
        kept, skip = to_device(g), call % 3 == 0
        plan.update([at(kept)], [call], [ADAM], guard=Guard(found_inf=at(flags) + 4 * skip))
        if not skip:
            done += 1
            arrays[0].expect(g, ADAM, done)
    arrays[0].check()
    assert late.waits == 2


def test_finite_gradients_whose_norm_overflows_are_not_skipped():
    rng = np.random.default_rng(9)
    arrays = [Arrays(rng, "sgd", 5, dtype="float64")]
    g = np.full(5, 1e200)
    kept = to_device(g)
    options = OPTIMIZERS["sgd"].options
    plan = planned(arrays)
    plan.update([at(kept)], [1], [options], guard=Guard(skip_nonfinite=True))
    arrays[0].expect(g, options, 1)
    arrays[0].check()
    assert plan.count_skipped().tolist() == [0]


@pytest.mark.skipif(SIMULATED, reason="the simulator has one device and no streams")
def test_a_stream_of_the_callers():
    from numba import cuda

    rng = np.random.default_rng(10)
    arrays = [Arrays(rng, "adam", 100_000)]
    plan, stream = planned(arrays), cuda.stream()
    for step in range(1, 6):
        (g,) = gradients(rng, arrays)
        kept = to_device(g)
        plan.update([at(kept)], [step], [ADAM], guard=Guard(clip_norm=1e9), stream=int(stream))
        stream.synchronize()
        arrays[0].expect(g, ADAM, step)
    arrays[0].check()
    assert current_stream(arrays[0].device[0]) == 0
