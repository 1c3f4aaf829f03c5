"""The verbs of a network: train, evaluate and predict, each one pass over the data in one compiled call.

A pass is a `Program`, a list of phases that one kernel runs for every batch on every rank. That of training is kept
from epoch to epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...formulas import LOSSES, NUM_SCALARS
from ...metrics import Variation, metric_values, variation_for
from ...scalars import fill_scalars
from ...spec import Batches, DenseSpec, LayerSpec, LossSpec, OptimizerSteps, PassResult
from ..runtime.launch import STEP_FLOPS, num_threads_for
from .optimizer_step import OptimizerStep
from .program import Program, Structure

# Data of more bytes do not stay in a cache, and a core waits 50 ns for each of their rows, drawn at random. Counted as
# operations: 256 rows a batch, as of a linear regression, are worth two threads (0.7 of one's time), 32 are not.
CACHED_BYTES, ROW_FLOPS = 32 << 20, 32_000
SPARE_BYTES = 1 << 20  # most memory of a program of `evaluate` or `predict` that is kept for the next call


class Network:
    """The layers of a network compiled into programs; `params` belong to the caller and are updated in place.

    params: [w0, b0, w1, b1, ...], C-contiguous, w (inputs, outputs), b (outputs,), without b where a layer has none.
    compute: "bfloat16" for layers that compute in it, with `dtype` float32: operands of products, and what layers give
    to one another forward and backward, are rounded to it; parameters, their gradients, the outputs of the last layer
    and all that follows from them are not.
    """

    reusable = True  # for passes over other data: it keeps programs, and no data

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        params: Sequence[np.ndarray],
        dtype: str,
        loss: LossSpec | None = None,
        metrics: Sequence[str] = (),
        compute: str | None = None,
    ) -> None:
        dense = [layer for layer in layers if isinstance(layer, DenseSpec)]
        last = dense[-1].activation
        is_link = last == "softmax" or (loss is not None and last == LOSSES[loss.name].link)
        self.params = list(params)
        self.net = Structure(
            list(layers), self.params, np.dtype(dtype).name, loss, tuple(metrics), last if is_link else None,
            compute or np.dtype(dtype).name,
        )  # fmt: skip
        self.outputs, row = dense[-1].outputs, LOSSES[loss.name] if loss else None
        self.by_output = row is not None and row.hits_by_output(self.outputs)
        self.losses_of_row = 1 if row is not None and row.by_row else self.outputs
        self.flops = sum(2.0 * layer.inputs * layer.outputs for layer in dense)  # of one row, forward
        self.steps_done = 0
        self._predictors: dict[tuple[int, int], Program] = {}
        self._evaluators: dict[tuple[Any, ...], tuple[Program, dict[str, np.ndarray]]] = {}
        self._trained: Any = None  # the key of the last training program, and what `_training` returned for it

    def _training(
        self, data: Batches, rule: str, states: Sequence[tuple[np.ndarray, ...]], seed: int, clips: bool,
        variation: Variation | None,
    ) -> tuple[Program, dict[str, np.ndarray], OptimizerStep | None]:  # fmt: skip
        """The program of a training pass; the next epoch, or `fit`, on data of the same shape finds it made."""
        flops_of_row = 3 * self.flops + (ROW_FLOPS if data.x.nbytes > CACHED_BYTES else 0)
        num_ranks = num_threads_for(flops_of_row * data.batch_size, STEP_FLOPS, 1 << 30)
        sizes = data.batch_size, data.accumulate, len(data.order), data.y.ndim, variation and variation.parts
        key = sizes, num_ranks, clips, rule, seed, [id(state) for of_param in states for state in of_param]
        if self._trained and self._trained[0] == key:
            return self._trained[1:]
        net = self.net
        program = Program(net, "train", data.batch_size)
        program.kept.append(states)  # so that no other array can have the same id
        program.num_ranks = num_ranks
        losses, scalars = np.zeros(data.batches), np.zeros((data.steps, NUM_SCALARS + 1), net.dtype)
        x, y = program.gather(data)
        assert y is not None
        outputs, saved_for_backward = program.forward(x, seed)
        gradient = program.zeros(program.batch_size, net.outputs)
        results = program.loss_and_metrics(outputs, y, losses, losses.itemsize, gradient, variation)
        optimizer_step = None
        if clips or data.accumulate > 1:
            optimizer_step = OptimizerStep(net.params, rule, states, scalars, data, clips, program.num_ranks)
        program.backward(saved_for_backward, gradient, rule, states, scalars, optimizer_step)
        program.finish()
        # by what the sum of losses of each batch is divided
        counts = np.full(data.batches, data.batch_size)
        counts[-1:] = len(data.order) - (data.batches - 1) * data.batch_size
        counts *= self.losses_of_row
        results |= {"losses": losses, "scalars": scalars, "counts": counts}
        self._trained = key, program, results, optimizer_step
        return program, results, optimizer_step

    # ------------------------------------------------------------ verbs
    def train(
        self,
        batches: Batches,
        optimizer: OptimizerSteps,
        seed: int,
        progress: Callable[[int, float], None] | None = None,
    ) -> PassResult:
        """Train on every batch once, parameters and states in place; seed: of the dropout masks."""
        start = time.perf_counter()
        rule, step, clip_norm = optimizer.rule, optimizer.steps_done, optimizer.clip_norm
        steps, rows, group = len(optimizer.learning_rates), len(batches.order), batches.accumulate
        variation = variation_for(self.net.metrics, batches.y, batches.order) if self.net.metrics else None
        clips = clip_norm is not None
        program, results, optimizer_step = self._training(batches, rule, optimizer.states, seed, clips, variation)
        if optimizer_step:
            optimizer_step.clip(clip_norm)
        program.read_from(batches.x, batches.y)
        losses, counts = results["losses"], results["counts"]
        for name in ("losses", *self.net.metrics):
            results[name].fill(0)
        numbers = range(step + 1, step + 1 + steps)
        fill_scalars(results["scalars"], rule, numbers, optimizer.options, optimizer.learning_rates)

        def report(done: int) -> None:
            if progress and done:
                progress(whole_steps(done), float(losses[:done].sum() / counts[:done].sum()))

        def whole_steps(done: int) -> int:
            return steps if done == len(counts) else done // group

        try:
            self.steps_done = 0
            program.execute(rows, batches.order, step * group, 3 * self.flops * rows, report)
        finally:
            self.steps_done = whole_steps(int(program.run[0]["done"]))
        report(len(counts))
        accumulators = {name: results[name] for name in self.net.metrics}
        firsts = np.arange(0, len(counts), group)
        means = np.add.reduceat(losses, firsts) / np.add.reduceat(counts, firsts)
        return self._totals(means, accumulators, len(batches.order), variation, start)

    def evaluate(self, x: np.ndarray, y: np.ndarray, batch_size: int = 1024) -> PassResult:
        """The mean loss and the metrics over all rows, without dropout."""
        start = time.perf_counter()
        variation = variation_for(self.net.metrics, y, None) if self.net.metrics else None
        batch_size = min(batch_size, len(x))
        num_ranks = num_threads_for(self.flops * batch_size, STEP_FLOPS, 1 << 30)
        key = batch_size, num_ranks, y.ndim, *(variation.parts if variation else ())
        # removed while it runs, as in `predict`
        spare = self._evaluators.pop(key, None)
        program, sums = self._evaluator(x, y, batch_size, num_ranks, variation) if spare is None else spare
        for total in sums.values():
            total.fill(0)
        program.read_from(x, y)
        program.execute(len(x), None, 0, self.flops * len(x), None)
        accumulators = {name: sums[name] for name in self.net.metrics}
        losses = sums["losses"] / (len(x) * self.losses_of_row)
        result = self._totals(losses, accumulators, len(x), variation, start)
        if program.num_bytes <= SPARE_BYTES:
            self._evaluators = {key: (program, sums)}
        return result

    def _evaluator(
        self, x: np.ndarray, y: np.ndarray, batch_size: int, num_ranks: int, variation: Variation | None
    ) -> tuple[Program, dict[str, np.ndarray]]:
        """A program that adds up losses and metrics, and its sums by name."""
        program = Program(self.net, "evaluate", batch_size)
        program.num_ranks = num_ranks
        inputs, targets = program.gather(Batches(x, y, np.arange(0), batch_size))
        assert targets is not None
        outputs, _ = program.forward(inputs, None)
        losses, gradient = np.zeros(1), program.zeros(batch_size, self.net.outputs)
        sums = program.loss_and_metrics(outputs, targets, losses, 0, gradient, variation)
        program.finish()
        return program, {**sums, "losses": losses}

    def predict(self, x: np.ndarray, batch_size: int = 1024) -> np.ndarray:
        """The outputs for every row, after the output activation."""
        out = np.empty((len(x), self.outputs), self.net.dtype)
        if not len(x):
            return out
        batch_size = min(batch_size, len(x))
        key = batch_size, num_threads_for(self.flops * batch_size, STEP_FLOPS, 1 << 30)
        # removed while it runs, so that threads that predict at the same time have programs of their own
        program = self._predictors.pop(key, None)
        if program is None:
            program = self._predictor(x, out, *key)
        program.read_from(x, None)
        program.write_to(out)
        program.execute(len(x), None, 0, self.flops * len(x), None)
        if program.num_bytes <= SPARE_BYTES:
            self._predictors = {key: program}
        return out

    def _predictor(self, x: np.ndarray, out: np.ndarray, batch_size: int, num_ranks: int) -> Program:
        """The program that writes the outputs for x to `out`."""
        program = Program(self.net, "predict", batch_size)
        program.num_ranks = num_ranks
        inputs, _ = program.gather(Batches(x, None, np.arange(0), batch_size))  # type: ignore[arg-type]
        outputs, _ = program.forward(inputs, None)
        if self.net.link:
            program.link(outputs, outputs)
        program.scatter(outputs, out)
        program.finish()
        return program

    def _totals(
        self, losses: np.ndarray, accumulators: dict[str, np.ndarray], rows: int, variation: Variation | None,
        start: float,
    ) -> PassResult:  # fmt: skip
        sums = {name: accumulator.tolist() for name, accumulator in accumulators.items()}
        metrics = metric_values(sums, rows, self.outputs, self.by_output, variation) if sums else {}
        return PassResult(losses, metrics, time.perf_counter() - start)
