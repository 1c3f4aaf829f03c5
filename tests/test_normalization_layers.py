"""GaussianNoise, LayerNorm and BatchNorm in models: arguments, training on every backend, evaluation, files, copies."""

import copy
import io
import pickle

import numpy as np
import pytest

import fastopt as fo
from fastopt import BatchNorm, Dense, Dropout, GaussianNoise, LayerNorm, Sequential


def blobs(n=60, columns=4, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return rng.normal(size=(n, columns)) + 2 * np.eye(classes, columns)[y] + 5, y


def model_of(*layers, backend="cpu", dtype="float64", **more):
    model = Sequential([*layers, Dense(3, "softmax")], seed=1, backend=backend, dtype=dtype, **more)
    model.compile(fo.SGD(lr=0.05, momentum=0.9), "sparse_categorical_crossentropy", ["accuracy"])
    return model


HIDDEN = {
    "noise": [GaussianNoise(0.3), Dense(5, "relu"), GaussianNoise(0.1)],
    "layer norm": [Dense(5, "relu"), LayerNorm()],
    "batch norm": [Dense(5, use_bias=False), BatchNorm(0.8), Dense(4, "tanh")],
    "activations": [Dense(6, use_bias=False), BatchNorm(), fo.Activation("relu"), Dense(5), LayerNorm(),
                    fo.Activation("gelu")],
    "all": [BatchNorm(), Dense(6), BatchNorm(center=False), GaussianNoise(0.2), Dense(5, "tanh"), Dropout(0.2),
            LayerNorm(scale=False)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GaussianNoise(-1), ValueError, "stddev must be at least 0, and finite; got -1"),
        (lambda: GaussianNoise(np.inf), ValueError, "stddev must be at least 0, and finite; got inf"),
        (lambda: GaussianNoise("1"), TypeError, "stddev must be a number; got "),
        (lambda: LayerNorm(epsilon=-1e-3), ValueError, "epsilon must be at least 0, and finite; got -0.001"),
        (lambda: LayerNorm(center=1), TypeError, "center must be True or False; got "),
        (lambda: LayerNorm(gamma_initializer="he_normal"), ValueError, "unknown gamma_initializer 'he_normal'; known:"),
        (lambda: LayerNorm(beta_initializer=[[1.0]]), ValueError, r"beta_initializer must be an array of 1 dimension"),
        (lambda: LayerNorm(scale=False, gamma_initializer=[1.0]), ValueError, "gamma_initializer is an array, but"),
        (lambda: BatchNorm(1.0), ValueError, r"momentum must be in \[0, 1\); got 1.0"),
        (lambda: BatchNorm(moving_mean_initializer=[np.nan]), ValueError, "moving_mean_initializer"),
        (lambda: Sequential([Dense(1), GaussianNoise(1.0)]), ValueError, "the last layer must be Dense: GaussianNoise"),
        (lambda: Sequential([Dense(1), fo.Activation("relu")]), ValueError, "the last layer must be Dense: give it"),
        (lambda: Sequential([fo.Activation("softmax"), Dense(1)]), ValueError, "only the last layer may have the act"),
        (lambda: fo.Activation("relu", label=3), TypeError, "label must be a string; got"),
        (lambda: Sequential([Dense(1), LayerNorm()]), ValueError, "the last layer must be Dense: LayerNorm would fix"),
        (lambda: Sequential([Dense(1), BatchNorm()]), ValueError, "the last layer must be Dense: BatchNorm would fix"),
        (
            lambda: Sequential([Dense(3), BatchNorm(gamma_initializer=[1.0, 2.0]), Dense(1)], inputs=2),
            ValueError,
            r"layer batch_norm_1: its gamma_initializer must have shape \(3,\), as 3 features come in; got \(2,\)",
        ),
    ],
)  # fmt: skip
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_reprs_and_defaults_are_kerass():
    assert repr(BatchNorm()) == "BatchNorm()"
    assert repr(BatchNorm(0.9, center=False, name="b")) == "BatchNorm(momentum=0.9, center=False, name='b')"
    assert repr(LayerNorm(1e-5, gamma_initializer=[2.0])) == "LayerNorm(epsilon=1e-05, gamma_initializer=<array (1,)>)"
    layer = BatchNorm()
    assert (layer.momentum, layer.epsilon, layer.center, layer.scale) == (0.99, 1e-3, True, True)
    model = Sequential([BatchNorm(), Dense(1)], inputs=2)
    assert [p.tolist() for p in model.get_weights()[:4]] == [[1, 1], [0, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize("layers", HIDDEN.values(), ids=HIDDEN)
def test_backends_agree(layers):
    x, y = blobs()
    runs = []
    for backend in ("cpu", "numpy"):
        model = model_of(*layers, backend=backend)
        history = model.fit(x, y, epochs=3, batch_size=16, validation_split=0.2)
        runs.append((history["loss"], history["val_loss"], *model.get_weights(), model.predict(x)))
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layers", HIDDEN.values(), ids=HIDDEN)
def test_epochs_in_one_call_have_the_bits_of_single_ones(layers):
    x, y = blobs()
    whole, single = model_of(*layers, dtype="float32"), model_of(*layers, dtype="float32")
    whole.fit(x, y, epochs=3, batch_size=16)
    for epoch in range(3):
        single.fit(x, y, epochs=epoch + 1, initial_epoch=epoch, batch_size=16)
    for ours, theirs in zip(whole.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_torch_agrees():
    """Some steps of SGD with momentum, and an evaluation by the moving averages."""
    torch = pytest.importorskip("torch")
    x, y = blobs(32)
    model = Sequential([Dense(5), BatchNorm(0.75, 1e-5), Dense(4, "tanh"), LayerNorm(1e-5), Dense(3)], dtype="float64")
    model.compile(fo.SGD(lr=0.1, momentum=0.9, weight_decay=0.01), "sparse_categorical_crossentropy")
    model.build(4)
    nn = torch.nn
    theirs = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, 1e-5, 0.25), nn.Linear(5, 4), nn.Tanh(), nn.LayerNorm(4, 1e-5),
        nn.Linear(4, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        weights = iter(model.get_weights())
        for module in theirs:
            for p in module.parameters():
                value = torch.from_numpy(next(weights))
                p.copy_(value.T if value.ndim == 2 else value)
            if isinstance(module, nn.BatchNorm1d):
                next(weights), next(weights)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    given, labels = torch.from_numpy(x), torch.from_numpy(y)
    losses, variance = [], 1.0
    for _ in range(4):
        for rows in (slice(0, 16), slice(16, 32)):
            optimizer.zero_grad()
            variance = 0.75 * variance + 0.25 * theirs[0](given[rows]).detach().numpy().var(axis=0)
            loss = nn.functional.cross_entropy(theirs(given[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    history = model.fit(x, y, epochs=4, batch_size=16, shuffle=False)
    np.testing.assert_allclose(history.step_losses, losses, rtol=1e-10)
    np.testing.assert_allclose(model.get_weights()[4], theirs[1].running_mean.numpy(), rtol=1e-10)
    np.testing.assert_allclose(model.get_weights()[5], variance, rtol=1e-10)  # torch's is the unbiased one
    theirs[1].running_var.copy_(torch.from_numpy(variance))
    expected = nn.functional.cross_entropy(theirs.eval()(given), labels).item()
    assert model.evaluate(x, y)["loss"] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_evaluation_goes_by_the_averages_and_changes_nothing(backend):
    x, y = blobs()
    model = model_of(*HIDDEN["all"], backend=backend)
    model.fit(x, y, epochs=2, batch_size=16)
    before = model.get_weights()
    whole = model.predict(x)
    np.testing.assert_allclose(np.concatenate([model.predict(row[np.newaxis]) for row in x]), whole, rtol=1e-10)
    assert model.evaluate(x, y, batch_size=7)["loss"] == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-10)
    for p, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(p, was)


def test_averages_are_those_of_the_batches_and_no_optimizer_touches_them():
    """Data go through unchanged, and a weight decay would shrink the parameters."""
    x, y = blobs(40)
    model = Sequential([BatchNorm(0.75), Dense(3)], dtype="float64")
    model.compile(fo.SGD(lr=0.01, weight_decay=0.5), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=1, batch_size=10, shuffle=False)
    mean, variance = np.zeros(4), np.ones(4)
    for rows in np.split(x, 4):
        mean, variance = 0.75 * mean + 0.25 * rows.mean(axis=0), 0.75 * variance + 0.25 * rows.var(axis=0)
    np.testing.assert_allclose(model.get_weights()[2], mean, rtol=1e-12)
    np.testing.assert_allclose(model.get_weights()[3], variance, rtol=1e-12)


def test_each_batch_of_a_step_has_its_own_statistics():
    x, y = blobs(40)
    models = [model_of(BatchNorm(0.75)) for _ in range(2)]
    models[0].fit(x, y, batch_size=10, accumulate=4, shuffle=False)
    models[1].fit(x, y, batch_size=40, shuffle=False)
    averages = np.zeros(4)
    for rows in np.split(x, 4):
        averages = 0.75 * averages + 0.25 * rows.mean(axis=0)
    np.testing.assert_allclose(models[0].get_weights()[2], averages, rtol=1e-12)
    np.testing.assert_allclose(models[1].get_weights()[2], 0.25 * x.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("which", ["file", "pickle", "copy"])
@pytest.mark.parametrize("layers", HIDDEN.values(), ids=HIDDEN)
def test_files_and_copies_go_on_where_the_model_was(layers, which):
    x, y = blobs()
    model = model_of(*layers, dtype="float32")
    model.fit(x, y, epochs=2, batch_size=16)
    if which == "file":
        file = io.BytesIO()
        model.save(file)
        file.seek(0)
        again = fo.load_model(file)
    else:
        again = pickle.loads(pickle.dumps(model)) if which == "pickle" else copy.deepcopy(model)
    assert repr(again.layers) == repr(model.layers)
    for some in (model, again):
        some.fit(x, y, epochs=4, initial_epoch=2, batch_size=16)
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))


def test_arrays_as_initializers_are_in_files():
    layers = [LayerNorm(gamma_initializer=[2.0, 3.0]), BatchNorm(moving_variance_initializer=[0.5, 4.0])]
    model, file = Sequential([*layers, Dense(1)], inputs=2, dtype="float64"), io.BytesIO()
    model.save(file)
    file.seek(0)
    again = fo.load_model(file)
    assert again.get_weights()[0].tolist() == [2, 3]
    assert again.get_weights()[5].tolist() == [0.5, 4]
    assert repr(again.layers) == repr(model.layers)


def test_weights_of_another_architecture_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    Sequential([Dense(3), BatchNorm(), Dense(1)], inputs=2).save(file)
    for layers, difference in (
        ([Dense(3), Dense(1)], "layer 2: the file has BatchNorm"),
        ([Dense(3), LayerNorm(), Dense(1)], "the model LayerNorm"),
        ([Dense(3), BatchNorm(0.9), Dense(1)], "momentum=0.99"),
    ):
        model = Sequential(layers, inputs=2)
        before = model.get_weights()
        with pytest.raises(ValueError, match=difference):
            model.load_weights(file)
        assert all(map(np.array_equal, model.get_weights(), before))
    model = Sequential([GaussianNoise(0.1), Dense(3), BatchNorm(), Dense(1)], inputs=2)
    model.load_weights(file)


def test_summary():
    layers = [GaussianNoise(0.1), Dense(16, "relu"), BatchNorm(), LayerNorm(scale=False), Dense(3)]
    assert Sequential(layers, inputs=4).summary() == """\
layer             activation     outputs  parameters
gaussian_noise_1  stddev 0.1           4           0
dense_1           relu                16          80
batch_norm_1      momentum 0.99       16          64
layer_norm_1      epsilon 0.001       16          16
dense_2           linear               3          51
total: 211 parameters, 4 inputs, float32"""


def test_noise_is_drawn_anew_in_every_step_and_not_in_evaluation():
    """With a rate of 0 every epoch has the same weights, so losses differ by the noise alone."""
    x, y = blobs(32)
    model = Sequential([GaussianNoise(1.0), Dense(3)], dtype="float64")
    model.compile(fo.SGD(lr=0.0), "sparse_categorical_crossentropy")
    losses = model.fit(x, y, epochs=3, batch_size=32, shuffle=False)["loss"]
    assert len(set(losses)) == 3
    plain = Sequential([Dense(3)], dtype="float64")
    plain.compile(fo.SGD(lr=0.0), "sparse_categorical_crossentropy")
    plain.build(4)
    plain.set_weights(model.get_weights())
    assert plain.evaluate(x, y) == model.evaluate(x, y)
    np.testing.assert_array_equal(plain.predict(x), model.predict(x))


@pytest.mark.parametrize("which", ["as it is", "pickle"])
def test_averages_of_weights_go_with_the_moving_averages_of_now(which):
    """`predict` uses averaged gamma and beta of a BatchNorm, and the moving averages themselves."""
    x, y = blobs()
    model = Sequential([Dense(5), BatchNorm(0.8), Dense(3)], dtype="float64", seed=1)
    model.compile(fo.SGD(lr=0.05), "sparse_categorical_crossentropy", ema=fo.EMA(0.5))
    model.fit(x, y, epochs=1, batch_size=16)
    if which == "pickle":
        model = pickle.loads(pickle.dumps(model))
    model.fit(x, y, epochs=2, initial_epoch=1, batch_size=16)
    weights, averages = model.get_weights(), model.get_averages()
    for i, (p, average) in enumerate(zip(weights, averages, strict=True)):
        assert np.array_equal(p, average) == (i in (4, 5))
    w0, b0, gamma, beta, mean, variance, w1, b1 = averages
    hidden = gamma * (x @ w0 + b0 - mean) / np.sqrt(variance + 1e-3) + beta
    np.testing.assert_allclose(model.predict(x), hidden @ w1 + b1, rtol=1e-10)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_frozen_layers_stay_as_they_are_and_go_by_the_averages(backend):
    """Keras's meaning: a frozen BatchNorm is the same function in training as in prediction."""
    x, y = blobs(32)
    model = Sequential([Dense(5), BatchNorm(0.8), Dense(4), LayerNorm(), Dense(3)], backend=backend, dtype="float64")
    model.compile(fo.SGD(lr=0.05), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=2, batch_size=8)
    model.freeze(["batch_norm_1", "layer_norm_1"])
    before = model.get_weights()
    evaluated = model.evaluate(x, y)["loss"]
    first = model.fit(x, y, epochs=1, batch_size=32).step_losses[0]
    assert first == pytest.approx(evaluated, rel=1e-12)  # dropout apart, a first step has the loss of an evaluation
    frozen = [np.array_equal(p, was) for p, was in zip(model.get_weights(), before, strict=True)]
    assert frozen == [False, False, True, True, True, True, False, False, True, True, False, False]
    model.unfreeze("batch_norm_1")
    model.fit(x, y, epochs=1, batch_size=8)
    assert not any(map(np.array_equal, model.get_weights()[2:6], before[2:6]))


def test_a_callback_may_freeze_a_batch_norm():
    """From the second epoch on the averages stay."""
    x, y = blobs(32)
    model, seen = model_of(BatchNorm()), []

    class Freeze(fo.Callback):
        def on_epoch_end(self, model, epoch, logs):
            seen.append(model.get_weights()[2])
            model.freeze("batch_norm_1")

    model.fit(x, y, epochs=3, batch_size=8, callbacks=[Freeze()])
    assert seen[0].all()
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


def test_frozen_layers_in_files_and_summary():
    model, file = Sequential([Dense(2), BatchNorm(trainable=False), Dense(1)], inputs=3), io.BytesIO()
    model.save(file)
    file.seek(0)
    assert "trainable=False" in repr(fo.load_model(file).layers[1])
    assert "batch_norm_1 (frozen)" in model.summary()
    assert "(8 frozen)" in model.summary()


def test_moving_averages_have_no_optimizer_states():
    x, y = blobs(16)
    model = Sequential([BatchNorm(), Dense(3)], dtype="float64")
    model.compile("adam", "sparse_categorical_crossentropy", decay_biases=False)
    model.fit(x, y)
    assert [len(states) for states in model.optimizer.states] == [2, 2, 0, 0, 2, 2]


def test_weight_decay_spares_gamma_and_beta_with_the_biases():
    x, y = blobs(16)
    models = []
    for decay, spared in ((0.5, True), (0.0, False)):
        model = Sequential([BatchNorm(), Dense(3, use_bias=False, weight_decay=0.5)], dtype="float64")
        model.compile(fo.SGD(lr=0.1, weight_decay=decay), "sparse_categorical_crossentropy", decay_biases=not spared)
        model.fit(x, y, batch_size=16)
        models.append(model)
    for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_an_activation_by_itself_is_that_of_a_dense_layer():
    x, y = blobs(32)
    models = [model_of(Dense(5), fo.Activation("silu", label="f"), inputs=4), model_of(Dense(5, "silu"), inputs=4)]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.fit(x, y, epochs=2, batch_size=8)
    for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert models[0].names == ("dense_1", "f", "dense_2")
    assert "f        silu " in models[0].summary()


def test_a_defined_activation_by_itself_is_in_files():
    layer = fo.Activation.define("bent", lambda z: (z * z + 1) ** 0.5 + z, lambda z: z / (z * z + 1) ** 0.5 + 1)
    model, file, x = Sequential([Dense(3), layer, Dense(1)], inputs=2, dtype="float64"), io.BytesIO(), np.ones((1, 2))
    w, b, v, c = model.get_weights()
    z = x @ w + b
    np.testing.assert_allclose(model.predict(x), (np.sqrt(z * z + 1) + z) @ v + c, rtol=1e-12)
    model.save(file)
    file.seek(0)
    np.testing.assert_array_equal(fo.load_model(file).predict(x), model.predict(x))
