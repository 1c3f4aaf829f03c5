"""Batches of sizes of their own on the device: launches for each number of rows, from rows laid apart."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_cuda import require_device

require_device()
from helpers_network import compare_sizes

from fastopt.kernels import cuda
from fastopt.kernels.cuda.training import data_feed

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("accumulate", "clip_norm"), [(1, None), (2, 0.05)])
def test_sizes_are_those_of_the_batches(accumulate, clip_norm):
    run = compare_sizes(cuda, [[3, 1, 4], [2, 4, 3, 2]], accumulate, clip_norm=clip_norm)
    kept = run.net._kept["train"][1]
    run.train(*run.net._kept["train"][1].batches.arrays, np.arange(5), 4, accumulate=accumulate, clip_norm=clip_norm,
              sizes=np.array([4, 1]))  # fmt: skip
    assert run.net._kept["train"][1] is kept


def test_data_that_are_streamed(monkeypatch):
    monkeypatch.setattr(data_feed, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(data_feed, "PART_BYTES", 1)
    compare_sizes(cuda, [[3, 1, 4, 2]])
