"""Fixtures that several test modules use."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastopt import _backends


@pytest.fixture(params=list(_backends.HOST))
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend in turn."""
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a model file, in a folder of its own."""
    return tmp_path / "model.safetensors"
