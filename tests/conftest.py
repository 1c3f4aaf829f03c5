"""Fixtures that several test modules use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastopt import _backends, cli


@pytest.fixture(params=list(_backends.HOST))
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend in turn."""
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a model file, in a folder of its own."""
    return tmp_path / "model.safetensors"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that runs a command line in this process and returns (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        return (status, *capsys.readouterr())

    return run
