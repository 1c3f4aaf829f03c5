"""The NumPy reference against the libraries whose conventions it follows, where they are installed."""

import math

import numpy as np
import pytest

from fastopt.conventions import CONVENTIONS
from fastopt.kernels import reference
from fastopt.kernels.spec import Batches, DenseSpec, LossSpec, OptimizerSteps, Update

COMMON = {"lr": 0.03, "weight_decay": 0.1, "maximize": False, "l1": 0.0, "clip_value": None}
DECAY = {"momentum": 0.9, "dampening": 0.0, "nesterov": True}
RMS = {"alpha": 0.9, "eps": 1e-3, "momentum": 0.0}
HEAVY = {**RMS, "momentum": 0.7}
ADAM = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
NADAM = {"momentum_decay": 0.1, "decoupled_weight_decay": False}
# rule, our options beyond COMMON, torch's class, torch's options beyond COMMON
PEERS = [
    ("sgd", {}, "SGD", {}),
    ("momentum", DECAY, "SGD", DECAY),
    ("momentum", {**DECAY, "dampening": 0.3, "nesterov": False}, "SGD", {"momentum": 0.9, "dampening": 0.3}),
    ("adagrad", {"lr_decay": 0.2, "eps": 1e-3}, "Adagrad", {"lr_decay": 0.2, "eps": 1e-3}),
    ("adadelta", {"rho": 0.8, "eps": 1e-3, "decoupled": False}, "Adadelta", {"rho": 0.8, "eps": 1e-3}),
    ("rmsprop", RMS, "RMSprop", RMS),
    ("rmsprop_momentum", HEAVY, "RMSprop", HEAVY),
    ("rmsprop_centered", RMS, "RMSprop", {**RMS, "centered": True}),
    ("rmsprop_centered_momentum", HEAVY, "RMSprop", {**HEAVY, "centered": True}),
    ("adam", ADAM, "Adam", {}),
    ("amsgrad", ADAM, "Adam", {"amsgrad": True}),
    ("nadam", {**ADAM, **NADAM}, "NAdam", NADAM),
    ("nadam", {**ADAM, **NADAM, "decoupled_weight_decay": True}, "NAdam", {**NADAM, "decoupled_weight_decay": True}),
    ("adamw", ADAM, "AdamW", {}),
    ("adamw_amsgrad", ADAM, "AdamW", {"amsgrad": True}),
]
STATES = {
    "SGD": ["momentum_buffer"],
    "Adagrad": ["sum"],
    "Adadelta": ["square_avg", "acc_delta"],
    "RMSprop": ["square_avg", "grad_avg", "momentum_buffer"],
    "NAdam": ["exp_avg", "exp_avg_sq"],
    "Adam": ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
}


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(("rule", "ours", "peer", "theirs"), PEERS)
def test_updates_are_torchs(rule, ours, peer, theirs, maximize):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    p = rng.normal(size=(4, 5))
    q = torch.nn.Parameter(torch.tensor(p))
    common = {**COMMON, "maximize": maximize}
    if "beta1" in ours:
        theirs = {**theirs, "betas": (ours["beta1"], ours["beta2"]), "eps": ours["eps"]}
    known = {name: value for name, value in common.items() if name not in ("l1", "clip_value")}  # torch has neither
    optimizer = getattr(torch.optim, peer)([q], **known, **theirs)
    names = [name for name in STATES[peer.removesuffix("W")] if _has(rule, name)]
    states = tuple(np.zeros_like(p) for _ in names)
    for step in range(1, 21):
        g = rng.normal(size=p.shape) * 3.0 ** -(step % 5)
        q.grad = torch.tensor(g)
        optimizer.step()
        reference.update([Update(rule, p, g, states, {**common, **ours}, step)])
        np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-12, atol=1e-14)
        for name, s in zip(names, states, strict=True):
            np.testing.assert_allclose(s, optimizer.state[q][name].numpy(), rtol=1e-12, atol=1e-14)


def _has(rule, state):
    return {
        "momentum_buffer": "momentum" in rule,
        "grad_avg": "centered" in rule,
        "max_exp_avg_sq": "amsgrad" in rule,
    }.get(state, True)


def test_every_rule_of_torchs_convention_is_here():
    """The others are checked where the conventions are: in test_conventions.py."""
    rows = {row for peers in CONVENTIONS.values() if "torch" in peers for row in peers["torch"].rows.values()}
    assert {rule for rule, *_ in PEERS} == rows


@pytest.mark.parametrize("name", [*reference.ACTIVATIONS, "softmax"])
def test_activations_are_torchs(name):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    functions = {
        "linear": lambda z: z * 1,
        "softmax": lambda z: torch.softmax(z, dim=1),
        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    }
    z = np.linspace(-8, 8, 81).reshape(9, 9)
    t = torch.tensor(z, requires_grad=True)
    expected = functions.get(name, getattr(functional, name, None))(t)
    y = np.empty_like(z)
    reference.activate(name, z, y)
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-12, atol=1e-15)
    if name != "softmax":
        expected.sum().backward()
        row = reference.ACTIVATIONS[name]
        slope = row.slope(z if row.uses == "z" else y)
        # GELU's tanh form multiplies 1 - tanh^2, which cancels to an error of 2e-16, by up to 30 here
        atol = 1e-14 if name == "gelu_tanh" else 1e-15
        np.testing.assert_allclose(slope, t.grad.numpy(), rtol=1e-12, atol=atol)


def test_losses_are_torchs():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(1)
    z = 3 * rng.normal(size=(8, 5))
    real, bits = rng.normal(size=(8, 5)), rng.integers(0, 2, (8, 5)).astype(float)
    labels, soft = rng.integers(0, 5, 8), rng.dirichlet(np.ones(5), 8)
    cases = [
        (LossSpec("mean_squared_error"), real, functional.mse_loss),
        (LossSpec("mean_absolute_error"), real, functional.l1_loss),
        (LossSpec("huber", {"delta": 0.7}), real, lambda a, b: functional.huber_loss(a, b, delta=0.7)),
        (LossSpec("binary_crossentropy"), bits, functional.binary_cross_entropy_with_logits),
        (LossSpec("sparse_categorical_crossentropy"), labels, functional.cross_entropy),
        (LossSpec("categorical_crossentropy"), soft, functional.cross_entropy),
    ]
    for name, targets in [("sparse_categorical_crossentropy", labels), ("categorical_crossentropy", soft)]:
        spec = LossSpec(name, {"label_smoothing": 0.15})
        cases.append((spec, targets, lambda a, b: functional.cross_entropy(a, b, label_smoothing=0.15)))
    for spec, targets, peer in cases:
        t = torch.tensor(z, requires_grad=True)
        expected = peer(t, torch.tensor(targets))
        expected.backward()
        gradient = np.empty_like(z)
        assert reference.loss(spec, z, targets, gradient) == pytest.approx(expected.item(), rel=1e-13)
        np.testing.assert_allclose(gradient, t.grad.numpy(), rtol=1e-12, atol=1e-16)


def test_losses_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    z, labels = 3 * rng.normal(size=(40, 4)), np.arange(40) % 4
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    sparse = reference.loss(LossSpec("sparse_categorical_crossentropy"), z, labels)
    assert sparse == pytest.approx(metrics.log_loss(labels, p), rel=1e-12)
    signs = np.where(labels % 2, 1.0, -1.0)
    hinge = reference.loss(LossSpec("hinge"), z[:, :1], signs[:, None])
    assert hinge == pytest.approx(metrics.hinge_loss(signs, z[:, 0]), rel=1e-12)


def test_a_network_trains_like_scikit_learns():
    network = pytest.importorskip("sklearn.neural_network")
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 6)), rng.integers(0, 3, 60)
    peer = network.MLPClassifier(
        (8,), activation="tanh", solver="sgd", alpha=0.0, batch_size=20, learning_rate_init=0.2, momentum=0.0,
        shuffle=False, random_state=0,
    )  # fmt: skip
    peer.partial_fit(x, y, classes=[0, 1, 2])
    # partial_fit has taken one pass; ours goes on from there for five more
    params = [a.copy() for pair in zip(peer.coefs_, peer.intercepts_, strict=True) for a in pair]
    layers = [DenseSpec(6, 8, "tanh"), DenseSpec(8, 3, "softmax")]
    ours = reference.Network(
        layers, params, np.float64, LossSpec("sparse_categorical_crossentropy"), ["accuracy"]
    )
    options = {"weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None}
    batches = Batches(x, y, np.arange(60), 20)
    for _ in range(5):
        peer.partial_fit(x, y)
        totals = ours.train(batches, OptimizerSteps("sgd", [()] * 4, options, np.full(3, 0.2)), 0)
        assert totals.losses.mean() == pytest.approx(peer.loss_, rel=1e-12)
    np.testing.assert_allclose(ours.predict(x), peer.predict_proba(x), rtol=1e-10)
    assert ours.evaluate(x, y).metrics["accuracy"] == peer.score(x, y)
    assert math.isfinite(totals.losses.sum())
