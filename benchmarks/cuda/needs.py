"""Where these suites can run."""

from __future__ import annotations

import pytest

from fastopt.kernels.cuda.installation import require


def require_device() -> None:
    """Skip a module where there is neither a GPU nor the simulator of one."""
    try:
        require()
    except ImportError as error:
        pytest.skip(f"{error}; or set NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)
