"""Batches that come one by one: items of iterables, torch's DataLoaders, and rows that a function changes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from helpers_model import CROSS_ENTROPY, assert_same, blobs, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt import Dense, Dropout, Sequential
from fastopt._random_rows import epoch_order
from fastopt.batches import Growing, Random
from fastopt.callbacks import Callback, EarlyStopping, LambdaCallback

X, Y = blobs(61)
SIZES = [16, 16, 16, 13]


def model_of(backend, metrics=("accuracy", "f1_macro"), loss=CROSS_ENTROPY, **options):
    layers = [Dense(7, "relu"), Dropout(0.3), Dense(3, "softmax")]
    model = Sequential(layers, seed=4, backend=backend, **options)
    model.compile(fo.Adam(lr=fo.schedules.Cosine(0.05, 40), clip_norm=1.0), loss, list(metrics))
    return model


def items_of(sizes=SIZES, x=X, y=Y):
    ends = np.cumsum(sizes)
    return [(x[end - size : end], y[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def results(model, history):
    figures = {name: values for name, values in history.history.items() if "second" not in name}
    return [model.get_weights(), model.optimizer.state_dict(), history.step_losses, figures, model.epochs_done]


# ---------------------------------------------------------------- items
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
@given(
    batch_size=st.integers(5, 40), accumulate=st.integers(1, 3), epochs=st.integers(1, 3),
    every=st.sampled_from([None, 1, 3]),
)  # fmt: skip
def test_items_train_as_rows_in_their_order(backend, batch_size, accumulate, epochs, every):
    """An iterable of equal batches is a fit without shuffling, bit for bit, also with callbacks and validation."""
    options = {"epochs": epochs, "accumulate": accumulate, "validation_data": (X[:20], Y[:20]), "verbose": 0}
    heard, ours, theirs = [], *(model_of(backend, dtype="float64") for _ in range(2))
    listeners = [LambdaCallback(on_step_end=lambda _, step, logs: heard.append((step, logs)), every_steps=every or 1)]
    options["callbacks"] = listeners if every else []
    sizes = [batch_size] * (61 // batch_size) + [61 % batch_size] * (61 % batch_size > 0)
    history = ours.fit(items_of(sizes), **options)
    first, heard[:] = list(heard), []
    other = theirs.fit(X, Y, batch_size=batch_size, shuffle=False, **options)
    if accumulate == 1 or len(set(sizes)) == 1:
        assert_same(results(ours, history), results(theirs, other))
        assert_same(first, heard)
    else:  # the sums of the last step's batches may be of another capacity
        np.testing.assert_allclose(history.step_losses, other.step_losses, rtol=1e-9)
    assert history.batch_size is None


def test_an_iterator_gives_steps_per_epoch_in_turn(backend):
    ours, theirs = model_of(backend), model_of(backend)
    taken = []

    def stream():
        for number in range(100):
            taken.append(number)
            yield items_of()[number % 4]

    history = ours.fit(stream(), epochs=3, steps_per_epoch=4, verbose=0)
    assert_same(results(ours, history), results(theirs, theirs.fit(items_of(), epochs=3, verbose=0)))
    assert taken == list(range(12))  # not one more than is trained on


def test_an_iterator_without_limits_is_an_epoch(backend):
    ours, theirs = model_of(backend), model_of(backend)
    history = ours.fit(iter(items_of()), verbose=0)
    assert_same(results(ours, history), results(theirs, theirs.fit(X, Y, batch_size=16, shuffle=False, verbose=0)))


def test_items_of_changing_sizes(backend):
    """Each item is a batch and a step, whatever its size; losses and metrics are over all rows."""
    ours, theirs = model_of(backend), model_of(backend)
    sizes = [3, 20, 1, 30, 7]
    history = ours.fit(items_of(sizes), verbose=0)
    figures = [theirs.train_on_batch(x, y) for x, y in items_of(sizes)]
    assert_same(ours.get_weights(), theirs.get_weights())
    assert history.step_losses.tolist() == [figure["loss"] for figure in figures]
    assert history["loss"][0] == pytest.approx(np.average(history.step_losses, weights=sizes), rel=1e-12)
    accuracy = np.average([figure["accuracy"] for figure in figures], weights=sizes)
    assert history["accuracy"][0] == pytest.approx(accuracy, rel=1e-12)


def test_items_of_changing_sizes_in_one_step(backend):
    """The gradient of a step of several items is that of all their rows together."""
    ours, theirs = (
        Sequential([Dense(5, "tanh"), Dense(3, "softmax")], seed=1, backend=backend, dtype="float64") for _ in range(2)
    )
    for model in (ours, theirs):
        model.compile("adam", CROSS_ENTROPY, ["accuracy"])
    history = ours.fit(items_of([3, 20, 1, 30, 7]), accumulate=3, verbose=0)
    other = theirs.fit(items_of([24, 37]), verbose=0)
    np.testing.assert_allclose(history.step_losses, other.step_losses, rtol=1e-12)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_items_may_have_weights(backend, accumulate):
    """The same as rows with weights; an item whose weights are all 0 counts as a step."""
    weights = np.random.default_rng(1).random(61).astype(np.float32)
    weights[16:32] = 0
    ours, theirs = (model_of(backend, dtype="float64") for _ in range(2))
    items = [(x, y, w) for (x, y), (w, _) in zip(items_of(), items_of(x=weights), strict=True)]
    history = ours.fit(items, epochs=2, accumulate=accumulate, verbose=0)
    options = {"batch_size": 16, "shuffle": False, "epochs": 2, "accumulate": accumulate, "verbose": 0}
    other = theirs.fit(X, Y, sample_weight=weights, **options)
    assert_same(results(ours, history), results(theirs, other))
    with pytest.raises(ValueError, match="must all have weights or none; got one without for step 2 of epoch 1"):
        model_of(backend).fit([items[0], items[1][:2]], verbose=0)
    assert ours.train_on_batch(*items[0]) == theirs.train_on_batch(X[:16], Y[:16], sample_weight=weights[:16])


def test_a_dataloader_is_gone_through_once_an_epoch(backend):
    torch = pytest.importorskip("torch")
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))

    def loader():
        generator = torch.Generator().manual_seed(3)
        return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True, generator=generator)

    model, seen = model_of(backend), loader()
    batches = [[tuple(part.numpy() for part in item) for item in seen] for _ in range(2)]
    history = model.fit(loader(), epochs=2, verbose=0)
    other = model_of(backend)
    losses = []
    for i, of_epoch in enumerate(batches):
        losses += other.fit(of_epoch, epochs=i + 1, initial_epoch=i, verbose=0)["loss"]
    assert history["loss"] == losses
    assert_same(model.get_weights(), other.get_weights())


def test_training_ends_within_a_stream(backend):
    stream = (item for _ in range(100) for item in items_of())
    history = model_of(backend).fit(stream, epochs=None, max_steps=7, verbose=0)
    assert len(history.step_losses) == 7
    assert next(stream)[0] is not None  # goes on where the training has ended
    stopper = EarlyStopping("loss", threshold=1e9)
    assert len(model_of(backend).fit(items_of(), epochs=9, callbacks=[stopper], verbose=0)) == 1


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (lambda: iter(items_of()), {"epochs": 2}, "x ended at step 1 of epoch 2: an iterator is gone through once"),
        (lambda: iter(items_of()), {"epochs": 2, "steps_per_epoch": 3}, "x ended at step 2 of epoch 2, of 3"),
        (lambda: items_of(), {"steps_per_epoch": 5}, "x ended at step 5 of epoch 1, of 5"),
        (lambda: iter(items_of()), {"accumulate": 3, "steps_per_epoch": 3}, "x ended at step 3 of epoch 1, of 3"),
    ],
)
def test_an_iterator_that_ends_early(backend, x, options, message):
    model = model_of(backend)
    with pytest.raises(ValueError, match=message):
        model.fit(x(), verbose=0, **options)
    done = len(items_of()) if options.get("accumulate") is None else 2
    assert model.optimizer.steps == done
    model.fit(X, Y, verbose=0)  # goes on


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X, {}, ValueError, r"got shapes \(61, 6\) and \(\): without y, x must be an iterable of items \(x, y\)"),
        (3, {}, TypeError, "without y, x must be an iterable"),
        ([], {}, ValueError, "x must have items"),
        ([X], {}, TypeError, r"every item of x must be a tuple \(x, y\) or \(x, y, weights\); got a float32 .* item 1"),
        ([(X, Y, Y, Y)], {}, TypeError, "got a tuple of 4 as item 1"),
        ([(X, Y[:3])], {}, ValueError, "x of batch 1 and y of batch 1 must have as many rows"),
        (items_of(), {"batch_size": 16}, ValueError, "batch_size is for arrays x and y"),
        (items_of(), {"validation_split": 0.2}, ValueError, "validation_split is for arrays x and y"),
        (items_of(), {"drop_last": True}, ValueError, "drop_last is for arrays x and y"),
        (items_of(), {"augment": lambda x, y, rng: (x, y)}, ValueError, "augment is for arrays x and y"),
        (items_of(), {"sample_weight": np.ones(61)}, ValueError, "sample_weight is for arrays x and y, and .* weights"),
        (items_of(), {"class_weight": "balanced"}, ValueError, "class_weight is for arrays x and y"),
        ([(X, Y, Y[:3])], {}, ValueError, "the weights of batch 1 must have a weight for each of the 61 rows"),
        ([(X, Y, -1.0 - Y)], {}, ValueError, "the weights of batch 1 must not be negative"),
        (items_of(), {"standardize_targets": True}, ValueError, "standardize_targets is for arrays x and y"),
    ],
)
def test_refusals_change_nothing(x, options, error, message):
    model = model_of("numpy")
    before = snapshot(model)
    with pytest.raises(error, match=message):
        model.fit(x, verbose=0, **options)
    assert_same(snapshot(model), before)


def test_what_a_stream_cannot_tell():
    model = Sequential([fo.Normalization(), Dense(1)])
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match="has no mean and variance yet: call fit, or adapt"):
        model.fit([(X, Y.astype(float))], verbose=0)
    model.adapt(X)
    model.fit([(X, Y.astype(float))], verbose=0)


def same(x, y, rng):
    return x, y


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("constant", [(), (1,), (0, 1, 2)])
def test_r2_of_targets_that_come_batch_by_batch(backend, constant, weighted):
    """Equals that of the rows together, from outputs that a rate of 0 leaves alone; some targets are constant."""
    rng = np.random.default_rng(0)
    targets, weights = rng.normal(100, 1, (61, 3)), rng.integers(0, 3, 61).astype(float)
    targets[:, constant] = 0.1
    model = Sequential([Dense(7, "relu"), Dense(3)], seed=4, backend=backend, dtype="float64")
    model.compile(fo.SGD(lr=0.0), "mse", ["r2", "mse"])
    items = [(*item, w) for item, (_, w) in zip(items_of(y=targets), items_of(y=weights), strict=True)]
    items = items if weighted else [item[:2] for item in items]
    options = {"batch_size": 16, "sample_weight": weights if weighted else None, "verbose": 0}
    found = [model.fit(items, accumulate=2, verbose=0), model.fit(X, targets, augment=same, **options)]
    rows = weights if weighted else np.ones(61)
    outputs, used = model.predict(X), [i for i in range(3) if i not in constant]
    away = targets - (rows @ targets / rows.sum())
    expected = 0.0
    if used:
        expected = 1 - (rows @ (targets - outputs)[:, used] ** 2).sum() / (rows @ away[:, used] ** 2).sum()
    for history in found:
        assert history["r2"] == pytest.approx([expected], rel=1e-9)
        assert history["mse"] == pytest.approx([rows @ ((targets - outputs) ** 2).mean(axis=1) / rows.sum()], rel=1e-9)


def test_a_wrong_item_is_named_and_the_model_stays_whole(backend):
    model = model_of(backend)
    with pytest.raises(ValueError, match="x of batch 3 must have shape"):
        model.fit([*items_of()[:2], (X[:, :2], Y)], verbose=0)
    assert (model.optimizer.steps, model.epochs_done) == (2, 0)
    model.fit(items_of(), verbose=0)


def test_labels_are_those_of_the_first_item_or_of_classes():
    labels = np.array(["c", "a", "b"])[Y]
    model = model_of("numpy")
    model.classes = ["a", "b", "c"]
    model.fit([(X[:1], labels[:1]), (X, labels)], verbose=0)
    assert model.classes.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="or say by model.classes which there are"):
        model_of("numpy").fit([(X[:1], labels[:1]), (X, labels)], verbose=0)


# ---------------------------------------------------------------- augment
def noisy(x, y, rng):
    return x + 0.1 * rng.standard_normal(x.shape), y


@pytest.mark.parametrize("options", [{}, {"batch_size": Random(3, 20)}, {"batch_size": Growing(7), "drop_last": True},
                                     {"accumulate": 2, "batch_size": 8}, {"validation_split": 0.25}])  # fmt: skip
def test_a_function_that_changes_nothing_changes_nothing(backend, options):
    ours, theirs = (model_of(backend, dtype="float64") for _ in range(2))
    seen = []

    def same(x, y, rng):
        seen.append(len(x))
        return x, y

    history = ours.fit(X, Y, epochs=2, augment=same, verbose=0, **options)
    other = theirs.fit(X, Y, epochs=2, verbose=0, callbacks=[Callback()], **options)
    np.testing.assert_allclose(history.step_losses, other.step_losses, rtol=1e-9)
    assert history["accuracy"] == pytest.approx(other["accuracy"], rel=1e-12)
    assert history.batch_size == other.batch_size
    if not options:
        assert_same(results(ours, history), results(theirs, other))
        assert seen == [32, 29] * 2


def test_augmented_batches_are_a_function_of_the_seed(backend):
    """Each batch has a generator of its own, of the seed, the epoch in the model's life, and its number."""
    ours, theirs = model_of(backend), model_of(backend)
    history = ours.fit(X, Y, epochs=2, batch_size=16, augment=noisy, verbose=0)
    losses = []
    for epoch in range(2):
        order, items = epoch_order(np.arange(61), 4, epoch, True), []
        for number in range(4):
            rows = order[16 * number : 16 * number + 16]
            bits = np.random.PCG64(np.random.SeedSequence(4, spawn_key=(4, epoch, number)))
            items.append(noisy(X[rows], Y[rows], np.random.Generator(bits)))
        losses += theirs.fit(items, epochs=epoch + 1, initial_epoch=epoch, verbose=0)["loss"]
    assert history["loss"] == losses
    assert_same(ours.get_weights(), theirs.get_weights())
    halves = model_of(backend)
    halves.fit(X, Y, epochs=1, batch_size=16, augment=noisy, verbose=0)
    halves.fit(X, Y, epochs=2, initial_epoch=1, batch_size=16, augment=noisy, verbose=0)
    assert_same(halves.get_weights(), ours.get_weights())
    plain = model_of(backend)
    plain.fit(X, Y, epochs=2, batch_size=16, verbose=0)
    assert not np.array_equal(plain.get_weights()[0], ours.get_weights()[0])


def test_it_sees_rows_as_they_were_given():
    """Images in their shape and dtype, before Rescaling; text labels; in a thread of its own."""
    images, shapes = np.random.default_rng(0).integers(0, 255, (20, 4, 3), dtype=np.uint8), set()
    labels = np.array(["no", "yes"])[np.arange(20) % 2]

    def flipped(x, y, rng):
        shapes.add((x.shape, x.dtype.name, y.dtype.kind, threading.current_thread() is threading.main_thread()))
        x[:] = 0  # rows of its own: the data stay as they are
        return x[:, :, ::-1], y

    before = images.copy()
    model = Sequential([fo.Rescaling(1 / 255), Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy")
    model.fit(images, labels, epochs=2, batch_size=10, augment=flipped, verbose=0)
    assert shapes == {((10, 4, 3), "uint8", "U", False)}
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("weights", [{"sample_weight": 1.0 + np.arange(61) % 3}, {"class_weight": {0: 3.0}}])
def test_weights_go_with_the_rows(backend, weights):
    ours, theirs = (model_of(backend, dtype="float64") for _ in range(2))
    options = {"epochs": 2, "batch_size": 16, "verbose": 0, **weights}
    history = ours.fit(X, Y, augment=lambda x, y, rng: (x, y), **options)
    assert_same(results(ours, history), results(theirs, theirs.fit(X, Y, callbacks=[Callback()], **options)))
    with pytest.raises(ValueError, match="augment must return as many rows as it is given where rows have weights"):
        ours.fit(X, Y, augment=lambda x, y, rng: (x[1:], y[1:]), **{**options, "epochs": 1})


def test_batches_may_grow_and_shrink(backend):
    model = model_of(backend)
    history = model.fit(X, Y, augment=lambda x, y, rng: (np.tile(x, (2, 1)), np.tile(y, 2)), batch_size=16, verbose=0)
    assert len(history.step_losses) == 4
    assert model.optimizer.steps == 4


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [
        (3, TypeError, r"augment must be a function f\(x, y, rng\); got 3"),
        (lambda x, y, rng: x, TypeError, r"augment must return a tuple \(x, y\); got a float32 array .* for batch 1"),
        (lambda x, y, rng: (x[:, :2], y), ValueError, "x of batch 1 must have shape"),
        (lambda x, y, rng: (x / 0, y), ValueError, "x of batch 1 must"),
        (lambda x, y, rng: 1 / 0, ZeroDivisionError, "division by zero"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_errors_of_the_function_come_through(augment, error, message):
    model = model_of("numpy")
    with pytest.raises(error, match=message):
        model.fit(X, Y, augment=augment, verbose=0)
    model.fit(X, Y, verbose=0)


def test_threads_end_with_the_training():
    before = threading.active_count()
    model_of("numpy").fit(X, Y, augment=noisy, epochs=5, max_steps=3, batch_size=4, verbose=0)
    model_of("numpy").fit(X, Y, augment=noisy, verbose=0)
    assert threading.active_count() == before




def test_bar_of_an_unknown_number_of_rows(capsys):
    model_of("numpy").fit(items_of(), verbose=1)
    assert "100%" in capsys.readouterr().err


# ---------------------------------------------------------------- data of any kind
def gaps(x):
    x = x.astype(np.float64)
    x[[0, 5, 17], 2] = np.nan
    return x


@pytest.mark.parametrize("accumulate", [1, 2])
def test_items_with_gaps(backend, accumulate):
    """Rows with NaN are left out of their batches."""
    x = gaps(X)
    good = np.isfinite(x).all(axis=1)
    ours, theirs = (model_of(backend, dtype="float64") for _ in range(2))
    history = ours.fit(items_of(x=x), nan="skip", accumulate=accumulate, verbose=0)
    kept = [(part[ok], y[ok]) for (part, y), (ok, _) in zip(items_of(x=x), items_of(x=good), strict=True)]
    other = theirs.fit(kept, accumulate=accumulate, verbose=0)
    assert_same(results(ours, history), results(theirs, other))


def test_augmented_rows_with_gaps(backend):
    x, seen = gaps(X), []
    good = np.isfinite(x).all(axis=1)

    def same(x, y, rng):
        seen.append((x, y))
        return x, y

    ours, theirs = (model_of(backend, dtype="float64") for _ in range(2))
    options = {"nan": "skip", "shuffle": False, "verbose": 0}
    history = ours.fit(x, Y, augment=same, **options)
    assert_same(results(ours, history), results(theirs, theirs.fit(x, Y, callbacks=[Callback()], **options)))
    np.testing.assert_array_equal(np.concatenate([x for x, _ in seen]), x[good])
    np.testing.assert_array_equal(np.concatenate([y for _, y in seen]), Y[good])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_sparse_rows_and_bytes(backend, accumulate):
    """Batches of sparse rows, and of bytes behind Rescaling, are those of the numbers that they hold."""
    sparse = pytest.importorskip("scipy.sparse")
    pixels = np.random.default_rng(0).integers(0, 3, X.shape).astype(np.uint8)
    found = []
    for x in (pixels, sparse.csr_matrix(pixels), pixels / 1.0):
        layers = [fo.Rescaling(1 / 255), Dense(5, "tanh"), Dense(3, "softmax")]
        for way in ("items", "augment"):
            model = Sequential(layers, seed=4, backend=backend, dtype="float64")
            model.compile("adam", CROSS_ENTROPY)
            options = {"accumulate": accumulate, "verbose": 0}
            if way == "items":
                model.fit([(x[end - size : end], Y[end - size : end]) for size, end in ((40, 40), (21, 61))], **options)
            else:
                model.fit(x, Y, shuffle=False, batch_size=40, augment=lambda x, y, rng: (x, y), **options)
            found.append(model.get_weights())
    for weights in found[1:]:
        assert_same(weights, found[0])
