"""Models on the device: everything around a network works as on the other backends."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
import fastopt as fo
from fastopt.cli.main import main
from fastopt.kernels.cuda.runtime.memory import Mirror

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((14, 3)).astype("float32"), RNG.integers(0, 3, 14)


def model_of(backend, dtype="float64", optimizer=None):
    layers = [fo.Dense(4, "tanh"), fo.Dropout(0.25), fo.Dense(3, "softmax")]
    model = fo.Sequential(layers, seed=1, backend=backend, dtype=dtype)
    model.compile(optimizer or fo.Adam(lr=0.02), "sparse_categorical_crossentropy", ["accuracy"])
    return model


def assert_alike(ours, theirs, rtol=1e-9):
    for a, b in zip(ours.parameters, theirs.parameters, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    for mine, other in zip(ours.optimizer.states, theirs.optimizer.states, strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    assert (ours.optimizer.steps, ours.epochs_done) == (theirs.optimizer.steps, theirs.epochs_done)


def test_fit_evaluate_and_predict():
    schedule = fo.schedules.Cosine(0.05, 8)
    models = [model_of(backend, optimizer=fo.Adam(lr=schedule, clip_norm=1.0)) for backend in ("cuda", "numpy")]
    histories = [model.fit(X, Y, epochs=2, batch_size=4, validation_split=0.3, accumulate=2) for model in models]
    assert_alike(*models)
    for name, values in histories[1].history.items():
        if name not in ("seconds", "samples_per_second"):
            np.testing.assert_allclose(histories[0][name], values, rtol=1e-9)
    np.testing.assert_allclose(histories[0].step_losses, histories[1].step_losses, rtol=1e-9)
    ours, theirs = (model.evaluate(X, Y, batch_size=8) for model in models)
    assert ours == pytest.approx(theirs, rel=1e-9)
    np.testing.assert_allclose(*(model.predict(X, batch_size=8) for model in models), rtol=1e-9)


def test_operands_are_rounded_where_tf32_is_asked_for():
    rounded, whole = (model_of("cuda", "float32") for _ in range(2))
    rounded.compute_dtype = "tf32"
    for model in (rounded, whole):
        model.fit(X, Y, epochs=2, batch_size=4)
    assert (rounded.predict(X) != whole.predict(X)).any()
    np.testing.assert_allclose(rounded.predict(X), whole.predict(X), atol=5e-3)
    rounded.set_weights(whole.get_weights())
    assert (rounded.predict(X) != whole.predict(X)).any()
    rounded.compute_dtype = None
    np.testing.assert_array_equal(rounded.predict(X), whole.predict(X))


def test_weights_come_back_once_where_nobody_looks(monkeypatch):
    models, counts = [model_of("cuda") for _ in range(2)], []
    download = Mirror.download

    def counted(self, stream):
        counts[-1] += 1
        download(self, stream)

    monkeypatch.setattr(Mirror, "download", counted)
    for model, callbacks in zip(models, ([], [fo.Callback()]), strict=True):
        counts.append(0)
        model.fit(X, Y, epochs=2, batch_size=8, validation_split=0.3, callbacks=callbacks)
    assert counts == [2, 4]  # of parameters and of states
    assert models[0].history.history["val_loss"] == models[1].history.history["val_loss"]
    for ours, theirs in zip(*(model.parameters for model in models), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_callback_sees_and_changes_weights(tmp_path):
    seen = {}

    class Halve(fo.Callback):
        def on_epoch_end(self, model, epoch, logs):
            model.set_weights([w / 2 for w in model.get_weights()])
            seen.setdefault(model.backend, []).append(model.get_weights())
            model.save(tmp_path / f"{model.backend}.safetensors")

    models = [model_of(backend) for backend in ("cuda", "numpy")]
    for model in models:
        model.fit(X, Y, epochs=2, batch_size=8, callbacks=[Halve()])
    assert_alike(*models)
    for ours, theirs in zip(*seen.values(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
    loaded = fo.load_model(tmp_path / "cuda.safetensors")
    assert loaded.backend == "cuda"
    for a, b in zip(loaded.parameters, models[0].parameters, strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_goes_on_from_a_file_bit_for_bit(tmp_path):
    whole, first = model_of("cuda", "float32"), model_of("cuda", "float32")
    whole.fit(X, Y, epochs=2, batch_size=8)
    first.fit(X, Y, epochs=1, batch_size=8)
    first.save(tmp_path / "model.safetensors")
    second = fo.load_model(tmp_path / "model.safetensors")
    second.fit(X, Y, epochs=2, initial_epoch=1, batch_size=8)
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_backend_may_change_between_calls():
    mixed, theirs = model_of("cuda"), model_of("numpy")
    for epoch, backend in enumerate(("cuda", "numpy", "cuda")):
        mixed.backend = backend
        for model in (mixed, theirs):
            model.fit(X, Y, epochs=epoch + 1, initial_epoch=epoch, batch_size=8)
    assert_alike(mixed, theirs)


def test_an_interrupted_fit_leaves_a_model_that_goes_on():
    model = model_of("cuda")

    class Stop(fo.Callback):
        def on_epoch_end(self, model, epoch, logs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=2, batch_size=8, callbacks=[Stop()])
    model.fit(X, Y, epochs=2, initial_epoch=model.epochs_done, batch_size=8)
    theirs = model_of("numpy")
    theirs.fit(X, Y, epochs=2, batch_size=8)
    assert_alike(model, theirs)


def test_the_command_line(tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("".join(f"{a:.3f},{b:.3f},{a - b:.3f}\n" for a, b in X[:10, :2]))
    arguments = ["train", str(table), "--backend", "cuda", "--compare", "--layers", "3", "--epochs", "2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "CUDA kernels" in out
    assert not SIMULATED or "Numba's simulator" in out


# ---------------------------------------------------------------- callbacks, and where the weights are


@pytest.fixture
def copies(monkeypatch):
    """Counts copies of weights and states from the device, and to it."""
    counted = {"download": 0, "upload": 0}
    for name in counted:
        copied = getattr(Mirror, name)

        def counting(*args, copied=copied, name=name):
            counted[name] += 1
            return copied(*args)

        monkeypatch.setattr(Mirror, name, counting)
    return counted


def stays(model, callbacks, epochs=4, **options):
    model.fit(X, Y, epochs=epochs, batch_size=7, callbacks=callbacks, validation_data=(X, Y), verbose=0, **options)


def test_callbacks_that_read_no_weights_leave_them_on_the_device(copies, tmp_path):
    """Weights and states are copied back once, at the end; a callback that reads them, after every epoch."""
    callbacks = fo.callbacks
    quiet = [
        callbacks.EarlyStopping(patience=9), callbacks.ReduceLROnPlateau(),
        callbacks.CSVLogger(tmp_path / "figures.csv"),
        callbacks.ModelCheckpoint(tmp_path / "m", save_freq="9 epochs"),
        callbacks.LambdaCallback(on_epoch_end=lambda *_: None, reads_weights=False),
    ]  # fmt: skip
    model, twin = model_of("cuda"), model_of("cuda")
    stays(model, quiet)
    assert copies == {"download": 2, "upload": 2}
    stays(twin, [callbacks.Callback()])
    assert copies["download"] == 2 + 2 * 4
    for a, b in zip(model.parameters, twin.parameters, strict=True):
        np.testing.assert_array_equal(a, b)


def test_methods_that_read_weights_bring_them_back(copies, tmp_path):
    """Whatever a callback reads through the model is that of the epoch, and whatever it writes is trained on."""
    seen = {"cuda": [], "numpy": []}

    def look(model, epoch, logs):
        found = seen[model.backend]
        if epoch == 1:
            found.append(model.get_weights())
        elif epoch == 2:
            found.append([model.predict(X), model.evaluate(X, Y)["loss"], *[p.copy() for p in model.parameters]])
        elif epoch == 3:
            model.save(tmp_path / f"{model.backend}.safetensors")
            model.set_weights([w * 0.5 for w in model.get_weights()])
        elif epoch == 4:
            found.append(pickle.loads(pickle.dumps(model)).get_weights())
            model.fit(X, Y, epochs=1, verbose=0)
            found.append(copy.deepcopy(model).get_weights())

    models = []
    for backend in seen:
        models.append(model_of(backend))
        stays(models[-1], [fo.callbacks.LambdaCallback(on_epoch_end=look, reads_weights=False)], epochs=6)
    assert_alike(*models)
    for ours, theirs in zip(*seen.values(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    files = [fo.load_model(tmp_path / f"{backend}.safetensors", backend="numpy") for backend in seen]
    assert_alike(*files)


def test_the_best_weights_are_brought_back_when_a_figure_is_better(copies):
    model, twin = model_of("cuda"), model_of("numpy")
    for one in (model, twin):
        stays(one, [fo.EarlyStopping("loss", patience=9, restore_best_weights=True)], epochs=5)
    assert_alike(model, twin)


def test_another_thread_reads_no_weights_from_the_device(copies):
    """It would do so in the midst of a pass."""
    model = model_of("cuda")

    def look(model, epoch, logs):
        before = dict(copies)
        thread = threading.Thread(target=lambda: model.parameters)
        thread.start()
        thread.join()
        assert copies == before

    stays(model, [fo.callbacks.LambdaCallback(on_epoch_end=look, reads_weights=False)])


@pytest.mark.parametrize("fused", ["0", "1"])
@pytest.mark.parametrize(("every", "accumulate"), [(1, 1), (2, 1), (1, 2)])
def test_an_epoch_in_parts_has_the_same_bits(every, accumulate, fused, monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", fused)
    whole, parts, heard = model_of("cuda"), model_of("cuda"), []
    listening = fo.callbacks.LambdaCallback(
        on_step_end=lambda model, step, logs: heard.append(step), every_steps=every, reads_weights=False
    )
    for model, callback in ((whole, fo.Callback()), (parts, listening)):
        model.compile(model.optimizer, model.loss, ["accuracy"] if fused == "1" else ["accuracy", "f1_macro"])
        model.fit(X, Y, epochs=2, batch_size=3, accumulate=accumulate, callbacks=[callback], verbose=0)
    for a, b in zip(parts.parameters, whole.parameters, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(parts.history.step_losses, whole.history.step_losses)
    for name in ("loss", *whole.metrics, "lr"):
        assert parts.history[name] == whole.history[name]
    assert heard == list(range(every, whole.optimizer.steps + 1, every))
