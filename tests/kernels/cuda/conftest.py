"""Small networks are what these tests are made of; those that want them as one kernel say so.

On a GPU each test waits for it at the end, and hypothesis draws fewer examples.
"""

import pytest
from helpers_gpu import on_gpu, settled  # noqa: F401 (a fixture)
from hypothesis import settings

if on_gpu():
    settings.load_profile("gpu")


@pytest.fixture(autouse=True, scope="module")
def launch_by_launch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTOPT_CUDA_FUSED", "0")
        yield
