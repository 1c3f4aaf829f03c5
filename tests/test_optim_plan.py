"""Steps one after another on the same plan: what may change between them, on both backends with the same bits."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastopt as fo

SHAPES = [(4, 3), (3,), (), (0,), (2, 5), (7,)]


def arrays(rng):
    """Float32 and float64, contiguous, transposed, a view with gaps, and one in foreign byte order."""
    made = [np.asarray(rng.standard_normal(shape), ("float32", "float64")[i % 2]) for i, shape in enumerate(SHAPES)]
    made[0] = np.asfortranarray(made[0])
    made[4] = rng.standard_normal((2, 10)).astype("float32")[:, ::2]
    made[5] = made[5].astype(made[5].dtype.newbyteorder())
    return made


def gradients(rng, params, missing=0.0):
    made = []
    for p in params:
        g = rng.standard_normal(p.shape).astype(p.dtype.newbyteorder("="))
        layout = rng.integers(4)
        if layout == 1:
            g = np.array(g, order="F")
        elif layout == 2:
            g = np.stack([g, g], axis=-1)[..., 0]
        elif layout == 3:
            g = g.astype(p.dtype)
        made.append(None if rng.random() < missing else g)
    return made


def run(backend, rng, change, make=fo.Adam, missing=0.3, **options):
    params = arrays(rng)
    opt = make([{"params": params[:2], "lr": 0.3}, {"params": params[2:]}], backend=backend, **options)
    for step in range(8):
        opt = change(opt, step) or opt
        now = [p for group in opt.param_groups for p in group["params"]]
        made = gradients(rng, now, missing)
        opt.step([made[:2], made[2:]], grad_scale=2.0 if step % 3 == 0 else None)
    state = opt.state_dict()["state"]
    return now, [array for entry in state.values() for array in entry.values()]


def nothing(opt, step):
    pass


def other_hyper(opt, step):
    opt.param_groups[step % 2]["lr"] *= 0.9
    opt.param_groups[0]["weight_decay"] = 0.1 * (step > 3)
    opt.param_groups[1]["betas"] = (0.8, 0.9) if step == 5 else (0.9, 0.999)


def other_rule(opt, step):
    opt.param_groups[1]["amsgrad"] = step in (2, 3, 6)


def other_norm(opt, step):
    opt.clip_norm = None if step % 2 else 0.5


def reload(opt, step):
    if step == 3:
        opt.load_state_dict(opt.state_dict())
    elif step == 5:
        return copy.deepcopy(opt)
    elif step == 6:
        return pickle.loads(pickle.dumps(opt))
    return None


@pytest.mark.parametrize("change", [nothing, other_hyper, other_rule, other_norm, reload], ids=lambda f: f.__name__)
def test_bits_equal_the_references(change):
    found = {name: run(name, np.random.default_rng(0), change) for name in ("cpu", "numpy")}
    exact = change is not other_norm  # norms add up in another order
    for ours, theirs in zip(*([*a, *b] for a, b in found.values()), strict=True):
        if exact:
            np.testing.assert_array_equal(ours, theirs)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def momentum_on_and_off(opt, step):
    opt.param_groups[0]["momentum"] = 0.0 if step < 3 else 0.9


def test_momentum_turned_on_later_counts_from_that_step():
    found = {
        name: run(name, np.random.default_rng(1), momentum_on_and_off, fo.SGD, dampening=0.5)
        for name in ("cpu", "numpy")
    }
    for ours, theirs in zip(*([*a, *b] for a, b in found.values()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_backend_may_change():
    rng = np.random.default_rng(2)
    p = rng.standard_normal(9)
    q = p.copy()
    moving, staying = fo.Adam(p), fo.Adam(q)
    for backend in ("cpu", "numpy", "cpu"):
        g = rng.standard_normal(9)
        moving.backend = backend
        moving.step(g)
        staying.step(g)
    np.testing.assert_array_equal(p, q)
    assert moving.steps == 3


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_an_error_in_the_last_gradient_changes_nothing(backend):
    params = arrays(np.random.default_rng(3))
    opt = fo.Adam(params, backend=backend)
    opt.step(gradients(np.random.default_rng(4), params))
    before, state = copy.deepcopy(params), opt.state_dict()["state"]
    wrong = gradients(np.random.default_rng(5), params)
    wrong[-1] = wrong[-1][:-1]
    with pytest.raises(ValueError, match=r"grads\[5\] must have the shape \(7,\)"):
        opt.step(wrong)
    for a, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(a, b)
    for entry, old in zip(opt.state_dict()["state"].values(), state.values(), strict=True):
        for name, value in entry.items():
            np.testing.assert_array_equal(value, old[name])


def test_steps_larger_than_any_count_are_refused():
    opt = fo.Adam(np.zeros(2))
    saved = opt.state_dict()
    saved["state"][0]["step"] = 2.0**63
    with pytest.raises(ValueError, match="whole number"):
        opt.load_state_dict(saved)


def test_optimizers_on_several_threads_do_not_mix():
    def train(seed, backend):
        rng = np.random.default_rng(seed)
        params = [rng.standard_normal(n).astype("float32") for n in (300, 5, 70)]
        opt = fo.Adam(params, backend=backend, clip_norm=1e9)
        for _ in range(20):
            opt.step([rng.standard_normal(p.shape).astype("float32") for p in params])
        return np.concatenate(params)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: train(seed, "cpu"), range(6)))
    for seed, ours in enumerate(found):
        np.testing.assert_array_equal(ours, train(seed, "numpy"))


def test_the_settings_of_a_step_follow_every_change():
    """One record serves until somebody changes an option, the clipping, the backend or the seed."""
    w, g = np.zeros(3, np.float32), np.ones(3, np.float32)
    opt = fo.SGD(w, lr=1.0)
    opt.step(g)
    first = opt._step_settings()
    assert opt._step_settings() is first
    changes = {
        "lr": (lambda: opt.param_groups[0].update(lr=0.5), [-1.5] * 3),
        "clip_norm": (lambda: setattr(opt, "clip_norm", np.sqrt(3.0) / 2), [-1.75] * 3),
        "backend": (lambda: setattr(opt, "backend", "numpy"), [-2.0] * 3),
        "momentum": (lambda: opt.param_groups[0].update(momentum=0.5), [-2.25] * 3),
        "schedule": (lambda: setattr(opt, "lr", lambda step: 2.0 if step == 5 else 4.0), [-3.75] * 3),
        "state_dict": (lambda: opt.load_state_dict(fo.SGD(w, lr=1.0).state_dict()), [-4.75] * 3),
    }
    for name, (change, expected) in changes.items():
        before = opt._step_settings()
        change()
        opt.step(g)
        assert opt._step_settings() is not before, name
        np.testing.assert_allclose(w, expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("lr", [0.25, lambda step: 1.0 / (1 + step)])
def test_next_steps_are_those_that_step_would_do(lr):
    params, grads = [np.zeros((2, 3), order="F"), np.zeros(4)], [np.ones((2, 3)), np.ones(4)]
    opt = fo.Adam(params, lr=lr, clip_norm=0.5, backend="numpy")
    opt.step(grads)
    steps = opt.next_steps(3)
    assert (steps.rule, steps.steps_done, steps.clip_norm) == ("adam", 1, 0.5)
    assert steps.learning_rates.tolist() == ([0.25] * 3 if lr == 0.25 else [1 / 2, 1 / 3, 1 / 4])
    assert {name: steps.options[name] for name in ("beta1", "beta2")} == {"beta1": 0.9, "beta2": 0.999}
    for own, of_array, p in zip(opt.states, steps.states, params, strict=True):
        assert [state.shape for state in of_array] == [p.shape] * 2
        assert all(np.shares_memory(a, b) for a, b in zip(own, of_array, strict=True))
