"""Gradients of some rows, given as (indices, values): against the step on those rows alone, and against torch."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastopt as fo
from fastopt.kernels.formulas.optimizers import CLASSES, OPTIMIZERS

from .optimizers import DTYPES, LAYOUTS, MAKE, drawn, make, snapshot

RULES = [rule for rule in OPTIMIZERS if not CLASSES[MAKE[rule][0].__name__].no_rows]
# Rows one behind the other, each of them transposed: the same way for kernels as contiguous ones.
TURNED = {**LAYOUTS, "rows transposed": lambda a: np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)}
DECOUPLED = [rule for rule in RULES if make(rule)._convention.decoupled]  # whose weight decay is for all rows
REFUSING = [rule for rule in OPTIMIZERS if rule not in RULES]


def states(optimizer, i=0):
    """By name, in the array's own shape."""
    return {name: value for name, value in optimizer.state_dict()["state"][i].items() if name != "step"}


def summed(indices, values):
    """Plain Python's: the rows, sorted, with their values added up in order."""
    sums = {}
    for index, value in zip(np.asarray(indices).tolist(), values, strict=True):
        sums[index] = sums[index] + value if index in sums else value
    rows = sorted(sums)
    return rows, np.array([sums[row] for row in rows], values.dtype.newbyteorder("=")).reshape(
        len(rows), *values.shape[1:]
    )


def step_alone(rule, p, memory, number, rows, gradient, options, call):
    """One dense step, the `number`-th, on copies of the listed rows of p and its states; new p and states."""
    part = p[rows]
    optimizer = make(rule, part, backend="numpy", **options)
    saved = optimizer.state_dict()
    saved["state"][0] = {"step": number - 1, **{name: state[rows] for name, state in memory.items()}}
    if number > 1 or rule != "momentum":  # whose first buffer is the gradient
        optimizer.load_state_dict(saved)
    optimizer.step(gradient, **call)
    p, memory = p.copy(), {name: state.copy() for name, state in memory.items()}
    p[rows] = part
    for name, state in states(optimizer).items():
        memory.setdefault(name, np.zeros_like(p))[rows] = state
    return p, memory


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_listed_rows_take_a_step_and_others_stay(data):
    rule, dtype = data.draw(st.sampled_from(RULES)), data.draw(st.sampled_from(DTYPES))
    row = data.draw(st.sampled_from([(), (1,), (3,), (17,), (2, 3), (0,)]))
    n = data.draw(st.sampled_from([1, 2, 5, 33]))
    axes = {"permuted": 2, "rows transposed": 3}  # that it takes at least
    layouts = [name for name in TURNED if 1 + len(row) >= axes.get(name, 1) and (row != (0,) or "NumPy" not in name)]
    layout, of_values = data.draw(st.sampled_from(layouts)), data.draw(st.sampled_from(layouts))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    backend = data.draw(st.sampled_from(["cpu", "numpy"]))
    options = {"lr": 0.1, "weight_decay": data.draw(st.sampled_from([0.0, 0.1])), "l1": 0.01, "maximize": True}
    options["weight_decay"] *= rule not in DECOUPLED
    if data.draw(st.booleans()):
        options["clip_value"] = 0.5
    call = {"grad_scale": 2.0} if data.draw(st.booleans()) else {}
    expected = rng.standard_normal((n, *row)).astype(dtype)
    p = TURNED[layout](expected.copy())  # which some layouts do not copy
    optimizer = make(rule, [p], backend=backend, **options)
    memory = {} if rule == "momentum" else states(optimizer)
    for number in (1, 2, 3):
        k = data.draw(st.sampled_from([0, 1, 2, 7, 40]))
        kind = data.draw(st.sampled_from(["int64", "int32", "uint8", "uint64", ">i4"]))
        indices = rng.integers(0, n, k).astype(kind)
        values = rng.standard_normal((k, *row)).astype(dtype)
        if k:
            values = TURNED[of_values](values)
        before = indices.tobytes(), values.tobytes()
        assert optimizer.step([(indices, values)], **call) is True
        assert (indices.tobytes(), values.tobytes()) == before
        rows, gradient = summed(indices, values)
        expected, memory = step_alone(rule, expected, memory, number, rows, gradient, options, call)
        np.testing.assert_array_equal(p, expected)
        for name, state in states(optimizer).items():
            np.testing.assert_array_equal(state, memory[name])
        assert optimizer.steps == number


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_every_row_once_is_the_dense_step(rule, dtype, backend):
    p = drawn((6, 4), dtype)
    q = p.copy()
    some, whole = (make(rule, x, weight_decay=0.1 * (rule not in DECOUPLED), backend=backend) for x in (p, q))
    order = np.array([3, 0, 5, 1, 4, 2])
    for seed in (1, 2, 3):
        g = drawn((6, 4), dtype, seed)
        some.step((order, g[order]))
        whole.step(g)
        assert p.tobytes() == q.tobytes()
        assert snapshot(some) == snapshot(whole)


def test_by_hand(backend):
    w = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    optimizer = fo.SGD(w, lr=0.5, momentum=0.5, weight_decay=1.0, backend=backend)
    optimizer.step((np.array([2, 0, 2]), np.array([[1.0, 1.0], [2.0, 2.0], [3.0, -1.0]])))
    assert w.tolist() == [[1 - 0.5 * 3, 2 - 0.5 * 4], [3, 4], [5 - 0.5 * 9, 6 - 0.5 * 6]]
    assert optimizer.states[0][0].tolist() == [[3, 4], [0, 0], [9, 6]]
    optimizer.step((np.array([1]), np.array([[1.0, 0.0]])))
    assert w.tolist() == [[-0.5, 0], [3 - 0.5 * 4, 4 - 0.5 * 4], [0.5, 3]]
    assert optimizer.states[0][0].tolist() == [[3, 4], [4, 4], [9, 6]]


def mixed(dtype):
    return [drawn((5, 3), dtype, 1), drawn((4,), dtype, 2), drawn((6, 2), dtype, 3).T, drawn((2, 2), dtype, 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_rows_whole_arrays_and_none_in_one_step_with_groups(dtype, clip_norm):
    found = {}
    for backend in ("cpu", "numpy"):
        a, b, c, d = params = mixed(dtype)
        old_d = d.copy()
        optimizer = fo.Adam(
            [{"params": [a, b]}, {"params": {"c": c, "d": d}, "lr": 0.5, "amsgrad": True}], backend=backend,
            clip_norm=clip_norm,
        )  # fmt: skip
        values, sparse = drawn((3, 3), dtype, 10), drawn((2, 6), dtype, 11)
        optimizer.step([[(np.array([4, 1, 4]), values), drawn((4,), dtype, 12)], {"c": ([1, 0], sparse), "d": None}])
        if clip_norm is not None:
            rows = summed([4, 1, 4], values)[1]
            parts = [rows, drawn((4,), dtype, 12), sparse]
            expected = np.sqrt(sum(np.square(g, dtype="float64").sum() for g in parts))
            assert optimizer.grad_norm == pytest.approx(expected, rel=1e-14)
        assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [1, 1, 1, 0]
        assert d.tobytes() == old_d.tobytes()
        optimizer.step([[drawn((5, 3), dtype, 13), (np.array([0], "u1"), drawn((1,), dtype, 14))], None])
        assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [2, 2, 1, 0]
        found[backend] = [*params, *(state for i in range(4) for state in states(optimizer, i).values())]
    for ours, theirs in zip(found["cpu"], found["numpy"], strict=True):
        if clip_norm is None:
            assert ours.tobytes() == theirs.tobytes()
        else:  # norms add up in another order
            np.testing.assert_allclose(ours, theirs, rtol=1e-5 if dtype == "float32" else 1e-13)


def test_norm_clipping_and_skipping_are_of_the_sums(backend):
    table, bias = np.zeros((3, 1)), np.zeros(1)
    optimizer = fo.SGD([table, bias], lr=1.0, clip_norm=2.5, backend=backend)
    rows = np.array([2, 2, 0]), np.array([[5.0], [-1.0], [0.0]])
    optimizer.step([rows, np.array([3.0])])
    assert optimizer.grad_norm == 5.0
    np.testing.assert_allclose(table[:, 0], [0, 0, -2.0], rtol=1e-6)
    np.testing.assert_allclose(bias, [-1.5], rtol=1e-6)
    before = snapshot(optimizer, table, bias)
    for bad in ([np.inf, 1.0], [1e308, 1e308], [np.nan, 1.0]):
        spoilt = np.array([1, 1]), np.array(bad)[:, None]
        assert optimizer.step([spoilt, np.array([3.0])], skip_nonfinite=True) is False
        assert optimizer.step([spoilt, np.array([3.0])], found_inf=True) is False
        assert snapshot(optimizer, table, bias) == before
    large = np.array([1]), np.array([[1e200]])  # its square is not finite, it is
    assert optimizer.step([large, None], skip_nonfinite=True)
    by_value = fo.SGD(table, lr=1.0, clip_value=1.0, backend=backend)
    table[:] = 0
    by_value.step((np.array([0, 0]), np.array([[3.0], [-2.5]])))
    assert table.tolist() == [[-0.5], [0], [0]]


@pytest.mark.parametrize("structure", ["one", "list", "tuple", "mapping", "two"])
def test_where_rows_may_stand(structure, backend):
    w, rows = np.ones((3, 2)), (np.array([1]), np.ones((1, 2)))
    params, grads = {
        "one": (w, rows), "list": ([w], [rows]), "tuple": ((w,), (rows,)), "mapping": ({"w": w}, {"w": rows}),
        "two": ([w, np.ones((2, 2))], (rows, (np.array([0]), np.zeros((1, 2))))),
    }[structure]  # fmt: skip
    assert fo.SGD(params, lr=1.0, backend=backend).step(grads)
    assert w.tolist() == [[1, 1], [0, 0], [1, 1]]


def refused(params, rows, error, message, backend, rule="adam"):
    """Nothing has changed afterwards, in the arrays before the refused one neither."""
    first = np.ones((2, 2))
    optimizer = make(rule, [first, *params], backend=backend)
    optimizer.step([np.ones((2, 2)), *[np.ones_like(p) for p in params]])
    before = snapshot(optimizer, first, *params)
    good = (np.array([1]), np.ones((1, 2))) if rule in RULES else np.ones((2, 2))
    with pytest.raises(error, match=message):
        optimizer.step([good, *[rows for _ in params]])
    assert snapshot(optimizer, first, *params) == before


def test_indices_that_are_refused(backend):
    def of(indices, error, message, shape=(4, 3)):
        refused([np.ones(shape)], (indices, np.ones((2, *shape[1:]))), error, message, backend)

    where = r"the indices of grads\[1\] must be "
    of(np.array([0, 4]), ValueError, where + r"in 0 ... 3, as params\[1\] has 4 row\(s\); got 4 at index 1")
    of(np.array([-1, 0]), ValueError, where + "in 0 ... 3.*got -1 at index 0")
    of(np.array([1, 2**63], np.uint64), ValueError, "got 9223372036854775808 at index 1")
    of(np.array([0]), ValueError, "must be none, as .* has 0 row.*got 0 at index 0", shape=(0, 3))
    of(np.array([[0, 1]]), ValueError, r"vector of row indices, of shape \(k,\); got shape \(1, 2\)")
    of(np.int64(0), ValueError, r"got shape \(\)")
    of(np.array([0.0, 1.0]), TypeError, "integers; got float64")
    of(np.array([True, False, True, True]), TypeError, "integers; got bool")
    of(np.array(["a"]), TypeError, "integers; got <U1")
    of(None, TypeError, "integers; got object")
    of([[0], [0, 1]], ValueError, "rectangular")
    of(np.ma.masked_array([0, 1], [True, False]), TypeError, "masked")


def test_values_that_are_refused(backend):
    def of(values, error, message):
        refused([np.ones((4, 3))], (np.array([0, 2]), values), error, message, backend)

    shape = r"the values of grads\[1\] must have the shape \(2, 3\): a row for each index, like those of params\[1\]"
    of(np.ones((4, 3)), ValueError, shape + r", whose shape is \(4, 3\); got \(4, 3\)")
    of(np.ones((3, 2)), ValueError, shape)
    of(np.ones(2), ValueError, shape)
    of(np.ones((2, 3), "float32"), TypeError, r"values of grads\[1\] must be float64 like params\[1\]; got float32")
    of(np.ones((2, 3), int), TypeError, "must be float64")
    of([[1.0] * 3] * 2, TypeError, "must be a NumPy array, or another that speaks __dlpack__, like")
    of(None, TypeError, "must be a NumPy array, or another that speaks __dlpack__, like .*got None")
    table = np.ones((4, 3))
    refused([table], (np.array([0, 2]), table[1:3]), ValueError, r"values of grads\[1\] shares memory with", backend)
    refused(
        [table], (np.array([0]), np.ones((1, 3)), 3), TypeError, r"the pair \(indices, values\).*tuple of 3", backend
    )
    refused([table], (np.ones((4, 3)),), TypeError, "got a tuple of 1", backend)
    refused(
        [np.ones(())], (np.array([0]), np.ones(1)), ValueError, r"params\[1\] has no rows: its shape is \(\)", backend
    )


@pytest.mark.parametrize("rule", REFUSING)
def test_rules_that_take_whole_gradients_only(rule, backend):
    message = r"grads\[1\] must be an array like params\[1\]; got \(indices, values\): .*SGD, Adagrad and Adam"
    refused([np.ones((4, 3))], (np.array([0]), np.ones((1, 3))), TypeError, message, backend, rule)


@pytest.mark.parametrize("rule", DECOUPLED)
def test_decay_of_all_rows_goes_with_whole_gradients_only(rule, backend):
    p, q = np.ones((4, 3)), np.ones((4, 3))
    groups = [{"params": p, "weight_decay": 0.1}, {"params": q}]
    optimizer = make(rule, groups, backend=backend)
    some = (np.array([0]), np.ones((1, 3)))
    optimizer.step([np.ones((4, 3)), some])
    before = snapshot(optimizer, p, q)
    peer = optimizer._convention.peer
    with pytest.raises(TypeError, match=rf"grads\[0\] must be .* weight decay of {peer} is for all rows in every step"):
        optimizer.step([some, some])
    assert snapshot(optimizer, p, q) == before


def test_a_schedule_is_asked_for_rows_too(backend):
    p = np.zeros((3, 1))
    optimizer = fo.SGD([{"params": np.zeros(1), "lr": 0.0}, {"params": p}], lr=lambda t: 0.5**t, backend=backend)
    for _ in range(2):
        optimizer.step([np.ones(1), (np.array([1]), np.ones((1, 1)))])
    assert p.tolist() == [[0], [-1.5], [0]]


def test_saving_and_copying_between_sparse_steps(backend):
    def train(turn):
        w = drawn((8, 3), "float32")
        optimizer = fo.Adam(w, lr=0.1, backend=backend)
        for seed in range(4):
            indices = np.random.default_rng(seed).integers(0, 8, 5)
            optimizer = turn(optimizer)
            optimizer.step((indices, drawn((5, 3), "float32", seed)))
        return optimizer.param_groups[0]["params"][0].tobytes(), snapshot(optimizer)

    def load(optimizer):
        other = fo.Adam(optimizer.param_groups[0]["params"][0], backend=backend)
        other.load_state_dict(optimizer.state_dict())
        return other

    straight = train(lambda optimizer: optimizer)
    assert train(copy.deepcopy) == train(lambda o: pickle.loads(pickle.dumps(o))) == train(load) == straight


def against_torch(peer, ours, dtype, w, tensor, rtol, each=lambda step: None):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    for step in range(1, 21):
        indices, values = rng.integers(0, len(w), 9), rng.standard_normal((9, *w.shape[1:])).astype(dtype)
        tensor.grad = torch.sparse_coo_tensor(
            torch.tensor(indices)[None], torch.tensor(values), w.shape, check_invariants=True
        )
        peer.step()
        each(step)
        ours.step((indices, values))
        np.testing.assert_allclose(w, tensor.detach().numpy(), rtol=rtol, atol=rtol)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's Adagrad makes such tensors
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["SparseAdam", "SGD", "Adagrad"])
def test_rows_are_torchs(name, dtype, backend):
    torch = pytest.importorskip("torch")
    w = drawn((12, 3), dtype)
    tensor = torch.nn.Parameter(torch.tensor(w))
    rtol = 1e-5 if dtype == "float32" else 1e-12
    if name == "SparseAdam":
        betas, eps = (0.8, 0.95), 1e-2
        peer = torch.optim.SparseAdam([tensor], lr=0.1, betas=betas, eps=eps)
        ours = fo.Adam(w, lr=0.1, betas=betas, backend=backend)

        def each(step):  # its eps is added before the correction
            ours.param_groups[0]["eps"] = eps / np.sqrt(1 - betas[1] ** step)

        against_torch(peer, ours, dtype, w, tensor, rtol, each)
        names = ("exp_avg", "exp_avg_sq")
    else:
        options = {"lr": 0.1} if name == "SGD" else {"lr": 0.1, "lr_decay": 0.1, "eps": 1e-2}
        if name == "Adagrad":
            options["initial_accumulator_value"] = 0.5
        peer = getattr(torch.optim, name)([tensor], **options)
        ours = getattr(fo, name)(w, backend=backend, **options)
        against_torch(peer, ours, dtype, w, tensor, rtol)
        names = () if name == "SGD" else ("sum",)
    for state in names:
        theirs = peer.state[tensor][state].detach().numpy()
        np.testing.assert_allclose(states(ours)[state], theirs, rtol=rtol, atol=rtol)
