"""Machine code of updates of pruned parameters: the mask is read with the others, and there are no other passes."""

from __future__ import annotations

import re

import pytest
from helpers_cuda import assert_exact_code, require_compiler
from optimizers import first_of_its_kind

require_compiler()
from fastopt.kernels.cuda.kernels import masked_kernels
from fastopt.kernels.cuda.optim.updates import update_kernel
from fastopt.kernels.cuda.runtime.storage import COPY
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import SAME

REGISTERS = 128  # most of a thread, of 65536, for 2 blocks of 256 threads at once
SOME = [update_kernel(rule, "float32", masked=True) for rule in ("sgd", "adam")]
SOME.append(update_kernel("amsgrad", "bfloat16", COPY, masked=True))
OTHERS = [kernel for kernel in masked_kernels(filter(first_of_its_kind, OPTIMIZERS)) if kernel not in SOME]
CASES = [*SOME, *(pytest.param(kernel, marks=pytest.mark.repeats) for kernel in OTHERS)]


@pytest.mark.parametrize("kernel", CASES, ids=lambda kernel: kernel.name)
def test_machine_code(kernel):
    for capability in ((8, 0), (9, 0)):
        assert_exact_code(kernel.listing(capability), REGISTERS)


@pytest.mark.parametrize("form", [("float32", SAME), ("bfloat16", COPY)], ids=["float32", "copy"])
def test_one_load_more_than_without_a_mask(form):
    """Loads of 128 bits are of p, g, m and v, and of the mask; what is stored is the same."""
    (loads, stores), (more, same) = (_vectors(update_kernel("adam", *form, masked=masked)) for masked in (False, True))
    assert more * 4 == loads * 5 > 0
    assert same == stores > 0


def _vectors(kernel):
    ptx = kernel.listing((9, 0)).ptx
    return [len(re.findall(rf"\b{word}\.global[\w.]*\.v[24]\.", ptx)) for word in ("ld", "st")]
