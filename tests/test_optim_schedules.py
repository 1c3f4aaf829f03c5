"""A schedule as `lr`: in steps on arrays, in groups, in training, in files; and nothing is compiled for a change."""

import copy
import logging
import pickle

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, classifier, snapshot

import fastopt as fo
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.schedules import Cosine, Exponential, InverseTime, Join, Step

from . import optimizers
from .optimizers import DTYPES, MAKE, drawn, make

X, Y = blobs()


def halved(step):
    return 0.5 / 2**step


# ---------------------------------------------------------------- figures of a training


def test_fit_logs_the_rate_of_each_epochs_last_step(backend):
    x, y = blobs(40)
    for lr, rates in ((0.25, [0.25, 0.25]), (Cosine(0.5, steps=5), [Cosine(0.5, 5)(t) for t in (2, 5)])):
        model, heard = classifier(backend), []
        model.compile(fo.SGD(lr=lr), CROSS_ENTROPY)
        hear = fo.callbacks.LambdaCallback(on_epoch_end=lambda model, epoch, logs, to=heard: to.append(logs["lr"]))
        history = model.fit(x, y, batch_size=15, epochs=2, callbacks=[hear], verbose=0)
        assert history["lr"] == heard == rates


# ---------------------------------------------------------------- steps on arrays


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_a_schedule_gives_the_bits_of_rates_set_by_hand(rule, dtype, backend):
    schedule = Cosine(0.1, steps=6, end=0.01, warmup=2)
    p, q = drawn((5,), dtype), drawn((5,), dtype)
    ours, by_hand = (
        make(rule, x, lr=lr, weight_decay=0.1, backend=backend) for x, lr in ((p, schedule), (q, 1.0))
    )
    for step in range(8):
        by_hand.lr = schedule(step)
        assert ours.lr == by_hand.lr == ours.options["lr"]
        for optimizer in (ours, by_hand):
            optimizer.step(drawn((5,), dtype, step + 1))
    np.testing.assert_array_equal(p, q)


def test_groups_have_their_own(backend):
    a, b, c = np.zeros(1), np.zeros(1), np.zeros(1)
    groups = [{"params": a, "lr": halved}, {"params": b, "lr": 0.25}, {"params": c}]
    optimizer = fo.SGD(groups, lr=Step(1.0, size=2, gamma=0.5), backend=backend)
    for _ in range(3):
        optimizer.step([np.ones(1)] * 3)
    assert [x.tolist() for x in (a, b, c)] == [[-0.875], [-0.75], [-2.5]]
    assert optimizer.lr == 0.0625
    assert optimizer.param_groups[0]["lr"] is halved


def test_steps_are_counted_for_all_arrays_together_and_only_when_done(backend):
    seen = []

    def schedule(step):
        seen.append(step)
        return 1.0

    a, b = np.zeros(1), np.zeros(1)
    optimizer = fo.SGD([a, b], lr=schedule, backend=backend)
    optimizer.step([np.ones(1), None])
    optimizer.step([None, np.ones(1)])
    assert not optimizer.step([np.ones(1), np.ones(1)], found_inf=True)
    assert not optimizer.step([np.full(1, np.inf), np.ones(1)], skip_nonfinite=True)
    with pytest.raises(ValueError, match="shape"):
        optimizer.step([np.ones(1), np.ones(2)])
    optimizer.step([np.ones(1), np.ones(1)])
    assert sorted(set(seen)) == [0, 1, 2]
    assert seen[-1] == 2
    assert (a.tolist(), b.tolist()) == ([-2], [-2])
    optimizer.advance(5)
    assert optimizer.rates(2).tolist() == [1, 1]
    assert seen[-2:] == [8, 9]


def test_schedules_and_numbers_may_alternate(backend):
    p = np.zeros(1)
    optimizer = fo.SGD(p, lr=0.5, backend=backend)
    rates = []
    for change in (None, halved, Exponential(1.0, 0.5), 0.125, np.float32(0.25)):
        if change is not None:
            optimizer.param_groups[0]["lr"] = change
        rates.append(optimizer.lr)
        optimizer.step(np.ones(1))
    assert rates == [0.5, 0.25, 0.25, 0.125, 0.25]  # by the number of steps done
    assert p.tolist() == [-sum(rates)]
    optimizer.lr = halved
    assert optimizer.lr == 0.5 / 2**5


def test_other_functions_and_kinds_of_numbers(backend):
    for schedule in (
        lambda t: 1,
        lambda t: np.float32(1),
        lambda t: np.array(1.0),
        lambda t: np.ones(1),
        lambda t: True,
    ):
        p = np.zeros(2)
        fo.SGD(p, lr=schedule, backend=backend).step(np.ones(2))
        assert p.tolist() == [-1, -1]


BAD = [
    (lambda t: float("nan"), ValueError, "gives for step 1 must be a finite number of at least 0; got nan"),
    (lambda t: -0.1, ValueError, "gives for step 1 must be a finite number of at least 0; got -0.1"),
    (lambda t: 1e300 * 1e300, ValueError, "got inf"),
    (Exponential(1.0, gamma=1e300), ValueError, "Exponential.* gives for step 2 must be .*; got inf"),
    (lambda t: "0.1", TypeError, "gives for step 1 must be a number"),
    (lambda t: None, TypeError, "gives for step 1 must be a number"),
    (lambda t: [0.1, 0.2], TypeError, "gives for step 1 must be a number"),
    (lambda t: 1j, TypeError, "gives for step 1 must be a number"),
    (lambda t: [][t], IndexError, "list index"),
    (Cosine, TypeError, r"lr must be a finite number .*, or a schedule\(step\) that gives one; got a ABCMeta"),
]


@pytest.mark.parametrize(("schedule", "error", "message"), BAD)
def test_a_refused_rate_of_a_schedule_changes_nothing(schedule, error, message, backend):
    p, q = np.ones(2), np.ones(2)
    optimizer = fo.Adam([{"params": p}, {"params": q}], clip_norm=1.0, backend=backend)
    steps = 2 if isinstance(schedule, Exponential) else 1
    for _ in range(steps):
        optimizer.step([np.ones(2), np.ones(2)])
    norm = optimizer.grad_norm
    before = optimizers.snapshot(optimizer, p, q)
    optimizer.param_groups[1]["lr"] = schedule
    for _ in range(2):
        with pytest.raises(error, match=message):
            optimizer.step([np.full(2, 3.0), np.ones(2)])
    assert optimizer.grad_norm == norm
    optimizer.param_groups[1]["lr"] = 1e-3
    assert optimizers.snapshot(optimizer, p, q) == before


# ---------------------------------------------------------------- saved and copied


def train(optimizer, steps):
    for step in steps:
        optimizer.step(np.ones(2) * (1 + step % 3))


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_saved_optimizer_goes_on_where_it_was(way):
    schedule = Join((Cosine(0.5, steps=4), InverseTime(0.3, 0.1)), (4,))
    p = np.ones(2)
    whole = fo.Adam(p, lr=schedule, backend="numpy")
    train(whole, range(3))
    q = p.copy()
    if way == "state_dict":
        other = fo.Adam(q, backend="numpy")
        other.load_state_dict(whole.state_dict())
    else:
        duplicate = copy.deepcopy if way == "deepcopy" else lambda it: pickle.loads(pickle.dumps(it))
        q, other = duplicate((p, whole))
    assert other.param_groups[0]["lr"] == schedule
    train(whole, range(3, 9))
    train(other, range(3, 9))
    np.testing.assert_array_equal(p, q)
    assert f"lr={schedule!r}" in repr(other)


def test_a_state_dict_without_the_count_has_it_from_the_states():
    optimizer = fo.SGD([np.ones(2), np.ones(2)], lr=0.5, backend="numpy")
    for _ in range(3):
        optimizer.step([None, np.ones(2)])
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["lr_step"] == 3
    del saved["param_groups"][0]["lr_step"]
    other = fo.SGD([np.ones(2), np.ones(2)], backend="numpy")
    other.load_state_dict(saved)
    other.lr = halved
    assert other.lr == 0.0625
    for wrong, error in ((-1, ValueError), (1.5, TypeError)):
        saved["param_groups"][0]["lr_step"] = wrong
        with pytest.raises(error, match="lr_step"):
            other.load_state_dict(saved)
    assert other.lr == 0.0625
    two = fo.SGD([{"params": np.ones(1)}, {"params": np.ones(1)}])
    saved = two.state_dict()
    saved["param_groups"][1]["lr_step"] = 2
    with pytest.raises(ValueError, match=r"lr_step must be the same in all groups .*\[0, 2\]"):
        two.load_state_dict(saved)


# ---------------------------------------------------------------- training


def test_training_uses_a_rate_for_every_step(backend):
    schedule = Step(0.05, size=4, gamma=0.5)  # 120 rows in batches of 30: four steps an epoch

    class ByHand(fo.Callback):
        def on_epoch_begin(self, model, epoch):
            model.optimizer.lr = schedule(model.optimizer.steps)

    models = classifier(backend), classifier(backend)
    for model, lr, callbacks in zip(models, (schedule, 1.0), ([], [ByHand()]), strict=True):
        model.compile(fo.Adam(lr=lr), CROSS_ENTROPY)
        model.fit(X, Y, epochs=3, batch_size=30, callbacks=callbacks)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(a, b)
    assert models[0].optimizer.lr == 0.05 / 8


def test_training_within_an_epoch_too(backend):
    """Rates that change in the middle of a compiled epoch are those of single steps."""
    whole, stepped = classifier(backend, dtype="float64"), classifier(backend, dtype="float64")
    for model in (whole, stepped):
        model.compile(fo.SGD(lr=Exponential(0.1, 0.5), momentum=0.9, convention="keras"), CROSS_ENTROPY)
    whole.fit(X, Y, batch_size=30, shuffle=False)
    for first in range(0, 120, 30):
        stepped.fit(X[first : first + 30], Y[first : first + 30], batch_size=30, shuffle=False)
    for a, b in zip(whole.get_weights(), stepped.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_bad_schedule_ends_an_epoch_before_it_begins(backend):
    model = classifier(backend)
    model.compile(fo.Adam(lr=lambda t: 0.1 if t < 6 else -1.0), CROSS_ENTROPY)
    model.fit(X, Y, batch_size=30)
    before = snapshot(model)
    with pytest.raises(ValueError, match="gives for step 6 must be a finite number of at least 0; got -1"):
        model.fit(X, Y, batch_size=30)
    after = snapshot(model)
    for part in ("weights", "optimizer", "counts"):
        assert_same(before[part], after[part])


def test_files_have_our_schedules(path, backend):
    schedule = Join((Cosine(0.05, steps=6, warmup=2), InverseTime(0.03, 0.1)), (6,))
    whole, first = classifier(backend), classifier(backend)
    for model in (whole, first):
        model.compile(fo.Adam(lr=schedule), CROSS_ENTROPY)
    whole.fit(X, Y, epochs=3, batch_size=30)
    first.fit(X, Y, epochs=1, batch_size=30)
    first.save(path)
    second = fo.load_model(path)
    assert second.optimizer.param_groups[0]["lr"] == schedule
    second.fit(X, Y, epochs=3, batch_size=30, initial_epoch=1)
    for a, b in zip(whole.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_files_have_the_present_rate_of_other_schedules_and_say_so(path, caplog):
    model = classifier()
    model.compile(fo.Adam(lr=halved), CROSS_ENTROPY)
    model.fit(X, Y, batch_size=60)
    with caplog.at_level(logging.WARNING, "fastopt"):
        model.save(path)
        assert "a schedule that a file cannot hold: what is saved is its present value, 0.125" in caplog.text
        assert "halved" in caplog.text
        caplog.clear()
        again = fo.load_model(path)
        assert "now it stays at 0.125" in caplog.text
    assert again.optimizer.param_groups[0]["lr"] == 0.125
    again.optimizer.lr = halved
    for each in (model, again):
        each.fit(X, Y, epochs=2, initial_epoch=1, batch_size=60)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------- nothing is compiled for a change

OTHER = {
    "lr": [0.3, np.float32(0.1), halved, Cosine(0.1, 5), Step(0.5, 2)],
    "betas": [(0.5, 0.9), (0.0, 0.0)],
    "maximize": [True, False],
    "nesterov": [True, False],
    "decoupled_weight_decay": [True, False],
    "clip_value": [0.5, 2.0, None],
}


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize("rule", MAKE)
def test_changes_compile_nothing(rule):
    """Every hyper-parameter of every class and convention, as long as the rule stays the same."""
    from fastopt.kernels import cpu
    from fastopt.kernels.cpu.runtime.compile import Kernel

    p = np.ones(5)
    optimizer = make(rule, p)
    optimizer.step(np.ones(5))
    group, kernels = optimizer.param_groups[0], len(Kernel.names)
    compiled, tried = [], []
    with cpu.compiling(compiled.append):
        for name in optimizer._hyper:
            before = group[name]
            for value in OTHER.get(name, [0.1, 0.7]):
                group[name] = value
                try:
                    same = optimizer.rule == rule
                except ValueError:  # what the convention does not have
                    same = False
                if same:
                    assert optimizer.step(np.ones(5))
                    tried.append(name)
            group[name] = before
            optimizer.step(np.ones(5))
    assert compiled == []
    assert len(Kernel.names) == kernels
    assert {"lr", "weight_decay", "l1", "clip_value", "maximize"} <= set(tried)
    fixed = {"betas", "momentum_decay"} if optimizer._derived else set()  # which no step may change
    options = set(OPTIMIZERS[rule].options) - {"beta1", "beta2", "decoupled"} - fixed
    assert options <= {*tried, "betas"}
    assert ("betas" in tried) == ("beta1" in OPTIMIZERS[rule].options and not fixed)


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize(("cls", "name"), [(fo.Adam, "amsgrad"), (fo.AdamW, "amsgrad"), (fo.RMSprop, "centered")])
def test_another_rule_is_compiled_once(cls, name):
    from fastopt.kernels import cpu

    optimizer = cls(np.ones(5))
    for value in (False, True):
        optimizer.param_groups[0][name] = value
        optimizer.step(np.ones(5))
    compiled = []
    with cpu.compiling(compiled.append):
        for value in (False, True, False):
            optimizer.param_groups[0][name] = value
            optimizer.step(np.ones(5))
    assert compiled == []


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_training_with_other_rates_compiles_nothing():
    from fastopt.kernels import cpu

    model = classifier("cpu")
    model.compile(fo.Adam(lr=0.1), CROSS_ENTROPY)
    model.fit(X, Y, batch_size=30)
    compiled = []
    with cpu.compiling(compiled.append):
        for lr in (0.2, Cosine(0.1, 10), halved):
            model.optimizer.lr = lr
            model.fit(X, Y, batch_size=30)
    assert compiled == []
