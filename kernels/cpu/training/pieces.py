"""Gradients of the pieces of a step, for those who sum them with others before anything is updated.

The rows of a step are cut into pieces. A program goes through pieces as through batches, forward and backward, and adds
their gradients up in the order of a tree (`tree_sums`). All gradients are views of one array, so that whoever sends
them sends that. `flat_updates` has the update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...formulas import NUM_SCALARS
from ...metrics import Variation
from ...profile import recorder
from ...spec import Batches, OptimizerSteps
from ..runtime.launch import STEP_FLOPS, get_num_threads, num_threads_for
from ..runtime.primitives import address_of, aligned_zeros
from ..runtime.records import RUN, fill, word_of
from ..runtime.teams import run_team, yield_address
from .after_step import AfterUpdates
from .network import Network
from .phases import PhaseList
from .program import Program
from .row_weights import RowWeights
from .run import RUN_PROGRAM
from .tree_sums import Additions, TreeSum

ALIGNED = 4_096  # elements of a parameter whose gradient begins at a cache line
LINE_ELEMENTS = 16
BUCKET_BYTES = 1 << 20  # of a gradient, that are complete before others, at least
FIRST_IN_STEP = word_of(RUN, "first_in_step")


class Flat:
    """Places of the parameters that are updated in one array: `starts` of each, None of others, and its `elements`.

    >>> flat = Flat([np.zeros((2, 3)), np.zeros(3), np.zeros(3)], [True, False, True])
    >>> flat.starts, flat.elements
    ([0, None, 6], 9)
    """

    def __init__(self, params: Sequence[np.ndarray], updated: Sequence[bool]) -> None:
        self.shapes, self.starts, self.elements = [p.shape for p in params], list[int | None](), 0
        for p, on in zip(params, updated, strict=True):
            if on and p.size >= ALIGNED:
                self.elements = -(-self.elements // LINE_ELEMENTS) * LINE_ELEMENTS
            self.starts.append(self.elements if on else None)
            self.elements += p.size * on

    def views(self, array: np.ndarray) -> list[np.ndarray | None]:
        """Views of an array (elements,) in the shapes of the parameters."""
        return [
            None if start is None else array[start : start + int(np.prod(shape))].reshape(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]


class _Gradients:
    """The gradients of a program in one array, as `add_gradients` asks for them.

    buckets: neighbouring parts of the array, (first, end), in the order in which they are complete, the last layers
    first; ends: numbers of phases after which they are. bucket_elements: of a part, at least.
    """

    def __init__(self, flat: Flat, dtype: str, pieces: int, bucket_elements: int) -> None:
        self.array = aligned_zeros(flat.elements, dtype)
        self.gradients = flat.views(self.array)
        self.alpha_beta = np.zeros((pieces, 2))
        self.tree = TreeSum(self.array, pieces)
        self.buckets: list[tuple[int, int]] = []
        self.ends: list[int] = []
        self._flat, self._bucket_elements, self._begin, self._end = flat, bucket_elements, flat.elements, flat.elements

    def tile_fields(self, i: int) -> dict[str, Any]:
        """Fields of the record DENSE by which the gradient of parameter i, a weight, is added up over pieces."""
        start = self._flat.starts[i]
        assert start is not None
        return self.tree.tile_fields(start, int(np.prod(self._flat.shapes[i])))

    def end_layer(self, program: PhaseList, first: int) -> None:
        """End a bucket with a layer, whose first parameter has this index, if it is large enough."""
        starts = [start for start in self._flat.starts[first:] if start is not None]
        self._begin = min([self._begin, *starts])
        if self._end - self._begin >= self._bucket_elements and self._begin > 0:
            self._end_bucket(program)

    def add_to(self, program: PhaseList) -> None:
        """End the last bucket."""
        program.kept.append(self)
        self._begin = 0
        self._end_bucket(program)

    def _end_bucket(self, program: PhaseList) -> None:
        program.meet()
        self.tree.add_to(program, self._begin, self._end)
        self.buckets.append((self._begin, self._end))
        self.ends.append(len(program.phases))
        self._end = self._begin


class Draws(NamedTuple):
    """Place of a row, by which dropout draws: the number of its step over the life of the optimizer, and its own there.

    >>> Draws(step=3, row=64).after(10)
    Draws(step=3, row=74)
    """

    step: int
    row: int

    def after(self, rows: int) -> Draws:
        """Return the place so many rows further on in the step."""
        return self._replace(row=self.row + rows)


class Pieces:
    """A program for the gradients of some pieces of every step; `run` leaves their sum in `gradient`.

    data: x, y and weights of all rows; its batch_size is the most rows of a piece, and its order has the dtype of row
    numbers. pieces: of a step, a power of two. optimizer: says which parameters are updated. seed: of dropout masks.

    gradient: (elements,), of the mean loss over the step's rows, as far as these pieces go; `flat` has the places.
    buckets: parts of it, (first, end), in the order in which they are complete. losses: (pieces,) sums over the rows of
    each piece. sums: (pieces, k) of each metric.
    """

    def __init__(
        self, network: Network, data: Batches, pieces: int, optimizer: OptimizerSteps, seed: int,
        variation: Variation | None,
    ) -> None:  # fmt: skip
        net = network.net
        self.pieces, self.flat = pieces, Flat(net.params, optimizer.updated)
        self._gradients = _Gradients(self.flat, net.dtype, pieces, BUCKET_BYTES // net.itemsize)
        self.gradient = self._gradients.array
        self.losses = np.zeros(pieces)
        self._program = program = Program(net, "train", data.batch_size)
        program.num_ranks = num_threads_for(3 * network.flops * data.batch_size, STEP_FLOPS, 1 << 30)
        self._step_weight = np.ones(pieces)
        if data.weights is not None:
            self._weigh(data.weights, data.order.dtype.name)
        program.run["in_step"] = 1
        x, y = program.gather(data)
        assert y is not None
        outputs, saved_for_backward = program.forward(x, seed, optimizer.fixed)
        dz = program.zeros(program.batch_size, net.outputs)
        self.sums = program.loss_and_metrics(
            outputs, y, self.losses, self.losses.itemsize, dz, variation, epochs=pieces, apart=True
        )
        none = AfterUpdates(None, net.params, program.num_ranks, 1, 1)
        scalars, rows = np.zeros((1, 1, NUM_SCALARS + 1), net.dtype), (0,) * len(net.params)
        given: Any = self._gradients
        program.backward(saved_for_backward, dz, optimizer.rule, optimizer.states, scalars, rows, given, none)
        program.finish()
        self.buckets, self._segments = self._gradients.buckets, _segments(program, self._gradients.ends)
        program.read_from(data.x, data.y)
        self._data = data  # the program has addresses of its arrays
        self._network, self._variation = network, variation

    def _weigh(self, weights: np.ndarray, order: str) -> None:
        """Let the loss divide by the weight of the whole step, which `run` is told."""
        program = self._program
        program.row_weights = RowWeights(program.run, program.zeros(program.batch_size), 1, order)
        program.row_weights.add_gather_to(program)
        program.row_weights.begin(weights, 1, self.pieces)
        self._step_weight = program.row_weights.batch_sums[0]

    def sums_by_memory(self) -> list[tuple[list[str], np.ndarray]]:
        """Names of metrics with their sums, (pieces, k); those of counts of classes share theirs."""
        found: dict[int, tuple[list[str], np.ndarray]] = {}
        for name, sums in self.sums.items():
            found.setdefault(id(sums), ([], sums))[0].append(name)
        return list(found.values())

    def metrics(self, sums: Mapping[str, np.ndarray], rows: float) -> dict[str, float]:
        """The metrics from their sums over so many rows, or rows of this weight together."""
        return self._network.metrics_of(sums, rows, self._variation)

    def run(
        self, order: np.ndarray, starts: np.ndarray, draws: Draws, weight: float,
        ready: Callable[[int], None] | None = None,
    ) -> None:  # fmt: skip
        """Compute `gradient`, `losses` and `sums` for the pieces of a step; the gradient of an empty piece is 0.

        order: (m,) numbers of the rows of all these pieces, whose rows are order[starts[i] : starts[i + 1]]. draws:
        place of the first row, by which dropout draws. weight: number of the
        rows of the whole step, or the sum of their weights. ready: told the number of each bucket when its part of
        `gradient` is complete, which the layers below are not yet.
        """
        if not (np.diff(starts) > 0).all():
            self._run_with_gaps(order, starts, draws, weight)
        elif ready is not None and len(self.buckets) > 1 and recorder.get() is None:
            self._run_in_segments(order, starts, draws, weight, ready)
            return
        else:
            self._run(order, starts, draws, weight)
        for bucket in range(len(self.buckets) if ready else 0):
            ready(bucket)  # type: ignore[misc]

    def _begin(self, order: np.ndarray, starts: np.ndarray, draws: Draws, weight: float) -> None:
        """Prepare the program for pieces none of which is empty."""
        program, count = self._program, len(starts) - 1
        for totals in (self.losses, *self.sums.values()):
            totals.fill(0)
        if program.row_weights is None:
            # the loss of a piece is the mean over its rows: its share of the step's
            self._gradients.alpha_beta[:count, 0] = np.diff(starts) / weight
        else:
            self._gradients.alpha_beta[:count, 0], self._step_weight[:] = 1, weight
        program.begin(len(order), order, draws.step)
        program.words[FIRST_IN_STEP] = draws.row
        program.cut_at(starts)
        self._order = order  # the program has its address

    def _run(self, order: np.ndarray, starts: np.ndarray, draws: Draws, weight: float) -> None:
        """Run the whole program for pieces none of which is empty."""
        self._begin(order, starts, draws, weight)
        self._program.execute(0.0)

    def _run_in_segments(
        self, order: np.ndarray, starts: np.ndarray, draws: Draws, weight: float, ready: Callable[[int], None]
    ) -> None:
        """The same, with the last piece in segments, each of which completes a bucket."""
        tables, last = [self.losses, *(sums for _, sums in self.sums_by_memory())], len(starts) - 2
        before = []
        if last:
            self._run(order[: starts[-2]], starts[:-1], draws, weight)
            before = [table[:last].copy() for table in tables]
        begin, end = int(starts[-2]), int(starts[-1])
        self._begin(order[begin:end], np.array([0, end - begin]), draws.after(begin), weight)
        self._gradients.tree.begin_with(last)
        for bucket, segment in enumerate(self._segments):
            segment["arrivals"] = 0
            run_team(RUN_PROGRAM, address_of(segment), min(self._program.num_ranks, get_num_threads()))
            ready(bucket)
        self._gradients.tree.begin_with(0)
        for table, own in zip(tables, before, strict=False):
            table[last] = table[0]
            table[:last] = own

    def _run_with_gaps(self, order: np.ndarray, starts: np.ndarray, draws: Draws, weight: float) -> None:
        """The same for a step of few rows, piece by piece."""
        tables = [self.losses, *(sums for _, sums in self.sums_by_memory())]
        kept = [np.zeros_like(table) for table in tables]

        self._gradients.tree.begin_with(0, alone=True)

        def summed(piece: int, count: int) -> np.ndarray:
            """The sum of the gradients of pieces, in an array of its own."""
            if count > 1:
                left, right = summed(piece, count // 2), summed(piece + count // 2, count // 2)
                Additions([(left, right)]).run()
                return left
            begin, end = int(starts[piece]), int(starts[piece + 1])
            if begin == end:
                return np.zeros_like(self.gradient)
            self._run(order[begin:end], np.array([0, end - begin]), draws.after(begin), weight)
            for own, table in zip(kept, tables, strict=True):
                own[piece] = table[0]
            return self.gradient.copy()

        self.gradient[:] = summed(0, self.pieces)
        self._gradients.tree.begin_with(0)
        for own, table in zip(kept, tables, strict=True):
            table[:] = own


def _segments(program: Program, ends: Sequence[int]) -> list[np.ndarray]:
    """Records RUN of the parts of a program, one batch each, that end after so many phases; the last one ends it."""
    table, phase_bytes = int(program.run["phases"][0]), 24
    starts, stops = [0, *ends[:-1]], [*ends[:-1], len(program.phases)]
    return [
        fill(
            RUN, phases=table + start * phase_bytes, num_phases=stop - start, num_epochs=1, num_batches=1,
            yield_cpu=yield_address(),
        )
        for start, stop in zip(starts, stops, strict=True)
    ]  # fmt: skip
