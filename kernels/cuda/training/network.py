"""A network on a GPU: a batch is one CUDA graph, and an epoch is a loop of launches that waits for nothing.

Many batches of a small network are one kernel (`fused/select.py`).

Parameters and the optimizer's states are arrays of the caller on the host. A pass copies them to the device, and back
when it ends, also by an exception; several passes in `Network.holding` do so once. The data are copied once, and stay
on the device as long as passes read the same arrays: whoever writes to such an array must make a new network. Data that
do not fit are streamed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...epochs import Progress, TrainsByEpochs
from ...formulas import LOSSES, METRICS, NUM_SCALARS
from ...interrupts import interrupts_held
from ...metrics import Columns, Variation, metric_values, variation_for, variation_of_pass
from ...scalars import fill_settings
from ...sources import Source
from ...spec import (
    Batches,
    DenseSpec,
    LayerSpec,
    LossSpec,
    OptimizerSteps,
    ParamSettings,
    PassResult,
    parameter_shapes,
)
from ..dense.mixed import Weights
from ..dense.structure import Structure
from ..optim.penalties import Penalties
from ..runtime.array_interface import gpu_of
from .passes import Collector, Pass
from .program import Program
from .row_weights import apart, weights_in_order
from .training_pass import TrainingPass

REPORT = 0.1  # seconds between two calls of `progress`, each of which waits for the device


class Network(TrainsByEpochs):
    """A network on a GPU. `params` belong to the caller, and are those after the last step when a call ends.

    params: [w0, b0, w1, b1, ...], C-contiguous, w (inputs, outputs), b (outputs,), without b where a layer has none;
    of other layers those of `spec.parameter_shapes`.
    compute: the dtype that layers compute in, of 16 bits with `dtype` float32; None: `dtype`; "tf32": the same, but
    products may round their operands to 10 bits of mantissa.
    fused: the activations that may be epilogues of products; None: those that are exact (`products.exact_activations`).
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        params: Sequence[np.ndarray],
        dtype: Any,
        loss: LossSpec | None = None,
        metrics: Sequence[str] = (),
        compute: str | None = None,
        fused: Collection[str] | None = None,
    ) -> None:
        last, layers, link = layers[-1], list(layers), None
        if isinstance(last, DenseSpec) and last.activation in ("softmax", LOSSES[loss.name].link if loss else None):
            link = last.activation
            layers[-1] = last._replace(activation="linear")
        name, tf32 = np.dtype(dtype).name, compute == "tf32"
        inside = name if tf32 or compute is None else compute
        self.net = Structure(layers, name, inside, loss, tuple(metrics), link, fused, tf32)
        self.params, self.steps_done = list(params), 0
        self.gpu = gpu_of(())
        self.stream = self.gpu.stream()
        owners = [layer for layer in layers for _ in parameter_shapes(layer)]
        whole = [i for i, owner in enumerate(owners) if not isinstance(owner, DenseSpec)]
        whole += [len(owners) - 1] * self.net.dense[-1].bias
        self.mirror = Weights(self.gpu, self.params, self.net.compute, whole)
        self._kept: dict[str, tuple[Any, Any]] = {}  # key and pass of each verb
        self._holding = False
        self._ahead: TrainingPass | None = None  # the pass whose parameters and states are newer on the device

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """While open, parameters and states stay on the device from one pass to the next.

        The caller's arrays keep their old values meanwhile, and must not be written to. They are updated by
        `bring_back`, and at the end, also after an exception.
        """
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            self.bring_back()

    def bring_back(self) -> None:
        """Update the caller's arrays within `holding`; they may be written to until the next pass, which reads them."""
        with self.gpu.active(), interrupts_held():
            self._download()

    def _upload(self) -> None:
        """Copy the parameters to the device, unless it has newer ones."""
        if self._ahead is None:
            self.mirror.upload(self.stream.handle)

    def _download(self) -> None:
        """Copy parameters and states to the host, if the device has newer ones."""
        if self._ahead is not None:
            training, self._ahead = self._ahead, None
            self.mirror.download(self.stream.handle)
            training.states.download(self.stream.handle)

    def _cached(
        self, verb: str, arrays: Sequence[np.ndarray | Source | None], key: tuple[Any, ...], make: Callable[[], Any]
    ) -> Any:
        """The pass of a verb: the last one, if it was made for the same arrays, which it keeps alive."""
        key = *map(id, arrays), *key
        if verb not in self._kept or self._kept[verb][0] != key:
            if verb == "train":
                self._download()
            self._kept.pop(verb, None)  # frees memory that the next pass may need
            self._kept[verb] = key, make()
        return self._kept[verb][1]

    def _room_for(self, batches: Batches) -> tuple[str, int]:
        """Part of the key of a pass for any sizes of batches: that of the last one, if it has room for these."""
        _, kept = self._kept.get("train", (None, None))
        has_room = kept is not None and kept.sized and kept.steps >= batches.steps
        return "steps", kept.steps if has_room else batches.most_steps

    def _train_epoch(
        self,
        batches: Batches,
        optimizer: OptimizerSteps,
        seed: int,
        progress: Progress | None,
        check: Callable[[], None],
    ) -> PassResult:
        """Train on all batches of an epoch; check: raises what interrupts it between two launches."""
        start = reported = time.perf_counter()
        before, states, step = self.steps_done, optimizer.states, optimizer.steps_done
        steps, group, count = batches.steps, batches.accumulate, batches.batches
        if not steps:
            return self._totals(np.zeros(0), [], 0, None, start)
        with self.gpu.active():
            clips, after = optimizer.clip_norm is not None, optimizer.after
            arrays: list[np.ndarray | Source | None] = [batches.x, batches.y]
            arrays += [state for of_param in states for state in of_param or ()]
            arrays += after.averages if after else ()
            arrays += optimizer.masks
            parts, variation = batches.parts, variation_of_pass(self.net.metrics, batches, in_order=True)
            carried = parts.carried if parts and parts.carried else ()
            length = batches.num_rows if batches.sizes is None else self._room_for(batches)
            order = batches.order[: batches.num_rows]
            weights = weights_in_order(batches.weights, order, batches.batch_size, group, batches.sizes)
            sizes, settings = (batches.batch_size, group, length), optimizer.rows()
            of_optimizer = optimizer.rule, optimizer.updated, settings[1], len(settings[0]), clips
            penalised = tuple(own.has_penalty for own in optimizer.penalties)
            limits, fixed = tuple(after.constraints) if after else (), tuple(optimizer.fixed)
            coded = tuple(optimizer.storages)
            key = *sizes, *of_optimizer, coded, fixed, penalised, limits, seed, weights is None, _parts(variation)
            mine = self.gpu, self.stream.handle, self.net, self.mirror
            make = partial(TrainingPass, *mine, batches, optimizer, seed, variation)
            training: TrainingPass = self._cached("train", arrays, key, make)
            running = training.batches
            counts = (batches.rows_of_batches() if weights is None else weights.batches) * float(self._terms)
            if batches.sizes is not None:
                order = apart(order, batches.sizes, batches.batch_size)

            def whole_steps() -> int:
                return before + (steps if running.done == count else running.done // group)

            def report(chunk: range) -> None:
                nonlocal reported
                if progress and time.perf_counter() - reported >= REPORT:
                    losses = running.sums()[1]
                    mean = _mean(losses[: chunk.stop].sum(), counts[: chunk.stop].sum())
                    progress(whole_steps(), mean + float(training.penalties_of_steps(chunk.stop).mean()))
                    reported = time.perf_counter()

            scalars = np.zeros((steps, training.num_settings, NUM_SCALARS + 1), self.net.dtype)
            fill_settings(scalars, optimizer, settings[0])
            self._upload()
            if self._ahead is None:
                training.states.upload(self.stream.handle)
            training.begin(scalars, optimizer)
            self._ahead = training
            try:
                running.run(
                    training.list_batch, order, step * group, check, report, training.together, carried, weights,
                    batches.sizes,
                )  # fmt: skip
            finally:
                if not self._holding:
                    self._download()
                self.steps_done = whole_steps()
            sums, losses = running.sums()
            losses, penalties = losses[:count], training.penalties_of_steps(count)
        if progress:
            progress(before + steps, _mean(losses.sum(), counts.sum()) + float(penalties.mean()))
        firsts = np.arange(0, count, group)
        counts = np.add.reduceat(counts, firsts)
        losses = np.add.reduceat(losses, firsts) / np.where(counts == 0, 1, counts) + penalties
        rows, weight = float(batches.num_rows), weights.total if weights else 0.0
        if parts:
            parts.carry(sums, batches.num_rows, parts.weight + weight)
            rows, weight = float(parts.rows), parts.weight
        result = self._totals(losses, sums, rows if weights is None else weight, variation, start)
        return result._replace(weights=None if weights is None else np.add.reduceat(weights.batches, firsts))

    def evaluate(
        self, x: np.ndarray | Source, y: np.ndarray, batch_size: int = 1024, weights: np.ndarray | None = None,
        order: np.ndarray | None = None,
    ) -> PassResult:  # fmt: skip
        """The mean loss and the metrics over the rows `order` (None: all), without dropout.

        weights: (n,) of all rows, of the network's dtype, whose sum over these is not 0; None: all 1.
        """
        num_rows = len(x) if order is None else len(order)
        start, size, terms = time.perf_counter(), min(batch_size, num_rows), self._terms
        if not size:
            return self._totals(np.full(1, np.nan), [], 0, None, start)
        variation, weighted = variation_for(self.net.metrics, y, order, weights), weights is not None
        with self.gpu.active():
            key = size, weighted, _parts(variation)
            make = partial(self._pass, x, y, size, 0, variation, weighted, order)
            running: Pass = self._cached("evaluate", [x, y, order], key, make)
            self._upload()
            of_rows = weights_in_order(weights, order, size)
            running.run(lambda kind: self._list_evaluation(running, kind.rows), weights=of_rows)
            sums, losses = running.sums()
        rows = num_rows if of_rows is None else of_rows.total
        return self._totals(losses[:1] / (rows * terms), sums, rows, variation, start)

    def penalty(self, settings: Sequence[ParamSettings]) -> float:
        """Return what the parameters, as they are, add to a loss; settings: of each, or () for none."""
        if not any(own.has_penalty for own in settings):
            return 0.0
        with self.gpu.active():
            self._upload()
            sizes = self.mirror.addresses, [p.size for p in self.params]
            return Penalties(self.gpu, self.stream.handle, self.net.dtype, *sizes, settings).value()

    def predict(
        self, x: np.ndarray | Source, batch_size: int = 1024, order: np.ndarray | None = None
    ) -> np.ndarray:
        """The outputs for the rows `order` (None: all, as they come), after the output activation."""
        rows = len(x) if order is None else len(order)
        out = np.empty((rows, self.net.outputs), self.net.dtype)
        if not rows:
            return out
        with self.gpu.active():
            running = self._pass(x, None, min(batch_size, rows), self.net.outputs, order=order)
            self._upload()
            collector = Collector(running, out)
            running.run(lambda kind: self._list_prediction(running, kind.rows), after=collector.launched)
            collector.finish()
        return out

    def _pass(
        self, x: np.ndarray | Source, y: np.ndarray | None, batch: int, outputs: int = 0,
        variation: Variation | None = None, weighted: bool = False, order: np.ndarray | None = None,
    ) -> Pass:  # fmt: skip
        net = self.net._replace(variation=variation)
        program = Program(self.gpu, self.stream.handle, net, self.mirror.read, batch)
        rows = len(x) if order is None else len(order)
        return Pass(program, x, y, rows, False, outputs=outputs, weighted=weighted, chosen=order)

    def _list_evaluation(self, running: Pass, rows: int) -> None:
        x, t, labels = running.gather(rows)
        z, _ = running.program.forward(x, rows)
        sums = running.losses, 0, running.results.address
        table = running.program.loss_and_metrics(z, t, labels, rows, *sums, 0, running.gather_weights(rows))
        running.program.finish(table, 1 + len(running.program.net.sums), 0)

    def _list_prediction(self, running: Pass, rows: int) -> None:
        x, _, _ = running.gather(rows)
        y, _ = running.program.forward(x, rows)
        if self.net.link:
            running.program.link(y, y, rows)
        assert running.outputs is not None
        running.program.scatter(y, running.outputs.address, rows, running.feed.ring)
        running.program.finish(0, 0, 0)

    @property
    def _terms(self) -> int:
        """Terms of the loss in a row."""
        if self.net.loss is None:
            raise ValueError("a network without a loss can only predict")
        return 1 if LOSSES[self.net.loss.name].by_row else self.net.outputs

    def _totals(
        self, losses: np.ndarray, sums: Sequence[float], rows: float, variation: Variation | None, start: float
    ) -> PassResult:
        named: dict[str, list[float]] = {name: [] for name in self.net.metrics}
        parts = self.net._replace(variation=variation).sums
        for (name, _), total in zip(parts, sums[: len(parts)], strict=bool(rows)):
            named[name].append(total)
        named |= {name: list(sums[len(parts) :]) for name in self.net.metrics if METRICS[name].of_counts}
        assert self.net.loss is not None
        by_output = LOSSES[self.net.loss.name].hits_by_output(self.net.outputs)
        metrics = metric_values(named, rows, self.net.outputs, by_output, variation)
        return PassResult(losses, metrics, time.perf_counter() - start)


def _mean(total: float, count: float) -> float:
    return float(total / count) if count else 0.0


def _parts(variation: Variation | None) -> tuple[Columns, ...] | None:
    return None if variation is None else tuple(variation.parts)
