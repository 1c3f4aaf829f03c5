"""What is done with a batch, as a list of launches with constant arguments, and the memory that it works on.

    gather | dropout, forward ... | loss, metrics | slopes, dw, dx ... | accumulate | clip | update | finish

All batches with the same number of rows and the same place in their step have the same list. The lists of a pass share
its memory, for they run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...formulas import ACTIVATIONS, LOSSES, METRICS, dropout_stream
from ...metrics import scored_by
from ...spec import DropoutSpec
from ..dense.epilogues import Shape, activate, sums_bytes
from ..dense.finish import finish
from ..dense.gemm import gemm_of
from ..dense.layer import Gradients, Outputs, run_backward, run_forward, shape_of
from ..dense.losses import SUMS_OF_METRICS, loss_tiles, run_loss, run_softmax
from ..dense.metrics import hits_tiles, run_hits
from ..dense.products import BYTES, Plan, padded, plan_forward, plan_network
from ..dense.rows import LABEL, dropout, gather, scatter
from ..dense.structure import Structure
from ..runtime.records import CLOCK, DROPOUT, TOTALS


class _Dense(NamedTuple):
    """What the backward pass needs of a layer."""

    plan: Plan
    x: int
    w: int
    s: int
    aux: int  # what the slope as an epilogue is taken from
    number: int  # of w among the parameters


class _Dropout(NamedTuple):
    settings: int
    columns: int
    dtype: str


class Launches(list[partial[None]]):
    """What is done with a batch; called, it is done."""

    def __call__(self) -> None:
        for launch in self:
            launch()


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

    def room(self, key: Any, size: int) -> int:
        """The address of memory of this size, the same whenever it is asked for by this key."""
        if key not in self._memory:
            self._memory[key] = self.gpu.allocate(size)
        return int(self._memory[key].address)

    def constant(self, key: Any, array: np.ndarray) -> int:
        """The address of a copy of this array."""
        if key not in self._memory:
            self.gpu.copy_in(self.room(key, array.nbytes), array, self.stream)
        return int(self._memory[key].address)

    def rows(self, key: Any, columns: int, dtype: str) -> int:
        """Memory for a batch with so many columns, whose rows have gaps."""
        return self.room(key, self.batch * padded(columns) * BYTES[dtype])

    def add(self, function: Callable[..., None], *args: Any) -> None:
        self._list.append(partial(function, *args))

    def launches(self) -> Launches:
        """What was added since the last time."""
        done, self._list = self._list, Launches()
        return done

    # ------------------------------------------------------------ parts of a batch
    def gather(self, x: int, order: int, rows: int, columns: int, dtype: str, ring: int) -> int:
        """The rows of the batch: of x, or of targets; LABEL: of class numbers. Those of x may be of another dtype."""
        gaps = 1 if dtype == LABEL else padded(columns)
        into = self.room(("gathered", x), self.batch * gaps * (8 if dtype == LABEL else BYTES[dtype]))
        sizes, source = (rows, columns, gaps, dtype), "" if dtype == LABEL else self.net.dtype
        clock = self.clock.address
        self.add(gather, self.gpu, self.stream, x, order, into, *sizes, clock, self.batch, ring, source)
        return into

    def forward(self, x: int, rows: int) -> tuple[int, list[_Dense | _Dropout]]:
        """The outputs, or logits where a link follows, and what `backward` needs."""
        trail: list[_Dense | _Dropout] = []
        plans, index, columns, dtype = iter(self._plans(rows)), 0, self.net.inputs, self.net.compute
        for i, layer in enumerate(self.net.layers):
            if isinstance(layer, DropoutSpec):
                if self.seed is not None and layer.rate:
                    step = _Dropout(self._masking(i, layer.rate, self.seed), columns, dtype)
                    y = self.rows(("y", i), columns, dtype)
                    self._drop(step, x, y, rows)
                    trail.append(step)
                    x = y
                continue
            plan = next(plans)
            dtype = plan.layer.output or plan.layer.dtype
            w, b = self.params[index], self.params[index + 1] if layer.bias else 0
            y = self.rows(("y", i), layer.outputs, dtype)
            z = self.rows(("z", i), layer.outputs, dtype) if "z" in (plan.forward.into, plan.forward.aux) else 0
            mask = self.room(("mask", i), self._mask_bytes(plan)) if plan.forward.aux == "mask" else 0
            out = Outputs(y, z, mask)
            self.add(run_forward, self.gemm, self.stream, plan.forward, plan.layer, plan.activation, x, w, b, out)
            s = z if ACTIVATIONS[plan.activation].uses == "z" else y
            trail.append(_Dense(plan, x, w, s, mask or s, index))
            x, columns, index = y, layer.outputs, index + 1 + layer.bias
        return x, trail

    def _plans(self, rows: int) -> list[Plan]:
        other = self.net.dtype if self.net.compute != self.net.dtype else ""
        plans = plan_network(
            self.net.layers, rows, self.net.compute, self.net.tf32, gradient=other, fused=self.net.fused,
            supported=self.gemm.supported, output=other,
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

    def _masking(self, i: int, rate: float, seed: int) -> int:
        record = np.array([(1 / (1 - rate), int(rate * 2**53), dropout_stream(seed, i))], DROPOUT)
        return self.constant(("dropout", i), record)

    def _drop(self, step: _Dropout, x: int, y: int, rows: int) -> None:
        gap = padded(step.columns)
        sizes = rows, step.columns, gap, gap, step.dtype
        self.add(dropout, self.gpu, self.stream, x, y, *sizes, self.clock.address, step.settings)

    def judge(self, z: int, t: int, labels: bool, rows: int, losses: int, stride: int, metrics: int, dz: int) -> int:
        """Loss, its gradient into dz unless that is 0, and metrics; returns the table of the sums, for `finish`.

        losses: where the sum of the loss goes, `stride` bytes further for each batch; metrics: the same for all.
        """
        net, columns = self.net, self.net.outputs
        assert net.loss is not None
        row, gap = LOSSES[net.loss.name], padded(columns)
        shape = Shape(rows, columns, gap, net.dtype)
        shown = z
        if net.link and not all(METRICS[name].of_classes for name in net.metrics):
            shown = self.rows("shown", columns, net.dtype)
            self.link(z, shown, rows)
        values = [float(net.loss.params.get(name, default)) for name, default in row.params.items()]
        settings = self.constant("settings", np.array([*row.boundary, *values, 0.0]))
        around = self.gpu, self.stream
        table = np.zeros(1 + len(net.sums), TOTALS)
        for i, (name, (first, end)) in enumerate([("", (0, columns)), *net.sums]):
            skip, part = first * self.size, shape._replace(columns=end - first)
            sums = self.room(("sums", i), 8 * self._tiles(name, self.batch, end - first))
            if name and METRICS[name].of_classes:
                scored = scored_by(name, net.loss.name, labels, columns)
                self.add(run_hits, *around, name, scored, z, t, sums, settings, shape, gap)
            elif name:
                places = shown + skip, t + skip, 0, sums, settings + 16
                self.add(run_loss, *around, SUMS_OF_METRICS[name], *places, part, gap)
            else:
                self.add(run_loss, *around, net.loss.name, z, t, dz, sums, settings + 16, shape, gap)
            into = (metrics + 8 * (i - 1), 0) if name else (losses, stride)
            table[i] = (sums, self._tiles(name, rows, end - first), *into)
        return self.constant(("table", rows), table)

    def _tiles(self, metric: str, rows: int, columns: int) -> int:
        """The sums that a metric leaves, or the loss: ""."""
        if metric and METRICS[metric].of_classes:
            return hits_tiles(rows)
        assert self.net.loss is not None
        return loss_tiles(SUMS_OF_METRICS.get(metric, self.net.loss.name), rows, columns)

    def link(self, z: int, y: int, rows: int) -> None:
        """The output activation, which training leaves to the loss; y may be z."""
        columns, name = self.net.outputs, self.net.link
        shape = Shape(rows, columns, padded(columns), self.net.dtype)
        if name == "softmax":
            self.add(run_softmax, self.gpu, self.stream, z, y, shape, shape.stride)
        else:
            self.add(activate, self.gpu, self.stream, name, z, 0, y, shape)

    def gradient(self, number: int) -> int:
        """One of two places for the gradient of a layer's outputs: a layer's is made from that of the one above."""
        return self.rows(("gradient", number), max(layer.outputs for layer in self.net.dense), self.net.compute)

    def top(self) -> int:
        """That of the network's outputs, in their own dtype."""
        if self.net.compute == self.net.dtype:
            return self.gradient(0)
        return self.rows("gradient of outputs", self.net.outputs, self.net.dtype)

    def backward(
        self,
        trail: list[_Dense | _Dropout],
        rows: int,
        gradients: Sequence[int],
        after: Callable[[int], None] = lambda parameter: None,
    ) -> None:
        """The gradients of all parameters, from that of the outputs in `top()`.

        after: called with the number of a layer's first parameter, once nothing will read them, or write gradients.
        """
        number, dy = 0, self.top()
        while trail:
            step = trail.pop()
            more = any(isinstance(below, _Dense) for below in trail)
            if isinstance(step, _Dropout):
                if more:
                    self._drop(step, dy, dy, rows)
                continue
            plan, i = step.plan, step.number
            has_bias = bool(plan.backward.db)
            dx = self.gradient(1 - number) if more else 0
            narrow = self.gradient(number) if plan.layer.output else 0
            out = Gradients(dy, dx, gradients[i], gradients[i + 1] if has_bias else 0, narrow)
            sums = self.room(("slopes", i, rows), sums_bytes(shape_of(plan.layer)))
            below = next((below for below in reversed(trail) if isinstance(below, _Dense)), None)
            under = (below.aux, gradients[below.number + 1] if below.plan.backward.db else 0) if below else (0, 0)
            places = dy, step.x, step.w, step.s, out, sums, under
            self.add(run_backward, self.gemm, self.stream, plan.backward, plan.layer, plan.activation, *places)
            after(i)
            number, dy = 1 - number, dx

    def scatter(self, y: int, out: int, rows: int, ring: int) -> None:
        """The outputs of the batch into those of all batches, (ring, outputs)."""
        columns, clock = self.net.outputs, self.clock.address
        sizes = rows, columns, padded(columns), self.net.dtype
        self.add(scatter, self.gpu, self.stream, y, out, *sizes, clock, self.batch, ring)

    def finish(self, table: int, count: int, control: int) -> None:
        """The end of the batch; control: of the updates, if a step was done."""
        self.add(finish, self.gpu, self.stream, table, count, self.clock.address, control)
