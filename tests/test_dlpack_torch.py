"""torch's CPU tensors in fastopt's own optimizers, and where arrays are only read."""

import copy
import gc
import pickle

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.optim._parameters import Parameter

from .optimizers import DTYPES, drawn, make, snapshot

torch = pytest.importorskip("torch", reason="in the extra `torch`")

# The same values in another layout, in new memory.
LAYOUTS = {
    "contiguous": lambda t: t.clone(),
    "transposed": lambda t: t.transpose(0, -1).clone(memory_format=torch.contiguous_format).transpose(0, -1),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "part of a larger tensor": lambda t: torch.stack([t, t])[1],
    "NumPy's memory": lambda t: torch.from_numpy(t.numpy().copy()),
}


def tensor(shape, dtype="float64", seed=0):
    return torch.from_numpy(np.asarray(drawn(shape, dtype, seed)))


def test_kernels_read_gradients_in_the_layout_of_their_parameters(monkeypatch):
    params = [tensor((3, 4)), tensor((4, 3)).t(), torch.zeros(5, dtype=torch.bfloat16), torch.zeros(())]
    gradients = [torch.ones_like(p) for p in params]
    before = [p.clone() for p in params]
    optimizer = fo.SGD(params, lr=0.5)
    monkeypatch.setattr(Parameter, "check_like", lambda *args, **more: pytest.fail("checked"))
    optimizer.step([*gradients[:3], gradients[3].numpy()])
    for p, was in zip(params, before, strict=True):
        torch.testing.assert_close(p, was - 0.5, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "more"),
    [("SGD", {"momentum": 0.9}), ("Adagrad", {}), ("RMSprop", {"momentum": 0.5, "centered": True}),
     ("Adam", {"amsgrad": True}), ("AdamW", {})],
)  # fmt: skip
def test_checkpoints_move_to_torch_and_back(name, more, backend):
    """Ours has arrays of NumPy where torch wants tensors; the rest is torch's layout."""
    w, v = np.linspace(-1, 1, 6).reshape(2, 3), np.ones(2)
    p, q = torch.from_numpy(w.copy()).requires_grad_(), torch.from_numpy(v.copy()).requires_grad_()
    ours = getattr(fo, name)([{"params": [w], "lr": 0.1}, {"params": v}], weight_decay=0.1, backend=backend, **more)
    theirs = getattr(torch.optim, name)([{"params": [p]}, {"params": q}], lr=0.5, **more)

    def steps(first, with_torch):
        for step in range(first, first + 3):
            g, h = np.cos(step + w), np.sin(step + v)
            ours.step([[g], h])
            if with_torch:
                p.grad, q.grad = torch.from_numpy(g), torch.from_numpy(h)
                theirs.step()

    steps(0, False)
    with torch.no_grad():
        p.copy_(torch.from_numpy(w))
        q.copy_(torch.from_numpy(v))
    saved = torch.utils._pytree.tree_map_only(np.ndarray, torch.from_numpy, ours.state_dict())
    theirs.load_state_dict(saved)
    assert theirs.param_groups[0]["lr"] == 0.1
    steps(3, True)
    np.testing.assert_allclose(w, p.detach(), rtol=1e-12)
    ours.load_state_dict(theirs.state_dict())
    steps(6, True)
    np.testing.assert_allclose(w, p.detach(), rtol=1e-12)
    np.testing.assert_allclose(v, q.detach(), rtol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", OPTIMIZERS)
def test_tensors_are_updated_in_place_with_the_bits_of_numpy(rule, dtype, layout, backend):
    shapes = [(3, 4), (2, 3, 4)]
    shapes += [(5,), (), (0, 2), (1,)] if layout == "contiguous" else []
    params = [LAYOUTS[layout](tensor(shape, dtype, 1)).requires_grad_() for shape in shapes]
    expected = [drawn(shape, dtype, 1) for shape in shapes]
    expected = [np.asarray(p) for p in expected]
    pointers = [p.data_ptr() for p in params]
    ours = make(rule, params, lr=0.05, weight_decay=0.1, backend=backend)
    theirs = make(rule, expected, lr=0.05, weight_decay=0.1, backend="numpy")
    for seed in (2, 3):
        ours.step([LAYOUTS[layout](tensor(shape, dtype, seed)) for shape in shapes])
        theirs.step([np.asarray(drawn(shape, dtype, seed)) for shape in shapes])
    assert [p.detach().numpy().tobytes() for p in params] == [p.tobytes() for p in expected]
    assert [p.data_ptr() for p in params] == pointers
    assert all(a is b for a, b in zip(ours.param_groups[0]["params"], params, strict=True))


def test_a_model_trains_as_with_torchs_own():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    twin = copy.deepcopy(model)
    ours, peer = fo.Adam(model.parameters(), lr=0.1), torch.optim.Adam(twin.parameters(), lr=0.1)
    named = fo.SGD(dict(model.named_parameters()), lr=0.0)
    x = torch.randn(8, 3, dtype=torch.float64)
    for _ in range(20):
        for one in (model, twin):
            one.zero_grad()
            one(x).square().mean().backward()
        ours.step([p.grad for p in model.parameters()])
        named.step({name: p.grad for name, p in model.named_parameters()})
        peer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), rtol=1e-9, atol=1e-12)
    state = peer.state_dict()  # its states are tensors
    ours.load_state_dict(state)
    for entry, states in zip(state["state"].values(), ours.states, strict=True):
        np.testing.assert_array_equal(states[0], entry["exp_avg"])


def test_autograd_notices_updates_of_values_it_has_saved():
    p, q = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    product = (p * q).sum()
    optimizer = fo.SGD([p, q], lr=0.5)
    versions = p._version, q._version
    assert not optimizer.step([torch.ones(3), torch.ones(3)], found_inf=True)
    optimizer.step([torch.ones(3), None])
    assert (p._version, q._version) == (versions[0] + 1, versions[1])
    assert p.grad_fn is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        fixed = torch.ones(2)
    fo.SGD(fixed, lr=0.5).step(np.ones(2, "float32"))  # has no versions
    assert fixed.tolist() == [0.5, 0.5]


def test_copies_and_pickles():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = fo.SGD([p], lr=1.0, momentum=0.5)
    optimizer.step([torch.ones(3)])
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (own,) = other.param_groups[0]["params"]
        assert type(own) is torch.nn.Parameter
        other.step([torch.ones(3)])
        assert (own.tolist(), p.tolist()) == ([-1.5] * 3, [0] * 3)


def test_overlaps(backend):
    whole = torch.zeros(4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"params\[0\] and params\[1\] share memory"):
        fo.SGD([whole, whole.numpy()])
    with pytest.raises(ValueError, match="elements of params share memory"):
        fo.SGD(whole[:1].expand(3, 4))
    for given in (whole, whole.numpy()):
        optimizer = fo.SGD(given, backend=backend)
        for gradient in (whole, whole.numpy(), whole.t(), torch.nn.Parameter(whole)):
            with pytest.raises(ValueError, match="grads shares memory with params"):
                optimizer.step(gradient)
    assert not whole.any()


def test_parameters_that_move_are_noticed(backend):
    p = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = fo.Adam([p], backend=backend)
    first = p.data
    p.data = torch.ones(2, 2)
    for change in (lambda: p.data.resize_(100, 100), lambda: setattr(p, "data", first.t())):
        with pytest.raises(ValueError, match=r"params\[0\] is no longer where it was"):
            optimizer.step([torch.ones(2, 2)])
        change()
    with pytest.raises(ValueError, match=r"params\[0\] is no longer where it was"):
        optimizer.step([torch.ones(2, 2)])
    assert optimizer.steps == 0
    p.data = first
    optimizer.step([torch.ones(2, 2)])
    assert p.tolist() == pytest.approx(np.full((2, 2), -1e-3))
    grown = torch.zeros(2)
    optimizer = fo.SGD(grown, backend=backend)
    grown.resize_(10_000)
    gc.collect()
    with pytest.raises(ValueError, match="params is no longer where it was"):
        optimizer.step(torch.ones(2))


class Tagged(torch.Tensor):
    pass


def negated(t):
    return torch.complex(torch.zeros_like(t), -t).conj().imag


REFUSED = {
    "eight bits": (lambda t: t.to(torch.float8_e5m2), "must be float32, float64, float16 or bfloat16; got DLPack's"),
    "integers": (lambda t: t.int(), "int32"),
    "complex": (lambda t: t.to(torch.complex64), "complex64"),
    "conjugated": (lambda t: t.to(torch.complex64).conj(), "a Tensor, does not hand out its memory: .*conj"),
    "negated": (negated, "must be its memory, not the negative of it; use resolve_neg()"),
    "sparse": (lambda t: t.to_sparse(), "a Tensor, does not hand out its memory: .*layout"),
    "meta": (lambda t: t.to("meta"), "must be on the CPU; got a Tensor on meta .copy it there, or use fastopt.torch"),
    "without memory": (lambda t: torch._efficientzerotensor(2), "does not hand out its memory|has no memory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_that_are_refused_leave_everything_alone(case, backend):
    bad, message = REFUSED[case]
    p, wrong = torch.zeros(2), bad(torch.ones(2))
    with pytest.raises(TypeError, match="params.*" + message):
        fo.Adam(wrong, backend=backend)
    optimizer = fo.Adam(p, backend=backend)
    optimizer.step(torch.ones(2))
    before, version = snapshot(optimizer, p.numpy()), p._version
    with pytest.raises(TypeError, match="grads.*" + message):
        optimizer.step(wrong)
    with pytest.raises(ValueError, match=r"grads must have the shape \(2,\) of params; got \(3,\)"):
        optimizer.step(torch.ones(3))
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = wrong
    with pytest.raises(TypeError, match="exp_avg of the state of params.*" + message):
        optimizer.load_state_dict(saved)
    assert (snapshot(optimizer, p.numpy()), p._version) == (before, version)


def test_inside_a_transform_there_is_no_memory():
    p = torch.zeros(2)
    optimizer = fo.SGD(p)

    def use(x):
        with pytest.raises(TypeError, match="does not hand out its memory"):
            fo.SGD(x)
        with pytest.raises(TypeError, match="does not hand out its memory"):
            optimizer.step(x)
        return x.sum()

    torch.func.grad(use)(torch.ones(2))
    torch.func.vmap(use)(torch.ones(3, 2))
    assert not p.any()


def test_subclasses_that_are_their_memory():
    p = torch.zeros(2).as_subclass(Tagged)
    fo.SGD(p, lr=1.0).step(torch.ones(2).as_subclass(Tagged))
    assert p.tolist() == [-1, -1]


def test_functions_that_only_read_accept_tensors():
    x, w = tensor((2, 3)), tensor((3, 4), seed=1).requires_grad_()
    expected = fo.dense_forward(x.numpy(), w.detach().numpy())
    np.testing.assert_array_equal(fo.dense_forward(x, w), expected)
    wrong = {"bfloat16": x.bfloat16(), **{bad: REFUSED[bad][0](x) for bad in ("meta", "sparse", "negated")}}
    messages = ("BFloat16", "meta", "[Ss]parse", "negative")
    for bad, message in zip(wrong.values(), messages, strict=True):
        with pytest.raises(TypeError, match="x, a Tensor, cannot be read as a NumPy array: .*" + message):
            fo.dense_forward(bad, w)

    def fit(data, labels):
        model = fo.Sequential([fo.Dense(4, "relu"), fo.Dense(3)], seed=0)
        model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
        model.fit(data, labels, epochs=2, batch_size=4, verbose=0)
        return model.predict(data)

    data, labels = tensor((10, 3), "float32"), torch.arange(10) % 3
    np.testing.assert_array_equal(fit(data, labels), fit(data.numpy(), labels.numpy()))


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_gradients_of_rows(backend):
    table, twin = torch.nn.Parameter(torch.ones(4, 2)), np.ones((4, 2), np.float32)
    rows, values = torch.tensor([3, 1, 3]), torch.arange(6, dtype=torch.float32).reshape(3, 2)
    ours, theirs = fo.Adam([table], backend=backend), fo.Adam([twin], backend=backend)
    for _ in range(3):
        version = table._version
        assert ours.step([(rows, values)])
        assert table._version > version
        theirs.step([(rows.numpy(), values.numpy())])
    np.testing.assert_array_equal(table.detach().numpy(), twin)
    table.data = table.data.clone()
    with pytest.raises(ValueError, match="no longer where it was"):
        ours.step([(rows, values)])
