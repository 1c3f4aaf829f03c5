"""A network on a GPU: a batch is one CUDA graph, and an epoch is a loop of launches that waits for nothing.

Where the network is small, many batches are one kernel (`fused/select.py`).

The parameters and the states of the optimizer belong to the caller, and are the host's. A pass takes them to the
device, and brings them back when it is over, however it ends; where several passes follow one another and nobody looks
in between, all of them together do (`Network.holding`). The data are taken there once, and stay as long as passes
are over the same arrays: whoever writes to such an array must make a new network. Where they do not fit, they are
streamed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ...formulas import LOSSES, NUM_SCALARS
from ...interrupts import interrupts_held
from ...metrics import Columns, Variation, metric_values, variation_for
from ...scalars import fill_scalars
from ...spec import Batches, DenseSpec, LayerSpec, LossSpec, OptimizerSteps, PassResult
from ..dense.mixed import Weights
from ..dense.structure import Structure
from ..fused.select import Fused, FusedPass, fused_training
from ..runtime.array_interface import gpu_of
from ..runtime.memory import Block, Mirror
from ..runtime.records import ROW
from .optimizer_step import BESIDE, Places, Updates
from .passes import Collector, Pass, Turn
from .program import Program

REPORT = 0.1  # seconds between two calls of `progress`, which make the host wait for the device


class _Training:
    """A pass that trains, and what it needs beyond others: gradients, states, scalars, updates."""

    def __init__(
        self,
        network: Network,
        data: Batches,
        rule: str,
        states: Sequence[tuple[np.ndarray, ...]],
        seed: int,
        norm: bool,
        variation: Variation | None,
    ) -> None:
        gpu, stream, params, group = network.gpu, network.stream.handle, network.params, data.accumulate
        sizes = [p.nbytes for p in params]
        self.gpu, self.stream, self.norm = gpu, stream, norm
        self.states = Mirror(gpu, [state for of_param in states for state in of_param])
        self.gradients = Block(gpu, sizes)
        self.totals = Block(gpu, sizes) if group > 1 else self.gradients
        self.scalars, self.steps = gpu.allocate(data.steps * ROW), data.steps
        places = iter(self.states.addresses)
        where = Places(
            network.mirror.addresses, [[next(places) for _ in of_param] for of_param in states],
            self.gradients.addresses, self.totals.addresses, network.mirror.copies,
        )  # fmt: skip
        elements, net = [p.size for p in params], network.net._replace(variation=variation)
        copy = net.compute if where.copies else ""
        alone = group == 1 and not norm  # each batch is a step, and nothing of it has to be known before
        layers = network.numbers if alone and sum(elements) >= BESIDE and len(network.numbers) > 1 else ()
        self.updates = Updates(gpu, stream, rule, net.dtype, elements, where, self.scalars.address, copy, layers)
        self.program = Program(gpu, stream, net, network.mirror.read, data.batch_size, seed)
        self.batches = Pass(self.program, data.x, data.y, len(data.order), True, group)
        self.together = self._fused(rule, where.states) if alone else None

    def _fused(self, rule: str, states: Sequence[Sequence[int]]) -> Fused | None:
        """The pass as one kernel; None where graphs are faster, or the kernel is impossible."""
        program, batches = self.program, self.batches
        feed, clock, sums = batches.feed, program.clock.address, batches.results.address
        data = FusedPass(
            program.params, states, program.seed, batches.labels, program.batch, batches.rows, feed.ring, feed.x,
            feed.y, batches.order, self.scalars.address, clock, batches.losses, sums,
        )  # fmt: skip
        return fused_training(self.gpu, self.stream, program.net, rule, data)

    def begin(self, table: np.ndarray, clip_norm: float | None) -> None:
        """Takes what a pass begins with to the device; table: (steps, scalars)."""
        rows = np.zeros((self.steps, ROW // table.itemsize), table.dtype)
        rows[:, : table.shape[1]] = table
        self.gpu.copy_in(self.scalars.address, rows, self.stream)
        self.updates.begin(clip_norm)

    def list_batch(self, kind: Turn) -> None:
        """The launches for a kind of batch."""
        program, updates, rows = self.program, self.updates, kind.rows
        x, t, labels = self.batches.gather(rows)
        z, trail = program.forward(x, rows)
        places = self.batches.losses, 8, self.batches.results.address, program.top()
        table = program.judge(z, t, labels, rows, *places)
        beside = updates.beside and not self.batches.marked
        after = partial(program.add, updates.update_layer) if beside else lambda parameter: None
        program.backward(trail, rows, self.gradients.addresses, after)
        if self.totals is not self.gradients:
            if kind.first:
                program.add(self.gpu.zero, self.totals.memory.address, self.totals.size, self.stream)
            program.add(updates.accumulate, updates.shares(rows / kind.whole))
        if kind.due and self.norm:
            program.add(updates.clip)
        if kind.due:
            program.add(updates.join if beside else updates.update)
        program.finish(table, 1 + len(program.net.sums), updates.control.address if kind.due else 0)


class Network:
    """The layers of a network on a GPU; `params` belong to the caller, and are as after the last step when a call ends.

    params: [w0, b0, w1, b1, ...], C-contiguous, w (inputs, outputs), b (outputs,), without b where a layer has none.
    compute: the dtype that layers compute in, of 16 bits with `dtype` float32; None: `dtype`; "tf32": the same, but
    products may round their operands to 10 bits of mantissa.
    fused: the activations that may be epilogues of products; None: those that are exact (`products.exact`).
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
        self.mirror = Weights(self.gpu, self.params, self.net.compute, self.net.dense[-1].bias)
        ends = np.cumsum([1 + spec.bias for spec in self.net.dense]).tolist()
        self.numbers = [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]  # of each layer
        self._kept: dict[str, tuple[Any, Any]] = {}  # the pass of a verb, and what it was made for
        self._holding = False
        self._ahead: _Training | None = None  # whose parameters and states are newer on the device than on the host

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """While open, parameters and states stay on the device from one pass to the next.

        What the caller has is meanwhile that of before, and not to be written to. They come back in the end, however
        that comes about.
        """
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            with self.gpu.active(), interrupts_held():
                self._bring()

    def _upload(self) -> None:
        """The parameters, unless the device has newer ones."""
        if self._ahead is None:
            self.mirror.upload(self.stream.handle)

    def _bring(self) -> None:
        """To the host what is newer on the device."""
        if self._ahead is not None:
            training, self._ahead = self._ahead, None
            self.mirror.download(self.stream.handle)
            training.states.download(self.stream.handle)

    def _same(
        self, verb: str, arrays: Sequence[np.ndarray | None], key: tuple[Any, ...], make: Callable[[], Any]
    ) -> Any:
        """The pass of a verb, as it was made for the same arrays, which it keeps alive."""
        key = *map(id, arrays), *key
        if verb not in self._kept or self._kept[verb][0] != key:
            if verb == "train":
                self._bring()
            self._kept.pop(verb, None)  # whose memory the next one may need
            self._kept[verb] = key, make()
        return self._kept[verb][1]

    def train(
        self,
        batches: Batches,
        optimizer: OptimizerSteps,
        seed: int,
        progress: Callable[[int, float], object] | None = None,
    ) -> PassResult:
        """Train on every batch once, parameters and states in place; seed: of the dropout masks.

        progress(steps_done, mean_loss_so_far) is called some ten times a second, and at the end. An interrupt waits for
        the end of the steps that were launched, which is a moment; `steps_done` then holds their number.
        """
        start = reported = time.perf_counter()
        self.steps_done = 0
        rule, states, step = optimizer.rule, optimizer.states, optimizer.steps_done
        steps, group, count = batches.steps, batches.accumulate, batches.batches
        if not steps:
            return self._totals(np.zeros(0), [], 0, None, start)
        with self.gpu.active(), interrupts_held() as check:
            arrays = [batches.x, batches.y, *(state for of_param in states for state in of_param)]
            norm = optimizer.clip_norm is not None
            variation = variation_for(self.net.metrics, batches.y, batches.order)
            key = batches.batch_size, group, len(batches.order), rule, seed, norm, _parts(variation)
            make = partial(_Training, self, batches, rule, states, seed, norm, variation)
            training: _Training = self._same("train", arrays, key, make)
            running = training.batches
            counts = np.full(count, batches.batch_size)
            counts[-1] = len(batches.order) - (count - 1) * batches.batch_size
            counts *= self._terms

            def whole_steps() -> int:
                return steps if running.done == count else running.done // group

            def report(chunk: range) -> None:
                nonlocal reported
                if progress and time.perf_counter() - reported >= REPORT:
                    losses = running.sums()[1]
                    progress(whole_steps(), float(losses[: chunk.stop].sum() / counts[: chunk.stop].sum()))
                    reported = time.perf_counter()

            scalars = np.zeros((steps, NUM_SCALARS + 1), self.net.dtype)
            numbers = range(step + 1, step + 1 + steps)
            fill_scalars(scalars, rule, numbers, optimizer.options, optimizer.learning_rates)
            self._upload()
            if self._ahead is None:
                training.states.upload(self.stream.handle)
            training.begin(scalars, optimizer.clip_norm)
            self._ahead = training
            try:
                running.run(training.list_batch, batches.order, step * group, check, report, training.together)
            finally:
                if not self._holding:
                    self._bring()
                self.steps_done = whole_steps()
            sums, losses = running.sums()
        if progress:
            progress(steps, float(losses.sum() / counts.sum()))
        firsts = np.arange(0, count, group)
        losses = np.add.reduceat(losses, firsts) / np.add.reduceat(counts, firsts)
        return self._totals(losses, sums, len(batches.order), variation, start)

    def evaluate(self, x: np.ndarray, y: np.ndarray, batch_size: int = 1024) -> PassResult:
        """The mean loss and the metrics over all rows, without dropout."""
        start, size, terms = time.perf_counter(), min(batch_size, len(x)), self._terms
        if not size:
            return self._totals(np.full(1, np.nan), [], 0, None, start)
        variation = variation_for(self.net.metrics, y, None)
        with self.gpu.active():
            key = size, _parts(variation)
            running: Pass = self._same("evaluate", [x, y], key, lambda: self._pass(x, y, size, variation=variation))
            self._upload()
            running.run(lambda kind: self._list_evaluation(running, kind.rows))
            sums, losses = running.sums()
        return self._totals(losses[:1] / (len(x) * terms), sums, len(x), variation, start)

    def predict(self, x: np.ndarray, batch_size: int = 1024) -> np.ndarray:
        """The outputs for every row, after the output activation."""
        out = np.empty((len(x), self.net.outputs), self.net.dtype)
        if not len(x):
            return out
        with self.gpu.active():
            running = self._pass(x, None, min(batch_size, len(x)), self.net.outputs)
            self._upload()
            collector = Collector(running, out)
            running.run(lambda kind: self._list_prediction(running, kind.rows), after=collector.launched)
            collector.finish()
        return out

    def _pass(
        self, x: np.ndarray, y: np.ndarray | None, batch: int, outputs: int = 0, variation: Variation | None = None
    ) -> Pass:
        net = self.net._replace(variation=variation)
        program = Program(self.gpu, self.stream.handle, net, self.mirror.read, batch)
        return Pass(program, x, y, len(x), False, outputs=outputs)

    def _list_evaluation(self, running: Pass, rows: int) -> None:
        x, t, labels = running.gather(rows)
        z, _ = running.program.forward(x, rows)
        table = running.program.judge(z, t, labels, rows, running.losses, 0, running.results.address, 0)
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
        """Of the loss of a row."""
        if self.net.loss is None:
            raise ValueError("a network without a loss can only predict")
        return 1 if LOSSES[self.net.loss.name].by_row else self.net.outputs

    def _totals(
        self, losses: np.ndarray, sums: Sequence[float], rows: int, variation: Variation | None, start: float
    ) -> PassResult:
        named: dict[str, list[float]] = {name: [] for name in self.net.metrics}
        for (name, _), total in zip(self.net._replace(variation=variation).sums, sums, strict=bool(rows)):
            named[name].append(total)
        assert self.net.loss is not None
        by_output = LOSSES[self.net.loss.name].hits_by_output(self.net.outputs)
        metrics = metric_values(named, rows, self.net.outputs, by_output, variation)
        return PassResult(losses, metrics, time.perf_counter() - start)


def _parts(variation: Variation | None) -> tuple[Columns, ...] | None:
    return None if variation is None else tuple(variation.parts)
