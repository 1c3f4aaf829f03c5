"""Every kernel of the tables: what tests compile and look at, and what may be compiled ahead."""

from __future__ import annotations

from collections.abc import Iterable

from ..formulas import OPTIMIZERS
from ..spec import FORMS, SAME
from .compile import Kernel
from .counted import COUNT
from .halves import HALVES
from .norm import SETTLE, squares_kernel
from .storage import STORES, widen_kernel
from .updates import accumulate_kernel, update_kernel


def forms_of(dtype: str) -> tuple[str, ...]:
    """The forms in which arrays of a dtype are updated."""
    return FORMS if dtype in HALVES else (SAME,)


def all_kernels(dtypes: Iterable[str] = tuple(STORES)) -> list[Kernel]:
    """Every kernel; asking one for its `cubin` loads or compiles it."""
    kernels = [SETTLE, COUNT]
    for dtype in dtypes:
        kernels += [update_kernel(name, dtype, form) for form in forms_of(dtype) for name in OPTIMIZERS]
        kernels.append(squares_kernel(dtype))
        kernels.append(widen_kernel(dtype) if dtype in HALVES else accumulate_kernel(dtype))
    return list(dict.fromkeys(kernels))
