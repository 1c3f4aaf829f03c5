"""fastopt.study: trained models beside trainings by hand, files that go on, verdicts, budgets and the page."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("scipy")

import fastopt as fo
from fastopt.study import StudyResult, _law, _page, _training, study
from fastopt.study._grid import Grid
from fastopt.study._records import Run, Shape, Timing

GRID = {"layers": [2, (8, 4), 16], "shares": [0.25, 0.5, 1.0], "epochs": [1, 3], "seeds": 2, "batch_size": 16}
QUICK = {"repeats": 1, "verbose": 0, "backend": "numpy"}


def clouds(rows=240, seed=0):
    """Three clouds that overlap."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    return rng.normal(size=(rows, 5)) + 1.5 * np.eye(3, 5)[y], y


@pytest.fixture(scope="module")
def result():
    x, y = clouds()
    return study(x, y, **GRID, **QUICK, test_data=clouds(100, 1))


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    """Intervals of laws, which take most of the time, are drawn from few samples."""
    monkeypatch.setattr(_law, "DRAWS", 10)


@pytest.fixture
def trained(monkeypatch):
    """A list that gets the number of models of every call of `fit_many`."""
    seen, inner = [], _training.fit_many

    def kept(models, *args, **options):
        seen.append(len(models))
        return inner(models, *args, **options)

    monkeypatch.setattr(_training, "fit_many", kept)
    return seen


# ---------------------------------------------------------------- trainings
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_models_are_those_of_one_training_of_all_epochs(backend):
    """Weights after the most epochs are, to the bit, those of a single `fit`; errors are counted from predictions."""
    (x, y), (x_test, y_test) = clouds(), clouds(100, 1)
    grid = {**GRID, "layers": [(8, 4)], "shares": [0.5, 0.75], "seeds": [3]}
    found = study(x, y, **grid, repeats=1, verbose=0, backend=backend, test_data=(x_test, y_test))
    rows = np.random.default_rng([0, 3]).permutation(240)[:120]
    runs = [run for run in found.runs if run.rows == 120]
    for run in runs:
        model = fo.Sequential([fo.Dense(8, "relu"), fo.Dense(4, "relu"), fo.Dense(3, "softmax")], 3, backend)
        model.compile("adam", "sparse_categorical_crossentropy")
        model.fit(x[rows], y[rows], run.epochs, 16, verbose=0)
        wrong = (model.predict(x_test).argmax(axis=1) != y_test).mean()
        wrong_in_training = (model.predict(x[rows[:100]]).argmax(axis=1) != y[rows[:100]]).mean()
        assert run.test_error == pytest.approx(wrong, abs=1e-9)
        assert run.train_error == pytest.approx(wrong_in_training, abs=1e-9)
        assert run.test_loss == model.evaluate(x_test, y_test)["loss"]
    assert [run.epochs for run in runs] == [1, 3]


def test_every_combination_is_trained_and_timed(result):
    cells = {(run.layers, run.rows, run.seed, run.epochs) for run in result.runs}
    expected = {
        (layers, rows, seed, epochs)
        for layers in [(2,), (8, 4), (16,)]
        for rows in (60, 120, 240)
        for seed in (0, 1)
        for epochs in (1, 3)
    }
    assert cells == expected
    assert len(result.runs) == len(expected)
    times = {(timing.layers, timing.rows, timing.epochs) for timing in result.timings}
    assert times == {(layers, rows, e) for layers, rows, _, _ in expected for e in (1, 3)}
    assert all(timing.seconds > 0 for timing in result.timings)


def test_batch_sizes_are_part_of_the_grid():
    """And errors count at the best of them."""
    x, y = clouds()
    found = study(x, y, layers=[2, 16], shares=1, epochs=2, batch_size=[64, 4], seeds=1, **QUICK)
    assert {run.batch_size for run in found.runs} == {4, 64} == {timing.batch_size for timing in found.timings}
    for point in found.best_points:
        both = [run.test_error for run in found.runs if run.layers == point.layers]
        assert (len(both), point.test_error) == (2, min(both))


def test_settings_reach_the_models(monkeypatch):
    x, y = clouds(60)
    made = []
    inner = _training.fit_many
    monkeypatch.setattr(_training, "fit_many", lambda models, *a, **o: made.extend(models) or inner(models, *a, **o))
    settings = {"optimizer": "sgd", "lr": 0.3, "momentum": 0.5, "activation": "tanh", "dropout": 0.25}
    study(
        x,
        y,
        layers=[3],
        shares=[0.5, 1],
        epochs=1,
        seeds=1,
        standardize=True,
        settings=settings,
        dtype="float64",
        **QUICK,
    )
    assert [type(layer).__name__ for layer in made[0].layers] == ["Normalization", "Dense", "Dropout", "Dense"]
    assert made[0].layers[1].activation == "tanh"
    assert repr(made[0].optimizer) == repr(fo.SGD(lr=0.3, momentum=0.5))
    assert str(made[0].dtype) == "float64"


@pytest.mark.parametrize("kind", ["labels", "frame", "sparse", "numbers"])
def test_data_of_other_kinds(kind):
    x, y = clouds(80)
    if kind == "labels":
        y = np.array(["red", "green", "blue"])[y]
    elif kind == "frame":
        x = pytest.importorskip("pandas").DataFrame(x)
    elif kind == "sparse":
        x = pytest.importorskip("scipy.sparse").csr_matrix(x.clip(0))
    else:
        y = (100 + 20 * x[:, :1]).astype(np.float32)
    found = study(x, y, layers=[2, 4], shares=[0.5, 1], epochs=2, seeds=1, standardize=kind == "numbers", **QUICK)
    assert found.is_classification == (kind != "numbers")
    assert (found.rows, found.test_rows) == (64, 16)
    assert len(found.runs) == 4
    assert not found.diverged
    assert found.law_of_parameters is None
    assert found.twice_the_data() is None
    assert ("%" in found.shown_error(0.5)) == found.is_classification
    assert str(found)


def test_trainings_that_diverge_are_left_out():
    x, y = clouds(80)
    options = {"layers": [4, 8], "shares": 1, "epochs": [1, 2], **QUICK}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = study(x, 1e3 * y.astype(float) + 0.5, **options, settings={"optimizer": "sgd", "lr": 1e9})
    assert found.diverged == found.models == len(found.runs) == 6  # not trained on
    assert not found.points
    with pytest.raises(ValueError, match="all trainings diverged"):
        str(found)


# ---------------------------------------------------------------- files
def test_a_study_goes_on_from_its_file(tmp_path, trained, result):
    """Also from half a line, and with more seeds: only what is missing is trained, and the figures are the same."""
    (x, y), path, test_data = clouds(), tmp_path / "study.jsonl", clouds(100, 1)
    study(x, y, **{**GRID, "seeds": 1}, **QUICK, test_data=test_data, storage=path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    lost = lines.pop()
    assert json.loads(lost)["run"]["epochs"] == 3
    path.write_bytes(b"".join(lines) + lost[: len(lost) // 2])
    trained.clear()
    again = study(x, y, **GRID, **QUICK, test_data=test_data, storage=path, resume=True)
    assert sum(trained) == 2 * (9 + 1)  # nine of the other seed, and the one that was lost, up to 1 and to 3 epochs
    key = lambda run: (run.layers, run.rows, run.seed, run.epochs)  # noqa: E731
    unique = {key(run): run.test_error for run in again.runs}
    assert unique == {key(run): run.test_error for run in result.runs}
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    trained.clear()
    times = len(again.timings)
    third = study(x, y, **GRID, **QUICK, test_data=test_data, storage=path, resume=True)
    assert (trained, len(third.timings)) == ([], times)
    assert [point.test_error for point in third.points] == pytest.approx([p.test_error for p in again.points])
    assert all(point.seeds == 2 for point in third.points), "a model that was trained twice counts once"


def test_a_smaller_grid_counts_its_own_models_alone(tmp_path):
    (x, y), path = clouds(), tmp_path / "study.jsonl"
    study(x, y, **GRID, **QUICK, storage=path)
    small = {**GRID, "layers": [2, 16], "epochs": 1, "seeds": [1], "shares": 1.0}
    found = study(x, y, **small, **QUICK, storage=path, resume=True)
    assert [(point.layers, point.epochs, point.seeds) for point in found.points] == [((2,), 1, 1), ((16,), 1, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"lr": 0.1}}, "its settings is {}, not {'lr': 0.1}"),
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"dtype": "float64"}, "its dtype is 'float32'"),
        ({"y": np.arange(60) % 3 + 1}, "is of another study"),
        ({"resume": False}, "has a study already: go on with it by resume=True"),
    ],
)
def test_files_of_other_studies_are_refused(tmp_path, change, message):
    x, y = clouds(60)
    options = {
        "layers": [2, 3],
        "shares": 1,
        "epochs": 1,
        "seeds": 1,
        **QUICK,
        "storage": tmp_path / "a",
        "x": x,
        "y": y,
    }
    study(**options)
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(ValueError, match=re.escape(message)):
        study(**{**options, "resume": True, **change})
    assert (tmp_path / "a").read_bytes() == before


@pytest.mark.parametrize("content", [b"nothing\n", b"{}\n", b'{"study": 2}\n', b"[1]\n", b"\xff\n", b"no line"])
def test_files_of_other_kinds_are_refused(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="must be the file of a study"):
        study(*clouds(60), layers=[2, 3], shares=1, epochs=1, seeds=1, **QUICK, storage=path, resume=True)
    assert path.read_bytes() == content


@pytest.mark.repeats
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_a_killed_study_goes_on(tmp_path):
    """Its file has whole lines, and all models are there in the end."""
    path = tmp_path / "study.jsonl"
    code = (
        "import sys, numpy as np; from fastopt.study import study; rng = np.random.default_rng(0)\n"
        "x = rng.normal(size=(2000, 5)); y = (x[:, 0] > 0).astype(int)\n"
        "found = study(x, y, layers=[4, 8, 16], epochs=20, repeats=1, verbose=0, storage=sys.argv[1], resume=True,"
        " backend='numpy')\nprint(len(found.runs))"
    )
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    while process.poll() is None and (not path.exists() or b'"run"' not in path.read_bytes()):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was over before it was killed"
    begun = path.read_bytes().count(b'"run"')
    assert 0 < begun < 27
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 27 == path.read_bytes().count(b'"run"')


# ---------------------------------------------------------------- answers
def made_up(
    runs,
    timings=(),
    layers=((1,), (4,), (16,)),
    shares=(0.25, 0.5, 1.0),
    epochs=(5, 10),
    rows=1000,
    batch_size=50,
    constant_error=None,
):
    """A result of figures that were made up."""
    grid = Grid.of(list(layers), list(shares), list(epochs), batch_size, 2)
    header = {
        "rows": rows,
        "test_rows": 500,
        "inputs": 3,
        "outputs": 2,
        "loss": "a",
        "dtype": "float32",
        "settings": {},
    }
    return StudyResult(grid, Shape(3, 2, 4), rows, 500, True, runs, timings, "here", header, constant_error)


def lawful(noise=0.0):
    """Runs whose errors follow a law, and timings that follow another."""
    rng, shape, runs, timings = np.random.default_rng(0), Shape(3, 2, 4), [], []
    for layers in ((1,), (4,), (16,)):
        for rows in (250, 500, 1000):
            for epochs in (5, 10):
                p = shape.parameters(layers)
                timings.append(Timing(layers, rows, 50, epochs, 0.002 + 1e-7 * p * rows * epochs, "here"))
                for seed in (0, 1):
                    error = (0.05 + p**-0.7 + 10 * rows**-0.8 + (epochs == 5) * 0.1) * np.exp(noise * rng.normal())
                    runs.append(Run(layers, rows, 50, seed, epochs, 0.1, 0.9 * error, error, 1.0, 1.0))
    return runs, timings


def test_laws_answer_what_was_not_trained():
    found = made_up(*lawful())
    assert found.law.floor.value == pytest.approx(0.05, rel=1e-3)
    assert [b.value for b in found.law.exponents] == pytest.approx([0.7, 0.8], rel=1e-3)
    p = (3 + 1) * 64 + (64 + 1) * 2
    assert found.error(64, 4000).value == pytest.approx(0.05 + p**-0.7 + 10 * 4000**-0.8, rel=1e-3)
    assert found.seconds((64,), 4000, 7).value == pytest.approx(0.002 + 1e-7 * p * 4000 * 7, rel=1e-6)
    assert found.seconds(64).value == pytest.approx(0.002 + 1e-7 * p * 1000 * 10, rel=1e-6)
    double = found.twice_the_data()
    assert (double.layers, double.rows) == ((16,), 1000)
    before, after = (0.05 + 98**-0.7 + 10 * rows**-0.8 for rows in (1000, 2000))
    assert double.ratio.value == pytest.approx(after / before, rel=1e-3)
    assert double.seconds_after.value == pytest.approx(0.002 + 1e-7 * 98 * 2000 * 10, rel=1e-6)


def test_an_error_that_does_not_fall_stays():
    runs, timings = lawful()
    found = made_up([run._replace(test_error=0.3) for run in runs], timings)
    answers = " ".join(found.answers())
    slowly = made_up([run._replace(test_error=0.3 * run.rows**-0.01) for run in runs], timings).answers()
    assert "Error of 3-1-2 against rows: it does not fall as they become more." in slowly
    assert any("Twice the data: the error would stay at 28 %," in answer for answer in slowly)
    assert "Twice the data: the error would stay at 30 %, the time of a training go from" in answers
    assert "Error against parameters: it does not fall as they become more." in answers
    assert "%), the time of a training go from" in " ".join(made_up(*lawful()).answers())


def test_predicted_times_depend_on_the_batch_size():
    """Times were measured at two of them: here a step takes 10 us, whatever its rows."""
    shape, timings = Shape(3, 2, 4), []
    for layers in ((1,), (4,), (16,), (64,)):
        for rows in (250, 1000):
            for size in (50, 10):
                seconds = 1e-3 + 1e-9 * shape.parameters(layers) * rows * 10 + 1e-5 * 10 * rows / size
                timings.append(Timing(layers, rows, size, 10, seconds, "here"))
    found = made_up(lawful()[0], timings, layers=((1,), (4,), (16,), (64,)), batch_size=[50, 10])
    for size in (10, 25, 50):
        expected = 1e-3 + 1e-9 * 26 * 5000 * 10 + 1e-5 * 10 * 5000 / size
        assert found.seconds(4, 5000, 10, size).value == pytest.approx(expected, rel=1e-6)
    assert found.seconds(4, 5000, 10) == found.seconds(4, 5000, 10, 10)


@pytest.mark.parametrize(
    "budget",
    [{}, {"seconds": 0.01}, {"seconds": 0.05}, {"parameters": 40}, {"bytes": 100}, {"bytes": 400, "seconds": 0.02}],
)
def test_the_best_within_a_budget(budget):
    """Beside a search of all models by the formulas that they follow."""
    found = made_up(*lawful())
    sizes = {(1,): 8, (4,): 26, (16,): 98}
    allowed = []
    for layers, p in sizes.items():
        for rows in (250, 500, 1000):
            for epochs in (5, 10):
                seconds = 0.002 + 1e-7 * p * rows * epochs
                error = 0.05 + p**-0.7 + 10 * rows**-0.8 + (epochs == 5) * 0.1
                numbers = {"seconds": seconds, "bytes": 4 * p, "parameters": p}
                if all(numbers[name] <= limit for name, limit in budget.items()):
                    allowed.append((error, layers, rows, epochs))
    best = found.best(**budget)
    assert (best.layers, best.rows, best.epochs) == min(allowed)[1:]
    assert best.error == pytest.approx(min(allowed)[0])
    assert (best.parameters, best.bytes) == (sizes[best.layers], 4 * sizes[best.layers])


def test_no_model_is_within_a_budget_of_nothing():
    found = made_up(*lawful())
    assert found.best(seconds=1e-3) is None
    assert found.best(bytes=31) is None
    with pytest.raises(ValueError, match="seconds must be at least 0"):
        found.best(seconds=-1)
    with pytest.raises(TypeError, match="bytes must be a number"):
        found.best(bytes="1 MB")


def test_no_other_model_is_both_quicker_and_better_than_one_of_the_frontier():
    found = made_up(*lawful(0.05))
    key = [(choice.seconds.value, choice.error) for choice in found.choices]
    expected = {(s, e) for s, e in key if not any(t <= s and d <= e and (t, d) != (s, e) for t, d in key)}
    frontier = [(choice.seconds.value, choice.error) for choice in found.frontier]
    assert set(frontier) == expected
    assert frontier == sorted(frontier)


def judged(*errors, layers=((1,),)):
    """Kinds of the verdicts on all rows, of (training error, test error) at 5 and at 10 epochs for each size."""
    runs = [
        Run(size, 1000, 50, seed, epochs, 0.1, train, test + 1e-4 * seed, 1.0, 1.0)
        for size, of_size in zip(layers, errors, strict=True)
        for epochs, (train, test) in zip((5, 10), of_size, strict=True)
        for seed in (0, 1)
    ]
    found = made_up(runs, layers=layers, shares=(1.0,))
    return [verdict.kind for _, verdict in found.verdicts]


@pytest.mark.parametrize(
    ("kinds", "errors"),
    [
        (["overfits"], [[(0.1, 0.2), (0.01, 0.25)]]),  # the test error rises
        (["overfits"], [[(0.05, 0.2), (0.01, 0.2)]]),  # it stays, far above that of training
        (["unfinished"], [[(0.3, 0.32), (0.2, 0.22)]]),
        (["unfinished"], [[(0.1, 0.32), (0.05, 0.22)]]),
        (["fits"], [[(0.15, 0.2), (0.14, 0.2)]]),
        (["underfits", "fits"], [[(0.3, 0.31), (0.3, 0.31)], [(0.15, 0.2), (0.14, 0.2)]]),
        (["fits", "fits"], [[(0.2, 0.21), (0.2, 0.21)], [(0.15, 0.21), (0.14, 0.21)]]),  # larger ones are no better
    ],
)
def test_verdicts(kinds, errors):
    assert judged(*errors, layers=((1,), (4,))[: len(errors)]) == kinds


def test_models_that_hardly_learn_underfit():
    runs = [Run((1,), 1000, 50, s, e, 0.1, 0.85, 0.86, 1.0, 1.0) for s in (0, 1) for e in (5, 10)]
    for constant, kind in ((None, "fits"), (0.9, "underfits"), (0.95, "fits")):
        ((_, judged),) = made_up(runs, layers=((1,), (4,)), shares=(1.0,), constant_error=constant).verdicts
        assert judged.kind == kind
        assert judged.reason.endswith("; one answer for all rows has 90 %") == (kind == "underfits")


@pytest.mark.parametrize("kind", ["labels", "numbers", "vectors", "one-hot"])
def test_the_error_of_a_constant(kind):
    x, y = clouds(80)
    labels = np.where(y == 1, "most", np.where(np.arange(80) % 3 > 0, "most", "few"))
    targets = {"labels": labels, "numbers": x[:, 0] + 5, "vectors": x[:, :2] + 5, "one-hot": np.eye(3)[y]}[kind]
    loss = {"loss": "categorical_crossentropy"} if kind == "one-hot" else {}
    found = study(
        x[:60], targets[:60], test_data=(x[60:], targets[60:]), layers=[2, 3], shares=[1.0], epochs=1, seeds=1, **loss,
        **QUICK,
    )  # fmt: skip
    expected = {
        "labels": lambda: np.mean(targets[60:] == "few"), "one-hot": lambda: None,
        "numbers": lambda: np.mean((targets[60:] - targets[:60].mean()) ** 2),
        "vectors": lambda: np.mean((targets[60:] - targets[:60].mean(axis=0)) ** 2),
    }[kind]()  # fmt: skip
    assert found.constant_error == (None if expected is None else pytest.approx(expected))
    assert found.to_dict()["constant_error"] == found.constant_error


def test_verdicts_are_told_with_their_figures():
    runs = [
        Run((1,), 1000, 50, s, e, 0.1, t, v, 1.0, 1.0) for s in (0, 1) for e, t, v in ((5, 0.1, 0.2), (10, 0.02, 0.25))
    ]
    timings = [Timing((1,), 1000, 50, epochs, 0.1 * epochs, "here") for epochs in (1, 2, 3, 4)]
    found = made_up(runs, timings, layers=((1,), (4,)), shares=(1.0,))
    (sentence,) = [sentence for sentence in found.verdicts if sentence[0].rows == 1000]
    assert (
        sentence[1].reason
        == "after 10 epochs the training error is 2 % and the test error 25 %, which was 20 % after 5"
    )


# ---------------------------------------------------------------- output
def test_the_page_is_one_file_with_plots_and_tables(result, tmp_path):
    pytest.importorskip("matplotlib")
    result.html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/svg+xml;base64,') == 4
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    for heading in (
        "Answers",
        "Time against size",
        "Error against size",
        "Error against rows",
        "Frontier",
        "All models",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<tr>") == 1 + len(result.time.terms) + 1 + len(result.frontier) + 1 + 9 + 1 + 3
    assert "5-8-4-3" in page


def test_a_page_without_matplotlib(result, monkeypatch):
    monkeypatch.setattr(_page, "find_spec", lambda name: None)
    page = _page.page(result)
    assert "<img" not in page
    assert "<h2>All models</h2>" in page


def test_json_has_everything(result):
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["grid"] == {
        "layers": [[2], [8, 4], [16]], "shares": [0.25, 0.5, 1.0], "epochs": [1, 3], "batch_sizes": [16],
        "seeds": [0, 1],
    }  # fmt: skip
    assert len(found["models"]) == 18
    assert [term["name"] for term in found["time"]["terms"]][:2] == ["fit", "parameters x rows x epochs"]
    assert set(found["laws"]) == {"parameters", "rows", "parameters_and_rows"}
    assert found["answers"] == result.answers()
    assert {verdict["kind"] for verdict in found["verdicts"]} <= {"fits", "underfits", "overfits", "unfinished"}


def test_settings_that_are_no_json_are_kept_by_their_words(tmp_path):
    settings = {"lr": fo.schedules.Cosine(0.1, 9), "betas": (0.8, np.float32(0.5))}
    options = {"layers": [2, 3], "shares": [1.0], "epochs": 1, "seeds": 1, "settings": settings, **QUICK}
    x, y = clouds(60)
    stored = {"storage": str(tmp_path / "study.jsonl")}
    found = study(x, y, **options, **stored)
    assert json.loads(json.dumps(found.to_dict()))["data"]["settings"] == {
        "lr": repr(settings["lr"]), "betas": [0.8, 0.5],
    }  # fmt: skip
    size = (tmp_path / "study.jsonl").stat().st_size
    study(x, y, **options, **stored, resume=True)
    assert (tmp_path / "study.jsonl").stat().st_size == size
    other = {**settings, "lr": fo.schedules.Cosine(0.2, 9)}
    with pytest.raises(ValueError, match="is of another study: its settings"):
        study(x, y, **{**options, "settings": other}, **stored, resume=True)


def test_the_table_has_a_line_for_every_size_and_share(result):
    lines = str(result).partition("\n\n")[0].splitlines()
    assert len(lines) == 10
    assert lines[1].split()[:5] == ["5-2-3", "21", "84", "B", "60"]


# ---------------------------------------------------------------- wrong arguments
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": 8, "shares": 0.5}, ValueError, "a study needs two sizes, shares or batch sizes at least"),
        ({"layers": []}, ValueError, "layers must have a value at least"),
        ({"layers": "16,32"}, TypeError, "layers must be a list"),
        ({"layers": [0]}, ValueError, "the width of a layer must be at least 1"),
        ({"layers": [8, (8,)]}, ValueError, "layers must be different values"),
        ({"shares": [0.0, 1.0]}, ValueError, "shares must be above 0 and at most 1; got 0.0"),
        ({"shares": 1.5}, ValueError, "shares must be above 0 and at most 1; got 1.5"),
        ({"epochs": [1, 0]}, ValueError, "epochs must be at least 1"),
        ({"epochs": 1.5}, TypeError, "epochs must be a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1"),
        ({"seeds": [-1]}, ValueError, "seeds must be at least 0"),
        ({"repeats": 0}, ValueError, "repeats must be at least 1"),
        ({"test_split": 0.0}, ValueError, "test_split must leave rows"),
        ({"test_split": 1.0}, ValueError, "test_split must be in [0, 1)"),
        ({"test_data": (np.zeros((4, 5)), np.full(4, 7))}, ValueError, "labels of test_data must be among those of y"),
        ({"test_data": (np.zeros((4, 2)), np.zeros(4))}, ValueError, "test_data must be x (n, 5)"),
        ({"test_data": (np.zeros((0, 5)), np.zeros(0, int))}, ValueError, "(of the rows to test on)"),
        ({"test_data": (np.full((4, 5), np.nan), np.zeros(4, int))}, ValueError, "x must be finite; got nan at index"),
        ({"test_data": (np.zeros((4, 5)), np.zeros((4, 2), int))}, ValueError, "(of the rows to test on)"),
        ({"settings": {"layers": [3]}}, ValueError, "layers must be an argument of study"),
        ({"settings": {"epochs": 3}}, ValueError, "epochs must be an argument of study"),
        ({"settings": {"momentum": 0.9}}, ValueError, "got 'momentum'"),
        ({"settings": {"lr": -1.0}}, ValueError, "lr"),
        ({"settings": {"activation": "relux"}}, ValueError, "relux"),
        ({"settings": {"optimizer": "adamm"}}, ValueError, "unknown optimizer 'adamm'"),
        ({"settings": [("lr", 1)]}, TypeError, "settings must be a dict"),
        ({"resume": True}, ValueError, "storage must be given"),
        ({"storage": "/nowhere/study"}, FileNotFoundError, "no folder"),
        ({"test_data": np.zeros((3, 2))}, TypeError, "test_data must be a tuple (x, y); got a"),
        ({"storage": 3}, TypeError, "storage must be a path"),
        ({"backend": "gpu"}, ValueError, "gpu"),
        ({"loss": "mse2"}, ValueError, "mse2"),
        ({"verbose": 3}, ValueError, "verbose"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_training(options, error, message, trained, monkeypatch):
    monkeypatch.setattr("fastopt.study._study.measure", lambda *args: pytest.fail("it has begun"))
    with pytest.raises(error, match=re.escape(message)):
        study(*clouds(60), **{**GRID, **QUICK, **options})
    assert not trained


def test_as_many_rows_of_x_as_of_y():
    with pytest.raises(ValueError, match="x and y must have as many rows"):
        study(np.zeros((4, 2)), np.zeros(5), **QUICK)


def test_without_scipy_the_error_says_what_to_install():
    code = "import sys; sys.modules['scipy'] = None\nimport fastopt.study"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'fastopt[study]'" in done.stderr


def test_the_bar_is_drawn_where_it_is_asked_for(capsys):
    study(*clouds(60), layers=[2, 3], shares=1, epochs=1, seeds=1, **{**QUICK, "verbose": 1})
    err = capsys.readouterr().err
    assert "times: 100%" in err
    assert "models: 100%" in err
