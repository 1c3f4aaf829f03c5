"""Optimizers: every rule in every layout, structures, changing hyper-parameters, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.conventions import CONVENTIONS
from fastopt.kernels.formulas import DOMAINS, OPTIMIZERS

from .optimizers import DTYPES, LAYOUTS, MAKE, drawn, make, snapshot

CLASSES = [getattr(fo, name) for name in CONVENTIONS]


def reference(rule, p, gradients, **more):
    """The parameters after steps on contiguous copies by the reference."""
    p = np.array(p, p.dtype.newbyteorder("="), order="C")
    optimizer = make(rule, p, backend="numpy", **more)
    for g in gradients:
        optimizer.step(np.array(g, p.dtype, order="C"))
    return p


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_layouts_give_the_same_bits(rule, dtype, layout, backend):
    start = drawn((3, 4, 5), dtype)
    gradients = [drawn(start.shape, dtype, seed) for seed in (1, 2, 3)]
    expected = reference(rule, start, gradients, lr=0.05, weight_decay=0.1)
    for gradient_layout in {"contiguous", layout}:
        p = LAYOUTS[layout](start)
        optimizer = make(rule, p, lr=0.05, weight_decay=0.1, backend=backend)
        for g in gradients:
            laid = LAYOUTS[gradient_layout](g)
            before = laid.tobytes()
            optimizer.step(laid)
            assert laid.tobytes() == before
        assert p.dtype == LAYOUTS[layout](start).dtype
        np.testing.assert_array_equal(p, expected, strict=layout != "byte-swapped")
        for states in optimizer.states:
            assert [s.shape for s in states] == [p.shape] * len(OPTIMIZERS[rule].states)
            assert {s.dtype for s in states} <= {np.dtype(dtype)}


@pytest.mark.parametrize("layout", ["gaps", "reversed", "part of a larger array"])
def test_memory_around_a_view_is_left_alone(layout, backend):
    p = LAYOUTS[layout](np.ones((4, 6)))
    whole = p
    while whole.base is not None:
        whole = whole.base
    inside = np.zeros(whole.shape, bool)
    inside[tuple(slice(0, n * (m // n), m // n) for n, m in zip(p.shape, whole.shape, strict=True))] = True
    if layout == "part of a larger array":
        inside[...] = False
        inside[:4] = True
    fo.SGD(p, lr=1.0, backend=backend).step(np.ones_like(p))
    np.testing.assert_array_equal(whole, np.where(inside, 0.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_scalars_and_empty_arrays(rule, dtype, backend):
    scalar, empty, hollow = np.array(2.0, dtype), np.empty(0, dtype), np.empty((3, 0), dtype)
    optimizer = make(rule, [scalar, empty, hollow], backend=backend)
    optimizer.step([2 * scalar, np.empty(0, dtype), np.empty((3, 0), dtype)])  # 2 * scalar is no array
    np.testing.assert_array_equal(scalar, reference(rule, np.array(2.0, dtype), [np.array(4.0, dtype)]))
    assert scalar != 2
    assert optimizer.states[2] == () or optimizer.states[2][0].shape == (3, 0)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_shape_strides_and_values(data):
    rule = data.draw(st.sampled_from(list(OPTIMIZERS)))
    dtype = data.draw(st.sampled_from(DTYPES))
    whole = np.zeros(data.draw(st.lists(st.integers(0, 5), max_size=4)), dtype)
    cuts = [slice(None, None, data.draw(st.sampled_from([1, 1, 2, -1, -2]))) for _ in whole.shape]
    p = whole[(*cuts, ...)].transpose(data.draw(st.permutations(range(whole.ndim))))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    special = data.draw(st.sampled_from([0.0, 1e-30, 1e-40, -1e-40, 1e30, np.inf, np.nan]))
    p[...] = rng.standard_normal(p.shape)
    g = np.where(rng.random(p.shape) < 0.2, special, rng.standard_normal(p.shape)).astype(dtype)
    expected = reference(rule, p, [g, -g])
    optimizer = make(rule, p, backend="numpy")
    optimizer.step(g)
    optimizer.step(-g)
    np.testing.assert_array_equal(p, expected)


# ---------------------------------------------------------------- hyper-parameters

# For every hyper-parameter a value off its default, with what else must be set for it to matter.
OFF = {
    "lr": (0.3, {}),
    "momentum": (0.5, {}),
    "dampening": (0.5, {"momentum": 0.9}),
    "nesterov": (True, {"momentum": 0.9}),
    "weight_decay": (0.2, {}),
    "maximize": (True, {}),
    "l1": (0.3, {}),
    "clip_value": (0.3, {}),
    "clip_each": (0.3, {}),
    "lr_decay": (0.5, {}),
    "initial_accumulator_value": (0.5, {}),
    "eps": (0.1, {}),
    "alpha": (0.5, {}),
    "rho": (0.5, {}),
    "momentum_decay": (0.5, {}),
    "decoupled_weight_decay": (True, {"weight_decay": 0.2}),
    "centered": (True, {}),
    "betas": ((0.5, 0.9), {}),
    "amsgrad": (True, {"betas": (0.9, 0.5)}),  # so that the second moment falls
    "eps_root": (0.1, {"convention": "optax", "lr": 0.1}),
}
OF_ADAM = {"nesterov": (True, {"convention": "optax", "lr": 0.1})}
OF_LION = {  # so that a sign changes
    "betas": ((0.99, 0.5), {}),
    "l1": (5.0, {}),
    "clip_value": (0.3, {"betas": (0.6, 0.5)}),
    "clip_each": (0.3, {"betas": (0.9, 0.5)}),
}
OF_CLASS = {"Adam": OF_ADAM, "AdamW": OF_ADAM, "Lion": OF_LION}


def off_default(cls, name):
    """Another value of a hyper-parameter than its default, and the arguments that it needs to show."""
    return {**OFF, **OF_CLASS.get(cls.__name__, {})}[name]


# Bits of states show in large arrays only: test_optim_state_bits.
EACH_HYPER = [(cls, name) for cls in CLASSES for name in cls._hyper if name != "state_bits"]


@pytest.mark.parametrize(("cls", "name"), EACH_HYPER)
def test_every_option_off_its_default_shows(cls, name, backend):
    value, needed = off_default(cls, name)
    gradients = [np.array([3.0, -0.5]), np.array([-1.0, 2.0]), np.array([0.1, 0.2])]

    def after(**more):
        p = np.array([1.0, 2.0])
        optimizer = cls(p, backend=backend, **needed, **more)
        for g in gradients:
            optimizer.step(g)
        return p, optimizer.param_groups[0][name]

    changed, got = after(**{name: value})
    default, was = after()
    assert got == value != was
    assert np.abs(changed - default).max() > 1e-6
    if name == "betas":
        assert not np.array_equal(changed, after(betas=(0.5, 0.999))[0])


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_the_rule_and_its_options(rule):
    optimizer = make(rule, np.ones(2))
    assert optimizer.rule == rule
    assert optimizer.options == dict(OPTIMIZERS[rule].options)  # the table's defaults are the classes'


@pytest.mark.parametrize(("cls", "name"), EACH_HYPER)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.5, 1.5, "0.1", None, np.array(0.1), 1j, True, [0.9]])
def test_hyperparameters_out_of_their_domain(cls, name, bad):
    domain = DOMAINS.get({"betas": "beta1", "clip_each": "clip_value"}.get(name, name))
    flag = name in ("amsgrad", "centered") or (domain is not None and domain.flag)
    number = isinstance(bad, float)
    if flag:
        fine = bad is True
    elif domain is not None:
        fine = (number or bad is None) and bad in domain
    else:
        fine = number and 0 <= bad < np.inf
    value = (bad, 0.9) if name == "betas" else bad
    needed = off_default(cls, name)[1] if name in ("eps_root", "nesterov") else {}
    of_convention = bad is None and name in next(iter(CONVENTIONS[cls.__name__].values())).defaults
    if of_convention:
        assert cls(np.ones(2), **{name: None}).param_groups[0][name] is not None
    elif fine:
        cls(np.ones(2), **{**needed, name: value})
        return
    else:
        with pytest.raises(ValueError if number else TypeError, match=r"must be .*got") as refused:
            cls(np.ones(2), **{**needed, name: value})
        assert name in str(refused.value)

    p = np.ones(2)
    optimizer = cls(p, backend="numpy", **{"lr": 0.25, **needed})  # not 1, which is True to Python
    optimizer.param_groups[0][name] = value
    with pytest.raises((ValueError, TypeError), match=name):
        optimizer.step(np.ones(2))
    assert p.tolist() == [1, 1]
    assert optimizer.steps == 0


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), "ab"])
def test_betas_are_two_numbers(betas):
    with pytest.raises((TypeError, ValueError), match="betas"):
        fo.Adam(np.ones(2), betas=betas)


@pytest.mark.parametrize("more", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_needs_undamped_momentum(more):
    with pytest.raises(ValueError, match=r"nesterov needs momentum > 0 and dampening 0; got momentum"):
        fo.SGD(np.ones(2), nesterov=True, **more)


def test_hyperparameters_may_change_between_steps(backend):
    p = np.array([1.0])
    optimizer = fo.SGD(p, lr=0.5, backend=backend)
    optimizer.step(np.ones(1))
    optimizer.lr = 0.25
    optimizer.step(np.ones(1))
    optimizer.param_groups[0]["lr"] = np.float32(0.125)
    optimizer.step(np.ones(1))
    assert p.tolist() == [0.125]
    assert optimizer.lr == 0.125


def test_momentum_turned_on_later_starts_with_the_gradient(backend):
    """The first buffer is the gradient, undamped, whatever step it is: torch's convention."""
    p = np.array([10.0])
    optimizer = fo.SGD(p, lr=1.0, backend=backend)
    optimizer.step(np.ones(1))
    optimizer.param_groups[0].update(momentum=0.5, dampening=0.5)
    with pytest.raises(ValueError, match="shape"):
        optimizer.step(np.ones(2))  # refused: still no buffer
    assert "momentum_buffer" not in optimizer.state_dict()["state"][0]
    optimizer.step(np.array([2.0]))
    assert p.tolist() == [7.0]
    optimizer.step(np.array([2.0]))
    assert p.tolist() == [5.0]  # 0.5 * 2 + 0.5 * 2
    assert optimizer.steps == 3


def test_amsgrad_turned_on_later(backend):
    p = np.array([1.0])
    optimizer = fo.Adam(p, backend=backend)
    optimizer.step(np.ones(1))
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step(np.ones(1))
    assert len(optimizer.states[0]) == 3
    assert np.isfinite(p).all()


@pytest.mark.parametrize("change", [{"learning_rate": 0.1}, {"lr": "0.1"}])
def test_a_wrong_change_of_a_group_is_refused(change):
    p = np.ones(2)
    optimizer = fo.SGD([{"params": [p]}, {"params": [np.ones(3)], "lr": 0.5}], backend="numpy")
    optimizer.param_groups[0]["lr"] = 0.125
    optimizer.param_groups[1].update(change)
    with pytest.raises((TypeError, ValueError), match="lr|learning_rate"):
        optimizer.step([[np.ones(2)], [np.ones(3)]])
    assert p.tolist() == [1, 1]


def test_setting_lr_is_checked():
    optimizer = fo.Adam(np.ones(2))
    with pytest.raises(ValueError, match="lr must be a finite number of at least 0; got nan"):
        optimizer.lr = float("nan")
    assert optimizer.lr == 1e-3
    with pytest.raises(ValueError, match="2 groups"):
        fo.Adam([{"params": np.ones(2)}, {"params": np.ones(2)}]).lr = 0.1


# ---------------------------------------------------------------- structures


def test_structures(backend):
    a, b, c, d = arrays = [np.full(n, float(n)) for n in (1, 2, 3, 4)]
    one = [np.ones_like(x) for x in arrays]
    for params, grads in [
        (arrays, one),
        (tuple(arrays), iter(one)),
        (iter(arrays), tuple(one)),
        ({"a": a, "rest": {"b": b, "cd": [c, d]}}, {"rest": {"cd": (one[2], one[3]), "b": one[1]}, "a": one[0]}),
        ([{"a": a}, [b, [c]], d], [{"a": one[0]}, [one[1], [one[2]]], one[3]]),
        (
            [{"params": a}, {"params": {"b": b, "c": c}}, {"params": [d]}],
            [one[0], {"b": one[1], "c": one[2]}, [one[3]]],
        ),
    ]:
        before = [x.copy() for x in arrays]
        fo.SGD(params, lr=0.5, backend=backend).step(grads)
        for x, was in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(x, was - 0.5)


def test_none_skips_an_array_or_a_branch(backend):
    a, b, c = (np.ones(2) for _ in range(3))
    optimizer = fo.Adam({"a": a, "rest": [b, c]}, lr=0.5, backend=backend)
    optimizer.step({"a": np.ones(2), "rest": None})
    optimizer.step({"a": None, "rest": [None, np.ones(2)]})
    assert a.tolist() == pytest.approx([0.5, 0.5])
    assert b.tolist() == [1, 1]
    assert c.tolist() == pytest.approx([0.5, 0.5])  # its first step, with the first step's correction
    assert [optimizer.state_dict()["state"][i]["step"] for i in range(3)] == [1, 0, 1]


def test_groups_have_their_own_hyperparameters(backend):
    a, b, c = np.zeros(2), np.zeros(2), np.zeros(2)
    optimizer = fo.SGD([{"params": [a, b], "lr": 1.0}, {"params": c, "momentum": 0.5}], lr=0.25, backend=backend)
    for _ in range(2):
        optimizer.step([[np.ones(2), None], np.ones(2)])
    assert (a.tolist(), b.tolist(), c.tolist()) == ([-2, -2], [0, 0], [-0.625, -0.625])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    assert optimizer.param_groups[1]["params"][0] is c
    assert optimizer.states[0] == ()
    assert optimizer.states[2][0].tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], ValueError, "params holds no array"),
        ({}, ValueError, "params holds no array"),
        ([1.0, 2.0], TypeError, r"params\[0\] must be a NumPy array.*; got 1.0"),
        ({"w": np.float64(3)}, TypeError, r"params\['w'\] must be a NumPy array"),
        ([np.ones(2), None], TypeError, r"params\[1\] must be a NumPy array.*; got None"),
        (np.ones(2, int), TypeError, "params must be float32, float64, float16 or bfloat16; got int64"),
        (np.ones(2, complex), TypeError, "got complex128"),
        (np.array([None]), TypeError, "got object"),
        (np.ma.array([1.0]), TypeError, "must not be a masked array"),
        (np.broadcast_to(np.ones(3), (2, 3)), ValueError, "params is read-only"),
        (np.lib.stride_tricks.sliding_window_view(np.ones(4), 2, writeable=True), ValueError, "share memory"),
        ([{"params": np.ones(2)}, np.ones(2)], ValueError, "where one entry of params is a group, all must be"),
        ([{"params": np.ones(2), "rate": 0.1}], ValueError, r"takes the hyper-parameters lr, .*unknown: \['rate'\]"),
        ([{"params": np.ones(2), "lr": -1}], ValueError, "lr must be a finite number of at least 0; got -1"),
    ],
)
def test_parameters_that_are_refused(params, error, message):
    with pytest.raises(error, match=message):
        fo.Adam(params)


def overlapping():
    whole = np.zeros((4, 4))
    return {
        "the same array": [whole, whole],
        "an array and its row": [whole, np.zeros(3), whole[1]],
        "overlapping slices": [whole[:3], whole[2:]],
        "another byte order": [whole, whole.view(">f8")],
        "a column and a row": [whole[:, 1], whole[2]],
        "within a wide span": [whole[::3], np.zeros(2), whole[1:4:2]],
    }


@pytest.mark.parametrize("case", overlapping())
def test_overlapping_parameters_are_refused(case):
    with pytest.raises(ValueError, match=r"params\[0\] and params\[[12]\] share memory; each array must be given once"):
        fo.SGD(overlapping()[case])


def test_interleaved_parameters_are_not_overlapping(backend):
    whole = np.arange(24.0).reshape(4, 6)
    parts = [whole[::2], whole[1::2, :3], whole[1::2, 3::2], whole[1::2, 4::2]]
    fo.SGD(parts, lr=1.0, backend=backend).step([np.ones(part.shape) for part in parts])
    np.testing.assert_array_equal(whole, np.arange(24.0).reshape(4, 6) - 1)


BAD_GRADIENTS = {
    "a single array": (lambda a, b: a + 1, TypeError, "grads must be a sequence of 2"),
    "too few": (lambda a, b: [a + 1], ValueError, "grads must have 2 entries.*; got 1"),
    "too many": (lambda a, b: [a + 1, b + 1, b + 1], ValueError, "got 3"),
    "a mapping": (lambda a, b: {"a": a, "b": b}, TypeError, "grads must be a sequence of 2.*got a dict"),
    "a list for an array": (lambda a, b: [a + 1, [1.0] * 6], TypeError, r"grads\[1\] must be a NumPy array"),
    "another dtype": (lambda a, b: [a + 1, b.astype("float32")], TypeError, r"grads\[1\] must be float64 .*float32"),
    "integers": (lambda a, b: [a + 1, b.astype(int)], TypeError, r"grads\[1\] must be float64"),
    "another shape": (lambda a, b: [a + 1, b.T.copy()], ValueError, r"grads\[1\] must have the shape \(2, 3\)"),
    "one that broadcasts": (lambda a, b: [a + 1, np.ones(3)], ValueError, r"grads\[1\] must have the shape"),
    "the parameter itself": (lambda a, b: [a + 1, b], ValueError, r"grads\[1\] shares memory with params\[1\]"),
    "another parameter": (lambda a, b: [b.reshape(-1)[:4], b + 1], ValueError, r"grads\[0\] shares memory with params"),
    "masked": (lambda a, b: [a + 1, np.ma.array(b + 1)], TypeError, r"grads\[1\] must not be a masked array"),
}


@pytest.mark.parametrize("case", BAD_GRADIENTS)
def test_gradients_that_are_refused_leave_everything_alone(case, backend):
    gradients, error, message = BAD_GRADIENTS[case]
    a, b = np.arange(4.0), np.arange(6.0).reshape(2, 3)
    optimizer = fo.Adam([a, b], backend=backend)
    optimizer.step([np.ones(4), np.ones((2, 3))])
    before = snapshot(optimizer, a, b)
    with pytest.raises(error, match=message):
        optimizer.step(gradients(a, b))
    assert snapshot(optimizer, a, b) == before


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ({"w": np.ones(2)}, ValueError, r"missing: \['b'\], unknown: \[\]"),
        ({"w": np.ones(2), "b": None, "c": None}, ValueError, r"missing: \[\], unknown: \['c'\]"),
        ([np.ones(2), np.ones(2)], TypeError, "grads must be a mapping with the keys of the parameters; got a list"),
        ({"w": np.ones(2), "b": {"x": np.ones(2)}}, TypeError, r"grads\['b'\] must be a NumPy array"),
    ],
)
def test_gradients_of_another_structure_are_refused(grads, error, message):
    w, b = np.ones(2), np.ones(2)
    optimizer = fo.SGD({"w": w, "b": b}, backend="numpy")
    with pytest.raises(error, match=message):
        optimizer.step(grads)
    assert (w.tolist(), b.tolist()) == ([1, 1], [1, 1])


def test_halves_of_one_buffer_may_be_parameters_and_gradients(backend):
    buffer = np.ones(8)
    optimizer = fo.SGD(buffer[:4], lr=0.5, backend=backend)
    optimizer.step(buffer[4:])
    assert buffer.tolist() == [0.5] * 4 + [1] * 4
    with pytest.raises(ValueError, match="grads shares memory with params"):
        optimizer.step(buffer[3:7])


def test_memory_maps_are_updated(tmp_path, backend):
    p = np.memmap(tmp_path / "p", np.float32, "w+", shape=(3, 4))
    optimizer = fo.SGD(p, lr=1.0, backend=backend)
    optimizer.step(np.ones((3, 4), np.float32))
    assert (np.asarray(p) == -1).all()
    with pytest.raises(ValueError, match="shares memory"):
        optimizer.step(p)


# ---------------------------------------------------------------- without arrays, and by name


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_bind_then_advance(rule):
    optimizer = make(rule, lr=0.5, backend="numpy")
    assert (optimizer.bound, optimizer.steps, optimizer.states, optimizer.rule) == (False, 0, [], rule)
    with pytest.raises(ValueError, match="has no arrays yet: give it params, or call bind"):
        optimizer.step([])
    with pytest.raises(TypeError, match=r"params\[0\] must be float32, float64, float16 or bfloat16"):
        optimizer.bind([np.ones(2, int)])
    assert not optimizer.bound
    optimizer.lr = 0.25
    w, b = np.ones((2, 2)), np.ones(2)
    optimizer.bind([w, b])
    assert optimizer.bound
    assert optimizer.lr == 0.25
    assert [len(states) for states in optimizer.states] == [len(OPTIMIZERS[rule].states)] * 2
    optimizer.advance(3)
    assert optimizer.steps == 3
    assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [3, 3]
    with pytest.raises(ValueError, match="already has its arrays"):
        optimizer.bind([w, b])


def test_adagrad_starts_from_the_initial_value():
    assert fo.Adagrad(np.ones(2), initial_accumulator_value=0.5).states[0][0].tolist() == [0.5, 0.5]


def test_states_are_the_optimizers_own_memory(backend):
    optimizer = fo.Adam(np.ones((2, 3)), backend=backend)
    states = optimizer.states[0]
    optimizer.step(np.ones((2, 3)))
    assert (states[0] != 0).all()


@pytest.mark.parametrize("name", fo.optim.OPTIMIZER_CLASSES)
def test_optimizers_by_name(name):
    optimizer = fo.get_optimizer(name, lr=0.125)
    assert optimizer.rule == name
    assert optimizer.lr == 0.125
    assert fo.get_optimizer(optimizer) is optimizer
    assert type(fo.get_optimizer(name.upper())) is type(optimizer)
    by_class = fo.get_optimizer(type(optimizer), lr=0.5)
    assert (type(by_class), by_class.lr) == (type(optimizer), 0.5)


def test_optimizers_by_wrong_names():
    known = ", ".join(fo.optim.OPTIMIZER_CLASSES)
    assert known.startswith("sgd, momentum, ")
    with pytest.raises(ValueError, match=f"unknown optimizer 'adm'; known: {known}"):
        fo.get_optimizer("adm")
    with pytest.raises(TypeError, match="optimizer must be one of sgd, .*; got a type"):
        fo.get_optimizer(fo.Optimizer)
    with pytest.raises(TypeError, match="optimizer must be one of sgd, .*; got a type"):
        fo.get_optimizer(dict)
    with pytest.raises(TypeError, match="beside an optimizer"):
        fo.get_optimizer(fo.Adam(), lr=0.1)
    with pytest.raises(ValueError, match="unknown backend 'gpu'; known: numpy, cpu"):
        fo.Adam(np.ones(2), backend="gpu")


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_every_rule_descends_a_parabola_and_climbs_with_maximize(rule, backend):
    for sign in (1, -1):
        p = np.array([3.0, -2.0])
        more = {"Adagrad": {"lr": 0.5}, "Adadelta": {"eps": 0.1}}.get(MAKE[rule][0].__name__, {"lr": 0.05})
        optimizer = make(rule, p, **more, maximize=sign < 0, backend=backend)
        for _ in range(300):
            optimizer.step(sign * 2 * p)
        assert np.abs(p).max() < 0.1


def test_repr():
    assert repr(fo.SGD(np.ones(2), lr=0.1)) == (
        "SGD(lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False, backend='cpu')"
    )


@pytest.mark.parametrize(("name", "value"), [("betas", (0.8, 0.99)), ("momentum_decay", 0.1)])
def test_momenta_stay_those_of_the_first_step(name, value):
    """The product of all momenta so far cannot be told from others than those that were."""
    p = np.ones(3)
    optimizer = fo.NAdam(p, backend="numpy")
    before = optimizer.param_groups[0][name]
    optimizer.param_groups[0][name] = value  # there was no step yet
    optimizer.param_groups[0][name] = before
    optimizer.step(np.ones(3))
    kept = p.copy()
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"NAdam keeps mu_product must be those of the first step; got .*: {name}$"):
        optimizer.step(np.ones(3))
    np.testing.assert_array_equal(p, kept)
    optimizer.param_groups[0] |= {name: before, "lr": 0.1, "eps": 1e-3}
    optimizer.step(np.ones(3))
    assert optimizer.steps == 2
