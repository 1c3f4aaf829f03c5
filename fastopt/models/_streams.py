"""Epochs whose batches come one by one, such as the items of an iterable."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from .._metrics import check_classes
from ..kernels.formulas import METRICS
from ..kernels.metrics import RunningVariation
from ..kernels.sources import take
from ..kernels.spec import Batches, EpochParts, PassResult, row_numbers
from ..losses import Loss
from . import _intake, _row_weights
from ._features import ONE_BATCH
from ._intake import Data, Learnt
from ._items import check_items, nothing_in, split
from ._parts import NEVER, Advance, PartialEpoch, Train

REPORT = 0.1  # seconds between two figures for the progress bar
_END = object()


class Reader(NamedTuple):
    """Reads batches as a model knows its data."""

    model: Any
    loss: Loss
    nan: str
    inputs: int
    learnt: Learnt

    def read(self, number: int, x: Any, y: Any, weights: Any = None) -> Data:
        """Return the checked rows of batch `number` of an epoch, counted from 1, with their weights if it has any."""
        model, names = self.model, (f"x of batch {number}", f"y of batch {number}")
        raw = _intake.read(model, names, x, y, self.loss, self.nan, self.inputs, self.learnt.feature_names)
        data = _intake.converted(model, names, raw, self.loss, self.learnt, ONE_BATCH)
        if model.metrics:
            check_classes(model.metrics, self.loss.spec.name, data.y, names[1])
        if weights is None:
            return data
        name = f"the weights of batch {number}"
        numbers = _row_weights.read(name, weights, raw.given, raw.rows)
        assert numbers is not None
        return data._replace(weights=raw.of_all(_row_weights.in_dtype(name, numbers, model.dtype)))


class Items:
    """The items (x, y) or (x, y, weights) of an iterable, each a batch.

    Those of an iterator come once, those of other iterables anew in every epoch.
    """

    taken: list[int]  # numbers of items of the epochs so far, that which runs among them

    def __init__(self, given: Any) -> None:
        check_items(given)
        self._given, self._begun = given, iter(given)
        self.once = self._begun is given  # an iterator
        self._fresh = True  # of what is begun, no item is taken
        self._within = 0  # items of the next epoch that an earlier process has trained on
        self.taken = []

    def first(self) -> tuple[Any, ...]:
        """Return the first item, which stays to be trained on."""
        item = next(self._begun, _END)
        if item is _END:
            raise nothing_in("x")
        self._begun = chain([item], self._begun)
        return split(item, 1)

    def epoch(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Iterate over numbers and items of the next epoch, which begins when the first of them is asked for.

        Items that an earlier process has trained on are passed over.
        """
        self._begin()
        done, self._within = self._within, 0
        self._pass_over(done)
        self.taken.append(done)
        for number, item in enumerate(self._begun, done + 1):
            self.taken[-1] = number
            yield number, split(item, number)

    def go_on(self, taken: Sequence[int], within: bool, limited: bool) -> None:
        """Pass over the epochs that an earlier process has trained on; nothing may have been asked for but `first`.

        taken: as it was; within: the last of them is not done, and is passed over when it begins, after callbacks that
        may choose its order. limited: epochs have a number of steps; others are gone through to their ends, as an
        iterable may draw its next order there. ValueError where the items are fewer or more.
        """
        for count in taken[:-1] if within else taken:
            self._begin()
            self._pass_over(count)
            self.taken.append(count)
            if not limited and next(self._begun, _END) is not _END:
                raise ValueError(
                    f"x must give the items of the training that the checkpoint is of: epoch {len(self.taken)} of it"
                    f" had {count}, and has more"
                )
        self._within = taken[-1] if within else 0

    def _begin(self) -> None:
        if not self._fresh and not self.once:
            self._begun = iter(self._given)
        self._fresh = False

    def _pass_over(self, count: int) -> None:
        for number in range(1, count + 1):
            if next(self._begun, _END) is _END:
                raise ValueError(
                    f"x must give the items of the training that the checkpoint is of: epoch {len(self.taken) + 1} of"
                    f" it had done {count}, and x ended at item {number}"
                )


class StreamedEpoch(PartialEpoch):
    """An epoch of batches that are made while it is trained on.

    batches: checked rows of one batch after the other. accumulate: so many of them make a step. limit: steps of the
    epoch; None: as many as there are batches for. number: of the epoch, for errors.
    """

    def __init__(
        self, batches: Iterator[Data], accumulate: int, limit: int | None, number: int, model: Any
    ) -> None:  # fmt: skip
        self._dtype = model.dtype
        # of the targets so far, where r2 is among the metrics
        self._running = RunningVariation() if any(METRICS[name].of_variation for name in model.metrics) else None
        self._items, self._accumulate, self._limit, self._number = batches, accumulate, limit, number
        self._parts = EpochParts(Batches(np.empty((0, 1)), np.empty(0), np.arange(0), 1))
        self._rows: list[int] = []  # of each step
        self._ended = False
        self._weighted: bool | None = None  # not known before the first batch
        self.steps = 0
        self._losses, self._weights, self._metrics = [], [], {}
        self._seconds, self._lr = 0.0, float("nan")

    @property
    def complete(self) -> bool:
        """True if all steps are done."""
        return self._ended or self.steps == self._limit

    @property
    def steps_left(self) -> int:
        """Most steps that are not done."""
        return NEVER if self._limit is None else self._limit - self.steps

    @property
    def rows(self) -> int:
        """Rows of all steps that are done."""
        return sum(self._rows)

    def train(self, count: int, train: Train, advance: Advance | None) -> PassResult:
        """Do so many steps more, or all there are batches for."""
        results: list[PassResult] = []
        total, rows, reported = 0.0, 0, time.perf_counter()
        while len(results) < count:
            group = list(islice(self._items, self._accumulate))
            if not group:
                self._end()
                break
            self._check_weights(group)
            batches = together(group, self._accumulate, self._dtype)
            if self._running:
                order, weights = batches.order, batches.weights
                own = None if weights is None else weights[order]
                self._parts.variation = self._running.add(batches.y[order], own)
            results.append(train(batches._replace(parts=self._parts), None))
            self._rows.append(batches.num_rows)
            self.steps += 1
            total, rows = total + float(results[-1].losses[0]) * batches.num_rows, rows + batches.num_rows
            if advance is not None and time.perf_counter() - reported >= REPORT:
                advance(self.steps, total / rows)
                reported = time.perf_counter()
        if not results:
            return PassResult(np.empty(0), dict(self._metrics), 0.0, self._lr)
        losses, seconds = np.concatenate([result.losses for result in results]), sum(r.seconds for r in results)
        self._losses.append(losses)
        found = [result.weights for result in results if result.weights is not None]
        weights = np.concatenate(found) if found else None
        if weights is not None:
            self._weights.append(weights)
        self._metrics, self._lr, self._seconds = results[-1].metrics, results[-1].lr, self._seconds + seconds
        return PassResult(losses, results[-1].metrics, seconds, self._lr, weights)

    def _check_weights(self, group: list[Data]) -> None:
        """Raise ValueError unless all batches of the epoch have weights, or none has."""
        for data in group:
            has = data.weights is not None
            if self._weighted is not None and has != self._weighted:
                raise ValueError(
                    f"the items of x must all have weights or none; got one {'with' if has else 'without'} for step"
                    f" {self.steps + 1} of epoch {self._number}"
                )
            self._weighted = has

    def _end(self) -> None:
        """Take note that there is no further batch; ValueError where there should be."""
        self._ended = True
        if self._limit is not None:
            raise ValueError(
                f"x ended at step {self.steps + 1} of epoch {self._number}, of {self._limit}: it must have items for"
                " steps_per_epoch in every epoch"
            )
        if not self.steps:
            raise ValueError(
                f"x ended at step 1 of epoch {self._number}: an iterator is gone through once, so take epochs=1, give"
                " steps_per_epoch, or an iterable that can be begun anew, such as a list or a DataLoader"
            )

    def to_state(self) -> dict[str, Any]:
        """Return numbers and arrays that are needed in order to go on with the epoch."""
        running = self._running.state if self._running else {}
        return super().to_state() | {"sizes": np.array(self._rows, np.int64), "variation": running}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after the steps that `to_state` was called after; ValueError for a state of another epoch."""
        sizes, variation = np.asarray(state["sizes"]), dict(state["variation"])
        if sizes.ndim != 1 or sizes.dtype != np.int64 or (sizes < 1).any():
            raise ValueError("rows of the steps of its epoch must be counts")
        is_absent = state["weights"] is not None and not np.any(state["weights"])  # no row had a weight above 0 yet
        if bool(variation) != (self._running is not None and not is_absent):
            raise ValueError("its epoch must have the variation of the targets if r2 is among the metrics")
        weighted = state["weights"] is not None if self._weighted is None else self._weighted
        self._take(state, sizes, self._limit, weighted)
        self._rows, self._weighted = sizes.tolist(), weighted
        if self._running:
            self._running.state = variation

    def last_sizes(self, count: int) -> np.ndarray:
        """Rows of each of the last steps that are done, (count,) int64."""
        return np.array(self._rows[len(self._rows) - count :], np.int64)

    def batches(self) -> Batches:
        """The steps that are done, as batches of so many rows each, without the rows."""
        sizes = np.array(self._rows, np.int64)
        return Batches(np.empty((0, 1)), np.empty(0), np.arange(0), int(sizes.max()), sizes=sizes)


def together(group: list[Data], accumulate: int, dtype: np.dtype) -> Batches:
    """The batches of one step, for a network of this dtype."""
    if len(group) == 1:
        (data,) = group
        order = row_numbers(len(data.x)) if data.rows is None else data.rows
        return Batches(data.x, data.y, order, len(order), accumulate, weights=data.weights)
    x = np.concatenate([take(data.x, slice(None) if data.rows is None else data.rows, dtype) for data in group])
    y, sizes = np.concatenate([data.targets for data in group]), np.array([len(data.targets) for data in group])
    weights, most = None, int(sizes.max())
    if group[0].weights is not None:
        weights = np.concatenate([data.row_weights for data in group if data.row_weights is not None])
    # the last one may be shorter in any case
    differ = (sizes[:-1] != most).any()
    return Batches(x, y, row_numbers(len(x)), most, accumulate, weights=weights, sizes=sizes if differ else None)


class ItemSource(NamedTuple):
    """Epochs of the items of an iterable."""

    items: Items
    reader: Reader

    @property
    def taken(self) -> list[int]:
        """Numbers of items of the epochs so far."""
        return self.items.taken

    def epoch(self, model: Any, plan: Any, number: int) -> StreamedEpoch:
        """Return the next epoch, whose number is for errors."""
        options = plan.options
        limit = None if options.steps_per_epoch is None else int(options.steps_per_epoch)
        read = (self.reader.read(i, *item) for i, item in self.items.epoch())
        return StreamedEpoch(read, int(options.accumulate), limit, number, model)
