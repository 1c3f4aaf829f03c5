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


class Network:
    """The layers of a network compiled into programs; `params` belong to the caller and are updated in place.

    params: [w0, b0, w1, b1, ...], C-contiguous, w (inputs, outputs), b (outputs,), without b where a layer has none.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        params: Sequence[np.ndarray],
        dtype: str,
        loss: LossSpec | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        dense = [layer for layer in layers if isinstance(layer, DenseSpec)]
        last = dense[-1].activation
        is_link = last == "softmax" or (loss is not None and last == LOSSES[loss.name].link)
        self.params = list(params)
        self.net = Structure(
            list(layers), self.params, np.dtype(dtype).name, loss, tuple(metrics), last if is_link else None
        )
        self.flops = sum(2.0 * layer.inputs * layer.outputs for layer in dense)  # of one row, forward
        self.steps_done = 0
        self._trained: Any = None  # the key of the last training program, and what `_training` returned for it

    def _training(
        self, data: Batches, rule: str, states: Sequence[tuple[np.ndarray, ...]], seed: int, clips: bool,
        variation: Variation | None,
    ) -> tuple[Program, dict[str, np.ndarray], OptimizerStep | None]:  # fmt: skip
        """The program of a training pass; the next epoch, on the same arrays, finds it made."""
        arrays = [data.x, data.y, *(state for of_param in states for state in of_param)]
        parts = variation and variation.parts
        key = data.batch_size, data.accumulate, clips, rule, seed, len(data.order), parts, [id(a) for a in arrays]
        if self._trained and self._trained[0] == key:
            return self._trained[1:]
        net = self.net
        program = Program(net, "train", data.batch_size)
        program.kept += arrays  # so that no other array can have the same id
        flops_of_row = 3 * self.flops + (ROW_FLOPS if data.x.nbytes > CACHED_BYTES else 0)
        program.num_ranks = num_threads_for(flops_of_row * data.batch_size, STEP_FLOPS, 1 << 30)
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
        counts *= self._losses_of_row
        results |= {"losses": losses, "scalars": scalars, "counts": counts}
        self._trained = key, program, results, optimizer_step
        return program, results, optimizer_step

    @property
    def _losses_of_row(self) -> int:
        return 1 if LOSSES[self.net.loss_spec.name].by_row else self.net.outputs

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
        steps, rows, group = batches.steps, len(batches.order), batches.accumulate
        variation = variation_for(self.net.metrics, batches.y, batches.order)
        clips = clip_norm is not None
        program, results, optimizer_step = self._training(batches, rule, optimizer.states, seed, clips, variation)
        if optimizer_step:
            optimizer_step.clip(clip_norm)
        losses, counts = results["losses"], results["counts"]
        for name in ("losses", *self.net.metrics):
            results[name].fill(0)
        numbers = range(step + 1, step + 1 + steps)
        fill_scalars(results["scalars"], rule, numbers, optimizer.options, optimizer.learning_rates)

        def report(done: int) -> None:
            if progress and done:
                progress(whole_steps(done), float(losses[:done].sum() / counts[:done].sum()))

        def whole_steps(done: int) -> int:
            return steps if done == batches.batches else done // group

        try:
            self.steps_done = 0
            program.execute(rows, batches.order, step * group, 3 * self.flops * rows, report)
        finally:
            self.steps_done = whole_steps(int(program.run[0]["done"]))
        report(batches.batches)
        accumulators = {name: results[name] for name in self.net.metrics}
        firsts = np.arange(0, batches.batches, group)
        losses, counts = np.add.reduceat(losses, firsts), np.add.reduceat(counts, firsts)
        return self._totals(losses / counts, accumulators, len(batches.order), variation, start)

    def evaluate(self, x: np.ndarray, y: np.ndarray, batch_size: int = 1024) -> PassResult:
        """The mean loss and the metrics over all rows, without dropout."""
        start = time.perf_counter()
        program = self._forward_program("evaluate", min(batch_size, len(x)))
        inputs, targets = program.gather(Batches(x, y, np.arange(0), batch_size))
        assert targets is not None
        outputs, _ = program.forward(inputs, None)
        losses, gradient = np.zeros(1), program.zeros(program.batch_size, self.net.outputs)
        variation = variation_for(self.net.metrics, y, None)
        accumulators = program.loss_and_metrics(outputs, targets, losses, 0, gradient, variation)
        program.finish()
        program.execute(len(x), None, 0, self.flops * len(x), None)
        count = len(x) * self._losses_of_row
        return self._totals(losses / count, accumulators, len(x), variation, start)

    def predict(self, x: np.ndarray, batch_size: int = 1024) -> np.ndarray:
        """The outputs for every row, after the output activation."""
        out = np.empty((len(x), self.net.outputs), self.net.dtype)
        if not len(x):
            return out
        program = self._forward_program("predict", min(batch_size, len(x)))
        inputs, _ = program.gather(Batches(x, None, np.arange(0), batch_size))  # type: ignore[arg-type]
        outputs, _ = program.forward(inputs, None)
        if self.net.link:
            program.link(outputs, outputs)
        program.scatter(outputs, out)
        program.finish()
        program.execute(len(x), None, 0, self.flops * len(x), None)
        return out

    def _forward_program(self, verb: str, batch_size: int) -> Program:
        program = Program(self.net, verb, batch_size)
        program.num_ranks = num_threads_for(self.flops * batch_size, STEP_FLOPS, 1 << 30)
        return program

    def _totals(
        self, losses: np.ndarray, accumulators: dict[str, np.ndarray], rows: int, variation: Variation | None,
        start: float,
    ) -> PassResult:  # fmt: skip
        sums = {name: accumulator.tolist() for name, accumulator in accumulators.items()}
        by_output = LOSSES[self.net.loss_spec.name].hits_by_output(self.net.outputs)
        metrics = metric_values(sums, rows, self.net.outputs, by_output, variation)
        return PassResult(losses, metrics, time.perf_counter() - start)
