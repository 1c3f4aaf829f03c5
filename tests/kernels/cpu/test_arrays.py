"""Which gradients are read as they are, and that the others get there just as well."""

import numpy as np
import pytest

import fastopt as fo
from fastopt.kernels.cpu import ArrayPlan
from fastopt.kernels.cpu.optim import arrays
from fastopt.kernels.cpu.runtime.primitives import address_of
from fastopt.kernels.spec import ArrayUpdate

FLOAT32 = np.dtype(np.float32)


@pytest.fixture
def slowly(monkeypatch):
    monkeypatch.setattr(arrays, "layout_known", lambda: False)


def plan(*shapes, owners=(), dtype=FLOAT32):
    """For parameters of these shapes; None: its gradients need a look."""
    made = []
    for shape in shapes:
        p = np.zeros(shape if shape is not None else 4, dtype)
        made.append(ArrayUpdate("sgd", p, (), dtype, p.size, shape, 0))
    return ArrayPlan(made, owners)


def test_tuples_and_arrays_lie_in_memory_as_the_kernel_expects():
    assert arrays.layout_known()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_as_expected_are_read(dtype):
    dtype = np.dtype(dtype)
    shapes = [(4,), (), (2, 3), (0,), (2, 0, 3), (1, 2, 3, 4, 5), (7, 1)]
    gradients = tuple(np.ones(shape, dtype) for shape in shapes)
    found, others = plan(*shapes, dtype=dtype).read(gradients)
    assert found.tolist() == [address_of(g) for g in gradients]
    assert others == []


class Own(np.ndarray):
    pass


OTHERS = {
    "none": lambda: None,
    "a list": lambda: [[0.0] * 3] * 4,
    "a number": lambda: 1.0,
    "a type": lambda: np.ndarray,
    "a scalar": lambda: np.float32(1),
    "another dtype": lambda: np.ones((4, 3)),
    "integers": lambda: np.ones((4, 3), np.int32),
    "swapped bytes": lambda: np.ones((4, 3), np.dtype(np.float32).newbyteorder()),
    "fewer axes": lambda: np.ones(12, np.float32),
    "more axes": lambda: np.ones((4, 3, 1), np.float32),
    "another first length": lambda: np.ones((5, 3), np.float32),
    "another last length": lambda: np.ones((4, 2), np.float32),
    "another order": lambda: np.ones((4, 3), np.float32, order="F"),
    "gaps": lambda: np.ones((4, 6), np.float32)[:, ::2],
    "a view": lambda: np.ones((8, 3), np.float32)[4:],
    "foreign memory": lambda: np.frombuffer(bytes(48), np.float32).reshape(4, 3),
    "misaligned": lambda: np.frombuffer(bytearray(49), np.float32, 12, 1).reshape(4, 3),
    "a subclass": lambda: np.ones((4, 3), np.float32).view(Own),
    "a masked array": lambda: np.ma.ones((4, 3), np.float32),
}


@pytest.mark.parametrize("case", OTHERS)
def test_others_are_not_read(case):
    good = np.ones((4, 3), np.float32)
    found, others = plan((4, 3), (4, 3), (4, 3)).read((good, OTHERS[case](), good))
    assert others == [1]
    assert found.tolist() == [address_of(good), 0, address_of(good)]


def test_owners_of_parameters_memory_are_not_read():
    made = [np.ones(4, np.float32) for _ in range(9)]
    for some in ([], [0], [8], [1, 4, 7], range(9)):
        found, others = plan(*[(4,)] * 9, owners={id(made[i]) for i in some}).read(tuple(made))
        assert others == list(some)
        assert found.tolist() == [0 if i in some else address_of(array) for i, array in enumerate(made)]


def test_nothing_is_read_for_parameters_whose_gradients_need_a_look():
    g = np.ones(4, np.float32)
    assert plan((4,), None, (4,)).read((g, g, g))[1] == [1]


def test_nothing_is_read_where_the_layout_is_not_known(slowly):
    g = np.ones(4, np.float32)
    found, others = plan((4,), (4,)).read((g, g))
    assert (found.tolist(), others) == ([0, 0], [0, 1])


def steps(monkeypatch, known):
    if not known:
        monkeypatch.setattr(arrays, "layout_known", lambda: False)
    rng = np.random.default_rng(0)
    memory = rng.standard_normal((6, 8)).astype("float32")
    params = [rng.standard_normal((4, 3)), rng.standard_normal(5), memory[:, ::2], memory[:, 1].copy(), np.zeros(0)]
    opt = fo.Adam(params, lr=0.1, clip_norm=3.0)
    for step in range(5):
        gradients = [rng.standard_normal(p.shape).astype(p.dtype) for p in params]
        gradients[step] = None
        opt.step(gradients)
    return params, [state for states in opt.states for state in states], opt.state_dict()["state"]


def test_both_ways_lead_to_the_same_bits(monkeypatch):
    quick, slow = (steps(monkeypatch, known) for known in (True, False))
    for ours, theirs in zip([*quick[0], *quick[1]], [*slow[0], *slow[1]], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [entry["step"] for entry in quick[2].values()] == [4] * 5
    assert [entry["step"] for entry in slow[2].values()] == [4] * 5
