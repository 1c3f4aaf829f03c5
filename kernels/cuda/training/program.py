"""The launches of a batch, as a list with constant arguments, and the memory that they work on.

    gather | dropout, forward ... | loss, metrics | slopes, dw, dx ... | accumulate | clip | update | finish

All batches with the same number of rows and the same position in their step have the same list. The lists of a pass
share its memory, for they run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...formulas import ACTIVATIONS, LOSSES, METRICS, dropout_stream
from ...metrics import scored_by
from ...profile import Cost
from ...spec import ActivationSpec, DenseSpec, DropoutSpec, GaussianNoiseSpec, parameter_shapes
from ..dense.epilogues import Shape, activate, sums_bytes, tile_slopes
from ..dense.finish import finish
from ..dense.gemm import gemm_of
from ..dense.layer import Gradients, Outputs, run_backward, run_forward, shape_of
from ..dense.losses import SUMS_OF_METRICS, loss_tiles, run_loss, run_softmax
from ..dense.metrics import found_bytes, hits_tiles, run_classes, run_counts, run_hits
from ..dense.products import BYTES, Plan, padded, plan_forward, plan_network
from ..dense.rows import LABEL, Rows, dropout, gather, gather_narrow, gather_stored, noise, scatter
from ..dense.stored import Layout
from ..dense.structure import Structure
from ..runtime.records import CLOCK, DROPOUT, NOISE, TOTALS
from .normalization import Normalized, add_backward, add_forward


class _Dense(NamedTuple):
    """Arrays of a dense layer that its backward pass reads."""

    plan: Plan
    number: int  # among the dense layers
    x: int
    w: int
    s: int  # y or z, as the activation's row says
    aux: int  # argument of the slope where that is an epilogue
    parameter: int  # index of w among the parameters


class _Dropout(NamedTuple):
    settings: int  # address of a record DROPOUT
    columns: int
    dtype: str


class _Activated(NamedTuple):
    activation: str
    s: int  # y or x, as the activation's row says
    shape: Shape


Saved = _Dense | _Dropout | Normalized | _Activated


class Launch(NamedTuple):
    """One launch of a batch, and what it costs at least."""

    cost: Cost
    run: Callable[[], None]


class Launches(list[Launch]):
    """The launches of a batch; a call does them in order."""

    def __call__(self) -> None:
        for launch in self:
            launch.run()


class Program:
    """Lists of launches, on memory for batches of at most `batch` rows.

    params: addresses of the parameters, as layers read them; seed: of dropout, None: there is none.
    """

    def __init__(
        self, gpu: Any, stream: int, net: Structure, params: Sequence[int], batch: int, seed: int | None = None
    ) -> None:
        self.gpu, self.stream, self.net, self.params, self.batch, self.seed = gpu, stream, net, params, batch, seed
        self.gemm, self.size = gemm_of(gpu), BYTES[net.dtype]
        self.clock = gpu.allocate(CLOCK.itemsize)
        self._memory: dict[Any, Any] = {}
        self._list = Launches()

    def reserve(self, key: Any, size: int) -> int:
        """The address of `size` bytes, the same for every call with this key."""
        if key not in self._memory:
            self._memory[key] = self.gpu.allocate(size)
        return int(self._memory[key].address)

    def constant(self, key: Any, array: np.ndarray) -> int:
        """The address of a copy of this array, made once for a key."""
        if key not in self._memory:
            self.gpu.copy_in(self.reserve(key, array.nbytes), array, self.stream)
        return int(self._memory[key].address)

    def rows(self, key: Any, columns: int, dtype: str) -> int:
        """Memory for a batch of so many columns, with rows `padded(columns)` elements apart."""
        return self.reserve(key, self.batch * padded(columns) * BYTES[dtype])

    def add(self, cost: Cost, function: Callable[..., None], *args: Any) -> None:
        """List a launch."""
        self._list.append(Launch(cost, partial(function, *args)))

    def _add_layer(self, number: int, cost: Callable[[], Cost], launch: Callable[[], None]) -> None:
        """List a launch of a dense layer."""
        found = cost()
        self.add(found._replace(name=f"dense{number}.{found.name}"), launch)

    def launches(self) -> Launches:
        """The launches that were added since the last call."""
        done, self._list = self._list, Launches()
        return done

    # ------------------------------------------------------------ phases of a batch
    def gather(
        self, x: int, y: int, labels: bool, order: int, rows: int, ring: int,
        stored: tuple[Layout, int] | None = None,
    ) -> tuple[int, int]:  # fmt: skip
        """Add the copies of the rows of a batch of x, and of y unless that is 0; return where they are.

        stored: layout of x and address of its stages; None: x is of the network's dtype.
        """
        net, args = self.net, (order, rows, self.clock.address, self.batch, ring)
        inputs, outputs, ordered = net.inputs, net.outputs, order != 0
        into_x, into_y = self.rows("x", inputs, net.compute), 0
        x_rows, y_rows = Rows(x, into_x, inputs, padded(inputs), net.compute), None
        if y and labels:
            into_y = self.reserve("labels", self.batch * 8)
            y_rows = Rows(y, into_y, 1, 1, LABEL)
        elif y:
            into_y = self.rows("targets", outputs, net.dtype)
            y_rows = Rows(y, into_y, outputs, padded(outputs), net.dtype)
        targets = outputs if y else 0
        if net.compute == net.dtype and not stored:
            cost = costs.gather(inputs, targets, ordered, self.size, labels)
            self.add(cost, gather, self.gpu, self.stream, x_rows, y_rows, *args)
            return into_x, into_y
        # x is converted; targets stay as they are
        if stored:
            cost = costs.gather(inputs, 0, ordered, BYTES[net.compute], stored=stored[0].size)
            self.add(cost, gather_stored, self.gpu, self.stream, x_rows, *stored, net.dtype, *args)
        else:
            cost = costs.gather(inputs, 0, ordered, BYTES[net.compute])
            self.add(cost, gather_narrow, self.gpu, self.stream, x_rows, *args)
        if y_rows:
            cost = costs.gather(0, targets, ordered, self.size, labels)
            cost = cost._replace(name=f"gather {'labels' if labels else outputs}")
            self.add(cost, gather, self.gpu, self.stream, y_rows, None, *args)
        return into_x, into_y

    def gather_weights(self, weights: int, rows: int, pass_rows: int) -> int:
        """Add the copy of a batch's weights from those of a pass, in its order, (pass_rows, 2); return where it is."""
        into = self.reserve("weights", self.batch * 16)
        of_rows, args = Rows(weights, into, 2, 2, "float64"), (0, rows, self.clock.address, self.batch, pass_rows)
        self.add(costs.gather_weights(16), gather, self.gpu, self.stream, of_rows, None, *args)
        return into

    def forward(self, x: int, rows: int, moves: bool = True) -> tuple[int, list[Saved]]:
        """Add the forward pass; return the outputs (logits, where a link follows) and what `backward` reads.

        moves: the batch moves the averages of normalizations.
        """
        saved_for_backward: list[Saved] = []
        plans, number, parameter = iter(self._plans(rows)), 0, 0
        columns, dtype = self.net.inputs, self.net.compute
        for i, layer in enumerate(self.net.layers):
            if isinstance(layer, DropoutSpec):
                if self.seed is not None and layer.rate:
                    step = _Dropout(self._dropout_settings(i, layer.rate, self.seed), columns, dtype)
                    y = self.rows(("y", i), columns, dtype)
                    self._add_dropout(step, x, y, rows, backward=False)
                    saved_for_backward.append(step)
                    x = y
                continue
            if isinstance(layer, GaussianNoiseSpec):  # whose slope is 1, so nothing is saved
                if self.seed is not None and layer.stddev:
                    x = self._add_noise(i, layer, x, columns, dtype, rows)
                continue
            if isinstance(layer, ActivationSpec):
                y, shape = self.rows(("y", i), columns, dtype), Shape(rows, columns, padded(columns), dtype)
                cost = costs.activate(columns, layer.activation, False, BYTES[dtype])
                self.add(cost, activate, self.gpu, self.stream, layer.activation, x, 0, y, shape)
                s = y if ACTIVATIONS[layer.activation].uses == "y" else x
                saved_for_backward.append(_Activated(layer.activation, s, shape))
                x = y
                continue
            if not isinstance(layer, DenseSpec):
                normalized = add_forward(self, i, layer, x, rows, dtype, parameter, moves)
                saved_for_backward.append(normalized)
                x, parameter = normalized.y, parameter + len(parameter_shapes(layer))
                continue
            plan = next(plans)
            dtype = plan.layer.output or plan.layer.dtype
            w, b = self.params[parameter], self.params[parameter + 1] if layer.bias else 0
            y = self.rows(("y", i), layer.outputs, dtype)
            z = self.rows(("z", i), layer.outputs, dtype) if "z" in (plan.forward.into, plan.forward.aux) else 0
            mask = self.reserve(("mask", i), self._mask_bytes(plan)) if plan.forward.aux == "mask" else 0
            arrays = x, w, b, Outputs(y, z, mask)
            emit = partial(self._add_layer, number)
            run_forward(self.gemm, self.stream, plan.forward, plan.layer, plan.activation, *arrays, emit)
            s = z if ACTIVATIONS[plan.activation].uses == "z" else y
            saved_for_backward.append(_Dense(plan, number, x, w, s, mask or s, parameter))
            x, columns = y, layer.outputs
            number, parameter = number + 1, parameter + 1 + layer.bias
        return x, saved_for_backward

    def _plans(self, rows: int) -> list[Plan]:
        other = self.net.dtype if self.net.compute != self.net.dtype else ""
        plans = plan_network(
            self.net.layers, rows, self.net.compute, self.net.tf32, gradient=other, fused=self.net.fused,
            supported=self.gemm.supported, output=other,
            needs=self.net.needs,
        )  # fmt: skip
        if self.seed is not None:
            return plans
        options = {"fused": self.net.fused, "supported": self.gemm.supported}
        return [  # no slopes follow, so nothing is kept for them
            plan._replace(forward=plan_forward(plan.layer, plan.activation, spec.bias, **options))
            for plan, spec in zip(plans, self.net.dense, strict=True)
        ]

    def _mask_bytes(self, plan: Plan) -> int:
        return self.batch * plan.forward.product.aux_stride // 8

    def _dropout_settings(self, i: int, rate: float, seed: int) -> int:
        record = np.array([(1 / (1 - rate), int(rate * 2**53), dropout_stream(seed, i))], DROPOUT)
        return self.constant(("dropout", i), record)

    def _add_noise(self, i: int, layer: GaussianNoiseSpec, x: int, columns: int, dtype: str, rows: int) -> int:
        """Add the noise of layer i; return the address of what it makes of x."""
        assert self.seed is not None
        y = self.rows(("y", i), columns, dtype)
        settings = self.constant(("noise", i), np.array([(layer.stddev, dropout_stream(self.seed, i))], NOISE))
        sizes = rows, columns, padded(columns), dtype
        cost = costs.noise(columns, BYTES[dtype])
        self.add(cost, noise, self.gpu, self.stream, x, y, *sizes, self.clock.address, settings)
        return y

    def _add_dropout(self, step: _Dropout, x: int, y: int, rows: int, backward: bool) -> None:
        stride = padded(step.columns)
        sizes = rows, step.columns, stride, stride, step.dtype
        cost = costs.dropout(step.columns, BYTES[step.dtype], backward)
        self.add(cost, dropout, self.gpu, self.stream, x, y, *sizes, self.clock.address, step.settings)

    def loss_and_metrics(
        self, z: int, t: int, labels: bool, rows: int, losses: int, stride: int, metrics: int, dz: int,
        weights: int = 0, more: Sequence[tuple[int, int, int, int]] = (),
    ) -> int:  # fmt: skip
        """Add the loss, its gradient into dz unless that is 0, and metrics; return the table of sums, for `finish`.

        losses: address of the loss's sum, `stride` bytes further for each batch; metrics: address of the metrics' sums;
        weights: (rows, 2) float64, weight and share of the gradient of each row; 0: rows have none. more: records of
        further sums.
        """
        net, columns = self.net, self.net.outputs
        assert net.loss is not None
        row, row_stride, loss = LOSSES[net.loss.name], padded(columns), net.loss.name
        shape = Shape(rows, columns, row_stride, net.dtype)
        y = z  # outputs as users see them, which metrics of values read
        if net.link and not all(METRICS[name].of_classes for name in net.metrics):
            y = self.rows("linked", columns, net.dtype)
            self.link(z, y, rows)
        params = [float(net.loss.params.get(name, default)) for name, default in row.params.items()]
        settings = self.constant("settings", np.array([*row.boundary, *params, 0.0]))
        device, reads_labels = (self.gpu, self.stream), row.targets == "labels"
        table = np.zeros(1 + len(net.sums) + len(more), TOTALS)
        table[1 + len(net.sums) :] = list(more)
        for i, (name, (first, end)) in enumerate([("", (0, columns)), *net.sums]):
            sums = self.reserve(("sums", i), 8 * self._num_sums(name, self.batch, end - first))
            if not name:
                cost, arrays = costs.loss(loss, columns, reads_labels, self.size), (z, t, dz, sums, settings + 16)
                self.add(cost, run_loss, *device, loss, *arrays, shape, row_stride, weights)
            elif METRICS[name].of_classes:
                scored = scored_by(name, loss, labels, columns)
                cost = costs.metric(name, columns, scored == "labels", self.size)
                self.add(cost, run_hits, *device, name, scored, z, t, sums, settings, shape, row_stride, weights)
            else:
                skip, some = first * self.size, shape._replace(columns=end - first)
                summed, arrays = SUMS_OF_METRICS[name], (y + skip, t + skip, 0, sums, settings + 16)
                cost = costs.metric(summed, end - first, reads_labels, self.size)
                self.add(cost, run_loss, *device, summed, *arrays, some, row_stride, weights)
            into = (metrics + 8 * (i - 1), 0) if name else (losses, stride)
            table[i] = (sums, self._num_sums(name, rows, end - first), *into)
        if net.num_counts:
            name = next(name for name in net.metrics if METRICS[name].of_counts)
            scored = scored_by(name, loss, labels, columns)
            found = self.reserve("classes", found_bytes(scored, self.batch, columns))
            cost = costs.metric("classes", columns, scored == "labels", self.size)
            self.add(cost, run_classes, *device, scored, z, t, found, settings, shape, row_stride)
            counts, read = metrics + 8 * len(net.sums), found_bytes(scored, 1, columns)
            cost = Cost("metric counts", row_bytes=read)
            self.add(cost, run_counts, *device, scored, found, counts, rows, columns, weights)
        return self.constant(("table", rows, len(more)), table)

    def _num_sums(self, metric: str, rows: int, columns: int) -> int:
        """Number of sums that the kernel of a metric, or of the loss (""), leaves for so many rows."""
        if metric and METRICS[metric].of_classes:
            return hits_tiles(rows)
        assert self.net.loss is not None
        return loss_tiles(SUMS_OF_METRICS.get(metric, self.net.loss.name), rows, columns)

    def link(self, z: int, y: int, rows: int) -> None:
        """Add the output activation, which training leaves to the loss; y may be z."""
        columns, name = self.net.outputs, self.net.link
        assert name is not None
        shape = Shape(rows, columns, padded(columns), self.net.dtype)
        cost = costs.link(name, columns, self.size)
        if name == "softmax":
            self.add(cost, run_softmax, self.gpu, self.stream, z, y, shape, shape.stride)
        else:
            self.add(cost, activate, self.gpu, self.stream, name, z, 0, y, shape)

    def _gradient(self, number: int) -> int:
        """Memory 0 or 1 for the gradient of a layer's outputs: layers use them alternately."""
        widths = [layer.outputs for layer in self.net.dense]
        if self.net.needs[0].dx:  # for a normalization of what comes in
            widths.append(self.net.inputs)
        return self.rows(("gradient", number), max(widths), self.net.compute)

    @property
    def output_gradient(self) -> int:
        """Address of the gradient of the network's outputs, in their own dtype."""
        if self.net.compute == self.net.dtype:
            return self._gradient(0)
        return self.rows("gradient of outputs", self.net.outputs, self.net.dtype)

    def backward(
        self,
        saved_for_backward: list[Saved],
        rows: int,
        gradients: Sequence[int],
        after: Callable[[int], None] | None = None,
    ) -> None:
        """Add the gradients of all parameters that are updated, made from `output_gradient`.

        gradients: addresses, of each parameter.
        after: called with the index of a layer's first parameter, once no later launch reads the layer's parameters or
        writes their gradients.
        """
        number, dy, goes_on = 0, self.output_gradient, True
        while saved_for_backward and goes_on:
            step = saved_for_backward.pop()
            below = next((below for below in reversed(saved_for_backward) if isinstance(below, _Dense)), None)
            if isinstance(step, _Dropout):
                self._add_dropout(step, dy, dy, rows, backward=True)
                continue
            if isinstance(step, _Activated):
                cost = costs.slopes(step.shape.columns, step.activation, False, None, BYTES[step.shape.dtype])
                args = step.activation, dy, step.s, dy, 0, 0, step.shape
                self.add(cost, tile_slopes, self.gpu, self.stream, *args)
                continue
            if isinstance(step, Normalized):
                goes_on = step.needs_dx
                add_backward(self, step, dy, gradients)
                if after and step.updated:
                    after(step.parameter)
                continue
            plan, i = step.plan, step.parameter
            goes_on = plan.backward.inputs is not None  # to layers below with parameters that are updated
            dx = self._gradient(1 - number) if goes_on else 0
            narrow = self._gradient(number) if plan.layer.output else 0
            out = Gradients(dy, dx, gradients[i], gradients[i + 1] if plan.backward.db else 0, narrow)
            sums = self.reserve(("slopes", i, rows), sums_bytes(shape_of(plan.layer)))
            of_below = (0, 0)
            if below and goes_on:
                of_below = below.aux, gradients[below.parameter + 1] if below.plan.backward.db else 0
            arrays = dy, step.x, step.w, step.s, out, sums, of_below
            emit = partial(self._add_layer, step.number)
            run_backward(self.gemm, self.stream, plan.backward, plan.layer, plan.activation, *arrays, emit)
            if after:
                after(i)
            number, dy = 1 - number, dx

    def scatter(self, y: int, out: int, rows: int, ring: int) -> None:
        """Add the copy of a batch's outputs to those of all batches, (ring, outputs)."""
        columns = self.net.outputs
        y_rows = Rows(y, out, columns, padded(columns), self.net.dtype)
        cost = costs.scatter(columns, self.size)
        self.add(cost, scatter, self.gpu, self.stream, y_rows, rows, self.clock.address, self.batch, ring)

    def finish(self, table: int, count: int, control: int) -> None:
        """Add the end of the batch; control: record of the updates if a step ends, else 0."""
        self.add(Cost("finish"), finish, self.gpu, self.stream, table, count, self.clock.address, control)
