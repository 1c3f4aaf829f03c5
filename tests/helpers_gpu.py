"""Tests on a GPU: an error is reported by the test that caused it, and ends the process that it has spoilt."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from helpers_cuda import SIMULATED
from hypothesis import settings

EXAMPLES = 20  # that hypothesis draws on a GPU, where each may load kernels
SPOILT = 70  # the exit status of a process whose context no longer works

settings.register_profile("gpu", max_examples=EXAMPLES, deadline=None)


@cache
def on_gpu() -> bool:
    """Return True if kernels run on a GPU here."""
    interpreted = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
    if SIMULATED or interpreted or importlib.util.find_spec("numba_cuda") is None:
        return False
    from fastopt.kernels.cuda.installation import require

    try:
        require()
    except ImportError:
        return False
    return True


def wait_for_all() -> None:
    from fastopt.benchmarks.cuda import device

    device.wait_for_all()


def settle(test: str, wait: Callable[[], None] = wait_for_all) -> None:
    """Wait for all work that a test has given to the device; if that failed, end the process.

    A kernel that stops at an illegal address leaves a context in which nothing works. A worker of pytest-xdist ends at
    once: the test is then said to have crashed it, and another worker goes on. Without workers the session ends.
    """
    from fastopt.kernels.cuda.runtime.driver import CudaError

    try:
        wait()
    except CudaError as error:
        said = f"{test}: {error}"
        if "PYTEST_XDIST_WORKER" in os.environ:
            from fastopt.benchmarks.cuda.outcomes import keep_reason

            keep_reason(test, str(error))
            print(said, file=sys.__stderr__, flush=True)
            os._exit(SPOILT)
        pytest.exit(f"{said}; nothing more can run in this process", returncode=SPOILT)


@pytest.fixture(autouse=True)
def settled(request: pytest.FixtureRequest) -> Iterator[None]:
    """Wait for the device after each test."""
    yield
    if on_gpu():
        settle(request.node.nodeid)
