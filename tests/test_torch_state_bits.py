"""fastopt.torch with `state_bits=8`: states as codes, beside whole ones, and in bitsandbytes' layout."""

import copy
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastopt as fo  # noqa: E402
import fastopt.torch  # noqa: E402
from fastopt.torch import _fast_path  # noqa: E402

SHAPES = [(65, 64), (30,)]
CLASSES = {
    "Adam": (fo.torch.Adam, {}),
    "AdamW": (fo.torch.AdamW, {"weight_decay": 0.1}),
    "SGD": (fo.torch.SGD, {"lr": 0.1, "momentum": 0.9}),
}
each_class = pytest.mark.parametrize("name", CLASSES)


def params(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def copies(given):
    return [torch.nn.Parameter(p.detach().clone()) for p in given]


def steps(optimizer, given, first, last):
    for seed in range(first, last):
        generator = torch.Generator().manual_seed(100 + seed)
        for p in given:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def same(given, others):
    return all(torch.equal(a, b) for a, b in zip(given, others, strict=True))


@each_class
def test_bits_of_the_optimizer_on_arrays(name):
    ours, options = CLASSES[name]
    p = params()
    arrays = [array.detach().numpy().copy() for array in p]
    steps(ours(p, state_bits=8, **options), p, 0, 4)
    optimizer = getattr(fo, name)(arrays, state_bits=8, **options)
    for seed in range(4):
        generator = torch.Generator().manual_seed(100 + seed)
        optimizer.step([torch.randn(array.shape, generator=generator).numpy() for array in arrays])
    assert same(p, map(torch.from_numpy, arrays))


def test_the_fast_path_serves_large_and_small_parameters(monkeypatch):
    p = params()
    optimizer = fo.torch.Adam(p, state_bits=8)
    steps(optimizer, p, 0, 2)
    done = []
    run = _fast_path.HostStep.run
    monkeypatch.setattr(_fast_path.HostStep, "run", lambda self, *args: done.append(run(self, *args)) or done[-1])
    q = copies(p)
    other = fo.torch.Adam(q, state_bits=8)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, p, 2, 5)
    assert done == [True] * 3, done
    steps(other, q, 2, 5)
    assert same(p, q)
    assert [list(state) for state in optimizer.state.values()][1] == ["step", "exp_avg", "exp_avg_sq"]


@each_class
@pytest.mark.parametrize("how", ["state_dict", "pickle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_from_a_copy(name, how, dtype):
    ours, options = CLASSES[name]
    p = params(dtype)
    optimizer = ours(p, state_bits=8, **options)
    steps(optimizer, p, 0, 3)
    if how == "state_dict":
        q = copies(p)
        other = ours(q, **options)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        other = pickle.loads(pickle.dumps(optimizer))
        q = other.param_groups[0]["params"]
    assert other.param_groups[0]["state_bits"] == 8
    steps(optimizer, p, 3, 6)
    steps(other, q, 3, 6)
    assert same(p, q)


def test_a_group_may_keep_32_bits_and_change_them():
    p, whole = params(), params()
    groups = [{"params": p[:1]}, {"params": p[1:], "state_bits": 32}]
    optimizer, other = fo.torch.Adam(groups, state_bits=8), fo.torch.Adam(whole)
    steps(optimizer, p, 0, 2)
    steps(other, whole, 0, 2)
    assert list(optimizer.state[p[0]]) == ["state1", "absmax1", "state2", "absmax2", "step"]
    optimizer.param_groups[0]["state_bits"] = 32
    steps(optimizer, p, 2, 3)
    steps(other, whole, 2, 3)
    assert "exp_avg" in optimizer.state[p[0]]
    mean, expected = optimizer.state[p[0]]["exp_avg"], other.state[whole[0]]["exp_avg"]
    assert 0 < (mean - expected).abs().max() < 0.02
    plain = torch.optim.Adam([{"params": [q]} for q in copies(p)])
    plain.load_state_dict(optimizer.state_dict())  # 32 bits are torch's own


def test_torch_s_own_states_are_converted():
    p, start = params(), params()
    plain = torch.optim.Adam(p)
    steps(plain, p, 0, 2)
    q = copies(p)
    optimizer = fo.torch.Adam(q, state_bits=8)
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    steps(plain, p, 2, 3)
    steps(optimizer, q, 2, 3)
    assert optimizer.state[q[0]]["state1"].dtype == torch.uint8
    assert 0 < (p[0] - q[0]).norm() < 0.02 * (p[0] - start[0]).norm()


def test_without_the_option_nothing_is_added():
    optimizer = fo.torch.Adam(params())
    assert "state_bits" not in optimizer.param_groups[0]
    assert "state_bits" not in optimizer.defaults


def test_random_rounding():
    found = []
    for seed in (1, 1, 2):
        p = params()
        steps(fo.torch.Adam(p, state_bits=8, state_rounding="stochastic", seed=seed), p, 0, 3)
        found.append(p)
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_step_in_backward():
    p, q = params(), params()
    optimizer, other = fo.torch.Adam(p, state_bits=8), fo.torch.Adam(q, state_bits=8)
    with fo.torch.step_in_backward(optimizer):
        for _ in range(3):
            sum((array**2).sum() for array in p).backward()
    for _ in range(3):
        other.zero_grad()
        sum((array**2).sum() for array in q).backward()
        other.step()
    assert same(p, q)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: fo.torch.Adam(p, state_bits=4), ValueError, "state_bits must be 8 or 32; got 4"),
        (lambda p: fo.torch.Adam([{"params": p, "state_bits": "8"}]), TypeError, "state_bits must be 8 or 32"),
        (lambda p: fo.torch.Adam(p, state_bits=8, state_rounding="up"), ValueError, "unknown state_rounding 'up'"),
    ],
)
def test_refusals(make, error, message):
    with pytest.raises(error, match=message):
        make(params())


def test_parameters_of_torch_s_code_are_refused_before_anything_changes():
    p = [torch.nn.Parameter(torch.zeros(130, 64)[::2]), torch.nn.Parameter(torch.zeros(65, 64))]
    optimizer = fo.torch.Adam(p, state_bits=8)
    for array in p:
        array.grad = torch.ones_like(array)
    with pytest.raises(ValueError, match="state_bits must be 32 for a parameter that torch's code .* gaps"):
        optimizer.step()
    assert not optimizer.state
    assert not any(array.any() for array in p)


# ---------------------------------------------------------------- bitsandbytes itself
@pytest.fixture
def bnb():
    return pytest.importorskip("bitsandbytes").optim


def test_first_step_is_bitsandbytes_own(bnb):
    p, q = params(), params()
    steps(fo.torch.Adam(p, state_bits=8), p, 0, 1)
    steps(bnb.Adam8bit(q), q, 0, 1)
    for a, b in zip(p, q, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_later_steps_are_bitsandbytes_own_within_its_rounding(bnb):
    """Its CPU kernel rounds small codes by a table, up to 7 codes off; beside the moves of p that is little."""
    p, q, start = params(), params(), params()
    steps(fo.torch.Adam(p, state_bits=8), p, 0, 20)
    steps(bnb.Adam8bit(q), q, 0, 20)
    assert (p[0] - q[0]).norm() < 0.02 * (p[0] - start[0]).norm()


@pytest.mark.parametrize("direction", ["ours", "theirs"])
def test_states_go_to_bitsandbytes_and_back(bnb, direction):
    ours, theirs = (lambda p: fo.torch.Adam(p, state_bits=8)), bnb.Adam8bit
    first, second = (ours, theirs) if direction == "theirs" else (theirs, ours)
    p = params()
    one = first(p)
    steps(one, p, 0, 3)
    q = copies(p)
    two = second(q)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    steps(one, p, 3, 4)
    steps(two, q, 3, 4)
    for a, b in zip(p, q, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # a step of the same states
    arrays = [array.detach().numpy().copy() for array in p]
    if direction == "ours":
        on_arrays = fo.Adam(arrays, state_bits=8)
        on_arrays.load_state_dict(one.state_dict())
        np.testing.assert_array_equal(on_arrays.states[0][0], one.state[p[0]]["state1"].numpy())
