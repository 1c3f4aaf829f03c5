"""A pass over the data in one compiled call, for a network of any depth.

A network becomes a program: a list of phases, each with its work record, and whether all ranks must meet before the
next one. One kernel runs the program for every batch on every rank; what a phase does is none of its business. So a new
kind of layer is a new phase, and evaluation is a shorter program.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import costs
from ...formulas import ACTIVATIONS, LOSSES, METRICS, NUM_SCALARS, dropout_stream
from ...metrics import Variation, metric_values, scored_by, sums_of, variation_for
from ...profile import Cost
from ...scalars import fill_scalars
from ...spec import Batches, DenseSpec, DropoutSpec, LayerSpec, LossSpec, OptimizerSteps, PassResult
from ..dense.layer import activate_kernel, dense_kernel, parts_of, shape_fields, slope_kernel
from ..dense.losses import TOTAL_KERNEL, activate_rows_kernel, loss_kernel, loss_param
from ..dense.metrics import metric_kernel
from ..dense.rows import ROWS, rows_kernel
from ..optim.loops import STATE_WORDS
from ..optim.updates import update_code
from ..runtime.compile import Kernel
from ..runtime.launch import STEP_FLOPS, get_num_threads, num_threads_for, run_team, yield_address
from ..runtime.partition import num_pieces
from ..runtime.primitives import address_of, aligned_zeros
from ..runtime.records import ACTIVATE, DENSE, DROPOUT, GATHER, LOSS, METRIC, RUN, TOTAL, fill
from .run import FINISH, marking
from .two_pass import TwoPass

LONG = 2e8  # floating-point operations after which a pass is worth watching, some 10 ms
# Data of more bytes do not stay in a cache, and a core waits 50 ns for each of their rows, drawn at random. Counted as
# operations: 256 rows a batch, as of a linear regression, are worth two threads (0.7 of one's time), 32 are not.
FAR, ROW_FLOPS = 32 << 20, 32_000


class _Program:
    """Phases in order, and the memory that they work on."""

    num_ranks = 1  # at most: there is scratch memory for so many

    def __init__(self, verb: str, batch: int, dtype: str) -> None:
        self.verb, self.batch, self.dtype = verb, batch, dtype
        self.run = fill(RUN, batch=batch, give_way=yield_address())
        self.phases: list[tuple[int, int, int]] = []
        self.costs: list[Cost] = []  # of the phases
        self.kept: list[Any] = []  # what the records point to

    def add(self, kernel: Kernel, record: np.ndarray, barrier: bool, cost: Cost | None = None) -> None:
        self.kept.append(record)
        self.phases.append((kernel.address, address_of(record), int(barrier)))
        self.costs.append(cost or Cost(kernel.name))

    def zeros(self, *shape: int) -> np.ndarray:
        array = aligned_zeros(int(np.prod(shape)), self.dtype).reshape(shape)
        self.kept.append(array)
        return array

    def execute(
        self,
        rows: int,
        order: np.ndarray | None,
        first: int,
        flops: float,
        progress: Callable[[int], None] | None,
    ) -> int:
        """Run all batches; return how many were run (fewer if the calling thread was interrupted, which is raised)."""
        run, table = self.run[0], np.array(self.phases, np.int64)
        run["phases"], run["count"], run["rows"], run["first"] = address_of(table), len(table), rows, first
        run["order"], run["steps"] = address_of(order), -(-rows // self.batch)
        for name in ("arrived", "done", "stop", "halt"):
            run[name] = 0

        def watch() -> None:
            if progress:
                progress(int(run["done"]))

        def stop() -> None:
            run["stop"] = 1

        num_ranks = min(self.num_ranks, get_num_threads())
        with marking(self.verb, self.dtype, run, self.costs, num_ranks) as kernel:
            run_team(kernel, address_of(self.run), num_ranks, watch if flops > LONG else None, stop)
        return int(run["done"])


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
        self.layers, self.dtype, self.loss, self.metrics = list(layers), np.dtype(dtype).name, loss, tuple(metrics)
        self.params = list(params)
        dense = [layer for layer in self.layers if isinstance(layer, DenseSpec)]
        self.inputs, self.outputs = dense[0].inputs, dense[-1].outputs
        self.link = dense[-1].activation if loss and dense[-1].activation == LOSSES[loss.name].link else None
        if dense[-1].activation == "softmax":
            self.link = "softmax"
        self.itemsize = np.dtype(dtype).itemsize
        self.flops = sum(2.0 * layer.inputs * layer.outputs for layer in dense)  # of one row, forward
        self.steps_done = 0
        self._trained: Any = None

    # ------------------------------------------------------------ programs
    def _forward(self, program: _Program, x: np.ndarray, seed: int | None) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Add the layers; return the outputs (logits, where a link follows) and what the backward pass needs."""
        params, trail, dtype = iter(self.params), [], self.dtype
        last = max(i for i, layer in enumerate(self.layers) if isinstance(layer, DenseSpec))
        for i, layer in enumerate(self.layers):
            if isinstance(layer, DropoutSpec):
                if seed is None or layer.rate == 0:
                    continue
                y = program.zeros(*x.shape)
                fields = {"columns": x.shape[1], "threshold": int(layer.rate * 2**53), "scale": 1 / (1 - layer.rate)}
                fields |= {"run": program.run, "stream": dropout_stream(seed, i)}
                cost = costs.dropout(x.shape[1], self.itemsize, backward=False)
                program.add(rows_kernel("dropout", dtype), fill(DROPOUT, x=x, y=y, **fields), barrier=True, cost=cost)
                trail.append({"kind": DROPOUT, "x": x, **fields})
                x = y
                continue
            w = next(params)
            b = next(params) if layer.bias else None
            activation = "linear" if i == last and self.link else layer.activation
            y = program.zeros(program.batch, layer.outputs)
            z = y if ACTIVATIONS[activation].uses == "y" else program.zeros(program.batch, layer.outputs)
            fields = {
                "run": program.run, "x": x, "w": w, "b": b, "z": z, "y": y, "uses_y": int(z is y),
                **shape_fields(program.batch, layer.inputs, layer.outputs, dtype, whole=seed is None),
            }  # fmt: skip
            parts, keeps_z = fields["parts"], z is not y
            sums = program.zeros(parts, program.batch, layer.outputs) if parts > 1 else None
            record = fill(DENSE, activate=activate_kernel(activation, dtype).address, sums=sums, **fields)
            end = activation, layer.bias, keeps_z
            if sums is None:
                cost = costs.forward(layer.inputs, layer.outputs, *end, self.itemsize)
                program.add(dense_kernel("forward", dtype), record, barrier=True, cost=cost)
            else:
                cost = costs.products(layer.inputs, layer.outputs, parts, self.itemsize)
                program.add(dense_kernel("forward", dtype), record, barrier=True, cost=cost)
                cost = costs.combine(layer.outputs, *end, parts, self.itemsize)
                program.add(dense_kernel("combine", dtype), record, barrier=True, cost=cost)
            trail.append({"kind": DENSE, "activation": activation, "bias": layer.bias, **fields})
            x = y
        return x, trail

    def _batch(self, program: _Program, data: Batches) -> tuple[np.ndarray, np.ndarray | None]:
        x, y, labels = program.zeros(program.batch, self.inputs), None, False
        fields: dict[str, Any] = {"run": program.run, "x": data.x, "into_x": x, "inputs": self.inputs}
        first = next(layer for layer in self.layers if isinstance(layer, DenseSpec))
        fields["part"] = parts_of(program.batch, first.inputs, first.outputs)[1]
        if data.y is not None:
            labels = data.y.dtype == np.int64 and data.y.ndim == 1
            y = np.zeros(program.batch, np.int64) if labels else program.zeros(program.batch, self.outputs)
            program.kept.append(y)
            fields |= {"y": data.y, "into_y": y, "targets": self.outputs, "labels": int(labels)}
        targets = 0 if y is None else self.outputs
        cost = costs.gather(self.inputs, targets, program.verb == "train", self.itemsize, labels)
        program.add(rows_kernel("gather", self.dtype), fill(GATHER, **fields), barrier=True, cost=cost)
        return x, y

    def _sums(self, program: _Program, into: np.ndarray, stride: int) -> tuple[np.ndarray, Callable[[], None]]:
        """Room for the sums of a batch, and the phase that adds them to `into`, for after the next meeting."""
        sums = np.zeros(num_pieces(program.batch, ROWS))
        program.kept.append(sums)
        record = fill(TOTAL, run=program.run, sums=sums, into=into, stride=stride)
        return sums, lambda: program.add(TOTAL_KERNEL, record, barrier=False)

    def _judge(
        self, program: _Program, outputs: np.ndarray, targets: np.ndarray, losses: np.ndarray, stride: int,
        gradient: np.ndarray, variation: Variation | None,
    ) -> tuple[dict[str, np.ndarray], list[Callable[[], None]]]:  # fmt: skip
        """Add loss, its gradient, and metrics; return the metrics' accumulators and the phases that total the sums.

        variation: of the targets, where r2 is among the metrics.
        """
        assert self.loss is not None
        row, shown, columns = LOSSES[self.loss.name], outputs, self.outputs
        kind = "labels" if targets.dtype == np.int64 and targets.ndim == 1 else "dense"
        if self.link and not all(METRICS[name].of_classes for name in self.metrics):
            shown = program.zeros(*outputs.shape)
            self._link(program, outputs, shown)
        sums, total = self._sums(program, losses, stride)
        parts = sums_of(self.metrics, columns, variation)
        totals, accumulators = [total], {name: np.zeros(sum(of == name for of, _ in parts)) for name in self.metrics}
        record = fill(
            LOSS, run=program.run, z=outputs, t=targets, dz=gradient, columns=columns, sums=sums,
            param=loss_param(self.loss),
        )  # fmt: skip
        cost = costs.loss(self.loss.name, columns, kind == "labels", self.itemsize)
        program.add(loss_kernel(self.loss.name, self.dtype), record, barrier=not parts, cost=cost)
        places = {name: iter(range(len(accumulator))) for name, accumulator in accumulators.items()}
        for i, (name, (first, end)) in enumerate(parts):
            place = next(places[name])
            sums, total = self._sums(program, accumulators[name][place:], 0)
            totals.append(total)
            z, skip = outputs if METRICS[name].of_classes else shown, first * self.itemsize
            scored = scored_by(name, self.loss.name, kind == "labels", columns)
            record = fill(
                METRIC, run=program.run, z=address_of(z) + skip, t=address_of(targets) + skip, columns=end - first,
                stride=columns, sums=sums, z_boundary=row.boundary[0], t_boundary=row.boundary[1],
            )  # fmt: skip
            cost = costs.metric(name, end - first, kind == "labels", self.itemsize)
            program.add(metric_kernel(name, scored, self.dtype), record, barrier=i == len(parts) - 1, cost=cost)
        return accumulators, totals

    def _link(self, program: _Program, z: np.ndarray, y: np.ndarray) -> None:
        assert self.link is not None
        code = 0 if self.link == "softmax" else activate_kernel(self.link, self.dtype).address
        record = fill(ACTIVATE, run=program.run, z=z, y=y, columns=self.outputs, activate=code)
        cost = costs.link(self.link, self.outputs, self.itemsize)
        program.add(activate_rows_kernel(self.dtype), record, barrier=True, cost=cost)

    def _backward(
        self, program: _Program, trail: list[dict[str, Any]], dy: np.ndarray, rule: str,
        states: Sequence[tuple[np.ndarray, ...]], scalars: np.ndarray, later: TwoPass | None,
    ) -> None:  # fmt: skip
        """Add the gradients, last layer first, and the updates: each with its gradient, or all `later`."""
        dtype, end = self.dtype, len(self.params)
        dense = [step for step in trail if step["kind"] is DENSE]
        size = max(step["scratch_size"] for step in dense)
        scratch = aligned_zeros(program.num_ranks * size, np.uint8)
        update = update_code(rule, dtype)
        tables = [np.array([address_of(s) for s in arrays] + [0] * STATE_WORDS, np.int64) for arrays in states]
        program.kept += [scratch, tables, scalars, states]
        while trail:
            fields = trail.pop()
            kind, x = fields.pop("kind"), fields["x"]
            needs_dx = any(step["kind"] is DENSE for step in trail)
            dx = program.zeros(*x.shape) if needs_dx else None
            if kind is DROPOUT:
                if needs_dx:
                    del fields["x"]
                    cost = costs.dropout(x.shape[1], self.itemsize, backward=True)
                    record = fill(DROPOUT, x=dy, y=dx, **fields)
                    program.add(rows_kernel("dropout", dtype), record, barrier=True, cost=cost)
            else:
                bias, activation, shape = fields.pop("bias"), fields.pop("activation"), (x.shape[1], dy.shape[1])
                end -= 1 + bias
                if later:
                    db = later.gradients[end + 1] if bias else None
                    fields |= {"dw": later.gradients[end], "db": db, "shares": later.shares}
                else:
                    fields |= {"update": update, "scalars": scalars, "scalars_stride": scalars.strides[0]}
                    fields |= {"w_states": tables[end], "b_states": tables[end + 1] if bias else None}
                record = fill(
                    DENSE, dz=dy, dx=dx, slope=slope_kernel(activation, dtype).address,
                    scratch=scratch, **{**fields, "scratch_size": size},
                )  # fmt: skip
                done_here = None if later else rule
                cost = costs.slopes(shape[1], activation, bias, done_here, self.itemsize)
                program.add(dense_kernel("slopes", dtype), record, barrier=True, cost=cost)
                if needs_dx:  # with the weights from before their update
                    cost = costs.inputs_gradient(*shape, self.itemsize)
                    program.add(dense_kernel("inputs", dtype), record, barrier=True, cost=cost)
                cost = costs.weights(*shape, done_here, self.itemsize)
                last = later is not None and not needs_dx
                program.add(dense_kernel("weights", dtype), record, barrier=last, cost=cost)
            if needs_dx:
                assert dx is not None
                dy = dx
        if later:
            later.add_to(program)

    def _training(
        self, data: Batches, rule: str, states: Sequence[tuple[np.ndarray, ...]], seed: int, norm: bool,
        variation: Variation | None,
    ) -> tuple[_Program, dict[str, np.ndarray], TwoPass | None]:  # fmt: skip
        """The program of a training pass; the next epoch, on the same arrays, finds it made."""
        arrays = [data.x, data.y, *(state for of_param in states for state in of_param)]
        parts = variation and variation.parts
        key = data.batch_size, data.accumulate, norm, rule, seed, len(data.order), parts, [id(a) for a in arrays]
        if self._trained and self._trained[0] == key:
            return self._trained[1:]
        program = _Program("train", data.batch_size, self.dtype)
        program.kept += arrays  # so that no other array can have the same id
        of_row = 3 * self.flops + (ROW_FLOPS if data.x.nbytes > FAR else 0)
        program.num_ranks = num_threads_for(of_row * data.batch_size, STEP_FLOPS, 1 << 30)
        losses, scalars = np.zeros(data.batches), np.zeros((data.steps, NUM_SCALARS + 1), self.dtype)
        x, y = self._batch(program, data)
        assert y is not None
        outputs, trail = self._forward(program, x, seed)
        gradient = program.zeros(program.batch, self.outputs)
        results, totals = self._judge(program, outputs, y, losses, losses.itemsize, gradient, variation)
        for total in totals:
            total()
        later = None
        if norm or data.accumulate > 1:
            later = TwoPass(self.params, rule, states, scalars, data, norm, program.num_ranks)
        self._backward(program, trail, gradient, rule, states, scalars, later)
        program.add(FINISH, program.run, barrier=True)
        counts = np.full(data.batches, data.batch_size)
        counts[-1:] = len(data.order) - (data.batches - 1) * data.batch_size
        counts *= 1 if LOSSES[self._spec.name].by_row else self.outputs
        results |= {"losses": losses, "scalars": scalars, "counts": counts}
        self._trained = key, program, results, later
        return program, results, later

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
        variation = variation_for(self.metrics, batches.y, batches.order)
        norm = clip_norm is not None
        program, results, later = self._training(batches, rule, optimizer.states, seed, norm, variation)
        if later:
            later.clip(clip_norm)
        losses, counts = results["losses"], results["counts"]
        for name in ("losses", *self.metrics):
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
        accumulators = {name: results[name] for name in self.metrics}
        firsts = np.arange(0, batches.batches, group)
        losses, counts = np.add.reduceat(losses, firsts), np.add.reduceat(counts, firsts)
        return self._totals(losses / counts, accumulators, len(batches.order), variation, start)

    def evaluate(self, x: np.ndarray, y: np.ndarray, batch_size: int = 1024) -> PassResult:
        """The mean loss and the metrics over all rows, without dropout."""
        start = time.perf_counter()
        program = _Program("evaluate", min(batch_size, len(x)), self.dtype)
        program.num_ranks = num_threads_for(self.flops * program.batch, STEP_FLOPS, 1 << 30)
        inputs, targets = self._batch(program, Batches(x, y, np.arange(0), batch_size))
        assert targets is not None
        outputs, _ = self._forward(program, inputs, None)
        losses, workspace = np.zeros(1), program.zeros(program.batch, self.outputs)
        variation = variation_for(self.metrics, y, None)
        accumulators, totals = self._judge(program, outputs, targets, losses, 0, workspace, variation)
        for total in totals:
            total()
        program.add(FINISH, program.run, barrier=True)
        program.execute(len(x), None, 0, self.flops * len(x), None)
        count = len(x) * (1 if LOSSES[self._spec.name].by_row else self.outputs)
        return self._totals(losses / count, accumulators, len(x), variation, start)

    def predict(self, x: np.ndarray, batch_size: int = 1024) -> np.ndarray:
        """The outputs for every row, after the output activation."""
        out = np.empty((len(x), self.outputs), self.dtype)
        if not len(x):
            return out
        program = _Program("predict", min(batch_size, len(x)), self.dtype)
        program.num_ranks = num_threads_for(self.flops * program.batch, STEP_FLOPS, 1 << 30)
        inputs, _ = self._batch(program, Batches(x, None, np.arange(0), batch_size))  # type: ignore[arg-type]
        outputs, _ = self._forward(program, inputs, None)
        if self.link:
            self._link(program, outputs, outputs)
        record = fill(GATHER, run=program.run, x=out, into_x=outputs, inputs=self.outputs)
        cost = costs.scatter(self.outputs, self.itemsize)
        program.add(rows_kernel("scatter", self.dtype), record, barrier=False, cost=cost)
        program.add(FINISH, program.run, barrier=True)
        program.execute(len(x), None, 0, self.flops * len(x), None)
        return out

    @property
    def _spec(self) -> LossSpec:
        assert self.loss is not None
        return self.loss

    def _totals(
        self, losses: np.ndarray, accumulators: dict[str, np.ndarray], rows: int, variation: Variation | None,
        start: float,
    ) -> PassResult:  # fmt: skip
        sums = {name: accumulator.tolist() for name, accumulator in accumulators.items()}
        by_output = LOSSES[self._spec.name].hits_by_output(self.outputs)
        metrics = metric_values(sums, rows, self.outputs, by_output, variation)
        return PassResult(losses, metrics, time.perf_counter() - start)
