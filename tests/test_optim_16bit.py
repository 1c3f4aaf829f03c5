"""Arrays of 16 bits in the optimizers: float32 states, and a master copy or rounding at random."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.cpu.runtime import launch
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.formulas.optimizers import CLASSES
from fastopt.kernels.reference.bits16 import widened
from fastopt.optim._bits16 import to_float32

from .helpers_16bit import FINE, FORMS, KINDS, SAME_ORDER, SHAPES, as_16bit, given, laid_out, numbers, values
from .optimizers import LAYOUTS, drawn, make, snapshot


def run(rule, kind, form, layout, backend, shapes, steps=3, **more):
    params = [laid_out(layout, numbers(shape, kind, 1)) for shape in shapes]
    optimizer = make(rule, list(map(given, params)), lr=0.05, weight_decay=0.1, backend=backend, **FORMS[form], **more)
    for seed in range(2, 2 + steps):
        optimizer.step([given(laid_out(layout, numbers(shape, kind, seed))) for shape in shapes])
    return optimizer, params


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_are_the_same_in_every_layout_and_backend(rule, kind, form):
    turned = [(3, 4), (2, 3, 4)]
    _, first = run(rule, kind, form, "contiguous", "numpy", turned)
    for layout in LAYOUTS:
        shapes = SHAPES if layout == "contiguous" else turned
        (a, by_reference), (b, compiled) = (run(rule, kind, form, layout, name, shapes) for name in ("numpy", "cpu"))
        assert values(by_reference) == values(compiled)
        assert repr(a.states) == repr(b.states)
        if shapes is turned and (form == "master" or layout in SAME_ORDER):
            assert values(compiled) == values(first)
        for states, p in zip(b.states, compiled, strict=True):
            assert len(states) == len(OPTIMIZERS[rule].states) + (form == "master")
            assert all((state.dtype, state.shape) == (np.float32, p.shape) for state in states)


@pytest.mark.around_formulas
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_a_master_copy_is_float32s_parameter_and_is_rounded_once(rule, kind, backend):
    start = numbers((40,), kind, 1)
    p, twin = start.copy(), widened(start)
    ours = make(rule, given(p), lr=0.05, weight_decay=0.1, backend=backend)
    theirs = make(rule, twin, lr=0.05, weight_decay=0.1, backend=backend)
    for seed in range(2, 12):
        g = numbers((40,), kind, seed)
        ours.step(given(g))
        theirs.step(widened(g))
    assert ours.states[0][-1].tobytes() == twin.tobytes()
    np.testing.assert_allclose(widened(p).astype(float), twin, rtol=2.0 ** -FINE[kind], atol=2.0**-25)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_a_step_is_float64s_within_one_rounding(rule, kind, form):
    p, g = numbers((50,), kind, 1), numbers((50,), kind, 2)
    twin = widened(p).astype(float)
    make(rule, given(p), lr=0.05, weight_decay=0.1, **FORMS[form]).step(given(g))
    make(rule, twin, lr=0.05, weight_decay=0.1, backend="numpy").step(widened(g).astype(float))
    units = 1 if form == "master" else 2  # half of a distance, or all of it; and what float32 has lost
    np.testing.assert_allclose(widened(p).astype(float), twin, rtol=units * 2.0 ** -FINE[kind] * 1.01, atol=1e-6)


# ---------------------------------------------------------------- what they are for
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_small_updates_are_not_lost(kind, backend):
    """Steps of 2^-13 from 1 down, each a fraction of the distance to the next number."""
    steps, size = 256, 400 if INTERPRETED or backend == "numpy" else 4000
    ones, expected = as_16bit(np.ones(size), kind), 1 - 256 * 2.0**-13
    results = {}
    for name, more in FORMS.items():
        p = ones.copy()
        optimizer = fo.SGD(given(p), lr=2.0**-13, backend=backend, **more)
        for _ in range(steps):
            optimizer.step(given(ones))
        results[name] = widened(p).astype(float)
    assert (results["master"] == expected).all()
    # Every step has a variance of at most 2^-13 times the distance below 1, and the errors are independent.
    deviation = np.sqrt(steps * 2.0**-13 * 2.0 ** -FINE[kind] / size)
    assert abs(results["stochastic"].mean() - expected) < 4 * deviation
    assert results["stochastic"].std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind, backend):
    def bits(seed, arrays=1):
        params = [as_16bit(np.ones(50), kind) for _ in range(arrays)]
        optimizer = fo.SGD(list(map(given, params)), lr=1e-3, master_weights=False, seed=seed, backend=backend)
        for _ in range(2):
            optimizer.step([given(as_16bit(np.ones(50), kind)) for _ in params])
        return [p.tobytes() for p in params]

    assert bits(1) == bits(1)
    assert len({*bits(1), *bits(2), *bits(2**64 - 1)}) == 3
    first, second = bits(1, arrays=2)
    assert [first] == bits(1)
    assert first != second
    assert bits(1, arrays=3)[:2] == [first, second]


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_the_number_of_threads(kind, form, monkeypatch):
    results = set()
    for threads in (1, 2, 4):
        monkeypatch.setattr(launch, "_threads", threads)
        optimizer, params = run("adam", kind, form, "contiguous", "cpu", [(200_001,), (3,)], clip_norm=1.0)
        assert optimizer.grad_norm > 1
        results.add((optimizer.grad_norm, *(p.tobytes() for p in params)))
    assert len(results) == 1


def written(kind, form, backend, write):
    p = as_16bit(np.ones(6), kind)
    optimizer = fo.SGD(given(p), lr=2.0**-13, backend=backend, **FORMS[form])
    optimizer.step(given(as_16bit(np.ones(6), kind)))
    write(p)
    optimizer.step(given(as_16bit(np.zeros(6), kind)))
    return widened(p).tolist(), optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_values_written_to_an_array_between_steps_stay(kind, backend):
    def write(p):
        p[:3] = as_16bit([2.0, -3.0, 0.0], kind)

    found, optimizer = written(kind, "master", backend, write)
    assert found == [2, -3, 0, 1, 1, 1]
    assert optimizer.states[0][0].tolist() == [2, -3, 0] + 3 * [1 - 2.0**-13]
    assert written(kind, "stochastic", backend, write)[0][:3] == [2, -3, 0]


# ---------------------------------------------------------------- everything else that optimizers do
@pytest.mark.parametrize("form", FORMS)
def test_dtypes_and_groups_may_be_mixed(form, backend):
    arrays = [drawn((6,), "float32"), numbers((6,), "float16"), drawn((6,), "float64"), numbers((6,), "bfloat16")]
    alone = [a.copy() for a in arrays]
    groups = [{"params": [given(a) if a.itemsize == 2 else a for a in arrays[:2]]}, {"params": arrays[2:3], "lr": 0.5}]
    optimizer = fo.Adam(groups, lr=0.1, backend=backend, **FORMS[form])
    optimizer.add_param_group({"params": [given(arrays[3])], "lr": lambda step: 0.25})
    optimizer.step([[a.copy() if a.dtype == np.float32 else given(a.copy()) for a in alone[:2]], [alone[2]],
                    [given(alone[3].copy())]])  # fmt: skip
    for i, (a, lr) in enumerate(zip(alone, (0.1, 0.1, 0.5, 0.25), strict=True)):
        one = [a if n == i else np.zeros(1) for n in range(4)]  # at its own number
        own = fo.Adam([given(x) if x.itemsize == 2 else x for x in one], lr=lr, backend=backend, **FORMS[form])
        own.step([(given(x.copy()) if x.itemsize == 2 else x.copy()) if n == i else None for n, x in enumerate(one)])
        assert arrays[i].tobytes() == a.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_options_of_a_step(kind, backend):
    p, g = as_16bit([0.0, 0.0], kind), as_16bit([30.0, -40.0], kind)
    optimizer = fo.SGD(given(p), lr=1.0, clip_norm=1.0, backend=backend)
    assert optimizer.step(given(g), grad_scale=2.0)
    assert (optimizer.grad_norm, values([g])) == (25.0, [[30, -40]])
    np.testing.assert_allclose(widened(p), [-0.6, 0.8], rtol=2.0 ** -FINE[kind])
    before = snapshot(optimizer, p)
    for bad in (np.inf, -np.inf, np.nan):
        assert not optimizer.step(given(as_16bit([bad, 0.0], kind)), skip_nonfinite=True)
    assert not optimizer.step(given(g), found_inf=1.0)
    assert snapshot(optimizer, p) == before
    large = np.array([1e300])  # whose square overflows, while nothing is inf
    mixed = fo.SGD([given(p), large], lr=1.0, backend=backend)
    assert mixed.step([given(g), large.copy()], skip_nonfinite=True)
    assert not mixed.step([given(as_16bit([np.inf, 0.0], kind)), np.array([1e300])], skip_nonfinite=True)
    bounded = fo.SGD(given(p), lr=1.0, clip_value=0.5, l1=0.25, backend=backend)
    p[...] = as_16bit([1.0, -1.0], kind)
    bounded.step(given(g))
    assert values([p]) == [[0.25, -0.25]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_resuming_gives_the_same_bits(rule, kind, form, backend):
    whole, half = ([laid_out("fortran", numbers((3, 4), kind)), numbers((4,), kind)] for _ in range(2))

    def steps(optimizer, seeds):
        for seed in seeds:
            optimizer.step([given(numbers((3, 4), kind, seed)), given(numbers((4,), kind, seed))])

    optimizer = make(rule, list(map(given, whole)), lr=0.05, backend=backend, **FORMS[form])
    steps(optimizer, range(3))
    saved = optimizer.state_dict()
    for a, b in zip(half, whole, strict=True):
        a[...] = b
    assert ("master" in saved["state"][0]) == (form == "master")
    assert all(e["master"].shape == (3, 4) for e in [saved["state"][0]] if form == "master")
    steps(optimizer, range(3, 6))
    other = make(rule, list(map(given, half)), lr=0.5, backend=backend, master_weights=form == "master")
    other.load_state_dict(saved)
    assert other.seed == FORMS[form].get("seed", 0)
    steps(other, range(3, 6))
    assert [a.tobytes() for a in half] == [a.tobytes() for a in whole]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_and_pickles(duplicate, form, backend):
    p = numbers((3, 4), "float16")
    optimizer = fo.Adam([p], lr=0.05, backend=backend, **FORMS[form])
    optimizer.step([numbers((3, 4), "float16", 1)])
    twin, other = duplicate((p, optimizer))
    assert (other.master_weights, other.seed, repr(other)) == (
        optimizer.master_weights,
        optimizer.seed,
        repr(optimizer),
    )
    for one in (optimizer, other):
        one.step([numbers((3, 4), "float16", 2)])
    assert p.tobytes() == twin.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_16_bits_and_no_master_copy_are_as_torch_saves_them(kind, backend):
    p = numbers((3, 4), kind)
    m, v = numbers((3, 4), kind, 1), as_16bit(np.abs(drawn((3, 4), "float32", 2)), kind)
    optimizer = fo.Adam(given(p), backend=backend)
    group = optimizer.state_dict()["param_groups"][0]
    optimizer.step(given(numbers((3, 4), kind, 3)))
    entry = {"step": np.array(7.0, np.float32), "exp_avg": given(m), "exp_avg_sq": given(v)}
    optimizer.load_state_dict({"state": {0: entry}, "param_groups": [group]})
    for state, expected in zip(optimizer.states[0], (m, v, p), strict=True):
        assert state.dtype == np.float32
        np.testing.assert_array_equal(state, widened(expected))
        assert not np.shares_memory(state, expected)


# ---------------------------------------------------------------- what is refused
WRONG = {
    "float32 gradients": (lambda k: np.ones(3, np.float32), TypeError, "grads must be {kind} like params; got float32"),
    "the other kind": (
        lambda k: given(as_16bit(np.ones(3), "bfloat16" if k == "float16" else "float16")),
        TypeError,
        "grads must be {kind} like params; got {other}",
    ),
    "bits": (lambda k: np.ones(3, np.uint16), TypeError, "grads must be {kind} like params; got uint16"),
    "shape": (
        lambda k: given(as_16bit(np.ones(4), k)),
        ValueError,
        r"must have the shape \(3,\) of params; got \(4,\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_refused_calls_change_nothing(kind, case, backend):
    bad, error, message = WRONG[case]
    p = numbers((3,), kind)
    optimizer = fo.Adam(given(p), backend=backend)
    optimizer.step(given(numbers((3,), kind, 1)))
    before = snapshot(optimizer, p)
    with pytest.raises(error, match=message.format(kind=kind, other=KINDS[kind == "float16"])):
        optimizer.step(bad(kind))
    with pytest.raises(ValueError, match="grads shares memory with params"):
        optimizer.step(given(p))
    assert snapshot(optimizer, p) == before
    with pytest.raises(TypeError, match=f"must be float32 like params; got {kind}"):
        fo.SGD(np.ones(3, np.float32)).step(given(p))


def test_refusals_of_loading(backend):
    p = numbers((3,), "float16")
    optimizer = fo.Adam(p, backend=backend)
    optimizer.step(numbers((3,), "float16", 1))
    saved, before = optimizer.state_dict(), snapshot(optimizer, p)
    entry = saved["state"][0]
    for name in ("master", "exp_avg"):
        for wrong, message in (
            (np.ones(3), "must be float32, or float16 like params; got float64"),
            (given(as_16bit(np.ones(3), "bfloat16")), "must be float32, or float16 like params; got bfloat16"),
        ):
            with pytest.raises(TypeError, match=f"{name} of the state of params {message}"):
                optimizer.load_state_dict({**saved, "state": {0: {**entry, name: wrong}}})
    with pytest.raises(ValueError, match="has the unknown entries .'master'."):
        fo.Adam(np.ones(3), backend=backend).load_state_dict(saved)
    stochastic = fo.Adam(p, backend=backend, master_weights=False)
    with pytest.raises(ValueError, match="has a master copy, which is of no use with master_weights=False"):
        stochastic.load_state_dict(saved)
    del entry["master"]
    for seed, error in ((-1, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match="seed must be"):
            stochastic.load_state_dict({**saved, "param_groups": [{**saved["param_groups"][0], "seed": seed}]})
    assert (snapshot(optimizer, p), stochastic.steps, stochastic.seed) == (before, 0, 0)
    stochastic.load_state_dict(saved)
    assert stochastic.steps == 1


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"master_weights": 1}, TypeError, "master_weights must be True or False; got 1"),
        ({"master_weights": None}, TypeError, "master_weights must be True or False; got None"),
        ({"seed": -1}, ValueError, "seed must be at least 0; got -1"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number; got 0.5"),
    ],
)
@pytest.mark.parametrize("cls", [getattr(fo, name) for name in CLASSES])
def test_arguments(cls, more, error, message):
    with pytest.raises(error, match=message):
        cls(np.ones(2), **more)
    made = cls(np.ones(2, np.float16), master_weights=False, seed=5)
    assert (made.master_weights, made.seed) == (False, 5)
    assert "master_weights=False, seed=5" in repr(made)
    assert "master_weights" not in repr(cls(np.ones(2)))


def test_bits_of_bfloat16_are_no_parameter():
    for wrong in (np.ones(3, np.uint16), np.zeros(3, "V2"), np.ones(3, "c8")):
        with pytest.raises(TypeError, match="params must be float32, float64, float16 or bfloat16; got "):
            fo.Adam(wrong)
    with pytest.raises(TypeError, match="x must be float32 or float64; got float16"):
        fo.dense_forward(np.ones((1, 2), np.float16), np.ones((2, 2)))


def test_no_other_library_is_imported():
    script = (
        "import sys, numpy as np, fastopt as fo\n"
        "fo.Adam(np.ones(3, np.float16), backend='numpy').step(np.ones(3, np.float16))\n"
        "assert not {'torch', 'ml_dtypes', 'jax', 'numba'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("shape", [(), (0,), (65536,)])
@pytest.mark.parametrize("dtype", ["float16", "uint16"])
def test_the_hosts_float32_of_16_bits_is_the_references(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).astype(np.uint16).reshape(shape).view(dtype)
    found, expected = to_float32(array), widened(array)
    assert (type(found), found.shape, found.dtype) == (np.ndarray, shape, np.float32)
    assert found.tobytes() == expected.tobytes()
