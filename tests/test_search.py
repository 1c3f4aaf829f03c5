"""fastopt.search: spaces, folds and scores beside trainings by hand, pruning, and studies that go on."""

from __future__ import annotations

import importlib
import pathlib
import statistics
import sys

import numpy as np
import pytest

optuna = pytest.importorskip("optuna")
pytest.importorskip("sklearn")

from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import KFold, StratifiedKFold, TimeSeriesSplit  # noqa: E402

import fastopt as fo  # noqa: E402
from fastopt.search import PruningCallback, Range, _objective, search  # noqa: E402
from fastopt.search._space import Space  # noqa: E402

QUICK = {"backend": "numpy", "epochs": 2, "verbose": 0}


@pytest.fixture(scope="module")
def flowers():
    """Three classes that a small network tells apart."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    return rng.normal(size=(60, 4)) + 3 * np.eye(3, 4)[y], np.array(["a", "b", "c"])[y]


@pytest.fixture(scope="module")
def numbers():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 3))
    return x, 100 + 20 * (x @ np.array([1.0, -2.0, 0.5]))


def by_hand(x, y, folds, settings, loss="sparse_categorical_crossentropy", epochs=2, figure="val_accuracy", **options):
    """Figures of every epoch, of a network of the settings trained on each fold."""
    found = []
    for train, test in folds:
        classes = len(np.unique(y)) if loss.startswith("sparse") else 1
        layers = [fo.Dense(width, settings.get("activation", "relu")) for width in settings.get("layers", (64, 32))]
        last = fo.Dense(classes, "softmax" if loss.startswith("sparse") else "linear")
        model = fo.Sequential([*layers, last], backend="numpy")
        metrics = ["accuracy"] if loss.startswith("sparse") else ["mean_squared_error", "r2"]
        model.compile(fo.get_optimizer(settings.get("optimizer", "adam"), lr=settings["lr"]), loss, metrics)
        history = model.fit(
            x[train], y[train], epochs=epochs, batch_size=settings.get("batch_size", 32), verbose=0,
            validation_data=(x[test], y[test]), **options,
        )  # fmt: skip
        found.append(history[figure])
    return found


# ---------------------------------------------------------------- scores and samplers
def test_a_grid_has_every_point_with_the_scores_of_trainings_by_hand(flowers):
    x, y = flowers
    space = {"lr": [0.001, 0.03], "layers": [(8,), (6, 5), ()], "batch_size": 10, "activation": "tanh"}
    result = search(x, y, space, sampler="grid", prune=False, **QUICK)
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(x, y))
    found = {(outcome.settings["lr"], outcome.settings["layers"]): outcome for outcome in result.outcomes}
    assert set(found) == {(lr, layers) for lr in space["lr"] for layers in space["layers"]}
    for outcome in result.outcomes:
        scores = [figures[-1] for figures in by_hand(x, y, folds, outcome.settings)]
        assert outcome.scores == tuple(scores)
        assert outcome.score == pytest.approx(statistics.mean(scores))
    scores = [outcome.score for outcome in result.outcomes]
    assert scores == sorted(scores, reverse=True)
    assert (result.best_score, result.best_settings) == (scores[0], result.outcomes[0].settings)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize(
    ("options", "together"),
    [({"prune": False}, 2), ({}, 0), ({"prune": False, "patience": 5}, 0), ({"prune": False, "cv": 1}, 0)],
)
def test_folds_are_trained_in_one_call_where_nobody_looks_at_epochs(flowers, monkeypatch, backend, options, together):
    """And the scores are, to the bit, those of trainings with a validation of each epoch."""
    calls, inner = [], _objective.fit_many
    monkeypatch.setattr(
        _objective, "fit_many", lambda models, *a, **o: calls.append(len(models)) or inner(models, *a, **o)
    )
    monkeypatch.setattr(_objective, "get_num_threads", lambda: 2)
    (x, y), space = flowers, {"lr": [0.001, 0.03], "layers": (8,), "batch_size": 10}
    options = {**QUICK, "backend": backend, "monitor": "val_loss", "sampler": "grid", **options}
    result = search(x, y, space, **options)
    assert calls == [3] * together
    apart = search(x, y, space, **{**options, "prune": True})
    assert [outcome.scores for outcome in result.outcomes] == [outcome.scores for outcome in apart.outcomes]


def test_numbers_are_searched_by_their_loss(numbers):
    x, y = numbers
    result = search(x, y, {"lr": [0.001, 0.3], "layers": [()]}, sampler="grid", cv=2, **QUICK)
    folds = list(KFold(2, shuffle=True, random_state=0).split(x))
    for outcome in result.outcomes:
        figures = by_hand(x, y, folds, outcome.settings, "mean_squared_error", figure="val_loss")
        assert outcome.scores == tuple(series[-1] for series in figures)
    assert result.outcomes[0].score < result.outcomes[1].score
    assert result.best_settings["lr"] == 0.3


def test_features_and_targets_are_standardized_by_the_training_rows(numbers):
    x, y = numbers
    options = {"sampler": "grid", "cv": 2, "monitor": "val_r2", "backend": "numpy", "epochs": 20}
    plain, scaled = (
        search(1000 * x, y, {"lr": [0.05], "layers": (8,)}, standardize=flag, **options) for flag in (False, True)
    )
    assert scaled.best_score > 0.8 > plain.best_score
    assert scaled.fit(1000 * x, y, epochs=60).evaluate(1000 * x, y)["r2"] > 0.9


@pytest.mark.parametrize("cv", [1, 2, TimeSeriesSplit(4)])
def test_folds(flowers, cv):
    x, y = flowers
    result = search(x, y, {"lr": [0.01], "layers": (4,)}, sampler="grid", cv=cv, **QUICK)
    assert len(result.best.scores) == getattr(cv, "n_splits", cv)


def test_folds_by_their_rows(flowers):
    x, y = flowers
    options = {"sampler": "grid", **QUICK}
    splitter = StratifiedKFold(3)
    pairs = list(splitter.split(x, y))
    masks = [tuple(np.isin(np.arange(len(x)), rows) for rows in pair) for pair in pairs]
    found = [search(x, y, {"lr": [0.01]}, cv=cv, **options).best.scores for cv in (splitter, pairs, iter(pairs), masks)]
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) == 3


@pytest.mark.parametrize(("loss", "outputs"), [("binary_crossentropy", 1), ("sparse_categorical_crossentropy", 2)])
def test_a_figure_of_all_rows_is_searched(flowers, loss, outputs):
    x, y = flowers
    folds = list(StratifiedKFold(2, shuffle=True, random_state=0).split(x, y == "a"))
    options = {"sampler": "grid", "cv": 2, "loss": loss, "backend": "numpy", "epochs": 3}
    best = search(x, y == "a", {"lr": [0.01], "layers": ()}, monitor="val_auc", **options).best
    for (train, test), score in zip(folds, best.scores, strict=True):
        model = fo.Sequential([fo.Dense(outputs, "sigmoid" if outputs == 1 else "softmax")], backend="numpy")
        model.compile(fo.Adam(lr=0.01), loss)
        model.fit(x[train], y[train] == "a", epochs=3)
        assert score == pytest.approx(roc_auc_score(y[test] == "a", model.predict(x[test])[:, -1]))


def test_patience_ends_a_training_and_takes_its_best_epoch(flowers):
    x, y = flowers
    options = {"sampler": "grid", "cv": 2, "backend": "numpy", "epochs": 30, "prune": False}
    result = search(x, y, {"lr": [0.3], "layers": (4,)}, patience=1, **options)
    folds = list(StratifiedKFold(2, shuffle=True, random_state=0).split(x, y))
    figures = by_hand(
        x, y, folds, {"lr": 0.3, "layers": (4,)}, epochs=30, callbacks=[fo.EarlyStopping("val_accuracy", patience=1)]
    )
    assert result.best.scores == tuple(map(max, figures))
    assert max(map(len, figures)) < 30
    assert result.best.epochs == tuple(list(fold).index(max(fold)) + 1 for fold in figures)
    assert result.best_epochs == round(np.mean(result.best.epochs))
    model = result.fit(x, y)
    assert len(model.history.epochs) == result.best_epochs
    assert len(result.fit(x, y, epochs=2).history.epochs) == 2


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_ranges_are_drawn_by_the_seed(flowers, sampler):
    x, y = flowers
    space = {
        "lr": (1e-3, 1e-1), "batch_size": (8, 32), "dropout": (0.0, 0.5), "optimizer": ["sgd", "adam"],
        "momentum": (0.5, 0.9), "layers": [(4,), (8, 4)],
    }  # fmt: skip
    runs = [search(x, y, space, sampler=sampler, trials=8, cv=1, seed=seed, prune=False, **QUICK) for seed in (3, 3, 4)]
    drawn = [[outcome.settings for outcome in run.outcomes] for run in runs]
    assert drawn[0] == drawn[1] != drawn[2]
    for settings in drawn[0]:
        assert 1e-3 <= settings["lr"] <= 1e-1
        assert 0.0 <= settings["dropout"] <= 0.5
        assert isinstance(settings["batch_size"], int)
        assert 8 <= settings["batch_size"] <= 32
        assert ("momentum" in settings) == (settings["optimizer"] == "sgd")  # adam has none
    assert len({settings["lr"] for settings in drawn[0]}) == 8
    assert {settings["optimizer"] for settings in drawn[0]} == {"sgd", "adam"}
    kind = optuna.samplers.TPESampler if sampler == "tpe" else optuna.samplers.RandomSampler
    assert isinstance(runs[0].study.sampler, kind)


def test_threads_train_as_one_does_and_the_number_of_threads_is_as_before(flowers):
    x, y = flowers
    space = {"lr": [0.001, 0.01, 0.1], "layers": [(4,), (8,)]}
    before = fo.get_num_threads()
    one, two = (search(x, y, space, sampler="grid", jobs=jobs, epochs=2, prune=False, verbose=0) for jobs in (1, 2))
    assert fo.get_num_threads() == before
    scores = [
        {(outcome.settings["lr"], outcome.settings["layers"]): outcome.scores for outcome in run.outcomes}
        for run in (one, two)
    ]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 6


def test_models_of_your_own(flowers):
    x, y = flowers
    seen = []

    def build(settings):
        seen.append(settings)
        model = fo.Sequential([fo.Dense(settings["width"], "tanh"), fo.Dense(3, "softmax")], backend="numpy")
        model.compile(fo.SGD(lr=settings["rate"]), "sparse_categorical_crossentropy", ["accuracy"])
        return model

    result = search(x, y, {"width": [3, 6], "rate": 0.1, "batch_size": [5]}, sampler="grid", build=build, cv=2, **QUICK)
    assert {settings["width"] for settings in seen} == {3, 6}
    model = result.fit(x, y, epochs=3)
    assert model.layers[0].units == result.best_settings["width"]
    assert len(model.history) == 3
    assert model.history.batch_size == 5
    with pytest.raises(TypeError, match="build must return a Sequential that is compiled; got"):
        search(x, y, {"width": [3]}, sampler="grid", build=lambda settings: fo.Sequential([fo.Dense(3)]), **QUICK)


def test_tables_and_sparse_rows_are_as_arrays(flowers):
    pandas, sparse = pytest.importorskip("pandas"), pytest.importorskip("scipy.sparse")
    x, y = flowers
    options = {"sampler": "grid", "cv": 2, **QUICK}
    scores = [
        search(rows, targets, {"lr": [0.01], "layers": (4,)}, **options).best.scores
        for rows, targets in ((x, y), (pandas.DataFrame(x), pandas.Series(y)), (sparse.coo_array(x), list(y)))
    ]
    assert scores[0] == scores[1] == scores[2]


# ---------------------------------------------------------------- pruning
class Trial:
    """A trial that is given up at one step."""

    def __init__(self, at):
        self.at, self.reported = at, {}

    def report(self, value, step):
        self.reported[step] = value

    def should_prune(self):
        return max(self.reported) == self.at


def test_the_callback_reports_every_epoch_and_ends_the_training(numbers, backend):
    x, y = numbers
    for first in (0, 10):
        trial, model = Trial(first + 3), fo.Sequential([fo.Dense(1)], backend=backend)
        model.compile("sgd", "mean_squared_error")
        callback = PruningCallback(trial, first=first)
        with pytest.raises(optuna.TrialPruned, match="given up after epoch 3, with a val_loss of"):
            model.fit(x, y, epochs=9, validation_split=0.2, callbacks=[callback], verbose=0)
        assert list(trial.reported) == [first + 1, first + 2, first + 3]
        assert list(trial.reported.values()) == model.history["val_loss"]


def test_the_callback_ends_what_diverges(numbers):
    x, y = numbers
    trial, model = Trial(99), fo.Sequential([fo.Dense(1)], backend="numpy")
    model.compile(fo.SGD(lr=1e6), "mean_squared_error")
    with pytest.raises(optuna.TrialPruned, match="loss is (inf|nan) in epoch"):
        model.fit(x, y, epochs=9, callbacks=[PruningCallback(trial, "loss")], verbose=0)


def test_the_callback_waits_for_epochs_that_are_validated(numbers):
    x, y = numbers
    trial, model = Trial(99), fo.Sequential([fo.Dense(1)], backend="numpy")
    model.compile("sgd", "mean_squared_error")
    model.fit(x, y, epochs=4, validation_split=0.2, validation_freq=2, callbacks=[PruningCallback(trial)], verbose=0)
    assert list(trial.reported) == [2, 4]


def test_the_callback_refuses():
    with pytest.raises(TypeError, match="trial must be a trial of Optuna's; got int"):
        PruningCallback(3)
    model = fo.Sequential([fo.Dense(1)], backend="numpy")
    model.compile("sgd", "mean_squared_error")
    with pytest.raises(ValueError, match="PruningCallback cannot monitor 'val_loss'"):
        model.fit(np.ones((4, 1)), np.ones(4), callbacks=[PruningCallback(Trial(1))])


def test_bad_trials_are_given_up_unless_all_are_to_end(flowers):
    x, y = flowers
    rates = [0.03, 0.02, 0.05, 0.04, 0.01, 1e-9, 1e-8, 1e-7]
    space = {"lr": rates, "layers": (8,)}
    pruned, whole = (
        search(x, y, space, sampler="grid", cv=2, prune=prune, backend="numpy", epochs=8) for prune in (True, False)
    )
    states = {outcome.settings["lr"]: outcome.state for outcome in pruned.outcomes}
    assert "pruned" in states.values()
    assert all(states[lr] == "complete" for lr in (pruned.best_settings["lr"], whole.best_settings["lr"]))
    assert {outcome.state for outcome in whole.outcomes} == {"complete"}
    assert pruned.best_score == whole.best_score
    assert f"{list(states.values()).count('pruned')} of them pruned" in str(pruned)
    last = pruned.outcomes[-1]
    trial = next(trial for trial in pruned.study.trials if trial.number == last.number)
    assert last.score == trial.intermediate_values[trial.last_step]


def test_trials_that_diverge_are_told_from_others(numbers):
    x, y = numbers
    space = {"lr": [0.01, 1e9], "optimizer": "sgd", "layers": ()}
    result = search(x, y, space, sampler="grid", cv=2, prune=False, backend="numpy", epochs=9)
    assert {outcome.settings["lr"]: outcome.state for outcome in result.outcomes} == {0.01: "complete", 1e9: "pruned"}
    alone = search(x, y, {**space, "lr": [1e9]}, sampler="grid", cv=2, backend="numpy", epochs=9)
    with pytest.raises(ValueError, match="none of 1 trial came to its end"):
        alone.best  # noqa: B018


@pytest.mark.parametrize("options", [{"prune": True}, {"prune": False}, {"prune": False, "patience": 3}])
def test_an_accuracy_of_weights_that_diverged_is_no_score(flowers, options):
    x, y = flowers
    space = {"lr": [0.01, 1e30], "optimizer": "sgd", "layers": (4,)}
    result = search(1e3 * x, y, space, sampler="grid", cv=2, backend="numpy", epochs=3, **options)
    assert {outcome.settings["lr"]: outcome.state for outcome in result.outcomes} == {0.01: "complete", 1e30: "pruned"}


# ---------------------------------------------------------------- databases
def test_a_study_goes_on_and_others_are_told(flowers, tmp_path):
    x, y = flowers
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/trials.db")  # opening one takes a second
    stored = {"storage": storage, "cv": 2, **QUICK}
    space = {"lr": (1e-3, 1e-1), "layers": [(4,), (8,)]}
    first = search(x, y, space, trials=3, **stored)
    rates = {outcome.settings["lr"] for outcome in first.outcomes}
    with pytest.raises(ValueError, match="has a study 'fastopt' already: go on with it by resume=True"):
        search(x, y, space, trials=3, **stored)
    more = search(x, y, space, trials=5, resume=True, **stored)
    now = {outcome.settings["lr"] for outcome in more.outcomes}
    assert rates < now
    assert len(now) == len(more.outcomes) == 5
    again = search(x, y, space, trials=5, resume=True, **stored)  # which has nothing left to do
    assert [outcome.settings for outcome in again.outcomes] == [outcome.settings for outcome in more.outcomes]
    assert again.best_settings["layers"] in [(4,), (8,)]
    others = {
        "space": ({**space, "lr": (1e-3, 1.0)}, {}), "folds": (space, {"cv": 3}), "epochs": (space, {"epochs": 3}),
        "seed": (space, {"seed": 1}), "standardize": (space, {"standardize": True}),
        "dtype": (space, {"dtype": "float64"}), "patience": (space, {"patience": 2}),
    }  # fmt: skip
    for name, (other, options) in others.items():
        with pytest.raises(ValueError, match=f"is of another search: its {name} is"):
            search(x, y, other, trials=6, resume=True, **{**stored, **options})
    for features, targets in ((x + 1, y), (x, np.roll(y, 1)), (x[:, ::-1], y)):
        with pytest.raises(ValueError, match="is of another search: its data is"):
            search(features, targets, space, trials=6, resume=True, **stored)
    assert len(search(x, y, space, trials=2, name="second", **stored).outcomes) == 2


def test_a_grid_goes_on_after_an_interrupt(flowers):
    x, y = flowers
    calls = []

    def build(settings):
        calls.append(settings["width"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        model = fo.Sequential([fo.Dense(settings["width"]), fo.Dense(3, "softmax")], backend="numpy")
        model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        return model

    stored = {"storage": optuna.storages.InMemoryStorage(), "cv": 1, "sampler": "grid", "build": build, **QUICK}
    space = {"width": [2, 3, 4, 5]}
    with pytest.raises(KeyboardInterrupt):
        search(x, y, space, **stored)
    result = search(x, y, space, resume=True, **stored)
    assert sorted(outcome.settings["width"] for outcome in result.outcomes) == [2, 3, 4, 5]
    assert len(calls) == 5  # the finished ones are not trained again


# ---------------------------------------------------------------- output and refusals
def test_a_database_that_cannot_be_opened(flowers, monkeypatch):
    x, y = flowers
    for url in ("nosuch://place", "sqlite:////no/such/folder/trials.db"):
        with pytest.raises(ValueError, match=f"the storage '{url}' cannot be opened: "):
            search(x, y, {"lr": [0.01, 0.1]}, storage=url, **QUICK)
    memory, calls = optuna.storages.InMemoryStorage(), []
    conflicts = ["table studies already exists", "UNIQUE constraint failed: alembic_version.version_num"]

    def get_storage(url):
        calls.append(url)
        if len(calls) <= len(conflicts):  # with another process, which makes it
            raise RuntimeError(conflicts[len(calls) - 1])
        return memory if isinstance(url, str) else url

    monkeypatch.setattr(optuna.storages, "get_storage", get_storage)
    monkeypatch.setattr("fastopt.search._study.time.sleep", lambda seconds: None)
    result = search(x, y, {"lr": [0.01], "layers": (4,)}, sampler="grid", storage="sqlite:///trials.db", **QUICK)
    assert len(result.outcomes) == 1
    assert calls[:3] == ["sqlite:///trials.db"] * 3


def test_the_table(flowers):
    x, y = flowers
    space = {"lr": [0.001, 0.03], "optimizer": ["adam"], "layers": [(4,), ()]}
    result = search(x, y, space, sampler="grid", cv=2, **QUICK)
    lines = str(result).splitlines()
    assert lines[0].split() == ["trial", "val_accuracy", "+-", "lr", "optimizer", "layers", "seconds"]
    best = result.best
    spread = statistics.stdev(best.scores)
    assert lines[1].split()[:6] == [
        str(best.number), f"{best.score:.4g}", f"{spread:.2g}", f"{best.settings['lr']:g}", "adam",
        {(4,): "4", (): "none"}[best.settings["layers"]],
    ]  # fmt: skip
    assert lines[-1] == "4 trials, 0 of them pruned"
    assert len(result.table(1).splitlines()) == 3
    assert repr(result) == "SearchResult(4 trials of lr, optimizer, layers)"


def test_the_bar_counts_trials(flowers, capsys):
    x, y = flowers
    options = {"sampler": "grid", "cv": 1, "backend": "numpy", "epochs": 1}
    search(x, y, {"lr": [0.01, 0.02], "layers": (4,)}, verbose=1, **options)
    shown = capsys.readouterr().err
    assert "trials: 100%" in shown
    assert "2/2" in shown
    assert "best 0." in shown or "best 1" in shown
    search(x, y, {"lr": [0.01, 0.02], "layers": (4,)}, verbose=0, **options)
    assert capsys.readouterr().err == ""


REFUSALS = [
    ({"lr": 0.1}, {}, "space has nothing to search"),
    ({"lr": []}, {}, "lr must be a list with a value at least"),
    ({"lr": [0.1, 0.1]}, {}, "lr must be a list of different values"),
    ({"lr": (0.1, 0.01)}, {}, "lr must be a range .* low must be below high; got 0.1 and 0.01"),
    ({"lr": (0.0, 0.1)}, {}, "low must be above 0 on a logarithmic scale"),
    ({"lr": (0.01, 0.1)}, {"sampler": "grid"}, "a grid needs a list of values for lr; got a range"),
    ({"lr": [0.1], "rate": 3}, {}, "'rate' is no setting of adam"),
    ({"lr": [0.1], "momentum": 0.9}, {}, "'momentum' is no setting of adam"),
    ({"optimizer": ["adam", "sgd"], "momentum": [0.5, 0.9]}, {"sampler": "grid"}, "momentum is no setting of adam, so"),
    ({"learning_rate": [0.1, 0.2]}, {}, "'learning_rate' is no setting of adam; .*; learning_rate: it is called lr"),
    ({"optimizer": ["adem"]}, {}, "optimizer must be among"),
    ({"lr": [-1.0]}, {}, "lr"),
    ({"batch_size": [0]}, {}, "batch_size"),
    ({"lr": [0.1, -1.0]}, {}, r"lr must be .*; got -1.0 \(in a trial with lr=-1.0\)"),
    ({"dropout": (0.0, 1.5)}, {}, r"rate must be in \[0, 1\); got 1.5 \(in a trial with dropout=1.5"),
    ({"optimizer": ["adam", "sgd"], "momentum": [0.5, -0.9]}, {}, "momentum.*in a trial with optimizer='sgd', mom"),
    ({"epochs": [3, 0]}, {}, "epochs must be at least 1; got 0"),
    ({"layers": [(0,)]}, {}, "the width of a layer must be at least 1"),
    ({"lr": [0.1]}, {"sampler": "bayes"}, "sampler"),
    ({"lr": [0.1]}, {"sampler": "grid", "trials": 3}, "a grid has as many trials as points"),
    ({"lr": [0.1]}, {"trials": 0}, "trials must be at least 1"),
    ({"lr": [0.1]}, {"jobs": 0}, "jobs must be at least 1"),
    ({"lr": [0.1]}, {"cv": 0}, "cv must be at least 1"),
    ({"lr": [0.1]}, {"cv": 5000}, r"cv must split the \d+ rows; got 5000: .*n_splits"),
    ({"lr": [0.1]}, {"cv": []}, "cv must have a fold at least"),
    ({"lr": [0.1]}, {"cv": [3]}, r"cv must split the \d+ rows; got a list: cannot unpack"),
    ({"lr": [0.1]}, {"cv": [([0, 1], [5000])]}, r"cv must have numbers of rows, from 0 to \d+; got a list"),
    ({"lr": [0.1]}, {"cv": [([0, 1], [])]}, "cv must have numbers of rows"),
    ({"lr": [0.1]}, {"storage": "trials.db"}, "storage must be a URL such as 'sqlite:///trials.db'; got 'trials.db'"),
    ({"lr": [0.1]}, {"resume": True}, "resume goes on with a study of a storage"),
    ({"lr": [0.1]}, {"monitor": "loss"}, "monitor must be a figure of the validation, such as val_accuracy"),
    ({"lr": [0.1]}, {"monitor": "val_nothing"}, "nothing"),
    ({"lr": [0.1]}, {"loss": "binary_crossentropy"}, "takes labels of two classes, or one-hot rows; got 3 classes"),
    ({"lr": [0.1]}, {"timeout": 0}, "timeout must be above 0; got 0"),
    ({"lr": [0.1]}, {"timeout": -1.0}, "timeout must be at least 0"),
    ({"lr": [0.1]}, {"backend": "gpu"}, "backend"),
]


@pytest.mark.parametrize(("space", "options", "message"), REFUSALS)
def test_refusals_before_the_first_trial(flowers, space, options, message, tmp_path):
    stored = {} if "resume" in options else {"storage": f"sqlite:///{tmp_path}/trials.db"}
    with pytest.raises(ValueError, match=message):
        search(*flowers, space, **{**QUICK, **stored, **options})
    assert not list(tmp_path.iterdir())


def test_more_refusals(flowers):
    x, y = flowers
    with pytest.raises(ValueError, match="x and y must have as many rows"):
        search(x[1:], y, {"lr": [0.1]})
    with pytest.raises(TypeError, match="space must be a mapping of settings by name; got"):
        search(x, y, ["lr"])
    with pytest.raises(TypeError, match="build must be a function of the settings; got"):
        search(x, y, {"lr": [0.1]}, build=3)
    with pytest.raises(
        TypeError, match="cv must be a number of folds, a splitter of scikit-learn's or pairs.*; got 'x'"
    ):
        search(x, y, {"lr": [0.1, 0.2]}, cv="x")
    with pytest.raises(
        TypeError, match="storage must be a URL such as .*, or a storage of Optuna's; got a PurePosixPath"
    ):
        search(x, y, {"lr": [0.1, 0.2]}, storage=pathlib.PurePosixPath("trials.db"))


def test_an_array_of_numpys_is_a_list():
    assert Space({"lr": np.logspace(-3, -1, 3)}, known=True).check_grid() == {"lr": [0.001, 0.01, 0.1]}


@pytest.mark.parametrize(
    ("loss", "outputs"), [(None, 2), ("binary_crossentropy", 1), ("hinge", 1), ("categorical_crossentropy", 2)]
)
def test_losses_of_two_classes(loss, outputs):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = rng.normal(size=(40, 2)) + 3 * y[:, None]
    targets = np.eye(2)[y] if loss == "categorical_crossentropy" else y == 1
    options = {"loss": loss, "sampler": "grid", "cv": 2, "backend": "numpy", "epochs": 40}
    result = search(x, targets, {"lr": [0.05], "layers": (4,)}, **options)
    assert result.best_score > 0.9
    assert result.fit(x, targets).outputs == outputs


def test_ranges_of_your_own():
    assert Range(0.1, 0.9, log=True).log
    assert Range(1, 5).suggest(optuna.trial.FixedTrial({"n": 3}), "n") == 3
    with pytest.raises(ValueError, match="low must be above 0 on a logarithmic scale; got 0"):
        Range(0, 1, log=True)
    with pytest.raises(TypeError, match="low must be a number; got"):
        Range("a", 1)


def test_without_optuna_it_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("fastopt.search")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    message = r"fastopt.search needs Optuna and scikit-learn: pip install 'fastopt\[search\]'"
    with pytest.raises(ModuleNotFoundError, match=message) as caught:
        importlib.import_module("fastopt.search")
    assert caught.value.name == "optuna"
