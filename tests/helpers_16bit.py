"""Arrays of float16 and bfloat16, which NumPy does not have, for the tests of the optimizers."""

from __future__ import annotations

import numpy as np

from fastopt import _dlpack
from fastopt.kernels.reference.bits16 import store, widened

from .optimizers import LAYOUTS, drawn

KINDS = ("float16", "bfloat16")
FINE = {"float16": 11, "bfloat16": 8}  # half of the distance from 1 to the next number is 2**-FINE
FORMS = {"master": {}, "stochastic": {"master_weights": False, "seed": 3}}
SHAPES = [(3, 4), (5,), (), (0, 2), (1,), (2, 3, 4)]
# Where kernels meet the elements in the same order, by which rounding at random counts them.
SAME_ORDER = [name for name in LAYOUTS if name not in ("fortran", "permuted")]


class Exporter:
    """What DLPack says of an array; one of uint16 holds bfloat16, which NumPy cannot export."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **asked):
        capsule = self.array.__dlpack__()
        address = _dlpack._pointer_of(capsule, _dlpack._name_of(capsule))
        if self.array.dtype == np.uint16:
            _dlpack._DLTensor.from_address(address).code = 4
        return capsule

    def __dlpack_device__(self):
        return 1, 0


def as_16bit(values, kind):
    """As an array of float16, or of the bits of bfloat16."""
    out = np.zeros(np.shape(values), np.float16 if kind == "float16" else np.uint16)
    store(np.asarray(values, np.float32, order="C"), out)
    return out


def given(array):
    """An array that optimizers take: bits of bfloat16 by way of DLPack."""
    return array if array.dtype.kind == "f" else Exporter(array)


def numbers(shape, kind, seed=0):
    return as_16bit(np.asarray(drawn(shape, "float32", seed)), kind)


def values(arrays):
    return [widened(np.array(a, a.dtype.newbyteorder("="), order="C")).tolist() for a in arrays]


def laid_out(layout, array):
    """In a layout; DLPack has no foreign byte order."""
    if layout == "byte-swapped" and array.dtype == np.uint16:
        layout = "gaps"
    return LAYOUTS[layout](array)
