"""scikit-learn: a model from a fitted multi-layer perceptron, and one from a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._validation import describe
from ..kernels.formulas import LOSSES
from ..layers import Dense
from ..models.sequential import Sequential
from ._building import common_dtype
from ._reading import NamedLayer, Prediction, read, refusal

INSTALL = "scikit-learn's models need the package scikit-learn: pip install 'fastopt[sklearn]'"
ACTIVATIONS = {"identity": "linear", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
NAMES = {ours: theirs for theirs, ours in ACTIVATIONS.items()}


def from_sklearn(mlp: Any) -> Sequential:
    """Return a fastopt model with the weights of a fitted MLPClassifier or MLPRegressor, of scikit-learn or fastopt.

    Its `predict` gives what the regressor's does, as (n, outputs), or the outputs that the classifier's
    `predict_proba` is made of; its `predict_classes` gives the classifier's labels.

    Raises TypeError for another object, ValueError for one that is not fitted, or has an activation that fastopt has
    not.

    >>> from sklearn.neural_network import MLPClassifier
    >>> x, y = [[0.0], [1.0], [2.0], [3.0]], ["low", "low", "high", "high"]
    >>> mlp = MLPClassifier((8,), solver="lbfgs", random_state=0).fit(x, y)
    >>> from_sklearn(mlp).predict_classes(x).tolist()
    ['low', 'low', 'high', 'high']
    """
    parameters = mlp.get_params(deep=False) if hasattr(mlp, "get_params") and not isinstance(mlp, type) else {}
    if not {"hidden_layer_sizes", "activation"} <= set(parameters):
        raise TypeError(f"mlp must be an MLPClassifier or MLPRegressor; got {describe(mlp)}")
    if not hasattr(mlp, "coefs_"):
        raise ValueError("from_sklearn: mlp must be fitted; call its fit")
    weights, biases = list(mlp.coefs_), list(mlp.intercepts_)
    dtype = common_dtype("from_sklearn", [*weights, *biases])
    names = [mlp.activation] * (len(weights) - 1) + [mlp.out_activation_]
    layers, arrays = [], []
    for i, name in enumerate(names):
        try:
            layers.append(Dense(int(weights[i].shape[1]), ACTIVATIONS.get(name, name), use_bias=bool(biases)))
        except ValueError:
            raise refusal("from_sklearn", f"the activation {name!r}", "fastopt has no such formula") from None
        arrays += [weights[i], *biases[i : i + 1]]
    model = Sequential(layers, dtype=dtype)
    model.adopt(int(weights[0].shape[0]), arrays)
    classes = getattr(mlp, "classes_", None)
    is_multilabel = model.last_activation == "sigmoid" and model.outputs > 1
    if classes is not None and len(classes) == 1:
        raise refusal("from_sklearn", f"the only class {classes[0]!r}", "a model tells two classes or more apart")
    if classes is not None and not is_multilabel:
        model.classes = classes
    if hasattr(mlp, "feature_names_in_"):
        model.feature_names = [str(name) for name in mlp.feature_names_in_]
    return model


def to_sklearn(model: Sequential) -> Any:
    """Return a fitted `sklearn.neural_network.MLPClassifier`, or an MLPRegressor for a model of real-valued targets.

    A model for it has Dense layers alone, hidden ones with one activation of linear, sigmoid, tanh and relu, and ends
    in softmax, sigmoid or a linear layer. Linear outputs that a cross-entropy has trained, and classes in another order
    than the sorted one, are brought into scikit-learn's form; a `target_scale` goes into the last layer. Outputs of yes
    or no each make a classifier of several labels, which predicts 0 or 1 for each. Parameters of training are
    scikit-learn's defaults, which `partial_fit` goes on with.

    Raises ImportError without scikit-learn (extra `sklearn`); ValueError as all exports do, also for models that
    prepare data: put scikit-learn's StandardScaler before the network instead.
    """
    found = read("to_sklearn", model)
    layers = found.without_noise()
    loss = None if model.loss is None else LOSSES[model.loss.spec.name]
    _check(found, layers, gives_logits=loss is not None and loss.link is not None and not loss.signs)
    try:
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.preprocessing import LabelBinarizer
    except ModuleNotFoundError as error:
        raise ImportError(INSTALL) from error

    weights = [entry.arrays["kernel"] for entry in layers]
    biases = [entry.arrays.get("bias", np.zeros(w.shape[1], w.dtype)) for entry, w in zip(layers, weights, strict=True)]
    hidden = layers[0].activation if len(layers) > 1 else "relu"
    options = {"hidden_layer_sizes": tuple(w.shape[1] for w in weights[:-1]), "activation": NAMES[hidden]}
    last = weights[-1], biases[-1]
    if found.rule is None:
        mlp, last = MLPRegressor(**options), _scaled(last, found)
        mlp.out_activation_ = "identity"
    else:
        mlp = MLPClassifier(**options)
        if found.rule != "largest" and found.outputs > 1:  # each output says yes or no
            mlp.classes_, mlp.out_activation_ = np.arange(found.outputs), "logistic"
            mlp._label_binarizer = LabelBinarizer().fit(np.eye(found.outputs, dtype=int))
        else:
            labels = np.arange(max(found.outputs, 2)) if found.classes is None else np.asarray(found.classes)
            mlp.classes_, last = _sorted(labels, last, found.rule)
            mlp.out_activation_ = "softmax" if len(labels) > 2 else "logistic"
            mlp._label_binarizer = LabelBinarizer().fit(mlp.classes_)
    weights[-1], biases[-1] = last
    _mark_as_fitted(mlp, weights, biases, found)
    return mlp


def _mark_as_fitted(mlp: Any, weights: list[np.ndarray], biases: list[np.ndarray], found: Prediction) -> None:
    """Set the attributes of a fitted network; its solver starts at the first partial_fit."""
    mlp.coefs_, mlp.intercepts_ = weights, biases
    mlp.n_layers_, mlp.n_outputs_ = len(weights) + 1, weights[-1].shape[1]
    mlp.n_features_in_ = found.inputs
    if found.feature_names is not None:
        mlp.feature_names_in_ = np.array(found.feature_names, object)
    mlp.n_iter_ = mlp.t_ = mlp._no_improvement_count = 0
    mlp.loss_ = mlp.best_loss_ = np.inf
    mlp.loss_curve_, mlp.validation_scores_, mlp.best_validation_score_ = [], None, None


def _check(found: Prediction, layers: tuple[NamedLayer, ...], gives_logits: bool) -> None:
    """Raise ValueError for what a perceptron of scikit-learn cannot compute.

    gives_logits: linear outputs are logits, as a cross-entropy has trained them.
    """
    if found.stages:
        raise refusal("to_sklearn", "the preparation of data", "put a StandardScaler before the network")
    for entry in layers:
        if not isinstance(entry.layer, Dense):
            raise refusal("to_sklearn", f"layer {entry.name} ({type(entry.layer).__name__})", "it takes Dense alone")
    names = {entry.activation for entry in layers[:-1]}
    if len(names) > 1 or not names <= set(NAMES):
        known = ", ".join(NAMES)
        raise refusal("to_sklearn", f"the activations {sorted(names)}", f"hidden layers have one of {known} for all")
    last = layers[-1].activation
    ends = {None: ("linear",), "largest": ("softmax",), "above 0.5": ("sigmoid",), "above 0": ()}[found.rule]
    if gives_logits and found.rule in ("largest", "above 0"):
        ends += ("linear",)
    if last not in ends:
        raise refusal("to_sklearn", f"the last activation {last!r}", "it has no such outputs, with their loss")


def _scaled(last: tuple[np.ndarray, np.ndarray], found: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """The last layer of a regression with outputs in the units of the targets."""
    if found.unscale is None:
        return last
    w, b = (array * found.unscale.factor for array in last)
    return w.astype(found.dtype), (b + found.unscale.term).astype(found.dtype)


def _sorted(
    labels: np.ndarray, last: tuple[np.ndarray, np.ndarray], rule: str
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Sorted labels, with the last layer for them; of two classes it has one column, for the second."""
    order = np.argsort(labels, kind="stable")
    w, b = last
    if len(labels) > 2:
        return labels[order], (np.ascontiguousarray(w[:, order]), b[order])
    if rule == "largest":
        w, b = w[:, 1:] - w[:, :1], b[1:] - b[:1]  # softmax of two is the sigmoid of the difference
    return labels[order], (w, b) if order[0] == 0 else (-w, -b)
