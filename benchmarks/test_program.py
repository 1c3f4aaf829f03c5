"""The program as a whole: the time of an import and of `fastopt train`, and the accuracy after ten epochs of `fit`."""

import os
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

import fastopt as fo
from fastopt.benchmarks.contest import PAUSE
from fastopt.benchmarks.interleaved import interleaved, record, shared_result
from fastopt.benchmarks.limits import interleaved_times

ROUNDS = 21
IMPORTS = {"fastopt": "import numpy, time", "numpy": "import time"}  # and the modules that are imported before
TIMED = "{before}; start = time.perf_counter(); import {name}; print(time.perf_counter() - start)"
TRAIN = {"first": "fastopt train, first time ever", "later": "fastopt train, afterwards"}
ACCURACY = "Fashion-MNIST, 784-256-128-10, Adam, batch 64, 10 epochs of fit"


def process(*command, **environment):
    """Return a call that runs a process to its end."""
    return lambda: subprocess.run(command, check=True, env=os.environ | environment, capture_output=True)


def import_seconds(name):
    program = TIMED.format(before=IMPORTS[name], name=name)
    return float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)


def import_times(names, rounds):
    """Return seconds of interleaved imports in new processes; the first only brings files into memory."""
    found = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name in names:
            found[name].append(import_seconds(name))
    return {name: seconds[1:] for name, seconds in found.items()}


@interleaved
@pytest.mark.parametrize("contestant", IMPORTS)
def test_import(benchmark, note, request, quick, contestant):
    if benchmark.disabled:
        pytest.skip("nothing to agree on")
    benchmark.group = "import"
    found = shared_result(request, lambda names: import_times(names, 3 if quick else ROUNDS))
    record(benchmark, found[contestant])
    title = "import numpy" if contestant == "numpy" else "import fastopt, after numpy"
    note("program", "import", contestant, size=0, title="import", contestant_title=title)


@interleaved
@pytest.mark.parametrize("time_of", TRAIN)
def test_train(benchmark, note, quick, time_of):
    if benchmark.disabled:
        pytest.skip("nothing to agree on")
    benchmark.group = "fastopt train"
    folder = tempfile.mkdtemp()
    try:
        run = {"train": process(sys.executable, "-m", "fastopt", "train", FASTOPT_CACHE_DIR=folder)}
        later = time_of == "later"
        record(benchmark, interleaved_times(run, rounds=3 if later and not quick else 1, warm=int(later))["train"])
    finally:
        shutil.rmtree(folder)
    note("program", f"train {time_of}", "fastopt", size=0, title=TRAIN[time_of])


@interleaved
@pytest.mark.parametrize("contestant", ["fastopt", "numpy"])
def test_accuracy(benchmark, note, quick, contestant):
    if quick:
        pytest.skip("ten epochs: when timed")
    try:
        data = fo.datasets.load("fashion-mnist")
    except (OSError, ValueError) as error:
        pytest.skip(str(error))
    benchmark.group = ACCURACY
    backend = "numpy" if contestant == "numpy" else "cpu"
    model = fo.Sequential([fo.Dense(256, "relu"), fo.Dense(128, "relu"), fo.Dense(10)], seed=0, backend=backend)
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data.x_train[:640], data.y_train[:640], epochs=1, batch_size=64, verbose=0)  # compiles
    time.sleep(PAUSE)
    seconds = model.fit(data.x_train, data.y_train, epochs=11, initial_epoch=1, batch_size=64, verbose=0)["seconds"]
    record(benchmark, seconds)
    note("accuracy", "fashion-64", contestant, size=sum(w.size for w in model.get_weights()), title=ACCURACY)
    benchmark.extra_info["accuracy"] = model.evaluate(data.x_test, data.y_test)["accuracy"]
    benchmark.extra_info["fifth_over_first"] = seconds[4] / seconds[0]
