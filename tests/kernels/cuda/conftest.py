"""Small networks are what these tests are made of; those that want them as one kernel say so."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def launch_by_launch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTOPT_CUDA_FUSED", "0")
        yield
