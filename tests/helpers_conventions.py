"""Every convention of every optimizer on one small problem, by the library itself: what `test_conventions.py` checks.

Run as a program, it renews the entries of some libraries, which must be installed, in `golden_conventions.json`; the
file holds the numbers that the libraries gave, so that the tests need none of them:

    python tests/helpers_conventions.py renew torch sklearn paper
    python tests/helpers_conventions.py renew keras             # with torch
    python tests/helpers_conventions.py renew optax             # with jax

With nothing but the name of a library it writes that one's whole paths to stdout. The tests do so instead of importing
the library: JAX warns of every fork once it is imported, and Keras keeps float64 for the whole process.
"""

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastopt.conventions import CONVENTIONS

GOLDEN = Path(__file__).with_name("golden_conventions.json")
STEPS = 20
KEPT = (1, 2, 10, 11, 20)  # the steps whose parameters are in the file
START = np.array([1.0, -2.0, 0.5])
TARGET, CURVATURE = np.array([0.3, 0.7, -1.1]), np.array([4.0, 0.5, 1.5])


def gradient(p: np.ndarray, step: int) -> np.ndarray:
    """The gradient of a bowl that shakes, at `step` (from 0); float64."""
    return CURVATURE * (p - TARGET) * (1 + 0.8 * np.sin(2.0 * step + np.arange(3)))


def rate(step: int) -> float:
    """A learning rate that falls in the middle: there momentum with and without the rate in it go different ways."""
    return 0.05 if step < STEPS // 2 else 0.01


class Case(NamedTuple):
    name: str
    convention: str
    ours: str  # class
    options: dict[str, Any]  # of ours, beyond convention and lr
    peer: str  # class or function of the library
    theirs: dict[str, Any]  # its options, beyond the learning rate
    defaults: bool = False  # whether the library's own learning rate is to be used
    near: tuple[float, float] = 1e-11, 1e-13  # how far off our numbers may be, relatively and absolutely


def peer_of(cls: str, library: str) -> str:
    """The class or function of a library, or the entry of PAPERS."""
    if library in ("sklearn", "paper"):
        return cls + "Optimizer" * (library == "sklearn")
    return CONVENTIONS[cls][library].peer.rpartition(".")[2]


def _cases() -> list[Case]:
    found = []

    def add(name: str, ours: str, options: dict[str, Any], peer: str, theirs: dict[str, Any], **more: Any) -> None:
        convention = name.partition(" ")[0]
        found.append(Case(name, convention, ours, options, peer, theirs, **more))

    eps, decay, betas = {"eps": 0.05}, {"weight_decay": 0.1}, {"betas": (0.8, 0.9)}
    own_betas = {"keras": {"beta_1": 0.8, "beta_2": 0.9}, "optax": {"b1": 0.8, "b2": 0.9}, "torch": betas}

    # torch's options are all tested in the NumPy reference's table; here its defaults. optax has no default for lr.
    for cls, peers in CONVENTIONS.items():
        for library in peers:
            add(f"{library} {cls} as it is", cls, {}, peer_of(cls, library), {}, defaults=library != "optax")
    for cls in ("Adam", "AdamW"):
        add(f"optax N{cls.lower()} as it is", cls, {"nesterov": True}, f"n{cls.lower()}", {})

    momentum = {"momentum": 0.9}
    for nesterov in (False, True):
        both = {**momentum, "nesterov": nesterov}
        word = "nesterov" if nesterov else "momentum"
        add(f"keras SGD {word}", "SGD", {**both, **decay}, "SGD", {**both, **decay})
        add(f"optax SGD {word}", "SGD", {**both, **decay}, "sgd", {**both, **decay})
        add(f"sklearn SGD {word}", "SGD", both, "SGDOptimizer", both)
    add("keras SGD decay", "SGD", {**decay, "nesterov": True}, "SGD", {**decay, "nesterov": True})
    add("sklearn SGD plain", "SGD", {"momentum": 0.0}, "SGDOptimizer", {"momentum": 0.0})

    start = {"initial_accumulator_value": 0.0}
    add("keras Adagrad", "Adagrad", {**eps, **decay}, "Adagrad", {"epsilon": 0.05, **decay})
    add("optax Adagrad", "Adagrad", {**eps, **decay}, "adagrad", {**eps, **decay})
    add("optax Adagrad from 0", "Adagrad", {"eps": 0.0, **start}, "adagrad", {"eps": 0.0, **start})

    for cls in ("SGD", "Adagrad", "RMSprop", "Adam", "AdamW"):
        # Keras rounds the norm to float32, whatever the gradient is.
        add(f"keras {cls} clipnorm", cls, {"clip_each": 0.5}, cls, {"clipnorm": 0.5}, near=(1e-8, 1e-8))
    add("keras Adam clipvalue", "Adam", {"clip_value": 0.5}, "Adam", {"clipvalue": 0.5})

    ours = {**eps, **decay, "rho": 0.8}
    add("keras Adadelta", "Adadelta", ours, "Adadelta", {"rho": 0.8, "epsilon": 0.05, **decay})
    add("optax Adadelta", "Adadelta", ours, "adadelta", ours)

    for centered in (False, True):
        for mu in (0.0, 0.7):
            both = {"centered": centered, "momentum": mu}
            word = "RMSprop" + " centered" * centered + " momentum" * (mu > 0)
            ours = {**both, **eps, **decay, "alpha": 0.8}
            add(f"keras {word}", "RMSprop", ours, "RMSprop", {**both, "epsilon": 0.05, "rho": 0.8, **decay})
            add(f"optax {word}", "RMSprop", ours, "rmsprop", {**both, **eps, "decay": 0.8, **decay})

    for amsgrad in (False, True):
        for cls in ("Adam", "AdamW"):
            word = cls + " amsgrad" * amsgrad
            ours = {**betas, **eps, **decay, "amsgrad": amsgrad}
            add(f"keras {word}", cls, ours, cls, {**own_betas["keras"], "epsilon": 0.05, **decay, "amsgrad": amsgrad})
            if cls == "Adam" or not amsgrad:
                ours = {**ours, "eps_root": 0.02}
                peer = "amsgrad" if amsgrad else cls.lower()
                theirs = {**own_betas["optax"], **eps, "eps_root": 0.02, **decay}
                add(f"optax {word}", cls, ours, peer, theirs)
                if not amsgrad:
                    add(f"optax {word} nesterov", cls, {**ours, "nesterov": True}, peer, {**theirs, "nesterov": True})
    for library, theirs in ("paper", {"beta1": 0.8, "beta2": 0.9}), *list(own_betas.items())[:2]:
        add(f"{library} Lion", "Lion", {**betas, **decay}, peer_of("Lion", library), {**theirs, **decay})
    theirs = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.05}
    add("keras NAdam", "NAdam", {**betas, **eps, **decay}, "Nadam", {**theirs, **decay})
    add("sklearn Adam", "Adam", {**betas, **eps}, "AdamOptimizer", theirs)
    return found


CASES = _cases()


def by_torch(case: Case) -> list[np.ndarray]:
    import torch

    torch.set_default_dtype(torch.float64)  # of NAdam's product of momenta
    p = torch.nn.Parameter(torch.tensor(START))
    optimizer = getattr(torch.optim, case.peer)([p], **case.theirs)
    path = []
    for step in range(STEPS):
        if not case.defaults:
            optimizer.param_groups[0]["lr"] = rate(step)
        p.grad = torch.tensor(gradient(p.detach().numpy(), step))
        optimizer.step()
        path.append(p.detach().numpy().copy())
    return path


def by_keras(case: Case) -> list[np.ndarray]:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.backend.set_floatx("float64")  # of the learning rate
    p = keras.Variable(START, dtype="float64")
    optimizer = getattr(keras.optimizers, case.peer)(**case.theirs)
    path = []
    for step in range(STEPS):
        if not case.defaults:
            optimizer.learning_rate = rate(step)
        g = gradient(np.array(p.value.tolist()), step)
        optimizer.apply([keras.ops.convert_to_tensor(g, dtype="float64")], [p])
        path.append(np.array(p.value.tolist()))
    return path


def by_optax(case: Case) -> list[np.ndarray]:
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    rates = jax.numpy.array([rate(step) for step in range(STEPS)])
    options = dict(case.theirs)
    # Few of its optimizers take weight decay; the gradient of an L2 penalty is added before the others.
    takes_decay = "weight_decay" in inspect.signature(getattr(optax, case.peer)).parameters
    before = [] if takes_decay else [optax.add_decayed_weights(options.pop("weight_decay", 0.0))]
    chain = optax.chain(*before, getattr(optax, case.peer)(lambda step: rates[step], **options))
    p = jax.numpy.array(START)
    state = chain.init(p)
    path = []
    for step in range(STEPS):
        updates, state = chain.update(jax.numpy.array(gradient(np.asarray(p), step)), state, p)
        p = optax.apply_updates(p, updates)
        path.append(np.array(p))
    return path


def by_sklearn(case: Case) -> list[np.ndarray]:
    from sklearn.neural_network import MLPClassifier, _stochastic_optimizers

    own = MLPClassifier().get_params()  # the optimizers have defaults of their own, which no user sees
    words = {"SGDOptimizer": {"momentum": "momentum", "nesterov": "nesterovs_momentum"}}.get(
        case.peer, {"beta_1": "beta_1", "beta_2": "beta_2", "epsilon": "epsilon"}
    )
    options = {name: own[word] for name, word in words.items()} | case.theirs
    p = START.copy()
    optimizer = getattr(_stochastic_optimizers, case.peer)([p], own["learning_rate_init"], **options)
    path = []
    for step in range(STEPS):
        if not case.defaults:
            optimizer.learning_rate_init = optimizer.learning_rate = rate(step)
        optimizer.update_params([p], [gradient(p, step)])
        path.append(p.copy())
    return path


def by_paper(case: Case) -> list[np.ndarray]:
    """By the formula that a paper gives, for optimizers that torch lacks."""
    options, p, states, path = dict(case.theirs), START.copy(), {}, []
    for step in range(STEPS):
        if not case.defaults:
            options["lr"] = rate(step)
        p = PAPERS[case.peer](p, gradient(p, step), states, **options)
        path.append(p)
    return path


def lion(p, g, states, lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Chen et al. 2023, algorithm 2."""
    m = states.get("m", 0.0)
    c = beta1 * m + (1 - beta1) * g
    states["m"] = beta2 * m + (1 - beta2) * g
    return p - lr * (np.sign(c) + weight_decay * p)


PAPERS: dict[str, Any] = {"Lion": lion}
PEERS = {"torch": by_torch, "keras": by_keras, "optax": by_optax, "sklearn": by_sklearn, "paper": by_paper}


def renew(libraries: tuple[str, ...]) -> None:
    """Write the file anew: the entries of these libraries as they give them now, the others as they were."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for case in CASES:
        if case.convention in libraries:
            path = PEERS[case.convention](case)
            golden[case.name] = {str(step): path[step - 1].tolist() for step in KEPT}
    lines = (f'  "{case.name}": {json.dumps(golden[case.name])}' for case in CASES)
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main(first: str, *libraries: str) -> None:
    if first == "renew":
        renew(libraries)
        return
    mine = [case for case in CASES if case.convention == first]
    print(json.dumps({case.name: np.array(PEERS[first](case)).tolist() for case in mine}))


if __name__ == "__main__":
    main(*sys.argv[1:])
