"""Every kernel of the tables: what tests compile and look at, and what may be compiled ahead."""

from __future__ import annotations

from collections.abc import Iterable

from ..formulas import OPTIMIZERS
from .compile import Kernel
from .norm import SETTLE, squares_kernel
from .updates import accumulate_kernel, update_kernel


def all_kernels(dtypes: Iterable[str] = ("float32", "float64")) -> list[Kernel]:
    """Every kernel; asking one for its `cubin` loads or compiles it."""
    kernels = [SETTLE]
    for dtype in dtypes:
        kernels += [update_kernel(name, dtype) for name in OPTIMIZERS]
        kernels += [accumulate_kernel(dtype), squares_kernel(dtype)]
    return list(dict.fromkeys(kernels))
