"""Networks whose layers compute in 16 bits: what of them is in which dtype, and the ways between the two.

    float32    the parameters, their gradients and states; data and targets; the outputs of the last layer, the loss,
               its gradient by them, and metrics
    16 bits    copies of the parameters, which the update writes beside them; the rows of a batch; what layers give to
               one another, forward and backward

Products take operands of 16 bits, are summed in float32, and are rounded once where their result is of 16 bits. As
torch's autocast and Keras' mixed precision do, except that outputs and gradients are not rounded.
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
from .rows import dropout_kernels, gather_narrow_kernel


def mixed_kernels(dtype: str) -> list[Kernel]:
    """Kernels of such networks besides updates, dense layers of this dtype, and all else in float32."""
    gathers = [gather_narrow_kernel(dtype, width) for width in (1, STORES[dtype].width)]
    return list(dict.fromkeys([narrow_kernel(dtype), *gathers, *dropout_kernels(dtype)]))


def narrow(gpu: Any, stream: int, dtype: str, source: int, into: int, elements: int) -> None:
    """into = source, of float32 rounded to a 16-bit dtype; `into` is aligned to 16 bytes."""
    pieces = -(-elements // (THREADS * STORES[dtype].width))
    launch(gpu, narrow_kernel(dtype), pieces, stream, source, into, elements)


class Weights(Mirror):
    """The parameters on the device, and what layers read: the same, or copies of 16 bits.

    copies: addresses of those, if there are any; read: of what layers read, in the order of the parameters. The last
    bias, where there is one, is added to outputs of float32, and so it is read as it is.
    """

    def __init__(self, gpu: Any, params: Sequence[np.ndarray], compute: str, last_bias: bool) -> None:
        super().__init__(gpu, params)
        self.compute, self.copies, self.read = compute, list[int](), self.addresses
        if any(p.dtype.name != compute for p in params):
            self._block16 = Block(gpu, [p.size * BYTES[compute] for p in params])
            self.copies = self._block16.addresses
            self.read = [*self.copies[:-1], self.addresses[-1]] if last_bias else self.copies

    def upload(self, stream: int) -> None:
        super().upload(stream)
        for array, place, copy in zip(self.arrays, self.addresses, self.copies, strict=False):
            narrow(self.gpu, stream, self.compute, place, copy, array.size)
