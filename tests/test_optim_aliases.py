"""Arguments that other libraries' optimizers have: each works here by the same name, or is refused with a reason."""

import importlib.util
import inspect
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastopt as fo
from fastopt.conventions import CONVENTIONS
from fastopt.optim._aliases import FOREIGN_ARGUMENTS

CLASSES = [getattr(fo, name) for name in CONVENTIONS]

# Lists the arguments of a library's optimizers, in a process of its own: JAX warns of forks ever after.
LISTED = {
    "torch": "import torch.optim as o; found = {n: getattr(o, n) for n in names}",
    "keras": "import os; os.environ['KERAS_BACKEND'] = 'torch'; import keras.optimizers as o\n"
    "found = {n: getattr(o, n) for n in names}",
    "optax": "import optax as o; found = {n: getattr(o, n) for n in [*names, 'nadam']}",
    "sklearn": "from sklearn.neural_network import _stochastic_optimizers as o\n"
    "found = {n: getattr(o, n + 'Optimizer') for n in ('SGD', 'Adam')}",
}
NEEDED = {"torch": ["torch"], "keras": ["torch", "keras"], "optax": ["jax", "optax"], "sklearn": ["sklearn"]}
PROGRAM = """
import inspect, json
names = {names}
{listed}
print(json.dumps({{n: [p.name for p in inspect.signature(f).parameters.values() if p.kind is not p.VAR_KEYWORD]
                  for n, f in found.items()}}))
"""


@pytest.mark.parametrize("library", LISTED)
def test_every_argument_of_a_library_is_there_or_refused(library):
    for module in NEEDED[library]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    ours = {
        cls.__name__ if library == "sklearn" else CONVENTIONS[cls.__name__][library].peer.rpartition(".")[2]: cls
        for cls in CLASSES
        if library in CONVENTIONS[cls.__name__]
    }
    program = PROGRAM.format(names=list(ours), listed=LISTED[library])
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    for name, words in json.loads(done.stdout).items():
        cls = ours.get(name, fo.Adam)  # optax's nadam is Adam's
        known = set(inspect.signature(cls).parameters)
        assert len(words) > 2
        for word in set(words) - known:
            with pytest.raises(TypeError, match=f"^{cls.__name__} has no argument {word}: "):
                cls(np.ones(2), **{word: None})


def test_no_reason_for_what_no_class_lacks():
    for word in FOREIGN_ARGUMENTS:
        assert not all(word in inspect.signature(cls).parameters for cls in CLASSES)


@pytest.mark.parametrize("word", FOREIGN_ARGUMENTS)
def test_a_word_beside_others(word):
    for cls in CLASSES:
        if word not in inspect.signature(cls).parameters:
            with pytest.raises(TypeError, match=f"{cls.__name__} has no argument {word}: [a-zA-Z]"):
                cls(np.ones(2), lr=0.1, **{word: 0.5}, backend="numpy")


def test_words_in_groups():
    with pytest.raises(ValueError, match=r"unknown: \['learning_rate', 'lrr'\]; learning_rate: it is called lr$"):
        fo.SGD([{"params": [np.ones(2)], "learning_rate": 0.1, "lrr": 0.1}])
    p = np.ones(2)
    optimizer = fo.SGD(p)
    optimizer.param_groups[0]["clipnorm"] = 1.0
    with pytest.raises(ValueError, match=r"unknown: \['clipnorm'\]; clipnorm: it is called clip_each"):
        optimizer.step(np.ones(2))
    assert p.tolist() == [1, 1]


def test_words_that_nobody_knows_are_pythons_business():
    with pytest.raises(TypeError, match="unexpected keyword argument 'lrr'"):
        fo.Adam(np.ones(2), lrr=0.1)


def test_classes_of_the_users_own_may_have_them():
    class Mine(fo.Adam):
        def __init__(self, params, learning_rate, **more):
            super().__init__(params, lr=learning_rate, **more)

    class Other(fo.SGD):
        def __init__(self, params, epsilon=0.0):
            super().__init__(params, lr=0.1)

    assert Mine(np.ones(2), learning_rate=0.25, eps=1e-3).lr == 0.25
    assert Other(np.ones(2), epsilon=1.0).lr == 0.1
    with pytest.raises(TypeError, match="Other has no argument fused: it chooses among torch's"):
        Other(np.ones(2), fused=True)


def test_signatures_and_copies_are_as_before():
    assert next(iter(inspect.signature(fo.Adam).parameters)) == "params"
    twin = pickle.loads(pickle.dumps(fo.Adam(np.ones(2), lr=0.25)))
    assert (type(twin), twin.lr) == (fo.Adam, 0.25)
