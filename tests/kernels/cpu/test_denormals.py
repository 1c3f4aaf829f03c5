"""Denormal numbers count as zero while kernels calculate, with the reference's bits; threads keep their own setting."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest
from llvmlite import binding, ir
from optimizers import OTHER_OPTIONS

from fastopt.kernels import cpu, denormals, reference
from fastopt.kernels.cpu.dense import layer as dense
from fastopt.kernels.cpu.dense import losses
from fastopt.kernels.cpu.optim import norm, plan, sparse_rows
from fastopt.kernels.cpu.optim.updates import TILE
from fastopt.kernels.cpu.runtime import primitives, teams
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, address_of, view
from fastopt.kernels.cpu.runtime.storage import from_half_by_bits, widen_float16
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, OPTIMIZERS, dropout_stream
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.spec import FORMS, MASTER, SAME, Batches, DenseSpec, DropoutSpec, LossSpec, OptimizerSteps, Update

pytestmark = pytest.mark.skipif(denormals.setting() is None, reason="nothing is flushed on this system")
compiled = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread")

SIZE = 70 if INTERPRETED else 4 * TILE + 5
BACKENDS = {"cpu": cpu, "numpy": reference}


def bits(array):
    return array.view(f"u{array.itemsize}")


def assert_same_bits(ours, theirs):
    for a, b in zip((ours.p, *ours.states), (theirs.p, *theirs.states), strict=True):
        numbers = ~np.isnan(b) if a.dtype.kind == "f" else np.ones(b.shape, bool)
        np.testing.assert_array_equal(np.isnan(a) if a.dtype.kind == "f" else ~numbers, ~numbers)
        np.testing.assert_array_equal(bits(a)[numbers], bits(b)[numbers])


# ---------------------------------------------------------------- gradients
SIZES = {"float32": [1, 1e-18, 1e-20, 1e-22, 1e-37, 1e-40], "float64": [1, 1e-150, 1e-154, 1e-160, 1e-300, 1e-310]}


def numbers_of(rng, size, dtype, scale):
    """Numbers of one order of magnitude; of every one in and around the denormal range where `scale` is None."""
    if scale is not None:
        return (rng.standard_normal(size) * scale).astype(dtype)
    word = np.dtype(f"u{np.dtype(dtype).itemsize}")
    digits = {"float32": 23, "float64": 52}[dtype]
    drawn = rng.integers(0, 3 << digits, size, word)  # exponents 0 (denormal), 1 and 2
    drawn |= rng.integers(0, 2, size, word) << word.type(8 * word.itemsize - 1)
    found = drawn.view(dtype)
    found[rng.random(size) < 0.2] = 1
    return found


def job_of(rule, dtype, seed, scale, options):
    rng = np.random.default_rng(seed)
    p, *states = (numbers_of(rng, SIZE, dtype, scale) for _ in range(1 + len(OPTIMIZERS[rule].states)))
    for name, state in zip(OPTIMIZERS[rule].states, states, strict=True):
        if "sq" in name or name in ("sum", "acc_delta"):
            np.abs(state, out=state)
    return Update(rule, p, p, tuple(states), {**OPTIMIZERS[rule].options, **options}, 1)


def twin_of(job):
    return job._replace(p=job.p.copy(), states=tuple(state.copy() for state in job.states))


@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_of_updates_equal_the_reference(rule, dtype, threads, monkeypatch):
    monkeypatch.setattr(plan, "UPDATE_ELEMENTS", 64)
    known = OPTIMIZERS[rule].options
    other = {name: OTHER_OPTIONS[name] for name in ("weight_decay", "l1") if name in known}
    small = {name: 0.0 for name in ("eps", "eps_root") if name in known}
    counts = [1, 2, 4]
    cases = [(scale, counts[i % 3]) for i, scale in enumerate(SIZES[dtype])] + [(None, count) for count in counts]
    for scale, count in cases:
        for options in ({}, small, other):
            job = job_of(rule, dtype, 1, scale, options)
            twin = twin_of(job)
            for step in (1, 2, 3):
                g = numbers_of(np.random.default_rng(step), SIZE, dtype, scale)
                kept = g.copy()
                with threads(count):
                    cpu.update([job._replace(g=g, step=step)])
                reference.update([twin._replace(g=g, step=step)])
                np.testing.assert_array_equal(bits(g), bits(kept), err_msg="the gradient was changed")
                assert_same_bits(job, twin)
            for state in job.states:
                assert not ((bits(np.abs(state)) != 0) & (bits(np.abs(state)) < bits(np.finfo(dtype).tiny))).any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_of_16_bit_updates_equal_the_reference(rule, kind, form):
    rng = np.random.default_rng(2)

    def as_16bit(scale):
        out = np.zeros(SIZE, np.float16 if kind == "float16" else np.uint16)
        if scale is None:  # any below 1
            return rng.integers(0, 0x3C00 if kind == "float16" else 0x3F80, SIZE, np.uint16).view(out.dtype)
        store((rng.standard_normal(SIZE) * scale).astype("f4"), out)
        return out

    for scale in (1.0, 1e-4, 1e-6, 1e-20, 1e-38, None):
        p = as_16bit(scale)
        states = [np.abs(numbers_of(rng, SIZE, "float32", scale)) for _ in OPTIMIZERS[rule].states]
        if form == SAME:
            states = [as_16bit(scale) for _ in states]
            for state in states:
                bits(state)[...] &= np.uint16(0x7FFF)
        if form == MASTER:
            states.append(widened(p))
        job = Update(rule, p, p, tuple(states), OPTIMIZERS[rule].options, 1, form, dropout_stream(7, 3))
        twin = twin_of(job)
        for step in (1, 2):
            g = as_16bit(scale)
            cpu.update([job._replace(g=g, step=step)])
            reference.update([twin._replace(g=g, step=step)])
            assert_same_bits(job, twin)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_denormal_float16_parameters_are_not_lost(name, form):
    p = np.arange(1, 2048, dtype=np.uint16).view(np.float16)  # all positive ones that are denormal, and some above
    kept, states = p.copy(), (p.astype("f4"),) if form == MASTER else ()
    update = Update("sgd", p, np.zeros_like(p), states, OPTIMIZERS["sgd"].options, 1, form, dropout_stream(1, 1))
    BACKENDS[name].update([update])
    np.testing.assert_array_equal(bits(p), bits(kept))
    BACKENDS[name].update([update._replace(g=np.full_like(p, 2.0**-14), options={**update.options, "lr": 2.0**-10})])
    np.testing.assert_array_equal(p, kept - np.float16(2.0**-24))


@pytest.mark.parametrize("function", [widen_float16, from_half_by_bits])
def test_float16_is_widened_as_numpy_does(function, monkeypatch, tmp_path):
    monkeypatch.setattr(Kernel, "names", {})
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))

    def widen(work, step, rank, num_ranks):
        x, y = view(work, step, np.uint16), view(rank, step, np.float32)
        for i in range(step):
            y[i] = function(x[i])

    x = np.arange(0, 2**16, 37 if INTERPRETED else 1).astype(np.uint16)
    y = np.zeros(x.size, "f4")
    Kernel(widen, "test_widen")(address_of(x), x.size, address_of(y), 1)
    expected = x.view(np.float16).astype("f4")
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(bits(y)[numbers], bits(expected)[numbers])


@pytest.mark.parametrize("name", BACKENDS)
def test_rows(name):
    rng = np.random.default_rng(4)
    indices, values = rng.integers(0, 9, 40), numbers_of(rng, (40, 3), "float32", None)
    found = BACKENDS[name].sum_rows(indices, values)
    expected = np.zeros((9, 3), "f4")
    for i in range(9):
        listed = values[indices == i]
        expected[i] = listed[0]
        for row in listed[1:]:
            expected[i] = flushing_sum(expected[i], row)
    np.testing.assert_array_equal(found[0], np.unique(indices))
    np.testing.assert_array_equal(bits(found[1]), bits(expected[found[0]]))


@denormals.flushed
def flushing_sum(a, b):
    return a + b


@pytest.mark.parametrize("rule", ["adam", "momentum", "rmsprop", "adagrad"])
def test_bits_of_updated_rows_equal_the_reference(rule):
    rng = np.random.default_rng(5)
    table = [numbers_of(rng, (20, 7), "float32", None) for _ in range(1 + len(OPTIMIZERS[rule].states))]
    job = Update(rule, table[0], table[0], tuple(map(np.abs, table[1:])), OPTIMIZERS[rule].options, 1)
    twin, chosen = twin_of(job), np.array([0, 1, 2, 7, 19])
    for step in (1, 2, 3):
        g = numbers_of(rng, (5, 7), "float32", None)
        cpu.update_rows(job._replace(g=g, step=step), chosen)
        reference.update_rows(twin._replace(g=g, step=step), chosen)
    assert_same_bits(job, twin)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms(name, dtype):
    small = 1e-40 if dtype == "float32" else 1e-310
    assert BACKENDS[name].gradient_norm([np.full(SIZE, small, dtype)]) == 0
    assert BACKENDS[name].gradient_norm([np.full(SIZE, small, dtype), np.array([3, 4], dtype)]) == 5


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("rule", [rule for rule in OPTIMIZERS if "eps" in OPTIMIZERS[rule].options])
def test_small_gradients_make_no_infinite_step_without_eps(rule, name):
    """Their squares are flushed, and would leave nothing to divide by."""
    options = {**OPTIMIZERS[rule].options, "lr": 0.01}
    options |= {option: 0.0 for option in ("eps", "eps_root", "l1", "weight_decay") if option in options}
    for dtype, scale in (("float32", 1e-20), ("float32", 1e-30), ("float64", 1e-180)):
        p = np.ones(5, dtype)
        states = tuple(np.zeros(5, dtype) for _ in OPTIMIZERS[rule].states)
        for step in (1, 2, 3):
            g = np.array([1, -1, 1, -1, 0.5], dtype) * np.dtype(dtype).type(scale)
            BACKENDS[name].update([Update(rule, p, g, states, options, step)])
        centered_or_not = np.isfinite(p).all() or "centered" in rule  # whose variance may be 0 whatever g is
        assert centered_or_not, (dtype, scale, p)


# ---------------------------------------------------------------- networks
def network(name, dtype):
    module, rng = BACKENDS[name], np.random.default_rng(0)
    x, y = rng.standard_normal((40, 6)).astype(dtype), rng.integers(0, 3, 40)
    params = [rng.standard_normal((6, 8)).astype(dtype), np.zeros(8, dtype), rng.standard_normal((8, 3)).astype(dtype)]
    layers = [DenseSpec(6, 8, "tanh"), DropoutSpec(0.2), DenseSpec(8, 3, bias=False)]
    made = module.Network(layers, params, dtype, LossSpec("sparse_categorical_crossentropy"), ["accuracy"])
    return made, x, y, params


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-20, 1e-30, 1e-44])
def test_training_on_small_numbers_agrees_with_the_reference(dtype, scale):
    found = []
    for name in BACKENDS:
        made, x, y, params = network(name, dtype)
        batches = Batches(x * np.dtype(dtype).type(scale), y, np.arange(40), 10)
        states = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
        totals = made.train(batches, OptimizerSteps("adam", states, OPTIMIZERS["adam"].options, np.full(4, 1e-3)), 3)
        found.append([totals.losses, *params])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- the thread's own setting
FENV = ctypes.c_uint32 * 8 if sys.platform.startswith("linux") and denormals.MACHINE in denormals.X86 else None
OWN = {"default": 0, "flushes results": 0x8000, "flushes operands": 0x40, "rounds up": 0x4000}  # bits of MXCSR


def control():
    """MXCSR, without what arithmetic notes there."""
    state = FENV()
    ctypes.PyDLL(None).fegetenv(state)
    return state[7] & ~0x3F


def entries(name):
    """Every verb of a backend, as calls."""
    module, rng = BACKENDS[name], np.random.default_rng(1)
    x, w, b = (rng.standard_normal(shape).astype("f4") for shape in ((300, 20), (20, 70), (70,)))
    y, z = np.empty((300, 70), "f4"), np.empty((300, 70), "f4")
    gradients = [np.empty_like(a) for a in (x, w, b)]
    options = OPTIMIZERS["adam"].options
    jobs = [Update("adam", np.ones(SIZE, "f4"), np.ones(SIZE, "f4"), (np.zeros(SIZE, "f4"), np.zeros(SIZE, "f4")),
                   options, 1)]  # fmt: skip
    table = Update("sgd", np.ones((9, 5), "f4"), np.ones((3, 5), "f4"), (), OPTIMIZERS["sgd"].options, 1)
    made, data, targets, params = network(name, "float32")
    states = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
    batches = Batches(data, targets, np.arange(40), 10)
    yield "update", lambda: module.update(jobs)
    yield "update_rows", lambda: module.update_rows(table, np.array([1, 2, 5]))
    yield "sum_rows", lambda: module.sum_rows(rng.integers(0, 9, SIZE), np.ones((SIZE, 20), "f4"))
    yield "gradient_norm", lambda: module.gradient_norm([job.g for job in jobs])
    for activation in ACTIVATIONS:
        yield activation, lambda activation=activation: module.dense_forward(x, w, b, activation, y, z)
        yield f"{activation} backward", lambda activation=activation: module.dense_backward(
            y, x, w, z, activation, *gradients)  # fmt: skip
    yield "softmax", lambda: module.activate("softmax", y, z)
    for loss, row in LOSSES.items():
        t = rng.integers(0, 70, 300) if row.targets == "labels" else np.ones((300, 70), "f4")
        yield loss, lambda loss=loss, t=t: module.loss(LossSpec(loss), y, t, z)
    steps = OptimizerSteps("adam", states, options, np.full(4, 1e-3))
    yield "train", lambda: made.train(batches, steps, 0)
    yield "clipped", lambda: made.train(batches, steps._replace(clip_norm=1.0), 0)
    yield "evaluate", lambda: made.evaluate(data, targets)
    yield "predict", lambda: made.predict(data)


@pytest.mark.skipif(FENV is None, reason="the registers of x86 are looked at, by glibc's structure")
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("name", BACKENDS)
def test_every_call_leaves_the_thread_as_it_was(name, num_ranks, own, threads, monkeypatch):
    for module, least in ((plan, "UPDATE_ELEMENTS"), (norm, "UPDATE_ELEMENTS"), (sparse_rows, "UPDATE_ELEMENTS"),
                          (dense, "CALL_FLOPS"), (losses, "ELEMENTS_PER_THREAD")):  # fmt: skip
        monkeypatch.setattr(module, least, 1)
    library, before, mine = ctypes.PyDLL(None), FENV(), FENV()
    calls = list(entries(name))
    library.fegetenv(before)
    library.fegetenv(mine)
    mine[7] |= OWN[own]
    try:
        library.fesetenv(mine)
        expected = control()
        left = {}
        with threads(num_ranks):
            for what, call in calls:
                call()
                left[what] = control()
    finally:
        library.fesetenv(before)
    assert left == dict.fromkeys(left, expected)
    assert len(left) > 30


def works():
    """True if this thread's own arithmetic has denormals: Python's, and NumPy's on one number and on many."""
    many = np.full(1000, np.finfo("f4").tiny) * np.float32(0.25)
    return bool((bits(many) != 0).all() and (bits(many * np.float32(2)) != bits(many)).all() and 1e-310 * 0.5 > 0)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_users_own_arithmetic_has_denormals_right_after_a_call(name, threads, monkeypatch):
    monkeypatch.setattr(plan, "UPDATE_ELEMENTS", 1)
    with threads(3):
        for _, call in entries(name):
            call()
            assert works()


def test_progress_is_told_under_the_users_own_setting(monkeypatch):
    for name in BACKENDS:
        monkeypatch.setattr(reference.network, "PROGRESS_SECONDS", 0)
        made, x, y, params = network(name, "float32")
        states, heard = [()] * len(params), []
        steps = OptimizerSteps("sgd", states, OPTIMIZERS["sgd"].options, np.full(4, 0.1))
        batches = Batches(x, y, np.arange(40), 10)
        made.train(batches, steps, 0, lambda done, loss, heard=heard: heard.append(works()))
        assert heard
        assert all(heard)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_thread_as_it_was(kind, monkeypatch):
    def fail(*args):
        assert not works()
        raise kind

    monkeypatch.setitem(reference.UPDATES, "sgd", fail)
    with pytest.raises(kind):
        reference.update([Update("sgd", np.ones(3), np.ones(3), (), OPTIMIZERS["sgd"].options, 1)])
    assert works()


def in_new_process(code, **environment):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=os.environ | environment,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(__import__("signal"), "setitimer"), reason="this system has no such signals")
def test_an_interrupt_at_any_moment_leaves_the_thread_as_it_was():
    in_new_process("""
import random, signal
import numpy as np
from fastopt.kernels import reference
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Update
def interrupt(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
tiny = np.full(8, np.finfo('f4').tiny)
p = np.ones(4, 'f4')
job = Update('sgd', p, p.copy(), (), OPTIMIZERS['sgd'].options, 1)
came = 0
for _ in range(2000):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-4))
        while True:
            reference.update([job])
            reference.gradient_norm([p])
    except KeyboardInterrupt:
        came += 1
    assert ((tiny * np.float32(0.5)).view('u4') != 0).all(), came
assert came == 2000
""")


def test_numpy_may_be_told_to_raise_errors():
    in_new_process("""
import numpy as np, fastopt as fo
np.seterr(all='raise')
for backend in ('numpy', 'cpu'):
    p = np.ones(3, 'f4')
    fo.Adam(p, backend=backend).step(np.full(3, 1e-20, 'f4'))
    assert np.isfinite(p).all()
x = np.linspace(-9, 9, 60, dtype='f4').reshape(20, 3)
model = fo.Sequential([fo.Dense(4, 'gelu'), fo.Dense(2, 'softmax')], backend='numpy')
model.compile('adam', 'sparse_categorical_crossentropy')
model.fit(x * np.float32(1e-20), np.arange(20) % 2, verbose=0)
""")


def test_numpy_does_not_learn_wrong_constants():
    """It works out the smallest denormal number of a dtype when it is first asked about it."""
    in_new_process("""
import numpy as np, fastopt as fo
for dtype in ('f4', 'f8'):
    p = np.ones(3, dtype)
    fo.Adam(p, backend='numpy').step(p.copy())
    assert np.finfo(dtype).smallest_subnormal > 0
    assert np.finfo(dtype).smallest_subnormal.view('u' + dtype[1]) == 1
assert np.finfo(np.float16).smallest_subnormal > 0
""")


@compiled
@pytest.mark.parametrize(
    "layer", ["tbb", *(pytest.param(name, marks=pytest.mark.repeats) for name in ("omp", "default"))]
)
def test_threads_of_the_layer_keep_denormals_for_others(layer):
    if layer == "omp":
        pytest.importorskip("numba.np.ufunc.omppool", exc_type=ImportError)
    in_new_process("""
import numba, numpy as np
from fastopt.kernels import cpu
from fastopt.kernels.cpu.runtime import launch
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Update
@numba.njit(parallel=True)
def halve(x):
    for i in numba.prange(x.size):
        x[i] *= np.float32(0.5)
launch.set_num_threads(2)
p = np.ones(200_000, 'f4')
for step in range(1, 30):
    cpu.update([Update('adam', p, p.copy(), (np.zeros_like(p), np.zeros_like(p)), OPTIMIZERS['adam'].options, step)])
    x = np.full(300_000, np.finfo('f4').tiny)
    halve(x)
    assert (x.view('u4') != 0).all()
""", **({} if layer == "default" else {"NUMBA_THREADING_LAYER": layer}))  # fmt: skip


def test_teams_flush_on_every_thread(monkeypatch, tmp_path):
    monkeypatch.setattr(Kernel, "names", {})
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))

    def halve(work, step, rank, num_ranks):
        x = view(work + 64 * rank, 16, np.float32)
        for i in range(16):
            x[i] = x[i] * np.float32(0.5)

    kernel, x = Kernel(halve, "test_halve"), np.full((4, 16), np.finfo("f4").tiny)
    teams.run_team(kernel, address_of(x), 4)
    assert not bits(x).any()
    x[...] = np.finfo("f4").tiny
    teams.run_team(kernel, address_of(x), 1)
    assert not bits(x)[0].any()
    assert x[1:].all()


# ---------------------------------------------------------------- where it cannot be
def test_without_the_c_librarys_help_the_reference_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(denormals, "setting", lambda: None)
    p = np.array([np.finfo("f4").tiny / 4])
    reference.update([Update("sgd", p, np.zeros_like(p), (), OPTIMIZERS["sgd"].options, 1)])
    assert bits(p)[0]


@pytest.mark.parametrize("words", [(8, 0), (8, 3)])
@pytest.mark.skipif(FENV is None, reason="the structure of x86's glibc is taken for another")
def test_a_structure_that_is_not_as_expected_is_noticed(words):
    before = control()
    assert not denormals._flushes(denormals._of_fenv(*words))
    assert control() == before
    assert denormals._flushes(denormals.setting())


@compiled
@pytest.mark.parametrize(
    ("machine", "triple", "expected"),
    [
        ("x86_64", "x86_64-unknown-linux-gnu", ("stmxcsr", "ldmxcsr")),
        ("aarch64", "aarch64-unknown-linux-gnu", ("FPCR", "FPCR")),
        ("riscv64", "x86_64-unknown-linux-gnu", ()),
    ],
)
def test_code_for_processors(machine, triple, expected):
    """The register is read, written before the call of the kernel, and written after it."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module()
    module.triple = triple
    call = ir.FunctionType(ir.VoidType(), [])
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [call.as_pointer()]), "entered")
    builder = ir.IRBuilder(function.append_basic_block())
    before = primitives.read_control(builder, machine)
    primitives.write_control(builder, builder.or_(before, ir.IntType(64)(1 << 24)), machine)
    builder.call(function.args[0], [])
    primitives.write_control(builder, before, machine)
    builder.ret_void()
    try:
        target = binding.Target.from_triple(triple).create_target_machine(opt=3)
    except RuntimeError as error:
        pytest.skip(str(error))
    code = target.emit_assembly(binding.parse_assembly(str(module)))
    lines = [line.strip() for line in code.splitlines()]
    called = next(i for i, line in enumerate(lines) if line.startswith(("call", "blr")))
    if not expected:
        assert not any("mxcsr" in line or "FPCR" in line for line in lines)
        return
    read, write = expected
    touching = [i for i, line in enumerate(lines) if read in line or write in line]
    assert len(touching) == 3
    assert touching[1] < called < touching[2]
