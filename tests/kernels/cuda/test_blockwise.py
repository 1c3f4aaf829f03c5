"""States as codes of 8 bits on the device: the reference's bits, for every rule, dtype, form and rounding."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_cuda import SIMULATED, Bits, drawing, require_device, to_device, update_reference
from hypothesis import given

require_device()
import fastopt as fo
from fastopt.kernels import cuda
from fastopt.kernels.cuda.optim.plan import Plan
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.reference.blockwise import SIGNS, quantize
from fastopt.kernels.spec import (
    BLOCKWISE,
    BLOCKWISE_RANDOM,
    FORMS,
    MASTER,
    SAME,
    WHOLE,
    BufferUpdate,
    Update,
)
from fastopt.optim._coded_state import MIN_ELEMENTS

pytestmark = pytest.mark.gpu

KINDS = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "bfloat16": np.uint16}
STATEFUL = [rule for rule, row in OPTIMIZERS.items() if row.states]
ROUNDINGS = (BLOCKWISE, BLOCKWISE_RANDOM)


def as_kind(x, kind):
    if kind in ("float32", "float64"):
        return x.astype(kind)
    into = np.zeros(x.shape, KINDS[kind])
    store(x.astype(np.float32), into)
    return into


def as_numbers(array):
    """Bits, with one pattern for every NaN."""
    if array.dtype == np.uint8:
        return array
    wide = widened(array) if array.dtype.itemsize == 2 else array
    return np.where(np.isnan(wide), 0x7FC0, array.view(f"u{array.itemsize}"))


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        found = mine.copy_to_host()
        assert found.dtype == other.dtype
        np.testing.assert_array_equal(as_numbers(found), as_numbers(other))


def drawn(rng, size, kind, special=False):
    x = rng.standard_normal(size)
    if special:
        odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, 65504.0])
        x[rng.integers(0, size, size // 4)] = rng.choice(odd, size // 4)
    return as_kind(x, kind)


def arrays(rng, rule, size, kind="float32", form=SAME, storage=BLOCKWISE):
    """A parameter with its states, on the host; their magnitudes are of several decades."""
    p, states = drawn(rng, size, kind), []
    for sign in SIGNS.get(rule, "s" * len(OPTIMIZERS[rule].states)):
        x = (rng.standard_normal(size) * 10.0 ** rng.uniform(-8, 0, size)).astype(np.float32)
        if storage == WHOLE:
            states.append(np.abs(x).astype(kind))
            continue
        codes, largest = np.zeros(size, np.uint8), np.zeros(-(-size // 256), np.float32)
        quantize(x if sign == "s" else np.abs(x), codes, largest, sign == "s")
        states += [codes, largest]
    if form == MASTER:
        copy = widened(p)
        copy[::3] *= np.float32(1 + 2**-12)
        copy[::5] += np.float32(1)  # somebody has written to p
        states.append(copy)
    return [p, *states]


def device_array(array):
    return Bits(array) if array.dtype == np.uint16 else to_device(array)


def check(rule, kind="float32", form=SAME, storage=BLOCKWISE, size=300, seed=0, special=False, steps=2, **options):
    rng, given = np.random.default_rng(seed), {**OPTIMIZERS[rule].options, **options}
    host = arrays(rng, rule, size, kind, form)
    device = [device_array(array) for array in host]
    for step in range(1, steps + 1):
        g = drawn(rng, size, kind, special)
        here, there = (
            Update(rule, p, own, tuple(states), given, step, form, 77, storage)
            for (p, *states), own in ((device, device_array(g)), (host, g))
        )
        cuda.update([here], 0.5)
        with np.errstate(all="ignore"):
            update_reference([there], 0.5)
    assert_same(device, host)


@pytest.mark.parametrize("storage", ROUNDINGS)
@pytest.mark.parametrize("rule", STATEFUL)
def test_bits_of_every_rule(rule, storage):
    check(rule, storage=storage)


@pytest.mark.parametrize("storage", ROUNDINGS)
@pytest.mark.parametrize(
    ("kind", "form"), [("float64", SAME), *((kind, form) for kind in ("float16", "bfloat16") for form in FORMS)]
)
@pytest.mark.parametrize("rule", ["adam", "momentum", "amsgrad"])
def test_bits_of_every_dtype_and_form(rule, kind, form, storage):
    check(rule, kind, form, storage)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", ["adam", "rmsprop_centered_momentum"])
def test_bits_with_infinities_and_nan(rule, kind):
    check(rule, kind, MASTER if kind == "bfloat16" else SAME, size=520, special=True)


@drawing(8)
@given(
    rule=st.sampled_from(STATEFUL), size=st.integers(1, 1100 if SIMULATED else 300_000), seed=st.integers(0, 2**32),
    storage=st.sampled_from(ROUNDINGS), weight_decay=st.sampled_from([0.0, 0.1]),
)  # fmt: skip
def test_bits_of_any_size(rule, size, seed, storage, weight_decay):
    check(rule, storage=storage, size=size, seed=seed, weight_decay=weight_decay)


def test_arrays_of_all_storages_in_one_call():
    rng, host, device = np.random.default_rng(3), [], []
    for i, size in enumerate((257, 40, 700, 5, 256)):
        storage = (BLOCKWISE, WHOLE, BLOCKWISE_RANDOM)[i % 3]
        p, *states = arrays(rng, "adam", size, storage=storage)
        g = drawn(rng, size, "float32")
        host.append(Update("adam", p, g, tuple(states), OPTIMIZERS["adam"].options, i + 1, SAME, i, storage))
        own = [to_device(array) for array in (p, g, *states)]
        device.append(host[-1]._replace(p=own[0], g=own[1], states=tuple(own[2:])))
    cuda.update(device)
    update_reference(host)
    for here, there in zip(device, host, strict=True):
        assert_same([here.p, *here.states], [there.p, *there.states])


def test_a_step_with_conditions_of_the_device():
    """Gradients divided by a scale on the device, clipped, left divided; and a step that the device skips."""
    rng, size = np.random.default_rng(4), 300
    host = arrays(rng, "adam", size)
    device, g = [to_device(array) for array in host], drawn(rng, size, "float32")
    given, scale, skips = to_device(g), to_device(np.float32([4])), to_device(np.float32([0]))
    addresses = [see(array).address for array in device]
    target = BufferUpdate("adam", "float32", size, addresses[0], addresses[1:], storage=BLOCKWISE)
    plan, options = Plan([target], gpu_of(addresses)), OPTIMIZERS["adam"].options
    norm = float(np.linalg.norm(g.astype(np.float64))) / 4
    guard = cuda.Guard(norm / 2, see(scale).address, see(skips).address, unscales=True)
    plan.update([see(given).address], [1], [options], guard=guard)
    assert plan.last_norm() == pytest.approx(norm)
    assert_same([given], [g / np.float32(4)])
    update_reference([Update("adam", host[0], g, tuple(host[1:]), options, 1, storage=BLOCKWISE)], 1 / 8)
    np.testing.assert_allclose(device[0].copy_to_host(), host[0], rtol=1e-6, atol=1e-6)
    skipping = to_device(np.float32([1]))
    before = [array.copy_to_host() for array in device]
    plan.update([see(given).address], [2], [options], guard=cuda.Guard(found_inf=see(skipping).address))
    assert plan.count_skipped().tolist() == [1]
    assert_same(device, before)


def test_nothing_outside_the_arrays_is_written():
    rng, size = np.random.default_rng(5), 259
    host = arrays(rng, "adam", size)
    rooms = [to_device(np.full(array.size + 64, 7, array.dtype)) for array in (host[0], *host)]
    for room, array in zip(rooms, (host[0], *host), strict=True):
        room[16 : 16 + array.size].copy_to_device(array)
    g, p, *states = (room[16 : 16 + array.size] for room, array in zip(rooms, (host[0], *host), strict=True))
    cuda.update([Update("adam", p, g, tuple(states), OPTIMIZERS["adam"].options, 1, storage=BLOCKWISE)])
    for room, array in zip(rooms, (host[0], *host), strict=True):
        found = room.copy_to_host()
        assert (found[:16] == 7).all()
        assert (found[16 + array.size :] == 7).all()


# ---------------------------------------------------------------- optimizers on arrays
LARGE, SMALL = (MIN_ELEMENTS // 64 + 1, 64), (40,)


def twins(cls=fo.Adam, dtype="float32", **options):
    rng = np.random.default_rng(6)
    host = [rng.standard_normal(shape).astype(dtype) for shape in (LARGE, SMALL)]
    device = [to_device(array) for array in host]
    return [(cls(p, backend=b, state_bits=8, **options), p) for p, b in ((host, "numpy"), (device, "cuda"))]


def steps(pairs, first, last):
    for seed in range(first, last):
        for optimizer, params in pairs:
            rng = np.random.default_rng(100 + seed)
            grads = [rng.standard_normal(shape).astype(params[0].dtype) for shape in (LARGE, SMALL)]
            optimizer.step([to_device(g) for g in grads] if optimizer.backend == "cuda" else grads)


def device_arrays(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def assert_twins(pairs):
    (there, host), (here, device) = pairs
    assert_same(device, host)
    for ours, theirs in zip(here.states, there.states, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (fo.AdamW, {"weight_decay": 0.1}),
        (fo.SGD, {"lr": 0.1, "momentum": 0.9, "clip_value": 0.5}),
        (fo.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5}),
        (fo.RMSprop, {"state_rounding": "stochastic", "seed": 3}),
        (fo.Adam, {"dtype": "float16"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_steps_equal_the_hosts(cls, options):
    pairs = twins(cls, **options)
    steps(pairs, 0, 2)
    assert_twins(pairs)
    states = pairs[1][0].states
    assert (states[0][0].dtype, states[0][1].dtype, states[1][0].dtype) == (np.uint8, np.float32, np.float32)
    assert states[0][0].shape == LARGE


def test_a_state_dict_goes_on_the_device_and_back():
    pairs = twins()
    steps(pairs, 0, 1)
    (there, host), (here, device) = pairs
    saved, other = here.state_dict(), there.state_dict()
    for entry, twin in zip(saved["state"].values(), other["state"].values(), strict=True):
        assert list(entry) == list(twin)
        assert all(np.array_equal(entry[name], twin[name]) for name in twin)
    fresh = fo.Adam(device, backend="cuda", state_bits=8)
    fresh.load_state_dict(other)
    again = fo.Adam(host, backend="numpy", state_bits=8)
    again.load_state_dict(saved)
    pairs = [(again, host), (fresh, device)]
    steps(pairs, 1, 2)
    assert_twins(pairs)
    fresh.load_state_dict(again.state_dict())  # into states that are there
    steps(pairs, 2, 3)
    assert_twins(pairs)


def test_bits_may_change_between_steps():
    pairs = twins()
    for i, bits in enumerate((8, 32, 8)):
        for optimizer, _ in pairs:
            optimizer.param_groups[0]["state_bits"] = bits
        steps(pairs, i, i + 1)
        assert_twins(pairs)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_steps_that_the_device_counts(rounding):
    """The device's count is also that of the draws."""
    (_, host), (here, device) = twins(state_rounding=rounding, seed=1)
    counting = fo.Adam(
        [to_device(array) for array in host], backend="cuda", state_bits=8, state_rounding=rounding, seed=1,
        capturable=True,
    )  # fmt: skip
    steps([(here, device), (counting, device_arrays(counting))], 0, 3)
    codes = [optimizer.states[0][0].copy_to_host().astype(int) for optimizer in (here, counting)]
    assert (np.abs(codes[0] - codes[1]) <= 1).all()  # scalars are computed on the device, within rounding
    assert (codes[0] == codes[1]).mean() > 0.999
    for ours, other in zip(device_arrays(counting), device, strict=True):
        np.testing.assert_allclose(ours.copy_to_host(), other.copy_to_host(), rtol=1e-4, atol=1e-6)
