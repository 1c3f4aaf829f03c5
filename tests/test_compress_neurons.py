"""Structured pruning: the neurons that leave, all that goes with them, what comes along, and refusals."""

import copy

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, snapshot
from hypothesis import given, settings

import fastopt as fo
from fastopt.compress import prune, prune_neurons, sparsity

X, Y = blobs(60)


def model_of(backend="numpy", ema=None, optimizer=None, **of_layer):
    layers = [fo.Rescaling(0.5), fo.Dense(9, "relu", **of_layer), fo.BatchNorm(), fo.Dropout(0.1)]
    layers += [fo.Dense(7, "tanh", use_bias=False), fo.Dense(3, "softmax")]
    model = fo.Sequential(layers, 1, backend, "float64")
    model.compile(optimizer or fo.Adam(lr=0.05), CROSS_ENTROPY, ["accuracy"], ema=ema)
    model.fit(X, np.array(["a", "b", "c"])[Y], epochs=2)
    return model


def staying(kernel, share, order=2):
    norms = np.sum(np.abs(kernel) ** order, axis=0) ** (1 / order)
    return np.array(sorted(sorted(range(len(norms)), key=lambda j: (norms[j], j))[int(share * len(norms) + 1e-9) :]))


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 0.99), st.sampled_from(["l1", "l2"]))
def test_neurons_with_the_smallest_norms_leave(share, norm):
    model = model_of()
    smaller = prune_neurons(model, share, norm)
    w = model.get_weights()
    first = staying(w[0], min(share, 8 / 9), int(norm[1]))
    second = staying(w[6], min(share, 6 / 7), int(norm[1]))
    expected = [w[0][:, first], *(p[first] for p in w[1:6]), w[6][first][:, second], w[7][second], w[8]]
    assert_same(smaller.get_weights(), expected)
    for i, cut in ((0, (slice(None), first)), (6, (first[:, None], second)), (7, (second,)), (8, ())):
        assert_same([*smaller.optimizer.states[i]], [state[cut] for state in model.optimizer.states[i]])
    assert [layer.units for layer in smaller.layers if isinstance(layer, fo.Dense)] == [len(first), len(second), 3]


def test_without_neurons_that_lead_nowhere_predictions_are_the_same(backend):
    model = model_of(backend)
    weights = model.get_weights()
    weights[6][np.setdiff1d(np.arange(9), staying(weights[0], 0.5))] = 0
    weights[7][np.setdiff1d(np.arange(7), staying(weights[6], 0.5))] = 0
    model.set_weights(weights)
    smaller = prune_neurons(model, 0.5)
    np.testing.assert_allclose(smaller.predict(X), model.predict(X), rtol=1e-12)
    assert [p.size for p in smaller.parameters] == [30, 5, 5, 5, 5, 5, 20, 12, 3]


def test_all_else_comes_along(backend):
    optimizer = fo.AdamW(lr=fo.schedules.Cosine(0.05, 100), weight_decay=0.1)
    model = model_of(backend, fo.EMA(0.9), optimizer)
    prune(model, 0.5)
    before = snapshot(model)
    smaller = prune_neurons(model, {"dense_1": 0.4})
    assert_same(snapshot(model), before)
    assert smaller.classes.tolist() == ["a", "b", "c"]
    assert (smaller.epochs_done, smaller.seed, smaller.backend) == (2, 1, backend)
    assert smaller.optimizer.steps == model.optimizer.steps
    assert smaller.optimizer.param_groups[0]["lr"] == model.optimizer.param_groups[0]["lr"]
    assert smaller.averages[0].shape == (6, 6)
    assert repr(smaller.layers[0]) == repr(model.layers[0])
    shares = sparsity(smaller)
    smaller.fit(X, model.classes[Y], epochs=2)
    assert sparsity(smaller) == shares
    assert shares["dense_3"] == 10 / 21


def test_a_schedule_of_ones_own_and_metrics_come_along():
    def rate(step):
        return 0.01

    def share_of_a(y_true, y_pred):
        return 0.25

    model = model_of()
    model.compile(fo.Adam(lr=rate), CROSS_ENTROPY, ["accuracy", share_of_a])
    smaller = prune_neurons(model, 0.5)
    assert smaller.optimizer.param_groups[0]["lr"] is rate
    assert smaller.evaluate(X, model.classes[Y])["share_of_a"] == 0.25


def test_layers_are_chosen_by_name_and_frozen_ones_are_left_alone():
    model = model_of(trainable=False)
    assert [layer.units for layer in prune_neurons(model, 0.5).layers if isinstance(layer, fo.Dense)] == [9, 4, 3]
    named = prune_neurons(model, 0.5, layers="dense_1")
    assert [layer.units for layer in named.layers if isinstance(layer, fo.Dense)] == [5, 7, 3]
    assert not named.layers[1].trainable


def test_initial_weights_that_were_given_are_no_obstacle():
    layers = [fo.Dense(4, kernel_initializer=np.arange(12.0).reshape(3, 4)), fo.LayerNorm(), fo.Dense(1)]
    model = fo.Sequential(layers, inputs=3)
    smaller = prune_neurons(model, 0.5)
    assert_same(smaller.get_weights()[0], model.get_weights()[0][:, 2:])
    assert_same(copy.deepcopy(smaller).get_weights(), smaller.get_weights())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: prune_neurons(m, 1.0), ValueError, r"share must be in \[0, 1\); got 1.0"),
        (lambda m: prune_neurons(m, "half"), TypeError, "share must be a number; got 'half'"),
        (lambda m: prune_neurons(m, 0.5, norm="l3"), ValueError, "unknown norm 'l3'; known: l1, l2"),
        (lambda m: prune_neurons(m, 0.5, layers="dense_3"), ValueError, "'dense_3' is the last layer, whose"),
        (lambda m: prune_neurons(m, {"dense_3": 0.5}), ValueError, "'dense_3' is the last layer"),
        (lambda m: prune_neurons(m, {"dense_1": 0.5}, layers="dense_1"), ValueError, "not in both"),
        (lambda m: prune_neurons(m, 0.5, layers="batch_norm_1"), ValueError, "'batch_norm_1' is no dense layer"),
        (lambda m: prune_neurons("m", 0.5), TypeError, "model must be a Sequential; got 'm'"),
    ],
)
def test_what_cannot_be_done_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(model_of())


def test_states_of_8_bits_are_refused():
    model = model_of(optimizer=fo.Adam(state_bits=8))
    before = snapshot(model)
    with pytest.raises(ValueError, match="no neuron can be taken out: compile the model with state_bits=32"):
        prune_neurons(model, 0.5)
    assert_same(snapshot(model), before)


def test_a_model_without_hidden_layers_is_refused():
    with pytest.raises(ValueError, match="the model has no hidden dense layer that is trained"):
        prune_neurons(fo.Sequential([fo.Dense(3)], inputs=2), 0.5)
