"""What the kernel of a small network is told of it: records, and where everything lies in shared memory.

A layer's bias is the last row of its weights, for the last column of what it multiplies is 1. So it needs nothing of
its own: products add it, and make its gradient. Rows are filled up with zeros to an odd number of vectors (`tiles.py`),
and a batch to a multiple of DEPTH rows, whose gradients are 0.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np

from ...formulas import ACTIVATIONS, METRICS, OPTIMIZERS
from ...spec import DenseSpec, DropoutSpec
from ..runtime.compile import SIMULATED
from ..runtime.primitives import VECTOR
from ..runtime.records import offset
from ..training.program import Structure
from .tiles import DEPTH

LANES = 4 if SIMULATED else 32  # threads side by side in a row, one behind the other for rows
STATES = 3  # of a rule, at most

# The network. Places in shared memory are counted from its beginning, where HEAD and the layers lie themselves.
HEAD = np.dtype([
    ("layers", "i8"),
    ("bytes", "i8"),  # of shared memory
    ("resident", "i8"),  # whether states lie there as well
    ("batch", "i8"),  # rows of a batch
    ("total", "i8"),  # rows of a pass
    ("ring", "i8"),  # rows of x and y
    ("x", "i8"), ("y", "i8"),  # rows of features and of targets, or labels
    ("order", "i8"),  # of rows; 0: as they come
    ("scalars", "i8"),  # ROW bytes for each step
    ("clock", "i8"),
    ("losses", "i8"),  # a float64 for each batch
    ("sums", "i8"), ("metrics", "i8"),  # a float64 for each metric
    ("metric", "i8", (len(METRICS),)),  # which of the sums of the kernel's kind it is
    ("z_boundary", "f8"), ("t_boundary", "f8"), ("param", "f8"),  # of the loss
    ("targets", "i8"), ("gradient", "i8"), ("other", "i8"), ("rows", "i8"), ("totals", "i8"),  # in shared memory
    ("hyper", "i8"),
    ("scale", "f8"), ("threshold", "i8"), ("stream", "u8"),  # dropout of x; threshold 0: none
])  # fmt: skip

LAYER = np.dtype([
    ("inputs", "i8"), ("outputs", "i8"),
    ("x_gap", "i8"), ("gap", "i8"),  # bytes from row to row of x; of y, w and the gradients
    ("activation", "i8"),  # its place among those that the kernel knows
    ("before", "i8"),  # whether its slope is one of z
    ("plain", "i8"),  # whether its slope is 1, and nothing is dropped
    ("bias", "i8"),
    ("w", "i8"), ("b", "i8"),  # where they come from
    ("x", "i8"), ("weights", "i8"), ("y", "i8"), ("s", "i8"), ("dw", "i8"),  # in shared memory
    ("w_states", "i8", (STATES,)), ("b_states", "i8", (STATES,)),  # in shared memory if resident
    ("w_homes", "i8", (STATES,)), ("b_homes", "i8", (STATES,)),  # where they come from
    ("scale", "f8"), ("threshold", "i8"), ("stream", "u8"),  # dropout of y
])  # fmt: skip



def _offsets(kind: np.dtype[Any]) -> Any:
    """Of the fields of a record, by their names, as kernels can read them."""
    names = kind.names or ()
    make: Any = namedtuple  # of whose names mypy would know more
    return make("Offsets", names)(*[offset(kind, name) for name in names])


H, L = _offsets(HEAD), _offsets(LAYER)
FIRST, RECORD = HEAD.itemsize, LAYER.itemsize


def sum_of(metric: str) -> str:
    """The first metric with the same score: they share a sum."""
    return next(name for name, row in METRICS.items() if row.score is METRICS[metric].score)


class Kind(NamedTuple):
    """What the code of a kernel depends on."""

    rule: str  # a row of OPTIMIZERS
    activations: tuple[str, ...]
    loss: str
    labels: bool
    link: str | None
    metrics: tuple[str, ...]  # sorted; of metrics with the same score the first in METRICS
    dropout: bool
    dtype: str

    @property
    def name(self) -> str:
        parts = OPTIMIZERS[self.rule].rule.__name__, *self.activations, self.loss, *self.metrics
        return "_".join(["fused", *parts, *["dropout"] * self.dropout, str(self.link), self.dtype])

    @property
    def threads(self) -> int:
        """Of the block: as many as its multiprocessor has registers for."""
        if SIMULATED:
            return 8
        return 512 if self.dtype == "float32" else 256

    @property
    def registers(self) -> int:
        """That a thread may have. There are 65536, and a thread has 255 at most."""
        return min(65536 // self.threads, 255)


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


def placed(kind: Kind, parts: Parts, batch: int, most: int) -> np.ndarray | None:
    """HEAD and the LAYERs in one array of bytes, with sizes and places in shared memory of at most so many bytes.

    None where that is too little. States lie there if there is room for them.
    """
    size, rows, dense = np.dtype(kind.dtype).itemsize, filled(batch), parts.dense
    words = np.zeros(HEAD.itemsize + len(dense) * LAYER.itemsize, np.uint8)
    head, layers = views(words)
    room = Room(words.nbytes)
    x_gap = gap(dense[0].inputs, size)
    x = room.take(rows * x_gap)
    for layer, spec, dropout in zip(layers, dense, parts.dropouts[1:], strict=True):
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
    head["targets"] = room.take(batch * 8 if kind.labels else rows * x_gap)
    head["gradient"], head["other"] = (room.take(rows * widest) for _ in range(2))
    head["rows"], head["totals"] = room.take(3 * batch * size), room.take(kind.threads * 8)
    head["hyper"] = room.take(16 * size)
    if room.end + VECTOR > most:
        return None
    beside = Room(room.end)
    for layer, spec in zip(layers, dense, strict=True):
        for i in range(len(OPTIMIZERS[kind.rule].states)):
            layer["w_states"][i] = beside.take(spec.inputs * spec.outputs * size)
            layer["b_states"][i] = beside.take(spec.outputs * size)
    head["resident"] = beside.end + VECTOR <= most
    head["bytes"] = beside.end if head["resident"] else room.end
    head["layers"], head["batch"] = len(dense), batch
    return words


def views(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HEAD and the LAYERs of such an array."""
    return words[: HEAD.itemsize].view(HEAD)[0], words[HEAD.itemsize :].view(LAYER)
