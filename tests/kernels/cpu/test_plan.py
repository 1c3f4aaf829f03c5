"""Plans: every call does what the reference does, for the arrays that have a gradient, and touches no others."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu import Plan
from fastopt.kernels.cpu.optim.updates import TILE
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, address_of
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import BufferUpdate, Update

SIZES = [0, 1, 33, 5, 0, 40] if INTERPRETED else [0, 1, 33, TILE, 0, 2 * TILE + 1, 7]
ADAM = OPTIMIZERS["adam"].options


class Arrays:
    """A parameter and its states, and copies for the reference."""

    def __init__(self, rng, rule, size, dtype="float32", group=0):
        self.rule, self.group = rule, group
        self.all = [np.abs(rng.standard_normal(size)).astype(dtype) for _ in range(1 + len(OPTIMIZERS[rule].states))]
        self.twins = [array.copy() for array in self.all]

    @property
    def target(self):
        p, *states = self.all
        return BufferUpdate(self.rule, p.dtype.name, p.size, address_of(p), [address_of(s) for s in states], self.group)

    def gradient(self, rng):
        return rng.standard_normal(self.all[0].size).astype(self.all[0].dtype)

    def expect(self, g, options, step, scale=1.0):
        p, *states = self.twins
        reference.update([Update(self.rule, p, g, tuple(states), options, step)], scale)

    def check(self):
        for ours, theirs in zip(self.all, self.twins, strict=True):
            np.testing.assert_array_equal(ours.view(f"u{ours.itemsize}"), theirs.view(f"u{ours.itemsize}"))


def mixed(rng):
    """Arrays of all rules, of two dtypes, in two groups a rule."""
    made = []
    for i, size in enumerate(SIZES * 4):
        rule = list(OPTIMIZERS)[i % len(OPTIMIZERS)]
        made.append(Arrays(rng, rule, size, ("float32", "float64")[i % 2], 2 * (i % len(OPTIMIZERS)) + i % 3 % 2))
    return made


def mixed_options(lr):
    return [{**OPTIMIZERS[rule].options, "lr": lr * (1 + i)} for rule in OPTIMIZERS for i in (0, 1)]


def test_rules_dtypes_groups_and_options_that_change_with_some_arrays_left_out():
    rng = np.random.default_rng(0)
    arrays = mixed(rng)
    plan = Plan([a.target for a in arrays])
    done = [0] * len(arrays)
    for call in range(6):
        gradients = [a.gradient(rng) if rng.random() < 0.7 else None for a in arrays]
        options, scale = mixed_options(0.1 / (1 + call)), 1.0 if call % 2 else 0.5
        steps = [n + 1 for n in done]  # some arrays of a kind lag behind others
        plan.update([address_of(g) for g in gradients], steps, options, scale)
        for i, (a, g) in enumerate(zip(arrays, gradients, strict=True)):
            if g is not None:
                done[i] += 1
                a.expect(g, options[a.group], done[i], scale)
            a.check()
    assert len(set(done)) > 2


def test_gradients_are_read_where_they_are_now_and_not_changed():
    rng = np.random.default_rng(1)
    a = Arrays(rng, "adam", 50)
    plan = Plan([a.target])
    for step in (1, 2, 3):
        g = a.gradient(rng)
        kept = g.copy()
        plan.update(np.array([address_of(g)]), np.array([step]), [ADAM])
        np.testing.assert_array_equal(g, kept)
        a.expect(kept, ADAM, step)
    a.check()


def test_options_may_hold_more_than_the_rule_has():
    a = Arrays(np.random.default_rng(2), "adam", 5)
    g = np.ones(5, "float32")
    Plan([a.target]).update([address_of(g)], [1], [{**ADAM, "params": [], "fused": True}])
    a.expect(g, ADAM, 1)
    a.check()


def test_a_parameter_that_is_given_its_place_in_every_call():
    rng = np.random.default_rng(3)
    a, b = Arrays(rng, "adam", 9), Arrays(rng, "adam", 4)
    plan = Plan([a.target._replace(p=0), b.target])
    for step in (1, 2):
        gradients = [a.gradient(rng), b.gradient(rng)]
        elsewhere = a.all[0].copy()
        plan.update([address_of(g) for g in gradients], [step] * 2, [ADAM], addresses={0: address_of(elsewhere)})
        a.all[0] = elsewhere
        for x, g in zip((a, b), gradients, strict=True):
            x.expect(g, ADAM, step)
            x.check()


def test_nothing_to_do():
    a = Arrays(np.random.default_rng(4), "sgd", 3)
    for targets in ([], [a.target]):
        plan = Plan(targets)
        plan.update([0] * len(targets), [1] * len(targets), [OPTIMIZERS["sgd"].options])
        assert plan.norm([0] * len(targets)) == 0
    a.check()


def test_norms_count_the_gradients_that_are_there():
    rng = np.random.default_rng(5)
    arrays = mixed(rng)
    plan = Plan([a.target for a in arrays])
    for _ in range(4):
        gradients = [a.gradient(rng) if rng.random() < 0.6 else None for a in arrays]
        there = [g for g in gradients if g is not None]
        norm = plan.norm([address_of(g) for g in gradients])
        assert norm == cpu.gradient_norm(there)
        assert norm == pytest.approx(reference.gradient_norm(there), rel=1e-13)


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
def test_bits_do_not_depend_on_the_number_of_threads(threads):
    results = []
    for n in (1, 2, 4):
        rng = np.random.default_rng(6)
        arrays = [Arrays(rng, "adam", size) for size in (100_001, 3, 70_000, 2 * TILE)]
        gradients = [a.gradient(rng) for a in arrays]
        plan = Plan([a.target for a in arrays])
        with threads(n):
            for addresses in ([address_of(g) for g in gradients], [0, *(address_of(g) for g in gradients[1:])]):
                norm = plan.norm(addresses)
                plan.update(addresses, [1] * 4, [ADAM])
        results.append([norm, *(array.tobytes() for a in arrays for array in a.all)])
    assert results[0] == results[1] == results[2]


@pytest.mark.skipif(INTERPRETED, reason="slow when interpreted")
def test_calls_of_one_plan_from_several_threads_do_not_mix():
    """Every thread updates arrays of its own, given by their places; a plan's states are shared, so: a rule without."""
    rng = np.random.default_rng(7)
    options = OPTIMIZERS["sgd"].options
    plan = Plan([BufferUpdate("sgd", "float32", 5000, 0, ()) for _ in range(20)])
    starts = [rng.standard_normal((20, 5000)).astype("float32") for _ in range(8)]
    gradients = [rng.standard_normal((20, 5000)).astype("float32") for _ in range(8)]

    def run(n):
        mine = starts[n].copy()
        for _ in range(50):
            at = [address_of(row) for row in gradients[n]]
            plan.update(at, [1] * 20, [options], addresses={i: address_of(row) for i, row in enumerate(mine)})
        return mine

    expected = []
    for start, g in zip(starts, gradients, strict=True):
        p = start.copy()
        for _ in range(50):
            reference.update([Update("sgd", p, g, (), options, 1)])
        expected.append(p)
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(run, range(8)), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
