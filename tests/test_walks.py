"""Walks of calls that are made often: calls of functions, files and changes of file stay within bounds."""

import pytest
from helpers_walk import second_fit, warm_walk

BOUNDS = {second_fit: (200, 20, 90)}


@pytest.mark.parametrize("make", BOUNDS, ids=lambda make: make.__name__)
def test_walk(make):
    walk = warm_walk(make)
    found = walk.calls, walk.files, walk.changes
    assert all(value <= bound for value, bound in zip(found, BOUNDS[make], strict=True)), str(walk)
