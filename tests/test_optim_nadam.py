"""NAdam and torch.optim.NAdam go on from each other's state_dict, with the product of momenta that torch keeps."""

import numpy as np
import pytest

import fastopt as fo

torch = pytest.importorskip("torch", reason="in the extra `torch`")

OPTIONS = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1, "momentum_decay": 0.05}


def gradient(p, step):
    return np.cos(p + step)


def ours(p, optimizer, steps):
    for step in steps:
        optimizer.step(gradient(p, step))


def theirs(p, optimizer, steps):
    for step in steps:
        p.grad = torch.tensor(gradient(p.detach().numpy(), step))
        optimizer.step()


@pytest.mark.parametrize("decoupled", [False, True])
def test_state_dicts_go_both_ways(decoupled, backend):
    options = {**OPTIONS, "decoupled_weight_decay": decoupled}
    start = np.array([1.0, -2.0, 0.5])
    p, q = start.copy(), torch.nn.Parameter(torch.tensor(start))
    one, other = fo.NAdam(p, backend=backend, **options), torch.optim.NAdam([q], **options)
    ours(p, one, range(10))
    theirs(q, other, range(10))
    np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-12)
    saved, of_torch = one.state_dict(), other.state_dict()
    np.testing.assert_allclose(saved["state"][0]["mu_product"], of_torch["state"][0]["mu_product"], rtol=1e-12)
    assert set(saved["state"][0]) == set(of_torch["state"][0])

    a, b = p.copy(), torch.nn.Parameter(torch.tensor(p))
    into_ours, into_theirs = fo.NAdam(a, backend=backend), torch.optim.NAdam([b])
    into_ours.load_state_dict(of_torch)
    entry = {name: torch.as_tensor(value) for name, value in saved["state"][0].items()}
    into_theirs.load_state_dict({**saved, "state": {0: entry}})
    ours(p, one, range(10, 20))
    ours(a, into_ours, range(10, 20))
    theirs(b, into_theirs, range(10, 20))
    np.testing.assert_allclose(a, p, rtol=1e-12)
    np.testing.assert_allclose(b.detach().numpy(), p, rtol=1e-12)
    assert into_ours.param_groups[0]["decoupled_weight_decay"] is decoupled


def test_long_after_the_product_has_vanished(backend):
    p, q = np.array([1.0]), torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    one, other = fo.NAdam(p, lr=1e-3, backend=backend), torch.optim.NAdam([q], lr=1e-3)
    for optimizer in (one, other):
        saved = optimizer.state_dict()
        moments = {"exp_avg": torch.ones(1).double(), "exp_avg_sq": torch.ones(1).double()}
        state = {"step": torch.tensor(10.0**6), "mu_product": torch.tensor(0.0), **moments}
        optimizer.load_state_dict({**saved, "state": {0: state}})
    ours(p, one, range(3))
    theirs(q, other, range(3))
    np.testing.assert_allclose(p, q.detach().numpy(), rtol=1e-12)
    assert 0 <= one.state_dict()["state"][0]["mu_product"] < 1e-17


def test_steps_after_a_change_of_beta1_are_torchs_own():
    import fastopt.torch

    results = []
    for cls in (fastopt.torch.NAdam, torch.optim.NAdam):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        optimizer = cls([p], **OPTIONS)
        theirs(p, optimizer, range(5))
        optimizer.param_groups[0]["betas"] = (0.5, 0.9)
        theirs(p, optimizer, range(5, 12))
        results.append((p.detach().numpy(), float(optimizer.state[p]["mu_product"])))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-12)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-12)


def test_models_with_it_go_on_from_a_file(path, backend):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 4)).astype("float32"), rng.integers(0, 3, 60)

    def compiled():
        model = fo.Sequential([fo.Dense(8, "tanh"), fo.Dense(3, "softmax")], inputs=4, seed=1, backend=backend)
        model.compile(fo.NAdam(lr=0.01), "sparse_categorical_crossentropy")
        return model

    whole, first = compiled(), compiled()
    whole.fit(x, y, epochs=2, batch_size=20)
    first.fit(x, y, epochs=1, batch_size=20)
    first.save(path)
    second = fo.load_model(path, backend=backend)
    second.fit(x, y, epochs=2, batch_size=20, initial_epoch=1)
    for a, b in zip(whole.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
