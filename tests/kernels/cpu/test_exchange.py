"""torch's tensors, read by a kernel through DLPack's C exchange API, and the numbers of steps that torch keeps."""

import ctypes

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="in the extra `torch`")

from fastopt.kernels.cpu import ForeignReader  # noqa: E402
from fastopt.kernels.cpu.optim import dlpack  # noqa: E402
from fastopt.kernels.cpu.optim.counters import StepCounters  # noqa: E402

EXCHANGE = dlpack.tensor_exchange()
exchange = pytest.mark.skipif(EXCHANGE is None, reason="torch before 2.10 has no C exchange API")
DTYPES = ("float32", "float64", "float16", "bfloat16")


def layout(tensor, place=0):
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.stride(), place


def reader(*tensors, spans=((), ()), place=0):
    made = ForeignReader([layout(t, place) for t in tensors], *spans)
    assert made.reads_tensors()
    return made


def found(tensor, expected=None, **more):
    return reader(tensor if expected is None else expected, **more).read((tensor,), [0])[0]


class Own(torch.Tensor):
    pass


def test_torch_2_10_and_newer_has_the_api():
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    assert (EXCHANGE is not None) == (version >= (2, 10))


@exchange
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_address_is_that_of_the_first_element(dtype):
    whole = torch.zeros(3, 4, 5, dtype=getattr(torch, dtype))
    for tensor in (
        whole, whole.transpose(0, 2), whole[1:, ::2], whole[2, 3, 4], whole[:, :, :1], torch.nn.Parameter(whole[0]),
        whole.clone().requires_grad_(), whole.expand(2, 3, 4, 5),
    ):  # fmt: skip
        assert found(tensor) == tensor.data_ptr() > 0


@exchange
def test_tensors_other_than_expected():
    tensor = torch.zeros(3, 4)
    for other in (
        torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.int32), torch.zeros(4, 3),
        torch.zeros(4, 3).t(), torch.zeros(3, 4, 1), torch.zeros(3, 4, dtype=torch.complex64), torch.zeros(0, 4),
        torch.zeros(3, 8)[:, ::2], torch.zeros(3, 4).as_subclass(Own), torch.zeros(3, 4, device="meta"), None, 3, "x",
    ):  # fmt: skip
        assert found(other, tensor) == -1
    odd = np.zeros(49, np.uint8)[1:]
    assert found(torch.frombuffer(odd, dtype=torch.float32).view(3, 4), tensor) == -1  # misaligned
    assert found(torch.zeros(1, 8)[:, :4], torch.zeros(1, 4)) > 0  # strides of single elements do not matter


@exchange
def test_places_and_shared_memory():
    tensor = torch.zeros(4)
    at = tensor.data_ptr()
    assert found(tensor, place=at) == at
    assert found(tensor, place=at + 4) == -1
    assert found(tensor, spans=([at + 12], [at + 16])) == -1
    assert found(tensor, spans=([at + 16], [at + 20])) == at


@exchange
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_error_of_the_api_leaves_the_others_unread(broken):
    tensors = [torch.zeros(2, 2) for _ in range(3)]
    made = reader(*tensors)
    given = list(tensors)
    given[broken] = torch.eye(2).to_sparse()  # without an address: the API raises
    assert not made.locate(tuple(given))
    assert made.into[broken:].tolist() == [-1] * (3 - broken)
    assert made.locate(tuple(tensors))  # no error is left over
    assert made.into.tolist() == [t.data_ptr() for t in tensors]


@exchange
def test_some_of_the_arrays():
    tensors = [torch.zeros(n + 1) for n in range(5)]
    made = reader(*tensors)
    assert made.locate((tensors[3], tensors[1]), np.array([3, 1]))
    assert made.into[:2].tolist() == [tensors[3].data_ptr(), tensors[1].data_ptr()]
    assert not made.locate((tensors[3], tensors[1]), np.array([1, 3]))


@exchange
def test_tensors_and_capsules_at_once():
    tensor, array = torch.zeros(3), np.zeros(3, np.float32)
    made = reader(tensor, tensor, tensor)
    known = 64 * 1024
    addresses = made.read((tensor, array.__dlpack__(), None), [0, 0, known])
    assert addresses == [tensor.data_ptr(), array.ctypes.data, known]


@exchange
def test_reading_keeps_no_reference():
    import gc
    import weakref

    tensor = torch.zeros(3)
    made, gone = reader(tensor), weakref.ref(tensor)
    assert made.locate((tensor,))
    del tensor
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- other tables than torch's
def table(version, older, code):
    return (ctypes.c_int64 * 7)(version, older, 0, 0, 0, code, 0)


def test_tables_of_other_versions():
    oldest = table(1 | 2 << 32, 0, 11)
    newest = table(2, ctypes.addressof(oldest), 22)
    assert dlpack._exchange_code(ctypes.addressof(oldest)) == 11
    assert dlpack._exchange_code(ctypes.addressof(newest)) == 11
    assert dlpack._exchange_code(ctypes.addressof(table(2, 0, 22))) == 0
    assert dlpack._exchange_code(ctypes.addressof(table(1, 0, 0))) == 0  # the function is optional


@pytest.mark.parametrize("capsule", [None, 5, "text", np.zeros(1).__dlpack__()], ids=["none", "int", "text", "named"])
def test_what_is_no_table_is_not_used(capsule):
    class Library:
        Tensor = type("Tensor", (), {"__dlpack_c_exchange_api__": capsule})

    assert dlpack._tensor_exchange(Library) is None


@exchange
@pytest.mark.parametrize("word", range(6))
def test_a_function_that_describes_tensors_otherwise_is_not_used(word, monkeypatch):
    """Each word of the DLTensor is compared, so that another layout would be noticed."""
    right = dlpack._exchange_function

    def wrong(code):
        def fill(address, tensor):
            result = right(code)(address, tensor)
            ctypes.c_int64.from_address(tensor + 8 * word).value += 8
            return result

        return fill

    real = dlpack._exchange_code(_table_of_torch())
    assert all(dlpack._is_described(real, tensor) for tensor in dlpack._samples(torch))
    monkeypatch.setattr(dlpack, "_exchange_function", wrong)
    assert not all(dlpack._is_described(real, tensor) for tensor in dlpack._samples(torch))


def _table_of_torch():
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    capsule = torch.Tensor.__dlpack_c_exchange_api__
    return pointer_of(("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, b"dlpack_exchange_api")


# ---------------------------------------------------------------- counters
def test_counters():
    single, double = np.array([4.0], np.float32), np.array([7.0])
    counters = StepCounters([(single.ctypes.data, 4), (0, 0), (double.ctypes.data, 8)], otherwise=2)
    gradients = np.array([1, 1, 1])
    assert counters.next_steps(gradients.ctypes.data).tolist() == [5, 2, 8]
    counters.advance(gradients.ctypes.data)
    assert (single[0], double[0]) == (5, 8)
    gradients[2] = 0  # left out
    assert counters.next_steps(gradients.ctypes.data)[:2].tolist() == [6, 2]
    counters.advance(gradients.ctypes.data)
    assert (single[0], double[0]) == (6, 8)
