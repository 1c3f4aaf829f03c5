"""Masks of pruned parameters, on the device.

A mask lies there as numbers of the parameters' dtype, which the update reads with the parameter and its states: all of
them are zero after it where the mask is. Where gradients are clipped by their norm, a launch before it sets those of
pruned elements to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...profile import Cost
from ...spec import BufferUpdate
from ..optim.plan import Table
from ..optim.updates import mask_kernel
from ..runtime.device import launch
from ..runtime.records import POINTERS, ROW


class Masks:
    """The masks of the parameters that are updated; none has to be there.

    masks: of each parameter that is updated, () for none; gradients: addresses on the device of theirs.
    """

    def __init__(
        self, gpu: Any, stream: int, dtype: str, masks: Sequence[np.ndarray | None], gradients: Sequence[int]
    ) -> None:
        self.gpu, self.stream, self.dtype = gpu, stream, dtype
        self._masks = [mask for mask in masks if mask is not None]
        self.elements = sum(mask.size for mask in self._masks)
        self.addresses: list[int] = []  # of each parameter's, 0 for none
        self._memory: list[Any] = []
        if not self._masks:
            return
        itemsize = np.dtype(dtype).itemsize
        self._memory = [gpu.allocate(mask.size * itemsize) for mask in self._masks]
        of_masks = iter(self._memory)
        self.addresses = [0 if mask is None else next(of_masks).address for mask in masks]
        # the launch on gradients
        own = [gradient for gradient, mask in zip(gradients, masks, strict=True) if mask is not None]
        sizes = [mask.size for mask in self._masks]
        targets = [BufferUpdate("sgd", dtype, size, array, ()) for size, array in zip(sizes, own, strict=True)]
        self._kernel, self._table = mask_kernel(dtype), Table(gpu, targets, list(range(len(targets))), 0)
        self._row = gpu.allocate(ROW)  # of scalars, which nobody reads
        gpu.zero(self._row.address, ROW, stream)
        pointers = np.zeros(len(targets), POINTERS)
        pointers["p"], pointers["g"] = own, [memory.address for memory in self._memory]
        pointers["row"] = self._row.address
        self._pointers = gpu.allocate(pointers.nbytes)
        gpu.copy_in(self._pointers.address, pointers, stream)
        gpu.wait(0)  # on which the table is copied

    def __bool__(self) -> bool:
        return bool(self._masks)

    def begin(self) -> None:
        """Copy the masks, as they are now, to the device."""
        for memory, mask in zip(self._memory, self._masks, strict=True):
            self.gpu.copy_in(memory.address, mask.astype(self.dtype), self.stream)

    def add_before_norm(self, program: Any) -> None:
        """Add the launch on the gradients of a step, which a norm is taken of next."""
        if self._masks:
            cost = Cost("masks", bytes=3 * self.elements * np.dtype(self.dtype).itemsize)
            program.add(cost, self._zero_gradients)

    def _zero_gradients(self) -> None:
        table = self._table
        addresses = table.records, self._pointers.address, table.owners
        launch(self.gpu, self._kernel, table.tiles, self.stream, *addresses, table.tiles, 0)
