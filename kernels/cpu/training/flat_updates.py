"""Updates from gradients that lie in one array, for a range of it: of the parameters, or parts of them, there.

Updates are elementwise, so their bits do not depend on how the elements are cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ...formulas import NUM_SCALARS, clip_factor
from ...scalars import fill_settings
from ...spec import OptimizerSteps
from ..optim.loops import MAX_STATES
from ..optim.norm import SQUARES_KERNEL, Squares
from ..optim.updates import TILE, UPDATE_ALL
from ..runtime.launch import UPDATE_ELEMENTS, num_threads_for
from ..runtime.primitives import address_of
from ..runtime.records import UPDATE, UPDATES, fill
from ..runtime.teams import run_team
from .after_step import AfterUpdates
from .network import Network
from .pieces import Flat
from .program import Program


class Part(NamedTuple):
    """Neighbouring elements of a parameter, from `start` on; `at`: where they begin in the flat array."""

    param: int
    start: int
    elements: int
    at: int


def parts_of(flat: Flat, first: int, end: int) -> Iterator[Part]:
    """The parts of the parameters that lie in flat[first:end].

    >>> flat = Flat([np.zeros(4), np.zeros(5)], [True, True])
    >>> list(parts_of(flat, 2, 6))
    [Part(param=0, start=2, elements=2, at=2), Part(param=1, start=0, elements=2, at=4)]
    """
    for i, (at, shape) in enumerate(zip(flat.starts, flat.shapes, strict=True)):
        if at is None:
            continue
        start, stop = max(first, at), min(end, at + int(np.prod(shape)))
        if start < stop:
            yield Part(i, start - at, stop - start, start)


class FlatUpdates:
    """The updates of the parameters in a range of a flat gradient, for the steps of one pass.

    first: where the range begins; gradient: (count,) of the range. chunk: elements whose squares are summed apart where
    gradients are clipped by their norm.
    """

    def __init__(
        self, network: Network, optimizer: OptimizerSteps, flat: Flat, gradient: np.ndarray, first: int, chunk: int,
    ) -> None:  # fmt: skip
        params, self._optimizer, self._gradient = network.params, optimizer, gradient  # records have its address
        settings, rows = optimizer.rows()
        self._scalars = np.zeros((len(optimizer.learning_rates), len(settings), NUM_SCALARS + 1), gradient.dtype)
        fill_settings(self._scalars, optimizer, settings)
        self._own = np.empty_like(self._scalars[:1])
        self._after = AfterUpdates(optimizer.after, params, 1, 1, 1)
        self.parts = list(parts_of(flat, first, first + gradient.size))
        table, tiles = [], 0
        for i, start, count, at in self.parts:
            states, skip = optimizer.states[i], start * gradient.itemsize
            assert states is not None
            words = self._after.state_words(i, states)
            words = [word + skip if word else 0 for word in words[:MAX_STATES]] + words[MAX_STATES:]
            code = self._after.update_code(optimizer.rule, i)
            p, g = address_of(params[i]) + skip, address_of(gradient) + (at - first) * gradient.itemsize
            table.append((code, p, g, *words, rows[i] * self._scalars.strides[1], count, tiles, gradient.itemsize))
            tiles += -(-count // TILE)
        self._table = np.array(table, UPDATE)
        self._record = fill(UPDATES, count=len(table), table=self._table, tiles=tiles)
        elements = sum(part.elements for part in self.parts)
        self._threads = num_threads_for(elements, UPDATE_ELEMENTS, max(1, tiles))
        self._squares: Squares | None = None
        if optimizer.clip_norm is not None:
            self._squares = _chunks(gradient, chunk, self._threads)
        self._work = _after_program(network, self._after) if self._after.constrains else None

    @property
    def averages(self) -> list[np.ndarray | None]:
        """Averages that `update` changes in its range alone; those of `finish` are whole."""
        return self._after.averages if self._after.fused else []

    def squares(self) -> np.ndarray:
        """Sums of the squares of each chunk of the range, (chunks,) float64; none without clipping."""
        if self._squares is None or not len(self._squares.sums):
            return np.zeros(0)
        run_team(SQUARES_KERNEL, self._squares.address, self._threads)
        return self._squares.sums

    def update(self, step: int, norm: float = 0.0) -> None:
        """Update the parameters of the range, for a step of the pass from 0; norm: of the whole gradient, to clip."""
        scalars = self._scalars[step]
        if self._optimizer.clip_norm is not None:
            # the factor of clipping, in that of the gradient
            self._own[0] = scalars
            self._own[0, :, 0] *= scalars.dtype.type(clip_factor(self._optimizer.clip_norm, norm))
            scalars = self._own[0]
        self._set_share(step)
        if self.parts:
            self._record["scalars"] = address_of(scalars)
            run_team(UPDATE_ALL, address_of(self._record), self._threads)

    def finish(self, step: int) -> None:
        """The work on all parameters that follows an update: constraints, with averages."""
        if self._work is not None:
            self._set_share(step)
            self._work.begin(1, None)
            self._work.execute(0.0)

    def _set_share(self, step: int) -> None:
        """Set the step's share of the parameters in their averages."""
        after = self._optimizer.after
        if after is not None and after.shares is not None and self._after.averages_any:
            self._after.shares[0] = self._after.cell[0] = after.shares[step]


def _chunks(gradient: np.ndarray, chunk: int, threads: int) -> Squares:
    """The sums of squares of each chunk of an array."""
    starts = range(0, gradient.size, chunk)
    squares = Squares([(gradient.dtype.name, min(chunk, gradient.size - start)) for start in starts], threads)
    squares.set_addresses([address_of(gradient) + start * gradient.itemsize for start in starts])
    return squares


def _after_program(network: Network, after: AfterUpdates) -> Program:
    """The work after the update of a step, on one thread."""
    program = Program(network.net, "update", 1)
    after.add_share(program)
    after.add_to(program, None)
    program.finish()
    return program
