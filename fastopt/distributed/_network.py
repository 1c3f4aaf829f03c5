"""A network that trains on a share of every step, with the ranks of an MPI job: what `fit` trains in place of its own.

The rows of a step are cut into pieces, a number that follows from the batch size alone. Each rank computes the
gradients of its pieces, a subtree, in one compiled call; an `Exchange` sums them, and each rank updates the part of the
parameters that it owns. Losses and metrics are kept by piece, and added up in one order at the end of a pass.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..kernels.interrupts import interrupts_held
from ..kernels.metrics import variation_of_pass
from ..kernels.spec import Batches, EpochHooks, OptimizerSteps, PassResult
from ._exchange import Exchange, Traffic, flattened
from ._tree import cut, num_pieces, share_of
from ._world import World, differences

PROGRESS_SECONDS = 0.1
SAMPLED = 256  # weights of a parameter, evenly spread, by which ranks see that a callback of one has changed them
GOES_ON, ENDS, INTERRUPTED = 0, 1, 2  # what a rank has to say at the end of a step


class Settings(NamedTuple):
    """Options of `fit` for the exchange between ranks."""

    reduction: str = "fixed"  # "fast": MPI's own, of one piece a rank
    shard_states: bool = False
    wire_dtype: str | None = None
    rows: str = "global"  # "local": each rank has rows of its own

    def division(self, world: World, rows: int) -> tuple[int, int, int]:
        """Pieces of a step of at most so many rows, the first one of a rank, and the number of its pieces."""
        if self.reduction == "fast" or self.rows == "local":
            return world.ranks, world.rank, 1
        pieces = num_pieces(rows)
        return (pieces, *share_of(world.rank, world.ranks, pieces))


class _Prepared(NamedTuple):
    """Memory of a training that lasts from pass to pass."""

    key: Any
    pieces: Any
    exchange: Exchange


class _Interrupted(Exception):
    """An interrupt that all ranks know of; reason: what this one is to raise."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        self.reason = reason


class DistributedNetwork:
    """The verbs of a network, of which `train` is done by all ranks together, each calling it alike.

    network: of a backend, over this rank's parameters; kernels: the module of the backend.
    """

    reusable = False

    def __init__(self, network: Any, kernels: Any, world: World, settings: Settings) -> None:
        self._network, self._kernels, self._world, self._settings = network, kernels, world, settings
        self.params, self.steps_done = network.params, 0
        self.evaluate, self.predict, self.penalty = network.evaluate, network.predict, network.penalty
        self._prepared: _Prepared | None = None
        self._traffic = Traffic()

    @property
    def traffic(self) -> Traffic:
        """Data sent so far, and time spent in the exchange."""
        return self._traffic + (self._prepared.exchange.traffic if self._prepared else Traffic())

    # ------------------------------------------------------------ verbs
    def train(
        self,
        batches: Batches,
        optimizer: OptimizerSteps,
        seed: int,
        progress: Callable[[int, float], object] | None = None,
        hooks: EpochHooks | None = None,
    ) -> PassResult:
        """Train on every batch once in each epoch, as a network of a backend does; the results are those of all ranks.

        An interrupt of one rank ends the pass of all with KeyboardInterrupt, after the same step.
        """
        self.steps_done, rule = 0, hooks.rule if hooks else None
        self._check_alike(optimizer)
        with interrupts_held() as check:
            prepared = self._prepare(batches, optimizer, seed)
            try:
                for epoch in range(batches.epochs):
                    steps = optimizer.epoch(epoch, batches.steps)
                    this = _Epoch(self, prepared, batches.epoch(epoch), steps, progress)
                    result = this.run(check)._replace(lr=steps.last_rate)
                    rule = rule and rule.after(this.mean_loss(result))
                    ends = (hooks is not None and hooks.after(result)) or (rule is not None and rule.is_over)
                    if self._agree(ENDS if ends else GOES_ON, check) == ENDS:
                        break
            except _Interrupted as interrupted:  # on all ranks; after other errors these do not call MPI alike
                self.share_states(prepared, optimizer)
                raise interrupted.reason from None
            self.share_states(prepared, optimizer)
        return result

    # ------------------------------------------------------------ memory
    def _prepare(self, batches: Batches, optimizer: OptimizerSteps, seed: int) -> _Prepared:
        """The program and the buffers of a pass; those of the one before, if they fit."""
        kernels, world, rows = self._kernels, self._world, batches.batch_size * batches.accumulate
        count, _, own = self._settings.division(world, rows)
        metrics = self._network.net.metrics
        variation = variation_of_pass(metrics, batches, in_order=False) if metrics else None
        states = [None if of_param is None else [*map(id, of_param)] for of_param in optimizer.states]
        data = batches.x, batches.y, batches.weights
        key = [rows, seed, optimizer.rule, states, tuple(optimizer.fixed), variation and variation.parts]
        key += [*map(id, data), batches.order.dtype]
        if self._prepared is not None and self._prepared.key == key:
            return self._prepared
        self._traffic = self.traffic
        is_local = self._settings.rows == "local"
        largest = batches._replace(batch_size=rows if is_local else -(-rows // count))
        pieces = kernels.Pieces(self._network, largest, own, optimizer, seed, variation)
        options = self._settings
        exchange = Exchange(
            world, pieces.gradient, pieces.buckets, kernels, options.reduction, options.shard_states, options.wire_dtype
        )
        self._prepared = _Prepared(key, pieces, exchange)
        return self._prepared

    def share_states(self, prepared: _Prepared, optimizer: OptimizerSteps) -> None:
        """Give every rank the states, and the averages, of all parameters; where they are divided, rank 0 alone."""
        if prepared.exchange.updates_all:
            return
        starts = [start for start in prepared.pieces.flat.starts if start is not None]
        states = [of_param for of_param in optimizer.states if of_param is not None]
        of_states = [[of_param[number] for of_param in states] for number in range(len(states[0]))]
        after = optimizer.after
        if after is not None and after.averages and not any(after.constraints):
            prepared.exchange.share(flattened(starts, [array for array in after.averages if array is not None]))
        for arrays in of_states:
            views = flattened(starts, arrays)
            if self._settings.shard_states:
                prepared.exchange.gather(views)
            else:
                prepared.exchange.share(views)

    # ------------------------------------------------------------ agreement
    def _check_alike(self, optimizer: OptimizerSteps) -> None:
        """Raise ValueError on all ranks whose next steps differ, as a callback of one has made them."""
        if self._world.ranks == 1:
            return
        rates = optimizer.learning_rates
        weights = [p.reshape(-1)[:: max(1, p.size // SAMPLED)].tobytes() for p in self.params]
        told: dict[str, Any] = {
            "number of steps": len(rates), "steps done": optimizer.steps_done,
            "learning rate": float(rates[0]) if len(rates) else None,
            "options of the optimizer": repr([optimizer.options, optimizer.clip_norm, optimizer.settings]),
            "sum over the learning rates": zlib.crc32(rates.tobytes()),
            "sum over the weights": zlib.crc32(b"".join(weights)),
        }  # fmt: skip
        if not self._world.is_alike(zlib.crc32(repr(told).encode())):
            found = differences(self._world.gather(told))
            raise ValueError(f"all ranks must train alike, and callbacks do the same on all: {'; '.join(found)}")

    def _agree(self, word: int, check: Callable[[], None]) -> int:
        """The largest word of all ranks; `_Interrupted` on all if one of them is interrupted."""
        reason: BaseException = KeyboardInterrupt()
        try:
            check()
        except BaseException as error:  # whatever the handler of the signal raises
            word, reason = INTERRUPTED, error
        if self._world.ranks > 1:
            word = self._world.largest(word)
        if word == INTERRUPTED:
            raise _Interrupted(reason)
        return word


class _Epoch:
    """One epoch of a pass, step after step."""

    def __init__(
        self, owner: DistributedNetwork, prepared: _Prepared, batches: Batches, optimizer: OptimizerSteps,
        progress: Callable[[int, float], object] | None,
    ) -> None:  # fmt: skip
        self._owner, self._batches, self._optimizer, self._progress = owner, batches, optimizer, progress
        self._pieces, self._exchange = prepared.pieces, prepared.exchange
        world, kernels = owner._world, owner._kernels
        rows = batches.batch_size * batches.accumulate
        self._count, self._first, self._own = owner._settings.division(world, rows)
        exchange = self._exchange
        place = owner._network, optimizer, self._pieces.flat
        self._updates = [
            kernels.FlatUpdates(*place, bucket.total, bucket.first, exchange.chunk) for bucket in exchange.buckets
        ]
        starts = zip(self._pieces.flat.starts, owner.params, strict=True)
        self._params = [(start, p.reshape(-1)) for start, p in starts if start is not None]
        self._rows = batches.rows_of_steps()
        self._starts = np.concatenate([[0], np.cumsum(self._rows)])
        self._first_rows = [0] * batches.steps  # rows of lower ranks before the own ones of each step
        self._weights = None if batches.weights is None else self._step_weights()
        self._is_local = owner._settings.rows == "local"
        if self._is_local:  # a step's weight is that of the rows of all ranks
            self._first_rows = sum(world.gather(self._rows)[: world.rank], np.zeros_like(self._rows)).tolist()
            own: Any = self._rows if self._weights is None else self._weights
            self._weights = np.add.accumulate(np.array(world.gather(own.astype(np.float64))))[-1]
        self._penalties = np.zeros(batches.steps)
        self._distinct_sums = [sums for _, sums in self._pieces.sums_by_memory()]
        columns = 1 + sum(sums.shape[1] for sums in self._distinct_sums)
        self._sums = np.zeros((self._own, batches.steps, columns))

    def _step_weights(self) -> np.ndarray:
        """The sum of the weights of the rows of each step, (steps,) float64, added up in order."""
        assert self._batches.weights is not None
        weights = self._batches.weights[self._batches.order].astype(np.float64)
        ends = self._starts[1:]
        return np.array([np.add.accumulate(np.append(0.0, w))[-1] for w in np.split(weights, ends[:-1])])

    def run(self, check: Callable[[], None]) -> PassResult:
        """Do all steps; an interrupt ends the epoch after one, with those before it done on all ranks."""
        owner, start = self._owner, time.perf_counter()
        reported = start
        for step in range(self._batches.steps):
            self._step(step)
            owner.steps_done += 1
            owner._agree(GOES_ON, check)
            if self._progress is not None and time.perf_counter() - reported >= PROGRESS_SECONDS:
                self._progress(owner.steps_done, self._loss_so_far(step + 1))
                reported = time.perf_counter()
        return self._result(time.perf_counter() - start)

    def _step(self, step: int) -> None:
        optimizer, exchange, updates = self._optimizer, self._exchange, self._updates
        if optimizer.penalties:
            penalty, divisors = self._owner.penalty(optimizer.settings), optimizer.penalty_divisors
            self._penalties[step] = penalty / (1 if divisors is None else divisors[step])
        weight = float(self._rows[step] if self._weights is None else self._weights[step])
        if weight == 0:
            return
        self._run_pieces(step, weight)
        norm, numbers = 0.0, range(len(exchange.buckets))
        if optimizer.clip_norm is not None:  # which all buckets have a part in
            for number in numbers:
                exchange.finish(number)
            norm = self._norm()
        for number in numbers:
            if optimizer.clip_norm is None:
                exchange.finish(number)
            updates[number].update(step, norm)
            exchange.start_share(number, self._params)
        exchange.finish_shares(self._params)
        updates[0].finish(step)

    def _norm(self) -> float:
        """The norm of the whole gradient: squares of chunks, added up bucket after bucket."""
        own = [part.squares() for part in self._updates]
        by_rank = [own] if self._exchange.updates_all else self._owner._world.gather(own)
        squares = [of_rank[number] for number in range(len(self._updates)) for of_rank in by_rank]
        return float(np.sqrt(np.add.accumulate(np.concatenate(squares))[-1]))

    def _run_pieces(self, step: int, weight: float) -> None:
        """Compute the gradient of the own pieces, and keep their sums."""
        if self._is_local:
            cuts = np.array([0, self._rows[step]])
        else:
            cuts = cut(int(self._rows[step]), self._count)[self._first : self._first + self._own + 1]
        begin = int(self._starts[step])
        order = self._batches.order[begin + int(cuts[0]) : begin + int(cuts[-1])]
        draws = self._owner._kernels.Draws(self._optimizer.steps_done + step, self._first_rows[step] + int(cuts[0]))
        self._pieces.run(order, cuts - cuts[0], draws, weight, self._exchange.start)
        sums = self._sums[:, step]
        sums[:, 0], at = self._pieces.losses, 1
        for of_metric in self._distinct_sums:
            sums[:, at : at + of_metric.shape[1]] = of_metric
            at += of_metric.shape[1]

    def mean_loss(self, result: PassResult) -> float:
        """The mean loss of the epoch over its rows; NaN if their weights are all 0."""
        weights = self._rows if result.weights is None else result.weights
        return float(np.average(result.losses, weights=weights)) if weights.any() else np.nan

    def _loss_so_far(self, steps: int) -> float:
        """The mean loss of the own rows, for the progress bar."""
        share = self._own / self._count
        count = (self._rows if self._weights is None else self._weights)[:steps].sum() * share
        losses = self._sums[:, :steps, 0].sum() / (count * self._owner._network.losses_of_row) if count else 0.0
        return float(losses + self._penalties[:steps].mean())

    def _result(self, seconds: float) -> PassResult:
        """Losses and metrics of the rows of all ranks, their sums over pieces added up in order."""
        batches, network, parts = self._batches, self._owner._network, self._batches.parts
        by_piece = np.concatenate(self._owner._world.gather(self._sums))
        by_step = np.add.accumulate(by_piece, axis=0)[-1]
        counts: Any = self._rows if self._weights is None else np.where(self._weights == 0, 1, self._weights)
        losses = by_step[:, 0] / (counts * network.losses_of_row) + self._penalties
        carried = parts.carried if parts else None
        at = 1
        totals: dict[str, np.ndarray] = {}
        for names, of_metric in self._pieces.sums_by_memory():
            columns = of_metric.shape[1]
            before = carried[names[0]] if carried else np.zeros(columns)
            total = np.add.accumulate(np.vstack([before, by_step[:, at : at + columns]]))[-1]
            totals |= {name: total.copy() for name in names}
            at += columns
        rows = float(batches.num_rows + (parts.rows if parts else 0))
        if self._weights is not None:
            rows = float(np.add.accumulate([parts.weight if parts else 0.0, *self._weights])[-1])
        metrics = self._pieces.metrics(totals, rows)
        if parts:
            parts.carry(totals, batches.num_rows, rows if self._weights is not None else 0.0)
        return PassResult(losses, metrics, seconds, weights=self._weights)
