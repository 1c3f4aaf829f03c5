"""Many models in one call: the bits of `fit` one after the other, whatever models they are, and whoever looks on."""

import copy
import os
import signal
import sys
import threading
import warnings

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt import Dense, Dropout, Sequential
from fastopt.callbacks import Callback, EarlyStopping
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.profile import recorder
from fastopt.models import _queue, training

ALONE = ["seconds", "samples_per_second"]  # figures that differ from run to run


def model_of(seed=0, width=7, rule=None, backend="cpu", dropout=True, metrics=("accuracy",), before=(), **options):
    layers = [*before, Dense(width, "relu"), *[Dropout(0.25)] * dropout, Dense(3, "softmax")]
    model = Sequential(layers, seed=seed, backend=backend, **options)
    model.compile(rule or fo.Adam(lr=0.01), CROSS_ENTROPY, list(metrics))
    return model


def everything(models, histories):
    """All that trainings leave, but for times."""
    return [
        [
            model.get_weights(), model.optimizer.state_dict(), model.epochs_done, model.optimizer.steps,
            {k: np.array(v) for k, v in history.to_dict().items() if k not in ALONE}, history.step_losses,
            history.batch_size, model.classes, model.history is history,
        ]
        for model, history in zip(models, histories, strict=True)
    ]  # fmt: skip


def averaged(seed):
    model = model_of(seed)
    model.compile("adam", CROSS_ENTROPY, ema=fo.EMA(0.9))
    return model


def regularized(seed):
    own = {"kernel_regularizer": "l2", "bias_constraint": fo.constraints.MaxNorm(0.1), "lr_scale": 0.5}
    model = Sequential([Dense(5, "tanh", **own), Dense(3, "softmax")], seed=seed, backend="cpu")
    model.compile("adam", CROSS_ENTROPY)
    return model


RULES = [fo.SGD(momentum=0.9), fo.Adagrad(), fo.Adam(clip_norm=0.05), fo.AdamW()]

# Each makes the i-th model; those of a call are of one kind or of several.
KINDS = {
    "seeds": lambda i: model_of(i),
    "widths": lambda i: model_of(i, width=3 + 5 * i, dropout=i % 2 == 0),
    "rates": lambda i: model_of(0, rule=fo.SGD(lr=fo.schedules.Cosine(0.1 / (1 + i), steps=9))),
    "rules": lambda i: model_of(1, rule=copy.deepcopy(RULES[i % 4])),
    "dtypes": lambda i: model_of(i, dtype=["float32", "float64"][i % 2]),
    "statistics": lambda i: model_of(i, before=[fo.Normalization()]),
    "metrics": lambda i: model_of(i, metrics=[(), ("accuracy", "f1_macro")][i % 2]),
    "averages": averaged,
    "regularizers": regularized,
}
SHUFFLES = [True, False, "blocks"]


@pytest.fixture
def threads():
    before = fo.get_num_threads()
    yield fo.set_num_threads
    fo.set_num_threads(before)


def assert_as_one_by_one(make, count, x, y, each=None, **options):
    """Models of `fit_many` are those of `fit`; each: the options of `fit` that differ from model to model."""
    ones, many = ([make(i) for i in range(count)] for _ in range(2))
    fits = each or [{}] * count
    expected = [model.fit(x, y, verbose=0, **options, **own) for model, own in zip(ones, fits, strict=True)]
    lists = {name: [own[name] for own in fits] for name in fits[0]}
    found = fo.fit_many(many, x, y, verbose=0, **options, **lists)
    assert_same(everything(ones, expected), everything(many, found))
    return many


# ---------------------------------------------------------------- bits


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_the_bits_of_one_after_the_other(data):
    rows = data.draw(st.integers(3, 50))
    x, y = blobs(rows)
    y[:3] = 0, 1, 2
    count = data.draw(st.integers(1, 4))
    kinds = [KINDS[data.draw(st.sampled_from([*KINDS]))] for _ in range(count)]
    options = {
        "accumulate": data.draw(st.integers(1, 3)), "shuffle": data.draw(st.sampled_from(SHUFFLES)),
        "drop_last": data.draw(st.booleans()),
        "sample_weight": data.draw(st.sampled_from([None, np.arange(rows) % 4 + 0.5])),
        "class_weight": data.draw(st.sampled_from([None, "balanced", {0: 3.0}])),
    }  # fmt: skip
    sizes = st.one_of(
        st.integers(1, 60), st.just("full"), st.builds(lambda n: fo.batches.Growing(n, 2, 2, 16), st.integers(1, 9))
    )
    each = [{"epochs": data.draw(st.integers(1, 5)), "batch_size": data.draw(sizes)} for _ in range(count)]
    before = fo.get_num_threads()
    fo.set_num_threads(data.draw(st.integers(1, 3)))
    try:
        assert_as_one_by_one(lambda i: kinds[i](i), count, x, y, each, **options)
    finally:
        fo.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(kind):
    assert_as_one_by_one(KINDS[kind], 4, *blobs(41), epochs=3, batch_size=8)


def test_real_targets_and_drawn_sizes_of_batches():
    def make(i):
        model = Sequential([Dense(4, "tanh"), Dense(2)], seed=i)
        model.compile("adam", "mean_squared_error", ["r2"])
        return model

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((37, 5)).astype(np.float32), rng.standard_normal((37, 2)) * 9 + 4
    size = fo.batches.Random(2, 9)
    many = assert_as_one_by_one(make, 3, x, y, epochs=3, batch_size=size, standardize_targets=True)
    assert_same(many[0].target_scale, many[2].target_scale)


def test_a_later_call_goes_on():
    x, y = blobs(40)
    ones, many = ([model_of(i) for i in range(3)] for _ in range(2))
    expected = [[model.fit(x, y, 3, 8) for model in ones] for _ in range(2)]
    found = [fo.fit_many(many, x, y, epochs=3, batch_size=8) for _ in range(2)]
    assert [len(history) for history in found[1]] == [3, 3, 3]
    assert_same(everything(ones, expected[1]), everything(many, found[1]))


def test_other_backends():
    x, y = blobs(30)
    make = lambda i: model_of(i, backend=["numpy", "cpu"][i % 2])  # noqa: E731
    assert_as_one_by_one(make, 3, x, y, epochs=2, batch_size=8)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("options", [
    {}, {"validation_split": 0.3}, {"shuffle": "blocks"}, {"shuffle": False, "drop_last": True},
    {"class_weight": "balanced"}, {"weighted": True}, {"nan": "skip"},
    {"weighted": True, "nan": "skip", "validation_split": 0.3},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["widths", "statistics"])
def test_rows_of_a_fold_are_a_fit_to_these_rows(kind, options):
    x, y = blobs(60)
    if options.get("nan"):
        x[[3, 17, 58], 2] = np.nan
    rng = np.random.default_rng(1)
    options = dict(options)
    weights = rng.random(60) + 0.5 if options.pop("weighted", False) else None
    rows = [rng.permutation(60)[: 30 + i] for i in range(3)]
    ones, many = ([KINDS[kind](i) for i in range(4)] for _ in range(2))
    expected = [
        model.fit(x[own], y[own], 3, 8, sample_weight=None if weights is None else weights[own], **options)
        for model, own in zip(ones, [*rows, np.arange(60)], strict=True)
    ]
    found = fo.fit_many(many, x, y, [*rows, None], 3, 8, sample_weight=weights, **options)
    assert_same(everything(ones, expected), everything(many, found))
    assert_same([model.statistics for model in ones], [model.statistics for model in many])


def test_classes_are_those_of_all_rows():
    x, y = blobs(40)
    labels = np.array(["a", "b", "c"])[y]
    many = [model_of(0)]
    fo.fit_many(many, x, labels, rows=[np.flatnonzero(y != 1)], epochs=2)
    assert many[0].classes.tolist() == ["a", "b", "c"]


# ---------------------------------------------------------------- fits that Python looks at


def test_validation_and_callbacks():
    x, y = blobs(60)
    more_x, more_y = blobs(20, seed=1)
    validated = {"validation_data": (more_x, more_y), "epochs": 6, "batch_size": 8}
    many = assert_as_one_by_one(KINDS["averages"], 3, x, y, **validated)
    assert len(many[0].history["val_loss"]) == 6
    each = [{"callbacks": [EarlyStopping("loss", patience=0, threshold=10.0)] * (i % 2)} for i in range(3)]
    ones, more = ([model_of(i) for i in range(3)] for _ in range(2))
    expected = [model.fit(x, y, 6, 8, **own) for model, own in zip(ones, each, strict=True)]
    found = fo.fit_many(more, x, y, None, 6, 8, callbacks=[own["callbacks"] for own in each])
    assert [len(history) for history in found] == [6, 1, 6]
    assert_same(everything(ones, expected), everything(more, found))


class Looks(Callback):
    def __init__(self, *data):
        self.data, self.figures, self.threads = data, [], set()

    def on_epoch_end(self, model, epoch, logs):
        self.figures.append(model.evaluate(*self.data)["loss"])
        self.threads.add((threading.get_ident(), fo.get_num_threads()))


def test_callbacks_may_use_their_model_and_its_kernels_have_one_thread(threads):
    x, y = blobs(60)
    threads(2)
    looks, alone = [Looks(x, y), Looks(x, y)], Looks(x, y)
    fo.fit_many([model_of(0), model_of(1)], x, y, epochs=3, callbacks=[[look] for look in looks])
    model_of(1).fit(x, y, epochs=3, callbacks=[alone])
    assert looks[1].figures == alone.figures
    assert {n for look in looks for _, n in look.threads} == {1}
    assert threading.get_ident() not in {thread for look in looks for thread, _ in look.threads}
    assert fo.get_num_threads() == 2


class Fails(Callback):
    def on_epoch_end(self, model, epoch, logs):
        raise RuntimeError("of the callback")


def test_an_error_of_a_callback_ends_all_with_their_epochs():
    x, y = blobs(60)
    models = [model_of(i) for i in range(3)]
    with pytest.raises(RuntimeError, match="of the callback"):
        fo.fit_many(models, x, y, epochs=10**7, callbacks=[[Callback()], [Fails()], [Callback()]])
    for model in models:
        assert model.optimizer.steps == 2 * model.epochs_done
        model.fit(x, y)  # nobody holds its lock


# ---------------------------------------------------------------- errors


def two_outputs():
    model = Sequential([Dense(2, "softmax")])
    model.compile("adam", CROSS_ENTROPY)
    return model


def plain(m, x, y):
    return m, x, y


def with_rows(*rows):
    return lambda m, x, y: (m, x, y, rows)


SHARED, OTHER = Callback(), Callback()
# Arguments in place of (models, x, y), the options with them, and the error.
WRONG = {
    "twice": (lambda m, x, y: ([*m[:2], m[0]], x, y), {}, ValueError, r"models\[2\] is models\[0\]"),
    "no model": (lambda m, x, y: ([*m, 3], x, y), {}, TypeError, r"models\[3\] must be a Sequential"),
    "one model": (lambda m, x, y: (m[0], x, y), {}, TypeError, "models must be a list of Sequential"),
    "no loss": (lambda m, x, y: ([*m, Sequential([Dense(3)])], x, y), {}, ValueError, r"models\[3\]: .*call compile"),
    "outputs": (lambda m, x, y: ([*m, two_outputs()], x, y), {}, ValueError, r"models\[3\]: "),
    "nan": (lambda m, x, y: (m, np.where(x > 3, np.nan, x), y), {}, ValueError, r"models\[0\]: x must be finite"),
    "epochs": (plain, {"epochs": [1, 2]}, ValueError, "one for each of the 3 models; got 2"),
    "an epoch": (plain, {"epochs": [1, 2, 0]}, ValueError, r"models\[2\]: epochs must be at least 1"),
    "a size": (plain, {"batch_size": [1, 0, 1]}, ValueError, r"models\[1\]: batch_size must be at least 1"),
    "rows": (with_rows([0], [1]), {}, ValueError, "rows must be a list of row numbers for each of the 3"),
    "a row": (with_rows([0], [1], [40]), {}, ValueError, r"models\[2\]: rows must be numbers below 40"),
    "negative": (with_rows([0], [-1], [4]), {}, ValueError, r"rows\[1\] must be numbers of rows, from 0; got -1"),
    "huge": (with_rows([0], np.array([2**63], np.uint64), [4]), {}, ValueError, rf"rows\[1\] .*from 0; got {2**63}"),
    "large": (
        with_rows([0], np.array([2**63 - 1], np.uint64), [4]),
        {},
        ValueError,
        r"models\[1\]: rows must be .* 40",
    ),
    "mask": (with_rows([True], [1], [4]), {}, ValueError, r"rows\[0\] must be whole.*: give np\.flatnonzero of it"),
    "no rows": (with_rows([0], [], [4]), {}, ValueError, r"rows\[1\] must be whole numbers"),
    "split": (with_rows([0], [1], [4]), {"validation_split": 0.5}, ValueError, r"models\[0\]: validation_split"),
    "callbacks": (plain, {"callbacks": [OTHER]}, ValueError, "callbacks must be a list of callbacks for each"),
    "a callback": (plain, {"callbacks": [[], [3], []]}, TypeError, r"models\[1\]: every callback must be"),
    "shared": (plain, {"callbacks": [[SHARED], [], [SHARED]]}, ValueError, "callbacks.*have the same Callback"),
    "verbose": (plain, {"verbose": 3}, ValueError, "verbose must be"),
}


@pytest.mark.parametrize("case", WRONG)
def test_all_is_checked_before_anything_changes(case):
    arguments, options, error, message = WRONG[case]
    x, y = blobs(40)
    models = [model_of(i) for i in range(3)]
    models[1].fit(x, y)
    before = [(snapshot(model), model.classes) for model in models]
    with pytest.raises(error, match=message):
        fo.fit_many(*arguments(models, x, y), **options)
    assert_same(before, [(snapshot(model), model.classes) for model in models])


def test_a_model_that_another_thread_trains_is_refused():
    x, y = blobs(40)
    models = [model_of(i) for i in range(2)]
    caught = []

    class Other(Callback):
        def on_epoch_end(self, model, epoch, logs):
            def train():
                with pytest.raises(RuntimeError, match="another thread is training this model") as error:
                    fo.fit_many(models, x, y)
                caught.append(error)

            thread = threading.Thread(target=train)
            thread.start()
            thread.join()

    models[1].fit(x, y, callbacks=[Other()])
    assert len(caught) == 1
    fo.fit_many(models, x, y)
    assert [model.epochs_done for model in models] == [1, 2]


def test_no_models():
    assert fo.fit_many([], *blobs(9)) == []


# ---------------------------------------------------------------- one call, one memory


def passes_of(monkeypatch):
    """A list that grows with every compiled call: the models that it trains."""
    from fastopt.kernels import cpu

    calls, run = [], cpu.run_passes

    def watched(passes, watch=None):
        calls.append(len(passes))
        run(passes, watch)

    monkeypatch.setattr(cpu, "run_passes", watched)
    return calls


def test_models_are_one_compiled_call_as_far_as_memory_goes(monkeypatch):
    calls = passes_of(monkeypatch)
    assert_as_one_by_one(model_of, 5, *blobs(30), epochs=2, batch_size=8)
    assert calls == [5]
    calls.clear()
    monkeypatch.setattr(_queue, "ROUND_BYTES", 0)
    assert_as_one_by_one(model_of, 3, *blobs(30), epochs=2, batch_size=8)
    assert calls == [1, 1, 1]


def test_trainings_of_many_calls_go_round(monkeypatch):
    calls = passes_of(monkeypatch)
    monkeypatch.setattr(training, "STEPS_OF_A_CALL", 8)
    each = [{"epochs": epochs} for epochs in (2, 5, 3)]  # of 4 steps
    assert_as_one_by_one(model_of, 3, *blobs(30), each, batch_size=8)
    assert calls == [3, 2, 1]


def test_data_are_read_once(monkeypatch):
    from fastopt.models import _intake

    reads, converted = [], _intake.converted
    monkeypatch.setattr(_intake, "converted", lambda *args: reads.append(converted(*args)) or reads[-1])
    x, y = blobs(40)
    fo.fit_many([model_of(i) for i in range(4)], x, y, validation_data=(x, y))
    assert len(reads) == 2
    assert reads[0].x is x
    reads.clear()
    fo.fit_many([model_of(i, dtype=["float32", "float64"][i % 2]) for i in range(4)], x, y)
    assert len(reads) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_threads(count, threads):
    threads(count)
    assert_as_one_by_one(KINDS["widths"], 5, *blobs(50), epochs=3, batch_size=8)


def test_an_open_profile_sees_every_pass():
    class Recorder(list):
        def record(self, done):
            self.append((done.verb, done.steps))

    x, y = blobs(40)
    passes, models = Recorder(), [model_of(i) for i in range(3)]
    token = recorder.set(passes)
    try:
        fo.fit_many(models, x, y, epochs=2, batch_size=8)
    finally:
        recorder.reset(token)
    assert passes == [("train", 10)] * 3


def test_seconds_are_those_of_the_model_alone():
    x, y = blobs(60)
    found = fo.fit_many([model_of(i) for i in range(4)], x, y, epochs=[1, 3, 1, 3], batch_size=8)
    seconds = np.concatenate([history["seconds"] for history in found])
    assert ((seconds > 0) & (seconds < 60)).all()


def test_the_bar_counts_models(capsys):
    x, y = blobs(40)
    fo.fit_many([model_of(i) for i in range(3)], x, y, epochs=2, verbose=1)
    assert "Models: 100%" in (err := capsys.readouterr().err)
    assert "3/3" in err
    fo.fit_many([model_of(0), model_of(1, backend="numpy")], x, y, validation_split=0.2, verbose=1)
    assert "2/2" in capsys.readouterr().err
    fo.fit_many([model_of(0)], x, y, verbose=0)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- ends


def test_divergence_of_one_is_told_and_the_others_train_on():
    x, y = blobs(40)

    def make(i):
        return model_of(i, rule=fo.SGD(lr=[0.1, 1e30, 0.1][i]))

    ones, many = ([make(i) for i in range(3)] for _ in range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = [model.fit(x, y, 4, 8) for model in ones]
        assert len(caught) == 1
        found = fo.fit_many(many, x, y, epochs=4, batch_size=8)
        assert len(caught) == 2
    assert_same(everything(ones, expected), everything(many, found))


def test_stop_training_of_one_ends_it_alone():
    x, y = blobs(200)
    models, again = [model_of(i) for i in range(2)], model_of(0)
    fo.fit_many(models, x, y, batch_size=4)

    def stop():
        models[0].stop_training = True

    timer = threading.Timer(0.3, stop)
    timer.start()
    histories = fo.fit_many(models, x, y, epochs=[10**8, 2], batch_size=4)
    timer.join()
    done = len(histories[0])
    assert 0 < done == models[0].epochs_done - 1
    assert len(histories[1]) == 2
    again.fit(x, y, epochs=1 + done, batch_size=4, verbose=0)
    assert_same(models[0].get_weights(), again.get_weights())


@pytest.mark.own_process
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are Python, which an interrupt stops within a batch")
@pytest.mark.parametrize("looked_at", [False, True])
def test_an_interrupt_leaves_all_consistent(looked_at, threads):
    threads(2)
    x, y = blobs(200)
    models = [model_of(i) for i in range(4)]
    fo.fit_many(models, x, y, batch_size=200)
    timer = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    callbacks = [[Callback()] for _ in models] if looked_at else None
    with pytest.raises(KeyboardInterrupt):
        fo.fit_many(models, x, y, epochs=10**9, batch_size=200, callbacks=callbacks)
    timer.join()
    assert sum(model.epochs_done > 1 for model in models) >= 2  # as many as threads; others may not have begun
    for i, model in enumerate(models):
        assert model.optimizer.steps == model.epochs_done
        if model.epochs_done > 1 or not looked_at:  # a training that was not begun in its thread has no history
            assert len(model.history) == model.epochs_done - 1
        again = model_of(i)
        again.fit(x, y, epochs=model.epochs_done, batch_size=200)
        assert_same(model.get_weights(), again.get_weights())
        model.fit(x, y)  # nobody holds its lock
