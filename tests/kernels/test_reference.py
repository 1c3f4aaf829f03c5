"""The NumPy reference's formulas against values worked by hand and finite differences."""

import math

import numpy as np
import pytest

from fastopt.kernels import reference
from fastopt.kernels.reference._erf import erf
from fastopt.kernels.spec import LossSpec, Update

DTYPES = [np.float32, np.float64]
OPTIONS = {
    "lr": 0.1, "weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None,
    "momentum": 0.0, "dampening": 0.0, "nesterov": False,
    "lr_decay": 0.0, "alpha": 0.5, "rho": 0.75, "beta1": 0.5, "beta2": 0.75, "eps": 0.0,
    "eps_root": 0.0, "decoupled": False, "momentum_decay": 0.0, "decoupled_weight_decay": False,
}  # fmt: skip
STATES = {
    "sgd": 0, "momentum": 1, "adagrad": 1, "rmsprop": 1, "rmsprop_momentum": 2, "rmsprop_centered": 2,
    "rmsprop_centered_momentum": 3, "adam": 2, "amsgrad": 3, "adamw": 2, "adamw_amsgrad": 3,
    "sgdw": 0, "velocity": 1, "lion": 1, "adadelta": 2, "adagrad_eps_in_sqrt": 1, "adagrad_safe": 1,
    "rmsprop_eps_in_sqrt": 1,
    "rmsprop_eps_in_sqrt_momentum": 2, "rmsprop_eps_in_sqrt_centered": 2, "rmsprop_eps_in_sqrt_centered_momentum": 3,
    "nadam": 2, "adam_hat": 2, "amsgrad_hat": 3, "adam_eps_root": 2, "nadam_eps_root": 2, "amsgrad_eps_root": 3,
}  # fmt: skip


def run(rule, p, gradients, dtype=np.float64, **options):
    """The parameter after each step, from zero states, and the states."""
    p = np.array(p, dtype)
    states = tuple(np.zeros_like(p) for _ in range(STATES[rule]))
    path = []
    for step, g in enumerate(gradients, start=1):
        job = Update(rule, p, np.full_like(p, g), states, {**OPTIONS, **options}, step)
        reference.update([job])
        path.append(p.copy())
    return path, states


# rule, options, gradients, the parameter after each step; it starts at 1 and lr is 0.1
HAND_WORKED = [
    # 1 - 0.1 * 0.5; 0.95 - 0.1 * -0.25
    ("sgd", {}, [0.5, -0.25], [0.95, 0.975]),
    # g = 0.5 + 0.1 * 1 = 0.6, 1 - 0.06; g = -0.25 + 0.1 * 0.94 = -0.156, 0.94 + 0.0156
    ("sgd", {"weight_decay": 0.1}, [0.5, -0.25], [0.94, 0.9556]),
    # g = -0.5 + 0.1 * 1 = -0.4, 1 + 0.04; g = 0.25 + 0.104 = 0.354, 1.04 - 0.0354
    ("sgd", {"weight_decay": 0.1, "maximize": True}, [0.5, -0.25], [1.04, 1.0046]),
    # b = 0.5; b = 0.9 * 0.5 + 0.8 * -0.25 = 0.25; b = 0.9 * 0.25 + 0.8 * 1 = 1.025
    ("momentum", {"momentum": 0.9, "dampening": 0.2}, [0.5, -0.25, 1], [0.95, 0.925, 0.8225]),
    # b = 0.5, d = 0.5 + 0.9 * 0.5 = 0.95; b = 0.45 - 0.25 = 0.2, d = -0.25 + 0.18 = -0.07
    ("momentum", {"momentum": 0.9, "nesterov": True}, [0.5, -0.25], [0.905, 0.912]),
    # s = 9, 0.1 * 3 / 3; s = 25, 0.1 / 1.25 * 4 / 5 = 0.064; s = 169, 0.1 / 1.5 * 12 / 13 = 0.8 / 13
    ("adagrad", {"lr_decay": 0.25}, [3, 4, -12], [0.9, 0.836, 0.836 + 0.8 / 13]),
    # 0.1 * 3 / (3 + 1)
    ("adagrad", {"eps": 1.0}, [3], [0.925]),
    # s = 0.25 * 4 = 1, 0.1 * 2 / 1; s = 0.75 + 0.25 = 1, 0.1 * 1 / 1; s = 0.75 + 6.25 = 7, 0.1 * -5 / sqrt 7
    ("rmsprop", {"alpha": 0.75}, [2, 1, -5], [0.8, 0.7, 0.8889822365046136]),
    # 0.1 * 2 / (1 + 1)
    ("rmsprop", {"alpha": 0.75, "eps": 1.0}, [2], [0.9]),
    # the quotients 2, 1, -5 / sqrt 7 as above: b = 2; b = 1 + 1 = 2; b = 1 - 5 / sqrt 7
    ("rmsprop_momentum", {"alpha": 0.75, "momentum": 0.5}, [2, 1, -5], [0.8, 0.6, 0.6889822365046136]),
    # s = 2, a = 1, d = 1, 0.1 * 2 / 1; s = 3, a = 1.5, d = sqrt 0.75, 0.2 / sqrt 0.75
    ("rmsprop_centered", {}, [2, 2], [0.8, 0.5690598923241497]),
    # the quotients 2, 2 / sqrt 0.75 as above: b = 2; b = 1 + 2 / sqrt 0.75
    ("rmsprop_centered_momentum", {"momentum": 0.5}, [2, 2], [0.8, 0.46905989232414967]),
    # m = 1, m^ = 2, v = 1, v^ = 4, 0.1 * 2 / 2;
    # m = -0.5, m^ = -0.5 / 0.75 = -2/3, v = 1.75, v^ = 1.75 / 0.4375 = 4, 0.1 * (-2/3) / 2 = -1/30;
    # m = 1.75, m^ = 2, v = 5.3125, v^ = 5.3125 / 0.578125, 0.2 / sqrt v^
    ("adam", {}, [2, -2, 4], [0.9, 0.9 + 1 / 30, 0.8673565103083452]),
    # 0.1 * 2 / (2 + 2)
    ("adam", {"eps": 2.0}, [2], [0.95]),
    # g = -1 + 3 * 1 = 2, as in the first step above
    ("adam", {"weight_decay": 3.0, "maximize": True}, [1], [0.9]),
    # m^ = 4, v^ = 16; m = 1, m^ = 4/3, v = 3 but its maximum is 4, 4 / 0.4375, 0.1 * 4/3 / sqrt of that
    ("amsgrad", {}, [4, 0], [0.9, 0.8559041448155902]),
    # Adam's steps of 0.1 and -1/30, after p = 0.95 * 1 and p = 0.95 * 0.85 = 0.8075
    ("adamw", {"weight_decay": 0.5}, [2, -2], [0.85, 0.8075 + 1 / 30]),
    # AMSGrad's steps of 0.1 and 0.04409585518440984, after p = 0.95 * 1 and p = 0.95 * 0.85
    ("adamw_amsgrad", {"weight_decay": 0.5}, [4, 0], [0.85, 0.7634041448155902]),
    # 0.95 * 1 - 0.1 * 0.5; 0.95 * 0.9 - 0.1 * -0.25
    ("sgdw", {"weight_decay": 0.5}, [0.5, -0.25], [0.9, 0.88]),
    # v = -0.2; v = 0.5 * -0.2 - 0.1 = -0.2
    ("velocity", {"momentum": 0.5}, [2, 1], [0.8, 0.6]),
    # v = -0.2, d = -0.1 - 0.2; v = -0.2, d = -0.1 - 0.1
    ("velocity", {"momentum": 0.5, "nesterov": True}, [2, 1], [0.7, 0.5]),
    # g = 2 + 1, v = -0.3; g = 1 + 0.7, v = -0.15 - 0.17
    ("velocity", {"momentum": 0.5, "weight_decay": 1.0}, [2, 1], [0.7, 0.38]),
    # the steps of -0.2 above, after p = 0.95 * 1 and p = 0.95 * 0.75
    ("velocity", {"momentum": 0.5, "weight_decay": 0.5, "decoupled": True}, [2, 1], [0.75, 0.5125]),
    # p = 0.9 * 1 - 0.1
    # m = 0.5; c = 0.25 - 0.5, p = 0.95 * 0.85 + 0.1; m = 0.375 - 0.25, c = 0.0625, p = 0.95 * 0.9075 - 0.1
    ("lion", {"weight_decay": 1.0}, [2], [0.8]),
    ("lion", {"weight_decay": 0.5}, [2, -1, 0], [0.85, 0.9075, 0.762125]),
    # s = 9, 0.1 * 3 / sqrt(9 + 7); s = 18, 0.1 * 3 / sqrt(18 + 7)
    ("adagrad_eps_in_sqrt", {"eps": 7.0}, [3, 3], [0.925, 0.865]),
    # the same after p = 0.95 * 1 and p = 0.95 * 0.875
    ("adagrad_eps_in_sqrt", {"eps": 7.0, "weight_decay": 0.5, "decoupled": True}, [3, 3], [0.875, 0.77125]),
    ("adagrad_safe", {"eps": 7.0}, [3, 3], [0.925, 0.865]),
    # s = 0; s = 9, 0.1 * 3 / 3
    ("adagrad_safe", {}, [0, 3], [1, 0.9]),
    # v = 1, d = sqrt(8) / sqrt(1 + 8) * 2, u = 8/9; v = 0.75 + 3.75, d = sqrt(8 + 8/9) / sqrt(4.5 + 8) sqrt(15)
    ("adadelta", {"eps": 8.0}, [2, 15**0.5], [1 - 0.2 * 8**0.5 / 3, 1 - 0.2 * 8**0.5 / 3 - 0.1 * (32 / 3) ** 0.5]),
    # the first step above, with g = 1 + 1, and after p = 0.95 * 1
    ("adadelta", {"eps": 8.0, "weight_decay": 1.0}, [1], [1 - 0.2 * 8**0.5 / 3]),
    ("adadelta", {"eps": 8.0, "weight_decay": 0.5, "decoupled": True}, [2], [0.95 - 0.2 * 8**0.5 / 3]),
    # s = 1, 0.1 * 2 / sqrt(1 + 3); s = 0.75 + 0.25, 0.1 * 1 / 2
    ("rmsprop_eps_in_sqrt", {"alpha": 0.75, "eps": 3.0}, [2, 1], [0.9, 0.85]),
    # v = -0.1; v = -0.05 - 0.05
    ("rmsprop_eps_in_sqrt_momentum", {"alpha": 0.75, "eps": 3.0, "momentum": 0.5}, [2, 1], [0.9, 0.8]),
    # s = 2, a = 1, 0.1 * 2 / sqrt(1 + 3); s = 3, a = 1.5, 0.2 / sqrt(0.75 + 3) = 0.10327955589886445
    ("rmsprop_eps_in_sqrt_centered", {"eps": 3.0}, [2, 2], [0.9, 0.9 - 0.10327955589886445]),
    # v = -0.1; v = -0.05 - 0.10327955589886445
    ("rmsprop_eps_in_sqrt_centered_momentum", {"eps": 3.0, "momentum": 0.5}, [2, 2], [0.9, 0.85 - 0.10327955589886445]),
    # m = 1, v = 1, 0.1 * sqrt 0.25 / 0.5 = 0.1, 0.1 * 1 / (1 + 1);
    # m = -0.5, v = 1.75, 0.1 * sqrt 0.4375 / 0.75 = 0.08819171036881969, 0.5 of that / (sqrt 1.75 + 1)
    ("adam_hat", {"eps": 1.0}, [2, -2], [0.95, 0.95 + 0.044095855184409846 / 2.322875655532295]),
    # g = 1 + 1 = 2; the first step above, and without the penalty but after p = 0.5 * 1
    ("adam_hat", {"eps": 1.0, "weight_decay": 1.0}, [1], [0.95]),
    ("adam_hat", {"eps": 1.0, "weight_decay": 5.0, "decoupled": True}, [2], [0.45]),
    # m = 2, v = 4, 0.1 * 2 / (2 + 2); m = 1, v = 3 but its maximum is 4, 0.08819171036881969 / (2 + 2)
    ("amsgrad_hat", {"eps": 2.0}, [4, 0], [0.95, 0.95 - 0.08819171036881969 / 4]),
    # m^ = 2, v^ = 4, 0.1 * 2 / (sqrt(4 + 5) + 1); the same after p = 0.95 * 1
    ("adam_eps_root", {"eps": 1.0, "eps_root": 5.0}, [2], [0.95]),
    ("adam_eps_root", {"eps": 1.0, "eps_root": 5.0, "weight_decay": 0.5, "decoupled": True}, [2], [0.9]),
    # m = 1, v = 1, m^ = 0.5 / 0.75 + 1 / 0.5 = 8/3, v^ = 4, 0.1 * 8/3 / (sqrt(4 + 5) + 1) = 1/15;
    # m = -0.5, v = 1.75, m^ = -0.25 / 0.875 - 1 / 0.75 = -34/21, v^ = 4
    ("nadam_eps_root", {"eps": 1.0, "eps_root": 5.0}, [2, -2], [1 - 1 / 15, 1 - 1 / 15 + 3.4 / 84]),
    # g = 1 + 1 = 2; the first step above after p = 0.95 * 1
    ("nadam_eps_root", {"eps": 1.0, "eps_root": 5.0, "weight_decay": 1.0}, [1], [1 - 1 / 15]),
    (
        "nadam_eps_root",
        {"eps": 1.0, "eps_root": 5.0, "weight_decay": 0.5, "decoupled": True},
        [2],
        [0.95 - 1 / 15],
    ),
    # mu = 1/4; m = 1, v = 1, d = 1/4 / (1 - 1/16) + 3/4 * 2 / (1 - 1/4) = 4/15 + 2, v^ = 4, 0.1 * d / (2 + 2);
    # m = -0.5, v = 1.75, d = -1/8 / (1 - 1/64) - 3/4 * 2 / (1 - 1/16), v^ = 4
    ("nadam", {"eps": 2.0}, [2, -2], [1 - 3.4 / 60, 1 - 3.4 / 60 + (8 / 63 + 1.6) / 40]),
    # g = 1 + 1, the first step above; the same after p = 0.95 * 1
    ("nadam", {"eps": 2.0, "weight_decay": 1.0}, [1], [1 - 3.4 / 60]),
    ("nadam", {"eps": 2.0, "weight_decay": 0.5, "decoupled_weight_decay": True}, [2], [0.95 - 3.4 / 60]),
    # a momentum that is 0.5 at once: d = 1/2 / (1 - 1/4) + 1/2 * 2 / (1 - 1/2) = 8/3
    ("nadam", {"eps": 2.0, "momentum_decay": 1e9}, [2], [1 - 0.1 * 8 / 3 / 4]),
    # m^ = 4, v^ = 16, 0.1 * 4 / (sqrt(16 + 9) + 3); m^ = 4/3, v^ = 3 / 0.4375 but its maximum is 16, 0.1 * 4/3 / 8
    ("amsgrad_eps_root", {"eps": 3.0, "eps_root": 9.0}, [4, 0], [0.95, 0.95 - 1 / 60]),
]


@pytest.mark.parametrize(("rule", "options", "gradients", "expected"), HAND_WORKED)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0, 4)])
def test_updates_by_hand(rule, options, gradients, expected, shape):
    path, _ = run(rule, np.ones(shape), gradients, **options)
    for p, value in zip(path, expected, strict=True):
        assert p.shape == shape
        np.testing.assert_allclose(p, np.full(shape, value), rtol=1e-14)


def test_every_rule_is_worked_by_hand():
    assert set(reference.UPDATES) == {rule for rule, *_ in HAND_WORKED} == set(STATES)


@pytest.mark.parametrize("rule", STATES)
def test_float32_is_the_float64_path_rounded(rule):
    gradients = np.random.default_rng(1).normal(size=20)
    options = {"weight_decay": 0.1, "momentum": 0.9, "beta1": 0.9, "beta2": 0.99, "alpha": 0.9, "eps": 1e-3}
    single, states = run(rule, [1, -2], gradients, np.float32, **options)
    double, _ = run(rule, [1, -2], gradients, np.float64, **options)
    assert {x.dtype for x in (*single, *states)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(single, double, rtol=1e-5)


@pytest.mark.parametrize("T", DTYPES)
def test_adam_keeps_the_order_of_operations(T):
    rng = np.random.default_rng(2)
    p, g, m = (rng.normal(size=1000).astype(T) for _ in range(3))
    v = rng.random(1000).astype(T)
    lr, beta1, beta2, eps, step = 1e-3, 0.9, 0.999, 1e-8, 7
    m2 = T(beta1) * m + T(1 - beta1) * g
    v2 = T(beta2) * v + T(1 - beta2) * (g * g)
    d = np.sqrt(v2) * T(1 / math.sqrt(1 - beta2**step)) + T(eps)
    p2 = p - T(lr / (1 - beta1**step)) * (m2 / d)
    options = {**OPTIONS, "lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps}
    reference.update([Update("adam", p, g, (m, v), options, step)])
    assert p.tobytes() == p2.tobytes()
    assert m.tobytes() == m2.tobytes()
    assert v.tobytes() == v2.tobytes()


@pytest.mark.parametrize("T", DTYPES)
def test_states_stay_out_of_the_denormal_range(T):
    tiny = np.finfo(T).tiny
    p = np.zeros(5, T)
    m = np.array([tiny, -tiny, 4 * tiny, 0, np.nan], T)
    v = np.array([tiny, 4 * tiny, 0, 0, np.nan], T)
    reference.update([Update("adam", p, np.zeros(5, T), (m, v), {**OPTIONS, "eps": 1e-8}, 3)])
    np.testing.assert_array_equal(m, np.array([0, 0, 2 * tiny, 0, np.nan], T))  # halved, 0 below tiny
    np.testing.assert_array_equal(v, np.array([tiny, 3 * tiny, 0, 0, np.nan], T))  # times 3/4, at least tiny


@pytest.mark.parametrize("rule", [rule for rule in STATES if STATES[rule] and "adagrad" not in rule])
def test_zero_gradients_for_long_end_in_no_denormals(rule):  # Adagrad's sum does not decay
    _, states = run(rule, [1.0], [1e-20, *[0.0] * 400], np.float32, momentum=0.5, eps=1e-8)
    for s in states:
        assert s[0] == 0 or abs(s[0]) >= np.finfo(np.float32).tiny


def test_nan_in_the_second_moment_gets_through_amsgrad():
    p, g = np.ones(2), np.array([np.nan, 1.0])
    states = (np.zeros(2), np.zeros(2), np.full(2, 9.0))
    reference.update([Update("amsgrad", p, g, states, OPTIONS, 1)])
    assert np.isnan(states[2]).tolist() == [True, False]
    assert np.isnan(p).tolist() == [True, False]


def test_erf():
    x = np.concatenate([np.linspace(-6.5, 6.5, 5001), [0.84375, 1.25, 1 / 0.35, 5e-324, -0.0, np.inf, -np.inf]])
    exact = np.array([math.erf(v) for v in x])
    with np.errstate(divide="ignore", over="ignore"):
        np.testing.assert_array_max_ulp(erf(x), exact, maxulp=2)
        np.testing.assert_array_max_ulp(erf(x.astype(np.float32)), _erf32(x), maxulp=2)
    assert np.signbit(erf(np.array(-0.0)))
    assert np.isnan(erf(np.array([np.nan]))).all()


def _erf32(x):
    return np.array([math.erf(v) for v in x.astype(np.float32)], np.float32)


def slope_by_differences(f, x, h=1e-3):
    """The derivative by x, of error O(h^4)."""
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)


def activated(name, z):
    y = np.empty_like(z)
    reference.activate(name, z, y)
    return y


@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_slopes_by_finite_differences(name):
    z = np.linspace(-6, 6, 200)  # a point every 0.06, none within 0.03 of the kink at 0
    row = reference.ACTIVATIONS[name]
    slope = row.slope(z if row.uses == "z" else activated(name, z))
    expected = slope_by_differences(lambda x: activated(name, x), z)
    np.testing.assert_allclose(slope, expected, rtol=1e-9, atol=1e-10)


VALUES = {
    "linear": (-2.0, -2.0), "relu": (-2.0, 0.0), "leaky_relu": (-2.0, -0.02), "elu": (-1.0, math.exp(-1) - 1),
    "sigmoid": (math.log(3), 0.75), "tanh": (math.log(3), 0.8), "softplus": (math.log(3), math.log(4)),
    "hardswish": (-1.0, -1 / 3), "mish": (math.log(3), math.log(3) * 15 / 17),  # tanh(log 4)
    "silu": (math.log(3), 0.75 * math.log(3)), "gelu": (1.0, 0.8413447460685429),  # the normal's Phi(1)
    "gelu_tanh": (1.0, 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))),
}  # fmt: skip


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activations_by_hand(name, T):
    z, expected = VALUES[name]
    y = np.array([z, 0, 3], T)
    reference.activate(name, y, y)  # in place
    assert y[0] == pytest.approx(expected, rel=4 * float(np.finfo(T).eps))
    slope = reference.ACTIVATIONS[name].slope(y)
    assert slope.dtype == T
    if name == "relu":
        assert slope.tolist() == [0, 0, 1]


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("name", reference.ACTIVATIONS)
def test_activations_far_out_are_finite(name, T):
    y = activated(name, np.array([-1e3, -100, 100, 1e3], T))
    assert np.isfinite(y).all()
    assert np.isfinite(reference.ACTIVATIONS[name].slope(y)).all()


@pytest.mark.parametrize("T", DTYPES)
def test_softmax(T):
    z = np.array([[0, math.log(3)], [1000, 1000]], T)
    y = activated("softmax", z)
    np.testing.assert_allclose(y, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)
    reference.activate("softmax", z, z)
    assert z.tobytes() == y.tobytes()
    assert y.dtype == T


LABELS = np.array([2, 0, 3])
SOFT = np.array([[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], [0.25, 0.25, 0.5, 0]])
BITS = np.array([[0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1.0]])
REAL = np.random.default_rng(3).normal(size=(3, 4))
LOSS_CASES = [
    (LossSpec("mean_squared_error"), REAL),
    (LossSpec("mean_absolute_error"), REAL),
    (LossSpec("huber"), REAL),
    (LossSpec("huber", {"delta": 0.3}), REAL),
    (LossSpec("quantile"), REAL),
    (LossSpec("quantile", {"quantile": 0.9}), REAL),
    (LossSpec("binary_crossentropy"), BITS),
    (LossSpec("binary_crossentropy", {"label_smoothing": 0.2}), BITS),
    (LossSpec("hinge"), 2 * BITS - 1),
    (LossSpec("perceptron"), 2 * BITS - 1),
    (LossSpec("sparse_categorical_crossentropy"), LABELS),
    (LossSpec("sparse_categorical_crossentropy", {"label_smoothing": 0.2}), LABELS),
    (LossSpec("categorical_crossentropy"), SOFT),
    (LossSpec("categorical_crossentropy", {"label_smoothing": 0.2}), SOFT),
    (LossSpec("categorical_crossentropy"), 2 * SOFT),  # no distribution: the gradient is still the derivative
]


@pytest.mark.parametrize(("spec", "targets"), LOSS_CASES)
def test_loss_gradients_by_finite_differences(spec, targets):
    z = 2 * np.random.default_rng(4).normal(size=(3, 4))  # no element within 2 h of a kink
    gradient, expected = np.empty_like(z), np.empty_like(z)
    value = reference.loss(spec, z, targets, gradient)
    assert value == reference.loss(spec, z, targets)

    for i in np.ndindex(z.shape):

        def along(x, i=i):
            moved = z.copy()
            moved[i] = x
            return reference.loss(spec, moved, targets)

        expected[i] = slope_by_differences(along, z[i])
    np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("spec", "targets"), LOSS_CASES)
def test_losses_in_float32(spec, targets):
    z = np.random.default_rng(4).normal(size=(3, 4)).astype(np.float32)
    t = targets if targets.ndim == 1 else targets.astype(np.float32)
    single, double = np.empty_like(z), np.empty(z.shape)
    value = reference.loss(spec, z, t, single)
    exact = reference.loss(spec, z.astype(float), targets, double)
    assert value == pytest.approx(exact, rel=1e-6)
    np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-7)


LOSSES_BY_HAND = [
    # ((1 - 0)^2 + (2 - 4)^2) / 2
    ("mean_squared_error", {}, [[1, 2]], [[0, 4]], 2.5, [[1, -2]]),
    # (1 + 2) / 2; 0 where z = t
    ("mean_absolute_error", {}, [[1, 2, 3]], [[0, 4, 3]], 1.0, [[1 / 3, -1 / 3, 0]]),
    # (0.5 * 0.25 + 1 * (2 - 0.5)) / 2
    ("huber", {}, [[0.5, 2]], [[0, 4]], 0.8125, [[0.25, -0.5]]),
    # delta 2: both quadratic, (0.125 + 2) / 2
    ("huber", {"delta": 2.0}, [[0.5, 2]], [[0, 4]], 1.0625, [[0.25, -1]]),
    # (0.5 * 1 + 0.5 * 2) / 3; 0 where z = t
    ("quantile", {}, [[1, 2, 3]], [[0, 4, 3]], 0.5, [[1 / 6, -1 / 6, 0]]),
    # (0.25 * 1 + 0.75 * 2) / 2
    ("quantile", {"quantile": 0.75}, [[1, 2]], [[0, 4]], 0.875, [[0.125, -0.375]]),
    # sigmoid(log 3) = 3/4: (-log(3/4) - log(1/4)) / 2
    ("binary_crossentropy", {}, [[math.log(3)], [math.log(3)]], [[1], [0]],
     math.log(16 / 3) / 2, [[-1 / 8], [3 / 8]]),
    # t = 0.5 in the end, so log 2 at z = 0
    ("binary_crossentropy", {"label_smoothing": 1.0}, [[0.0]], [[1]], math.log(2), [[0]]),
    # (1 - 0.5 + 0 + 0) / 3 ; t z = 1 gives no gradient
    ("hinge", {}, [[0.5, -2, 1]], [[1, -1, 1]], 0.5 / 3, [[-1 / 3, 0, 0]]),
    # (0 + 2 + 0) / 3 ; t z = 0 does give a gradient
    ("perceptron", {}, [[0.5, -2, 0]], [[1, 1, -1]], 2 / 3, [[0, -1 / 3, 1 / 3]]),
    # p = (1/4, 3/4)
    ("sparse_categorical_crossentropy", {}, [[0, math.log(3)]], [0], math.log(4), [[-3 / 4, 3 / 4]]),
    # targets (0.9, 0.1) after smoothing: 0.9 log 4 + 0.1 log(4/3)
    ("sparse_categorical_crossentropy", {"label_smoothing": 0.2}, [[0, math.log(3)]], [0],
     0.9 * math.log(4) + 0.1 * math.log(4 / 3), [[-0.65, 0.65]]),
    ("categorical_crossentropy", {"label_smoothing": 0.2}, [[0, math.log(3)]], [[1, 0]],
     0.9 * math.log(4) + 0.1 * math.log(4 / 3), [[-0.65, 0.65]]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "params", "z", "t", "value", "gradient"), LOSSES_BY_HAND)
def test_losses_by_hand(name, params, z, t, value, gradient):
    z = np.array(z, float)
    t = np.array(t, np.int64 if name.startswith("sparse") else float)
    got = np.empty_like(z)
    assert reference.loss(LossSpec(name, params), z, t, got) == pytest.approx(value, rel=1e-14)
    np.testing.assert_allclose(got, gradient, rtol=1e-14, atol=1e-16)


def test_every_loss_is_worked_by_hand():
    assert set(reference.LOSSES) == {name for name, *_ in LOSSES_BY_HAND} == {spec.name for spec, _ in LOSS_CASES}


@pytest.mark.parametrize("name", ["binary_crossentropy", "sparse_categorical_crossentropy"])
def test_cross_entropies_of_huge_logits_are_exact(name):
    z = np.array([[-1000.0, 1000.0]], np.float32)
    t = np.array([[1, 0]], np.float32) if name == "binary_crossentropy" else np.array([0])
    gradient = np.empty_like(z)
    value = reference.loss(LossSpec(name), z, t, gradient)
    assert value == (1000 if name == "binary_crossentropy" else 2000)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("T", DTYPES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_dense_layer_leaves_its_inputs_alone(activation, T):
    rng = np.random.default_rng(5)
    x, w, b, dy = (rng.normal(size=shape).astype(T) for shape in [(4, 3), (3, 2), (2,), (4, 2)])
    before = [a.copy() for a in (x, w, b, dy)]
    y, z = np.empty((2, 4, 2), T)
    uses_z = reference.ACTIVATIONS[activation].uses == "z"
    reference.dense_forward(x, w, b, activation, y, z if uses_z else None)
    np.testing.assert_allclose(y, activated(activation, x @ w + b), rtol=1e-5, atol=1e-6)
    dx, dw, db = np.empty_like(x), np.empty_like(w), np.empty_like(b)
    reference.dense_backward(dy, x, w, z if uses_z else y, activation, dx, dw, db)
    dz = dy * reference.ACTIVATIONS[activation].slope(z if uses_z else y)
    for got, expected in [(dx, dz @ w.T), (dw, x.T @ dz), (db, dz.sum(axis=0))]:
        assert got.dtype == T
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    reference.dense_backward(dy, x, w, z if uses_z else y, activation, None, dw, None)
    assert all(np.array_equal(a, c) for a, c in zip((x, w, b, dy), before, strict=True))
