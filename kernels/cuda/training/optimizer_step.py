"""The end of an optimizer's step: gradients of several batches added up, their norm, the update.

Where parameters are many, and the update needs no other layer's gradients, a layer is updated on a second stream as
soon as its gradients are ready, at the same time as the products of the layers below it.

The scalars of all steps of a pass lie in device memory. The row of the next step stands in the control record: `finish`
moves it on after a batch that ends a step. For clipping, `squares` and `settle` write the factor there, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...spec import SAME, WHOLE, BufferUpdate
from ..optim.norm import RESOLVE_STEP, SUM, squares_kernel
from ..optim.plan import Table
from ..optim.updates import accumulate_kernel
from ..runtime.compile import Kernel
from ..runtime.device import launch
from ..runtime.records import CONTROL, POINTERS, ROW, SETTINGS
from ..runtime.storage import COPY

# Fewest parameters of a network whose layers are updated one by one: an ESTIMATE, not measured on any GPU. So many take
# some 10 us in float32, and each launch and each event between streams costs a few.
BY_LAYER = 1 << 20


class ParamArrays(NamedTuple):
    """Addresses of the arrays of all parameters that are updated, in their order."""

    params: Sequence[int]
    states: Sequence[Sequence[int]]
    gradients: Sequence[int]  # of a batch
    totals: Sequence[int]  # gradients of a step: those of its only batch, or sums over its batches
    copies: Sequence[int] = ()  # of the parameters, in another dtype


class _LayerUpdate(NamedTuple):
    """Table of one layer's arrays, with the event after which they may be updated."""

    ready: Any
    table: Table


class Updates:
    """The launches on all parameters that are updated, at once.

    scalars: address of each parameter's row of ROW bytes for the first step of the pass; those of the next steps follow
    it. copy: the dtype of copies that the update writes, too; "": none. layers: indices of the parameters of each layer
    that is to be updated by itself. storages: of each parameter's states; (): all are WHOLE. masks: address of each
    parameter's mask, 0 for none; (): no parameter has one. Each storage takes a launch, and so do those with masks.
    """

    def __init__(
        self, gpu: Any, stream: int, rule: str, dtype: str, sizes: Sequence[int], arrays: ParamArrays,
        scalars: Sequence[int],
        copy: str = "", layers: Sequence[Sequence[int]] = (), storages: Sequence[str] = (), masks: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.gpu, self.stream, self.rule, self.dtype, self.arrays = gpu, stream, rule, dtype, arrays
        form, written = (COPY, [[copy] for copy in arrays.copies]) if copy else (SAME, [[] for _ in sizes])
        storages = list(storages) or [WHOLE] * len(sizes)
        targets = [
            BufferUpdate(rule, copy or dtype, size, p, [*states, *more], form=form, storage=storage)
            for size, p, states, more, storage in zip(
                sizes, arrays.params, arrays.states, written, storages, strict=True
            )
        ]
        self.table = Table(gpu, targets, list(range(len(targets))), 0)
        self._layers = {of[0]: _LayerUpdate(gpu.event(), Table(gpu, targets, list(of), of[0])) for of in layers}
        self._second: Any = gpu.stream() if layers else None
        self._joined: Any = gpu.event() if layers else None
        gpu.wait(0)  # on which tables are copied
        self.turns = self._turns(arrays.params, arrays.totals, scalars)
        self._parts = [(self.table, self.turns)]  # of the update: arrays with the same storage of states
        masks = list(masks) or [0] * len(sizes)
        kinds = [(storage, mask != 0) for storage, mask in zip(storages, masks, strict=True)]
        if len(set(storages)) > 1 or any(masks):
            self._parts = [
                self._part(targets, [i for i, own in enumerate(kinds) if own == kind], scalars, masks)
                for kind in dict.fromkeys(kinds)
            ]
        self.num_elements = sum(sizes)
        self.control, self.settings = gpu.allocate(CONTROL.itemsize), gpu.allocate(SETTINGS.itemsize)
        self.sums = gpu.allocate(self.table.tiles * SUM)
        self._start = np.zeros(1, CONTROL)
        self._start["float64"] = self._start["float32"] = 1

    def begin(self, clip_norm: float | None) -> None:
        """Reset the control record for a pass, whose first step reads the first row of scalars."""
        self.gpu.copy_in(self.control.address, self._start, self.stream)
        settings = np.zeros(1, SETTINGS)
        settings["scale"], settings["max_norm"] = 1, math.inf if clip_norm is None else clip_norm
        self.gpu.copy_in(self.settings.address, settings, self.stream)

    def weight(self, weight: float) -> Any:
        """Memory that `accumulate` reads for batches with this share of their step's rows."""
        row = self.gpu.allocate(ROW)
        self.gpu.copy_in(row.address, np.array([weight], self.dtype), self.stream)
        return row, self._turns(self.arrays.totals, self.arrays.gradients, row.address)

    def accumulate(self, weight: Any) -> None:
        """totals += weight * gradients."""
        self._launch(accumulate_kernel(self.dtype), weight[1], 0)

    def clip(self) -> None:
        """Write the factor that brings the norm of all gradients down to the limit to the control record."""
        self._launch(squares_kernel(self.dtype), self.turns, self.sums.address)
        addresses = self.sums.address, self.table.tiles, self.settings.address, self.control.address
        launch(self.gpu, RESOLVE_STEP, 1, self.stream, *addresses)

    def update(self) -> None:
        """The optimizer's step, from the totals."""
        for table, turns in self._parts:
            self._launch(table.kernel, turns, self.control.address, table)

    @property
    def by_layer(self) -> bool:
        """True if layers are updated one by one."""
        return bool(self._layers)

    def update_layer(self, parameter: int) -> None:
        """The optimizer's step of the layer with this first parameter, on the second stream."""
        layer, second = self._layers[parameter], self._second.handle
        layer.ready.record(self.stream)
        layer.ready.before(second)
        self._launch(layer.table.kernel, self.turns, self.control.address, layer.table, second)

    def join(self) -> None:
        """Let the stream wait for the updates of all layers."""
        self._joined.record(self._second.handle)
        self._joined.before(self.stream)

    def _part(
        self, targets: Sequence[BufferUpdate], indices: list[int], scalars: Sequence[int], masks: Sequence[int]
    ) -> tuple[Table, Any]:
        """A table of some of the arrays, which all have masks or have none, with their turns."""
        own = [masks[i] for i in indices]
        table = Table(self.gpu, targets, indices, 0, own if any(own) else ())
        self.gpu.wait(0)  # on which it is copied
        of_all = self.arrays.params, self.arrays.totals, scalars
        return table, self._turns(*([some[i] for i in indices] for some in of_all))

    def _turns(self, changed: Sequence[int], gradients: Sequence[int], row: int | Sequence[int]) -> Any:
        turns = np.zeros(len(changed), POINTERS)
        turns["p"], turns["g"], turns["row"] = changed, gradients, row
        memory = self.gpu.allocate(turns.nbytes)
        self.gpu.copy_in(memory.address, turns, self.stream)
        return memory

    def _launch(
        self, kernel: Kernel, turns: Any, last: int, table: Table | None = None, stream: int | None = None
    ) -> None:
        table, stream = table or self.table, self.stream if stream is None else stream
        addresses = table.records, turns.address + table.first * POINTERS.itemsize, table.owners
        launch(self.gpu, kernel, table.tiles, stream, *addresses, table.tiles, last)
