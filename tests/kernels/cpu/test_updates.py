"""In-place updates: bit for bit those of the reference, for every rule, option, dtype, size and number of threads."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numba import types
from numba.core.ccallback import CFunc
from optimizers import CASES, draw_rule, other

from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.optim import streaming_loops
from fastopt.kernels.cpu.optim.updates import TILE, are_streamed, update_kernel
from fastopt.kernels.cpu.runtime.compile import OPTIONS
from fastopt.kernels.cpu.runtime.frontend import prepare
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.cpu.runtime.storage import STORES
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import MASTER, SAME, STOCHASTIC, BufferUpdate, Update

SIZES = [0, 1, 31, 32, 33] + ([] if INTERPRETED else [TILE - 1, TILE, TILE + 1, 3 * TILE + 5])


def bits(array):
    return array.view(f"u{array.itemsize}")


def arrays(rng, rule, size, dtype, special=False):
    p, *states = (rng.standard_normal(size).astype(dtype) for _ in range(1 + len(OPTIMIZERS[rule].states)))
    if special and size:
        tiny = np.finfo(dtype).tiny
        odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, tiny, tiny / 4, -tiny / 8, np.finfo(dtype).max], dtype)
        p[rng.integers(0, size, size // 3)] = rng.choice(odd, size // 3)
    return p, tuple(np.abs(state) if special is False else state * 0 for state in states)


def assert_same_bits(rule, options, size, dtype, seed, steps=3, special=False):
    rng = np.random.default_rng(seed)
    p, states = arrays(rng, rule, size, dtype, special)
    q, others = p.copy(), tuple(state.copy() for state in states)
    for step in range(1, steps + 1):
        g, _ = arrays(rng, rule, size, dtype, special)
        kept = g.copy()
        cpu.update([Update(rule, p, g, states, options, step)])
        with np.errstate(all="ignore"):
            reference.update([Update(rule, q, g, others, options, step)])
        np.testing.assert_array_equal(bits(g), bits(kept), err_msg="the gradient was changed")
    for ours, theirs in zip((p, *states), (q, *others), strict=True):
        # NaN has many bit patterns; which one comes out of inf - inf is the processor's business.
        numbers = ~np.isnan(theirs)
        np.testing.assert_array_equal(np.isnan(ours), ~numbers)
        np.testing.assert_array_equal(bits(ours)[numbers], bits(theirs)[numbers])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rule", "option"), CASES)
def test_bits_equal_the_reference(rule, option, dtype):
    options = dict(OPTIMIZERS[rule].options)
    if option:
        options["weight_decay"] = 0.1 * (option == "decoupled")  # which is about it
        options[option] = other(rule, option)
    for size in SIZES:
        assert_same_bits(rule, options, size, dtype, seed=size)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_with_infinities_nan_and_denormals(rule, dtype):
    assert_same_bits(rule, OPTIMIZERS[rule].options, 257, dtype, seed=1, special=True)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_bits_with_random_rules_options_and_sizes(data):
    rule, options = draw_rule(data)
    size = data.draw(st.integers(0, 70 if INTERPRETED else 70_000))
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    assert_same_bits(rule, options, size, dtype, data.draw(st.integers(0, 2**32)), steps=2)


@pytest.mark.parametrize(("rule", "option"), [(rule, option) for rule, option in CASES if option])
def test_every_option_makes_a_difference(rule, option):
    def run(options):
        rng = np.random.default_rng(0)
        p, states = arrays(rng, rule, size, "float64")
        for step in (1, 2, 3):
            cpu.update([Update(rule, p, arrays(rng, rule, size, "float64")[0], states, options, step)])
        return p

    size = 500  # Lion's p only changes where the sign of an element does
    base = dict(OPTIMIZERS[rule].options)
    if option in ("dampening", "nesterov"):
        base["momentum"] = 0.9
    if option in ("decoupled", "decoupled_weight_decay"):
        base["weight_decay"] = 0.1
    assert not np.array_equal(run(base), run({**base, option: other(rule, option)}))


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_do_not_depend_on_the_number_of_threads(rule, threads):
    results = []
    for n in (1, 2, 4):
        rng = np.random.default_rng(5)
        p, states = arrays(rng, rule, 200_001, "float32")
        g = rng.standard_normal(200_001).astype("float32")
        with threads(n):
            cpu.update([Update(rule, p, g, states, OPTIMIZERS[rule].options, 1)])
        results.append([p, *states])
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(bits(a), bits(b))


def test_many_arrays_of_different_dtypes_rules_and_sizes_in_one_call():
    rng = np.random.default_rng(3)
    sizes = [0, 1, 33, 5, 0, 40] if INTERPRETED else [0, 1, 33, TILE, 0, 2 * TILE + 1, 7]
    jobs, twins = [], []
    for i, size in enumerate(sizes * 2):
        rule, dtype = list(OPTIMIZERS)[i % len(OPTIMIZERS)], ("float32", "float64")[i % 2]
        p, states = arrays(rng, rule, size, dtype)
        g, _ = arrays(rng, rule, size, dtype)
        jobs.append(Update(rule, p, g, states, OPTIMIZERS[rule].options, i + 1))
        twins.append(jobs[-1]._replace(p=p.copy(), states=tuple(s.copy() for s in states)))
    cpu.update(jobs)
    reference.update(twins)
    for job, twin in zip(jobs, twins, strict=True):
        for a, b in zip((job.p, *job.states), (twin.p, *twin.states), strict=True):
            np.testing.assert_array_equal(bits(a), bits(b))


def test_nothing_outside_the_array_is_written():
    memory = np.full(300, 7.0, "float32")
    p, m, v = memory[10:110].reshape(10, 10), memory[120:180], memory[190:290]
    before = memory.copy()
    m = np.zeros_like(p)
    cpu.update([Update("adam", p, np.ones_like(p), (m, np.zeros_like(p)), OPTIMIZERS["adam"].options, 1)])
    changed = memory != before
    assert changed[10:110].all()
    assert not changed[:10].any()
    assert not changed[110:].any()
    assert v is not None


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_states_never_become_denormal(rule):
    options = {**OPTIMIZERS[rule].options, "weight_decay": 0.0}
    for fraction in ("beta1", "beta2", "alpha", "momentum"):
        if fraction in options:
            options[fraction] = 0.5  # so that 300 steps are a long time
    p, states = arrays(np.random.default_rng(0), rule, 40, "float32")
    g = np.full_like(p, 0.1)
    for step in range(1, 302):
        cpu.update([Update(rule, p, g, states, options, step)])
        g[...] = 0
        for state in states:
            assert not ((state != 0) & (np.abs(state) < np.finfo("float32").tiny)).any()


# ---------------------------------------------------------------- arrays larger than the caches
ZEN5 = streaming_loops.AHEAD_BYTES["znver5"]
STREAMED = [rule for rule, row in OPTIMIZERS.items() if len(row.states) + 2 in ZEN5]


@pytest.fixture
def on_zen5(monkeypatch):
    """Kernels of loops as if for Zen 5, whatever processor this is, and for arrays of any size."""
    if INTERPRETED:
        pytest.skip("interpreted kernels do not prefetch")
    monkeypatch.setattr(streaming_loops, "microarchitecture", lambda: "znver5")
    monkeypatch.setattr(streaming_loops, "STREAMED_BYTES", 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", STREAMED)
def test_loops_that_prefetch_have_the_same_bits(rule, dtype, on_zen5):
    row = OPTIMIZERS[rule]
    kernel = update_kernel(row.rule, len(row.states), dtype, streamed=True)
    assert kernel is not update_kernel(row.rule, len(row.states), dtype)
    ahead, block = (size // np.dtype(dtype).itemsize for size in (ZEN5[len(row.states) + 2], 4 * 64))
    options = {**row.options, "weight_decay": 0.1, "l1": 0.01, "clip_value": 1.5}
    for size in (0, 1, ahead - 1, ahead + block - 1, ahead + block, ahead + 3 * block + 5, 20_001):
        assert_same_bits(rule, options, size, dtype, seed=size, steps=2)
        assert_same_bits(rule, row.options, size, dtype, seed=size, steps=2, special=True)


@pytest.mark.parametrize(("rule", "dtype"), [("sgd", "float64"), ("adam", "float32"), ("amsgrad", "float64")])
def test_loops_that_prefetch_ask_for_every_line_of_every_array_once_and_compare_no_addresses(rule, dtype):
    if INTERPRETED:
        pytest.skip("interpreted kernels do not prefetch")
    row = OPTIMIZERS[rule]
    loop = streaming_loops.streaming_loop(row.rule, len(row.states), STORES[dtype], 2048)
    prepare()
    code = CFunc(loop, ((types.int64,) * 8, types.void), {}, OPTIONS)
    code.compile()
    ir = code._library.get_llvm_str()
    assert ir.count("call void @llvm.prefetch") == (len(row.states) + 2) * streaming_loops.BLOCK_LINES
    assert "vector.body" in ir
    assert "vector.memcheck" not in ir


def test_rules_of_fewer_arrays_other_processors_and_16_bits_have_the_ordinary_loop(on_zen5, monkeypatch):
    def loops(rule, dtype):
        row = OPTIMIZERS[rule]
        return {update_kernel(row.rule, len(row.states), dtype, streamed=streamed).name for streamed in (False, True)}

    assert loops("momentum", "float32") == {"update_momentum_float32"}
    assert loops("adam", "bfloat16") == {"update_adam_bfloat16"}
    assert loops("adam", "float32") == {"update_adam_float32", "update_adam_float32_ahead2048"}
    monkeypatch.setattr(streaming_loops, "microarchitecture", lambda: "haswell")
    assert loops("adam", "float32") == {"update_adam_float32"}


def test_arrays_are_streamed_if_together_they_are_larger_than_the_caches():
    def target(elements, dtype="float32", form=SAME, states=2):
        return BufferUpdate("adam", dtype, elements, 64, (64,) * states, 0, form)

    most = streaming_loops.STREAMED_BYTES
    assert not are_streamed([])
    for size, options in [
        (16, {}), (32, {"dtype": "float64"}), (8, {"dtype": "bfloat16"}),
        (16, {"dtype": "bfloat16", "form": MASTER, "states": 3}), (12, {"dtype": "float16", "form": STOCHASTIC}),
    ]:  # fmt: skip
        assert not are_streamed([target(most // size, **options)])
        assert are_streamed([target(most // size + 1, **options)])
    assert not are_streamed([target(most // 32), target(most // 32)])
    assert are_streamed([target(most // 32), target(most // 32 + 1)])
