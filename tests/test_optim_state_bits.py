"""`state_bits=8`: states as codes of 8 bits, in optimizers on arrays and in networks."""

import copy
import pickle

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.reference.blockwise import dequantized, dynamic_map
from fastopt.optim._coded_state import MIN_ELEMENTS, WRAPPED

LARGE, SMALL = (65, 64), (MIN_ELEMENTS - 1,)
CLASSES = {
    "Adam": (fo.Adam, {}),
    "AdamW": (fo.AdamW, {"weight_decay": 0.1}),
    "SGD": (fo.SGD, {"lr": 0.1, "momentum": 0.9}),
    "Adagrad": (fo.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5}),
    "RMSprop": (fo.RMSprop, {}),
}
# One with two states and one with one; what surrounds the others' formulas repeats these.
FIRST = ("Adam", "RMSprop")
each_class = pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.repeats) for name in CLASSES]
)


def drawn(shape, seed, dtype="f4"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def arrays():
    return [drawn(LARGE, 0), drawn(SMALL, 1)]


def steps(optimizer, params, first, last):
    for seed in range(first, last):
        optimizer.step([drawn(p.shape, 100 + seed, p.dtype) for p in params])


def same(params, others):
    return all(np.array_equal(a, b) for a, b in zip(params, others, strict=True))


@each_class
def test_bits_of_the_compiled_kernels_and_the_reference(name):
    cls, options = CLASSES[name]
    found = []
    for backend in ("cpu", "numpy"):
        params = arrays()
        optimizer = cls(params, state_bits=8, backend=backend, **options)
        steps(optimizer, params, 0, 4)
        found.append([*params, *(array for states in optimizer.states for array in states)])
    assert same(*found)
    assert [array.dtype for array in found[0][2:4]] == [np.uint8, np.float32]


def test_the_option_is_not_ignored(backend):
    params, whole = arrays(), arrays()
    for p, bits in ((params, 8), (whole, 32)):
        steps(fo.Adam(p, lr=0.1, state_bits=bits, backend=backend), p, 0, 3)
    difference = np.abs(params[0] - whole[0])
    assert 1e-6 < difference.max() < 0.05  # of steps of 0.1
    assert np.array_equal(params[1], whole[1])  # a small array's states are whole


def test_states_take_a_byte_each_and_little_more():
    p = np.zeros(10_000, "f4")
    states = fo.Adam(p, state_bits=8, backend="numpy").states[0]
    assert sum(state.nbytes for state in states) <= 2.1 * p.size


def test_first_step_by_hand(backend):
    """After a step from zeros, m = 0.1 g and v = 0.001 g^2: their codes are those of g and g^2 over the largest."""
    g = np.zeros(MIN_ELEMENTS, "f4")
    g[:4] = 1.0, -0.5, 0.0, 1e-3
    p = np.zeros_like(g)
    optimizer = fo.Adam(p, lr=0.5, state_bits=8, backend=backend)
    optimizer.step(g)
    m, m_scale, v, v_scale = optimizer.states[0]
    np.testing.assert_allclose(p[:4], [-0.5, 0.5, 0, -0.5], rtol=1e-4)
    np.testing.assert_allclose([m_scale[0], v_scale[0]], [0.1, 0.001], rtol=1e-6)
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    nearest = [np.abs(signed - u).argmin() for u in (1.0, -0.5, 0.0, 1e-3)]
    assert m[:5].tolist() == [*nearest, 127]
    nearest = [np.abs(unsigned - u).argmin() for u in (1.0, 0.25, 0.0, 1e-6)]
    assert v[:5].tolist() == [*nearest, 0]


def test_a_group_may_keep_32_bits(backend):
    p, q = drawn(LARGE, 0), drawn(LARGE, 0)
    groups = [{"params": [p]}, {"params": [q], "state_bits": 32}]
    optimizer = fo.Adam(groups, state_bits=8, backend=backend)
    assert [states[0].dtype for states in optimizer.states] == [np.uint8, np.float32]
    assert [list(entry)[1] for entry in optimizer.state_dict()["state"].values()] == ["state1", "exp_avg"]


@each_class
def test_bits_may_change_between_steps(name):
    cls, options = CLASSES[name]
    p = [drawn(LARGE, 0)]
    optimizer = cls(p, state_bits=8, backend="cpu", **options)
    steps(optimizer, p, 0, 2)
    codes, scales = (array.copy() for array in optimizer.states[0][:2])
    optimizer.param_groups[0]["state_bits"] = 32
    signed = name != "Adagrad" and name != "RMSprop"
    whole = optimizer.states[0][0].copy()
    assert np.array_equal(whole, dequantized(codes, scales, signed))
    optimizer.param_groups[0]["state_bits"] = 8
    again = dequantized(*optimizer.states[0][:2], signed)
    assert np.abs(again - whole).max() <= 0.008 * scales.max()  # the signed map has no -1
    steps(optimizer, p, 2, 4)


# ---------------------------------------------------------------- state_dict
@each_class
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_training_goes_on_from_a_copy(name, how):
    cls, options = CLASSES[name]
    p = [*arrays(), np.asfortranarray(drawn(LARGE, 2))]
    optimizer = cls(p, state_bits=8, **options)
    steps(optimizer, p, 0, 3)
    if how == "state_dict":
        q = [array.copy("K") for array in p]
        other = cls(q, **options)
        other.load_state_dict(optimizer.state_dict())
    else:
        other = pickle.loads(pickle.dumps(optimizer)) if how == "pickle" else copy.deepcopy(optimizer)
        q = other.param_groups[0]["params"]
    assert other.param_groups[0]["state_bits"] == 8
    steps(optimizer, p, 3, 6)
    steps(other, q, 3, 6)
    assert same(p, q)


def test_entries_have_bitsandbytes_names():
    params = arrays()
    optimizer = fo.Adam(params, state_bits=8, backend="numpy")
    steps(optimizer, params, 0, 2)
    large, small = optimizer.state_dict()["state"].values()
    assert list(large) == ["step", "state1", "qmap1", "absmax1", "state2", "qmap2", "absmax2"]
    assert list(small) == ["step", "state1", "state2"]
    assert (large["state1"].dtype, large["state1"].shape, large["absmax1"].shape) == (np.uint8, LARGE, (17,))
    assert same((large["qmap1"], large["qmap2"]), (dynamic_map(True), dynamic_map(False)))


def test_a_state_dict_without_8_bits_is_as_it_was():
    optimizer = fo.Adam(arrays(), backend="numpy")
    assert "state_bits" not in optimizer.state_dict()["param_groups"][0]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_state_dict_of_another_order_of_memory(order):
    p = [np.array(drawn(LARGE, 0), order=order)]
    optimizer = fo.Adam(p, state_bits=8)
    steps(optimizer, p, 0, 2)
    q = [np.array(p[0], order="F" if order == "C" else "C")]
    other = fo.Adam(q, state_bits=8)
    other.load_state_dict(optimizer.state_dict())
    for one in (optimizer, other):
        one.param_groups[0]["state_bits"] = 32
    for a, b in zip(optimizer.states[0], other.states[0], strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max())


def test_another_map_and_whole_states_are_converted():
    p = [drawn(LARGE, 0)]
    optimizer = fo.Adam(p, state_bits=8, backend="numpy")
    steps(optimizer, p, 0, 2)
    saved = optimizer.state_dict()
    entry = saved["state"][0]
    turned = {**entry, "state1": 255 - entry["state1"], "qmap1": entry["qmap1"][::-1].copy()}
    whole = fo.Adam([p[0].copy()], backend="numpy")
    groups = [{**saved["param_groups"][0], "state_bits": 32}]
    whole.load_state_dict({"param_groups": groups, "state": {0: turned}})
    expected = dequantized(entry["state1"], entry["absmax1"], True)
    assert np.array_equal(whole.states[0][0], expected)
    again = fo.Adam([p[0].copy()], state_bits=8, backend="numpy")
    again.load_state_dict(whole.state_dict())  # of 32 bits: the group's own bits stay
    assert again.param_groups[0]["state_bits"] == 8
    found = dequantized(*again.states[0][:2], True)
    assert np.abs(found - expected).max() <= 0.008 * entry["absmax1"].max()


def test_bitsandbytes_groups_and_wrapped_states(backend):
    """Its state_dict of a step by hand, as since 0.49: arrays in an entry of their own, and other hyper-parameters."""
    codes = np.full(MIN_ELEMENTS, 255, np.uint8)
    blocks = MIN_ELEMENTS // 256
    arrays_of = {
        "state1": codes, "qmap1": dynamic_map(True), "absmax1": np.full(blocks, 0.1, "f4"),
        "state2": codes, "qmap2": dynamic_map(False), "absmax2": np.full(blocks, 1e-3, "f4"),
    }  # fmt: skip
    hyper = {"lr": 0.5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    group = {**hyper, "alpha": 0.0, "t_alpha": None, "t_beta3": None, "params": [0]}
    p = np.zeros(MIN_ELEMENTS, "f4")
    optimizer = fo.Adam(p, state_bits=8, amsgrad=False, maximize=True, backend=backend)
    optimizer.load_state_dict({"state": {0: {"step": 1, WRAPPED: arrays_of}}, "param_groups": [group]})
    assert (optimizer.lr, optimizer.steps) == (0.5, 1)
    assert optimizer.param_groups[0]["maximize"]
    optimizer.param_groups[0]["maximize"] = False
    optimizer.step(np.ones(MIN_ELEMENTS, "f4"))
    np.testing.assert_allclose(p, -0.5, rtol=1e-5)  # the second step by a gradient of 1


# ---------------------------------------------------------------- layouts, rounding, refusals
@pytest.mark.parametrize("layout", ["strided", "swapped", "Fortran"])
def test_arrays_of_any_layout(layout):
    plain = drawn(LARGE, 0)
    p = {
        "strided": lambda: np.repeat(plain, 2, axis=1)[:, ::2],
        "swapped": lambda: plain.astype(">f4"),
        "Fortran": lambda: np.asfortranarray(plain),
    }[layout]()
    q = np.array(plain.T, order="C") if layout == "Fortran" else plain.copy()
    for one, axes in ((p, (0, 1)), (q, (1, 0) if layout == "Fortran" else (0, 1))):
        optimizer = fo.Adam(one, state_bits=8)
        for seed in range(3):
            optimizer.step(drawn(LARGE, seed).transpose(axes).astype("f4"))
    assert np.array_equal(p.T if layout == "Fortran" else p, q)


def test_random_rounding_has_a_seed_and_is_saved(backend):
    def after(**more):
        p = drawn(LARGE, 0)
        optimizer = fo.Adam(p, lr=0.1, state_bits=8, backend=backend, **more)
        for seed in range(3):
            optimizer.step(drawn(LARGE, seed))
        return p, optimizer

    first, optimizer = after(state_rounding="stochastic", seed=1)
    assert np.array_equal(first, after(state_rounding="stochastic", seed=1)[0])
    assert not np.array_equal(first, after(state_rounding="stochastic", seed=2)[0])
    assert not np.array_equal(first, after()[0])
    other = fo.Adam(first.copy(), state_bits=8, backend=backend)
    other.load_state_dict(optimizer.state_dict())
    assert (other.state_rounding, other.seed) == ("stochastic", 1)
    assert "state_rounding='stochastic', seed=1" in repr(other)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fo.Adam(state_bits=16), ValueError, "state_bits must be 8 or 32; got 16"),
        (lambda: fo.Adam(state_bits="8"), TypeError, "state_bits must be 8 or 32; got"),
        (lambda: fo.Adam(state_bits=True), TypeError, "state_bits must be 8 or 32; got"),
        (lambda: fo.Adam(state_rounding="up"), ValueError, "unknown state_rounding 'up'; known: nearest, stochastic"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_gradients_of_rows_are_refused(backend):
    p = drawn(LARGE, 0)
    before = p.copy()
    optimizer = fo.SGD(p, lr=0.1, momentum=0.9, state_bits=8, backend=backend)
    with pytest.raises(TypeError, match="give the group state_bits=32"):
        optimizer.step((np.array([1]), drawn((1, 64), 1)))
    assert np.array_equal(p, before)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"absmax1": np.zeros(3, "f4")}, ValueError, r"shapes \(256,\) and \(17,\)"),
        ({"absmax2": None}, ValueError, "absmax2 of the state of params.* is missing"),
        ({"state1": np.zeros(LARGE, "f4")}, TypeError, "state1 of .* must be uint8"),
        ({"state2": np.zeros((64, 65), np.uint8)}, ValueError, r"must have the shape \(65, 64\)"),
        ({"state3": np.zeros(LARGE, np.uint8)}, ValueError, r"unknown entries \['state3'\]"),
        ({"order": np.array([0, 0])}, ValueError, "order of its 2 axes"),
    ],
)
def test_damaged_states_are_refused_before_anything_changes(change, error, message):
    p = [drawn(LARGE, 0)]
    optimizer = fo.Adam(p, state_bits=8, backend="numpy")
    steps(optimizer, p, 0, 1)
    saved = optimizer.state_dict()
    other = fo.Adam([p[0].copy()], state_bits=8, backend="numpy")
    with pytest.raises(error, match=message):
        other.load_state_dict({**saved, "state": {0: {**saved["state"][0], **change}}})
    assert other.steps == 0
    assert not other.states[0][1].any()
