"""Every kernel of the tables: the list that tests compile and look at, and that may be compiled ahead."""

from __future__ import annotations

from collections.abc import Iterable

from ..formulas import OPTIMIZERS
from ..spec import BLOCKWISE, BLOCKWISE_RANDOM, FORMS, SAME
from .dense.epilogues import dense_kernels
from .dense.finish import FINISH
from .dense.losses import loss_kernels
from .dense.metrics import metric_kernels
from .dense.mixed import mixed_kernels
from .dense.normalization import normalization_kernels
from .dense.rows import rows_kernels
from .optim.blockwise import blockwise_kernel
from .optim.constraints import constraint_kernels
from .optim.counted import COUNT
from .optim.norm import RESOLVE_STEP, squares_kernel
from .optim.penalties import penalties_kernel
from .optim.updates import accumulate_kernel, average_kernel, mask_kernel, update_kernel
from .runtime.compile import Kernel
from .runtime.convert import widen_kernel
from .runtime.float16 import DTYPES_16BIT
from .runtime.storage import COPY, STORES


def forms_of(dtype: str) -> tuple[str, ...]:
    """Return the forms in which arrays of a dtype are updated."""
    return FORMS if dtype in DTYPES_16BIT else (SAME,)


def optimizer_kernels(dtypes: Iterable[str] = tuple(STORES), rules: Iterable[str] = OPTIMIZERS) -> list[Kernel]:
    """Return the kernels of steps on arrays of these dtypes, in every form, by the names of rules in OPTIMIZERS."""
    kernels, rules = [RESOLVE_STEP, COUNT], list(rules)
    for dtype in dtypes:
        kernels += [update_kernel(rule, dtype, form) for form in forms_of(dtype) for rule in rules]
        kernels.append(squares_kernel(dtype))
        if dtype in DTYPES_16BIT:
            kernels.append(widen_kernel(dtype))
        else:
            kernels += [accumulate_kernel(dtype), penalties_kernel(dtype)]
    return list(dict.fromkeys(kernels))


def blockwise_kernels(dtypes: Iterable[str] = tuple(STORES), rules: Iterable[str] = OPTIMIZERS) -> list[Kernel]:
    """Return the kernels of steps on arrays whose states are codes, which are compiled when a plan first needs them."""
    stateful = [rule for rule in rules if OPTIMIZERS[rule].states]
    kernels = [
        blockwise_kernel(rule, dtype, form, storage)
        for dtype in dtypes
        for form in forms_of(dtype)
        for storage in (BLOCKWISE, BLOCKWISE_RANDOM)
        for rule in stateful
    ]
    return list(dict.fromkeys(kernels))


def masked_kernels(rules: Iterable[str] = OPTIMIZERS) -> list[Kernel]:
    """Return the kernels of steps on pruned parameters, which are compiled when a pass first needs them."""
    rules, forms = list(rules), (("float32", SAME), ("float64", SAME), ("bfloat16", COPY))
    return list(dict.fromkeys(update_kernel(rule, *form, masked=True) for form in forms for rule in rules))


def network_kernels(dtypes: Iterable[str] = tuple(STORES), rules: Iterable[str] = OPTIMIZERS) -> list[Kernel]:
    """Return the kernels of layers and losses in these dtypes, without those that train a whole small network.

    rules: those of networks that compute in 16 bits, whose updates write copies of the parameters.
    """
    kernels, rules = list[Kernel](), list(rules)
    for dtype in dtypes:
        kernels += dense_kernels(dtype)
        if dtype != "float16":
            kernels += normalization_kernels(dtype)
        if dtype not in DTYPES_16BIT:
            kernels += [*rows_kernels(dtype), FINISH, *loss_kernels(dtype), *metric_kernels(dtype)]
            kernels += [average_kernel(dtype), mask_kernel(dtype), *constraint_kernels(dtype)]
        elif dtype == "bfloat16":
            kernels += [*mixed_kernels(dtype), *(update_kernel(rule, dtype, COPY) for rule in rules)]
    return list(dict.fromkeys(kernels))


def all_kernels(dtypes: Iterable[str] = tuple(STORES)) -> list[Kernel]:
    """Return every kernel of the tables but `blockwise_kernels` and `masked_kernels`.

    Asking one for its `cubin` loads or compiles it.
    """
    dtypes = list(dtypes)
    return list(dict.fromkeys([*optimizer_kernels(dtypes), *network_kernels(dtypes)]))
