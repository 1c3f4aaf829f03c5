"""Walks of calls that are made often: calls of functions, files and changes of file stay within bounds."""

import pytest
from helpers_walk import Walk, numpy_step, predict_row, second_fit, torch_step, walk, warm_walk

from fastopt.kernels.cpu.runtime.primitives import INTERPRETED

# calls, files entered, changes of file
BOUNDS = {numpy_step: (20, 8, 12), torch_step: (25, 7, 12), second_fit: (130, 28, 66), predict_row: (22, 7, 11)}


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are calls of Python, too")
@pytest.mark.parametrize("make", BOUNDS, ids=lambda make: make.__name__)
def test_walk(make):
    if make is torch_step:
        pytest.importorskip("torch")
    walk = warm_walk(make)
    found = walk.calls, walk.files, walk.changes
    assert all(0 < value <= bound for value, bound in zip(found, BOUNDS[make], strict=True)), str(walk)


def test_calls_outside_fastopt_do_not_count():
    assert walk(lambda: sorted([2, 1], key=lambda n: n)).path == []


def test_counts_of_a_walk():
    found = Walk([("a", "f"), ("a", "g"), ("b", "h"), ("a", "f")])
    assert (found.calls, found.files, found.changes) == (4, 2, 2)
    assert str(found).startswith("4 calls, 2 files, 2 changes of file\n    a  f\n")
