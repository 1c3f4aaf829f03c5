"""Whether a pass that trains is one kernel (`fused.py`), by what it would cost, and what that kernel is given.

FASTOPT_CUDA_FUSED: 1 wherever it can be done, 0 never. Otherwise by `worth`, which is an estimate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..formulas import ACTIVATIONS, LOSSES, OPTIMIZERS, dropout_stream
from ..spec import DenseSpec, DropoutSpec
from .fused import HEAD, KINDS, LAYER, STATES, THREADS, Kind, fused_kernel
from .losses import METRIC_LOSSES
from .passes import Pass
from .primitives import VECTOR
from .program import Structure
from .tiles import DEPTH

ERRORS = {"mean_squared_error": "squared", "mean_absolute_error": "absolute"}

# What is counted on for `worth`: estimates from the counts of clocks and instructions, NOT measured on any GPU. A
# multiprocessor at 1.7 GHz does 0.4 TFLOP/s at most; on small products, where threads wait for loads and for each other,
# a quarter of it. A meeting with what every phase begins with is some 300 clocks. A launch within a CUDA graph takes no
# less than 2 us, and graphs do it for products of any size here.
FLOPS = 1e11
PHASE = 0.2e-6
LAUNCH = 2e-6
BYTES = 5e10  # a second, of states that do not fit into shared memory
MARGIN = 0.5  # of the graph's time is what it may take: the estimate is a rough one


def filled(count: int) -> int:
    """As many rows as are filled up with zeros."""
    return -(-count // DEPTH) * DEPTH


def gap(columns: int, size: int) -> int:
    """Bytes from row to row of so many columns and one that is 1: an odd number of vectors, for the banks."""
    return (filled(columns + 1) // DEPTH | 1) * DEPTH * size


class Parts(NamedTuple):
    """A network as the kernel knows it: between layers, at most one dropout each; (number among layers, rate)."""

    dense: list[DenseSpec]
    dropouts: list[tuple[int, float] | None]  # before the first layer, and behind each


def parts_of(net: Structure) -> Parts | None:
    """None where there are two dropouts one after the other."""
    dropouts: list[tuple[int, float] | None] = [None]
    for i, layer in enumerate(net.layers):
        if isinstance(layer, DenseSpec):
            dropouts.append(None)
        elif isinstance(layer, DropoutSpec) and layer.rate:
            if dropouts[-1]:
                return None
            dropouts[-1] = i, layer.rate
    return Parts(net.dense, dropouts)


class Room:
    """Places in shared memory, one behind the other."""

    def __init__(self, first: int) -> None:
        self.end = -(-first // VECTOR) * VECTOR

    def take(self, size: int) -> int:
        place = self.end
        self.end += -(-size // VECTOR) * VECTOR
        return place


def placed(net: Structure, parts: Parts, batch: int, labels: bool, states: int, most: int) -> np.ndarray | None:
    """HEAD and the LAYERs in one array of bytes, with sizes and places in shared memory of at most so many bytes.

    None where that is too little. States lie there if there is room for them.
    """
    size, rows, count = np.dtype(net.dtype).itemsize, filled(batch), len(parts.dense)
    words = np.zeros(HEAD.itemsize + count * LAYER.itemsize, np.uint8)
    head, layers = views(words)
    room = Room(words.nbytes)
    x_gap = gap(net.inputs, size)
    x = room.take(rows * x_gap)
    for layer, spec, dropout in zip(layers, parts.dense, parts.dropouts[1:], strict=True):
        row = ACTIVATIONS[spec.activation]
        y_gap, before = gap(spec.outputs, size), row.uses == "z"
        layer["inputs"], layer["outputs"], layer["bias"] = spec.inputs, spec.outputs, spec.bias
        layer["x"], layer["x_gap"], layer["gap"], layer["before"] = x, x_gap, y_gap, before
        layer["plain"] = spec.activation == "linear" and not dropout
        for name in ("weights", "dw"):
            layer[name] = room.take(filled(spec.inputs + 1) * y_gap)
        layer["y"] = x = room.take(rows * y_gap)
        layer["s"] = room.take(rows * y_gap) if before or dropout else x
        x_gap = y_gap
    widest = int(max(layers["gap"]))
    head["targets"] = room.take(batch * 8 if labels else rows * x_gap)
    head["gradient"], head["other"] = (room.take(rows * widest) for _ in range(2))
    head["rows"], head["totals"] = room.take(3 * batch * size), room.take(THREADS * 8)
    head["hyper"] = room.take(16 * size)
    if room.end + VECTOR > most:
        return None
    beside = Room(room.end)
    for layer, spec in zip(layers, parts.dense, strict=True):
        for i in range(states):
            layer["w_states"][i] = beside.take(spec.inputs * spec.outputs * size)
            layer["b_states"][i] = beside.take(spec.outputs * size)
    head["resident"] = beside.end + VECTOR <= most
    head["bytes"] = beside.end if head["resident"] else room.end
    head["layers"], head["batch"] = count, batch
    return words


def views(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HEAD and the LAYERs of such an array."""
    return words[: HEAD.itemsize].view(HEAD)[0], words[HEAD.itemsize :].view(LAYER)


def worth(net: Structure, parts: Parts, batch: int, states_beside: int) -> bool:
    """Whether the kernel is likely to take MARGIN of the graph's time, or less. Estimated, not measured.

    states_beside: bytes of states that stay in the device's memory.
    """
    dense, dropouts = parts.dense, sum(map(bool, parts.dropouts))
    products = [2 * batch * spec.inputs * spec.outputs for spec in dense]
    flops = 3 * sum(products) - products[0]
    ours = flops / FLOPS + PHASE * (6 + 4 * len(dense)) + 2 * states_beside / BYTES
    # gather (2), loss, update, finish; of a layer its product with its epilogue, slopes, dw, and but for one dx
    launches = 5 + len(net.metrics) + 4 * len(dense) - 1 + 2 * dropouts
    return ours <= MARGIN * LAUNCH * launches


class Fused:
    """The kernel with what it works on."""

    def __init__(self, running: Pass, kind: Kind, words: np.ndarray) -> None:
        program = running.program
        self.gpu, self.stream = program.gpu, program.stream
        self.kernel, self.words = fused_kernel(kind), words
        self.shared = int(views(words)[0]["bytes"]) + VECTOR  # which may begin anywhere
        self.memory = self.gpu.allocate(words.nbytes)
        self.gpu.copy_in(self.memory.address, words, self.stream)

    def __call__(self, chunk: range) -> None:
        """The launch for these batches, which follow those of the launch before."""
        self.gpu.launch_alone(self.kernel, THREADS, self.shared, self.stream, self.memory.address, len(chunk))


def fused(running: Pass, rule: str, states: Sequence[Sequence[int]], scalars: int) -> Fused | None:
    """The kernel for a pass whose batches are steps by themselves, where it can be done and is worth it.

    states: addresses of those of each parameter; scalars: of ROW bytes for each step.
    """
    program, (_, y) = running.program, running.arrays
    net, wish = program.net, os.environ.get("FASTOPT_CUDA_FUSED")
    if wish == "0" or net.dtype not in ("float32", "float64"):
        return None
    parts, count = parts_of(net), len(OPTIMIZERS[rule].states)
    if parts is None or net.loss is None or y is None:
        return None
    labels = y.ndim == 1 and y.dtype == np.int64
    words = placed(net, parts, program.batch, labels, count, program.gpu.shared_bytes)
    if words is None:
        return None
    size = np.dtype(net.dtype).itemsize
    elements = sum((spec.inputs + spec.bias) * spec.outputs for spec in parts.dense)
    beside = 0 if views(words)[0]["resident"] else count * elements * size
    if wish != "1" and not worth(net, parts, program.batch, beside):
        return None
    kind = kind_of(net, parts, rule, labels)
    _fill(words, running, kind, parts, states, scalars)
    return Fused(running, kind, words)


def kind_of(net: Structure, parts: Parts, rule: str, labels: bool) -> Kind:
    """The kernel that trains such networks."""
    assert net.loss is not None
    activations = tuple(sorted({spec.activation for spec in parts.dense}))
    metrics = frozenset(_metric(name) for name in net.metrics)
    return Kind(rule, activations, net.loss.name, labels, net.link, metrics, any(parts.dropouts), net.dtype)


def _metric(name: str) -> str:
    return ERRORS[METRIC_LOSSES[name]] if name in METRIC_LOSSES else name


def _fill(
    words: np.ndarray, running: Pass, kind: Kind, parts: Parts, states: Sequence[Sequence[int]], scalars: int
) -> None:
    """Writes all but sizes and places in shared memory."""
    program, (head, layers) = running.program, views(words)
    net, loss, params = program.net, LOSSES[kind.loss], iter(zip(program.params, states, strict=True))
    assert net.loss is not None
    head["total"], head["ring"], head["order"] = running.rows, running.feed.ring, running.order
    head["x"], head["y"], head["scalars"], head["clock"] = running.feed.x, running.feed.y, scalars, program.clock.address
    head["losses"], head["sums"], head["metrics"] = running.losses, running.results.address, len(net.metrics)
    head["metric"][: len(net.metrics)] = [KINDS.index(_metric(name)) for name in net.metrics]
    head["z_boundary"], head["t_boundary"] = loss.boundary
    for name, default in loss.params.items():
        head["param"] = net.loss.params.get(name, default)
    for record, dropout in zip((head, *layers), parts.dropouts, strict=True):
        if dropout:
            assert program.seed is not None
            number, rate = dropout
            record["scale"], record["threshold"] = 1 / (1 - rate), int(rate * 2**53)
            record["stream"] = dropout_stream(program.seed, number)
    for layer, spec in zip(layers, parts.dense, strict=True):
        layer["activation"] = kind.activations.index(spec.activation)
        for name in ("w", "b")[: 1 + spec.bias]:
            layer[name], homes = next(params)
            layer[f"{name}_homes"][: len(homes)] = homes
            if not head["resident"]:
                layer[f"{name}_states"][: len(homes)] = homes
