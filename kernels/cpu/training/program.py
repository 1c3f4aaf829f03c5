"""The list of phases that a pass runs for every batch, for a network of any depth.

A `Program` is built like this: gather | forward, layer by layer | loss and metrics | gradients, last layer first, with
the updates | finish. Each phase is a kernel with its record. A barrier follows it if the next phase reads what other
ranks wrote. A new kind of layer is a new phase, and evaluation is a shorter program.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...formulas import ACTIVATIONS, LOSSES, METRICS, dropout_stream
from ...metrics import Variation, has_counts, num_counts, scored_by, sums_of
from ...profile import Cost, recorder
from ...sources import Source
from ...spec import (
    ActivationSpec,
    Batches,
    DenseSpec,
    DropoutSpec,
    GaussianNoiseSpec,
    LayerSpec,
    LossSpec,
    Shuffle,
    parameter_shapes,
)
from ..dense.gather import gather_kernel, layout_of
from ..dense.layer import (
    TILE_ROWS,
    activate_kernel,
    dense_kernel,
    num_weight_tiles,
    round_kernel,
    shape_fields,
    slope_kernel,
    splits_of,
)
from ..dense.losses import TOTAL_KERNEL, activate_rows_kernel, loss_kernel, loss_param
from ..dense.metrics import counts_kernel, metric_kernel
from ..dense.rows import ROWS, rows_kernel
from ..runtime.compile import Kernel, ffi
from ..runtime.launch import get_num_threads
from ..runtime.partition import num_pieces
from ..runtime.primitives import address_of, aligned_zeros
from ..runtime.records import (
    ACTIVATE,
    DENSE,
    DROPOUT,
    GATHER,
    LOSS,
    METRIC,
    NOISE,
    RUN,
    SHUFFLE,
    STOP_BATCH,
    STOP_EPOCH,
    TOTAL,
    fill,
    word_of,
    words_of,
)
from ..runtime.teams import run_team, yield_address
from .activation import Activated, add_activation, add_slopes
from .after_step import AfterUpdates
from .normalization import Normalized, add_backward, add_forward
from .optimizer_step import OptimizerStep
from .penalties import Penalties
from .row_weights import RowWeights
from .run import FINISH, RUN_PROGRAM, clock, marking
from .shuffle import shuffle_kernel
from .source import SourceWords

WATCHED_FLOPS = 2e8  # operations after which a pass is worth watching, some 10 ms
BATCH_FLOPS = 2e4  # operations that take as long as a batch takes beside its own: some 1 us for its phases


# Words of records that change from pass to pass: an assignment to a word of a memoryview takes 0.02 us, to a field of a
# record 0.2 us.
NUM_ROWS, NUM_BATCHES, FIRST_BATCH, NUM_EPOCHS, EPOCH_STRIDE, ORDER, DONE, STOP, EPOCH_ENDS, CLOCK, LOSSES_OF_EPOCHS = (
    word_of(RUN, name)
    for name in (
        "num_rows", "num_batches", "first_batch", "num_epochs", "epoch_stride", "order", "done", "stop", "epoch_ends",
        "clock", "losses",
    )
)
STARTS = word_of(RUN, "starts")
RESET = [word_of(RUN, name) for name in ("arrivals", "done", "stop", "halt", "epoch_ends", "losses", "starts")]
X, Y, ROW_BYTES = word_of(GATHER, "x"), word_of(GATHER, "y"), word_of(GATHER, "row_bytes")


class Structure(NamedTuple):
    """A network without data. Its outputs are logits where a `link`, the activation that the loss undoes, follows."""

    layers: Sequence[LayerSpec]
    params: Sequence[np.ndarray]  # [w0, b0, w1, b1, ...], without b where a layer has none
    dtype: str
    loss: LossSpec | None
    metrics: Sequence[str]
    link: str | None
    compute: str  # the dtype that layers compute in

    @property
    def dense(self) -> list[DenseSpec]:
        return [layer for layer in self.layers if isinstance(layer, DenseSpec)]

    @property
    def inputs(self) -> int:
        return self.dense[0].inputs

    @property
    def outputs(self) -> int:
        return self.dense[-1].outputs

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def loss_spec(self) -> LossSpec:
        assert self.loss is not None
        return self.loss


class _Dense(NamedTuple):
    """A dense layer of the forward pass, saved for backward."""

    x: np.ndarray
    y: np.ndarray
    spec: DenseSpec
    activation: str  # linear where the network's link follows
    fields: dict[str, Any]  # of its record


class _Dropout(NamedTuple):
    x: np.ndarray
    y: np.ndarray
    compute: str
    fields: dict[str, Any]


Saved = _Dense | _Dropout | Normalized | Activated


class Program:
    """Phases in order, and the memory that they work on."""

    source: SourceWords  # of the record of the gather
    target: memoryview  # of the scatter
    rows: np.ndarray | None = None  # record of the shuffle
    starts = np.zeros(0, np.int64)  # of the batches of this pass, where each has a size of its own
    blocks: np.ndarray | None = None  # memory of the shuffle for the order of blocks
    num_ranks = 1  # at most: there is scratch memory for so many
    row_weights: RowWeights | None = None  # None: rows have none
    needs_weight = False  # the phases that are added are left out in steps whose weights sum to 0

    def __init__(self, net: Structure, verb: str, batch_size: int) -> None:
        self.net, self.verb, self.batch_size = net, verb, batch_size
        self.run = fill(RUN, batch_size=batch_size, yield_cpu=yield_address())
        self.address, self.words = address_of(self.run), words_of(self.run)
        self.phases: list[tuple[int, int, int]] = []  # as RUN has them
        self.costs: list[Cost] = []  # of the phases
        self.kept: list[Any] = []  # memory that records point to
        self.num_bytes = 0  # of the arrays between phases

    def add(self, kernel: Kernel, record: np.ndarray, barrier: bool, cost: Cost | None = None) -> None:
        """Add a phase; barrier: all ranks meet after it."""
        cost = cost or Cost(kernel.name)
        if self.row_weights and self.needs_weight:
            kernel, record = self.row_weights.weighed(kernel, record)
        self.kept.append(record)
        self.phases.append((kernel.address, address_of(record), int(barrier)))
        self.costs.append(cost)

    def meet(self) -> None:
        """Let all ranks meet after the last phase so far."""
        self.phases[-1] = (*self.phases[-1][:2], 1)

    def end_with_barrier(self) -> None:
        """Let all ranks meet after the last phase."""
        self.phases[-1] = *self.phases[-1][:2], 1

    def zeros(self, *shape: int) -> np.ndarray:
        """An array of the network's dtype that lives as long as the program."""
        array = aligned_zeros(int(np.prod(shape)), self.net.dtype).reshape(shape)
        self.kept.append(array)
        self.num_bytes += array.nbytes
        return array

    # ------------------------------------------------------------ the batch
    def shuffle(self, order: str, in_blocks: bool) -> None:
        """Add the order of an epoch's rows; the first phase, which runs before the first batch of an epoch only.

        order: the dtype of row numbers.
        """
        self.rows = fill(SHUFFLE, run=self.run)
        self.add(shuffle_kernel(order, in_blocks), self.rows, barrier=True, cost=costs.shuffle())
        self.run["epoch_phases"] = len(self.phases)

    def weigh(self, order: str, accumulate: int = 1) -> None:
        """Add the weights of rows, before `gather`; `accumulate` batches make a step. order: dtype of row numbers."""
        self.row_weights = RowWeights(self.run, self.zeros(self.batch_size), accumulate, order)
        self.row_weights.add_sums_to(self)
        self.run["epoch_phases"] = len(self.phases)
        self.row_weights.add_gather_to(self)

    def gather(self, data: Batches) -> tuple[np.ndarray, np.ndarray | None]:
        """Add the copy of the batch's rows; return where they lie: x and, if there are targets, y.

        x is (splits, rows, columns of a split) if the first layer of a training is split, else (rows, inputs).
        """
        net, labels, first = self.net, False, self.net.layers[0]
        num_splits, split_cols = 1, net.inputs
        if self.verb == "train" and isinstance(first, DenseSpec):
            num_splits, split_cols = splits_of(self.batch_size, first.inputs, first.outputs)
        splits = (num_splits,) if num_splits > 1 else ()
        x, y = self.zeros(*splits, self.batch_size, split_cols), None
        fields: dict[str, Any] = {
            "run": self.run, "batch_x": x, "inputs": net.inputs, "piece_cols": split_cols,
            "capacity": self.batch_size,
        }  # fmt: skip
        if data.y is not None:
            labels = _has_labels(data.y)
            y = np.zeros(self.batch_size, np.int64) if labels else self.zeros(self.batch_size, net.outputs)
            self.kept.append(y)
            fields |= {"y": data.y, "batch_y": y, "outputs": net.outputs, "has_labels": int(labels)}
        targets = 0 if y is None else net.outputs
        stored = data.x.nbytes / max(1, data.x.shape[0] * data.x.shape[1]) if isinstance(data.x, Source) else None
        cost = costs.gather(net.inputs, targets, self.verb == "train", net.itemsize, labels, stored)
        record = fill(GATHER, **fields)
        self.source = SourceWords(record, net.compute)
        kernel = gather_kernel(layout_of(data.x), net.compute, data.order.dtype.name)
        self.add(kernel, record, barrier=True, cost=cost)
        return x, y

    def scatter(self, outputs: np.ndarray, out: np.ndarray) -> None:
        """Add the copy of the batch's outputs to their rows of `out`."""
        record = fill(GATHER, run=self.run, x=out, batch_x=outputs, inputs=self.net.outputs)
        self.target = words_of(record)
        cost = costs.scatter(self.net.outputs, self.net.itemsize)
        self.add(rows_kernel("scatter", self.net.dtype), record, barrier=False, cost=cost)

    def finish(self) -> None:
        """Add the end of a batch: the program is complete."""
        self.add(FINISH, self.run, barrier=True)
        table = np.array(self.phases, np.int64)
        self.kept.append(table)
        self.run["phases"], self.run["num_phases"] = address_of(table), len(table)

    def read_from(self, x: np.ndarray | Source, y: np.ndarray | None) -> None:
        """Read the rows of other data, of the same layout and columns, which the caller keeps alive for a pass."""
        words = self.source.words
        if isinstance(x, Source):
            self.source.describe(x)
        else:
            words[X], words[ROW_BYTES] = _address(x), x.strides[0]
        words[Y] = 0 if y is None else _address(y)

    def write_to(self, out: np.ndarray) -> None:
        """Write the outputs to another array, which the caller keeps alive for a pass."""
        self.target[X] = _address(out)

    # ------------------------------------------------------------ forward
    def forward(
        self, x: np.ndarray, seed: int | None, fixed: Sequence[int] = ()
    ) -> tuple[np.ndarray, list[Saved]]:
        """Add the layers; return the outputs (logits, where a link follows), and what is saved for backward.

        seed: of the dropout masks; None: no dropout, and no layer is split, as nothing is updated. fixed: indices of
        BatchNorms that go by their averages in training, too.
        """
        saved_for_backward: list[Saved] = []
        net, params = self.net, iter(self.net.params)
        last = max(i for i, layer in enumerate(net.layers) if isinstance(layer, DenseSpec))
        for i, layer in enumerate(net.layers):
            compute = net.compute if i < last else net.dtype  # of outputs: the network's are not rounded
            if isinstance(layer, DenseSpec):
                w, b = next(params), next(params) if layer.bias else None
                activation = "linear" if i == last and net.link else layer.activation
                saved = self._dense_forward(layer, activation, compute, x, w, b, whole=seed is None)
                saved_for_backward.append(saved)
            elif isinstance(layer, DropoutSpec | GaussianNoiseSpec):
                if seed is None or not any(layer):
                    continue
                stream = dropout_stream(seed, i)
                if isinstance(layer, GaussianNoiseSpec):  # whose slope is 1, so nothing is saved
                    x = self._noise_forward(layer, x, stream, compute)
                    continue
                saved_for_backward.append(self._dropout_forward(layer, x, stream, compute))
            elif isinstance(layer, ActivationSpec):
                if layer.activation == "linear":
                    continue
                saved_for_backward.append(add_activation(self, layer, x, compute))
            else:
                own = {name: next(params) for name in parameter_shapes(layer)}
                by_batch = seed is not None and i not in fixed
                saved_for_backward.append(add_forward(self, layer, x, own, compute, by_batch))
            x = saved_for_backward[-1].y
        return x, saved_for_backward

    def _dropout_forward(self, layer: DropoutSpec, x: np.ndarray, stream: int, compute: str) -> _Dropout:
        columns, y = x.shape[1], self.zeros(*x.shape)
        fields = {
            "run": self.run, "columns": columns, "threshold": int(layer.rate * 2**53), "scale": 1 / (1 - layer.rate),
            "stream": stream,
        }  # fmt: skip
        cost = costs.dropout(columns, self.net.itemsize, backward=False)
        kernel = rows_kernel("dropout", compute)
        self.add(kernel, fill(DROPOUT, x=x, y=y, **fields), barrier=True, cost=cost)
        return _Dropout(x, y, compute, fields)

    def _noise_forward(self, layer: GaussianNoiseSpec, x: np.ndarray, stream: int, compute: str) -> np.ndarray:
        columns, y = x.shape[1], self.zeros(*x.shape)
        record = fill(NOISE, run=self.run, x=x, y=y, columns=columns, stddev=layer.stddev, stream=stream)
        self.add(rows_kernel("noise", compute), record, barrier=True, cost=costs.noise(columns, self.net.itemsize))
        return y

    def _dense_forward(
        self, layer: DenseSpec, activation: str, compute: str, x: np.ndarray, w: np.ndarray, b: np.ndarray | None,
        whole: bool,
    ) -> _Dense:  # fmt: skip
        dtype, itemsize, sizes = self.net.dtype, self.net.itemsize, (layer.inputs, layer.outputs)
        y = self.zeros(self.batch_size, layer.outputs)
        z = y if ACTIVATIONS[activation].uses == "y" else self.zeros(self.batch_size, layer.outputs)
        fields: dict[str, Any] = {
            "run": self.run, "x": x, "w": w, "b": b, "z": z, "y": y, "uses_y": int(z is y),
            **shape_fields(self.batch_size, *sizes, dtype, whole, self.net.compute),
        }  # fmt: skip
        if x.ndim == 3:  # the columns of each split together
            fields |= {"x_stride": x.shape[2], "x_split": x.shape[1] * x.shape[2]}
        num_splits, keeps_z = fields["num_splits"], z is not y
        split_products = self.zeros(num_splits, self.batch_size, layer.outputs) if num_splits > 1 else None
        activate = activate_kernel(activation, compute).address
        record = fill(DENSE, activate=activate, split_products=split_products, **fields)
        if split_products is None:
            cost = costs.forward(*sizes, activation, layer.bias, keeps_z, itemsize)
            self.add(dense_kernel("forward", dtype), record, barrier=True, cost=cost)
        else:
            cost = costs.products(*sizes, num_splits, itemsize)
            self.add(dense_kernel("forward", dtype), record, barrier=True, cost=cost)
            cost = costs.combine(layer.outputs, activation, layer.bias, keeps_z, num_splits, itemsize)
            self.add(dense_kernel("combine", dtype), record, barrier=True, cost=cost)
        return _Dense(x, y, layer, activation, fields)

    def link(self, z: np.ndarray, y: np.ndarray) -> None:
        """Add the network's last activation: logits z -> outputs y."""
        net = self.net
        assert net.link is not None
        code = 0 if net.link == "softmax" else activate_kernel(net.link, net.dtype).address
        record = fill(ACTIVATE, run=self.run, z=z, y=y, columns=net.outputs, activate=code)
        cost = costs.link(net.link, net.outputs, net.itemsize)
        self.add(activate_rows_kernel(net.dtype), record, barrier=True, cost=cost)

    # ------------------------------------------------------------ loss and metrics
    def loss_and_metrics(
        self, outputs: np.ndarray, targets: np.ndarray, losses: np.ndarray, stride: int, gradient: np.ndarray,
        variation: Variation | None, epochs: int = 1,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Add the loss with its gradient, and the metrics; return the sums that the metrics are made from.

        Metrics of counts share theirs.

        losses: the loss of a batch is added to the word that lies `stride` bytes behind that of the batch before.
        variation: of the targets, where r2 is among the metrics. epochs: (epochs, sums) is the shape of the sums of a
        metric.
        """
        net, columns, labels = self.net, self.net.outputs, _has_labels(targets)
        shown = outputs  # to metrics that see the network's outputs, not its logits
        if net.link and not all(METRICS[name].of_classes for name in net.metrics):
            shown = self.zeros(*outputs.shape)
            self.link(outputs, shown)
        parts = sums_of(net.metrics, columns, variation)
        totals = [self._batch_sums(losses, stride)]
        record = fill(
            LOSS, run=self.run, z=outputs, t=targets, dz=gradient, columns=columns, sums=totals[0][0],
            weights=self._weights_record, param=loss_param(net.loss_spec),
        )  # fmt: skip
        cost = costs.loss(net.loss_spec.name, columns, labels, net.itemsize)
        counts = has_counts(net.metrics)
        kernel = loss_kernel(net.loss_spec.name, net.dtype, self.row_weights is not None)
        self.add(kernel, record, barrier=not parts and not counts, cost=cost)
        accumulators = {name: np.zeros((epochs, sum(of == name for of, _ in parts))) for name in net.metrics}
        free = {name: iter(accumulator.T) for name, accumulator in accumulators.items()}
        for i, (name, (first, end)) in enumerate(parts):
            totals.append(self._batch_sums(next(free[name]), 0, accumulators[name].strides[0]))
            z = outputs if METRICS[name].of_classes else shown
            last = i == len(parts) - 1 and not counts
            self._metric(name, z, targets, (first, end), totals[-1][0], barrier=last)
        if counts:
            of_counts = [name for name in net.metrics if METRICS[name].of_counts]
            by_output = scored_by(of_counts[0], net.loss_spec.name, labels, columns) == "outputs"
            shared = np.zeros((epochs, num_counts(columns, by_output)))
            accumulators |= dict.fromkeys(of_counts, shared)
            totals.append(self._batch_sums(shared, 0, shared.strides[0], shared.shape[1]))
            self._metric(of_counts[0], outputs, targets, (0, columns), totals[-1][0], barrier=True)
        for _, record in totals:
            self.add(TOTAL_KERNEL, record, barrier=False)
        return accumulators

    def _metric(
        self, name: str, z: np.ndarray, targets: np.ndarray, columns: tuple[int, int], sums: np.ndarray, barrier: bool
    ) -> None:
        net, labels, (first, end) = self.net, _has_labels(targets), columns
        skip, boundary = first * net.itemsize, LOSSES[net.loss_spec.name].boundary
        record = fill(
            METRIC, run=self.run, z=address_of(z) + skip, t=address_of(targets) + skip, columns=end - first,
            stride=net.outputs, sums=sums, weights=self._weights_record, z_boundary=boundary[0],
            t_boundary=boundary[1],
        )  # fmt: skip
        scored = scored_by(name, net.loss_spec.name, labels, net.outputs)
        of_counts = METRICS[name].of_counts
        cost = costs.metric("counts" if of_counts else name, end - first, labels, net.itemsize)
        form = scored, net.dtype, self.row_weights is not None
        kernel = counts_kernel(*form) if of_counts else metric_kernel(name, *form)
        self.add(kernel, record, barrier, cost)

    @property
    def _weights_record(self) -> np.ndarray | None:
        return None if self.row_weights is None else self.row_weights.record

    def _batch_sums(
        self, into: np.ndarray, stride: int, epoch_stride: int = 0, columns: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Memory for the sums of the pieces of a batch, and the record by which they are added to `into`.

        Strides from batch to batch and from epoch to epoch are in bytes.
        """
        sums = np.zeros((num_pieces(self.batch_size, ROWS), columns))
        self.kept += [sums, into]
        strides = {"stride": stride, "epoch_stride": epoch_stride}
        return sums, fill(TOTAL, run=self.run, sums=sums, columns=columns, into=into, **strides)

    # ------------------------------------------------------------ backward
    def backward(
        self, saved_for_backward: list[Saved], output_gradient: np.ndarray, rule: str,
        states: Sequence[tuple[np.ndarray, ...] | None], scalars: np.ndarray, rows: Sequence[int],
        optimizer_step: OptimizerStep | None, after: AfterUpdates, penalties: Penalties | None = None,
    ) -> None:  # fmt: skip
        """Add the gradients, last layer first, and the updates: each with its gradient, or all in `optimizer_step`.

        There is nothing below the lowest layer with a parameter that is updated: one whose states are not None.
        scalars: (steps, settings, NUM_SCALARS + 1); rows: index among the settings of each parameter.
        """
        net, dy, end = self.net, output_gradient, len(self.net.params)
        scratch_bytes = max(saved.fields["scratch_bytes"] for saved in saved_for_backward if isinstance(saved, _Dense))
        scratch = aligned_zeros(self.num_ranks * scratch_bytes, np.uint8)
        tables = [np.array(after.state_words(i, arrays or ()), np.int64) for i, arrays in enumerate(states)]
        row_scalars = [scalars[0, row] for row in rows]
        self.kept += [scratch, tables, scalars, states]
        update = after.update_code(rule)
        self.needs_weight = True
        col_sums: np.ndarray | None = None  # of the layer's dz, if the layer above makes it
        lowest = self._lowest_updated(saved_for_backward, states)
        for i, saved in reversed(list(enumerate(saved_for_backward))):
            if i < lowest:
                break
            needs_dx, below = i > lowest, saved_for_backward[i - 1] if i else None
            if isinstance(saved, Activated):  # dx takes the place of dy
                add_slopes(self, saved, dy)
                continue
            if isinstance(saved, Normalized):  # dx takes the place of dy
                names = list(parameter_shapes(saved.spec))
                end -= len(names)
                own = {name: end + k for k, name in enumerate(names) if states[end + k] is not None}
                into: dict[str, Any] = {}
                if optimizer_step:
                    into |= {f"d{name}": optimizer_step.gradients[k] for name, k in own.items()}
                    into |= {"alpha_beta": optimizer_step.alpha_beta}
                else:
                    for name, k in own.items():
                        into |= {f"update_{name}": update, f"{name}_states": tables[k]}
                        into |= {f"{name}_scalars": row_scalars[k], "scalars_row_bytes": scalars.strides[0]}
                add_backward(
                    self, saved, dy, needs_dx, into, None if optimizer_step else rule, isinstance(below, _Dense), after
                )
                continue
            dx = self.zeros(*saved.x.shape) if needs_dx else None
            if isinstance(saved, _Dense):
                # where the gradients of w and b go: into memory, or straight into the update
                bias = saved.spec.bias
                end -= 1 + bias
                updates_w, updates_b = states[end] is not None, bias and states[end + 1] is not None
                into = {"num_splits": saved.fields["num_splits"] * updates_w}
                into |= {"b": saved.fields["b"] if updates_b else None}
                if optimizer_step:
                    db = optimizer_step.gradients[end + 1] if bias else None
                    into |= {"dw": optimizer_step.gradients[end], "db": db, "alpha_beta": optimizer_step.alpha_beta}
                else:
                    into |= {"update": update, "scalars_row_bytes": scalars.strides[0], "w_scalars": row_scalars[end]}
                    into |= {"b_scalars": row_scalars[end + 1] if bias else None}
                    into |= {"w_states": tables[end], "b_states": tables[end + 1] if bias else None}
                if penalties:
                    into |= penalties.fields_of_tiles(end, num_weight_tiles(saved.fields))
                fields = {**saved.fields, **into, "scratch": scratch, "scratch_bytes": scratch_bytes}
                below = below if isinstance(below, _Dense) else None
                fields["col_sums"] = col_sums
                col_sums = self._dense_backward(saved, dy, dx, below, fields, None if optimizer_step else rule, after)
            elif dx is not None:
                cost = costs.dropout(saved.x.shape[1], net.itemsize, backward=True)
                record = fill(DROPOUT, x=dy, y=dx, **saved.fields)
                self.add(rows_kernel("dropout", saved.compute), record, barrier=True, cost=cost)
            if dx is not None:
                dy = dx
        if optimizer_step:
            optimizer_step.add_to(self)
        self.needs_weight = False

    @staticmethod
    def _lowest_updated(
        saved_for_backward: list[Saved], states: Sequence[tuple[np.ndarray, ...] | None]
    ) -> int:
        """Index of the lowest layer with a parameter that is updated; behind the last one if there is none."""
        first = 0
        for i, saved in enumerate(saved_for_backward):
            if not isinstance(saved, _Dropout):
                end = first + len(parameter_shapes(saved.spec))
                if any(of_param is not None for of_param in states[first:end]):
                    return i
                first = end
        return len(saved_for_backward)

    def _dense_backward(
        self, saved: _Dense, dy: np.ndarray, dx: np.ndarray | None, below: _Dense | None, fields: dict[str, Any],
        rule: str | None, after: AfterUpdates,
    ) -> np.ndarray | None:  # fmt: skip
        """Add the phases of a layer; return the column sums of dx if it is made dz of the dense layer `below`.

        rule: of the updates that these phases do; None: they write gradients, which others read.
        """
        dtype, itemsize, sizes = self.net.dtype, self.net.itemsize, (saved.spec.inputs, saved.spec.outputs)
        compute, bias_sums, sums_below = self.net.compute, fields["col_sums"] is not None, None
        if below is not None:
            sums_below = np.zeros((num_pieces(self.batch_size, TILE_ROWS), saved.spec.inputs))
            self.kept.append(sums_below)
            fields |= {
                "slope_below": slope_kernel(below.activation, compute).address,
                "s_below": below.fields["y" if below.fields["uses_y"] else "z"], "col_sums_below": sums_below,
            }  # fmt: skip
        round_tile = round_kernel(compute).address if compute != dtype and dx is not None else 0
        slope = slope_kernel(saved.activation, compute).address
        record = fill(DENSE, dz=dy, dx=dx, slope=slope, round_tile=round_tile, **fields)
        if not bias_sums:
            makes_db = fields["b"] is not None
            cost = costs.slopes(saved.spec.outputs, saved.activation, makes_db, rule, itemsize)
            if rule and makes_db:
                cost = after.cost_of_update(cost, sizes[1])
            self.add(dense_kernel("slopes", dtype), record, barrier=True, cost=cost)
        if dx is not None:  # before the weights, which it reads, are updated
            cost = costs.inputs_gradient(*sizes, itemsize, below.activation if below else None)
            self.add(dense_kernel("inputs", dtype), record, barrier=True, cost=cost)
        ends_backward = rule is None and dx is None
        updates_w, makes_db = fields["num_splits"] > 0, bias_sums and fields["b"] is not None
        if not updates_w and not makes_db:
            return sums_below
        cost = costs.weights(*sizes, rule, itemsize, makes_db)
        if rule:
            cost = after.cost_of_update(cost, (sizes[0] + makes_db) * sizes[1])
        if not updates_w:
            cost = costs.bias_gradient(sizes[1], itemsize)
        self.add(dense_kernel("weights", dtype), record, barrier=ends_backward, cost=cost)
        return sums_below

    # ------------------------------------------------------------ a pass
    def begin(
        self, num_rows: int, order: np.ndarray | None, first_batch: int = 0, num_epochs: int = 1, epoch_stride: int = 0
    ) -> None:
        """Set the rows of a pass: their number, and their order, which the caller keeps alive.

        first_batch: number of batches done before. epoch_stride: numbers from the first batch of an epoch to that of
        the next one; 0: there are no epochs, but one way through the data.
        """
        words = self.words
        words[NUM_ROWS], words[NUM_BATCHES], words[FIRST_BATCH] = num_rows, -(-num_rows // self.batch_size), first_batch
        words[NUM_EPOCHS], words[EPOCH_STRIDE] = num_epochs, epoch_stride
        words[ORDER] = 0 if order is None else _address(order)
        for word in RESET:
            words[word] = 0

    def cut_at(self, starts: np.ndarray) -> None:
        """Let the batches of the only epoch begin at these rows; the last one is past the end. Call it after `begin`.

        starts: (batches + 1,) int64.
        """
        self.words[STARTS], self.words[NUM_BATCHES] = address_of(starts), len(starts) - 1
        self.starts = starts

    def shuffle_from(self, rows: np.ndarray, shuffle: Shuffle) -> None:
        """Let every epoch begin by drawing the order of these rows, which the caller keeps alive."""
        assert self.rows is not None
        self.rows["rows"], self.rows["count"], self.rows["seed"] = rows.ctypes.data, len(rows), shuffle.seed
        self.rows["first_epoch"] = shuffle.first_epoch
        if shuffle.block_rows:
            blocks = np.empty(-(-len(rows) // shuffle.block_rows), rows.dtype)
            self.rows["block_rows"], self.rows["window_rows"] = shuffle.block_rows, shuffle.window_rows
            self.rows["blocks"], self.blocks = address_of(blocks), blocks

    def time_epochs(self) -> Callable[[int, int], np.ndarray]:
        """Let a pass keep the times at which its epochs end; call it after `begin`.

        Returns a function (start, n) -> seconds of each of the first n epochs, (n,) float64. start: that of the first
        epoch, in nanoseconds of time.perf_counter_ns. The function is to live as long as the pass.
        """
        num_epochs = self.words[NUM_EPOCHS]
        if num_epochs == 1:  # it ends with the pass
            return lambda start, epochs: np.full(epochs, (time.perf_counter_ns() - start) / 1e9)
        now, ends = clock(), np.zeros((num_epochs, 2), np.int64)
        self.words[EPOCH_ENDS], self.words[CLOCK] = _address(ends), now.address
        return lambda start, epochs: np.diff(now.nanoseconds(ends[:epochs]), prepend=start) / 1e9

    def end_if_diverged(self, losses: np.ndarray) -> None:
        """Let a pass end with an epoch whose losses are not finite; call it after `begin`."""
        self.words[LOSSES_OF_EPOCHS] = _address(losses)

    @property
    def done(self) -> int:
        """The number of the next batch."""
        return self.words[DONE]

    def execute(self, flops: float, watch: Callable[[int], bool] | None = None) -> None:
        """Run all batches; `run` has the number of the next one, less than all if the pass was ended early.

        flops: of the pass. watch: is told this number some twenty times a second if the pass takes long. The pass ends
        with the epoch if it returns true, and with the batch if it raises or the calling thread is interrupted.
        """
        words, num_ranks = self.words, self.num_ranks
        listener = recorder.get()  # an open `fastopt.profile`
        is_long = flops + BATCH_FLOPS * words[NUM_EPOCHS] * words[NUM_BATCHES] > WATCHED_FLOPS
        if num_ranks == 1 and not is_long and listener is None:
            RUN_PROGRAM.run(self.address, 0, 0, 1)
            return

        def look() -> None:
            if watch and watch(words[DONE]):
                words[STOP] = STOP_EPOCH

        def stop() -> None:
            words[STOP] = STOP_BATCH

        if num_ranks > 1:
            num_ranks = min(num_ranks, get_num_threads())
        marked = nullcontext(RUN_PROGRAM) if listener is None else marking(
            listener, self.verb, self.net.compute, self.run[0], self.costs, num_ranks, self.starts.tolist()
        )  # fmt: skip
        with marked as kernel:
            run_team(kernel, self.address, num_ranks, look if is_long else None, stop)


def _address(array: np.ndarray) -> int:
    """The address of a contiguous array that is not empty, in half the time of `address_of`."""
    return int(ffi.cast("intptr_t", ffi.from_buffer(array)))


def _has_labels(y: np.ndarray) -> bool:
    """True if targets are class numbers."""
    return y.dtype == np.int64 and y.ndim == 1
