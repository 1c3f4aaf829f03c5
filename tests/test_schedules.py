"""Schedules of the learning rate: their numbers, against torch's, optax's and Keras's too, and what they refuse."""

import copy
import importlib.util
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from fastopt import SGD, schedules
from fastopt.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    InverseTime,
    Join,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Schedule,
    Step,
    WarmUp,
)

T = 40
ALL = [
    Constant(0.5),
    Step(0.5, size=7, gamma=0.3),
    MultiStep(0.5, milestones=[3, 20], gamma=0.3),
    Exponential(0.5, gamma=0.9),
    Exponential(0.5, gamma=0.1, steps=15),
    Exponential(0.5, gamma=1 / 2.5, steps=2.5),
    Exponential(0.01, gamma=1.5, most=0.5),
    InverseTime(0.5, decay=0.3),
    InverseTime(0.5, decay=1, power=0.5),
    Polynomial(0.5, steps=30, power=2),
    Polynomial(0.5, steps=30, power=0.5, end=0.1),
    Linear(0.5, steps=30, end=0.05),
    Linear(0.5, steps=30, warmup=10),
    Linear(0.5, slope=1 / 60, end=0.05),
    Linear(0.5, slope=0.03, warmup=10),
    CosineRestarts(0.5, steps=7, end=0.02),
    CosineRestarts(0.5, steps=9, t_mul=1.5, m_mul=0.7),
    CosineRestarts(0.5, steps=9, t_mul=1),
    Cosine(0.5, steps=30, end=0.02),
    Cosine(0.5, steps=30, end=0.02, warmup=8, start=0.01),
    OneCycle(0.5, steps=T),
    OneCycle(0.5, steps=T, share=0.5, divisor=4, final_divisor=100),
    Join([0.1, Cosine(0.5, steps=9), Exponential(0.3, gamma=0.8)], boundaries=[5, 20]),
    WarmUp(6, then=Step(0.5, size=10), start=0.1),
    WarmUp(6, then=0.25),
]


def path(schedule, steps=T):
    return [schedule(t) for t in range(steps)]


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_they_are_finite_numbers_and_end_where_they_say(schedule):
    values = path(schedule, 200)
    assert all(type(value) is float and 0 <= value < np.inf for value in values)
    if hasattr(schedule, "end") and getattr(schedule, "slope", None) is not None:
        assert values[-1] == schedule.end
    elif hasattr(schedule, "steps") and hasattr(schedule, "end") and not hasattr(schedule, "t_mul"):
        assert values[schedule.steps :] == pytest.approx([schedule.end] * (200 - schedule.steps), abs=1e-16)
    if getattr(schedule, "warmup", 0):
        assert values[schedule.warmup] == schedule.lr == max(values)


def cosines(count, lr):
    """Half a cosine of so many steps, whose values are known for four of them."""
    assert count == 4
    return [lr, lr * (2 + 2**0.5) / 4, lr / 2, lr * (2 - 2**0.5) / 4]


def test_by_hand():
    assert path(Step(1.0, 2, 0.5), 5) == [1, 1, 0.5, 0.5, 0.25]
    assert path(MultiStep(1.0, (1, 3), 0.5), 5) == [1, 0.5, 0.5, 0.25, 0.25]
    assert path(Exponential(1.0, 0.25, steps=2), 3) == [1, 0.5, 0.25]
    assert path(Constant(0.5), 2) == [0.5, 0.5]
    assert path(Exponential(1.0, 4, steps=0.5), 3) == [1, 16, 256]
    assert path(Exponential(1.0, 2, most=5), 5) == [1, 2, 4, 5, 5]
    assert path(Linear(1.0, slope=0.375), 5) == [1, 0.625, 0.25, 0, 0]
    assert path(Linear(1.0, slope=0.5, end=0.25, warmup=2), 6) == [0, 0.5, 1, 0.5, 0.25, 0.25]
    assert path(CosineRestarts(1.0, 1, m_mul=0.5), 7) == pytest.approx([1, 0.5, 0.25, *cosines(4, 0.25)])
    assert path(CosineRestarts(1.0, 3, t_mul=1, m_mul=0.5, end=0.5), 6) == pytest.approx(
        [1, 0.875, 0.625, 0.75, 0.6875, 0.5625]
    )
    assert path(InverseTime(1.0, 0.5), 3) == [1, 1 / 1.5, 0.5]
    assert path(InverseTime(6.0, 3.0, 0.5), 2) == [6, 3]
    assert path(Polynomial(1.0, 4, 2.0), 6) == [1, 0.5625, 0.25, 0.0625, 0, 0]
    assert path(Linear(1.0, 4, end=0.5), 6) == [1, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert path(Linear(1.0, 4, warmup=2), 5) == [0, 0.5, 1, 0.5, 0]
    assert path(Cosine(1.0, 3, end=0.5), 5) == pytest.approx([1, 0.875, 0.625, 0.5, 0.5])  # cosines 1, 1/2, -1/2, -1
    assert path(Cosine(1.0, 5, warmup=2, start=0.5), 6) == pytest.approx([0.5, 0.75, 1, 0.75, 0.25, 0])
    assert path(OneCycle(1.0, 5, 0.6, 2.0, 4.0), 7) == pytest.approx([0.5, 0.75, 1, 0.5625, 0.125, 0.125, 0.125])
    assert path(Join((0.5, Step(1.0, 1, 0.5)), (2,)), 5) == [0.5, 0.5, 1, 0.5, 0.25]
    assert path(WarmUp(2, Step(1.0, 1, 0.5), start=0.5), 5) == [0.5, 0.75, 1, 0.5, 0.25]


def test_torch_gives_the_same():
    torch = pytest.importorskip("torch")
    peers = torch.optim.lr_scheduler

    def theirs(make, lr=0.5):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        scheduler = make(optimizer)
        values = []
        for _ in range(T):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return values

    for ours, make in [
        (Step(0.5, 7, 0.3), lambda o: peers.StepLR(o, 7, 0.3)),
        (MultiStep(0.5, (3, 20), 0.3), lambda o: peers.MultiStepLR(o, [3, 20], 0.3)),
        (Exponential(0.5, 0.9), lambda o: peers.ExponentialLR(o, 0.9)),
        (Polynomial(0.5, 30, 2.0), lambda o: peers.PolynomialLR(o, 30, 2.0)),
        (Linear(0.5, 30, 0.05), lambda o: peers.LinearLR(o, 1.0, 0.1, 30)),
        (Cosine(0.5, T, 0.02), lambda o: peers.CosineAnnealingLR(o, T, 0.02)),
        (Constant(0.5), lambda o: peers.ConstantLR(o, 1.0)),
        (Linear(0.5, slope=0.45 / 30, end=0.05), lambda o: peers.LinearLR(o, 1.0, 0.1, 30)),
        (CosineRestarts(0.5, 7, t_mul=1, end=0.02), lambda o: peers.CosineAnnealingWarmRestarts(o, 7, 1, 0.02)),
        (CosineRestarts(0.5, 3, end=0.02), lambda o: peers.CosineAnnealingWarmRestarts(o, 3, 2, 0.02)),
        (OneCycle(0.5, T + 1), lambda o: peers.OneCycleLR(o, 0.5, total_steps=T + 1, cycle_momentum=False)),
        (OneCycle(0.5, T + 1, 0.5, 4, 100), lambda o: peers.OneCycleLR(
            o, 0.5, total_steps=T + 1, pct_start=0.5, div_factor=4, final_div_factor=100, cycle_momentum=False)),
    ]:  # fmt: skip
        assert path(ours) == pytest.approx(theirs(make), rel=1e-9, abs=1e-15), ours


# In processes of their own: where JAX was imported it warns of every fork. They have float32.
OPTAX = """
import optax
join = [optax.constant_schedule(0.1), optax.cosine_decay_schedule(0.5, 9), optax.exponential_decay(0.3, 1, 0.8)]
peers = [
    optax.exponential_decay(0.5, 7, 0.3, staircase=True),
    optax.piecewise_constant_schedule(0.5, {3: 0.3, 20: 0.3}),
    optax.exponential_decay(0.5, 15, 0.1),
    optax.polynomial_schedule(0.5, 0.1, 0.5, 30),
    optax.linear_schedule(0.5, 0.05, 30),
    optax.cosine_decay_schedule(0.5, 30, 0.04),
    optax.warmup_cosine_decay_schedule(0.01, 0.5, 8, 30, 0.02),
    optax.join_schedules(join, [5, 20]),
]
"""
KERAS = """
import os
os.environ["KERAS_BACKEND"] = "torch"
from keras.optimizers.schedules import CosineDecay, CosineDecayRestarts, ExponentialDecay, InverseTimeDecay
from keras.optimizers.schedules import PolynomialDecay
peers = [
    ExponentialDecay(0.5, 15, 0.1),
    InverseTimeDecay(0.5, 1, 0.3),
    PolynomialDecay(0.5, 30, 0.1, 2.0),
    CosineDecay(0.5, 30, alpha=0.1),
    CosineDecay(0.0, 22, warmup_target=0.5, warmup_steps=8),
    CosineDecayRestarts(0.5, 7, alpha=0.1),
    CosineDecayRestarts(0.5, 9, t_mul=1.5, m_mul=0.7),
]
"""
JOINED = Join((0.1, Cosine(0.5, 9), Exponential(0.3, 0.8)), (5, 20))


@pytest.mark.parametrize(
    ("needed", "code", "ours"),
    [
        (["jax", "optax"], OPTAX, [
            Step(0.5, 7, 0.3), MultiStep(0.5, (3, 20), 0.3), Exponential(0.5, 0.1, 15), Polynomial(0.5, 30, 0.5, 0.1),
            Linear(0.5, 30, 0.05), Cosine(0.5, 30, 0.02), Cosine(0.5, 30, 0.02, 8, 0.01), JOINED,
        ]),
        (["torch", "keras"], KERAS, [
            Exponential(0.5, 0.1, 15), InverseTime(0.5, 0.3), Polynomial(0.5, 30, 2.0, 0.1), Cosine(0.5, 30, 0.05),
            WarmUp(8, Cosine(0.5, 22)), CosineRestarts(0.5, 7, end=0.05), CosineRestarts(0.5, 9, 1.5, 0.7),
        ]),
    ],
    ids=["optax", "keras"],
)  # fmt: skip
def test_others_give_the_same(needed, code, ours):
    for module in needed:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    code += f"print([[float(peer(t)) for t in range({T})] for peer in peers])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    for schedule, theirs in zip(ours, json.loads(done.stdout), strict=True):
        assert path(schedule) == pytest.approx(theirs, rel=1e-5, abs=1e-7), schedule


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_they_are_values(schedule):
    config = json.loads(json.dumps(schedules.to_config(schedule)))
    for twin in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), schedules.from_config(config)):
        assert twin == schedule == eval(repr(schedule), vars(schedules))
        assert repr(twin) == repr(schedule)
        assert hash(twin) == hash(schedule)
        assert path(twin) == path(schedule)
    with pytest.raises(AttributeError):
        schedule.lr = 1.0


def test_every_schedule_is_tested_and_public():
    assert {type(schedule) for schedule in ALL} == set(SCHEDULES.values())
    assert set(SCHEDULES) <= set(schedules.__all__)


WRONG = [
    (lambda: Step(-0.1, 3), ValueError, "lr must be at least 0, and finite; got -0.1"),
    (lambda: Step("0.1", 3), TypeError, "lr must be a number; got"),
    (lambda: Step(float("nan"), 3), ValueError, "lr must be at least 0"),
    (lambda: Step(0.1, 0), ValueError, "size must be at least 1; got 0"),
    (lambda: Step(0.1, 2.5), TypeError, "size must be a whole number; got 2.5"),
    (lambda: Step(0.1, 2, gamma=-1), ValueError, "gamma must be at least 0"),
    (lambda: MultiStep(0.1, (3, 3)), ValueError, r"milestones must rise; got \(3, 3\)"),
    (lambda: MultiStep(0.1, 3), TypeError, "milestones must be a sequence of step numbers; got 3"),
    (lambda: MultiStep(0.1, (0.5,)), TypeError, r"milestones\[0\] must be a whole number"),
    (lambda: Exponential(0.1, float("inf")), ValueError, "gamma must be"),
    (lambda: Exponential(0.1, 0.5, 0), ValueError, "steps must be at least 1"),
    (lambda: Exponential(0.1, 0.5, 0.0), ValueError, "steps must be above 0; got 0.0"),
    (lambda: Exponential(0.1, 0.5, -1.5), ValueError, "steps must be at least 0"),
    (lambda: Exponential(0.1, 0.5, True), TypeError, "steps must be a whole number; got True"),
    (lambda: Exponential(0.1, 2, most=0.05), ValueError, "most must be at least lr=0.1, the first rate; got 0.05"),
    (lambda: Exponential(0.1, 2, most=-1), ValueError, "most must be at least 0"),
    (lambda: Constant(None), TypeError, "lr must be a number; got None"),
    (lambda: Linear(0.1), ValueError, "Linear must have steps or slope, one of the two; got None and None"),
    (lambda: Linear(0.1, 10, slope=0.1), ValueError, "Linear must have steps or slope, one of the two; got 10 and 0.1"),
    (lambda: Linear(0.1, slope=-1), ValueError, "slope must be at least 0"),
    (lambda: Linear(0.1, slope=0.1, end=0.2), ValueError, "end must be at most lr=0.1, from which a slope falls"),
    (lambda: CosineRestarts(0.1, 0), ValueError, "steps must be at least 1"),
    (lambda: CosineRestarts(0.1, 5, t_mul=0.5), ValueError, "t_mul must be at least 1"),
    (lambda: CosineRestarts(0.1, 5, m_mul=-1), ValueError, "m_mul must be at least 0"),
    (lambda: CosineRestarts(0.1, 5, end=1), ValueError, "end must be at most lr=0.1, from which cycles fall; got 1"),
    (lambda: InverseTime(0.1, -1), ValueError, "decay must be"),
    (lambda: Polynomial(0.1, 10, -1), ValueError, "power must be"),
    (lambda: Linear(0.1, 10, end=-1), ValueError, "end must be"),
    (lambda: Linear(0.1, 10, warmup=10), ValueError, "warmup must be less than steps=10, which it is part of; got 10"),
    (lambda: Cosine(0.1, 10, warmup=11), ValueError, "warmup must be less than steps"),
    (lambda: Cosine(0.1, 10, start=-1), ValueError, "start must be"),
    (lambda: OneCycle(0.1, 10, share=1.0), ValueError, "share must be"),
    (lambda: OneCycle(0.1, 10, divisor=0.5), ValueError, "divisor must be at least 1"),
    (lambda: OneCycle(0.1, 10, final_divisor=0), ValueError, "final_divisor must be at least 1"),
    (lambda: Join((0.1, 0.2), (1, 2)), ValueError, "one boundary less than schedules; got 2 and 2"),
    (lambda: Join(0.1, ()), TypeError, "schedules must be a sequence of schedules; got 0.1"),
    (lambda: Join((0.1, lambda t: 0.1), (1,)), TypeError, r"schedules\[1\] must be a number or a Schedule"),
    (lambda: WarmUp(3, "linear"), TypeError, "then must be a number"),
    (lambda: WarmUp(0, 0.1), ValueError, "steps must be at least 1"),
    (lambda: schedules.from_config({"schedule": "Zigzag"}), ValueError, "unknown schedule 'Zigzag'; known: Constant"),
    (lambda: schedules.from_config({"lr": 0.1}), TypeError, "schedule must be one of Constant"),
    (lambda: schedules.to_config(lambda t: 0.1), TypeError, "a schedule must be one of Constant, "),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG)
def test_wrong_fields_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_subclass_may_be_part_of_others_but_has_no_name_in_files():
    class Zigzag(Schedule):
        def __call__(self, step):
            return 0.5 + 0.25 * (step % 2)

    assert path(WarmUp(1, Zigzag()), 4) == [0, 0.5, 0.75, 0.5]
    with pytest.raises(TypeError, match="a schedule must be one of"):
        schedules.to_config(Join((0.1, Zigzag()), (3,)))


@pytest.mark.parametrize("alpha", [4, 2.5])
def test_decays_of_textbooks(alpha):
    """They are eta0 - t / alpha, down to 0, and eta0 (1 / alpha)^(t / alpha), for an alpha that need not be whole."""
    falling, exponential = Linear(1.0, slope=1 / alpha), Exponential(1.0, gamma=1 / alpha, steps=alpha)
    for t in range(9):
        assert falling(t) == pytest.approx(max(0, 1 - t / alpha), abs=1e-15)
        assert exponential(t) == pytest.approx((1 / alpha) ** (t / alpha), rel=1e-15)


@pytest.mark.parametrize(("steps", "t_mul"), [(1, 2.0), (3, 1.1), (5, 1.0), (7, 3.0), (4, 1.0001)])
def test_cycles_follow_each_other_without_a_gap(steps, t_mul):
    schedule, begins, length = CosineRestarts(0.5, steps, t_mul), 0.0, float(steps)
    for t in range(400):
        if t >= begins + length * (1 - 1e-12):
            begins, length = begins + length, length * t_mul
        part = min(max((t - begins) / length, 0), 1)
        assert schedule(t) == pytest.approx(0.25 * (1 + np.cos(np.pi * part)), abs=1e-9), t


def test_growth_without_a_bound_ends_in_an_error_and_with_one_does_not():
    p = np.zeros(1)
    optimizer = SGD(p, lr=Exponential(1.0, gamma=1e200), backend="numpy")
    optimizer.step(np.ones(1))
    optimizer.step(np.ones(1))
    with pytest.raises(ValueError, match="gives for step 2 must be .*; got inf"):
        optimizer.step(np.ones(1))
    assert Exponential(1.0, gamma=1e200, most=3.0)(10) == 3.0
    assert Exponential(0.0, gamma=1e200)(10) == 0.0


def test_files_of_schedules_that_had_fewer_fields_are_read_and_written():
    assert schedules.to_config(Linear(0.5, 30)) == {
        "schedule": "Linear", "lr": 0.5, "steps": 30, "end": 0.0, "warmup": 0,
    }  # fmt: skip
    assert set(schedules.to_config(Exponential(0.5, 0.9))) == {"schedule", "lr", "gamma", "steps"}


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_a_plot_has_the_rates(schedule):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    ax = schedule.plot(T)
    steps, rates = ax.lines[0].get_data()
    assert list(steps) == list(range(T))
    assert list(rates) == path(schedule)
    assert schedule.plot(25_000, ax) is ax
    steps = ax.lines[1].get_xdata()
    assert (steps[0], steps[-1], len(steps)) == (0, 24_999, 10_000)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("steps done", "learning rate")
    pyplot.close(ax.figure)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        schedule.plot(0)


def test_a_plot_without_matplotlib_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plot needs Matplotlib: pip install 'fastopt\[plot\]'"):
        Constant(0.5).plot(10)
