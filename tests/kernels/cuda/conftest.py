"""Small networks are what these tests are made of; those that want them as one kernel say so."""

import pytest


@pytest.fixture(autouse=True)
def launch_by_launch(monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", "0")
