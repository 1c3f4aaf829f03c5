"""Fixtures of the CPU kernels' tests."""

from __future__ import annotations

import contextlib

import pytest

from fastopt.kernels.cpu.dense import losses
from fastopt.kernels.cpu.runtime import launch
from fastopt.kernels.cpu.training import network


@pytest.fixture
def threads(monkeypatch):
    """threads(n): let kernels use n threads, also for work that is too small to deserve them."""
    monkeypatch.setattr(launch, "_threads", None)

    @contextlib.contextmanager
    def use(n):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "_threads", n)
            patch.setattr(network, "STEP_FLOPS", 1)
            patch.setattr(network, "PASS_FLOPS", 1)
            patch.setattr(losses, "ELEMENTS_PER_THREAD", 1)
            yield

    return use
