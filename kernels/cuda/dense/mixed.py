"""Networks whose layers compute in 16 bits: the dtype of each array, and conversions.

    float32    the parameters, their gradients and states; data and targets; the outputs of the last layer, the loss,
               its gradient by them, and metrics
    16 bits    copies of the parameters, which the update writes, too; the rows of a batch; the arrays between layers,
               forward and backward

Products read operands of 16 bits, add up in float32, and round once if their result has 16 bits. torch's autocast and
Keras' mixed precision do the same, but they round outputs and gradients, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runtime.compile import THREADS, Kernel
from ..runtime.convert import narrow_kernel
from ..runtime.device import launch
from ..runtime.memory import Block, Mirror
from ..runtime.storage import STORES
from .products import BYTES
from .rows import gather_narrow_kernel, random_kernels


def mixed_kernels(dtype: str) -> list[Kernel]:
    """Kernels of such networks besides updates, dense layers of this dtype, and all else in float32."""
    gathers = [gather_narrow_kernel(dtype, width) for width in (1, STORES[dtype].width)]
    return list(dict.fromkeys([narrow_kernel(dtype), *gathers, *random_kernels(dtype)]))


def narrow(gpu: Any, stream: int, dtype: str, source: int, into: int, elements: int) -> None:
    """into = source: float32 rounded to a 16-bit dtype; `into` is aligned to 16 bytes."""
    pieces = -(-elements // (THREADS * STORES[dtype].width))
    launch(gpu, narrow_kernel(dtype), pieces, stream, source, into, elements)


class Weights(Mirror):
    """The parameters on the device, and copies of 16 bits where layers read those.

    copies: addresses of the copies, if there are any; read: addresses that layers read, in the order of the parameters.
    whole: indices of parameters that are read without a copy: the last bias, which is added to outputs of float32, and
    those of normalization.
    """

    def __init__(self, gpu: Any, params: Sequence[np.ndarray], compute: str, whole: Sequence[int]) -> None:
        super().__init__(gpu, params)
        self.compute, self.copies, self.read = compute, list[int](), self.addresses
        if any(p.dtype.name != compute for p in params):
            self._block16 = Block(gpu, [p.size * BYTES[compute] for p in params])
            self.copies = self._block16.addresses
            self.read = list(self.copies)
            for i in whole:
                self.read[i] = self.addresses[i]

    def upload(self, stream: int) -> None:
        super().upload(stream)
        for array, place, copy in zip(self.arrays, self.addresses, self.copies, strict=False):
            narrow(self.gpu, stream, self.compute, place, copy, array.size)
