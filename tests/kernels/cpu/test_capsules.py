"""Capsules of DLPack, read by a kernel: the address where they say what is expected, and -1 for anything else."""

import ctypes

import numpy as np
import pytest

from fastopt import _dlpack
from fastopt.kernels.cpu import ForeignReader
from fastopt.kernels.cpu.optim.dlpack import CODES, capsule_type

VERSIONED = np.lib.NumpyVersion(np.__version__) >= "2.1.0"
BOTH = [True, False] if VERSIONED else [True]


def capsule(array, old, forge=lambda managed, tensor: None):
    """The capsule of an array, with its content changed by `forge`."""
    made = array.__dlpack__() if old else array.__dlpack__(max_version=(1, 0))
    address = _dlpack._pointer_of(made, _dlpack._name_of(made))
    managed = None if old else _dlpack._Versioned.from_address(address)
    forge(managed, managed.tensor if managed else _dlpack._DLTensor.from_address(address))
    return made


def strides(array):
    return tuple(stride // array.itemsize for stride in array.strides)


def found(made, array, dtype=None, shape=None, place=0, spans=((), ()), known=0):
    dtype, shape = dtype or array.dtype.name, array.shape if shape is None else shape
    return ForeignReader([(dtype, shape, strides(array), place)], *spans).read((made,), [known])[0]


def address(array):
    return array.__array_interface__["data"][0]


def test_capsules_are_known_here():
    assert capsule_type() == id(type(np.ones(3).__dlpack__()))


@pytest.mark.parametrize("old", BOTH)
def test_the_address_is_that_of_the_first_element(old):
    for dtype in ("float32", "float64", "float16"):
        for array in (
            np.ones((3, 4), dtype), np.ones((3, 4), dtype).T, np.ones(20, dtype)[5:17:3], np.ones((), dtype),
            np.ones((4, 3), dtype)[::-1], np.ones((2, 3, 4), dtype).swapaxes(0, 1), np.ones((1, 3), dtype),
        ):  # fmt: skip
            assert found(capsule(array, old), array) == address(array)
    bits = np.ones(5, np.uint16)

    def forge(managed, tensor):
        tensor.code = CODES["bfloat16"][0]

    assert found(capsule(bits, old, forge), bits, "bfloat16") == address(bits)
    assert found(capsule(bits, old), bits, "bfloat16") == -1


@pytest.mark.parametrize("old", BOTH)
def test_other_arrays_than_expected(old):
    array = np.ones((3, 4), np.float32)
    for other in (
        np.ones((3, 4)), np.ones((3, 4), np.float16), np.ones((3, 4), np.int32), np.ones((4, 3), np.float32),
        np.ones(12, np.float32), np.ones((3, 4, 1), np.float32), np.ones((), np.float32), np.ones((3, 5), "f4")[:, :4],
        np.ones((4, 3), np.float32).T, np.ones((3, 4), np.float32)[::-1], np.ones((3, 4), np.complex64),
    ):  # fmt: skip
        assert found(capsule(other, old), array) == -1
    misaligned = capsule(array, old, lambda managed, tensor: setattr(tensor, "byte_offset", 2))
    assert found(misaligned, array) == -1


def forged(**fields):
    def forge(managed, tensor):
        for name, value in fields.items():
            setattr(managed if name in ("major", "flags") else tensor, name, value)

    return forge


@pytest.mark.parametrize("old", BOTH)
def test_what_capsules_may_say(old):
    array = np.ones((3, 4), np.float32)
    here = address(array)
    for fields, expected in (
        ({"byte_offset": 8}, here + 8), ({"device_type": 3}, here), ({"device_type": 11}, here),
        ({"device_id": 7}, here), ({"strides": None}, here), ({"device_type": 2}, -1), ({"device_type": 0}, -1),
        ({"lanes": 2}, -1), ({"lanes": 0}, -1), ({"data": None}, -1), ({"ndim": 1}, -1),
    ):  # fmt: skip
        assert found(capsule(array, old, forged(**fields)), array) == expected, fields
    for major in (1, 2, 0):
        if not old:
            made = capsule(array, old, forged(major=major, flags=1))
            assert found(made, array) == (here if major == 1 else -1)
    turned = np.asfortranarray(array)
    assert found(capsule(turned, old, forged(strides=None)), turned) == -1


def test_strides_of_single_elements_do_not_matter():
    array = np.ones((1, 4), np.float32)
    odd = np.lib.stride_tricks.as_strided(array, (1, 4), (400, 4))
    assert found(capsule(odd, True), array) == found(capsule(array, True), odd) == address(array)
    assert found(capsule(array, True, forged(strides=None)), odd) == address(array)


def test_other_objects_and_names():
    array = np.ones(3, np.float32)
    for other in (None, array, "dltensor", 5, object(), type):
        assert found(other, array) == -1
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
    for name in (b"used_dltensor", b"dltenso", b"dltensors", b"dltensor_version", b"dltensor_versioned2", b""):
        made = capsule(array, True)
        assert found(made, array) == address(array)
        own = _dlpack._name_of(made)
        rename(made, name)
        assert found(made, array) == -1
        rename(made, own)


def test_places_and_memory_that_must_not_be_shared():
    memory = np.zeros(40, np.float32)
    at, parts = address(memory), [memory[:10], memory[10:14], memory[14:40]]
    assert found(capsule(parts[1], True), parts[1], place=at + 40) == at + 40
    assert found(capsule(parts[1], True), parts[1], place=at + 44) == -1
    for starts, ends, free in (
        ([at], [at + 40], True), ([at + 56], [at + 60], True), ([at, at + 56], [at + 40, at + 90], True),
        ([at], [at + 41], False), ([at + 55], [at + 60], False), ([at + 44], [at + 48], False),
        ([at, at + 4], [at + 60, at + 60], False), ([at, at + 4, at + 80], [at + 60] * 2 + [at + 90], False),
    ):  # fmt: skip
        expected = at + 40 if free else -1
        assert found(capsule(parts[1], True), parts[1], spans=(starts, ends)) == expected
        assert found(None, parts[1], spans=(starts, ends), known=at + 40) == expected
    assert found(capsule(parts[1], True), parts[1], place=at + 40, spans=([at], [at + 160])) == at + 40


def test_many_at_once():
    arrays = [np.ones(shape, dtype) for shape in ((3,), (), (2, 5), (7, 1)) for dtype in ("float32", "float64")]
    reader = ForeignReader([(a.dtype.name, a.shape, strides(a), 0) for a in arrays], [], [])
    for left_out in range(len(arrays)):
        made = tuple(None if i == left_out else capsule(a, True) for i, a in enumerate(arrays))
        expected = [-1 if i == left_out else address(a) for i, a in enumerate(arrays)]
        assert reader.read(made, [0] * len(arrays)) == expected
