"""Masks of pruned parameters: launches that set these, with their states and gradients, to zero.

A mask lies on the device as numbers of the parameters' dtype, which one kernel reads in the place of a gradient. The
launch after the update reads the mask and what the update has written, once more: on the CPU the update itself does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...profile import Cost
from ...spec import BufferUpdate
from ..dense.mixed import narrow
from ..optim.plan import Table
from ..optim.updates import mask_kernel
from ..runtime.device import launch
from ..runtime.records import POINTERS, ROW


class _Launch:
    """A launch on arrays, each with the mask that it goes by: their addresses, and those of the masks."""

    def __init__(
        self, gpu: Any, stream: int, dtype: str, sizes: Sequence[int], arrays: Sequence[int], masks: Sequence[int]
    ) -> None:
        targets = [BufferUpdate("sgd", dtype, size, array, ()) for size, array in zip(sizes, arrays, strict=True)]
        self._gpu, self._stream, self._kernel = gpu, stream, mask_kernel(dtype)
        self._table = Table(gpu, targets, list(range(len(targets))), 0)
        self._row = gpu.allocate(ROW)  # of scalars, which nobody reads
        gpu.zero(self._row.address, ROW, stream)
        pointers = np.zeros(len(targets), POINTERS)
        pointers["p"], pointers["g"], pointers["row"] = arrays, masks, self._row.address
        self._pointers = gpu.allocate(pointers.nbytes)
        gpu.copy_in(self._pointers.address, pointers, stream)
        gpu.wait(0)  # on which the table is copied
        self.cost = Cost("masks", bytes=3 * sum(sizes) * np.dtype(dtype).itemsize)

    def __call__(self) -> None:
        table = self._table
        addresses = table.records, self._pointers.address, table.owners
        launch(self._gpu, self._kernel, table.tiles, self._stream, *addresses, table.tiles, 0)


class Masks:
    """The masks of the parameters that are updated; none has to be there.

    masks: of each parameter that is updated, () for none; parameters, gradients, states: addresses on the device of
    theirs. copies: addresses of copies of them in `compute`, where there are any.
    """

    def __init__(
        self, gpu: Any, stream: int, dtype: str, masks: Sequence[np.ndarray | None], parameters: Sequence[int],
        gradients: Sequence[int], states: Sequence[Sequence[int]], copies: Sequence[int], compute: str,
    ) -> None:  # fmt: skip
        self.gpu, self.stream, self.dtype, self.compute = gpu, stream, dtype, compute
        self._masks = {i: mask for i, mask in enumerate(masks) if mask is not None}
        if not self._masks:
            return
        itemsize = np.dtype(dtype).itemsize
        self._memory = {i: gpu.allocate(mask.size * itemsize) for i, mask in self._masks.items()}
        self._copies = {i: copies[i] for i in self._masks} if copies else {}
        self._parameters = {i: parameters[i] for i in self._masks}
        owners = [i for i in self._masks for _ in (parameters[i], *states[i])]
        arrays = [array for i in self._masks for array in (parameters[i], *states[i])]
        self.zero_pruned = self._launch(owners, arrays)
        self.zero_gradients = self._launch(list(self._masks), [gradients[i] for i in self._masks])

    def __bool__(self) -> bool:
        return bool(self._masks)

    def _launch(self, owners: Sequence[int], arrays: Sequence[int]) -> _Launch:
        sizes = [self._masks[i].size for i in owners]
        return _Launch(self.gpu, self.stream, self.dtype, sizes, arrays, [self._memory[i].address for i in owners])

    def begin(self) -> None:
        """Copy the masks, as they are now, to the device."""
        for i, mask in self._masks.items():
            self.gpu.copy_in(self._memory[i].address, mask.astype(self.dtype), self.stream)

    def add_before_norm(self, program: Any) -> None:
        """Add the launch on the gradients of a step, which a norm is taken of next."""
        if self._masks:
            program.add(self.zero_gradients.cost, self.zero_gradients)

    def add_to(self, program: Any) -> None:
        """Add the launch after the updates of a step."""
        if self._masks:
            program.add(self.zero_pruned.cost, self.zero_pruned)
            for i, copy in self._copies.items():
                size = self._masks[i].size
                program.add(Cost("masked copy", bytes=6 * size), self._narrow, self._parameters[i], copy, size)

    def _narrow(self, parameter: int, copy: int, size: int) -> None:
        narrow(self.gpu, self.stream, self.compute, parameter, copy, size)
