"""Phases of the loss, with its gradient by the outputs, and of the metrics; and their sums over a pass."""

from __future__ import annotations

import numpy as np

from ... import costs
from ...formulas import LOSSES, METRICS
from ...metrics import Variation, has_counts, num_counts, scored_by, sums_of
from ..dense.losses import TOTAL_KERNEL, loss_kernel, loss_param
from ..dense.metrics import counts_kernel, metric_kernel
from ..dense.rows import ROWS
from ..runtime.partition import num_pieces
from ..runtime.primitives import address_of
from ..runtime.records import LOSS, METRIC, TOTAL, fill
from .forward import add_link
from .phases import PhaseList


def has_labels(y: np.ndarray) -> bool:
    """True if targets are class numbers."""
    return y.dtype == np.int64 and y.ndim == 1


def add_loss_and_metrics(
    program: PhaseList, outputs: np.ndarray, targets: np.ndarray, losses: np.ndarray, stride: int,
    gradient: np.ndarray, variation: Variation | None, epochs: int = 1, apart: bool = False,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Add the loss with its gradient, and the metrics; return the sums that the metrics are made from.

    Metrics of counts share theirs.

    losses: the loss of a batch is added to the word that lies `stride` bytes behind that of the batch before.
    variation: of the targets, where r2 is among the metrics. epochs: (epochs, sums) is the shape of the sums of a
    metric. apart: these are of so many batches of one epoch instead, each by itself.
    """
    net, columns, labels = program.net, program.net.outputs, has_labels(targets)
    shown = outputs  # to metrics that see the network's outputs, not its logits
    if net.link and not all(METRICS[name].of_classes for name in net.metrics):
        shown = program.zeros(*outputs.shape)
        add_link(program, outputs, shown)
    parts = sums_of(net.metrics, columns, variation)
    totals = [_batch_sums(program, losses, stride)]
    record = fill(
        LOSS, run=program.run, z=outputs, t=targets, dz=gradient, columns=columns, sums=totals[0][0],
        weights=_weights_record(program), param=loss_param(net.loss_spec),
    )  # fmt: skip
    cost = costs.loss(net.loss_spec.name, columns, labels, net.itemsize)
    counts = has_counts(net.metrics)
    kernel = loss_kernel(net.loss_spec.name, net.dtype, program.row_weights is not None)
    program.add(kernel, record, barrier=not parts and not counts, cost=cost)
    accumulators = {name: np.zeros((epochs, sum(of == name for of, _ in parts))) for name in net.metrics}
    free = {name: iter(accumulator.T) for name, accumulator in accumulators.items()}
    for i, (name, (first, end)) in enumerate(parts):
        totals.append(_batch_sums(program, next(free[name]), *_strides(accumulators[name], apart)))
        z = outputs if METRICS[name].of_classes else shown
        last = i == len(parts) - 1 and not counts
        _add_metric(program, name, z, targets, (first, end), totals[-1][0], barrier=last)
    if counts:
        of_counts = [name for name in net.metrics if METRICS[name].of_counts]
        by_output = scored_by(of_counts[0], net.loss_spec.name, labels, columns) == "outputs"
        shared = np.zeros((epochs, num_counts(columns, by_output)))
        accumulators |= dict.fromkeys(of_counts, shared)
        totals.append(_batch_sums(program, shared, *_strides(shared, apart), shared.shape[1]))
        _add_metric(program, of_counts[0], outputs, targets, (0, columns), totals[-1][0], barrier=True)
    for _, record in totals:
        program.add(TOTAL_KERNEL, record, barrier=False)
    return accumulators


def _add_metric(
    program: PhaseList, name: str, z: np.ndarray, targets: np.ndarray, columns: tuple[int, int],
    sums: np.ndarray, barrier: bool,
) -> None:  # fmt: skip
    net, labels, (first, end) = program.net, has_labels(targets), columns
    skip, boundary = first * net.itemsize, LOSSES[net.loss_spec.name].boundary
    record = fill(
        METRIC, run=program.run, z=address_of(z) + skip, t=address_of(targets) + skip, columns=end - first,
        stride=net.outputs, sums=sums, weights=_weights_record(program), z_boundary=boundary[0],
        t_boundary=boundary[1],
    )  # fmt: skip
    scored = scored_by(name, net.loss_spec.name, labels, net.outputs)
    of_counts = METRICS[name].of_counts
    cost = costs.metric("counts" if of_counts else name, end - first, labels, net.itemsize)
    form = scored, net.dtype, program.row_weights is not None
    kernel = counts_kernel(*form) if of_counts else metric_kernel(name, *form)
    program.add(kernel, record, barrier, cost)


def _weights_record(program: PhaseList) -> np.ndarray | None:
    return None if program.row_weights is None else program.row_weights.record


def _strides(accumulator: np.ndarray, apart: bool) -> tuple[int, int]:
    """Bytes from batch to batch and from epoch to epoch."""
    return (accumulator.strides[0], 0) if apart else (0, accumulator.strides[0])


def _batch_sums(
    program: PhaseList, into: np.ndarray, stride: int, epoch_stride: int = 0, columns: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Memory for the sums of the pieces of a batch, and the record by which they are added to `into`.

    Strides from batch to batch and from epoch to epoch are in bytes.
    """
    sums = np.zeros((num_pieces(program.batch_size, ROWS), columns))
    program.kept += [sums, into]
    strides = {"stride": stride, "epoch_stride": epoch_stride}
    return sums, fill(TOTAL, run=program.run, sums=sums, columns=columns, into=into, **strides)
