"""Losses and networks of the reference, in vectorised NumPy; layers are in `dense` and `normalization`.

Arguments are taken as they come: names, shapes and number types are checked before they get here. Overflow and division
by zero give inf and NaN without a warning, as in compiled code.

Denormal numbers count as zero, as in compiled code, in all but the products of layers: those are NumPy's BLAS's, whose
threads have settings of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..denormals import flushed
from ..epochs import Progress, TrainsByEpochs
from ..sources import Source, take
from ..spec import (
    ActivationSpec,
    Batches,
    DenseSpec,
    DropoutSpec,
    GaussianNoiseSpec,
    LayerNormSpec,
    LayerSpec,
    LossSpec,
    OptimizerSteps,
    ParamSettings,
    PassResult,
    parameter_shapes,
)
from .after_step import work_after_step
from .dense import CASTS, Buffer, Dense, Dropout, activate, exact
from .maths import LOSSES, weighted_total
from .metrics import METRICS, Metric, Rule
from .normalization import Activation, BatchNorm, GaussianNoise, LayerNorm
from .optimizers import shrinkage
from .pruning import zero_gradients, zero_pruned
from .quantized import QuantizedDense
from .updates import gradient_norm, penalty, update, updates_of_step

Array = np.ndarray
PROGRESS_SECONDS = 0.1


@flushed
@np.errstate(all="ignore")
def loss(
    spec: LossSpec, outputs: Array, targets: Array, gradient: Array | None = None, weights: Array | None = None
) -> float:
    """Return the mean loss of outputs (n, K); its gradient by the outputs goes into `gradient`, if given.

    targets are int64 labels (n,) or of the outputs' shape and type; the cross-entropies take logits. With weights (n,)
    the mean is sum(w l) / sum(w); of weights that are all 0 it is 0.

    >>> gradient = np.empty((1, 2))
    >>> loss(LossSpec("mean_squared_error"), np.array([[1.0, 4.0]]), np.array([[0.0, 1.0]]), gradient)
    5.0
    >>> gradient.tolist()
    [[1.0, 3.0]]
    """
    value = LOSSES[spec.name].value
    if weights is None:
        return value(outputs, targets, gradient, **spec.params)
    used = weights > 0  # rows of weight 0 are absent: their loss may be inf or NaN
    if gradient is not None:
        gradient[~used] = 0
    if not used.any():
        return 0.0
    of_used, w = None if gradient is None else np.empty_like(outputs[used]), weights[used]
    mean = value(outputs[used], targets[used], of_used, total=weighted_total(w), **spec.params)
    if gradient is not None and of_used is not None:
        # that of the plain mean has 1 / rows for w / sum(w)
        shares = w * (len(w) / w.sum(dtype=np.float64))
        gradient[used] = of_used * shares.astype(gradient.dtype)[:, np.newaxis]
    return mean


Layer = Dense | QuantizedDense | Dropout | Activation | GaussianNoise | LayerNorm | BatchNorm
DENSE = (Dense, QuantizedDense)


class Network(TrainsByEpochs):
    """A stack of layers over the caller's parameters, which `train` changes in place.

    params is [w0, b0, w1, b1, ...], b left out where the layer has no bias, all of type `dtype`; of other layers they
    are those of `spec.parameter_shapes`. Where the last layer's activation is the loss's link (softmax, sigmoid),
    the loss works on the logits, and the activation is applied to what `predict` returns and the metrics see.

    compute: "bfloat16" for layers that compute in it, with `dtype` float32: operands of products, and what
    layers give to one another forward and backward, are rounded to it; parameters, their gradients, the
    outputs of the last layer and all that follows from them are not.

    >>> w = np.array([[1.0], [-1.0]])
    >>> network = Network([DenseSpec(2, 1, bias=False)], [w], np.float64, LossSpec("mean_squared_error"), [])
    >>> network.predict(np.array([[3.0, 1.0]])).tolist()
    [[2.0]]
    >>> batches = Batches(np.array([[3.0, 1.0]]), np.array([[1.0]]), order=np.array([0]), batch_size=1)
    >>> options = {"weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None}
    >>> network.train(batches, OptimizerSteps("sgd", [()], options, np.array([0.1])), seed=0).losses.tolist()
    [1.0]
    >>> w.round(6).tolist()
    [[0.4], [-1.2]]
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        params: Sequence[Array],
        dtype: Any,
        loss: LossSpec | None,
        metrics: Sequence[str],
        compute: str | None = None,
    ) -> None:
        self._cast = CASTS[compute] if compute else exact
        self.params = list(params)
        self.steps_done = 0
        self._loss, self._metrics = loss, list(metrics)
        link = None if loss is None else LOSSES[loss.name].link
        last = layers[-1]
        fused = isinstance(last, DenseSpec) and last.activation in ("softmax", link)
        self._link = last.activation if isinstance(last, DenseSpec) and fused else None

        self._layers: list[Layer] = []
        remaining = iter(self.params)
        final = max(i for i, spec in enumerate(layers) if isinstance(spec, DenseSpec))
        for index, spec in enumerate(layers):
            if isinstance(spec, DenseSpec):
                activation = "linear" if fused and index == len(layers) - 1 else spec.activation
                self._outputs = spec.outputs
                if spec.quantized is not None:
                    arrays = [next(remaining) for _ in parameter_shapes(spec)]
                    self._layers.append(QuantizedDense(spec, activation, arrays))
                    continue
                w, b = next(remaining), next(remaining) if spec.bias else None
                self._layers.append(Dense(spec, activation, w, b, index == final, self._cast))
                continue
            cast, own = self._cast if index < final else exact, [next(remaining) for _ in parameter_shapes(spec)]
            if isinstance(spec, DropoutSpec):
                self._layers.append(Dropout(spec, index, cast))
            elif isinstance(spec, GaussianNoiseSpec):
                self._layers.append(GaussianNoise(spec, index, cast))
            elif isinstance(spec, ActivationSpec):
                self._layers.append(Activation(spec, cast))
            elif isinstance(spec, LayerNormSpec):
                self._layers.append(LayerNorm(spec, own, cast))
            else:
                self._layers.append(BatchNorm(spec, own, cast))
        self._gradients: list[Array] = []  # of the parameters that are updated
        self._doutputs = Buffer(self._outputs, np.dtype(dtype))
        self._predictions = Buffer(self._outputs, np.dtype(dtype))

    @np.errstate(all="ignore")
    def _train_epoch(
        self,
        batches: Batches,
        optimizer: OptimizerSteps,
        seed: int,
        progress: Progress | None,
        check: Callable[[], None],
    ) -> PassResult:
        """Train on all batches of an epoch; check: raises what interrupts it between two steps."""
        start = reported = time.perf_counter()
        losses, weights = np.empty(batches.steps), None if batches.weights is None else np.empty(batches.steps)
        parts = batches.parts
        metrics = self._new_metrics()
        for name, totals in (parts.carried or {}).items() if parts else ():
            vars(metrics[name]).update(totals)
        step, clip_norm, k = optimizer.steps_done, optimizer.clip_norm, batches.accumulate
        self._set_updated(optimizer.updated, optimizer.fixed)
        step_rows, ends = batches.rows_of_steps(), np.cumsum(batches.rows_of_batches())
        rows_of = np.split(batches.order[: batches.num_rows], ends[:-1])
        for i in range(batches.steps):
            of_step = rows_of[i * k : (i + 1) * k]
            losses[i], weight, gradients = self._group(batches, of_step, metrics, seed, (step + i) * k)
            added, over = penalty(self.params, optimizer.settings), optimizer.penalty_divisors
            losses[i] += added if over is None else added / over[i]
            if weights is not None:
                weights[i] = weight
            if weight > 0:
                zero_gradients(optimizer, self.params, gradients)
                scale = 1.0 if clip_norm is None else shrinkage(clip_norm, gradient_norm(gradients))
                update(updates_of_step(optimizer, self.params, gradients, i), scale)
                zero_pruned(optimizer, self.params, gradients)
                if optimizer.after:
                    work_after_step(self.params, optimizer.after, i)
            self.steps_done += 1
            if i + 1 < batches.steps:  # the end of an epoch is interrupted when its results are handed over
                check()
            if progress is not None and time.perf_counter() - reported >= PROGRESS_SECONDS:
                progress(self.steps_done, float(np.average(losses[: i + 1], weights=step_rows[: i + 1])))
                reported = time.perf_counter()
        if parts:
            parts.carry({name: _totals(metric) for name, metric in metrics.items()}, batches.num_rows)
        return PassResult(losses, _results(metrics), time.perf_counter() - start, weights=weights)

    def _set_updated(self, updated: Sequence[bool], fixed: Sequence[int]) -> None:
        """Compute the gradients of these parameters alone, and those by what leads down to them.

        fixed: indices of the BatchNorms that go by their averages.
        """
        for i, layer in enumerate(self._layers):
            if isinstance(layer, BatchNorm):
                layer.fixed = i in fixed
        of_params, below, self._gradients = iter(updated), False, []
        for layer in self._layers:
            if isinstance(layer, Dense):
                needs_dw, needs_db = next(of_params), layer.b is not None and next(of_params)
                layer.needs, below = (needs_dw, needs_db, below), below or needs_dw or needs_db
                self._gradients += [layer.dw] * needs_dw
                if needs_db and layer.db is not None:
                    self._gradients.append(layer.db)
            elif isinstance(layer, LayerNorm | BatchNorm):
                needed = [next(of_params) for _ in layer.gradients]
                layer.needs_dx, below = below, below or any(needed)
                self._gradients += [g for g, on in zip(layer.gradients, needed, strict=True) if on and g is not None]

    @np.errstate(all="ignore")
    def evaluate(
        self, x: Array | Source, y: Array, batch_size: int = 1024, weights: Array | None = None,
        order: Array | None = None,
    ) -> PassResult:  # fmt: skip
        """Return the mean loss over the rows `order` (None: all) as the one entry of `losses`, and the metrics.

        There is no dropout. weights: (n,) of all rows, whose sum over these is not 0; None: all 1.
        """
        start = time.perf_counter()
        metrics = self._new_metrics()
        total = sum_of_weights = 0.0
        for rows in _parts(len(x) if order is None else len(order), batch_size, order):
            targets, w = y[rows], None if weights is None else weights[rows]
            outputs = self._forward(self._rows(x, rows))
            weight = len(targets) if w is None else float(w.sum(dtype=np.float64))
            total += weight * loss(self._known_loss(), outputs, targets, None, w)
            sum_of_weights += weight
            self._measure(metrics, outputs, targets, w)
        mean = total / sum_of_weights if sum_of_weights else np.nan
        return PassResult(np.array([mean]), _results(metrics), time.perf_counter() - start)

    def penalty(self, settings: Sequence[ParamSettings]) -> float:
        """Return what the parameters, as they are, add to a loss; settings: of each, or () for none."""
        return penalty(self.params, settings)

    @np.errstate(all="ignore")
    def predict(self, x: Array | Source, batch_size: int = 1024, order: Array | None = None) -> Array:
        """Return outputs (m, outputs) for the rows `order` of x (n, inputs) (None: all), the output activation applied.

        There is no dropout.
        """
        count = len(x) if order is None else len(order)
        result = np.empty((count, self._outputs), self._doutputs.array.dtype)
        for i, rows in enumerate(_parts(count, batch_size, order)):
            result[i * batch_size : (i + 1) * batch_size] = self._forward(self._rows(x, rows))
        if self._link is not None:
            activate(self._link, result, result)
        return result

    @np.errstate(all="ignore")
    def dense_inputs(self, x: Array | Source, batch_size: int = 1024) -> Iterator[list[Array]]:
        """Yield for every batch of the rows of x what comes into each dense layer: valid until the next is asked for.

        There is no dropout.
        """
        for rows in _parts(len(x), batch_size, None):
            found, y = [], self._cast(self._rows(x, rows))
            for layer in self._layers:
                if isinstance(layer, DENSE):
                    found.append(y)
                    y = layer.forward(y)
                else:
                    y = layer.predict(y)
            yield found

    @flushed
    def _rows(self, x: Array | Source, rows: Any) -> Array:
        """Rows of x, by a slice or their numbers, in the network's dtype."""
        return take(x, rows, self._doutputs.array.dtype)

    def _known_loss(self) -> LossSpec:
        if self._loss is None:
            raise ValueError("a network without a loss can only predict")
        return self._loss

    def _new_metrics(self) -> dict[str, Metric]:
        row = LOSSES[self._known_loss().name]
        rule = Rule(row.binary or (self._outputs == 1 and row.link != "softmax"), row.boundary)
        return {name: METRICS[name](rule) for name in self._metrics}

    def _measure(self, metrics: dict[str, Metric], logits: Array, targets: Array, weights: Array | None) -> None:
        if weights is not None:  # rows of weight 0 are absent
            used = weights > 0
            logits, targets, weights = logits[used], targets[used], weights[used].astype(np.float64)
            if not used.any():
                return
        outputs = logits
        if self._link is not None and not all(metric.logits for metric in metrics.values()):
            outputs = self._predictions(len(logits))
            activate(self._link, logits, outputs)
        for metric in metrics.values():
            metric.add(logits if metric.logits else outputs, targets, weights)

    def _forward(self, x: Array) -> Array:
        x = self._cast(x)
        for layer in self._layers:
            x = layer.forward(x) if isinstance(layer, DENSE) else layer.predict(x)
        return x

    @np.errstate(all="ignore")
    def _group(
        self, batches: Batches, group: Sequence[Array], metrics: dict[str, Metric], seed: int, done: int
    ) -> tuple[float, float, list[Array]]:
        """The mean loss of the batches of a step, the weight of their rows (their number, where they have none), and
        the gradients, to which each batch adds by its share of that weight.

        group: rows of each batch. done: number of batches before.
        """
        weights = None if batches.weights is None else [batches.weights[rows] for rows in group]
        step_rows = sum(map(len, group))
        weight = step_rows if weights is None else float(np.concatenate(weights).sum(dtype=np.float64))
        mean, sums = 0.0, self._gradients
        for layer in self._layers:
            if isinstance(layer, BatchNorm):
                layer.moves = weight > 0
        for j, rows in enumerate(group):
            w = None if weights is None else weights[j]
            x = self._rows(batches.x, rows)
            value = self._gradient(x, batches.y[rows], metrics, seed, done + j + 1, w)
            if batches.accumulate == 1:
                return value, weight, self._gradients
            own = len(rows) if w is None else float(w.sum(dtype=np.float64))
            share = own / weight if weight else 0.0
            parts = [g.dtype.type(share) * g for g in self._gradients]
            sums = parts if j == 0 else [a + b for a, b in zip(sums, parts, strict=True)]
            mean += share * value
        return mean, weight, sums

    def _gradient(
        self, x: Array, y: Array, metrics: dict[str, Metric], seed: int, step: int, weights: Array | None
    ) -> float:
        """Fill the gradients for one training batch, the step-th (from 1) ever, and return its mean loss."""
        x = self._cast(x)
        for layer in self._layers:
            if isinstance(layer, Dense):
                x = layer.forward(x, training=True)
            else:
                x = layer.forward(x) if isinstance(layer, QuantizedDense) else layer.forward(x, seed, step)
        dy: Array | None = self._doutputs(len(x))
        mean = loss(self._known_loss(), x, y, dy, weights)
        self._measure(metrics, x, y, weights)
        for layer in reversed(self._layers):
            if dy is None:  # only dropouts of the network's input are left
                break
            assert not isinstance(layer, QuantizedDense), "layers of integers are not trained"
            dy = layer.backward(dy)
        return mean


def _totals(metric: Metric) -> dict[str, Any]:
    """All that a metric has counted, without the rule that it counts by."""
    return {name: value for name, value in vars(metric).items() if name != "rule"}


def _parts(count: int, size: int, order: Array | None) -> Iterator[Any]:
    """Rows of all batches of a pass without updates: slices, or parts of an order."""
    for start in range(0, count, size):
        part = slice(start, start + size)
        yield part if order is None else order[part]


def _results(metrics: dict[str, Metric]) -> dict[str, float]:
    return {name: metric.result() for name, metric in metrics.items()}
