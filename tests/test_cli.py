"""The command line: every option has an effect, and every error is one line."""

import json
import os
import shutil
import struct
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_cli import write_classes

import fastopt
from fastopt import _text, datasets
from fastopt.cli import experiment, info, main, train, warmup
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES
from fastopt.losses import ALIASES
from fastopt.optim import OPTIMIZER_CLASSES
from fastopt.schedules import Cosine, CosineRestarts, Exponential, Linear, OneCycle, WarmUp

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
ROWS = 40  # of them 8 are held out for the test


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    monkeypatch.setattr(experiment, "REST_SECONDS", 0.0)


@pytest.fixture
def classes(tmp_path):
    """A .npz file of three classes."""
    return write_classes(tmp_path / "classes.npz", ROWS)


@pytest.fixture
def numbers(tmp_path):
    """A .npz file of two real-valued targets, with a test part."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4))
    y = x[:, :2] * 2.0 + 1.0
    path = tmp_path / "numbers.npz"
    np.savez(path, x_train=x[8:], y_train=y[8:], x_test=x[:8], y_test=y[:8])
    return path


@pytest.fixture
def trained(run, classes, tmp_path):
    """A function that trains on the three classes with more options, and returns the model that was saved."""

    def trained(*options, data=classes, backend="numpy"):
        path = tmp_path / "model.safetensors"
        status, _, err = run(
            "train", data, "--backend", backend, "--layers", "4", "--epochs", 2, "--save", path, *options
        )
        # On a busy machine kernels that no cache has yet may take the second after which compiling is announced.
        errors = [line for line in err.splitlines() if not line.startswith(("compiling kernels", "compiled "))]
        assert (status, errors) == (0, [])
        return fastopt.load_model(path)

    return trained


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


# ---------------------------------------------------------------- the program
def test_version(run):
    assert run("--version") == (0, f"fastopt {fastopt.__version__}\n", "")


def test_module():
    result = python("-m", "fastopt", "--version")
    assert (result.returncode, result.stdout) == (0, f"fastopt {fastopt.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "nothing"], ["profile", "nothing"]])
def test_start_without_compiler(arguments):
    program = (
        "import sys\nfrom fastopt.cli.main import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        "sys.exit('numba' in sys.modules or 'tqdm' in sys.modules)"
    )
    result = python("-c", program)
    assert result.returncode == 0, result.stderr


def test_help_names_everything(run):
    status, out, _ = run("train", "--help")
    assert status == 0
    for name in (*datasets.NAMES, *ACTIVATIONS, *LOSSES, *OPTIMIZER_CLASSES):
        assert name in out


def test_no_command(run):
    status, _, err = run()
    assert status == 2
    assert err.startswith("fastopt: error: the following arguments are required: COMMAND")


def test_interrupt_anywhere(run, monkeypatch):
    monkeypatch.setattr(train.datasets, "load", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("train") == (130, "", "fastopt: interrupted\n")


def test_closed_pipe():
    command = f"{sys.executable} -m fastopt info --json | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=240)
    assert (result.stdout, result.stderr) == ("{", "")


# ---------------------------------------------------------------- train: what it prints
def test_result_of_one(run, classes):
    status, out, err = run("train", classes, "--backend", "numpy", "--epochs", 3)
    assert (status, err) == (0, "")
    head, _, rest = out.partition("\n\n")
    assert "classes: 32 rows to train on, 8 to test on" in head
    assert "5-64-32-3, relu: 2,563 parameters" in head
    assert "adam (lr 0.001), sparse_categorical_crossentropy, batches of 32, 3 epochs, float32, seed 0" in head
    assert f"NumPy {np.__version__}" in head
    title, row, _, note, _ = rest.splitlines()
    assert " ".join(title.split()) == "time per epoch samples/s train loss test loss test accuracy"
    assert row.startswith("NumPy reference")
    assert "medians over 3 epochs" in note


def test_figures_are_the_models(run, classes, tmp_path):
    path = tmp_path / "model.safetensors"
    _, out, _ = run("train", classes, "--backend", "numpy", "--epochs", 3, "--save", path)
    data, model = datasets.read_table(classes), fastopt.load_model(path)
    test = model.evaluate(data.x_test, data.y_test)
    row = next(line for line in out.splitlines() if line.endswith(" %"))
    assert row.split()[-3:] == [f"{test['loss']:.4g}", f"{100 * test['accuracy']:.1f}", "%"]


@pytest.mark.parametrize(("busy", "looks"), [(0.05, 1), (1.0, 15)])
def test_a_comparison_waits_for_spinning_threads_only(monkeypatch, busy, looks):
    """Threads of NumPy's BLAS spin after large products, and slow down what runs then."""
    now, slept = [0.0], []

    def sleep(seconds):
        now[0] += seconds
        slept.append(seconds)

    clock = SimpleNamespace(
        monotonic=lambda: now[0],
        process_time=lambda: busy * now[0],
        sleep=sleep,
        get_clock_info=lambda name: SimpleNamespace(resolution=1e-9),
    )
    monkeypatch.setattr(experiment, "time", clock)
    monkeypatch.setattr(experiment, "REST_SECONDS", 0.149)
    experiment._rest()
    assert slept == [experiment.LOOK_SECONDS] * looks


def test_comparison(run, classes):
    status, out, _ = run("train", classes, "--compare", "--epochs", 4, "--batch-size", 8)
    assert status == 0
    lines = out.splitlines()
    title = next(line for line in lines if "time per epoch" in line)
    assert title.endswith("speed-up")
    compiled, reference = (lines[lines.index(title) + i] for i in (1, 2))
    assert compiled.startswith("compiled kernels")
    assert reference.startswith("NumPy reference")
    assert reference.endswith(" 1 x")
    assert "Both started from the same weights" in out
    assert "in their first 16 steps" in out
    assert float(out.partition("differ by at most ")[2].split()[0]) < 1e-5


def test_disagreement_is_seen(run, classes, monkeypatch):
    start = experiment.Experiment.model

    def other_weights(self, backend):
        return start(self._replace(seed=self.seed + (backend == "numpy")), backend)

    monkeypatch.setattr(experiment.Experiment, "model", other_weights)
    _, out, _ = run("train", classes, "--compare", "--epochs", 1)
    assert float(out.partition("differ by at most ")[2].split()[0]) > 1e-3
    assert "--dtype float64" in out


def test_turns(run, classes, monkeypatch):
    """The contestants alternate, so that other load on the machine slows both."""
    turns = []
    epoch = experiment.Contestant.train_epoch
    monkeypatch.setattr(experiment.Contestant, "train_epoch", lambda self: (turns.append(self.backend), epoch(self))[1])
    run("train", classes, "--compare", "--epochs", 7, "--layers", "none")
    assert turns == ["cpu", "cpu", "numpy", "numpy"] * 3 + ["cpu", "numpy"]


def test_a_contestant_has_one_network_for_all_its_epochs(run, classes, monkeypatch):
    """On a GPU each would take the data there anew. With a throw-away model, and one for the test, but on "cpu"."""
    made = []
    network = fastopt.Sequential.network
    monkeypatch.setattr(
        fastopt.Sequential, "network", lambda self, *of: (made.append(self.backend), network(self, *of))[1]
    )
    options = "--compare", "--epochs", 7, "--layers", "none", "--validation-split", 0.2, "--patience", 5
    status, _, _ = run("train", classes, *options)
    assert status == 0
    assert made == ["cpu", "numpy", "cpu", "numpy", "numpy"]


def test_default_contestants():
    """The reference runs beside the compiled kernels where it is quick, or where it is asked for."""

    def contestants(*arguments):
        return train._contestants(main.parser().parse_args(["train", *arguments]))

    assert contestants() == contestants("digits") == contestants("x.csv", "--compare") == ["cpu", "numpy"]
    assert contestants("fashion-mnist") == contestants("x.csv") == contestants("--no-compare") == ["cpu"]
    assert contestants("--backend", "numpy") == ["numpy"]


def test_regression(run, numbers, tmp_path):
    path = tmp_path / "model.safetensors"
    status, out, _ = run("train", numbers, "--backend", "numpy", "--epochs", 30, "--save", path)
    assert status == 0
    assert "mean_squared_error" in out
    assert "test RMSE" in out
    assert "test R2" in out
    data, model = datasets.read_table(numbers), fastopt.load_model(path)
    error = model.predict(data.x_test) - data.y_test
    assert f"{np.sqrt(np.square(error).mean()):.4g}" in out
    assert model.outputs == 2


def test_divergence_is_said(run, numbers):
    status, out, err = run("train", numbers, "--backend", "numpy", "--optimizer", "sgd", "--lr", 1e9, "--epochs", 20)
    assert (status, err) == (0, "")
    assert "The training diverged: a smaller --lr may help" in out


def test_quiet(run, classes, tmp_path):
    path = tmp_path / "model.safetensors"
    _, out, err = run("train", classes, "--backend", "numpy", "--epochs", 1, "--quiet", "--save", path)
    assert err == ""
    assert out.strip().startswith("time per epoch")
    assert "saved" not in out


def test_bars(run, classes, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    status, _, err = run("train", classes, "--compare", "--epochs", 3)
    assert status == 0
    for title in ("compiled kernels", "NumPy reference"):
        assert title in err
    assert err.count("epoch 3/3") >= 2
    assert "loss=" in err
    assert "accuracy=" in err


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (False, False), (False, True)])
def test_compilation_is_announced(run, classes, monkeypatch, terminal, quiet):
    def warm_up(self, compiles):
        compiles("one")
        compiles("two")

    monkeypatch.setattr(experiment.Contestant, "warm_up", warm_up)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    options = ["--quiet"] * quiet
    _, _, err = run("train", classes, "--backend", "numpy", "--epochs", 1, *options)
    if terminal:
        assert "compiling kernels (first time only): 2" in err
    else:
        assert err == ("" if quiet else "compiling kernels (first time only) ...\n")


# ---------------------------------------------------------------- train: options
def test_layers(trained):
    assert [layer.units for layer in trained("--layers", "7,6").layers] == [7, 6, 3]
    assert [layer.units for layer in trained("--layers", "none").layers] == [3]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(trained, name):
    assert [layer.activation for layer in trained("--activation", name).layers] == [name, "softmax"]


def test_dropout(trained):
    assert [repr(layer) for layer in trained("--dropout", 0.25).layers[:2]] == ["Dense(4, 'relu')", "Dropout(0.25)"]


@pytest.mark.parametrize("name", OPTIMIZER_CLASSES)
def test_optimizer(trained, name):
    default = fastopt.get_optimizer(name)
    optimizer = trained("--optimizer", name).optimizer
    assert (optimizer.rule, optimizer.options) == (default.rule, default.options)


def test_hyper(trained):
    optimizer = trained("--optimizer", "sgd", "--lr", 0.25, "--weight-decay", 0.125, "--momentum", 0.75).optimizer
    assert optimizer.lr == 0.25
    assert (optimizer.options["weight_decay"], optimizer.options["momentum"]) == (0.125, 0.75)


def test_convention(trained, run, classes):
    optimizer = trained("--optimizer", "rmsprop", "--convention", "keras").optimizer
    assert (optimizer.convention, optimizer.lr, optimizer.options["alpha"]) == ("keras", 1e-3, 0.9)
    arguments = ("--backend", "numpy", "--epochs", 1, "--convention", "optax", "--lr", 0.01)
    assert "adam (lr 0.01, convention optax)" in run("train", classes, *arguments)[1]


def test_schedule(trained, run, classes):
    steps = ("--epochs", 3, "--batch-size", 10, "--lr", 0.5)  # 32 rows: 4 batches, 12 steps
    for options, expected, count in [
        (["--schedule", "cosine", "--warmup", 2], Cosine(0.5, 12, warmup=2), 12),
        (["--schedule", "linear", "--accumulate", 3], Linear(0.5, 6), 6),
        (["--schedule", "one-cycle", "--validation-split", 0.4], OneCycle(0.5, 6), 6),  # 20 rows
        (["--warmup", 3], WarmUp(3, 0.5), 12),
        (["--schedule", "constant"], 0.5, 12),
        (["--schedule", "exponential"], Exponential(0.5, 0.01, 12), 12),
        (["--schedule", "cosine-restarts", "--warmup", 2], WarmUp(2, CosineRestarts(0.5, 2)), 12),
    ]:
        model = trained(*steps, *options)
        assert model.optimizer.param_groups[0]["lr"] == expected
        assert model.optimizer.steps == count
    _, out, _ = run("train", classes, "--backend", "numpy", "--epochs", 5, "--schedule", "linear", "--warmup", 2)
    assert "adam (lr 0.001, schedule linear, warmup 2)" in out


def test_penalties_and_clipping(trained):
    optimizer = trained("--l1", 0.25, "--clip-value", 0.5).optimizer
    assert (optimizer.options["l1"], optimizer.options["clip_value"], optimizer.clip_norm) == (0.25, 0.5, None)
    assert trained("--clip-norm", 2).optimizer.clip_norm == 2.0


def test_accumulate(trained):
    model = trained("--epochs", 3, "--batch-size", 10, "--accumulate", 3)  # 32 rows: batches of 10, 10, 10 and of 2
    assert (model.epochs_done, model.optimizer.steps) == (3, 6)


def test_hyper_is_shown(run, classes):
    _, out, _ = run("train", classes, "--backend", "numpy", "--epochs", 1, "--lr", 0.02, "--weight-decay", 0.1)
    assert "adam (lr 0.02, weight decay 0.1)" in out
    assert "a step" not in out
    _, out, _ = run(
        "train", classes, "--backend", "numpy", "--epochs", 1, "--batch-size", 8, "--accumulate", 2, "--clip-norm", 1
    )
    assert "adam (lr 0.001, clip norm 1)" in out
    assert "batches of 8, 2 a step" in out


def test_epochs_and_batch_size(trained):
    model = trained("--epochs", 3, "--batch-size", 10)  # 32 rows: 4 batches
    assert (model.epochs_done, model.optimizer.steps) == (3, 12)


def test_batch_sizes_in_words(run, trained, classes):
    assert trained("--epochs", 2, "--batch-size", "full").optimizer.steps == 2
    _, out, _ = run("train", classes, "--backend", "numpy", "--epochs", 1, "--batch-size", "auto")
    assert "batches of 8" in out
    assert "the only one for 32 rows" in out
    code, _, err = run("train", classes, "--batch-size", "all")
    assert code == 2
    assert "must be a whole number of at least 1, full or auto; got 'all'" in err


def test_validation_split(trained):
    assert trained("--batch-size", 4, "--validation-split", 0.5).optimizer.steps == 2 * 4


def test_patience(run, trained, classes):
    still = ("--lr", 0, "--validation-split", 0.25, "--epochs", 20)
    assert trained(*still, "--patience", 2).epochs_done == 3
    assert trained(*still).epochs_done == 20
    _, out, _ = run("train", classes, "--backend", "numpy", *still, "--patience", 2)
    assert "stopped early, after 3 epochs; the weights are those of epoch 1." in out


def test_patience_takes_the_best(run, numbers, tmp_path):
    """A learning rate that spoils everything after the first epochs: the result is that of the best one."""
    path = tmp_path / "model.safetensors"
    options = ("--layers", "none", "--optimizer", "sgd", "--lr", 3, "--epochs", 9, "--patience", 1)
    with np.errstate(all="ignore"):
        _, out, _ = run("train", numbers, "--backend", "numpy", *options, "--save", path)
    best = fastopt.load_model(path)
    assert "the weights are those of epoch 1." in out
    data = datasets.read_table(numbers)
    again = fastopt.Sequential([fastopt.Dense(2)], backend="numpy")
    again.compile(fastopt.SGD(lr=3), "mean_squared_error")
    history = again.fit(data.x_train, data.y_train, epochs=1, verbose=0)
    for kept, expected in zip(best.parameters, again.parameters, strict=True):
        np.testing.assert_array_equal(kept, expected)
    assert f"{history['loss'][0]:.4g}" in out


@pytest.mark.parametrize(("split", "monitor"), [(0.0, "loss"), (0.5, "val_loss")])
def test_patience_watches(split, monitor):
    args = main.parser().parse_args(["train", "--patience", "3", "--validation-split", str(split)])
    stopper = train._experiment(args, datasets.load("digits")).stopper()
    assert (stopper.monitor, stopper.patience) == (monitor, 3)


LOSSES_OF_CLASSES = [loss for loss in LOSSES if loss not in train.REGRESSION_LOSSES]


@pytest.mark.parametrize("loss", LOSSES_OF_CLASSES)
def test_loss_for_classes(trained, loss):
    model = trained("--loss", loss)
    assert model.loss.spec.name == loss
    assert model.outputs == 3
    assert model.layers[-1].activation == (LOSSES[loss].link or "linear")


@pytest.mark.parametrize("alias", [*ALIASES, "MSE", "Huber"])
def test_other_names_of_losses(alias):
    args = main.parser().parse_args(["train", "--loss", alias])
    assert args.loss == ALIASES.get(alias.lower(), alias.lower())


@pytest.mark.parametrize("loss", LOSSES_OF_CLASSES)
def test_loss_for_two_classes(trained, tmp_path, loss):
    path = tmp_path / "two.npz"
    y = np.arange(ROWS) % 2
    np.savez(path, x=np.stack([y, 1 - y], 1) * 2.0 - 1, y=y)
    model = trained("--loss", loss, "--epochs", 40, "--lr", 0.05, "--layers", "none", data=path)
    assert model.outputs == (2 if LOSSES[loss].by_row else 1)
    assert model.evaluate(np.array([[-1.0, 1.0], [1.0, -1.0]]), _as_targets(loss))["accuracy"] == 1


def _as_targets(loss):
    if LOSSES[loss].targets == "labels":
        return np.array([0, 1])
    return np.eye(2) if LOSSES[loss].by_row else np.array([[0.0], [1.0]])


@pytest.mark.parametrize("loss", train.REGRESSION_LOSSES)
def test_loss_for_numbers(trained, numbers, classes, loss):
    model = trained("--loss", loss, data=numbers)
    assert (model.loss.spec.name, model.outputs) == (loss, 2)
    model = trained("--loss", loss, data=classes)  # whole numbers are numbers, too
    assert (model.loss.spec.name, model.outputs, model.classes) == (loss, 1, None)
    assert model.metrics == ("mean_squared_error", "r2")


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_backend(trained, backend):
    assert trained(backend=backend).backend == backend


def test_compute_dtype(trained, run, classes):
    assert trained("--compute-dtype", "bfloat16", backend="numpy").compute_dtype == "bfloat16"
    arguments = ["train", classes, "--epochs", 1, "--no-compare", "--backend", "numpy", "--compute-dtype"]
    assert "float32 computed in bfloat16, seed 0" in run(*arguments, "bfloat16")[1]
    status, _, err = run(*arguments, "tf32")
    assert (status, "the backend 'numpy' does not compute in tf32; those that do: cuda" in err) == (2, True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype(trained, dtype):
    assert {p.dtype.name for p in trained("--dtype", dtype).parameters} == {dtype}


def test_seed(trained):
    one, same, other = (trained("--seed", seed).parameters[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_threads(run, classes, monkeypatch):
    from fastopt.kernels.cpu.runtime import launch

    monkeypatch.setattr(launch, "_threads", None)  # put back after the test
    _, out, _ = run("train", classes, "--epochs", 1, "--threads", 3)
    assert launch.get_num_threads() == 3
    assert "3 threads" in out


def test_target(run, tmp_path):
    path = tmp_path / "table.csv"
    lines = [f"{i},{i / 7:.3f},{i % 2}" for i in range(20)]
    path.write_text("\n".join(["a,b,kind", *lines]), encoding="utf-8")
    last, by_name, by_index = (
        run("train", path, "--backend", "numpy", "--epochs", 1, *more)[1]
        for more in ([], ["--target", "b"], ["--target", "1"])
    )
    assert "test accuracy" in last
    assert "test RMSE" in by_name
    assert "test RMSE" in by_index


def write_idx(folder, train_rows=12, test_rows=4):
    folder.mkdir()
    for part, rows in (("train", train_rows), ("t10k", test_rows)):
        labels, images = np.arange(rows, dtype=np.uint8) % 10, np.zeros((rows, 28, 28), np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, rows) + labels.tobytes())
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">iiii", 2051, rows, 28, 28) + images.tobytes())
    return folder


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_folder(run, tmp_path, name):
    folder = write_idx(tmp_path / "idx")
    status, out, _ = run("train", name, "--folder", folder, "--backend", "numpy", "--epochs", 1)
    assert status == 0
    assert f"{name}: 12 rows to train on, 4 to test on" in out
    assert "784-256-128-10" in out


def test_save_says_so(run, classes, tmp_path):
    path = tmp_path / "model.safetensors"
    _, out, _ = run("train", classes, "--compare", "--epochs", 1, "--save", path)
    assert f"The model is saved in {path}" in out
    assert fastopt.load_model(path).backend == "cpu"


@pytest.mark.parametrize("save", [True, False])
def test_interrupt(run, classes, tmp_path, monkeypatch, save):
    train_epoch = fastopt.models.training.train_epoch

    def interrupted(model, *args):
        if model.epochs_done == 2:
            raise KeyboardInterrupt
        return train_epoch(model, *args)

    monkeypatch.setattr(fastopt.models.training, "train_epoch", interrupted)
    path = tmp_path / "model.safetensors"
    options = ["--save", path] * save
    status, _, err = run("train", classes, "--backend", "numpy", "--epochs", 5, *options)
    assert status == 130
    saved = f"; what was trained so far is saved in {path}" if save else ""
    assert err == f"fastopt: interrupted after 2 of 5 epochs{saved}\n"
    assert path.exists() == save
    if save:
        assert fastopt.load_model(path).epochs_done == 2


# ---------------------------------------------------------------- train: errors
ERRORS = [
    (["digit"], "unknown data set 'digit'; known: digits, fashion-mnist, mnist, or the path of a table or of "),
    (["missing.csv"], "missing.csv: there is no such file"),
    (["CLASSES", "--target", "1"], "target is for tables; a .npz file holds arrays, and names its targets y"),
    (["digits", "--target", "1"], "--target is for tables, not for the data set digits"),
    (["digits", "--no-header"], "--header is for tables, not for the data set digits"),
    (["digits", "--missing", "skip"], "--missing is for tables, not for the data set digits"),
    (["digits", "--drop", "1"], "--drop is for tables, not for the data set digits"),
    (["CLASSES", "--sep", ";"], "sep is for tables; a .npz file holds arrays, and names its targets y"),
    (["CLASSES", "--missing", "zero"], "argument --missing: invalid choice: 'zero' (choose from"),
    (["missing.xlsx"], "missing.xlsx: must be the name of a file that ends in .npz, .csv, .tsv, .txt"),
    (["digits", "--folder", "here"], "folder must be None for the data set digits"),
    (["CLASSES", "--folder", "here"], "--folder is for mnist and fashion-mnist"),
    (["mnist", "--folder", "nowhere"], "nowhere: must hold the IDX files of MNIST"),
    (["--layers", "12,a"], "argument --layers: must be widths of hidden layers, such as 128,64, or none; got '12,a'"),
    (["--layers", "12,0"], "argument --layers: must be widths of hidden layers"),
    (["--layers", ""], "argument --layers: must be widths of hidden layers"),
    (["--layers", "none", "--dropout", "0.5"], "--dropout comes after hidden layers, and --layers none has none"),
    (["--dropout", "1"], "rate must be in [0, 1); got 1.0"),
    (["--dropout", "-0.5"], "rate must be in [0, 1); got -0.5"),
    (["--activation", "swish"], "argument --activation: invalid choice: 'swish' (choose from"),
    (["--loss", "huge"], "argument --loss: invalid choice: 'huge' (choose from"),
    (["--optimizer", "adm"], "argument --optimizer: invalid choice: 'adm' (choose from"),
    (["--backend", "gpu"], "argument --backend: invalid choice: 'gpu' (choose from"),
    (["--dtype", "float16"], "argument --dtype: invalid choice: 'float16' (choose from"),
    (["--lr", "-0.1"], "lr must be a finite number of at least 0; got -0.1"),
    (["--lr", "nan"], "lr must be a finite number of at least 0; got nan"),
    (["--lr", "fast"], "argument --lr: invalid float value: 'fast'"),
    (["--weight-decay", "-1"], "weight_decay must be"),
    (["--schedule", "zigzag"], "argument --schedule: invalid choice: 'zigzag' (choose from"),
    (["--schedule", "cosine", "--warmup", "999999"], "warmup must be less than steps="),
    (["--schedule", "one-cycle", "--warmup", "3"], "--warmup is for the other schedules: one-cycle has its own"),
    (["--warmup", "-1"], "argument --warmup: must be a whole number of at least 0; got '-1'"),
    (["--convention", "tf"], "argument --convention: invalid choice: 'tf' (choose from"),
    (["--convention", "optax"], "--convention optax needs --lr: optax has no default learning rate"),
    (["--convention", "sklearn", "--optimizer", "adamw"], "sklearn has no AdamW; AdamW has the conventions torch"),
    (["--l1", "-1"], "l1 must be a finite number of at least 0; got -1.0"),
    (["--clip-value", "0"], "clip_value must be None or a finite number above 0; got 0.0"),
    (["--clip-norm", "nan"], "clip_norm must be None or a finite number above 0; got nan"),
    (["--clip-norm", "1", "--clip-value", "1"], "gradients are clipped in one way, not in several"),
    (["--accumulate", "0"], "argument --accumulate: must be a whole number of at least 1; got '0'"),
    (["--momentum", "0.5"], "--momentum is for sgd, momentum, rmsprop, not for adam"),
    (["--epochs", "0"], "argument --epochs: must be a whole number of at least 1; got '0'"),
    (["--batch-size", "1.5"], "argument --batch-size: must be a whole number of at least 1, full or auto; got '1.5'"),
    (["--patience", "-1"], "argument --patience: must be a whole number of at least 0; got '-1'"),
    (["--threads", "0"], "argument --threads: must be a whole number of at least 1; got '0'"),
    (["--seed", "-1"], "argument --seed: must be a whole number of at least 0; got '-1'"),
    (["--seed", str(2**64)], "seed must be below 2^64"),
    (["--validation-split", "1"], "validation_split must be in [0, 1); got 1.0"),
    (["--backend", "numpy", "--compare"], "--compare trains the compiled kernels and the reference"),
    (["--backend", "numpy", "--threads", "2"], "--threads is for the compiled kernels: it needs --backend cpu"),
    (["--backend", "cuda", "--threads", "2"], "--threads is for the compiled kernels: it needs --backend cpu"),
    (["NUMBERS", "--loss", "hinge"], "known for such targets: mean_squared_error, mean_absolute_error, huber"),
    (["--save", "no/such/folder/m.safetensors"], "--save no/such/folder/m.safetensors: there is no folder"),
    (["--save", "."], "--save . must be the name of a file; got a folder"),
    (["--layers", "1000000000000,1000000000000"], ""),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[" ".join(arguments)[:40] for arguments, _ in ERRORS])
def test_errors(run, classes, numbers, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    files = {"CLASSES": classes, "NUMBERS": numbers}
    if not {"--backend", "--threads"} & {*arguments}:
        arguments = [*arguments, "--backend", "numpy"]
    status, _, err = run("train", *(files.get(argument, argument) for argument in arguments))
    assert status == 2
    first, *others = err.splitlines()
    assert first.startswith("fastopt: error: ")
    assert message in first
    assert others in ([], ["See 'fastopt train --help'."])
    assert sorted(tmp_path.iterdir()) == before


def test_unwritable_folder_is_seen_before_training(run, classes, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    status, out, err = run("train", classes, "--save", tmp_path / "model.safetensors")
    assert (status, out) == (2, "")
    assert "cannot be written to" in err


def test_no_abbreviations(run):
    status, _, err = run("train", "--epo", "3")
    assert status == 2
    assert "unrecognized arguments: --epo" in err


# ---------------------------------------------------------------- the first command of the README
def all_but(names, cache):
    """A cache folder with the kernels that the tests have compiled, without those of some names."""
    from fastopt.kernels.cpu.runtime.compile import cache_folder

    folder = cache / cache_folder().name
    folder.mkdir(parents=True)
    for file in cache_folder().glob("*.bin"):
        if file.stem not in names:
            shutil.copy(file, folder)
    return cache


SLOWEST = "matmul_float32", "loss_sparse_categorical_crossentropy_float32", "shuffle"  # some 2 s of 4


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize("empty", [False, pytest.param(True, marks=pytest.mark.repeats)])
def test_first_and_second_run(tmp_path, empty):
    """The first run compiles kernels and keeps them; the next process finds them; both learn the same.

    The folder is empty at first; or, in half of the time, it lacks the kernels that take longest.
    """
    cache = tmp_path / "cache" if empty else all_but(SLOWEST, tmp_path / "cache")
    first, second = (python("-m", "fastopt", "train", FASTOPT_CACHE_DIR=str(cache)) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stderr == "compiling kernels (first time only) ...\n"
    assert second.stderr == ""
    for result in (first, second):
        rows = [line.split() for line in result.stdout.splitlines() if line.endswith(" x")]
        assert [row[:2] for row in rows] == [["compiled", "kernels"], ["NumPy", "reference"]]
        accuracies = [float(row[row.index("%") - 1]) for row in rows]
        assert min(accuracies) > 88
        assert abs(accuracies[0] - accuracies[1]) <= 0.5
        assert float(result.stdout.partition("differ by at most ")[2].split()[0]) < 1e-5


# ---------------------------------------------------------------- info
def test_info(run):
    status, out, err = run("info")
    assert (status, err) == (0, "")
    titles = {line.split()[0] for line in out.splitlines()}
    assert titles >= {"versions", "processor", "threads", "BLAS", "cache", "data"}
    for name in ("fastopt", "numpy", "numba", "llvmlite"):
        assert f"{name} {info._version(name)}" in out
    assert "digits: ships with fastopt" in out


def test_info_json(run):
    status, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["versions"]["fastopt"] == fastopt.__version__
    assert facts["threads"]["kernels"] == fastopt.get_num_threads()
    assert facts["threads"]["launcher"] in ("tbb", "omp", "none", "torch")
    by_torch = sys.platform.startswith("linux") and not INTERPRETED and "NUMBA_THREADING_LAYER" not in os.environ
    assert facts["threads"]["beside_torch"] == ("torch" if by_torch else facts["threads"]["launcher"])
    assert facts["interpreted"] == INTERPRETED
    assert set(facts["data"]) == set(datasets.NAMES)


def test_info_cache(tmp_path):
    for folder, sizes in (("now", [10, 20]), ("then", [5]), ("long ago", [])):
        (tmp_path / folder).mkdir()
        for i, size in enumerate(sizes):
            (tmp_path / folder / f"{i}.bin").write_bytes(bytes(size))
    (tmp_path / "now" / "unfinished").write_bytes(bytes(1000))
    assert info._cache(tmp_path, tmp_path / "now") == {
        "folder": str(tmp_path / "now"),
        "kernels": 2,
        "bytes": 30,
        "other_versions": {"folders": 2, "kernels": 1, "bytes": 5},
        "problems": [],
    }
    nothing = info._cache(tmp_path / "none", tmp_path / "none" / "now")
    assert (nothing["kernels"], nothing["other_versions"]["folders"]) == (0, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_info_says_why_kernels_are_not_used(run, tmp_path, monkeypatch):
    from fastopt.kernels.cpu.runtime.compile import cache_folder

    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))
    folder = cache_folder()
    folder.mkdir()
    (tmp_path / "cuda-1").mkdir()
    for path in (folder / "a.bin", folder / "b.bin", tmp_path / "cuda-1" / "c.cubin"):
        path.touch()
        path.chmod(0o664)
    (folder / "good.bin").touch(0o644)
    monkeypatch.setattr("fastopt.kernels.disk_cache.why_not_kept", lambda folder: f"{folder} is not a folder")
    problems = json.loads(run("info", "--json")[1])["cache"]["problems"]
    assert problems == [
        "3 kernels are not loaded; of each: other users may write to it (mode 0664)",
        f"no kernels can be kept: {folder} is not a folder",
    ]
    out = run("info")[1]
    assert all(f"\n{'':<10} {problem}\n" in out for problem in problems)


def test_info_finds_data_in_a_home_folder(run, tmp_path, monkeypatch):
    folder = write_idx(tmp_path / "mnist")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("FASTOPT_DATA_DIR", "~")
    assert json.loads(run("info", "--json")[1])["data"]["mnist"] == str(folder)
    assert len(datasets.load("mnist").x_test)


def test_info_finds_data(run, tmp_path, monkeypatch):
    folder = write_idx(tmp_path / "mnist")
    monkeypatch.setenv("FASTOPT_DATA_DIR", str(tmp_path))
    assert json.loads(run("info", "--json")[1])["data"]["mnist"] == str(folder)
    (folder / "train-labels-idx1-ubyte").unlink()
    assert json.loads(run("info", "--json")[1])["data"]["mnist"] != str(folder)


@pytest.mark.parametrize(
    ("lacking", "install"),
    [
        ({"mkl"}, "pip install 'fastopt[mkl]'"),
        ({"pooch"}, "pip install 'fastopt[data]'"),
        ({"pandas"}, "pandas (tables: CSV, Parquet and the like): pip install 'fastopt[data]'"),
    ],
)
def test_info_says_what_is_missing(run, monkeypatch, lacking, install):
    monkeypatch.setattr(info, "_version", lambda name: None if name in lacking else "1")
    monkeypatch.setattr(info, "_find_data", lambda name: None)
    monkeypatch.setattr(info.platform, "machine", lambda: "x86_64")
    missing = [line for line in run("info")[1].splitlines() if line.startswith("missing")]
    assert any(install in line for line in missing)
    monkeypatch.setattr(info, "_version", lambda name: "1")
    assert install not in run("info")[1]


def test_info_with_a_wrong_setting():
    """`info` does not stop at an error: it is there to find them."""
    result = python("-m", "fastopt", "info", FASTOPT_BLAS="no such thing", FASTOPT_NUM_THREADS="many")
    assert result.returncode == 0
    assert "FASTOPT_BLAS must be" in result.stdout
    assert "FASTOPT_NUM_THREADS must be" in result.stdout


# ---------------------------------------------------------------- profile
@pytest.fixture
def quick_limits(monkeypatch):
    """Nothing is measured for the limits."""
    from fastopt import profiling

    measured = profiling.Limits(1e10, 1e11)
    monkeypatch.setattr(profiling.profile, "limits", lambda self, *of: self._limits.setdefault(of, measured))


def test_profile(run, classes, tmp_path, quick_limits):
    model, trace = tmp_path / "model.safetensors", tmp_path / "trace.json"
    options = ["--layers", "4", "--epochs", 2, "--batch-size", 16, "--save", model]
    status, out, err = run("profile", classes, *options, "--trace", trace)
    assert (status, err) == (0, "")
    assert "train: 4 steps in 2 passes, float32, 1 thread; " in out  # without the throw-away model
    for text in ("forward 5x4 relu", "weights+adam 4x3", "evaluate: 1 steps in 1 pass", "limits, measured now: "):
        assert text in out
    assert out.endswith(f"\nThe trace is in {trace}; ui.perfetto.dev shows it.\n")
    steps = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("cat") == "step"]
    assert len(steps) == 5
    profiled = fastopt.load_model(model).get_weights()
    assert run("train", classes, *options)[0] == 0  # any option of train; the same bits
    for a, b in zip(profiled, fastopt.load_model(model).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_profile_of_the_default_data(run, quick_limits):
    """No comparison, which `train` makes by default."""
    status, out, _ = run("profile", "--epochs", 1, "--quiet", *["--batch-size", 512] * INTERPRETED)
    assert status == 0
    assert "NumPy reference" not in out
    assert "train: " in out


def test_profile_of_an_interrupted_training(run, classes, tmp_path, monkeypatch, quick_limits):
    ended = experiment.Contestant.train_epoch

    def train_epoch(contestant):
        if contestant.epochs == 1:
            raise KeyboardInterrupt
        return ended(contestant)

    monkeypatch.setattr(experiment.Contestant, "train_epoch", train_epoch)
    status, out, err = run("profile", classes, "--batch-size", 16)
    assert (status, "interrupted after 1 of" in err) == (130, True)
    assert "train: 2 steps in 1 pass" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "numpy"], "only the backends cpu and cuda can be profiled, not numpy"),
        (["--compare"], "--compare trains the reference as well, which cannot be profiled: use fastopt train"),
        (["--trace", "no/such/folder.json"], "--trace no/such/folder.json: there is no folder "),
    ],
)
def test_profile_errors(run, classes, arguments, message):
    status, out, err = run("profile", classes, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"fastopt: error: {message}")


# ---------------------------------------------------------------- warmup
@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """Stand-ins for all kernels, one compiled and one loaded for each number type, and their cache folder."""
    from fastopt.kernels import cpu
    from fastopt.kernels.cpu.runtime import compile

    def all_kernels(dtypes):
        return [SimpleNamespace(name=f"{i}_{d}", address=1, compiled=i == 0) for d in dtypes for i in range(2)]

    monkeypatch.setattr(cpu, "all_kernels", all_kernels)
    monkeypatch.setattr(compile, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(compile, "INTERPRETED", False)
    for kernel in all_kernels(warmup.DTYPES):
        (tmp_path / f"{kernel.name}.bin").touch()
    return tmp_path


def test_warmup(run, kernels):
    status, out, _ = run("warmup")
    assert status == 0
    assert "8 kernels for float32, float64, float16, bfloat16: 4 compiled, 4 loaded, in " in out
    assert f"kept in {kernels}" in out


def test_warmup_of_one_dtype(run, kernels):
    assert "2 kernels for float64: 1 compiled, 1 loaded" in run("warmup", "--dtype", "float64")[1]


@pytest.mark.parametrize("quiet", [False, True])
def test_warmup_bar(run, kernels, monkeypatch, quiet):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert ("compiling kernels" in run("warmup", *["--quiet"] * quiet)[2]) != quiet


def test_warmup_that_keeps_nothing(run, kernels):
    (kernels / "0_float32.bin").unlink()
    status, _, err = run("warmup")
    assert status == 1
    assert err == f"fastopt: error: 1 kernels could not be kept in {kernels}: No such file or directory\n"
    (kernels / "0_float32.bin").touch()
    (kernels / "1_float32.bin").chmod(0o666)
    status, _, err = run("warmup")
    assert status == 1
    assert err.endswith(f"could not be kept in {kernels}: other users may write to it (mode 0666)\n")


def test_warmup_without_compiler():
    result = python("-m", "fastopt", "warmup", NUMBA_DISABLE_JIT="1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "fastopt: error: NUMBA_DISABLE_JIT is set, so there is nothing to compile\n"


OTHERS = (["--optimizer", "rmsprop", "--momentum", "0.5"], ["--loss", "hinge", "--dropout", "0.5"])


@pytest.mark.slow
@pytest.mark.repeats  # takes a minute
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_warmup_leaves_nothing_to_compile(tmp_path):
    from fastopt.kernels import cpu

    command, cache, kernels = ("-m", "fastopt", "warmup", "--dtype", "float32"), tmp_path, cpu.all_kernels(["float32"])
    first, second = (python(*command, FASTOPT_CACHE_DIR=str(cache)) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert f" {len(kernels)} compiled, 0 loaded" in first.stdout
    assert f" 0 compiled, {len(kernels)} loaded" in second.stdout
    for more in OTHERS:
        result = python("-m", "fastopt", "train", "--no-compare", "--epochs", "1", *more, FASTOPT_CACHE_DIR=str(cache))
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_warmup_knows_the_kernels_of_trainings():
    program = f"""
import contextlib, io
from fastopt.cli.main import main
from fastopt.kernels import cpu
from fastopt.kernels.cpu.runtime.compile import Kernel
with contextlib.redirect_stdout(io.StringIO()):
    for more in {OTHERS}:
        main(["train", "--no-compare", "--epochs", "1", *more])
used = {{kernel.name for kernel in Kernel.names.values() if kernel._address}}
known = {{kernel.name for kernel in cpu.all_kernels(["float32"])}}
print(len(used), sorted(used - known))
"""
    result = python("-c", program)
    number, left_out = result.stdout.split(maxsplit=1)
    assert int(number) > 20
    assert left_out == "[]\n"


# ---------------------------------------------------------------- text
def test_rounded_is_readable():
    assert [_text.rounded(value) for value in (999.6, 1234.5, 0.000123456, -12.34)] == [
        "1,000",
        "1,230",
        "0.000123",
        "-12.3",
    ]


def test_one_unit_is_the_shortest():
    assert _text.in_one_unit([2.5, 1.0]) == ["2.5 s", "1 s"]
    assert _text.in_one_unit([2.5, 0.5]) == ["2,500 ms", "500 ms"]
    assert _text.in_one_unit([1e-7]) == ["0.1 us"]
