"""Ranks that fail, that are interrupted, or that do not begin alike."""

from __future__ import annotations

import json
import os
import time

import helpers_mpi
import numpy as np
import pytest
from helpers_mpi import TELL, results

import fastopt as fo
from fastopt.distributed import _world

PROGRAM = """
import os, signal, sys, time
import numpy as np
import fastopt as fo
rank = distributed.rank()
x = np.random.default_rng(0).normal(size=(300, 4)).astype("float32")
y = x.sum(axis=1)

def model(seed=0, lr=0.01):
    made = fo.Sequential([fo.Dense(8, "tanh"), fo.Dense(1)], seed=seed)
    made.compile(fo.Adam(lr=lr), "mean_squared_error")
    return made

def error_of(model, x=x, y=y, **options):
    try:
        model.fit(x, y, distributed="mpi", verbose=0, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"
"""

DIFFERENCES = (
    PROGRAM
    + """
class Every(fo.Callback):
    def __init__(self, steps):
        self.every_steps = steps

class Faster(fo.Callback):
    def on_epoch_end(self, model, epoch, logs):
        model.optimizer.param_groups[0]["lr"] *= 1 + rank

class Moves(fo.Callback):
    def on_epoch_end(self, model, epoch, logs):
        model.set_weights([w + rank for w in model.get_weights()])

tell([
    error_of(model(seed=rank)),
    error_of(model(), epochs=1 + rank),
    error_of(model(), batch_size=32 * (1 + rank)),
    error_of(model(lr=0.01 * (1 + rank))),
    error_of(model(), x + rank),
    error_of(model(), x, y + (rank == 1) * (np.arange(300) == 299)),
    error_of(model(), sample_weight=np.arange(300) + rank),
    error_of(model(), x[:200] if rank else x, y[:200] if rank else y),
    error_of(model(), np.where((np.arange(300) == 7)[:, None] & (rank == 1), np.nan, x)),
    error_of(model(), epochs=0),
    error_of(model()),
    error_of(model(), callbacks=[fo.EarlyStopping("loss", patience=1 + rank)]),
    error_of(model(), callbacks=[Every(1 + rank)]),
    error_of(model(), epochs=2, callbacks=[Faster()]),
    error_of(model(), epochs=2, callbacks=[Moves()]),
    error_of(model(), reduction="fast" if rank else "fixed"),
])
"""
)


@pytest.mark.slow
@pytest.mark.repeats
def test_ranks_that_do_not_begin_alike_are_told_so():
    first, second = results(2, DIFFERENCES)
    told = [
        "seed is 0 on rank 0 and 1 on rank 1", "epochs is 1 on rank 0 and 2 on rank 1",
        "batch_size is 32 on rank 0 and 64 on rank 1", "options of the optimizer is ", "x is float32 of shape",
        "y is ", "weights of the rows is ", "numbers of the rows is uint32 of shape (300,)",
    ]  # fmt: skip
    for i, words in enumerate(told):
        assert first[i] == second[i]
        assert first[i].startswith("ValueError: all ranks must begin alike: "), first[i]
        assert words in first[i]
    # an error of one rank is told on the others
    assert second[8].startswith("ValueError: x must be finite; got nan at index (7, 0)")
    assert first[8] == f"RuntimeError: rank 1 of 2 cannot begin: {second[8]}"
    # one of all is theirs
    assert first[9] == second[9] == "ValueError: epochs must be at least 1; got 0"
    assert first[10] == second[10] == "none"
    # callbacks
    alike = "ValueError: all ranks must begin alike: "
    train = "ValueError: all ranks must train alike, and callbacks do"
    assert first[11] == second[11]
    assert first[11].startswith(f'{alike}callbacks is ["EarlyStopping ')
    assert first[12] == second[12] == f"{alike}every_steps of the callbacks is [1] on rank 0 and [2] on rank 1"
    assert first[13] == second[13]
    assert first[13].startswith(f"{train} the same on all: learning rate is 0.01 on rank 0 and 0.02 on rank 1")
    assert first[14] == second[14]
    assert first[14].startswith(f"{train} the same on all: sum over the weights is ")
    assert first[15] == second[15] == f"{alike}reduction is fixed on rank 0 and fast on rank 1"


DYING = (
    PROGRAM
    + """
class End(fo.Callback):
    every_steps = 5
    def on_step_end(self, model, step, logs):
        if rank == 1 and step == 10:
            if sys.argv[1] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("no more")
        if rank == 1 and step == 5:
            print(f"began {time.time()} {os.getpid()}\\n", end="", flush=True)
model().fit(x, y, epochs=10**6, batch_size=16, distributed="mpi", verbose=0, callbacks=[End()],
    checkpoint=sys.argv[2], checkpoint_every=1)
"""
)


@pytest.mark.slow
@pytest.mark.repeats
@pytest.mark.parametrize("how", ["killed", "raises"])
def test_a_rank_that_dies_ends_the_job(how, tmp_path):
    """Within ten seconds, with a message that names it; the checkpoint is whole."""
    path = tmp_path / "model.ckpt"
    job = helpers_mpi.start(2, "-c", TELL + DYING, how, str(path))
    status, out, err = helpers_mpi.finish(job, 60)
    assert status != 0
    began, process = next(line for line in out.splitlines() if line.startswith("began")).split()[1:]
    assert time.time() - float(began) < 10
    if how == "raises":
        assert "fastopt: rank 1 of 2 failed: ValueError: no more; the job ends" in err
    else:
        assert "rank 1" in err + out or f"PID {process} " in err + out  # of Open MPI, of MPICH
    model = fo.load_model(path)
    assert np.isfinite(model.parameters[0]).all()
    assert model.optimizer.steps in (9, 10)
    assert sorted(os.listdir(tmp_path)) == ["model.ckpt", "model.ckpt.previous"]


ENDING = (
    PROGRAM
    + """
if rank == 1 and sys.argv[1] == "raises":
    raise FileNotFoundError("data.csv")
if rank == 1 and sys.argv[1] == "ends":
    sys.exit(0)
model().fit(x, y, distributed="mpi", verbose=0)
if rank == 1 and sys.argv[1] == "raises later":
    raise FileNotFoundError("data.csv")
model().fit(x, y, distributed="mpi", verbose=0)
"""
)


@pytest.mark.slow
@pytest.mark.repeats
@pytest.mark.parametrize("how", ["raises", "ends", "raises later"])
def test_a_rank_that_does_not_come_to_fit_ends_the_job(how):
    """The others would wait for it in a call of MPI."""
    begun = time.monotonic()
    status, _, err = helpers_mpi.finish(helpers_mpi.start(2, "-c", TELL + ENDING, how), 60)
    assert status != 0
    assert time.monotonic() - begun < 30  # 5 of which a rank that fails waits for the others to fail as well
    if how == "ends":
        assert "fastopt: rank 1 of 2 has ended, and rank 0 waits for it to train together; the job ends" in err
    else:
        assert "fastopt: rank 1 of 2 failed: FileNotFoundError: data.csv; the job ends" in err or (
            "fastopt: rank 1 of 2 has ended, and rank 0 waits for it" in err
        )


INTERRUPTED = (
    PROGRAM
    + """
signal.signal(signal.SIGINT, signal.default_int_handler)
class Press(fo.Callback):
    def on_epoch_begin(self, model, epoch):
        if rank == 1 and epoch == 3:
            import threading
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
made = model()
try:
    made.fit(x, y, epochs=10**6, batch_size=16, distributed="mpi", verbose=0, callbacks=[Press()])
except KeyboardInterrupt:
    pass
tell([made.optimizer.steps, [float(p.sum()) for p in made.parameters], len(made.history.epochs) >= 2])
"""
)


@pytest.mark.slow
@pytest.mark.repeats
def test_an_interrupt_of_one_rank_is_one_of_all():
    """The model is usable and alike on all, unless the interrupt came while Python looked after the epoch."""
    job = helpers_mpi.start(2, "-c", TELL + INTERRUPTED)
    status, out, err = helpers_mpi.finish(job, 60)
    if status == 0:
        first, second = (json.loads(line)[1] for line in out.splitlines() if line.startswith("["))
        assert first == second
        assert first[0] > 0
        assert first[2]
    else:  # between two passes: the job ends, and says so
        assert "fastopt: rank 1 of 2 failed: KeyboardInterrupt" in err


NANS = (
    PROGRAM
    + """
import warnings
warnings.simplefilter("ignore")
made = fo.Sequential([fo.Dense(8, "tanh"), fo.Dense(1)])
made.compile(fo.SGD(lr=1.0), "mean_squared_error")
y[99] = 3e38  # of the last of the first step's four pieces, which is rank 1's
history = made.fit(x, y, epochs=1, batch_size=100, shuffle=False, distributed="mpi", verbose=0)
tell([repr(history["loss"][0]), [int(np.isnan(p).sum()) for p in made.parameters]])
"""
)


@pytest.mark.slow
@pytest.mark.repeats
def test_a_nan_on_one_rank_is_one_on_all():
    first, second = results(2, NANS)
    assert first == second
    assert first[0] in ("nan", "inf")
    assert sum(first[1]) > 0


def test_what_is_missing_is_named(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(_world, "import_module", missing)
    for function in (_world.mpi, _world.world):
        function.cache_clear()
    model = fo.Sequential([fo.Dense(1)], inputs=2)
    model.compile("sgd", "mean_squared_error")
    before = model.get_weights()
    with pytest.raises(ImportError, match=r'needs mpi4py and MPI itself: pip install "fastopt\[mpi\]".*mpirun -n 2'):
        model.fit(np.ones((4, 2)), np.ones(4), distributed="mpi", verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert model.optimizer.steps == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distributed": "nccl"}, "distributed must be 'mpi'|unknown distributed"),
        ({"distributed": "mpi", "reduction": "exact"}, "reduction"),
        ({"reduction": "fast"}, "reduction='fast' is for distributed=\"mpi\""),
        ({"distributed": "mpi", "batch_size": "auto"}, "needs a batch_size that all ranks share"),
        ({"rows": "local"}, 'rows=\'local\' is for distributed="mpi"'),
        ({"shard_states": True}, 'shard_states=True is for distributed="mpi"'),
        ({"wire_dtype": "bfloat16"}, 'wire_dtype=\'bfloat16\' is for distributed="mpi"'),
        ({"distributed": "mpi", "wire_dtype": "float16"}, "wire_dtype"),
        ({"distributed": "mpi", "rows": "mine"}, "rows"),
        ({"distributed": "mpi", "reduction": "fast", "wire_dtype": "bfloat16"}, 'goes with reduction="fixed"'),
        ({"distributed": "mpi", "rows": "local", "checkpoint": "x"}, "use a callback such as ModelCheckpoint"),
        ({"distributed": "mpi", "rows": "local", "validation_split": 0.5}, "use validation_data"),
        ({"distributed": "mpi", "rows": "local", "accumulate": 2}, "use a larger batch_size"),
        ({"distributed": "mpi", "rows": "local", "batch_size": "full"}, "needs a batch_size in rows"),
        ({"distributed": "mpi", "rows": "local", "class_weight": "balanced"}, "give weights by label"),
        ({"distributed": "mpi", "augment": lambda x, y, rng: (x, y)}, "transform them beforehand"),
    ],
)
def test_options_that_do_not_go_together(options, words):
    model = fo.Sequential([fo.Dense(1)], inputs=2)
    model.compile("sgd", "mean_squared_error")
    with pytest.raises(ValueError, match=words):
        model.fit(np.ones((4, 2)), np.ones(4), verbose=0, **options)
    assert model.optimizer.steps == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fo.Sequential([fo.Dense(1)], inputs=2, backend="numpy"), "trains on the backend"),
        (lambda: fo.Sequential([fo.Dense(3), fo.BatchNorm(), fo.Dense(1)], inputs=2), "use LayerNorm"),
        (lambda: fo.Sequential([fo.Dense(3), fo.BatchNorm(), fo.Dense(1)]), "use LayerNorm"),
    ],
)
def test_models_that_ranks_cannot_train_together(make, words):
    pytest.importorskip("mpi4py")
    model = make()
    model.compile("sgd", "mean_squared_error")
    with pytest.raises(ValueError, match=words):
        model.fit(np.ones((4, 2)), np.ones(4), distributed="mpi", verbose=0)
    assert model.optimizer.steps == 0


def test_batches_from_an_iterable_are_refused():
    pytest.importorskip("mpi4py")
    model = fo.Sequential([fo.Dense(1)], inputs=2)
    model.compile("sgd", "mean_squared_error")
    with pytest.raises(ValueError, match="needs x and y, whose rows all ranks know; got an iterable"):
        model.fit([(np.ones((4, 2)), np.ones(4))], distributed="mpi", verbose=0)
    model.compile(fo.SGD(lr=0.1), "mean_squared_error", metrics=["r2"])
    with pytest.raises(ValueError, match="the metric r2 goes by rows that all ranks know"):
        model.fit(np.ones((4, 2)), np.ones(4), distributed="mpi", rows="local", verbose=0)
