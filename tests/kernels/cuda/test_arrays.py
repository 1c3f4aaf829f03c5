"""Arrays of other libraries on the device: their descriptions, their streams, and those that are refused."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from helpers_cuda import assert_same_bits, on_device, require_device, to_device

require_device()
from fastopt.kernels import cuda, reference
from fastopt.kernels.cuda.runtime.array_interface import current_stream, see
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import ArrayUpdate, Update

pytestmark = pytest.mark.gpu

FLOAT32 = np.dtype(np.float32)
ADAM = OPTIMIZERS["adam"].options


class Foreign:
    """An array of some library, with the interface alone: its memory is not read."""

    def __init__(self, shape=(4, 3), typestr="<f4", strides=None, address=4096, **more):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "strides": strides, "data": (address, False), "version": 3, **more,
        }  # fmt: skip


def test_what_an_array_says_of_itself():
    assert see(Foreign()) == (4096, (4, 3), "float32", True, None)
    assert see(Foreign(stream=7, typestr="<f8")) == (4096, (4, 3), "float64", True, 7)
    assert see(Foreign(shape=(0,), address=None)).address == 0


@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [
        ((4, 3), (12, 4), True),
        ((4, 3), (4, 16), False),
        ((4, 3), (24, 4), False),
        ((4, 3), (12, 8), False),
        ((4, 3), (-12, 4), False),
        ((1, 3), (999, 4), True),
        ((4, 1), (4, 999), True),
        ((0, 3), (999, 999), True),
        ((), (), True),
        ((3,), (0,), False),
    ],
)
def test_contiguous_or_not(shape, strides, dense):
    assert see(Foreign(shape, strides=strides)).contiguous == dense


@pytest.mark.parametrize("array", [np.zeros(3), None, 1.0, [1.0]], ids=repr)
def test_what_is_not_on_the_device_is_refused(array):
    with pytest.raises(TypeError, match=r"an array must be in a GPU's memory; got \w+\.\w+"):
        see(array)


def test_tensors_on_the_host_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="the tensor must be on a CUDA device; got one on cpu"):
        see(torch.zeros(3, requires_grad=True))


class Tensor:
    device, dtype, shape = SimpleNamespace(type="cuda"), "torch.float32", (4, 3)

    def data_ptr(self):
        return 512

    def is_contiguous(self):
        return False


def test_tensors_say_it_in_their_own_words(monkeypatch):
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=11, device=device))
    monkeypatch.setitem(sys.modules, "torch", torch)
    parameter = type("Parameter", (Tensor,), {"__module__": "torch.nn.parameter"})
    of_a_program = type("Weight", (parameter,), {"__module__": "program"})
    for cls in (parameter, of_a_program):
        assert see(cls()) == (512, (4, 3), "float32", False, None)
        assert current_stream(cls()) == 11


def test_the_stream_is_the_librarys_current_one(monkeypatch):
    assert current_stream(Foreign()) == 0
    assert current_stream(Foreign(stream=2)) == 2
    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=13))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    ndarray = type("ndarray", (Foreign,), {"__module__": "cupy._core"})
    assert current_stream(ndarray(stream=2)) == 13


def plan(*shapes, owners=()):
    params = [to_device(np.zeros(shape or 12, "float32")) for shape in shapes]
    return cuda.ArrayPlan(
        [ArrayUpdate("sgd", p, (), FLOAT32, 12, s, 0) for p, s in zip(params, shapes, strict=True)], owners
    )


OTHERS = {
    "none": lambda: None,
    "on the host": lambda: np.zeros((4, 3), "float32"),
    "another dtype": lambda: Foreign(typestr="<f8"),
    "another shape": lambda: Foreign((3, 4)),
    "gaps": lambda: Foreign(strides=(24, 4)),
    "misaligned": lambda: Foreign(address=4098),
}


@pytest.mark.parametrize("case", OTHERS)
def test_gradients_that_need_a_look_are_named(case):
    good = to_device(np.ones((4, 3), "float32"))
    made = plan((4, 3), (4, 3), (4, 3))
    found, others = made.read((good, OTHERS[case](), good))
    assert others == [1]
    assert found.tolist() == [see(good).address, 0, see(good).address]
    made.put(found, 1, good)
    assert found.tolist() == [see(good).address] * 3


def test_owners_and_parameters_without_a_shape():
    good = to_device(np.ones((4, 3), "float32"))
    assert plan((4, 3), owners={id(good)}).read((good,))[1] == [0]
    assert plan(None).read((good,))[1] == [0]


def test_steps():
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (5,), (2, 0), (300,)]
    host = [[np.abs(rng.standard_normal(shape)).astype("float32") for _ in range(3)] for shape in shapes]
    device = [on_device(*arrays) for arrays in host]
    arrays = [ArrayUpdate("adam", p, (m, v), FLOAT32, p.size, p.shape, 0) for p, m, v in device]
    last = len(shapes) - 1
    arrays[last] = arrays[last]._replace(p=None)  # its parameter is given in every step
    made = cuda.ArrayPlan(arrays, ())
    for step in (1, 2, 3):
        given = [rng.standard_normal(shape).astype("float32") for shape in shapes]
        kept = on_device(*given)
        found, others = made.read(tuple(kept))
        assert others == []
        np.testing.assert_allclose(made.norm(found), reference.gradient_norm(given), rtol=1e-14)
        made.update(found, np.full(len(shapes), step), [ADAM], 0.5, {last: device[last][0]})
        for (p, *states), g in zip(host, given, strict=True):
            reference.update([Update("adam", p, g, tuple(states), ADAM, step)], 0.5)
    for ours, theirs in zip(device, host, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)
