"""`convention=`: the numbers, defaults and refusals of each library, in steps, in files and in training."""

import copy
import importlib.util
import json
import pickle
import subprocess
import sys

import helpers_conventions
import numpy as np
import pytest
from helpers_conventions import CASES, GOLDEN, START, STEPS, gradient, rate
from helpers_model import blobs, classifier

import fastopt as fo
from fastopt.conventions import CONVENTIONS
from fastopt.kernels.formulas import OPTIMIZERS

from .optimizers import snapshot

X, Y = blobs()
BY_NAME = {case.name: case for case in CASES}


def ours(case, backend):
    """The parameter after every step."""
    p = START.copy()
    options = dict(case.options) if case.defaults else {**case.options, "lr": rate}  # a schedule
    optimizer = getattr(fo, case.ours)(p, convention=case.convention, backend=backend, **options)
    path = []
    for step in range(STEPS):
        optimizer.step(gradient(p, step))
        path.append(p.copy())
    return path


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", BY_NAME)
def test_numbers_are_the_librarys_as_it_gave_them(name, backend):
    path = ours(BY_NAME[name], backend)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    rtol, atol = BY_NAME[name].near
    for step, expected in golden.items():
        np.testing.assert_allclose(path[int(step) - 1], expected, rtol=rtol, atol=atol)


NEEDED = {
    "torch": ["torch"], "keras": ["torch", "keras"], "optax": ["jax", "optax"], "sklearn": ["sklearn"], "paper": [],
}  # fmt: skip


@pytest.mark.parametrize("library", NEEDED)
def test_numbers_are_the_librarys_as_it_gives_them(library):
    for module in NEEDED[library]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    command = [sys.executable, helpers_conventions.__file__, library]
    done = subprocess.run(command, capture_output=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr.decode()
    paths = json.loads(done.stdout)
    assert len(paths) > 1
    for name, path in paths.items():
        rtol, atol = BY_NAME[name].near
        np.testing.assert_allclose(ours(BY_NAME[name], "numpy"), path, rtol=rtol, atol=atol, err_msg=name)


def test_every_case_is_in_the_file_and_every_row_in_a_case():
    assert list(json.loads(GOLDEN.read_text(encoding="utf-8"))) == list(BY_NAME)
    rows = {row for of_class in CONVENTIONS.values() for peer in of_class.values() for row in peer.rows.values()}
    assert rows == set(OPTIMIZERS)
    used = {getattr(fo, c.ours)(lr=0.1, convention=c.convention, **c.options).rule for c in CASES}
    ours_alone = {row for row in OPTIMIZERS if row.endswith(("rmsprop_centered", "adamw_amsgrad", "amsgrad"))}
    assert used >= rows - ours_alone - {"momentum", "rmsprop_momentum", "rmsprop_centered_momentum"}
    of_conventions = {(c.ours, c.convention) for c in CASES}
    assert of_conventions == {(cls, name) for cls, peers in CONVENTIONS.items() for name in peers}


def test_conventions_differ():
    """So that none passes for another: optax's are torch's without dampening and eps_root, and Lion is one for all."""
    paths = {}
    for cls, peers in CONVENTIONS.items():
        for name in peers:
            p = START.copy()
            more = {"momentum": 0.9} if cls == "SGD" else {}
            decay = {"weight_decay": 0.1, "nesterov": False} if cls == "SGD" else {"weight_decay": 0.1}
            optimizer = getattr(fo, cls)(p, lr=rate, convention=name, backend="numpy", **more, **decay)
            for step in range(STEPS):
                optimizer.step(gradient(p, step))
            paths[cls, name] = p
    same = [
        (a, b) for a in paths for b in paths if a < b and a[0] == b[0] and np.allclose(paths[a], paths[b], rtol=1e-9)
    ]
    of_lion = [(("Lion", a), ("Lion", b)) for a, b in (("keras", "optax"), ("keras", "paper"), ("optax", "paper"))]
    of_torch = [((cls, "optax"), (cls, "torch")) for cls in ("SGD", "Adadelta", "Adam", "AdamW")]
    assert sorted(same) == sorted([*of_lion, *of_torch])


# ---------------------------------------------------------------- defaults and refusals


def test_defaults_are_those_of_the_convention_unless_given():
    keras = fo.RMSprop(convention="keras")
    assert [keras.param_groups[0][name] for name in ("lr", "alpha", "eps")] == [1e-3, 0.9, 1e-7]
    assert fo.RMSprop(convention="keras", eps=1e-3).param_groups[0]["eps"] == 1e-3
    assert fo.RMSprop(eps=None).param_groups[0]["eps"] == 1e-8
    mlp = fo.SGD(convention="sklearn").param_groups[0]
    assert (mlp["lr"], mlp["momentum"], mlp["nesterov"]) == (1e-3, 0.9, True)
    assert fo.AdamW(convention="keras").param_groups[0]["weight_decay"] == 0.004
    assert fo.AdamW(convention="optax", lr=0.1).param_groups[0]["weight_decay"] == 1e-4
    assert fo.Adagrad(np.ones(2), convention="keras").states[0][0].tolist() == [0.1, 0.1]


REFUSED = [
    (fo.Adam, {"convention": "tensorflow"}, ValueError, "unknown convention 'tensorflow'; known: torch, keras, optax"),
    (fo.Adam, {"convention": None}, TypeError, "convention must be one of torch, keras, optax, sklearn; got None"),
    (fo.AdamW, {"convention": "sklearn"}, ValueError, "sklearn has no AdamW; AdamW has the conventions torch, keras"),
    (fo.Adagrad, {"convention": "sklearn"}, ValueError, "sklearn has no Adagrad"),
    (fo.RMSprop, {"convention": "sklearn"}, ValueError, "sklearn has no RMSprop"),
    (fo.Adam, {"convention": "optax"}, TypeError, "optax.adam has no default learning rate: give lr"),
    (fo.SGD, {"convention": "keras", "dampening": 0.1}, ValueError, "keras.optimizers.SGD has no dampening; got damp"),
    (fo.SGD, {"convention": "optax", "lr": 1, "dampening": 0.1}, ValueError, "optax.sgd has no dampening"),
    (fo.SGD, {"convention": "sklearn", "dampening": 0.1}, ValueError, "scikit-learn's solver sgd has no dampening"),
    (fo.Adagrad, {"convention": "keras", "lr_decay": 0.1}, ValueError, "no lr_decay; .*schedules.InverseTime"),
    (fo.Adagrad, {"convention": "optax", "lr": 1, "lr_decay": 0.1}, ValueError, "optax.adagrad has no lr_decay"),
    (fo.Adam, {"convention": "sklearn", "amsgrad": True}, ValueError, "scikit-learn's solver adam has no amsgrad"),
    (fo.AdamW, {"convention": "optax", "lr": 1, "amsgrad": True}, ValueError, "optax.adamw has no amsgrad"),
    (fo.AdamW, {"convention": "optax", "lr": 1, "amsgrad": True, "nesterov": True}, ValueError, "no amsgrad with nest"),
    (fo.Adam, {"convention": "optax", "lr": 1, "amsgrad": True, "nesterov": True}, ValueError, "no amsgrad with nest"),
    (fo.Adam, {"nesterov": True}, ValueError, "torch.optim.Adam has no nesterov; .*in the convention optax"),
    (fo.AdamW, {"convention": "keras", "nesterov": True}, ValueError, "keras.optimizers.AdamW has no nesterov"),
    (fo.Adam, {"convention": "sklearn", "nesterov": True}, ValueError, "solver adam has no nesterov"),
    (fo.Adam, {"eps_root": 0.1}, ValueError, "torch.optim.Adam has no eps_root; got eps_root=0.1"),
    (fo.AdamW, {"convention": "keras", "eps_root": 0.1}, ValueError, "keras.optimizers.AdamW has no eps_root"),
    (fo.Adam, {"convention": "sklearn", "eps_root": 0.1}, ValueError, "solver adam has no eps_root"),
]


@pytest.mark.parametrize(("cls", "arguments", "error", "message"), REFUSED)
def test_what_a_library_does_not_have_is_refused(cls, arguments, error, message):
    with pytest.raises(error, match=message):
        cls(np.ones(2), **arguments)


def test_refused_between_steps_too(backend):
    p = np.ones(2)
    optimizer = fo.Adam(p, convention="sklearn", backend=backend)
    optimizer.step(np.ones(2))
    before = snapshot(optimizer, p)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match="has no amsgrad"):
        optimizer.step(np.ones(2))
    optimizer.param_groups[0]["amsgrad"] = False
    assert snapshot(optimizer, p) == before
    with pytest.raises(AttributeError):
        optimizer.convention = "keras"


def test_nesterov_without_momentum_is_plain_outside_torch(backend):
    for convention in ("keras", "optax", "sklearn"):
        p = np.array([1.0])
        fo.SGD(p, 0.5, momentum=0.0, nesterov=True, convention=convention, backend=backend).step(np.ones(1))
        assert p.tolist() == [0.5]


def test_a_guarded_start_stands_still_where_others_divide_by_zero():
    p, q = np.ones(2), np.ones(2)
    g = np.array([0.0, 3.0])
    fo.Adagrad(p, 0.5, eps=0.0, initial_accumulator_value=0.0, convention="optax", backend="numpy").step(g)
    fo.Adagrad(q, 0.5, eps=0.0, initial_accumulator_value=0.0, convention="keras", backend="numpy").step(g)
    assert p.tolist() == [1.0, 0.5]
    assert np.isnan(q[0])


# ---------------------------------------------------------------- saved, copied, trained with


def test_saved_with_the_state_and_refused_by_another_convention():
    p = np.ones(3)
    optimizer = fo.SGD(p, momentum=0.5, convention="keras", backend="numpy")
    optimizer.step(np.ones(3))
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["convention"] == "keras"
    assert list(saved["state"][0]) == ["step", "velocity"]
    other = fo.SGD(np.ones(3), convention="keras", backend="numpy")
    other.load_state_dict(saved)
    np.testing.assert_array_equal(other.states[0][0], optimizer.states[0][0])
    for convention in ("torch", "sklearn"):
        another = fo.SGD(np.ones(3), convention=convention, momentum=0.25, nesterov=False)
        before = snapshot(another)
        with pytest.raises(ValueError, match=f"is one of the convention 'keras', this SGD is of '{convention}'"):
            another.load_state_dict(saved)
        assert snapshot(another) == before
    for name in ("convention", "lr_step"):
        del saved["param_groups"][0][name]  # torch's own, and our first version's
    with pytest.raises(ValueError, match="is one of the convention 'torch'"):
        other.load_state_dict(saved)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_have_the_convention(duplicate):
    optimizer = fo.Adam(np.ones(2), lr=0.5, convention="optax", eps_root=1e-3, backend="numpy")
    optimizer.step(np.ones(2))
    twin = duplicate(optimizer)
    assert twin.convention == "optax"
    assert twin.rule == "adam_eps_root"
    assert repr(twin) == repr(optimizer)


def test_repr_shows_a_convention_other_than_torchs():
    assert repr(fo.Adagrad(convention="keras")) == (
        "Adagrad(lr=0.001, lr_decay=0.0, eps=1e-07, weight_decay=0.0, initial_accumulator_value=0.1, maximize=False,"
        " convention='keras', backend='cpu')"
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: fo.Adam(convention="keras", weight_decay=0.1),
        lambda: fo.SGD(convention="keras", momentum=0.9, weight_decay=0.1),
        lambda: fo.SGD(lr=0.05, convention="sklearn"),
        lambda: fo.RMSprop(lr=1e-3, convention="optax", momentum=0.5, centered=True),
        lambda: fo.Adagrad(lr=0.05, convention="optax"),
        lambda: fo.Adam(lr=1e-3, convention="optax", amsgrad=True),
    ],
)
def test_models_train_with_it_and_go_on_from_a_file(make, path):
    paths = {}
    for backend in ("cpu", "numpy"):
        whole, first = classifier(backend), classifier(backend)
        for model in (whole, first):
            model.compile(make(), "sparse_categorical_crossentropy")
        whole.fit(X, Y, epochs=3, batch_size=30)
        first.fit(X, Y, epochs=1, batch_size=30)
        first.save(path)
        second = fo.load_model(path)
        assert second.optimizer.convention == first.optimizer.convention
        second.fit(X, Y, epochs=3, batch_size=30, initial_epoch=1)
        for a, b in zip(whole.get_weights(), second.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        paths[backend] = whole.get_weights()
    for a, b in zip(paths["cpu"], paths["numpy"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # float32, sums in other orders


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_a_model_trains_like_scikit_learns(solver, backend):
    network = pytest.importorskip("sklearn.neural_network")
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 6)), rng.integers(0, 3, 60)
    peer = network.MLPClassifier(
        (8,), activation="tanh", solver=solver, alpha=0.0, batch_size=20, learning_rate_init=0.05, shuffle=False,
        random_state=0,
    )  # fmt: skip
    peer.partial_fit(x, y, classes=[0, 1, 2])
    optimizer = peer._optimizer
    states = [optimizer.velocities] if solver == "sgd" else [optimizer.ms, optimizer.vs]

    layers = [fo.Dense(8, "tanh"), fo.Dense(3, "softmax")]
    model = fo.Sequential(layers, dtype="float64", backend=backend, inputs=6)
    model.set_weights([a for pair in zip(peer.coefs_, peer.intercepts_, strict=True) for a in pair])
    cls = {"sgd": fo.SGD, "adam": fo.Adam}[solver]
    model.compile(cls(lr=0.05, convention="sklearn"), "sparse_categorical_crossentropy")
    order = [i for pair in zip(range(2), range(2, 4), strict=True) for i in pair]  # theirs: weights, then biases
    for i, ours_ in zip(order, model.optimizer.states, strict=True):
        for own, theirs in zip(ours_, states, strict=True):
            own[...] = theirs[i]
    model.optimizer.advance(3)
    before = model.get_weights()
    peer.partial_fit(x, y)
    model.fit(x, y, batch_size=20, shuffle=False)
    assert not np.allclose(before[0], model.get_weights()[0])
    for own, theirs in zip(model.get_weights()[::2], peer.coefs_, strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-9, atol=1e-12)
