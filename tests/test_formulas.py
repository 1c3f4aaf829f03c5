"""Formulas of the user: those of built-in ones give their bits, and models, optimizers, files and threads have them."""

import copy
import io
import logging
import math
import pickle
import re
import threading

import numpy as np
import pytest
from helpers_formulas import forget_formulas, function_of
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.kernels import cpu, reference
from fastopt.kernels.cpu.dense.layer import activate_kernel, slope_kernel
from fastopt.kernels.cpu.dense.losses import loss_kernel
from fastopt.kernels.cpu.optim.updates import update_kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.cpu.training import network
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, OPTIMIZERS, defined
from fastopt.kernels.formulas.optimizers import AT_STEP
from fastopt.kernels.language.source import FormulaError

GAIN = 1.5


def softsign(z):
    return GAIN * z / (1 + abs(z))


def softsign_slope(z):
    return GAIN / (1 + abs(z)) ** 2


def wide_huber(z, t, scale, delta):
    r = abs(z - t)
    return scale * (r * r / 2 if r < delta else delta * (r - delta / 2))


def wide_huber_slope(z, t, scale, delta):
    return scale * max(-delta, min(delta, z - t))


def log_cosh(z, t, width):
    r = (z - t) / width
    return width * math.log(math.cosh(r))


def log_cosh_gradient(z, t, width):
    return math.tanh((z - t) / width)


def heavy_ball(p, g, s, lr, beta):
    velocity = beta * s[0] + g
    return p - lr * velocity, velocity


def adam(p, g, s, lr, t, beta1, beta2, eps):
    m, v = s
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * (g * g)
    return p - lr / (1 - beta1**t) * (m / (math.sqrt(v) * (1 / math.sqrt(1 - beta2**t)) + eps)), (m, v)


def lion(p, g, s, lr, beta1, beta2):
    update = beta1 * s[0] + (1 - beta1) * g
    return p - lr * np.sign(update), (beta2 * s[0] + (1 - beta2) * g,)


FRACTION = (0.9, 0.0, 1.0)
BETAS = {"beta1": FRACTION, "beta2": 0.999}


def define_all():
    """One formula of each kind."""
    activation = fo.Activation.define("softsign", softsign, softsign_slope)
    loss = fo.Loss.define("log_cosh", log_cosh, log_cosh_gradient, {"width": (1.0, 0.1, 10)})
    rule = fo.OptimizerRule.define("HeavyBall", heavy_ball, ["velocity"], {"beta": FRACTION}, lr=0.05)
    return activation, loss, rule


def calls_of(model):
    """A list that grows with every call of the network's `train`: the epochs that were done by it."""
    calls, make = [], model._network_for

    def watched(training):
        network = make(training)
        train = network.train

        def counted(batches, *args):
            calls.append(batches.epochs)
            return train(batches, *args)

        network.train = counted
        return network

    model._network_for = watched
    return calls


def data(rows=40, dtype="float32"):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 3)).astype(dtype)
    return x, np.sin(x[:, :1])


def model_of(backend, **options):
    model = fo.Sequential([fo.Dense(5, "softsign"), fo.Dense(1)], seed=1, backend=backend, **options)
    model.compile("heavyball", "log_cosh", metrics=["mae"])
    return model


def words(*arrays):
    return [np.asarray(array).tobytes() for array in arrays]


# ---------------------------------------------------------------- the bits of built-in formulas
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.repeats)])
@pytest.mark.parametrize(
    "name", [n if n in ("elu", "gelu") else pytest.param(n, marks=pytest.mark.repeats) for n in ACTIVATIONS]
)
def test_an_activation_has_the_bits_of_the_built_in_one(name, dtype):
    row = ACTIVATIONS[name]
    again = fo.Activation.define(f"my_{name}", row.value, row.slope, slope_of=row.uses)
    z, one = np.linspace(-9, 9, 333, dtype=dtype)[:, None], np.ones((1, 1), dtype)
    found = []
    for activation in (name, again):
        y, pre = fo.dense_forward(z, one, activation=activation, return_preactivation=True)
        dx, *_ = fo.dense_backward(np.ones_like(z), z, one, y, activation=activation, z=pre)
        found.append(words(y, dx))
        want = fo.dense_forward(z, one, activation=again, backend="numpy")
        np.testing.assert_allclose(y, want, rtol=30 * np.finfo(dtype).eps, atol=8 * np.finfo(dtype).eps)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["huber", pytest.param("quantile", marks=pytest.mark.repeats), "hinge"])
def test_a_loss_has_the_bits_of_the_built_in_one(name):
    row = LOSSES[name]
    params = {"a": next(iter(row.params.values()), 0.0)}
    targets = "signs" if row.signs else "numbers"
    cls = fo.Loss.define(f"my_{name}", row.value, row.slope, params, targets)
    rng = np.random.default_rng(0)
    z = (2 * rng.standard_normal((17, 3))).astype("float32")
    t = np.where(rng.random(z.shape) < 0.5, -1, 1) if row.signs else rng.standard_normal(z.shape)
    other = {next(iter(row.params)): 0.3} if row.params else {}
    for given_, own in (({}, {}), (other, {"a": 0.3} if other else {})):
        expected = fo.losses.LOSS_CLASSES[name](**given_)
        for backend in ("cpu", "numpy"):
            value, gradient = cls(**own, backend=backend).value_and_gradient(z, t)
            want, wanted = expected.value_and_gradient(z, t)
            np.testing.assert_allclose([value, *gradient.flat], [want, *wanted.flat], rtol=1e-6, atol=1e-9)
            if backend == "cpu":
                assert words(value, gradient) == words(want, wanted)
    assert cls().spec.params == params
    assert fo.losses.get(f"my_{name}").name == f"my_{name}"


RULES = {  # update, states, options, learning rate: the built-in class, and other values of its options
    "adam": ((adam, ["exp_avg", "exp_avg_sq"], {**BETAS, "eps": 1e-8}), fo.Adam, {}),
    "lion": ((lion, ["exp_avg"], {"beta1": FRACTION, "beta2": 0.99}), fo.Lion, {"decoupled": True, "lr": 1e-4}),
    "momentum": ((heavy_ball, ["momentum_buffer"], {"beta": FRACTION}), fo.SGD, {"lr": 1e-3}),
}
FEW = "adam", "float16"  # of all others a quick run has float32
OPTIONS = {"weight_decay": 0.1, "l1": 0.01, "clip_value": 0.7, "maximize": True}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if dtype == "float32" or (name, dtype) == FEW else pytest.mark.repeats)
        for name in RULES
        for dtype in ("float32", "float16", "float64")
    ],
)
def test_a_rule_has_the_bits_of_the_built_in_one(name, dtype, backend):
    (update, states, options), cls, more = RULES[name]
    mine = fo.OptimizerRule.define(f"My{cls.__name__}", update, states, options, **more)
    given_ = {"momentum": 0.9} if cls is fo.SGD else {}
    rounded = {"master_weights": False, "seed": 3} if dtype == "float16" else {}
    for common in ({}, {**OPTIONS, **rounded}, {"lr": fo.schedules.Exponential(0.1, gamma=0.5, steps=2)}):
        rng = np.random.default_rng(0)
        p, *gradients = rng.standard_normal((5, 61)).astype(dtype)
        arrays = p.copy(), p.copy()
        found = []
        for array, opt in zip(arrays, (mine(arrays[0], backend=backend, **common),
                                       cls(arrays[1], backend=backend, **given_, **common)), strict=True):  # fmt: skip
            for g in gradients:
                opt.step(g.copy())
            assert len(opt.states[0]) == len(states) + (dtype == "float16" and "seed" not in common)
            found.append(words(array, *opt.states[0]))
        assert found[0] == found[1]
    assert not np.array_equal(arrays[0], p)


def test_a_rule_that_keeps_its_states_out_of_denormals_itself(backend):
    """As the built-in ones that divide by a state do, which then is never 0 after a gradient."""

    def floored(p, g, s, lr, tiny):
        v = s[0] + g * g
        v = max(v, tiny) if g != 0 or s[0] > 0 else v
        return p - lr * (g / math.sqrt(v)), v

    cls = fo.OptimizerRule.define("Floored", floored, ["v"], lr=1.0)
    plain = fo.OptimizerRule.define("Plain", lambda p, g, s, lr: (p - lr * g, s[0] + g * g), ["v"], lr=1.0)
    g = np.array([1e-30, 0.0, 2.0], np.float32)
    for made, state in ((cls, [np.finfo(np.float32).tiny, 0, 4]), (plain, [0, 0, 4])):
        w = np.zeros(3, np.float32)
        opt = made(w, backend=backend)
        opt.step(g)
        assert opt.states[0][0].tolist() == state


# ---------------------------------------------------------------- models
def test_a_model_trains_in_one_compiled_call(backend):
    define_all()
    x, y = data()
    model = model_of(backend)
    calls = calls_of(model)
    history = model.fit(x, y, epochs=4, batch_size=7)
    assert calls == [4]
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert model.last_activation == "linear"
    assert model.layers[0].activation == "softsign"
    same = model_of("numpy")
    same.fit(x, y, epochs=4, batch_size=7)
    for ours, theirs in zip(model.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_losses_with_weights_of_rows(backend):
    """A weight of 2 is a row given twice."""
    define_all()
    x, y = data(20)
    weights = np.arange(20) % 3.0
    twice = np.repeat(np.arange(20), weights.astype(int))
    models = model_of(backend), model_of("numpy")
    models[0].fit(x, y, epochs=3, batch_size=20, sample_weight=weights)
    models[1].fit(x[twice], y[twice], epochs=3, batch_size=len(twice))
    for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    found, wanted = models[0].evaluate(x, y, sample_weight=weights), models[1].evaluate(x[twice], y[twice])
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)


@pytest.mark.skipif(bool(cpu.bfloat16_refusal()), reason="this processor does not compute in bfloat16")
def test_layers_that_compute_in_bfloat16():
    define_all()
    x, y = data()
    results = []
    for backend in ("cpu", "numpy"):
        model = model_of(backend, compute_dtype="bfloat16")
        model.fit(x, y, epochs=2, batch_size=8)
        results.append(model.predict(x))
    np.testing.assert_allclose(*results, rtol=2e-2, atol=2e-3)


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    define_all()
    monkeypatch.setattr(network, "STEP_FLOPS", 1)  # small work deserves threads, too
    monkeypatch.setattr(network, "PASS_FLOPS", 1)
    x, y = data(300)
    found, before = [], fo.get_num_threads()
    for count in (1, 2):
        fo.set_num_threads(count)
        model = model_of("cpu")
        model.fit(x, y, epochs=2, batch_size=50)
        found.append(words(*model.get_weights()))
    fo.set_num_threads(before)
    assert found[0] == found[1]


def test_a_link_takes_logits():
    logistic = LOSSES["binary_crossentropy"]
    cls = fo.Loss.define(
        "cross", logistic.value, logistic.slope, {"a": (0.0, 0, 1)}, targets="fractions", link="sigmoid"
    )
    x, y = data()
    labels = (y[:, 0] > 0).astype(int)
    found = []
    for loss in (cls(), fo.losses.BinaryCrossentropy()):
        model = fo.Sequential([fo.Dense(4, "tanh"), fo.Dense(1, "sigmoid")], seed=1)
        model.compile("sgd", loss, metrics=["accuracy"])
        history = model.fit(x, labels, epochs=2, batch_size=10)
        found.append((words(*model.get_weights()), history["loss"], history["accuracy"]))
    assert found[0] == found[1]


@settings(max_examples=8, deadline=None)
@given(
    backend=st.sampled_from(["cpu", "numpy"]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "weight_decay": st.floats(0, 0.1), "l1": st.floats(0, 0.01), "clip_value": st.floats(0.01, 1),
            "beta": st.floats(0, 0.95), "lr": st.floats(0.001, 0.1),
        },
    ),
    batch=st.integers(1, 50),
)  # fmt: skip
def test_any_options_of_a_rule_in_a_model(backend, options, batch):
    """One epoch is the steps on arrays, one after the other."""
    _, _, rule = define_all()
    x, y = data()
    model = fo.Sequential([fo.Dense(1, "linear")], seed=1, inputs=3, backend=backend)
    w, b = (p.copy() for p in model.get_weights())
    model.compile(rule(**options, backend=backend), "mse")
    model.fit(x, y, epochs=1, batch_size=batch, shuffle=False)
    opt = rule([w, b], **options, backend="numpy")
    for i in range(0, len(x), batch):
        r = 2 / len(x[i : i + batch]) * (x[i : i + batch] @ w + b - y[i : i + batch])
        opt.step([x[i : i + batch].T @ r, r.sum(axis=0)])
    for ours, theirs in zip(model.get_weights(), (w, b), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- files and pickles
def test_files_name_formulas(backend, caplog):
    define_all()
    x, y = data()
    model = model_of(backend)
    model.compile(fo.get_optimizer("heavyball", beta=0.5), fo.Loss.define(
        "log_cosh", log_cosh, log_cosh_gradient, {"width": (1.0, 0.1, 10)})(width=2.0))  # fmt: skip
    model.fit(x, y, epochs=1)
    file = io.BytesIO()
    model.save(file)
    again = fo.load_model(io.BytesIO(file.getvalue()))
    assert (repr(again.loss), again.optimizer.param_groups[0]["beta"]) == ("LogCosh(width=2)", 0.5)
    for one in (model, again):
        one.fit(x, y, epochs=1)
    assert words(*model.get_weights()) == words(*again.get_weights())
    # Another formula of the name is another model.
    fo.Activation.define("softsign", lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2)
    with caplog.at_level(logging.WARNING, "fastopt"):
        other = fo.load_model(io.BytesIO(file.getvalue()))
    assert "the activation 'softsign' is defined here by another formula than the file's" in caplog.text
    assert words(other.predict(x)) != words(fo.load_model(io.BytesIO(file.getvalue())).predict(x + 1))
    # Without the formulas there is none.
    for kind, call in (("activation", "fo.Activation.define('softsign', value, slope)"),
                       ("loss", "fo.Loss.define('log_cosh', value, gradient)"),
                       ("optimizer", "fo.OptimizerRule.define('HeavyBall', update, states, options)")):  # fmt: skip
        forget_formulas()
        define_all()
        name = re.findall("'(.*)'", call)[0]
        key = defined.keys[kind].pop(name)
        with pytest.raises(ValueError, match=re.escape(f"the {kind} '{name}' is not defined here: call {call} before")):
            fo.load_model(io.BytesIO(file.getvalue()))
        defined.keys[kind][name] = key


def test_pickles_and_copies(backend):
    define_all()
    x, y = data()
    model = model_of(backend)
    model.fit(x, y, epochs=1)
    saved = pickle.dumps(model)
    copies = pickle.loads(saved), copy.deepcopy(model)
    for one in (model, *copies):
        one.fit(x, y, epochs=1)
    for one in copies:
        assert words(*one.get_weights()) == words(*model.get_weights())
        assert type(one.optimizer) is type(model.optimizer)
        assert type(one.loss) is type(model.loss)
    forget_formulas()
    with pytest.raises(ValueError, match=r"the loss 'log_cosh' is not defined here: call fo\.Loss\.define"):
        pickle.loads(pickle.dumps(model.loss))
    layer = fo.Dense(2)
    object.__setattr__(layer, "activation", "softsign")
    object.__setattr__(layer, "_key", model.layers[0]._key)
    with pytest.raises(ValueError, match=r"the activation 'softsign' is not defined here: call fo\.Activation\.define"):
        layer.spec(3)
    fo.Activation.define("softsign", lambda z: 2 * z, lambda z: 2.0)
    with pytest.raises(ValueError, match="'softsign' is defined here by another formula than where this was made"):
        layer.spec(3)


def test_a_class_that_was_pickled_with_another_formula():
    _, _, rule = define_all()
    saved = pickle.dumps(rule(np.zeros(2)))
    assert type(pickle.loads(saved)) is rule
    fo.OptimizerRule.define("HeavyBall", lambda p, g, s, lr: (p - lr * g, s[0] + g), ["velocity"])
    assert type(pickle.loads(saved)) is rule  # this process has both


# ---------------------------------------------------------------- names
def test_the_same_formula_again_is_the_same():
    first, loss, rule = define_all()
    again = fo.Activation.define("softsign", *(function_of(
        f"GAIN = 1.5\ndef f(x):\n    'Another text.'\n    return {body}\n") for body in (
        "GAIN * x / (1 + abs(x))", "GAIN / (1 + abs(x)) ** 2")))  # fmt: skip
    assert again == first
    assert (loss, rule) == define_all()[1:]
    assert list(defined.keys["activation"]) == ["softsign"]
    assert len([key for key in ACTIVATIONS if key.startswith("softsign")]) == 1


def test_what_was_made_before_keeps_its_formula(backend):
    define_all()
    x, _ = data()
    old = fo.Sequential([fo.Dense(2, "softsign")], seed=1, inputs=3, backend=backend)
    before = old.predict(x)
    fo.Activation.define("softsign", lambda z: z / 2 + z, lambda z: 1.5)
    new = fo.Sequential([fo.Dense(2, "softsign")], seed=1, inputs=3, backend=backend)
    np.testing.assert_array_equal(old.predict(x), before)
    np.testing.assert_array_equal(old.predict(x[:7]), before[:7])
    w, b = new.get_weights()
    np.testing.assert_allclose(new.predict(x), 1.5 * (x @ w + b), rtol=1e-5, atol=1e-6)
    define_all()  # and back
    newest = fo.Sequential([fo.Dense(2, "softsign")], seed=1, inputs=3, backend=backend)
    np.testing.assert_array_equal(newest.predict(x), before)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_a_loss_of_several_parameters(backend):
    """Each set of values is a formula of its own; models, files and pickles have the values."""
    Wide = fo.Loss.define("wide", wide_huber, wide_huber_slope, {"scale": 2.0, "delta": (1.0, 0.1, 9.0)})
    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(2, 9, 3)).astype(np.float32)
    for values in ({}, {"scale": 0.5, "delta": 0.25}):
        loss, own = Wide(**values, backend=backend), {"scale": 2.0, "delta": 1.0} | values
        r, delta = abs(z - t), own["delta"]
        expected = own["scale"] * np.where(r < delta, r**2 / 2, delta * (r - delta / 2))
        assert loss(z, t) == pytest.approx(expected.mean(), rel=1e-6)
        slope = own["scale"] * np.clip(z - t, -delta, delta) / z.size
        np.testing.assert_allclose(loss.gradient(z, t), slope, rtol=1e-6)
        for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
            assert (repr(other), other.spec) == (repr(loss), loss.spec)
    assert fo.losses.get("wide").spec == Wide().spec
    model = fo.Sequential([fo.Dense(3)], seed=1, backend=backend)
    model.compile("sgd", Wide(scale=0.5, delta=0.25))
    model.fit(z, t, verbose=0)
    file = io.BytesIO(pickle.dumps(model))
    assert pickle.load(file).loss.spec == model.loss.spec
    with pytest.raises(ValueError, match=r"delta must be a number in \[0.1, 9\]; got 10"):
        Wide(delta=10)


def test_a_file_has_the_values_of_several_parameters(tmp_path):
    Wide = fo.Loss.define("wide", wide_huber, wide_huber_slope, {"scale": 2.0, "delta": (1.0, 0.1, 9.0)})
    model = fo.Sequential([fo.Dense(3)], seed=1, inputs=2)
    model.compile("sgd", Wide(scale=0.5))
    model.save(tmp_path / "m")
    loaded = fo.load_model(tmp_path / "m")
    assert (repr(loaded.loss), loaded.loss.spec) == ("Wide(scale=0.5, delta=1)", model.loss.spec)
    forget_formulas()
    with pytest.raises(ValueError, match="the loss 'wide' is not defined here"):
        fo.load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fo.Activation.define("relu", softsign, softsign_slope), ValueError, "the activation 'relu' itself"),
        (lambda: fo.Activation.define("Softmax", softsign, softsign_slope), ValueError, "'Softmax' itself"),
        (lambda: fo.Activation.define("a-b", softsign, softsign_slope), ValueError, "letters, digits and _"),
        (lambda: fo.Activation.define("../x", softsign, softsign_slope), ValueError, "letters, digits and _"),
        (lambda: fo.Activation.define("lambda", softsign, softsign_slope), ValueError, "as that of a function"),
        (lambda: fo.Activation.define(3, softsign, softsign_slope), TypeError, "must be a str; got 3"),
        (lambda: fo.Activation.define("f", math.exp, softsign_slope), TypeError, "value must be a Python function"),
        (lambda: fo.Activation.define("f", softsign, None), TypeError, "slope must be a Python function"),
        (lambda: fo.Activation.define("f", softsign, softsign_slope, "x"), ValueError, "unknown slope_of 'x'"),
        (lambda: fo.Activation("softsing"), ValueError, "unknown activation 'softsing'"),
        (lambda: fo.Dense(2, "softsing"), ValueError, "unknown activation 'softsing'"),
        (lambda: fo.Loss.define("mse", log_cosh, log_cosh_gradient), ValueError, "has the loss 'mse' itself"),
        (lambda: fo.Loss.define("f", log_cosh, log_cosh_gradient), ValueError, r"log_cosh\(z, t, width\) must take"),
        (
            lambda: fo.Loss.define("f", wide_huber, wide_huber_slope, {"scale": 1}),
            ValueError,
            r"wide_huber\(z, t, scale, delta\) must take",
        ),
        (
            lambda: fo.Loss.define("f", log_cosh, log_cosh_gradient, {"width": (9, 0, 1)}),
            ValueError,
            r"default of params\['width'\] must be a number in \[0, 1\]; got 9",
        ),
        (
            lambda: fo.Loss.define("f", log_cosh, log_cosh_gradient, {"width": 1}, link="softmax"),
            ValueError,
            "unknown link 'softmax'",
        ),
        (lambda: fo.OptimizerRule.define("Adam", adam), ValueError, "has the optimizer 'Adam' itself"),
        (lambda: fo.OptimizerRule.define("Sgd", adam), ValueError, "has the optimizer 'Sgd' itself"),
        (lambda: fo.OptimizerRule.define("A", adam, ["m"]), ValueError, r"adam\(p, g, s, lr, t, beta1.*must take"),
        (lambda: fo.OptimizerRule.define("A", heavy_ball, ["m", "v"], {"beta": 1}), ValueError, r"a tuple of 2 state"),
        (lambda: fo.OptimizerRule.define("A", adam, ["m"] * 2), ValueError, "at most 3 different names"),
        (lambda: fo.OptimizerRule.define("A", adam, ["step"]), ValueError, "names of their own; got 'step'"),
        (lambda: fo.OptimizerRule.define("A", adam, [], {"l1": 0}), ValueError, "'l1', which has a meaning already"),
        (lambda: fo.OptimizerRule.define("A", adam, lr=-1), ValueError, "lr must be at least 0"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert defined.keys == {kind: {} for kind in defined.KINDS}
    assert not defined.names


def test_derivatives_are_checked():
    def wrong(z):
        return GAIN / (1 + abs(z))

    with pytest.raises(FormulaError) as raised:
        fo.Activation.define("f", softsign, wrong)
    message, file, line, _ = str(raised.value).splitlines()
    assert "slope(z) must be the derivative of value(z); at z = -8.0371 it is 0.165982, but by finite" in message
    assert f'"{__file__}"' in file
    assert line.strip() == "def wrong(z):"
    with pytest.raises(FormulaError, match=r"slope\(y\) must be the derivative"):
        fo.Activation.define("f", math_tanh, lambda z: 1 - math.tanh(z) ** 2, slope_of="y")
    with pytest.raises(FormulaError, match=r"gradient\(z, t\) must be the derivative of value\(z, t\) by z"):
        fo.Loss.define("f", log_cosh, lambda z, t, width: z - t, {"width": 1})
    # A corner is no fault, and a slope that is none on purpose is taken where that is said.
    fo.Activation.define("corner", lambda z: abs(z), lambda z: 1 if z > 0 else -1)
    step = fo.Activation.define("step", lambda z: 1 if z > 0 else 0, lambda z: 1, check=False)
    one = np.ones((1, 1))
    assert fo.dense_backward(one, one, one, one, activation=step, z=-3 * one)[0].tolist() == [[1.0]]


def at_step_of(cls):
    return OPTIMIZERS[cls().rule].at_step


def math_tanh(z):
    return math.tanh(z)


def test_a_function_that_is_not_always_the_same():
    numbers = iter(range(10_000))

    class Changing:
        def __call__(self, z):
            return z

    def value(z, k=GAIN):
        return k * z

    value.__defaults__ = (2.0,)  # not what the source says, but what a call takes
    fo.Activation.define("double", value, lambda z: 2)
    with pytest.raises(FormulaError, match="numbers is a range_iterator"):
        fo.Activation.define("f", lambda z: z + numbers, lambda z: 1)
    with pytest.raises(TypeError, match="value must be a Python function"):
        fo.Activation.define("f", Changing(), lambda z: 1)


def test_wrong_compiled_code_is_found(monkeypatch):
    """By a reference that is another: then a definition leaves nothing behind."""
    with monkeypatch.context() as patched:
        patched.setattr(reference, "dense_forward", lambda z, w, b, name, y, pre: y.fill(7))
        with pytest.raises(FormulaError, match="the activation 'softsign' must give the same numbers compiled and"):
            fo.Activation.define("softsign", softsign, softsign_slope)
    with monkeypatch.context() as patched:
        patched.setattr(reference, "loss", lambda spec, z, t, gradient: 7.0)
        with pytest.raises(FormulaError, match="the loss 'log_cosh' must give the same numbers compiled and"):
            fo.Loss.define("log_cosh", log_cosh, log_cosh_gradient, {"width": 1.25})
    with monkeypatch.context() as patched:
        patched.setattr(reference, "update", lambda jobs: None)
        with pytest.raises(FormulaError, match="the optimizer 'HeavyBall' must give the same numbers compiled and"):
            fo.OptimizerRule.define("HeavyBall", lambda p, g, s, lr: (p - 0.125 * lr * g, s[0] + g), ["velocity"])
    assert defined.keys == {kind: {} for kind in defined.KINDS}
    define_all()


# ---------------------------------------------------------------- optimizers
def test_the_class_is_like_a_built_in_one():
    _, _, rule = define_all()
    assert rule.__name__ == "HeavyBall"
    assert issubclass(rule, fo.Optimizer)
    assert repr(rule()) == "HeavyBall(lr=0.05, beta=0.9, weight_decay=0.0, maximize=False, backend='cpu')"
    assert fo.get_optimizer("HeavyBall", beta=0.5).param_groups[0]["beta"] == 0.5
    assert fo.get_optimizer(rule, lr=1.0).lr == 1.0
    with pytest.raises(ValueError, match=r"beta must be a number in \[0, 1\]; got 2"):
        rule(beta=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'gamma'"):
        rule(gamma=2)
    w, v = np.ones(3), np.ones(2)
    opt = rule([{"params": w, "beta": 0.0}, {"params": v, "lr": 1.0}], clip_norm=1.0)
    opt.step([np.ones(3), np.ones(2)])
    saved = opt.state_dict()
    assert list(saved["state"][0]) == ["step", "velocity"]
    other = rule([{"params": w.copy()}, {"params": v.copy()}])
    other.load_state_dict(saved)
    assert other.param_groups[0]["beta"] == 0.0
    opt = rule(np.zeros((3, 2)), lr=1.0)
    opt.step((np.array([1]), np.ones((1, 2))))  # a gradient of some rows
    assert opt.states[0][0].tolist() == [[0, 0], [1, 1], [0, 0]]


def test_a_flag_and_a_rule_without_states(backend):
    def update(p, g, s, lr, normed):
        return p - lr * (np.sign(g) if normed else g)

    cls = fo.OptimizerRule.define("Plain", update, options={"normed": False}, lr=0.5)
    w = np.array([1.0, 2.0, 3.0])
    opt = cls(w, backend=backend)
    opt.step(np.array([3.0, -4.0, 0.0]))
    assert w.tolist() == [-0.5, 4.0, 3.0]
    opt.param_groups[0]["normed"] = True
    opt.step(np.array([3.0, -4.0, 0.0]))
    assert w.tolist() == [-1.0, 4.5, 3.0]
    with pytest.raises(ValueError, match="normed must be True or False; got 2"):
        cls(w, normed=2)


def test_capturable_is_refused_where_the_host_alone_knows_the_formula():
    mine = fo.OptimizerRule.define("MyAdam", adam, ["m", "v"], {**BETAS, "eps": 1e-8})
    with pytest.raises(ValueError, match="capturable=True must be left out for MyAdam: its update depends on the step"):
        mine(capturable=True, backend="cuda")
    _, _, rule = define_all()
    assert at_step_of(rule) in AT_STEP
    assert at_step_of(mine) not in AT_STEP


# ---------------------------------------------------------------- machine code and threads
@pytest.mark.skipif(INTERPRETED, reason="there is no machine code")
@pytest.mark.parametrize(
    "body",
    [
        "z / (1 + abs(z))",
        "math.log(1 + math.exp(min(z, 20)))",
        "math.log1p(z * z) + math.expm1(z) + math.cosh(z) + math.sinh(z)",
        "math.tanh(z) * math.erf(z) * math.sqrt(abs(z)) if z > 0 else z ** 3",
    ],
)
def test_loops_are_vector_code(body, monkeypatch, tmp_path):
    """All arithmetic of an activation's loop is on vectors, as that of the built-in ones."""
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))  # nothing is compiled yet
    from fastopt.kernels import definitions

    value = function_of(f"def f(z):\n    return {body}\n")
    key = definitions.define_activation("probe", value, value, "z", check=False)
    kernel = activate_kernel(key, "float32")
    assert kernel.address
    text = kernel.llvm()
    # One loop of vectors for each of the kernel's four (LLVM may unroll them); behind it elements go one by one.
    loops = re.findall(r"^vector\.body(\d*)(?:\.\d+|\.epil)*:(.*?)^(?=\S+:)", text, re.MULTILINE | re.DOTALL)
    assert len({number for number, _ in loops}) == 4
    for _, loop in loops:
        assert re.search(r"= f(?:add|sub|mul|div) <\d+ x float>", loop)
        assert not re.search(r"= f(?:add|sub|mul|div) float", loop)
    assert not re.findall(r"double", re.sub(r"declare.*", "", text))  # literals did not widen anything
    assert not re.findall(r"call float @(?:exp|log|tanh|erf|pow|sinh|cosh)", text)


@pytest.mark.skipif(INTERPRETED, reason="kernels have names of files")
def test_kernels_are_named_by_the_formula():
    activation, loss, rule = define_all()
    layer, spec, name = fo.Dense(1, activation), loss().spec, rule().rule
    kernels = [
        activate_kernel(layer.activation_key(), "float32"), slope_kernel(layer.activation_key(), "float32"),
        loss_kernel(spec.name, "float32", False), update_kernel(OPTIMIZERS[name].rule, 1, "float32"),
    ]  # fmt: skip
    for kernel, word in zip(kernels, ("softsign", "softsign", "log_cosh", "HeavyBall"), strict=True):
        assert re.search(rf"_{word}_[0-9a-f]{{12}}_float32$", kernel.name)
    global GAIN
    GAIN = 2.5  # a constant of a formula is part of it
    try:
        fo.Activation.define("softsign", softsign, softsign_slope)
    finally:
        GAIN = 1.5
    assert fo.Dense(1, "softsign").activation_key() != layer.activation_key()


def test_threads_define_and_use_formulas():
    failures, x = [], np.linspace(-2, 2, 64, dtype=np.float32)[:, None]
    gate = threading.Barrier(4)

    def work(number):
        try:
            gate.wait()
            for _ in range(3):
                activation = fo.Activation.define("softsign", softsign, softsign_slope)
                y = fo.dense_forward(x, np.ones((1, 1), np.float32), activation=activation)
                np.testing.assert_allclose(y, 1.5 * x / (1 + abs(x)), rtol=1e-6)
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failures
