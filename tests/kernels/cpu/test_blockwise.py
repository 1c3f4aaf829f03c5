"""States as codes of 8 bits: the map, the nearest codes, and updates that have the reference's bits."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from optimizers import first_of_its_kind

from fastopt.kernels import costs, cpu, reference
from fastopt.kernels.cpu.optim import blockwise_loops, blockwise_vectors
from fastopt.kernels.cpu.optim.updates import TILE
from fastopt.kernels.cpu.runtime import launch
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.formulas import OPTIMIZERS, dropout_stream
from fastopt.kernels.formulas.blockwise import BLOCK, SIGNED, UNSIGNED, blocks_of
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.reference.blockwise import SIGNS, dynamic_map, quantize
from fastopt.kernels.spec import (
    BLOCKWISE,
    BLOCKWISE_RANDOM,
    FORMS,
    MASTER,
    SAME,
    STOCHASTIC,
    Update,
)

SIZES = [1, BLOCK - 1, BLOCK, BLOCK + 1] + ([] if INTERPRETED else [TILE + BLOCK + 17, 2 * TILE])


def described_map(signed):
    """The map of the paper: in decade e, from 10^(e-7) to 10^(e-6), the middles of 2^e (or 2^(e+1)) equal parts."""
    numbers = [0.0, 1.0]
    for e in range(7):
        count = 2**e if signed else 2 ** (e + 1)
        parts = [10.0 ** (e - 6) * (0.1 + 0.9 * (k + 0.5) / count) for k in range(count)]
        numbers += parts + ([-part for part in parts] if signed else [])
    return np.sort(numbers)


@pytest.mark.parametrize("book", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
def test_the_map_is_the_papers(book):
    expected = described_map(book.signed)
    assert len(book.values) == len(expected) == 256
    np.testing.assert_allclose(book.values, expected, rtol=3e-7)
    np.testing.assert_array_equal(book.values, dynamic_map(book.signed))


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_is_bitsandbytes_own(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    np.testing.assert_array_equal(dynamic_map(signed), functional.create_dynamic_map(signed=signed).numpy())


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_the_nearest_numbers(signed):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(0, 1, 3000) ** power for power in (1, 4, 12)]).astype("f4")
    x = np.concatenate([x, dynamic_map(signed)[dynamic_map(signed) >= 0]])
    x = np.where(rng.random(len(x)) < 0.5, -x, x) if signed else x
    x[0] = 1  # the largest of the first block; that of others is near to 1
    codes, largest = np.zeros(len(x), np.uint8), np.zeros(blocks_of(len(x)), "f4")
    quantize(x, codes, largest, signed)
    scale = np.repeat(largest, BLOCK)[: len(x)].astype(float)
    numbers = dynamic_map(signed).astype(float)
    distance = np.abs(x[:, None] - numbers * scale[:, None])
    best = distance.min(axis=1)
    found = distance[np.arange(len(x)), codes]
    near = found <= best * (1 + 1e-4) + 1e-9 * scale
    if not signed:  # squares above 0 are never rounded to 0
        assert (codes[x > 0] > 0).all()
        near |= codes == 1
    assert near.all()
    np.testing.assert_array_equal(largest, [np.abs(x[i : i + BLOCK]).max() for i in range(0, len(x), BLOCK)])


def test_random_codes_are_right_on_average():
    x = np.full(BLOCK * 64, 0.3, "f4")
    x[::BLOCK] = 1
    values = dynamic_map(True)
    below, above = values[values <= 0.3].max(), values[values > 0.3].min()
    job = made("momentum", len(x), "float32", SAME, BLOCKWISE_RANDOM)
    options = {**OPTIMIZERS["momentum"].options, "lr": 0.0}
    cpu.update([job._replace(g=x, options=options)])
    codes, largest = job.states
    found = values[codes[np.arange(len(x)) % BLOCK > 0]]
    assert (largest == 1).all()
    assert set(found.tolist()) == {below.item(), above.item()}
    deviation = (above - below) / 2 / np.sqrt(len(found))
    assert abs(found.astype(float).mean() - 0.3) < 4 * deviation


# ---------------------------------------------------------------- updates
def kept_as(x, dtype):
    if dtype in ("float32", "float64"):
        return np.array(x, dtype)
    out = np.zeros(np.shape(x), np.float16 if dtype == "float16" else np.uint16)
    store(np.ascontiguousarray(x, np.float32), out)
    return out


def made(rule, size, dtype, form, storage, seed=0):
    p = kept_as(np.random.default_rng(seed).standard_normal(size), dtype)
    states = []
    for _ in OPTIMIZERS[rule].states:
        states += [np.zeros(size, np.uint8), np.zeros(blocks_of(size), "f4")]
    states += [widened(p)] if form == MASTER else []
    stream = dropout_stream(7, 3)
    return Update(rule, p, p, tuple(states), OPTIMIZERS[rule].options, 1, form, stream, storage)


def gradient(rng, size, dtype, special):
    """Numbers of many magnitudes, with whole blocks of zeros; special: with infinity, NaN and denormal numbers."""
    g = rng.standard_normal(size) ** 3 * 10.0 ** rng.integers(-18, 3)
    g[(np.arange(size) // BLOCK) % 3 == 2] *= rng.integers(0, 2)
    if special:
        g[rng.integers(0, size, 3)] = rng.choice([np.inf, -np.inf, np.nan, 1e-40, 3e38], 3)
    return kept_as(g, dtype)


def compare(rule, size, dtype, form, storage, seed, steps=3, special=False, scale=1.0):
    rng = np.random.default_rng(seed)
    job = made(rule, size, dtype, form, storage, seed)
    twin = job._replace(p=job.p.copy(), states=tuple(state.copy() for state in job.states))
    for step in range(1, steps + 1):
        g = gradient(rng, size, dtype, special)
        kept = g.copy()
        cpu.update([job._replace(g=g, step=step)], scale)
        reference.update([twin._replace(g=g, step=step)], scale)
        np.testing.assert_array_equal(g.view("u1"), kept.view("u1"), err_msg="the gradient was changed")
        for a, b in zip((job.p, *job.states), (twin.p, *twin.states), strict=True):
            if a.dtype == np.uint16:
                a, b = widened(a), widened(b)
            numbers = np.ones(a.shape, bool) if a.dtype == np.uint8 else ~np.isnan(b)
            if a.dtype != np.uint8:
                np.testing.assert_array_equal(np.isnan(a), ~numbers)
            np.testing.assert_array_equal(a[numbers].view("u1"), b[numbers].view("u1"))


CASES = [
    ("adam", "float32", SAME, BLOCKWISE),
    ("momentum", "float32", SAME, BLOCKWISE_RANDOM),
    ("rmsprop_centered_momentum", "bfloat16", STOCHASTIC, BLOCKWISE_RANDOM),
    ("adam", "float64", SAME, BLOCKWISE),
    ("adam", "float16", MASTER, BLOCKWISE),
]
# Rules and ways of storing do not know of each other: a rule that is not the first with as many states has one way.
WAYS = [
    (dtype, form, storage)
    for dtype in ("float32", "float64", "float16", "bfloat16")
    for form in (FORMS if dtype in ("float16", "bfloat16") else (SAME,))
    for storage in (BLOCKWISE, BLOCKWISE_RANDOM)
]
EVERY = [
    (rule, *way)
    for number, (rule, row) in enumerate(OPTIMIZERS.items())
    if row.states
    for way in (WAYS if first_of_its_kind(rule) else [WAYS[number % len(WAYS)]])
]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_bits_equal_the_reference(case):
    for size in SIZES:
        compare(*case[:1], size, *case[1:], seed=size, scale=0.5)
    compare(*case[:1], 2 * BLOCK + 9, *case[1:], seed=1, special=True)


@pytest.mark.repeats
@pytest.mark.parametrize("case", EVERY, ids="-".join)
def test_bits_of_every_rule_and_every_way_of_storing(case):
    for size in SIZES[2:]:
        compare(*case[:1], size, *case[1:], seed=size)


@pytest.mark.repeats
@settings(deadline=None)
@given(st.integers(1, 3000), st.sampled_from(CASES), st.integers(0, 2**32), st.booleans())
def test_bits_of_random_sizes(size, case, seed, special):
    compare(*case[:1], size, *case[1:], seed=seed, steps=2, special=special)


def test_the_cost_of_an_update_by_hand():
    """Two blocks: 4 bytes of g, 8 of p, and of each state a byte and a 256th of a float32, read and written."""
    cost = costs.coding(costs.apply(512, "adam", 4), 512, "adam", 4)
    assert cost.bytes == 512 * (4 + 8 + 4) + 2 * 2 * 2 * 4


def test_every_rules_signs_are_known():
    """The reference has its own table of states that are never negative."""
    from fastopt.kernels.formulas.blockwise import codebook_of

    for rule, row in OPTIMIZERS.items():
        signs = "".join("s" if codebook_of(state).signed else "u" for state in row.states)
        assert SIGNS.get(rule, "s" * len(row.states)) == signs


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch):
    found = set()
    for threads in (1, 2, 3):
        monkeypatch.setattr(launch, "_threads", threads)
        monkeypatch.setattr("fastopt.kernels.cpu.optim.plan.UPDATE_ELEMENTS", 1)
        job = made("adam", 9 * TILE + 5, "float32", SAME, BLOCKWISE)
        g = gradient(np.random.default_rng(3), 9 * TILE + 5, "float32", False)
        cpu.update([job._replace(g=g)])
        found.add(b"".join(array.tobytes() for array in (job.p, *job.states)))
    assert len(found) == 1


@pytest.mark.repeats
@pytest.mark.skipif(blockwise_vectors.UNIT is None, reason="the processor has no such vectors")
@pytest.mark.parametrize("rule", ["adam", "momentum", "amsgrad"])
def test_bits_without_vectors_of_avx512(rule, monkeypatch):
    """Other processors take the loops that LLVM makes of plain code."""
    monkeypatch.setattr(blockwise_vectors, "UNIT", None)
    monkeypatch.setattr(Kernel, "names", {})  # its name is that of the usual loop
    plain = blockwise_loops._blockwise_kernel.__wrapped__(rule, "float32", SAME, BLOCKWISE, False)
    plain.name += "_plain"
    monkeypatch.setattr("fastopt.kernels.cpu.optim.updates.blockwise_kernel", lambda *args: plain)
    compare(rule, 3 * BLOCK + 5, "float32", SAME, BLOCKWISE, seed=2)
