"""Options of single layers: `fit` against loops of NumPy, torch and scikit-learn."""

import copy
import io
import pickle

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.profile import recorder
from fastopt.models import checkpoint

BACKENDS = ["cpu", "numpy"]
RNG = np.random.default_rng(5)
X = RNG.standard_normal((23, 4))
Y = np.tanh(X @ RNG.standard_normal((4, 2))) + 0.1 * RNG.standard_normal((23, 2))
SHAPES = (4, 5), (5,), (5, 5), (5,), (5, 2), (2,)
WEIGHTS = [RNG.standard_normal(shape) / 2 for shape in SHAPES]


def made(*options, optimizer=None, backend="cpu", dtype="float64", dropout=0.0, **compiling):
    """Three layers, with these options each, from the same weights."""
    options = [*options, {}, {}, {}][:3]
    layers = [fo.Dense(5, "tanh", **options[0]), fo.Dropout(dropout), fo.Dense(5, "tanh", **options[1])]
    model = fo.Sequential([*layers, fo.Dense(2, **options[2])], seed=3, backend=backend, dtype=dtype, inputs=4)
    model.set_weights(WEIGHTS)
    model.compile(optimizer or fo.SGD(lr=0.1), "mean_squared_error", **compiling)
    return model


def fitted(model, epochs=3, **options):
    return model.fit(X, Y, epochs=epochs, batch_size=6, verbose=0, **options)


def same_bits(model, other):
    return all(np.array_equal(a, b) for a, b in zip(model.parameters, other.parameters, strict=True))


# ---------------------------------------------------------------- regularizers
def loop(l1, l2, bias_l1, epochs, lr):
    """Least squares by gradient descent on all rows, with penalties, as a textbook has it."""
    w, b, losses = WEIGHTS[0][:, :2].copy(), WEIGHTS[1][:2].copy(), []
    for _ in range(epochs):
        r = X @ w + b - Y
        losses.append((r**2).mean() + l1 * np.abs(w).sum() + l2 * (w**2).sum() + bias_l1 * np.abs(b).sum())
        dw = 2 * X.T @ r / r.size + l1 * np.sign(w) + 2 * l2 * w
        db = 2 * r.sum(axis=0) / r.size + bias_l1 * np.sign(b)
        w -= lr * dw
        b -= lr * db
    r = X @ w + b - Y
    loss = (r**2).mean() + l1 * np.abs(w).sum() + l2 * (w**2).sum() + bias_l1 * np.abs(b).sum()
    return w, b, losses, loss


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kernel", "bias", "factors"),
    [
        (fo.regularizers.L2(0.3), None, (0, 0.3, 0)),
        (fo.regularizers.L1(0.2), fo.regularizers.L1(0.1), (0.2, 0, 0.1)),
        (fo.regularizers.L1L2(0.05, 0.02), "l1", (0.05, 0.02, 0.01)),
        ("l2", None, (0, 0.01, 0)),
        (fo.regularizers.L1, None, (0.01, 0, 0)),
        ("l1_l2", None, (0.01, 0.01, 0)),
    ],
)
def test_penalties_of_a_loop_of_numpy(kernel, bias, factors, backend):
    layer = fo.Dense(2, kernel_regularizer=kernel, bias_regularizer=bias)
    model = fo.Sequential([layer], backend=backend, dtype="float64", inputs=4)
    model.set_weights([WEIGHTS[0][:, :2], WEIGHTS[1][:2]])
    model.compile(fo.SGD(lr=0.05), "mse")
    history = model.fit(X, Y, epochs=7, batch_size=len(X), validation_data=(X, Y))
    w, b, losses, loss = loop(*factors, epochs=7, lr=0.05)
    np.testing.assert_allclose(model.parameters[0], w, rtol=1e-12)
    np.testing.assert_allclose(model.parameters[1], b, rtol=1e-12)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-12)
    np.testing.assert_allclose(history["val_loss"], [*losses[1:], loss], rtol=1e-12)
    np.testing.assert_allclose(model.evaluate(X, Y)["loss"], loss, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ridge_and_logistic_regression_of_scikit_learn(backend):
    """Ridge's alpha is n l2, for its loss is a sum; C of LogisticRegression, whose penalty is halved, 1 / (2 n l2)."""
    linear_model, alpha, rows = pytest.importorskip("sklearn.linear_model"), 3.0, len(X)
    y = Y[:, 0]
    model = fo.Sequential([fo.Dense(1, kernel_regularizer=fo.regularizers.L2(alpha / rows))], backend=backend,
                          dtype="float64")  # fmt: skip
    model.compile(fo.SGD(lr=0.2), "mse")
    model.fit(X, y, epochs=400, batch_size=rows, shuffle=False)
    ridge = linear_model.Ridge(alpha=alpha).fit(X, y)
    np.testing.assert_allclose(model.parameters[0].ravel(), ridge.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.parameters[1], ridge.intercept_, rtol=1e-6)

    labels, c = (y > 0).astype(int), 0.7
    model = fo.Sequential([fo.Dense(1, "sigmoid", kernel_regularizer=fo.regularizers.L2(1 / (2 * rows * c)))],
                          backend=backend, dtype="float64")  # fmt: skip
    model.compile(fo.SGD(lr=1.0), "binary_crossentropy")
    model.fit(X, labels, epochs=500, batch_size=rows, shuffle=False)
    logistic = linear_model.LogisticRegression(C=c, tol=1e-10).fit(X, labels)
    np.testing.assert_allclose(model.parameters[0].ravel(), logistic.coef_[0], rtol=1e-4)
    np.testing.assert_allclose(model.parameters[1], logistic.intercept_, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_of_a_step_has_the_penalty_of_the_weights_before_it(backend):
    model = made({"kernel_regularizer": "l2"}, backend=backend)
    history = model.fit(X, Y, epochs=1, batch_size=6, shuffle=False)
    model.set_weights(WEIGHTS)
    plain = made(backend=backend)
    assert len(history.step_losses) == 4
    for i, loss in enumerate(history.step_losses):
        rows = slice(6 * i, 6 * i + 6)
        expected = plain.evaluate(X[rows], Y[rows])["loss"] + 0.01 * (plain.parameters[0] ** 2).sum()
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        step = made({"kernel_regularizer": "l2"}, backend=backend)
        step.set_weights(plain.parameters)
        step.fit(X[rows], Y[rows], batch_size=6, shuffle=False)
        plain.set_weights(step.parameters)


# ---------------------------------------------------------------- groups of torch
GROUPED = {
    "lr_scale": ({"lr_scale": 0.3}, {}, {"lr_scale": 2.0}),
    "weight_decay": ({"weight_decay": 0.2}, {"weight_decay": 0.0}, {}),
    "both": ({"lr_scale": 0.5, "weight_decay": 0.1}, {}, {"weight_decay": 0.3}),
}
TORCH = {
    "SGD": {"lr": 0.1, "weight_decay": 0.05},
    "SGD with momentum": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    "Adam": {"lr": 0.02, "weight_decay": 0.05},
    "AdamW": {"lr": 0.02, "weight_decay": 0.05},
    "RMSprop": {"lr": 0.01, "weight_decay": 0.05},
    "NAdam": {"lr": 0.01, "weight_decay": 0.05},
}


class Peer:
    """The same network of torch, with a group of its optimizer for each parameter."""

    def __init__(self, name, settings, options, decay_biases=True):
        self.torch = pytest.importorskip("torch")
        self.params = [self.torch.tensor(w, requires_grad=True) for w in WEIGHTS]
        groups = []
        for i, p in enumerate(self.params):
            own = settings[i // 2]
            decay = own.get("weight_decay", options["weight_decay"]) if decay_biases or i % 2 == 0 else 0.0
            groups.append({"params": [p], "lr": options["lr"] * own.get("lr_scale", 1.0), "weight_decay": decay})
        self.optimizer = getattr(self.torch.optim, name.split()[0])(groups, **options)

    def step(self, rows):
        x, y = self.torch.tensor(X[rows]), self.torch.tensor(Y[rows])
        w0, b0, w1, b1, w2, b2 = self.params
        z = ((x @ w0 + b0).tanh() @ w1 + b1).tanh() @ w2 + b2
        self.optimizer.zero_grad()
        ((z - y) ** 2).mean().backward()
        self.optimizer.step()

    def train(self, epochs):
        for _ in range(epochs):
            for start in range(0, len(X), 6):
                self.step(slice(start, start + 6))

    def assert_like(self, model):
        for p, ours in zip(self.params, model.parameters, strict=True):
            np.testing.assert_allclose(ours, p.detach().numpy(), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", GROUPED)
@pytest.mark.parametrize("name", TORCH)
def test_groups_of_torch(name, settings, backend):
    options, settings = TORCH[name], GROUPED[settings]
    peer, model = Peer(name, settings, options), made(*settings, optimizer=_ours(name, options), backend=backend)
    peer.train(3)
    fitted(model, shuffle=False)
    peer.assert_like(model)


def _ours(name, options):
    return getattr(fo, name.split()[0])(**options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_biases_without_decay(name, backend):
    options, settings = TORCH[name], GROUPED["weight_decay"]
    peer = Peer(name, settings, options, decay_biases=False)
    model = made(*settings, optimizer=_ours(name, options), backend=backend, decay_biases=False)
    peer.train(3)
    fitted(model, shuffle=False)
    peer.assert_like(model)


# ---------------------------------------------------------------- frozen layers
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TORCH)
def test_freezing_and_thawing_as_requires_grad_of_torch(name, backend):
    """torch keeps the states of parameters that stay trainable; those of thawed ones begin with their first step."""
    options = TORCH[name]
    peer = Peer(name, [{}] * 3, options)
    model = made({"trainable": False}, optimizer=_ours(name, options), backend=backend)
    for of_layer in ((0, 1), ()):
        for i, p in enumerate(peer.params):
            p.requires_grad = i not in of_layer
        peer.train(2)
        fitted(model, epochs=2, shuffle=False)
        peer.assert_like(model)
        model.unfreeze("dense_1")
    model.freeze(["dense_2", "dense_3"])
    for p in peer.params[2:]:
        p.requires_grad = False
    peer.train(1)
    fitted(model, epochs=1, shuffle=False)
    peer.assert_like(model)


FROZEN = {"first": ["dense_1"], "first two": ["dense_1", "dense_2"], "middle": "dense_2", "last": "dense_3"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", FROZEN)
def test_frozen_layers_have_no_states_and_keep_their_weights(names, backend):
    model = made(optimizer=fo.Adam(lr=0.01), backend=backend, dropout=0.2)
    fitted(model, epochs=1)
    before, states = model.get_weights(), model.optimizer.state_dict()["state"]
    model.freeze(FROZEN[names])
    frozen = [not layer.trainable for layer in model.layers if isinstance(layer, fo.Dense) for _ in range(2)]
    for i, kept in model.optimizer.state_dict()["state"].items():
        assert all(np.array_equal(kept[name], states[i][name]) for name in kept)
    fitted(model, epochs=2)
    assert [len(of_param) for of_param in model.optimizer.states] == [0 if off else 2 for off in frozen]
    for off, p, old in zip(frozen, model.parameters, before, strict=True):
        assert np.array_equal(p, old) == off
    assert sum(p.size for off, p in zip(frozen, model.parameters, strict=True) if off) == sum(
        int(line.split()[-1]) for line in model.summary().splitlines() if "(frozen)" in line
    )


class Heard:
    """Passes, and the names of the phases of a step, from the records of a profiler."""

    def __init__(self):
        self.passes = []

    def record(self, done):
        self.passes.append(done)
        self.names = [cost.name for cost in done.costs]


def heard(model, epochs=1):
    listener = Heard()
    token = recorder.set(listener)
    try:
        fitted(model, epochs=epochs)
    finally:
        recorder.reset(token)
    return listener


def phases(model):
    return heard(model).names


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize(
    ("names", "updated", "passed"),
    [
        ([], ["5x2", "5x5", "4x5"], ["5x2", "5x5"]),
        (["dense_1"], ["5x2", "5x5"], ["5x2"]),
        (["dense_2"], ["5x2", "4x5"], ["5x2", "5x5"]),
        (["dense_3"], ["5x5", "4x5"], ["5x2", "5x5"]),
        (["dense_1", "dense_2"], ["5x2"], []),
    ],
)
def test_frozen_layers_cost_no_phase(names, updated, passed, clip_norm):
    """dw, db and the update of frozen layers are left out, and dx where nothing below is trained."""
    model = made(optimizer=fo.Adam(clip_norm=clip_norm))
    model.freeze(names)
    found = phases(model)
    assert [name.split()[1] for name in found if name.startswith("weights")] == updated
    assert [name.split()[1] for name in found if name.startswith("inputs")] == passed
    assert len([name for name in found if name.startswith("slopes")]) == 1  # the others are made with dx
    assert not [name for name in found if name.startswith("penalties")]


def test_a_fit_with_everything_is_one_pass_and_penalties_are_two_phases():
    """Those of weights are added up by the phases that update them, those of biases by one of their own."""
    listener = heard(made(*EVERYTHING, decay_biases=False, optimizer=fo.Adam()), epochs=3)
    assert len(listener.passes) == 1
    assert [name for name in listener.names if name.startswith("penalt")] == ["penalties", "penalty"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_callback_thaws_layers_between_epochs(backend):
    options = TORCH["Adam"]
    peer, model = Peer("Adam", [{}] * 3, options), made(optimizer=fo.Adam(**options), backend=backend)
    model.freeze(["dense_1", "dense_2"])

    class Thaw(fo.Callback):
        def on_epoch_begin(self, model, epoch):
            if epoch > 1:
                model.unfreeze(f"dense_{4 - epoch}")

    fitted(model, shuffle=False, callbacks=[Thaw()])
    for frozen in (4, 2, 0):
        for i, p in enumerate(peer.params):
            p.requires_grad = i >= frozen
        peer.train(1)
    peer.assert_like(model)


def test_steps_of_the_model_s_optimizer_leave_frozen_arrays_alone():
    model = made({"trainable": False}, optimizer=fo.Adam())
    model.optimizer.step([np.ones_like(p) for p in model.parameters])
    assert [np.array_equal(p, w) for p, w in zip(model.parameters, WEIGHTS, strict=True)] == [True] * 2 + [False] * 4
    assert model.optimizer.settle() == [0, 0, 1, 1, 1, 1]


# ---------------------------------------------------------------- mixes
EVERYTHING = (
    {"kernel_regularizer": "l1_l2", "lr_scale": 0.5},
    {"weight_decay": 0.1, "bias_regularizer": fo.regularizers.L2(0.1)},
    {"lr_scale": 2.0, "kernel_regularizer": fo.regularizers.L1(0.02)},
)
MIXES = {
    "plain": {},
    "clip_norm": {"clip_norm": 0.2},
    "clip_value": {"clip_value": 0.05},
    "l1": {"l1": 0.01},
    "schedule": {"lr": fo.schedules.Exponential(0.02, 0.9, steps=1)},
}
ROW_WEIGHTS = np.where(np.arange(len(X)) < 12, 0.0, RNG.random(len(X)))  # steps without weight among the first


@pytest.mark.parametrize("weights", [None, ROW_WEIGHTS], ids=["rows alike", "rows with weights"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("mix", MIXES)
def test_mixes_on_cpu_and_numpy(mix, accumulate, weights):
    found = []
    for backend in BACKENDS:
        optimizer = fo.AdamW(**{"lr": 0.02, "weight_decay": 0.05, **MIXES[mix]})
        model = made(*EVERYTHING, optimizer=optimizer, backend=backend, dropout=0.2, decay_biases=False)
        history = fitted(model, accumulate=accumulate, validation_data=(X, Y), sample_weight=weights, shuffle=False)
        model.freeze("dense_1")
        history = [history["loss"], history["val_loss"], fitted(model, accumulate=accumulate)["loss"]]
        found.append((model.parameters, history))
    (ours, our_history), (theirs, their_history) = found
    for a, b in zip([*ours, *our_history], [*theirs, *their_history], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_average_of_the_weights_is_validated_with_its_own_penalty(backend):
    model = made({"kernel_regularizer": "l2"}, backend=backend, ema=fo.EMA(0.5))
    model.freeze("dense_2")
    history = fitted(model, validation_data=(X, Y))
    plain = made(backend=backend)
    plain.set_weights(model.get_averages())
    expected = plain.evaluate(X, Y)["loss"] + 0.01 * (plain.parameters[0] ** 2).sum()
    np.testing.assert_allclose([history["val_loss"][-1], model.evaluate(X, Y)["loss"]], expected, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_options_at_their_defaults_change_no_bit(backend):
    neutral = {"lr_scale": 1.0, "weight_decay": 0.05, "kernel_regularizer": fo.regularizers.L2(0)}
    plain, own = (
        made(*[options] * 3, optimizer=fo.AdamW(weight_decay=0.05), backend=backend, dtype="float32", dropout=0.2)
        for options in ({}, neutral)
    )
    assert fitted(plain)["loss"] == fitted(own)["loss"]
    assert same_bits(plain, own)


def test_bits_do_not_depend_on_callbacks_and_threads():
    found = []
    for threads, callbacks in ((1, ()), (2, ()), (2, [fo.Callback()])):
        before = fo.get_num_threads()
        fo.set_num_threads(min(threads, before))
        try:
            model = made(*EVERYTHING, optimizer=fo.Adam(), dtype="float32")
            found.append((fitted(model, callbacks=callbacks)["loss"], model))
        finally:
            fo.set_num_threads(before)
    assert all(losses == found[0][0] and same_bits(model, found[0][1]) for losses, model in found)


# ---------------------------------------------------------------- files and copies
def saved(model):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


def described(file):
    with checkpoint.opened(file) as (description, _):
        file.seek(0)
        return description


def test_files_and_copies_go_on_with_frozen_layers():
    model = made(*EVERYTHING, optimizer=fo.Adam(), decay_biases=False)
    fitted(model)
    model.freeze("dense_1")
    fitted(model)
    model.unfreeze("dense_1")
    model.freeze("dense_2")
    file = saved(model)
    assert described(file)["format"] == 3
    others = [fo.load_model(file), pickle.loads(pickle.dumps(model))]
    losses, trained = fitted(model)["loss"], copy.deepcopy(model)
    model.unfreeze("dense_2")
    expected = fitted(model, epochs=1)["loss"]
    for other in others:
        assert repr(other.layers) == repr(trained.layers)
        assert not other.decay_biases
        assert fitted(other)["loss"] == losses
        assert same_bits(other, trained)
        assert other.optimizer.settle() == [12, 12, 0, 0, 36, 36]
        other.unfreeze("dense_2")
        assert fitted(other, epochs=1)["loss"] == expected
        assert other.optimizer.settle() == [16, 16, 4, 4, 40, 40]


class ThawSecond(fo.Callback):
    """A callback that swaps the frozen layer before the second epoch."""

    def on_epoch_begin(self, model, epoch):
        if epoch == 2:
            model.freeze("dense_2")
            model.unfreeze("dense_1")


class Stop(fo.Callback):
    """A callback that interrupts the training within its third epoch."""

    every_steps = 1

    def on_step_end(self, model, step, logs):
        if step == 10:
            raise KeyboardInterrupt


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_training_has_the_layers_that_callbacks_have_thawed(tmp_path, backend):
    path = tmp_path / "training"

    def begun():
        return made({"trainable": False}, EVERYTHING[1], optimizer=fo.Adam(), backend=backend)

    whole, killed, resumed = begun(), begun(), begun()
    losses = fitted(whole, epochs=4, callbacks=[ThawSecond()])["loss"]
    with pytest.raises(KeyboardInterrupt):
        fitted(killed, epochs=4, callbacks=[ThawSecond(), Stop()], checkpoint=path, checkpoint_every=3)
    assert fitted(resumed, epochs=4, callbacks=[ThawSecond()], resume=path)["loss"] == losses
    assert same_bits(resumed, whole)
    assert resumed.optimizer.settle() == whole.optimizer.settle() == [12, 12, 0, 0, 16, 16]
    assert resumed.layers[0].trainable


def test_files_say_only_what_they_use():
    """Older versions read files of models that use none of this."""
    model = made(optimizer=fo.Adam())
    description = described(saved(model))
    assert description["format"] == 1
    dense = [layer for layer in description["layers"] if layer["kind"] == "dense"]
    assert all(
        set(layer) == {"kind", "units", "activation", "use_bias", "kernel_initializer", "bias_initializer", "name"}
        for layer in dense
    )
    assert "decay_biases" not in description["compile"]


def test_a_state_dict_goes_to_torch_and_back_without_frozen_arrays():
    model = made({"trainable": False}, optimizer=fo.Adam())
    fitted(model)
    peer = Peer("Adam", [{}] * 3, TORCH["Adam"])
    whole = peer.torch.optim.Adam(peer.params)
    state = model.optimizer.state_dict()
    assert sorted(state["state"]) == [2, 3, 4, 5]
    as_tensors = {
        i: {name: peer.torch.as_tensor(value) for name, value in entry.items()} for i, entry in state["state"].items()
    }
    whole.load_state_dict({"state": as_tensors, "param_groups": state["param_groups"]})
    model.unfreeze("dense_1")
    model.optimizer.load_state_dict(whole.state_dict())
    assert model.optimizer.settle() == [0, 0, 12, 12, 12, 12]


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kernel_regularizer": "l3"}, ValueError, "unknown kernel_regularizer 'l3'; known: l1, l2, l1_l2"),
        ({"kernel_regularizer": 0.1}, TypeError, "kernel_regularizer must be one of fastopt.regularizers"),
        ({"bias_regularizer": "l2", "use_bias": False}, ValueError, "use_bias=False leaves the bias out"),
        ({"lr_scale": -1}, ValueError, "lr_scale must be at least 0"),
        ({"lr_scale": "half"}, TypeError, "lr_scale must be a number"),
        ({"weight_decay": float("inf")}, ValueError, "weight_decay must be at least 0, and finite"),
        ({"trainable": 1}, TypeError, "trainable must be True or False"),
    ],
)
def test_wrong_options_of_layers(options, error, words):
    with pytest.raises(error, match=words):
        fo.Dense(3, **options)


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ("dense_4", ValueError, "'dense_4' is no layer of the model; layers with weights: dense_1, dense_2, dense_3"),
        (["dense_1", "dropout_1"], ValueError, "'dropout_1' has no weights"),
        (3, TypeError, "names must be the name of a layer"),
        ([True], TypeError, "names must be the name of a layer"),
    ],
)
def test_wrong_names(names, error, words):
    model = made(optimizer=fo.Adam())
    for method in (model.freeze, model.unfreeze):
        with pytest.raises(error, match=words):
            method(names)
    assert all(layer.trainable for layer in model.layers if isinstance(layer, fo.Dense))


def test_refusals_before_anything_changes():
    model = made({"kernel_regularizer": "l2"}, optimizer=fo.Adam(maximize=True))
    with pytest.raises(ValueError, match="regularizers are for losses that are minimized"):
        fitted(model)
    model = made(optimizer=fo.Adam())
    model.freeze(["dense_1", "dense_2", "dense_3"])
    with pytest.raises(ValueError, match="all layers are frozen"):
        fitted(model)
    with pytest.raises(TypeError, match="decay_biases must be True or False"):
        model.compile("adam", "mse", decay_biases=0)
    assert model.epochs_done == 0
    assert all(np.array_equal(p, w) for p, w in zip(model.parameters, WEIGHTS, strict=True))
