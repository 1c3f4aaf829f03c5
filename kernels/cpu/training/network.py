"""The verbs of a network: train, evaluate and predict, each one pass over the data in one compiled call.

A pass is a `Program`, a list of phases that one kernel runs for every batch on every rank. That of training is kept
from epoch to epoch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...formulas import LOSSES, NUM_SCALARS
from ...interrupts import interrupts_held
from ...metrics import Variation, metric_values, variation_for, variation_of_pass
from ...sources import Source
from ...spec import (
    BLOCKWISE,
    Batches,
    EpochHooks,
    EpochResults,
    LayerSpec,
    LossSpec,
    OptimizerSteps,
    ParamSettings,
    PassResult,
    dense_layers,
)
from ..dense.gather import layout_of
from ..dense.sparse_entries import Entries
from ..runtime.launch import STEP_FLOPS, num_threads_for
from .after_step import AfterUpdates, key_of
from .masks import complete
from .optimizer_step import OptimizerStep
from .passes import Training, TrainingPass, Values
from .penalties import Penalties, penalty, terms_of
from .phases import Structure
from .program import Program
from .row_weights import sum_in_order
from .sparse import BATCH, SparseChoice, add_builds

# Data of more bytes do not stay in a cache, and a core waits 50 ns for each of their rows, drawn at random. Counted as
# operations: 256 rows a batch, as of a linear regression, are worth two threads (0.7 of one's time), 32 are not.
CACHED_BYTES, ROW_FLOPS = 32 << 20, 32_000
# Operations of a pass of `evaluate` or `predict` that are worth a thread, whose results go from cache to cache: 32 rows
# of 784-256-128-10 (15 MFLOP) take as long on two threads as on one, 48 rows 0.8 of it.
PASS_FLOPS = 8e6
ROW_NUMBERS = np.dtype(np.uint32)  # the dtype of an order of rows, unless it needs int64
SPARE_SIZES, SPARE_PROGRAMS = 4, 16  # batch sizes whose programs `predict` keeps, and programs of each, one a thread
# Most memory of the programs of `evaluate`, of a batch size of `predict`, or of many epochs that is kept for the next
# call. Without those of its program, `predict` of 256 rows of 784 features took 880 us for 520.
SPARE_BYTES = 8 << 20
STEP_PROGRAMS = 4  # programs of a single step that `train` keeps: batches of a stream may differ in their rows


class Network:
    """The layers of a network compiled into programs; `params` belong to the caller and are updated in place.

    params: [w0, b0, w1, b1, ...], C-contiguous, w (inputs, outputs), b (outputs,), without b where a layer has none;
    of other layers those of `spec.parameter_shapes`. masks: of each of them, as `OptimizerSteps` has them, by which
    `evaluate` and `predict` choose how to multiply; other weights need not be zero.
    compute: "bfloat16" for layers that compute in it, with `dtype` float32: operands of products, and what layers give
    to one another forward and backward, are rounded to it; parameters, their gradients, the outputs of the last layer
    and all that follows from them are not.
    """

    reusable = True  # for passes over other data: it keeps programs, and no data
    multiplies_sparse = True  # where masks leave few weights

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        params: Sequence[np.ndarray],
        dtype: str,
        loss: LossSpec | None = None,
        metrics: Sequence[str] = (),
        compute: str | None = None,
        masks: Sequence[np.ndarray | None] = (),
    ) -> None:
        dense = dense_layers(layers)
        last = dense[-1].activation
        is_link = last == "softmax" or (loss is not None and last == LOSSES[loss.name].link)
        self.params = list(params)
        self.net = Structure(
            list(layers), self.params, np.dtype(dtype).name, loss, tuple(metrics), last if is_link else None,
            compute or np.dtype(dtype).name, {},
        )  # fmt: skip
        self.outputs, row = dense[-1].outputs, LOSSES[loss.name] if loss else None
        self.by_output = row is not None and row.hits_by_output(self.outputs)
        self.losses_of_row = 1 if row is not None and row.by_row else self.outputs
        self.flops = sum(2.0 * layer.inputs * layer.outputs for layer in dense)  # of one row, forward
        self.steps_done = 0
        self.dtype = np.dtype(dtype)
        self._sparse = SparseChoice(self.net, masks) if masks else None
        self._predictors: dict[tuple[Any, ...], list[Program]] = {}
        self._evaluators: dict[tuple[Any, ...], tuple[Program, dict[str, np.ndarray]]] = {}
        self._trained: Training | None = None  # the last one
        self._steps: list[Training] = []  # those of a single step, the oldest first

    def _training(
        self, data: Batches, optimizer: OptimizerSteps, num_settings: int, rows: tuple[int, ...], seed: int,
        variation: Variation | None,
    ) -> Training:  # fmt: skip
        """The program of a training pass; the next pass, or `fit`, on data of the same shape finds it made.

        num_settings: different settings of parameters; rows: index among them of each parameter's.
        It is for so many epochs or fewer.
        """
        flops_of_row = 3 * self.flops + (ROW_FLOPS if data.x.nbytes > CACHED_BYTES else 0)
        num_ranks = num_threads_for(flops_of_row * data.batch_size, STEP_FLOPS, 1 << 30)
        rows_of_epoch = (len(data.order), data.used) if data.sizes is None else None  # the program is for any number
        sizes = data.batch_size, data.accumulate, rows_of_epoch, data.y.ndim, variation and variation.parts
        shuffles = data.shuffle and bool(data.shuffle.block_rows)  # None: not at all
        layout = data.x.dtype if isinstance(data.x, np.ndarray) else layout_of(data.x), data.order.dtype
        weighted = data.weights is not None
        clips = optimizer.clip_norm is not None
        rule, states = optimizer.rule, optimizer.states
        ids = [None if of_param is None else [*map(id, of_param)] for of_param in states]
        terms = terms_of(optimizer.settings) if optimizer.settings else ()
        of_optimizer = (
            clips, rule, rows, num_settings, terms, ids, key_of(optimizer.after), tuple(optimizer.fixed),
            [*map(id, optimizer.masks)], tuple(optimizer.storages),
        )  # fmt: skip
        key = sizes, layout, shuffles, weighted, num_ranks, seed, of_optimizer
        trained = self._trained
        if self._steps and data.epochs * data.steps == 1:
            trained = next((kept for kept in self._steps if kept.key == key), trained)
        has_room = trained is not None and (data.sizes is None or trained.steps >= data.steps)
        if trained and has_room and trained.key == key and trained.epochs >= data.epochs:
            return trained
        net, epochs, steps = self.net, data.epochs, data.most_steps
        program = Program(net, "train", data.batch_size)
        program.kept += [states, optimizer.masks]  # so that no other array can have the same id
        program.num_ranks = num_ranks
        masks, storages = complete(optimizer.masks, net.layers, net.params), tuple(optimizer.storages)
        after = AfterUpdates(optimizer.after, net.params, num_ranks, epochs * steps, data.accumulate, masks, storages)
        losses = np.zeros((epochs, steps * data.accumulate))
        scalars = np.zeros((epochs * steps, num_settings, NUM_SCALARS + 1), net.dtype)
        if shuffles is not None:
            program.shuffle(data.order.dtype.name, shuffles)
        if weighted:
            program.weigh(data.order.dtype.name, data.accumulate)
        after.add_share(program)
        x, y = program.gather(data)
        assert y is not None
        outputs, saved_for_backward = program.forward(x, seed, optimizer.fixed)
        gradient = program.zeros(program.batch_size, net.outputs)
        needs_step, penalties = clips or data.accumulate > 1 or BLOCKWISE in storages, None
        if terms:
            tiled = [i for i, p in enumerate(net.params) if p.ndim == 2 and states[i] is not None]
            penalties = Penalties(net.params, terms, data, num_ranks, [] if needs_step else tiled)
            penalties.add_sums(program)
        sums = program.loss_and_metrics(outputs, y, losses, losses.itemsize, gradient, variation, epochs)
        optimizer_step = None
        if needs_step:
            most = 0 if data.sizes is None else losses.shape[1]
            optimizer_step = OptimizerStep(
                net.params, rule, states, scalars, rows, data, clips, num_ranks, after, most
            )  # fmt: skip
        program.backward(saved_for_backward, gradient, rule, states, scalars, rows, optimizer_step, after, penalties)
        after.add_to(program, optimizer_step.step_after if optimizer_step else None)
        if penalties:
            penalties.add_penalty(program)
        program.finish()
        # by what the sum of losses of each batch is divided
        counts = data.rows_of_batches() * self.losses_of_row
        self._trained = Training(
            key, epochs, steps, program, optimizer_step, losses, counts, sums, penalties, scalars, after
        )  # fmt: skip
        if epochs * data.steps == 1 and program.num_bytes <= SPARE_BYTES // STEP_PROGRAMS:
            self._steps = [*self._steps[1 - STEP_PROGRAMS :], self._trained]
        return self._trained

    # ------------------------------------------------------------ verbs
    def prepare(
        self, batches: Batches, optimizer: OptimizerSteps, seed: int, hooks: EpochHooks | None = None
    ) -> TrainingPass:
        """A training pass on every batch in each epoch, ready to run; seed: of the dropout masks.

        `finish` of the pass is to be called before another one is prepared.
        """
        start = time.perf_counter_ns()
        variation = variation_of_pass(self.net.metrics, batches, in_order=False) if self.net.metrics else None
        settings, indices = optimizer.rows()
        training = self._training(batches, optimizer, len(settings), indices, seed, variation)
        values = Values(self.net.metrics, self.losses_of_row, self.metrics_of, variation)
        return TrainingPass(training, batches, optimizer, settings, values, hooks, 3 * self.flops, start)

    def train(
        self,
        batches: Batches,
        optimizer: OptimizerSteps,
        seed: int,
        progress: Callable[[int, float], None] | None = None,
        hooks: EpochHooks | None = None,
    ) -> PassResult:
        """Train on every batch once in each epoch, parameters and states in place; seed: of the dropout masks.

        All epochs are one compiled call; there is only one where batches have sizes of their own. Returns the result of
        the last epoch that was done; the hooks get those of all.
        progress(steps_done, mean_loss_so_far) is called some twenty times a second if the pass takes more than some 10
        ms. An interrupt (SIGINT) waits for the end of the batch; `steps_done` then holds the number of steps taken.
        """
        self.steps_done = 0
        if not batches.num_rows:
            return PassResult(np.zeros(0), self.metrics_of({}, 0, None), 0.0)
        this = self.prepare(batches, optimizer, seed, hooks)

        def watch(done: int) -> bool:
            check()
            if progress and done:
                this.report(progress)
            return hooks is not None and hooks.stop()

        with interrupts_held() as check:
            try:
                this.program.execute(this.flops, watch)
            finally:
                results = self.finish(this)
        if progress and this.program.done:
            this.report(progress)
        if batches.parts:
            this.carry()
        return results.last()

    def finish(self, this: TrainingPass) -> EpochResults:
        """The results of a pass that has ended, which its hooks get; `steps_done` is the number of its steps."""
        try:
            results = this.finish()
        finally:
            self.steps_done = this.steps_done
        if this.batches.epochs > 1 and this.training.scalars.nbytes > SPARE_BYTES:
            self._trained = None
        return results

    def evaluate(
        self, x: np.ndarray | Source, y: np.ndarray, batch_size: int = 1024, weights: np.ndarray | None = None,
        order: np.ndarray | None = None,
    ) -> PassResult:  # fmt: skip
        """The mean loss and the metrics over the rows `order` (None: all), without dropout.

        weights: (n,) of all rows, of the network's dtype, whose sum over these is not 0; None: all 1.
        """
        start = time.perf_counter()
        variation = variation_for(self.net.metrics, y, order, weights) if self.net.metrics else None
        num_rows = len(x) if order is None else len(order)
        batch_size = min(batch_size, num_rows)
        num_ranks = self._threads_of_pass(batch_size, num_rows)
        layout = layout_of(x), ROW_NUMBERS if order is None else order.dtype
        sparse = self._sparse.layers(num_rows) if self._sparse else {}
        key = (
            batch_size, num_ranks, layout, y.ndim, weights is None, *(variation.parts if variation else ()), *sparse
        )  # fmt: skip
        # removed while it runs, as in `predict`
        spare = self._evaluators.pop(key, None)
        data = Batches(x, y, np.empty(0, layout[1]), batch_size, weights=weights)
        program, sums = self._evaluator(data, num_ranks, variation, sparse) if spare is None else spare
        for total in sums.values():
            total.fill(0)
        program.read_from(x, y)
        program.begin(num_rows, order)
        rows = float(num_rows)
        if program.row_weights and weights is not None:
            program.row_weights.begin(weights, 1, -(-num_rows // batch_size))
        program.execute(self.flops * num_rows)
        if program.row_weights:
            rows = sum_in_order(program.row_weights.batch_sums[0])
        losses = sums["losses"] / (rows * self.losses_of_row)
        result = PassResult(losses, self.metrics_of(sums, rows, variation), time.perf_counter() - start)
        if program.num_bytes <= SPARE_BYTES:
            self._evaluators = {key: (program, sums)}
        return result

    def penalty(self, settings: Sequence[ParamSettings]) -> float:
        """Return what the parameters, as they are, add to a loss; settings: of each, or () for none."""
        return penalty(self.params, settings)

    def _evaluator(
        self, data: Batches, num_ranks: int, variation: Variation | None, sparse: Mapping[int, Entries]
    ) -> tuple[Program, dict[str, np.ndarray]]:
        """A program that adds up losses and metrics, and its sums by name."""
        program = Program(self.net, "evaluate", data.batch_size)
        program.num_ranks = num_ranks
        add_builds(program, sparse)
        if data.weights is not None:
            program.weigh(data.order.dtype.name)
        inputs, targets = program.gather(data)
        assert targets is not None
        outputs, _ = program.forward(inputs, None)
        losses, gradient = np.zeros(1), program.zeros(data.batch_size, self.net.outputs)
        sums = program.loss_and_metrics(outputs, targets, losses, 0, gradient, variation)
        program.finish()
        return program, {**sums, "losses": losses}

    def predict(self, x: np.ndarray | Source, batch_size: int = 1024, order: np.ndarray | None = None) -> np.ndarray:
        """The outputs for the rows `order` (None: all, as they come), after the output activation."""
        rows = len(x) if order is None else len(order)
        out = np.empty((rows, self.outputs), self.dtype)
        if not rows:
            return out
        row_numbers = ROW_NUMBERS if order is None else order.dtype
        sparse = self._sparse.layers(rows) if self._sparse else {}
        if sparse:
            batch_size = min(batch_size, BATCH)
        key: tuple[Any, ...] = min(batch_size, rows), self._threads_of_pass(batch_size, rows), *sparse
        if isinstance(x, Source) or order is not None:
            key += layout_of(x), row_numbers
        # taken away while it runs, so that threads that predict at the same time have programs of their own
        spare = self._predictors.get(key)
        try:
            program = spare.pop()  # type: ignore[union-attr]
        except (AttributeError, IndexError):
            data = Batches(x, None, np.empty(0, row_numbers), key[0])  # type: ignore[arg-type]
            program = self._predictor(data, out, key[1], sparse)
        program.read_from(x, None)
        program.write_to(out)
        program.begin(rows, order)
        program.execute(self.flops * rows)
        if spare is not None and len(spare) < min(SPARE_PROGRAMS, SPARE_BYTES // max(1, program.num_bytes)):
            spare.append(program)
        elif spare is None and program.num_bytes <= SPARE_BYTES:
            self._keep(key, program)
        return out

    def _threads_of_pass(self, batch_size: int, rows: int) -> int:
        """Threads for a pass over data that updates nothing."""
        if self.flops * rows < 2 * PASS_FLOPS:
            return 1
        return num_threads_for(self.flops * batch_size, STEP_FLOPS, 1 << 30)

    def _keep(self, key: tuple[Any, ...], program: Program) -> None:
        """Keep the first program for batches of a size, for the next call; the oldest sizes make room."""
        while len(self._predictors) >= SPARE_SIZES:
            with contextlib.suppress(StopIteration, KeyError, RuntimeError):  # another thread was first
                del self._predictors[next(iter(self._predictors))]
        self._predictors[key] = [program]

    def _predictor(
        self, data: Batches, out: np.ndarray, num_ranks: int, sparse: Mapping[int, Entries]
    ) -> Program:
        """The program that writes the outputs for data without targets to `out`."""
        program = Program(self.net, "predict", data.batch_size)
        program.num_ranks = num_ranks
        add_builds(program, sparse)
        inputs, _ = program.gather(data)
        outputs, _ = program.forward(inputs, None)
        if self.net.link:
            program.link(outputs, outputs)
        program.scatter(outputs, out)
        program.finish()
        return program

    def metrics_of(self, sums: Mapping[str, np.ndarray], rows: float, variation: Variation | None) -> dict[str, float]:
        """The metrics from their sums over so many rows, or rows of this weight together."""
        if not self.net.metrics:
            return {}
        found = {name: sums[name].ravel().tolist() if rows else [] for name in self.net.metrics}
        return metric_values(found, rows, self.outputs, self.by_output, variation)
