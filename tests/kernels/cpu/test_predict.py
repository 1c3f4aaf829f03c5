"""Predictions of few rows: the bits of many rows, programs that are kept for the next call, and one for each thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastopt.kernels import cpu
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.cpu.training import network
from fastopt.kernels.spec import DenseSpec

WIDTHS = (61, 300, 130, 7)  # columns for wide tiles of a row, for narrow ones, and some that are left
WAIT = 60


def made(dtype="float32", widths=WIDTHS, activation="relu"):
    rng = np.random.default_rng(0)
    layers, params = [], []
    for i in range(len(widths) - 1):
        last = i == len(widths) - 2
        layers.append(DenseSpec(widths[i], widths[i + 1], "softmax" if last else activation))
        params += [rng.standard_normal(shape).astype(dtype) for shape in (widths[i : i + 2], widths[i + 1])]
    return cpu.Network(layers, params, dtype), rng.standard_normal((40, widths[0])).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_alone_as_among_others(dtype):
    net, x = made(dtype)
    whole = net.predict(x)
    alone = np.concatenate([net.predict(x[i : i + 1]) for i in range(len(x))])
    # interpreted, products are a BLAS's, whose order of additions depends on the rows, and logits differ by roundings
    atol = 16 * np.finfo(dtype).eps if INTERPRETED else 1e-30
    np.testing.assert_allclose(alone, whole, rtol=1e-5 if dtype == "float32" else 1e-13, atol=atol)


def test_programs_of_some_sizes_are_kept():
    net, x = made()
    for rows in (1, 2, 3, 1):
        net.predict(x[:rows])
    assert list(net._predictors) == [(1, 1), (2, 1), (3, 1)]
    (program,) = net._predictors[1, 1]
    net.predict(x[:1])
    assert net._predictors[1, 1] == [program]
    for rows in range(4, 9):
        net.predict(x[:rows])
    assert list(net._predictors) == [(5, 1), (6, 1), (7, 1), (8, 1)]


def test_large_programs_are_not_kept(monkeypatch):
    net, x = made()
    monkeypatch.setattr(network, "SPARE_BYTES", 0)
    net.predict(x)
    assert not net._predictors


def test_threads_have_programs_of_their_own(monkeypatch):
    """Four threads are inside a program at the same time; each program, and no copy of a weight, is kept."""
    net, x = made()
    expected = [net.predict(x[i : i + 1]) for i in range(4)]
    inside, execute, seen = threading.Barrier(4), network.Program.execute, []

    def met(self, *args):
        inside.wait(WAIT)  # all four have taken their program
        seen.append(self)
        return execute(self, *args)

    monkeypatch.setattr(network.Program, "execute", met)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            found = [one.result(WAIT) for one in [pool.submit(net.predict, x[i : i + 1]) for i in range(4)]]
            np.testing.assert_array_equal(found, expected)
    first, second = seen[:4], seen[4:]
    assert len(set(map(id, first))) == len(set(map(id, second))) == 4
    assert set(map(id, net._predictors[1, 1])) == set(map(id, second))


def test_threads_predict_what_one_does():
    net, x = made()
    pieces = [x[i : i + n] for n in (1, 2, 5, 40) for i in range(0, 40, n)]
    expected = [net.predict(piece) for piece in pieces]
    start = threading.Barrier(8)

    def predict(shift):
        start.wait(WAIT)
        order = np.roll(np.arange(len(pieces)), shift)
        return {int(i): net.predict(pieces[i]) for _ in range(3) for i in order}

    with ThreadPoolExecutor(8) as pool:
        results = [one.result(WAIT) for one in [pool.submit(predict, 9 * k) for k in range(8)]]
    for result in results:
        for i, outputs in enumerate(expected):
            np.testing.assert_array_equal(result[i], outputs)
    assert len(net._predictors) <= network.SPARE_SIZES
