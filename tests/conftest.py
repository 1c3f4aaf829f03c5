"""Fixtures that several test modules use."""

from __future__ import annotations

from pathlib import Path

import helpers_guard
import pytest

from fastopt import _backends


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--guard", choices=("end", "start"), help="lay all arrays flush against inaccessible pages")


def pytest_configure(config: pytest.Config) -> None:
    if side := config.getoption("--guard"):
        config.guard = helpers_guard.guarded_memory(side)
        config.guard.__enter__()


@pytest.fixture(params=list(_backends.HOST))
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend in turn."""
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a model file, in a folder of its own."""
    return tmp_path / "model.safetensors"
