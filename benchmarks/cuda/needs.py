"""Requirement of these suites: a device."""

from __future__ import annotations

import pytest

from fastopt.kernels.cuda.installation import require


def require_device() -> None:
    """Skip a module without a GPU and without the simulator."""
    try:
        require()
    except ImportError as error:
        pytest.skip(f"{error}; or set NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)
