"""Gradients before the rule: scaling, skipping, clipping, L1; each against plain NumPy."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.kernels.formulas import OPTIMIZERS

from .optimizers import DTYPES, drawn, make, snapshot

SHAPES = [(3, 4), (5,), (), (0, 2)]


def arrays(dtype, seed=0):
    return [np.asarray(drawn(shape, dtype, seed + i)) for i, shape in enumerate(SHAPES)]


def bits(some):
    return [a.tobytes() for a in some]


def norm_of(gradients):
    return np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in gradients))


def after(rule, prepare, dtype, backend, options, call=None):
    """Parameters after three steps; `prepare(params, gradients)` does to the gradients what options do inside."""
    params = arrays(dtype)
    optimizer = make(rule, params, lr=0.05, weight_decay=0.1, backend=backend, **options)
    for seed in (10, 20, 30):
        assert optimizer.step(prepare(params, arrays(dtype, seed)), **(call or {})) is True
    return params


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_options_do_what_users_would_do_beforehand(rule, dtype, backend):
    T = np.dtype(dtype).type

    def alone(params, gradients):
        return gradients

    def same(inside, outside):
        for options in ({}, {"maximize": True}):
            ours = after(rule, alone, dtype, backend, {**options, **inside[0]}, inside[1])
            theirs = after(rule, outside, dtype, "numpy", options)
            assert bits(ours) == bits(theirs)

    same(({"clip_value": 0.5}, {}), lambda params, gradients: [np.clip(g, T(-0.5), T(0.5)) for g in gradients])
    same(({}, {"grad_scale": 8.0}), lambda params, gradients: [g / T(8) for g in gradients])
    same(
        ({"clip_value": 0.25}, {"grad_scale": np.array([2.0], "float32")}),
        lambda params, gradients: [np.clip(g / T(2), T(-0.25), T(0.25)) for g in gradients],
    )

    def by_norm(params, gradients):
        factor = min(1.0, 0.75 / (norm_of(gradients) + 1e-6))
        return [g * T(factor) for g in gradients]

    ours = after(rule, alone, dtype, backend, {"clip_norm": 0.75})
    for a, b in zip(ours, after(rule, by_norm, dtype, "numpy", {}), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5 if dtype == "float32" else 1e-13)
    same(({"clip_norm": 1e6}, {}), alone)  # a short gradient stays as it is


@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_l1_is_a_gradient_of_its_own(rule, backend):
    """Without weight decay it can be added beforehand; the sign of a parameter that is 0 is 0."""

    def run(l1):
        p = np.array([1.5, -2.0, 0.0, -0.0, 3e-308])  # the last hardly above the smallest that does not count as zero
        optimizer = make(rule, p, lr=0.05, weight_decay=0.0, l1=l1, backend=backend)
        for g in (np.array([0.5, -0.25, 0.0, 0.0, 0.0]), np.array([0.1, 0.2, 0.0, 0.0, 0.0])):
            optimizer.step(g if l1 else g + 0.125 * np.sign(p))
        return p

    ours = run(0.125)
    np.testing.assert_array_equal(ours, run(0.0))
    assert (ours[2], ours[3]) == (0, 0)


def test_the_order_of_the_options(backend):
    """(clip(-4 / 2, 0.5) = -0.5, maximised 0.5) + 0.25 * 2 + 0.125 * 1 = 1.125."""
    p = np.array([2.0])
    fo.SGD(p, lr=1.0, weight_decay=0.25, l1=0.125, clip_value=0.5, maximize=True, backend=backend).step(
        np.array([-4.0]), grad_scale=2.0
    )
    assert p.tolist() == [2.0 - 1.125]
    q = np.array([-2.0])
    fo.AdamW(q, lr=0.5, weight_decay=0.5, l1=3.0, eps=0.0, backend=backend).step(np.array([1.0]))
    assert q.tolist() == [-1.5 + 0.5]  # g = 1 - 3 < 0: Adam's first step is the sign of it


@pytest.mark.parametrize("name", ["clip_value", "clip_norm"])
def test_infinity_and_nan_are_clipped_as_torch_does(name, backend):
    p = np.zeros(3)
    fo.SGD(p, lr=1.0, backend=backend, **{name: 0.5}).step(np.array([np.inf, np.nan, -4.0]))
    expected = [-0.5, np.nan, 0.5] if name == "clip_value" else [np.nan] * 3  # inf * 0; the norm is NaN
    np.testing.assert_array_equal(p, expected)
    q = np.zeros(2)
    fo.SGD(q, lr=1.0, backend=backend, **{name: 0.5}).step(np.array([-np.inf, 0.25]))
    np.testing.assert_array_equal(q, [0.5, -0.25] if name == "clip_value" else [np.nan, 0.0])


def test_the_norm_is_of_all_groups_and_as_torch_counts_it(backend):
    a, b, c = np.zeros(2), np.zeros(1, "float32"), np.zeros(2)
    optimizer = fo.SGD([{"params": [a, b]}, {"params": c, "lr": 2.0}], lr=1.0, clip_norm=6.5, backend=backend)
    assert optimizer.grad_norm is None
    assert optimizer.step([[np.array([3.0, 0.0]), np.array([4.0], "float32")], np.array([0.0, 12.0])])
    assert optimizer.grad_norm == 13.0
    factor = 6.5 / (13 + 1e-6)
    assert (a.tolist(), c.tolist()) == ([-3 * factor, 0], [0, -2 * (12 * factor)])
    assert b.tolist() == [-np.float32(factor) * 4]
    optimizer.step([[np.array([3.0, 4.0]), None], None], grad_scale=0.5)
    assert optimizer.grad_norm == 10.0
    optimizer.clip_norm = None
    optimizer.step([[np.array([1.0, 1.0]), None], None])
    assert optimizer.grad_norm == 10.0  # none was needed since


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_nonfinite_gradients_are_skipped(rule, bad, backend):
    params = arrays("float32")
    optimizer = make(rule, params, backend=backend)
    optimizer.step(arrays("float32", 10))
    before = snapshot(optimizer, *params)
    spoilt = arrays("float32", 20)
    spoilt[1][3] = bad
    assert optimizer.step(spoilt, skip_nonfinite=True) is False
    assert optimizer.step(arrays("float32", 20), found_inf=True) is False
    assert optimizer.step(arrays("float32", 20), found_inf=np.ones((), "float32")) is False
    assert snapshot(optimizer, *params) == before
    assert optimizer.steps == 1
    assert not np.isfinite(optimizer.grad_norm)

    twin = arrays("float32")
    other = make(rule, twin, backend=backend)
    other.step(arrays("float32", 10))
    assert other.step(arrays("float32", 20)) is True
    assert optimizer.step(arrays("float32", 20), found_inf=0.0, skip_nonfinite=True) is True
    assert bits(params) == bits(twin)
    assert optimizer.steps == 2


def test_large_gradients_do_not_count_as_infinite(backend):
    """Their squares overflow in float64, they do not."""
    p = np.zeros(2)
    optimizer = fo.SGD(p, lr=1.0, backend=backend)
    assert optimizer.step(np.array([1e200, -1e200]), skip_nonfinite=True)
    assert p.tolist() == [-1e200, 1e200]
    assert optimizer.grad_norm == np.inf
    q = np.zeros(2, "float32")
    largest = np.finfo("float32").max
    assert fo.SGD(q, lr=0.0, clip_norm=1.0, backend=backend).step(np.array([largest, largest]), skip_nonfinite=True)


def refused(optimizer, gradients, error, message, **call):
    params = optimizer.param_groups[0]["params"]
    before = snapshot(optimizer, *params)
    with pytest.raises(error, match=message):
        optimizer.step(gradients, **call)
    assert snapshot(optimizer, *params) == before
    assert optimizer.steps == 0


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, "2", [1.0, 2.0], 1j, np.zeros(0)])
def test_scales_that_are_refused(scale, backend):
    number = isinstance(scale, float)
    refused(
        fo.Adam([np.ones(2)], backend=backend), [np.ones(2)], ValueError if number else TypeError,
        r"grad_scale must be a .*got", grad_scale=scale,
    )  # fmt: skip


def test_other_arguments_of_step_that_are_refused(backend):
    def optimizer():
        return fo.Adam([np.ones(2)], clip_norm=1.0, backend=backend)

    refused(optimizer(), [np.ones(2)], TypeError, "found_inf must be a number", found_inf="no")
    refused(optimizer(), [np.ones(2)], TypeError, "skip_nonfinite must be True or False", skip_nonfinite=1)
    refused(optimizer(), [np.ones(3)], ValueError, "shape", found_inf=True)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, "1", True, [1.0]])
@pytest.mark.parametrize("name", ["clip_norm", "clip_value", "clip_each"])
def test_bounds_that_are_refused(name, bad):
    error = ValueError if isinstance(bad, float) else TypeError
    with pytest.raises(error, match=f"{name} must be None or a finite number above 0; got"):
        fo.Adam(np.ones(2), **{name: bad})
    optimizer = fo.Adam(np.ones(2))
    saved = optimizer.state_dict()
    with pytest.raises(error, match=name):
        optimizer.load_state_dict({**saved, "param_groups": [{**saved["param_groups"][0], name: bad}]})
    if name == "clip_norm":
        with pytest.raises(error, match=name):
            optimizer.clip_norm = bad
        assert optimizer.clip_norm is None


def test_clipping_in_several_ways_is_refused():
    both = "clipped in one way, not in several; got clip_value=0.5, clip_norm=1.0"
    with pytest.raises(ValueError, match=both):
        fo.SGD(np.ones(2), clip_norm=1.0, clip_value=0.5)
    with pytest.raises(ValueError, match=both):
        fo.SGD(clip_norm=1.0, clip_value=0.5)
    with pytest.raises(ValueError, match=both):
        fo.SGD([{"params": np.ones(2), "clip_value": 0.5}], clip_norm=1.0)
    with pytest.raises(ValueError, match="got clip_value=0.5, clip_each=2.0"):
        fo.SGD(clip_value=0.5, clip_each=2.0)
    with pytest.raises(ValueError, match="got clip_each=2.0, clip_norm=1.0"):
        fo.SGD([{"params": np.ones(2), "clip_each": 2.0}], clip_norm=1.0)
    with pytest.raises(ValueError, match=r"unknown: \['clip_norm'\]"):
        fo.SGD([{"params": np.ones(2), "clip_norm": 0.5}])
    by_value, by_norm = fo.SGD([np.ones(2)], clip_value=0.5), fo.SGD([np.ones(2)], clip_norm=1.0)
    with pytest.raises(ValueError, match=both):
        by_value.clip_norm = 1.0
    by_norm.param_groups[0]["clip_value"] = 0.5
    with pytest.raises(ValueError, match=both):
        by_norm.step([np.ones(2)])
    by_norm.clip_norm = None
    assert by_norm.steps == 0
    assert by_norm.param_groups[0]["params"][0].tolist() == [1, 1]
    assert by_norm.step([np.ones(2)])


def test_saving_loading_and_copying_keep_the_options():
    p = np.ones(2)
    optimizer = fo.Adam(p, clip_norm=0.5, l1=0.25, backend="numpy")
    assert repr(optimizer).endswith("maximize=False, l1=0.25, clip_norm=0.5, backend='numpy')")
    other = fo.Adam(np.ones(2), clip_value=3.0)
    other.load_state_dict(optimizer.state_dict())
    for one in (other, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (one.clip_norm, one.param_groups[0]["l1"], one.param_groups[0]["clip_value"]) == (0.5, 0.25, None)
    old = optimizer.state_dict()
    for name in ("l1", "clip_value", "clip_each", "clip_norm"):  # as torch writes them
        del old["param_groups"][0][name]
    other.load_state_dict(old)
    assert (other.clip_norm, other.param_groups[0]["l1"]) == (None, 0.0)
    two = fo.SGD([{"params": np.ones(1)}, {"params": np.ones(1)}])
    saved = two.state_dict()
    saved["param_groups"][1]["clip_norm"] = 2.0
    with pytest.raises(ValueError, match=r"clip_norm must be the same in all groups .*\[None, 2.0\]"):
        two.load_state_dict(saved)


def test_options_change_without_compiling():
    from fastopt.kernels import cpu

    p = np.ones(3)
    optimizer = fo.Adam(p, clip_norm=1.0)
    optimizer.step(np.ones(3))
    compiled = []
    with cpu.compiling(compiled.append):
        for i in range(1, 4):
            optimizer.param_groups[0]["clip_value"] = None
            optimizer.clip_norm = None if i % 2 else 0.1 * i
            optimizer.param_groups[0].update(
                lr=0.1 * i, betas=(0.1 * i, 0.5), eps=0.1 * i, weight_decay=0.1 * i, l1=0.1 * i, maximize=i == 2,
                clip_value=0.5 if i % 2 else None,
            )  # fmt: skip
            optimizer.step(np.ones(3), grad_scale=float(i), skip_nonfinite=i == 3)
    assert compiled == []


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_norm(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 63, 64, 65, 300]), min_size=1, max_size=4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    scale = data.draw(st.sampled_from([1e-30, 1.0, 1e30]))
    gradients = [(scale * rng.standard_normal(size)).astype(dtype) for size in sizes]
    params = [np.zeros(size, dtype) for size in sizes]
    backend = data.draw(st.sampled_from(["cpu", "numpy"]))
    most = data.draw(st.sampled_from([1e-3, 1.0, 1e3]))
    optimizer = fo.SGD(params, lr=1.0, clip_norm=most, backend=backend)
    optimizer.step(gradients)
    np.testing.assert_allclose(optimizer.grad_norm, norm_of(gradients), rtol=1e-14)
    assert norm_of(params) <= min(most, optimizer.grad_norm) * (1 + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["norm", "value"])
def test_clipping_is_torchs(kind, dtype, backend):
    torch = pytest.importorskip("torch")
    for most in (1e-2, 1.0, 1e3):
        params = arrays(dtype)
        tensors = [torch.nn.Parameter(torch.tensor(p)) for p in params]
        peer = torch.optim.SGD(tensors, lr=0.1)
        ours = fo.SGD(params, lr=0.1, backend=backend, **{f"clip_{kind}": most})
        for seed in (10, 20, 30):
            gradients = arrays(dtype, seed)
            for tensor, g in zip(tensors, gradients, strict=True):
                tensor.grad = torch.tensor(g)
            found = getattr(torch.nn.utils, f"clip_grad_{kind}_")(tensors, most)
            peer.step()
            ours.step(gradients)
            if kind == "norm":
                np.testing.assert_allclose(ours.grad_norm, found.item(), rtol=1e-6)
        for p, tensor in zip(params, tensors, strict=True):
            rtol = 1e-5 if dtype == "float32" else 1e-13
            np.testing.assert_allclose(p, tensor.detach().numpy(), rtol=rtol, atol=rtol)
