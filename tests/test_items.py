"""Items (x, y) or (x, y, weights) that are validated on, or evaluated, such as those of torch's DataLoader."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, blobs
from scipy import sparse

import fastopt as fo

X, Y = blobs(50)
WEIGHTS = np.linspace(0.5, 2, 50)
KINDS = {  # of x, as parts of an item
    "arrays": np.asarray, "lists": lambda part: part.tolist(), "bytes": lambda part: part.astype("u1"),
    "sparse": sparse.csr_matrix,
}  # fmt: skip


def items(weighted=False, kind="arrays"):
    parts = [slice(0, 20), slice(20, 21), slice(21, 50)]
    return [(KINDS[kind](X[s]), Y[s], *[WEIGHTS[s]] * weighted) for s in parts]


class Loader:
    """An iterable that is no iterator, and has a length, as a DataLoader."""

    def __init__(self, given):
        self.given = given

    def __iter__(self):
        return iter(self.given)

    def __len__(self):
        return len(self.given)


def model_of(backend="numpy"):
    model = fo.Sequential([fo.Dense(6, "tanh"), fo.Dense(3)], seed=1, backend=backend)
    model.compile("adam", CROSS_ENTROPY, ["accuracy", "f1_macro"])
    return model


@pytest.mark.parametrize("wrapped", [list, iter, Loader], ids=["list", "iterator", "loader"])
@pytest.mark.parametrize("weighted", [False, True])
def test_validation_on_items_is_that_on_their_rows(backend, weighted, wrapped):
    found = []
    for data in ((X, Y, *[WEIGHTS] * weighted), wrapped(items(weighted))):
        history = model_of(backend).fit(X, Y, epochs=3, validation_data=data, verbose=0)
        found.append([history[name] for name in ("val_loss", "val_accuracy", "val_f1_macro", "loss")])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_evaluation_of_items_is_that_of_their_rows(backend, kind, weighted):
    model = model_of(backend)
    model.build(X.shape[1])
    whole = X.astype("u1") if kind == "bytes" else X
    wanted = model.evaluate(whole, Y, sample_weight=WEIGHTS if weighted else None)
    assert model.evaluate(Loader(items(weighted, kind))) == wanted


def test_items_are_trained_on_and_validated_on_together():
    history = model_of().fit(items(), epochs=2, validation_data=iter(items()), verbose=0)
    assert history["val_loss"][-1] < history["loss"][-1]


def test_models_of_a_call_share_the_items_of_an_iterator():
    one = model_of("cpu")
    one.fit(X, Y, epochs=2, validation_data=(X, Y), verbose=0)
    found = fo.fit_many([model_of("cpu"), model_of("cpu")], X, Y, epochs=2, validation_data=iter(items()), verbose=0)
    assert [history["val_loss"] for history in found] == [one.history["val_loss"]] * 2


def test_loaders_of_torch():
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    loader, model = torch.utils.data.DataLoader(data, batch_size=16), model_of()
    history = model.fit(loader, epochs=2, validation_data=loader, verbose=0)
    assert history["val_loss"][-1] == model.evaluate(loader)["loss"] == model.evaluate(X, Y)["loss"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ValueError, "must have items \\(x, y\\); got an iterable without any"),
        (iter([]), ValueError, "must have items \\(x, y\\); got an iterable without any"),
        (X, ValueError, "x and y must have as many rows; .* without y, x must be an iterable of items"),
        (7, TypeError, "without y, x must be an iterable of items \\(x, y\\); got 7"),
        ("words", TypeError, "iterable of items"),
        (iter([X]), TypeError, "every item of x must be a tuple .* as item 1"),
        ([(X, Y), (X,)], TypeError, "every item of x must be a tuple .*as item 2"),
        ([(X, Y), (X, Y, WEIGHTS)], ValueError, "the items of x must all have weights or none"),
        ([(X, Y), (X[:, :2], Y)], ValueError, "rows of one shape; got shapes"),
        ([(X[0], 3)], ValueError, "rows of one shape|as many rows"),
    ],
)
def test_what_are_no_items(given, error, message):
    model = model_of()
    model.build(X.shape[1])
    with pytest.raises(error, match=message):
        model.evaluate(given)


def test_weights_are_given_once():
    with pytest.raises(ValueError, match="sample_weight is for arrays x and y, and y is left out"):
        model_of().evaluate(items(), sample_weight=WEIGHTS)
