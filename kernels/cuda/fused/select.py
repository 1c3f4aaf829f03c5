"""Whether a pass that trains is one kernel (`fused.py`), by what it would cost, and what that kernel is given.

FASTOPT_CUDA_FUSED: 1 wherever it can be done, 0 never. Otherwise by `worth`, which is an estimate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ...formulas import LOSSES, OPTIMIZERS, dropout_stream
from ..runtime.primitives import VECTOR
from ..training.passes import Pass
from ..training.program import Structure
from .kernel import fused_kernel
from .layout import Kind, Parts, parts_of, placed, sum_of, views

# What is counted on for `worth`: estimates from counts of clocks and instructions, NOT measured on any GPU.
FLOPS = 1e11  # a second: a multiprocessor does 0.4e12 at most, and threads of small products wait for each other
PHASE = 0.2e-6  # seconds: a meeting, and what every phase begins with, are some 300 clocks
ELEMENT = 0.4e-9  # seconds: a parameter's update, with a root and a division, by one thread of 512
BYTES = 5e10  # a second, of states that do not fit into shared memory
LAUNCH = 2.5e-6  # seconds: a small kernel in a CUDA graph, until the next one may begin
MARGIN = 0.5  # of the graph's time is what it may take, for all of these are rough


def worth(net: Structure, parts: Parts, batch: int, states_beside: int) -> bool:
    """Whether the kernel is likely to take MARGIN of the graph's time, or less. Estimated, not measured.

    states_beside: bytes of states that stay in the device's memory.
    """
    dense, dropouts = parts.dense, sum(map(bool, parts.dropouts))
    products = [2 * batch * spec.inputs * spec.outputs for spec in dense]
    flops, phases = 3 * sum(products) - products[0], 6 + 4 * len(dense)
    ours = flops / FLOPS + phases * PHASE + _elements(parts) * ELEMENT + 2 * states_beside / BYTES
    # gather (2), loss, update, finish; of a layer its product with its epilogue, slopes, dw, and but for one dx
    launches = 5 + len(net.metrics) + 4 * len(dense) - 1 + 2 * dropouts
    return ours <= MARGIN * LAUNCH * launches


def _elements(parts: Parts) -> int:
    """Of all parameters."""
    return sum((spec.inputs + spec.bias) * spec.outputs for spec in parts.dense)


class Choice(NamedTuple):
    """What is to be made."""

    kind: Kind
    parts: Parts
    words: np.ndarray  # HEAD and LAYERs, so far with sizes and places in shared memory


class Fused:
    """The kernel with what it works on."""

    def __init__(self, running: Pass, choice: Choice) -> None:
        program, words = running.program, choice.words
        self.gpu, self.stream, self.rule = program.gpu, program.stream, choice.kind.rule
        self.kernel, self.threads = fused_kernel(choice.kind), choice.kind.threads
        self.shared = int(views(words)[0]["bytes"]) + VECTOR  # which may begin anywhere
        self.memory = self.gpu.allocate(words.nbytes)
        self.gpu.copy_in(self.memory.address, words, self.stream)

    def __call__(self, chunk: range) -> None:
        """The launch for these batches, which follow those of the launch before."""
        self.gpu.launch_alone(self.kernel, self.threads, self.shared, self.stream, self.memory.address, len(chunk))


def chosen(net: Structure, rule: str, labels: bool, batch: int, most: int) -> Choice | None:
    """None where it cannot be done in so many bytes of shared memory, or is not wanted, or not worth it."""
    wish, parts = os.environ.get("FASTOPT_CUDA_FUSED"), parts_of(net)
    other = net.tf32 or net.compute != net.dtype or any(columns != (0, net.outputs) for _, columns in net.sums)
    if wish == "0" or parts is None or other:
        return None
    kind = kind_of(net, parts, rule, labels)
    words = placed(kind, parts, batch, most)
    if words is None or (wish != "1" and not worth(net, parts, batch, _states_beside(kind, parts, words))):
        return None
    return Choice(kind, parts, words)


def fused_training(running: Pass, rule: str, states: Sequence[Sequence[int]], scalars: int) -> Fused | None:
    """The kernel for a pass whose batches are steps by themselves, where that is chosen.

    states: addresses of those of each parameter; scalars: of ROW bytes for each step.
    """
    program, (_, y) = running.program, running.arrays
    assert y is not None
    labels = y.ndim == 1 and y.dtype == np.int64
    choice = chosen(program.net, rule, labels, program.batch, program.gpu.shared_bytes)
    if choice is None:
        return None
    _fill(choice, running, states, scalars)
    return Fused(running, choice)


def _states_beside(kind: Kind, parts: Parts, words: np.ndarray) -> int:
    """Bytes of states that are not in shared memory."""
    if views(words)[0]["resident"]:
        return 0
    return len(OPTIMIZERS[kind.rule].states) * _elements(parts) * np.dtype(kind.dtype).itemsize


def kind_of(net: Structure, parts: Parts, rule: str, labels: bool) -> Kind:
    """The kernel that trains such networks."""
    assert net.loss is not None
    activations = tuple(sorted({spec.activation for spec in parts.dense}))
    metrics = tuple(sorted({sum_of(name) for name in net.metrics}))
    return Kind(rule, activations, net.loss.name, labels, net.link, metrics, any(parts.dropouts), net.dtype)


def _fill(choice: Choice, running: Pass, states: Sequence[Sequence[int]], scalars: int) -> None:
    """Writes all but sizes and places in shared memory."""
    kind, parts, words = choice
    program, (head, layers) = running.program, views(words)
    net, loss, params = program.net, LOSSES[kind.loss], iter(zip(program.params, states, strict=True))
    assert net.loss is not None
    head["total"], head["ring"], head["order"] = running.rows, running.feed.ring, running.order
    head["x"], head["y"], head["scalars"] = running.feed.x, running.feed.y, scalars
    head["clock"] = program.clock.address
    head["losses"], head["sums"], head["metrics"] = running.losses, running.results.address, len(net.metrics)
    head["metric"][: len(net.metrics)] = [kind.metrics.index(sum_of(name)) for name in net.metrics]
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
