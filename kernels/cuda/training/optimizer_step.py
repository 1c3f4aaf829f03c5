"""What ends a step of the optimizer: gradients of several batches added up, their norm, the update.

Where parameters are many, and nothing of the step has to be known before, a layer's are updated on a stream of their
own, as soon as its gradients are there, beside the products of the layers below it.

The scalars of all steps of a pass lie in device memory. Which row is due stands in the control record: `finish` moves
it on after a batch that ended a step. Where a norm is wanted, `squares` and `settle` write the factor there, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...spec import SAME, BufferUpdate
from ..optim.norm import RESOLVE_STEP, SUM, squares_kernel
from ..optim.plan import Table
from ..optim.updates import accumulate_kernel
from ..runtime.compile import Kernel
from ..runtime.device import launch
from ..runtime.records import CONTROL, POINTERS, ROW, SETTINGS
from ..runtime.storage import COPY

# Parameters of a network from which on layers are updated by themselves: an ESTIMATE, not measured on any GPU. So many
# take some 10 us in float32, and each launch and meeting of streams costs a few.
BESIDE = 1 << 20


class Places(NamedTuple):
    """Addresses of the arrays of all parameters, in their order."""

    params: Sequence[int]
    states: Sequence[Sequence[int]]
    gradients: Sequence[int]  # of a batch
    totals: Sequence[int]  # of a step: those of its only batch, or what the batches add up to
    copies: Sequence[int] = ()  # of the parameters, in another dtype


class _Beside(NamedTuple):
    """Table of one layer's arrays, with the event after which they may be updated."""

    ready: Any  # the event after which it may begin
    table: Table


class Updates:
    """The launches on all parameters at once. Scalars are rows of ROW bytes, one for each step of the pass.

    copy: the dtype of copies, where there are any; the update writes them, too. layers: numbers of the parameters of
    each layer that is to be updated by itself, which follow one another.
    """

    def __init__(
        self, gpu: Any, stream: int, rule: str, dtype: str, sizes: Sequence[int], places: Places, scalars: int,
        copy: str = "", layers: Sequence[Sequence[int]] = (),
    ) -> None:  # fmt: skip
        self.gpu, self.stream, self.rule, self.dtype, self.places = gpu, stream, rule, dtype, places
        form, written = (COPY, [[copy] for copy in places.copies]) if copy else (SAME, [[] for _ in sizes])
        targets = [
            BufferUpdate(rule, copy or dtype, size, p, [*states, *more], form=form)
            for size, p, states, more in zip(sizes, places.params, places.states, written, strict=True)
        ]
        self.table = Table(gpu, targets, list(range(len(targets))), 0)
        self._layers = {of[0]: _Beside(gpu.event(), Table(gpu, targets, list(of), of[0])) for of in layers}
        self._side, self._joined = gpu.stream(), gpu.event()
        gpu.wait(0)  # on which tables are copied
        self.turns = self._turns(places.params, places.totals, scalars)
        self.control, self.settings = gpu.allocate(CONTROL.itemsize), gpu.allocate(SETTINGS.itemsize)
        self.sums = gpu.allocate(self.table.tiles * SUM)
        self._start = np.zeros(1, CONTROL)
        self._start["float64"] = self._start["float32"] = 1

    def begin(self, clip_norm: float | None) -> None:
        """A pass is to begin, with the first row of scalars."""
        self.gpu.copy_in(self.control.address, self._start, self.stream)
        settings = np.zeros(1, SETTINGS)
        settings["scale"], settings["max_norm"] = 1, math.inf if clip_norm is None else clip_norm
        self.gpu.copy_in(self.settings.address, settings, self.stream)

    def shares(self, share: float) -> Any:
        """What `accumulate` needs for batches that count for so much of their step."""
        row = self.gpu.allocate(ROW)
        self.gpu.copy_in(row.address, np.array([share], self.dtype), self.stream)
        return row, self._turns(self.places.totals, self.places.gradients, row.address)

    def accumulate(self, shares: Any) -> None:
        """totals += share * gradients."""
        self._launch(accumulate_kernel(self.dtype), shares[1], 0)

    def clip(self) -> None:
        """Leaves the factor in the control record that brings the norm of all gradients down to the largest."""
        self._launch(squares_kernel(self.dtype), self.turns, self.sums.address)
        places = self.sums.address, self.table.tiles, self.settings.address, self.control.address
        launch(self.gpu, RESOLVE_STEP, 1, self.stream, *places)

    def update(self) -> None:
        """The optimizer's step, from the totals."""
        self._launch(self.table.kernel, self.turns, self.control.address)

    @property
    def beside(self) -> bool:
        """True if layers can be updated by themselves."""
        return bool(self._layers)

    def update_layer(self, parameter: int) -> None:
        """The optimizer's step of the layer with this first parameter, beside what the stream is given next."""
        layer, side = self._layers[parameter], self._side.handle
        layer.ready.record(self.stream)
        layer.ready.before(side)
        self._launch(layer.table.kernel, self.turns, self.control.address, layer.table, side)

    def join(self) -> None:
        """Have what the stream is given next wait for the updates of all layers."""
        self._joined.record(self._side.handle)
        self._joined.before(self.stream)

    def _turns(self, changed: Sequence[int], gradients: Sequence[int], row: int) -> Any:
        turns = np.zeros(len(changed), POINTERS)
        turns["p"], turns["g"], turns["row"] = changed, gradients, row
        memory = self.gpu.allocate(turns.nbytes)
        self.gpu.copy_in(memory.address, turns, self.stream)
        return memory

    def _launch(
        self, kernel: Kernel, turns: Any, last: int, table: Table | None = None, stream: int | None = None
    ) -> None:
        table, stream = table or self.table, self.stream if stream is None else stream
        places = table.records, turns.address + table.first * POINTERS.itemsize, table.owners
        launch(self.gpu, kernel, table.tiles, stream, *places, table.tiles, last)
