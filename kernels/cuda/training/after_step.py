"""The work that follows the updates of a step: constraints, one launch each, and averages, one launch for all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...formulas import CONSTRAINTS
from ...profile import Cost
from ...spec import AfterStep, BufferUpdate, Constraint
from ..dense.mixed import narrow
from ..optim.constraints import BY_COLUMNS, BY_ROWS, ELEMENTWISE, constraint_kernel, num_pieces
from ..optim.plan import Table
from ..optim.updates import SHARE, average_kernel
from ..runtime.device import launch
from ..runtime.records import POINTERS, ROW


class _Limit(NamedTuple):
    """A constraint on an array, as its kernel takes it."""

    name: str
    layout: str
    p: int
    rows: int
    columns: int
    settings: int
    copy: int  # in 16 bits; 0: there is none


class AfterUpdates:
    """The launches after the updates of a step; nothing where `after` is None.

    params: the parameters; addresses: of theirs on the device; copies: of copies in `compute`, where there are any.
    averages: addresses of the averages that there are, in the order of the parameters.
    """

    def __init__(
        self, gpu: Any, stream: int, after: AfterStep | None, params: Sequence[np.ndarray], addresses: Sequence[int],
        copies: Sequence[int], compute: str, averages: Sequence[int], steps: int,
    ) -> None:  # fmt: skip
        after = after or AfterStep()
        self.gpu, self.stream, self.dtype, self.compute, self.steps = gpu, stream, params[0].dtype, compute, steps
        self._limits, self._memory = list[_Limit](), list[Any]()
        for i, constraint in enumerate(after.constraints):
            if constraint is not None:
                self._limits.append(self._limit(params[i], addresses[i], copies[i] if copies else 0, constraint))
        averaged = [i for i, average in enumerate(after.averages) if average is not None]
        self._table: Table | None = None
        if averaged:
            targets = [
                BufferUpdate("sgd", self.dtype.name, params[i].size, average, ())
                for i, average in zip(averaged, averages, strict=True)
            ]
            self._table = Table(gpu, targets, list(range(len(targets))), 0)
            self._shares = gpu.allocate(steps * ROW)
            pointers = np.zeros(len(averaged), POINTERS)
            pointers["p"], pointers["g"] = averages, [addresses[i] for i in averaged]
            pointers["row"] = self._shares.address
            self._pointers = gpu.allocate(pointers.nbytes)
            gpu.copy_in(self._pointers.address, pointers, stream)
            gpu.wait(0)  # on which the table is copied
        self._constrained = sum(limit.rows * limit.columns for limit in self._limits)
        self._averaged = sum(params[i].size for i in averaged)

    def __bool__(self) -> bool:
        return bool(self._limits) or self._table is not None

    def _limit(self, p: np.ndarray, address: int, copy: int, constraint: Constraint) -> _Limit:
        layout, shape = BY_ROWS, (1, p.size)
        if CONSTRAINTS[constraint.name].factor is None:
            layout = ELEMENTWISE
        elif p.ndim == 2 and constraint.axes != (0, 1):
            layout, shape = (BY_COLUMNS if constraint.axes == (0,) else BY_ROWS), (p.shape[0], p.shape[1])
        settings = self.gpu.allocate(8)
        self.gpu.copy_in(settings.address, np.array([constraint.most]), self.stream)
        self._memory.append(settings)
        return _Limit(constraint.name, layout, address, *shape, settings.address, copy)

    def begin(self, shares: np.ndarray | None) -> None:
        """Copy the shares of all steps of a pass to the device, one in each row of scalars."""
        if self._table is not None and shares is not None:
            rows = np.zeros((self.steps, ROW // self.dtype.itemsize), self.dtype)
            rows[: len(shares), SHARE] = shares
            self.gpu.copy_in(self._shares.address, rows, self.stream)

    def add_to(self, program: Any, control: int) -> None:
        """Add the launches; control: address of the record by which the updates know their row of scalars."""
        size = self.dtype.itemsize
        for limit in self._limits:
            cost = costs.after_step(limit.rows * limit.columns, 0, size)
            program.add(cost._replace(name=f"constraint {limit.name}"), self._constrain, limit)
        if self._table is not None:
            cost = costs.averaging(Cost("averages", bytes=self._averaged * size), self._averaged, size)
            program.add(cost, partial(self._average, control))

    def _constrain(self, limit: _Limit) -> None:
        kernel = constraint_kernel(limit.name, limit.layout, self.dtype.name)
        pieces = num_pieces(limit.layout, limit.rows, limit.columns)
        launch(self.gpu, kernel, pieces, self.stream, limit.p, limit.rows, limit.columns, limit.settings)
        if limit.copy:
            narrow(self.gpu, self.stream, self.compute, limit.p, limit.copy, limit.rows * limit.columns)

    def _average(self, control: int) -> None:
        table = self._table
        assert table is not None
        addresses = table.records, self._pointers.address, table.owners
        launch(self.gpu, average_kernel(self.dtype.name), table.tiles, self.stream, *addresses, table.tiles, control)
