"""Primitives of kernels: the compiled ones and their twins in Python do the same."""

import sys
import threading

import numpy as np
import pytest
from numba import njit

from fastopt.kernels.cpu.runtime import frontend, primitives
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import (
    INTERPRETED,
    PYTHON_CODE,
    address_of,
    aligned_zeros,
    atomic_add,
    atomic_load,
    call_int,
    call_phase,
    call_tile,
    python_address,
    relax,
    view,
)
from fastopt.kernels.cpu.runtime.teams import yield_address

RECORD = np.dtype([("count", "i8"), ("scale", "f8"), ("stream", "u8")])


def kernel(function):
    """A kernel under a name of its own, in the cache as in the process."""
    return Kernel(function, f"test_{function.__name__}")


@pytest.fixture(autouse=True)
def own_names(monkeypatch, tmp_path):
    monkeypatch.setattr(Kernel, "names", {})
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_a_view_is_the_memory_itself(dtype):
    def double(address, size):
        numbers = view(address, size, dtype)
        for i in range(size):
            numbers[i] *= 2

    array = np.arange(5).astype(dtype)
    kernel(double)(address_of(array[1:]), 3)
    assert array.tolist() == [0, 2, 4, 6, 4]


def test_a_view_of_records():
    def scale(address, into):
        record = view(address, 2, RECORD)[1]
        view(into, 1, np.float64)[0] = record.count * record.scale
        record.count = record.count + 1
        record.stream = record.stream

    records, into = np.zeros(2, RECORD), np.zeros(1)
    records[1] = 3, 1.5, 2**64 - 1
    kernel(scale)(address_of(records), address_of(into))
    assert into[0] == 4.5
    assert records[1].tolist() == (4, 1.5, 2**64 - 1)
    assert records[0].tolist() == (0, 0.0, 0)


def test_a_view_of_nothing():
    def count(address, into):
        view(into, 1, np.int64)[0] = view(address, 0, np.float32).size

    into = np.ones(1, np.int64)
    kernel(count)(0, address_of(into))
    assert into[0] == 0


def test_atomics_lose_nothing():
    def add(address, times):
        for _ in range(times):
            atomic_add(address, 1)
            atomic_add(address + 8, -2)
            relax()

    each, count = (50, 4) if INTERPRETED else (50_000, 4)
    words, adder = np.zeros(2, np.int64), kernel(add)
    assert adder.address
    threads = [threading.Thread(target=adder, args=(address_of(words), each)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert words.tolist() == [each * count, -2 * each * count]


def test_atomics_return_what_was_there():
    def both(address, into):
        found = view(into, 2, np.int64)
        found[0] = atomic_add(address, 5)
        found[1] = atomic_load(address)

    word, into = np.array([7]), np.zeros(2, np.int64)
    kernel(both)(address_of(word), address_of(into))
    assert into.tolist() == [7, 12]


def test_kernels_call_kernels_by_address():
    def note(work, step, rank, num_ranks):
        numbers = view(work, 3, np.int64)
        numbers[0], numbers[1], numbers[2] = step, rank, num_ranks

    def tile(a, b, c, d, rows, columns, stride):
        view(a, 1, np.int64)[0] = b + 10 * c + 100 * d + 1000 * rows + 10_000 * columns + 100_000 * stride

    def outer(phase, work, code, into):
        call_phase(phase, work, 4, 5, 6)
        call_tile(code, into, 1, 2, 3, 4, 5, 6)

    numbers, into = np.zeros(3, np.int64), np.zeros(1, np.int64)
    kernel(outer)(kernel(note).address, address_of(numbers), kernel(tile).address, address_of(into))
    assert numbers.tolist() == [4, 5, 6]
    assert into[0] == 654321


def test_the_processor_can_be_given_up():
    def give(code, into):
        view(into, 1, np.int64)[0] = call_int(code)

    into = np.full(1, 9)
    kernel(give)(yield_address(), address_of(into))
    assert into[0] == 0 or (sys.platform == "win32" and into[0] == 1)


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_the_twins_do_the_same():
    frontend.prepare()
    compiled_add, compiled_load = (
        njit(lambda address, value: primitives._atomic_add(address, value)),
        njit(lambda address: primitives._atomic_load(address)),
    )
    words = np.array([3, 3])
    first, second = address_of(words), address_of(words[1:])
    assert compiled_add(first, -9) == primitives._atomic_add_python(second, -9) == 3
    assert compiled_load(first) == primitives._atomic_load_python(second) == -6
    primitives._relax_python()
    array = np.arange(6.0)
    assert primitives._view_python(address_of(array[2:]), 3, np.float64).tolist() == [2, 3, 4]
    assert primitives._view_python(0, 0, np.float64).size == 0
    assert primitives._call_python(python_address(lambda a, b: a - b), 5, 3) == 2


def test_python_addresses_are_distinct_and_not_zero():
    addresses = [python_address(int) for _ in range(3)]
    assert len(set(addresses)) == 3
    assert 0 not in addresses
    assert PYTHON_CODE[addresses[0]]("7") == 7


@pytest.mark.parametrize("size", [0, 1, 15, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_aligned_zeros(size, dtype):
    array = aligned_zeros(size, dtype)
    assert (array.shape, array.dtype, array.flags.writeable) == ((size,), np.dtype(dtype), True)
    assert not array.any()
    assert size == 0 or address_of(array) % 64 == 0


def test_no_array_is_at_zero():
    array = np.arange(9)
    assert address_of(None) == 0
    assert address_of(array[2:]) == address_of(array) + 16
