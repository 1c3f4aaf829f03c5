"""Training on several ranks: the same bits for any number of them, and errors that every rank is told of."""

from __future__ import annotations

import helpers_mpi
import numpy as np
import pytest
from helpers_mpi import results

# Layers, optimizers, losses and options whose trainings are compared: NAME of the command line is one of CASES.
PROGRAM = """
import copy, hashlib, sys
import numpy as np
import fastopt as fo

def digest(arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()

rng = np.random.default_rng(5)
x = rng.normal(size=(203, 6)).astype("float32")
labels = (x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)
numbers = np.stack([x[:, 0] * x[:, 1], x.sum(axis=1)], axis=1)

CASES = {
    "adam": dict(optimizer=fo.Adam(lr=0.01, clip_norm=0.5)),
    "sgd": dict(optimizer=fo.SGD(lr=0.1), labels=False, fit=dict(accumulate=3, batch_size=16)),
    "weighted": dict(optimizer=fo.AdamW(lr=0.01), fit=dict(sample_weight=np.arange(203) % 4, drop_last=True)),
    "regularized": dict(
        optimizer=fo.RMSprop(lr=0.01, momentum=0.9), labels=False, hidden=dict(
            kernel_regularizer=fo.regularizers.L1L2(1e-3, 1e-3), kernel_constraint=fo.constraints.MaxNorm(1.0))),
    "averaged": dict(optimizer=fo.Lion(lr=0.003), compile=dict(ema=fo.EMA(decay=0.9)), layer=fo.LayerNorm()),
    "sizes": dict(optimizer="nadam", fit=dict(batch_size=fo.batches.Random(20, 40), validation_split=0.2)),
    "frozen": dict(optimizer="adagrad", hidden=dict(trainable=False)),
    "steps": dict(optimizer="adadelta", fit=dict(steps_per_epoch=5, max_steps=12, batch_size=50)),
}

def train(name, **more):
    case = CASES[name]
    of_classes = case.get("labels", True)
    first = fo.Dense(9, "relu", **case.get("hidden", {}))
    layers = [first, case.get("layer", fo.Dropout(0.3)), fo.Dense(3 if of_classes else 2)]
    model = fo.Sequential(layers, seed=2)
    loss, metrics = ("sparse_categorical_crossentropy", ["accuracy", "f1_macro"]) if of_classes else (
        "mean_squared_error", ["r2", "mae"])
    model.compile(copy.copy(case["optimizer"]), loss, metrics, **case.get("compile", {}))
    options = {"batch_size": 64, "epochs": 2, "verbose": 0, **case.get("fit", {}), **more}
    history = model.fit(x, labels if of_classes else numbers, **options)
    states = [v for s in model.optimizer.state_dict()["state"].values() for v in s.values() if hasattr(v, "shape")]
    figures = {k: v for k, v in history.history.items() if k not in ("seconds", "samples_per_second")}
    averages = model.get_averages() if "compile" in case else []
    told = [digest(model.parameters), digest(states), digest(averages), figures, history.step_losses.tolist()]
    return told, model, history
"""
NAMES = ("adam", "sgd", "weighted", "regularized", "averaged", "sizes", "frozen", "steps")
ALL = "\ntell({name: train(name, distributed='mpi')[0] for name in sys.argv[1].split(',')})"


def alone(name, **more):
    """The same training on one rank, in this process: its figures, the model and the history."""
    pytest.importorskip("mpi4py")
    space = {}
    exec(PROGRAM, space)
    return space["train"](name, **more)


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.repeats)])
def test_any_number_of_ranks_has_the_same_bits(ranks):
    """Weights, states and figures, on every rank; a training of several cases in one job."""
    names = NAMES if ranks == 3 else NAMES[:1]
    told = results(ranks, PROGRAM + ALL, ",".join(names))
    for name in names:
        wanted = alone(name, distributed="mpi")[0]
        for rank in range(ranks):
            assert told[rank][name] == wanted, (name, rank)


@pytest.mark.repeats
def test_four_ranks_of_two_threads():
    """More ranks than processors, each with more threads than it needs."""
    job = helpers_mpi.start(
        4, "-c", PROGRAM + "\nprint(repr(train('adam', distributed='mpi')[0]))", FASTOPT_NUM_THREADS="2"
    )
    status, out, err = helpers_mpi.finish(job)
    assert status == 0, err
    lines = [line for line in out.splitlines() if line.startswith("[")]
    assert lines == [repr(alone("adam", distributed="mpi")[0])] * 4


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_agrees_with_a_plain_fit(name):
    """To rounding; dropout draws by pieces of a step instead of batches, so it is left out."""
    pytest.importorskip("mpi4py")
    space = {}
    exec(PROGRAM.replace("fo.Dropout(0.3)", "fo.Dropout(0.0)"), space)
    (*_, figures, losses), model, _ = space["train"](name, distributed="mpi")
    (*_, plain_figures, plain_losses), plain, _ = space["train"](name)
    for ours, theirs in zip(model.parameters, plain.parameters, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4 if name != "averaged" else 7e-3)
    np.testing.assert_allclose(losses, plain_losses, rtol=2e-3)
    assert figures.keys() == plain_figures.keys()
