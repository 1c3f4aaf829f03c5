"""Updates of 16-bit arrays on the device: the reference's bits, for every rule and form; norms; master copies."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_cuda import SIMULATED, Bits, drawing, require_device, to_device, update_reference
from hypothesis import given

require_device()
from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda import Guard
from fastopt.kernels.cuda.optim.plan import Plan
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.records import TILE
from fastopt.kernels.formulas import OPTIMIZERS, dropout_stream
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.spec import FORMS, MASTER, SAME, STOCHASTIC, BufferUpdate, Update

pytestmark = pytest.mark.gpu

KINDS = {"float16": np.float16, "bfloat16": np.uint16}
SEED = 2**63 + 5


def as_16bit(x, kind):
    into = np.zeros(x.shape, KINDS[kind])
    store(x.astype(np.float32), into)
    return into


def numbers(array):
    """Bits, with one pattern for every NaN."""
    wide = widened(array) if array.dtype.itemsize == 2 else array
    return np.where(np.isnan(wide), 0x7FC0, array.view(f"u{array.itemsize}"))


def assert_same(ours, theirs):
    ours = ours.copy_to_host()
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(numbers(ours), numbers(theirs))


class Arrays:
    """A parameter and its states in one of the forms, on the host and on the device."""

    def __init__(self, rng, rule, size, kind, form, shift=0, special=False, number=0):
        self.rule, self.size, self.kind, self.form, self.special = rule, size, kind, form, special
        self.stream = dropout_stream(SEED, number) if form == STOCHASTIC else 0
        self.p = self.drawn(rng)
        self.states = [np.abs(rng.standard_normal(size)).astype("float32") for _ in range(len(OPTIMIZERS[rule].states))]
        if form == SAME:
            self.states = [as_16bit(s, kind) for s in self.states]
        if form == MASTER:
            copy = widened(self.p)
            copy[::3] *= np.float32(1 + 2**-12)  # values that are rounded to it; the others equal it
            copy[::5] += np.float32(1)  # values that are not: somebody has written to p
            self.states.append(copy)
        self.device = [to_device(a, shift) for a in (self.p, *self.states)]

    def drawn(self, rng):
        x = rng.standard_normal(self.size).astype("float32")
        if self.special and self.size:
            odd = [0.0, -0.0, np.inf, -np.inf, np.nan, 6e-8, -3e-5, 1e-39, -1e-40, 65504.0, 3.3e38]
            at = rng.integers(0, self.size, self.size // 2)
            x[at] = rng.choice(np.array(odd, "float32"), len(at))
        return as_16bit(x, self.kind)

    def job(self, g, options, step, device):
        p, *states = self.device if device else (self.p, *self.states)
        return Update(self.rule, p, g, tuple(states), options, step, self.form, self.stream)

    @property
    def target(self):
        p, *states = (see(a).address for a in self.device)
        return BufferUpdate(self.rule, self.kind, self.size, p, states, 0, self.form, self.stream)

    def expect(self, g, options, step, scale=1.0):
        with np.errstate(all="ignore"):
            update_reference([self.job(g, options, step, device=False)], scale)

    def check(self):
        for ours, theirs in zip(self.device, (self.p, *self.states), strict=True):
            assert_same(ours, theirs)


def check(rule, kind, form, size, seed=0, shift=0, special=False, steps=2, **options):
    rng = np.random.default_rng(seed)
    options = {**OPTIMIZERS[rule].options, "lr": 0.05, "weight_decay": 0.1, **options}
    arrays = Arrays(rng, rule, size, kind, form, shift, special)
    for step in range(1, steps + 1):
        g = arrays.drawn(rng)
        given = to_device(g, shift)
        cuda.update([arrays.job(given, options, step, device=True)])
        arrays.expect(g, options, step)
        assert_same(given, g)
        arrays.check()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_equal_the_reference(rule, kind, form):
    for size in (TILE + 13,) if SIMULATED else (0, 1, 7, 8, 9, TILE - 1, TILE, TILE + 1, 5 * TILE + 13):
        check(rule, kind, form, size, seed=size)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "amsgrad"])
def test_bits_with_infinities_nan_and_denormals(rule, kind, form):
    check(rule, kind, form, 2 * TILE + 9, seed=3, special=True, lr=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [1, 3, 4])  # 4: p lies at a multiple of 8 bytes, float32 states at one of 16
def test_bits_of_arrays_that_are_not_aligned(kind, form, shift):
    check("adam", kind, form, TILE + 9, shift=shift)


@drawing(15)
@given(data=st.data())
def test_bits_with_random_rules_options_and_sizes(data):
    rule, kind = data.draw(st.sampled_from(list(OPTIMIZERS))), data.draw(st.sampled_from(list(KINDS)))
    form, size = data.draw(st.sampled_from(FORMS)), data.draw(st.integers(0, 200 if SIMULATED else 100_000))
    options = {"l1": 0.02, "clip_value": 0.5, "maximize": True, "lr": 0.3}
    options = {name: value for name, value in options.items() if data.draw(st.booleans())}
    special, shift = data.draw(st.booleans()), data.draw(st.sampled_from([0, 0, 2]))
    check(rule, kind, form, size, data.draw(st.integers(0, 2**32)), shift, special, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_at_random_goes_by_seed_step_and_element_and_is_right_on_average(kind):
    size, options = 4 * TILE, {**OPTIMIZERS["sgd"].options, "lr": 2.0**-13}
    found = {}
    for number in (0, 1):
        for step in (1, 2):
            p, g = to_device(as_16bit(np.ones(size), kind)), to_device(as_16bit(np.ones(size), kind))
            stream = dropout_stream(SEED, number)
            cuda.update([Update("sgd", p, g, (), options, step, STOCHASTIC, stream)])
            found[number, step] = widened(p.copy_to_host())
    assert len({x.tobytes() for x in found.values()}) == 4
    unit = 2.0**-11 if kind == "float16" else 2.0**-8  # below 1
    part = 2.0**-13 / unit
    for x in found.values():
        assert set(x.tolist()) <= {1.0, 1 - unit}
        assert abs((x < 1).mean() - part) < 5 * math.sqrt(part / size)


def test_forms_and_dtypes_together_and_steps_that_are_skipped_on_the_device():
    """A step after skipped ones has the random draws of its own number."""
    rng = np.random.default_rng(4)
    arrays = [
        Arrays(rng, "adam", size, kind, form, number=number)
        for number, (kind, form, size) in enumerate(
            [(k, f, n) for k in KINDS for f in FORMS for n in (TILE + 3, 5)] + [("bfloat16", STOCHASTIC, 40)]
        )
    ]
    plan = Plan([a.target for a in arrays], gpu_of([see(arrays[0].device[0]).address]))
    options, done = {**OPTIMIZERS["adam"].options, "lr": 0.05}, 0
    flags = to_device(np.array([0.0, 1.0], "float32"))
    for call, bad in enumerate([0, 1, 1, 0, 0, 1, 0], 1):
        gradients = [a.drawn(rng) for a in arrays]
        kept = [to_device(g) for g in gradients]
        guard = Guard(found_inf=see(flags).address + 4 * bad)
        plan.update([see(g).address for g in kept], [call] * len(arrays), [options], guard=guard)
        if not bad:
            done += 1
            for a, g in zip(arrays, gradients, strict=True):
                a.expect(g, options, done)
        for a in arrays:
            a.check()


@pytest.mark.parametrize("kind", KINDS)
def test_norms(kind):
    rng = np.random.default_rng(5)
    gradients = [as_16bit(rng.standard_normal(size), kind) for size in (2 * TILE + 9, 0, 5, TILE)]
    for shift in (0, 1):
        ours = cuda.gradient_norm([to_device(g, shift) for g in gradients])
        assert math.isclose(ours, reference.gradient_norm(gradients), rel_tol=1e-14)
    gradients[0][TILE + 1] = as_16bit(np.array([np.inf]), kind)[0]
    assert cuda.gradient_norm([to_device(g) for g in gradients]) == math.inf


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["clipped", "careful", "scaled"])
def test_clipping_scaling_and_steps_that_are_left_out(kind, way):
    rng = np.random.default_rng(6)
    a = Arrays(rng, "adam", TILE + 9, kind, MASTER)
    plan = Plan([a.target], gpu_of([see(a.device[0]).address]))
    g, options = a.drawn(rng), {**OPTIMIZERS["adam"].options, "lr": 0.05}
    factor = to_device(np.array([512.0], "float32"))
    guard = {
        "clipped": Guard(clip_norm=0.5),
        "careful": Guard(skip_nonfinite=True),
        "scaled": Guard(grad_scale=see(factor).address),
    }[way]
    if way == "careful":
        g[3] = as_16bit(np.array([np.nan]), kind)[0]
    given = to_device(g)
    plan.update([see(given).address], [1], [options], guard=guard)
    if way != "careful":
        norm = plan.norm([see(given).address])
        a.expect(g, options, 1, 0.5 / (norm + 1e-6) if way == "clipped" else 1 / 512)
    a.check()
    assert plan.count_skipped().tolist() == [way == "careful"]


@pytest.mark.parametrize("size", [0, 1, TILE + 13])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_in_float32(kind, size):
    x = as_16bit(np.random.default_rng(7).standard_normal(size), kind)
    ours = cuda.widened(Bits(x) if kind == "bfloat16" else to_device(x, shift=size % 2))
    np.testing.assert_array_equal(ours.copy_to_host(), widened(x))


def test_what_an_array_of_bfloat16_says_of_itself():
    assert see(Bits(np.zeros((2, 3), np.uint16)))[1:4] == ((2, 3), "bfloat16", True)
