"""Arrays of other libraries as parameters, gradients and states: what speaks `__dlpack__`, JAX's arrays among it."""

import copy
import ctypes
import gc
import importlib.util
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastopt as fo
from fastopt import _dlpack
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.optim._parameters import Parameter

from .optimizers import DTYPES, LAYOUTS, drawn, make, snapshot

SHAPES = [(3, 4), (5,), (), (0, 2), (1,), (2, 3, 4)]
# DLPack has no foreign byte order; NumPy before 2.1 exports as below 1.0 and cannot say that an array is read-only.
EXPORTED = [name for name in LAYOUTS if name != "byte-swapped"]
VERSIONED = np.lib.NumpyVersion(np.__version__) >= "2.1.0"


class Exporter:
    """An array that knows nothing but DLPack, 1.0 or what was before; `forge` may change what the capsule says."""

    def __init__(self, array, old=not VERSIONED, forge=None):
        self.array, self.old, self.forge = array, old, forge

    def __dlpack__(self, **asked):
        if self.old and asked:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        capsule = self.array.__dlpack__(**asked)
        if self.forge:
            address = _dlpack._pointer_of(capsule, _dlpack._name_of(capsule))
            managed = None if self.old else _dlpack._Versioned.from_address(address)
            self.forge(managed, managed.tensor if managed else _dlpack._DLTensor.from_address(address))
        return capsule

    def __dlpack_device__(self):
        return 1, 0


def address(array):
    return array.__array_interface__["data"][0]


def wrapped(arrays, **options):
    return [Exporter(array, **options) for array in arrays]


@pytest.mark.parametrize("old", [True, False])
def test_a_view_is_the_array(old):
    old = old or not VERSIONED
    for layout in EXPORTED:
        for shape in SHAPES if layout == "contiguous" else SHAPES[:1]:
            array = LAYOUTS[layout](drawn(shape, "float32"))
            view = _dlpack.view_of("p", Exporter(array, old), in_place=True)
            assert (view.shape, view.dtype, view.flags.writeable) == (array.shape, array.dtype, True)
            if array.size:
                assert (address(view), view.strides) == (address(array), array.strides)


@pytest.mark.around_formulas
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("layout", EXPORTED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bits_are_those_of_numpys_own(rule, dtype, layout, old, backend):
    """Parameters and gradients, in every layout, and either of them NumPy's."""
    shapes = SHAPES if layout == "contiguous" else [(3, 4), (2, 3, 4)]
    for foreign in ("parameters", "gradients", "both"):
        params = [LAYOUTS[layout](np.asarray(drawn(shape, dtype, 1))) for shape in shapes]
        expected = [np.array(p, order="C") for p in params]
        given = wrapped(params, old=old or not VERSIONED) if foreign != "gradients" else params
        ours = make(rule, given, lr=0.05, weight_decay=0.1, backend=backend)
        theirs = make(rule, expected, lr=0.05, weight_decay=0.1, backend="numpy")
        for seed in (2, 3):
            gradients = [LAYOUTS[layout](np.asarray(drawn(shape, dtype, seed))) for shape in shapes]
            assert ours.step(wrapped(gradients) if foreign != "parameters" else gradients)
            theirs.step(gradients)
        assert [p.tobytes() for p in params] == [p.tobytes() for p in expected]
        assert repr(ours.states) == repr(theirs.states)
        assert all(a is b for a, b in zip(ours.param_groups[0]["params"], given, strict=True))


def test_states_may_be_anybodys(backend):
    p, q = np.ones((3, 4)), np.ones((3, 4))
    one, other = fo.Adam(p, backend=backend), fo.Adam(Exporter(q), backend=backend)
    one.step(drawn((3, 4), "float64"))
    saved = one.state_dict()
    entry = saved["state"][0]
    other.load_state_dict({**saved, "state": {0: {n: v if n == "step" else Exporter(v) for n, v in entry.items()}}})
    q[...] = p
    for optimizer in (one, other):
        optimizer.step(drawn((3, 4), "float64", 1))
    assert p.tobytes() == q.tobytes()
    assert all(not np.shares_memory(s, entry[n]) for (s, n) in zip(other.states[0], list(entry)[1:], strict=True))
    with pytest.raises(TypeError, match=r"exp_avg of the state of params must be float64 like params; got float32"):
        other.load_state_dict({**saved, "state": {0: {**entry, "exp_avg": Exporter(np.ones((3, 4), "float32"))}}})


def test_trees_and_groups_of_them():
    a, b, c = np.zeros(2), np.zeros(()), np.zeros((2, 2))
    tree = {"a": Exporter(a), "more": [Exporter(b), c]}
    fo.SGD(tree, lr=1.0).step({"a": np.ones(2), "more": (x for x in (np.ones(()), Exporter(np.ones((2, 2)))))})
    assert (a.tolist(), b.tolist(), c.tolist()) == ([-1, -1], -1, [[-1, -1]] * 2)
    groups = [{"params": (x for x in wrapped([a, b])), "lr": 0.5}, {"params": Exporter(c)}]
    fo.SGD(groups, lr=0.25).step([[None, Exporter(np.ones(()))], np.ones((2, 2))])
    assert (a.tolist(), b.tolist(), c.tolist()) == ([-1, -1], -1.5, [[-1.25, -1.25]] * 2)


def test_memory_lives_as_long_as_its_view():
    array = drawn((1000,), "float64")
    expected, gone = array.copy(), weakref.ref(array)
    view = _dlpack.view_of("p", Exporter(array))[10:]
    del array
    gc.collect()
    assert gone() is not None
    np.testing.assert_array_equal(view, expected[10:])
    del view
    gc.collect()
    assert gone() is None


def test_an_optimizer_keeps_its_parameters_and_nothing_of_gradients():
    p, g = np.zeros(1000), np.ones(1000)
    parameter, gradient = weakref.ref(p), weakref.ref(g)
    optimizer = fo.SGD(Exporter(p), lr=1.0)
    optimizer.step(Exporter(g))
    del p, g
    gc.collect()
    assert gradient() is None
    optimizer.step(np.ones(1000))
    assert (parameter() == -2).all()
    del optimizer
    gc.collect()
    assert parameter() is None


def test_copies_and_pickles_have_arrays_of_their_own():
    p = np.zeros(3)
    optimizer = fo.SGD([Exporter(p)], lr=1.0, momentum=0.5)
    optimizer.step([np.ones(3)])
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (own,) = other.param_groups[0]["params"]
        other.step([np.ones(3)])
        assert (own.array.tolist(), p.tolist()) == ([-2.5] * 3, [-1] * 3)


def test_read_only_arrays_are_gradients_but_not_parameters():
    fixed = np.ones(3)
    fixed.flags.writeable = False
    if not VERSIONED:
        with pytest.raises(TypeError, match="params, a Exporter, does not hand out its memory: .*readonly"):
            fo.SGD(Exporter(fixed))
        return
    with pytest.raises(ValueError, match="params is read-only and cannot be updated in place"):
        fo.SGD(Exporter(fixed))
    p = np.zeros(3)
    fo.SGD(p, lr=1.0).step(Exporter(fixed))
    assert p.tolist() == [-1] * 3


def test_overlaps_with_other_libraries_memory_are_refused(backend):
    whole = np.zeros((4, 4))
    for pair in ([Exporter(whole), whole[1]], [whole[:3], Exporter(whole[2:])], wrapped([whole[:, 1], whole[2]])):
        with pytest.raises(ValueError, match=r"params\[0\] and params\[1\] share memory"):
            fo.SGD(pair)
    fo.SGD([Exporter(whole[::2]), whole[1::2]], backend=backend)
    for given in (Exporter(whole), whole):
        optimizer = fo.Adam(given, backend=backend)
        for gradient in (whole, Exporter(whole), Exporter(whole[::-1]), given):
            with pytest.raises(ValueError, match="grads shares memory with params, which the step changes"):
                optimizer.step(gradient)
    assert not whole.any()


def says(**fields):
    def forge(managed, tensor):
        for name, value in fields.items():
            setattr(managed if name in ("major", "flags") else tensor, name, value)

    return forge


def elsewhere(array):
    """One whose device is asked before its capsule says it."""
    exporter = Exporter(array)
    exporter.__class__ = type(
        "OnDevice", (Exporter,), {"__dlpack_device__": lambda self: (2, 0), "__dlpack__": failing}
    )
    return exporter


def failing(self, **asked):
    raise BufferError("no")


REFUSED = {
    "another device": (lambda a: Exporter(a, forge=says(device_type=2)), TypeError, "on the CPU; .*DLPack's device 2"),
    "no export from there": (elsewhere, TypeError, "must be on the CPU; got a OnDevice on DLPack's device 2"),
    "integers": (lambda a: Exporter(a.view("int32")), TypeError, "must be float.*int32"),
    "complex numbers": (lambda a: Exporter(a.view("complex64")), TypeError, "must be float.*complex64"),
    "flags": (lambda a: Exporter(a.view("bool")), TypeError, "must be float.*bool"),
    "eight bits": (lambda a: Exporter(a, forge=says(code=4, bits=8)), TypeError, "bfloat16; got bfloat8"),
    "unknown numbers": (lambda a: Exporter(a, forge=says(code=10, bits=8)), TypeError, r"got DLPack's \(10, 8, 1\)"),
    "vectors": (lambda a: Exporter(a, forge=says(lanes=4)), TypeError, r"got DLPack's \(2, 32, 4\)"),
    "no memory": (lambda a: Exporter(a, forge=says(data=None)), TypeError, "a Exporter, has no memory"),
    "no capsule": (lambda a: Exporter(type("", (), {"__dlpack__": lambda self, **k: 1})()), TypeError, "not hand out"),
}
if VERSIONED:
    REFUSED["a later DLPack"] = (
        lambda a: Exporter(a, forge=says(major=2)), TypeError, "a Exporter, speaks DLPack 2; at most 1 is known",
    )  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_calls_change_nothing(case, backend):
    bad, error, message = REFUSED[case]
    a, b, wrong = np.zeros(3, "float32"), np.zeros((2, 2), "float32"), np.ones((2, 2), "float32")
    with pytest.raises(error, match=r"params\[1\].*" + message):
        fo.Adam([a, bad(wrong)], backend=backend)
    optimizer = fo.Adam([Exporter(a), b], backend=backend)
    optimizer.step([np.ones(3, "float32"), Exporter(np.ones((2, 2), "float32"))])
    before = snapshot(optimizer, a, b)
    with pytest.raises(error, match=r"grads\[1\].*" + message):
        optimizer.step([np.ones(3, "float32"), bad(wrong)])
    assert snapshot(optimizer, a, b) == before
    assert (wrong == 1).all()


@pytest.mark.skipif(not VERSIONED, reason="NumPy before 2.1 exports capsules without flags")
def test_copies_are_gradients_but_not_parameters():
    with pytest.raises(ValueError, match="params, a Exporter, hands out a copy and cannot be updated in place"):
        fo.SGD(Exporter(np.zeros(3), forge=says(flags=2)))
    p = np.zeros(3)
    fo.SGD(p, lr=1.0).step(Exporter(np.ones(3), forge=says(flags=2)))
    assert p.tolist() == [-1] * 3


def test_capsules_may_omit_strides_and_shapes():
    whole = np.arange(8.0)
    part = _dlpack.view_of("p", Exporter(whole[:6].reshape(2, 3), forge=lambda _, t: setattr(t, "strides", None)))
    assert part.strides == (24, 8)

    def offset(managed, tensor):
        tensor.data, tensor.byte_offset = address(whole), 16

    assert _dlpack.view_of("p", Exporter(whole[2:], forge=offset)).tolist() == whole[2:].tolist()
    pinned = Exporter(whole, forge=says(device_type=3))
    assert address(_dlpack.view_of("p", pinned, in_place=True)) == address(whole)
    shapeless = Exporter(np.array(3.0), forge=says(shape=ctypes.POINTER(ctypes.c_int64)(), strides=None))
    assert _dlpack.view_of("p", shapeless).tolist() == 3.0


def test_memory_that_has_moved_is_noticed(backend):
    p = Exporter(np.zeros((2, 3)))
    optimizer = fo.SGD([np.zeros(2), p], lr=1.0, backend=backend)
    first = p.array
    for other in (np.zeros((2, 3)), first.reshape(3, 2), first.T, first[:1]):
        p.array = other
        with pytest.raises(ValueError, match=r"params\[1\] is no longer where it was .* make a new optimizer"):
            optimizer.step([np.ones(2), np.ones((2, 3))])
        optimizer.step([None, None])
    assert optimizer.steps == 0
    p.array = first[:]
    assert optimizer.step([np.ones(2), np.ones((2, 3))])
    assert (first == -1).all()


def test_optimizers_on_several_threads():
    def train(seed, wrap):
        params = [drawn((n,), "float32", seed) for n in (300, 5)]
        optimizer = fo.Adam([wrap(p) for p in params])
        for step in range(10):
            optimizer.step([wrap(drawn(p.shape, "float32", step)) for p in params])
        return np.concatenate(params)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: train(seed, Exporter), range(6)))
    for seed, ours in enumerate(found):
        np.testing.assert_array_equal(ours, train(seed, np.asarray))


def test_kernels_read_gradients_in_the_layout_of_their_parameters(monkeypatch):
    """The checks of arrays of all sorts take 10 us for each."""
    params = [np.zeros((3, 4), "float32"), np.zeros(5), np.zeros((4, 3)).T, np.zeros((), np.float16)]
    gradients = [drawn(p.shape, "float64", 1).astype(p.dtype) for p in params]
    gradients[2] = np.asfortranarray(gradients[2])
    expected = [p.copy() for p in params]
    fo.SGD(expected, lr=1.0, clip_norm=0.5).step(gradients)
    optimizer = fo.SGD([Exporter(params[0]), params[1], *wrapped(params[2:])], lr=1.0, clip_norm=0.5)
    optimizer.step([None, None, None, None])
    for name in ("check_like", "to_kernel_layout"):
        monkeypatch.setattr(Parameter, name, lambda *args, **more: pytest.fail("checked"))
    optimizer.step([gradients[0], *wrapped(gradients[1:3]), gradients[3]])
    for ours, theirs in zip(params, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_gradients_that_only_kernels_have_read_are_looked_through_for_inf():
    p = np.zeros(3)
    optimizer = fo.SGD(Exporter(p), lr=1.0, momentum=0.9)
    assert optimizer.step(Exporter(np.array([0.0, np.nan, 1.0])), skip_nonfinite=True) is False
    assert optimizer.step(Exporter(np.array([0.0, 1e200, 1.0])), skip_nonfinite=True)  # whose square is infinite
    assert p.tolist() == [0, -1e200, -1]


JAX = """
import sys
import jax
import numpy as np
import fastopt as fo

def refused(error, words, call, *args):
    try:
        call(*args)
    except error as found:
        assert all(word in str(found) for word in words), found
    else:
        raise AssertionError(words)

for backend in ("cpu", "numpy"):
    p = np.zeros((2, 3), "float32")
    optimizer = fo.SGD(p, lr=1.0, backend=backend)
    optimizer.step(jax.numpy.arange(6, dtype="float32").reshape(2, 3))
    assert p.ravel().tolist() == [0, -1, -2, -3, -4, -5]
    fixed = jax.numpy.ones((2, 3), "float32")
    refused(ValueError, ["params is read-only"], fo.SGD, fixed)
    for dtype in ("bfloat16", "int32"):
        refused(TypeError, ["grads must be float32", dtype], optimizer.step, jax.numpy.ones((2, 3), dtype))
    assert (p.ravel().tolist(), optimizer.steps) == ([0, -1, -2, -3, -4, -5], 1)
    assert (fixed == 1).all()
assert "torch" not in sys.modules
"""


def test_jax_arrays_are_gradients_and_never_change():
    """A process of its own, since JAX warns of every fork once it is imported."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    done = subprocess.run([sys.executable, "-c", JAX], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
