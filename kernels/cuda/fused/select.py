"""Choice between one kernel (`kernel.py`) and CUDA graphs for a pass that trains, and the launch of that kernel.

FASTOPT_CUDA_FUSED: 1 wherever the kernel is possible, 0 never. Otherwise `pays_off` decides, by an estimate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...formulas import LOSSES, METRICS, OPTIMIZERS, dropout_stream
from ...profile import Cost
from ..dense.stored import Layout
from ..dense.structure import Structure
from ..runtime.primitives import VECTOR
from .kernel import fused_kernel
from .layout import FusedLayers, Kind, fused_layers, lay_out, split_records, sum_of

# Figures of `pays_off`: estimates from counts of clocks and instructions, NOT measured on any GPU.
FLOPS = 1e11  # a second: a multiprocessor does 0.4e12 at most, and threads of small products wait for each other
PHASE = 0.2e-6  # seconds: a barrier, and the loads that every phase begins with, are some 300 clocks
ELEMENT = 0.4e-9  # seconds: a parameter's update, with a root and a division, by one thread of 512
BYTES = 5e10  # a second, of states that do not fit into shared memory
LAUNCH = 2.5e-6  # seconds: a small kernel in a CUDA graph, until the next one may begin
MARGIN = 0.5  # largest share of the graph's time at which the kernel is chosen, for all of these are rough


class FusedPass(NamedTuple):
    """Sizes and addresses of a pass; fields after `labels` are those of HEAD with the same names."""

    params: Sequence[int]
    states: Sequence[Sequence[int]]  # of each parameter
    seed: int | None  # of dropout
    layout: Layout | None  # of x
    labels: bool  # y holds class numbers
    batch_rows: int
    pass_rows: int
    ring_rows: int
    x: int
    y: int
    stages: int
    order: int
    scalars: int
    clock: int
    losses: int
    metric_sums: int


class Choice(NamedTuple):
    """A kernel and its records."""

    kind: Kind
    layers: FusedLayers
    records: np.ndarray  # HEAD and LAYERs, so far with sizes and offsets in shared memory


class Fused:
    """The kernel bound to its records: a call launches it for some batches."""

    def __init__(self, gpu: Any, stream: int, choice: Choice, cost: Cost) -> None:
        self.gpu, self.stream, self.cost = gpu, stream, cost  # of a batch
        self.kernel, self.threads = fused_kernel(choice.kind), choice.kind.threads
        self.shared = int(split_records(choice.records)[0]["shared_bytes"]) + VECTOR  # the memory's start is rounded up
        self.memory = gpu.allocate(choice.records.nbytes)
        gpu.copy_in(self.memory.address, choice.records, stream)

    def __call__(self, chunk: range) -> None:
        """Launch these batches, which follow those of the launch before."""
        self.gpu.launch_one_block(self.kernel, self.threads, self.shared, self.stream, self.memory.address, len(chunk))


def fused_training(gpu: Any, stream: int, net: Structure, rule: str, data: FusedPass) -> Fused | None:
    """The kernel for a pass whose every batch is a step; None where `choose` prefers graphs."""
    choice = choose(net, rule, data.labels, data.batch_rows, gpu.shared_bytes, data.layout)
    if choice is None:
        return None
    _fill(choice, net, data)
    return Fused(gpu, stream, choice, _cost(net, rule, data.layout))


def choose(
    net: Structure, rule: str, labels: bool, batch: int, max_bytes: int, layout: Layout | None = None
) -> Choice | None:
    """None where the kernel is impossible with `max_bytes` of shared memory, turned off, or not faster."""
    setting, layers = os.environ.get("FASTOPT_CUDA_FUSED"), fused_layers(net)
    by_columns = any(columns != (0, net.outputs) for _, columns in net.sums)
    if setting == "0" or layers is None or by_columns:
        return None
    if net.num_counts or len(net.metrics) > len(METRICS):  # it keeps one sum of a metric, and so many of them
        return None
    if net.tf32 or net.compute != net.dtype:
        return None
    if layout and layout.columns:  # rows of the next batch are asked for by their place, which sparse ones have not
        return None
    if net.loss is not None and LOSSES[net.loss.name].factor is not None:
        return None
    kind = kind_of(net, layers, rule, labels)._replace(x=layout)
    records = lay_out(kind, layers, batch, max_bytes)
    if records is None or (setting != "1" and not pays_off(net, layers, batch, _bytes_outside(kind, layers, records))):
        return None
    return Choice(kind, layers, records)


def pays_off(net: Structure, layers: FusedLayers, batch: int, states_outside: int) -> bool:
    """True if the kernel is estimated, not measured, to take MARGIN of the graph's time or less.

    states_outside: bytes of states that stay in the device's memory.
    """
    dense, dropouts = layers.dense, sum(map(bool, layers.dropouts))
    products = [2 * batch * spec.inputs * spec.outputs for spec in dense]
    flops, phases = 3 * sum(products) - products[0], 6 + 4 * len(dense)
    fused = flops / FLOPS + phases * PHASE + _num_elements(layers) * ELEMENT + 2 * states_outside / BYTES
    # gather, loss, update, finish; for each layer its product with its epilogue, slopes, dw, and dx except in the first
    launches = 4 + len(net.metrics) + 4 * len(dense) - 1 + 2 * dropouts
    return fused <= MARGIN * LAUNCH * launches


def _num_elements(layers: FusedLayers) -> int:
    """Elements of all parameters."""
    return sum((spec.inputs + spec.bias) * spec.outputs for spec in layers.dense)


def _cost(net: Structure, rule: str, layout: Layout | None) -> Cost:
    """Cost of a batch: arrays that stay in shared memory are not moved."""
    assert net.loss is not None
    layers, width, labels = net.dense, np.dtype(net.dtype).itemsize, LOSSES[net.loss.name].targets == "labels"
    products = [costs.forward(d.inputs, d.outputs, d.activation, d.bias, False, width) for d in layers]
    products += [costs.weights(d.inputs, d.outputs, None, width) for d in layers]
    products += [costs.inputs_gradient(d.inputs, d.outputs, width) for d in layers[1:]]
    gathered = costs.gather(net.inputs, net.outputs, False, width, labels)
    more = net.inputs * (layout.size - width) if layout else 0
    return Cost(
        f"fused {'-'.join(map(str, [net.inputs, *(d.outputs for d in layers)]))}",
        flops=sum((d.inputs + d.bias) * d.outputs for d in layers) * costs.update_flops(rule),
        row_bytes=gathered.row_bytes // 2 + costs.ORDER + more,  # read, and not written anywhere
        row_flops=sum(cost.row_flops for cost in products),
    )


def _bytes_outside(kind: Kind, layers: FusedLayers, records: np.ndarray) -> int:
    """Bytes of states that are not in shared memory."""
    if split_records(records)[0]["states_resident"]:
        return 0
    return len(OPTIMIZERS[kind.rule].states) * _num_elements(layers) * np.dtype(kind.dtype).itemsize


def kind_of(net: Structure, layers: FusedLayers, rule: str, labels: bool) -> Kind:
    """The kernel that trains such networks."""
    assert net.loss is not None
    activations = tuple(sorted({spec.activation for spec in layers.dense}))
    metrics = tuple(sorted({sum_of(name) for name in net.metrics}))
    return Kind(rule, activations, net.loss.name, labels, net.link, metrics, any(layers.dropouts), net.dtype)


def _fill(choice: Choice, net: Structure, data: FusedPass) -> None:
    """Write all fields but sizes and offsets in shared memory."""
    kind, parts, records = choice
    head, layers = split_records(records)
    loss, params = LOSSES[kind.loss], iter(zip(data.params, data.states, strict=True))
    assert net.loss is not None
    for name in FusedPass._fields[FusedPass._fields.index("labels") + 1 :]:
        head[name] = getattr(data, name)
    head["num_metrics"] = len(net.metrics)
    head["metric_kinds"][: len(net.metrics)] = [kind.metrics.index(sum_of(name)) for name in net.metrics]
    head["z_boundary"], head["t_boundary"] = loss.boundary
    for name, default in loss.params.items():
        head["param"] = net.loss.params.get(name, default)
    for record, dropout in zip((head, *layers), parts.dropouts, strict=True):
        if dropout:
            assert data.seed is not None
            number, rate = dropout
            record["scale"], record["threshold"] = 1 / (1 - rate), int(rate * 2**53)
            record["stream"] = dropout_stream(data.seed, number)
    for layer, spec in zip(layers, parts.dense, strict=True):
        layer["activation"] = kind.activations.index(spec.activation)
        for name in ("w", "b")[: 1 + spec.bias]:
            layer[name], states = next(params)
            layer[f"{name}_state_addresses"][: len(states)] = states
            if not head["states_resident"]:
                layer[f"{name}_states"][: len(states)] = states
