"""Records of the one-block kernel, and the layout of a network in shared memory.

A layer's bias is the last row of its weights, for the last column of the layer's input is 1. So products add it and
make its gradient. Rows are filled up with zeros to an odd number of vectors (`tiles.py`), and a batch to a multiple of
DEPTH rows, whose gradients are 0.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np

from ...formulas import ACTIVATIONS, METRICS, OPTIMIZERS
from ...spec import DenseSpec, DropoutSpec
from ..dense.stored import Layout
from ..dense.structure import Structure
from ..runtime.compile import SIMULATED
from ..runtime.primitives import VECTOR
from ..runtime.records import offset
from .tiles import DEPTH

COLUMN_LANES = 4 if SIMULATED else 32  # threads side by side along a row; the others take other rows
STATES = 3  # largest number of states of a rule

# The network. Offsets count from the beginning of shared memory, where HEAD and the layers lie themselves.
HEAD = np.dtype([
    ("num_layers", "i8"),
    ("shared_bytes", "i8"),
    ("states_resident", "i8"),  # 1: states lie in shared memory, too
    ("batch_rows", "i8"),
    ("pass_rows", "i8"),
    ("ring_rows", "i8"),  # rows of x and y on the device
    ("x", "i8"), ("y", "i8"),  # addresses of features and of targets, or labels
    ("stages", "i8"),  # address of the factors and terms that prepare features
    ("order", "i8"),  # address of row numbers; 0: rows in the order of x
    ("scalars", "i8"),  # address of ROW bytes for each step
    ("clock", "i8"),
    ("losses", "i8"),  # address of a float64 for each batch
    ("metric_sums", "i8"),  # address of a float64 for each metric
    ("num_metrics", "i8"), ("metric_kinds", "i8", (len(METRICS),)),  # index of each metric in Kind.metrics
    ("z_boundary", "f8"), ("t_boundary", "f8"), ("param", "f8"),  # of the loss
    # offsets in shared memory
    ("targets", "i8"), ("gradient", "i8"), ("other_gradient", "i8"), ("row_values", "i8"), ("thread_sums", "i8"),
    ("step_scalars", "i8"),
    ("scale", "f8"), ("threshold", "i8"), ("stream", "u8"),  # dropout of x; threshold 0: none
])  # fmt: skip

LAYER = np.dtype([
    ("inputs", "i8"), ("outputs", "i8"),
    ("x_stride", "i8"), ("row_stride", "i8"),  # bytes from row to row of x; of y, w and the gradients
    ("activation", "i8"),  # index among the kernel's activations
    ("slope_of_z", "i8"),  # 1: the slope is computed from z, 0: from y
    ("skips_slopes", "i8"),  # 1: the slope is 1 and nothing is dropped
    ("bias", "i8"),
    ("w", "i8"), ("b", "i8"),  # addresses of the parameters
    ("x", "i8"), ("weights", "i8"), ("y", "i8"), ("saved", "i8"), ("dw", "i8"),  # offsets in shared memory
    ("w_states", "i8", (STATES,)), ("b_states", "i8", (STATES,)),  # offsets if resident, else addresses
    ("w_state_addresses", "i8", (STATES,)), ("b_state_addresses", "i8", (STATES,)),
    ("scale", "f8"), ("threshold", "i8"), ("stream", "u8"),  # dropout of y; threshold 0: none
])  # fmt: skip


def _offsets(record: np.dtype[Any]) -> Any:
    """Offsets of a record's fields by name, as constants of a kernel."""
    names = record.names or ()
    make: Any = namedtuple  # mypy wants literal names
    return make("Offsets", names)(*[offset(record, name) for name in names])


H, L = _offsets(HEAD), _offsets(LAYER)
FIRST, RECORD = HEAD.itemsize, LAYER.itemsize


def sum_of(metric: str) -> str:
    """The first row of METRICS with the same score: they share a sum. A metric that is no row has its own."""
    return next((name for name, row in METRICS.items() if row.score is METRICS[metric].score), metric)


class Kind(NamedTuple):
    """Properties of a network that the kernel's code depends on."""

    rule: str  # a row of OPTIMIZERS
    activations: tuple[str, ...]
    loss: str
    labels: bool
    link: str | None
    metrics: tuple[str, ...]  # sorted; metrics with the same score are one, the first in METRICS
    dropout: bool
    dtype: str
    x: Layout | None = None  # of features; None: they are of the dtype

    @property
    def name(self) -> str:
        words = OPTIMIZERS[self.rule].rule.__name__, *self.activations, self.loss, *self.metrics
        of_x = [] if self.x is None else [self.x.name]
        return "_".join(["fused", *words, *["dropout"] * self.dropout, str(self.link), *of_x, self.dtype])

    @property
    def threads(self) -> int:
        """Threads of the block: as many as its multiprocessor has registers for."""
        if SIMULATED:
            return 8
        return 512 if self.dtype == "float32" else 256

    @property
    def registers(self) -> int:
        """Register limit per thread: a multiprocessor has 65536, and a thread 255 at most."""
        return min(65536 // self.threads, 255)


def padded_to_depth(count: int) -> int:
    """Rows or columns after padding with zeros to a multiple of DEPTH."""
    return -(-count // DEPTH) * DEPTH


def row_stride(columns: int, size: int) -> int:
    """Bytes from row to row of so many columns and the column of ones: an odd number of vectors, for the banks."""
    return (padded_to_depth(columns + 1) // DEPTH | 1) * DEPTH * size


class FusedLayers(NamedTuple):
    """Dense layers of a network, with at most one dropout between two of them."""

    dense: list[DenseSpec]
    dropouts: list[tuple[int, float] | None]  # (index among all layers, rate), before the first and after each


def fused_layers(net: Structure) -> FusedLayers | None:
    """The layers of a network; None where two dropouts follow one another, or others are among them."""
    dropouts: list[tuple[int, float] | None] = [None]
    for i, layer in enumerate(net.layers):
        if isinstance(layer, DenseSpec):
            dropouts.append(None)
        elif not isinstance(layer, DropoutSpec):
            return None
        elif layer.rate:
            if dropouts[-1]:
                return None
            dropouts[-1] = i, layer.rate
    return FusedLayers(net.dense, dropouts)


class SharedMemory:
    """Offsets in shared memory, handed out one after the other."""

    def __init__(self, first: int) -> None:
        self.end = -(-first // VECTOR) * VECTOR

    def reserve(self, size: int) -> int:
        """The offset of `size` bytes, a multiple of VECTOR."""
        start = self.end
        self.end += -(-size // VECTOR) * VECTOR
        return start


def lay_out(kind: Kind, parts: FusedLayers, batch: int, max_bytes: int) -> np.ndarray | None:
    """HEAD and the LAYERs as one array of bytes, with sizes and offsets in at most `max_bytes` of shared memory.

    None where that is too little. States lie in shared memory if they fit.
    """
    size, rows, dense = np.dtype(kind.dtype).itemsize, padded_to_depth(batch), parts.dense
    records = np.zeros(HEAD.itemsize + len(dense) * LAYER.itemsize, np.uint8)
    head, layers = split_records(records)
    memory = SharedMemory(records.nbytes)
    x_stride = row_stride(dense[0].inputs, size)
    x = memory.reserve(rows * x_stride)
    # Parameters, their gradients and activations, layer by layer.
    for layer, spec, dropout in zip(layers, dense, parts.dropouts[1:], strict=True):
        y_stride, slope_of_z = row_stride(spec.outputs, size), ACTIVATIONS[spec.activation].uses == "z"
        layer["inputs"], layer["outputs"], layer["bias"] = spec.inputs, spec.outputs, spec.bias
        layer["x"], layer["x_stride"], layer["row_stride"] = x, x_stride, y_stride
        layer["slope_of_z"], layer["skips_slopes"] = slope_of_z, spec.activation == "linear" and not dropout
        for name in ("weights", "dw"):
            layer[name] = memory.reserve(padded_to_depth(spec.inputs + 1) * y_stride)
        layer["y"] = x = memory.reserve(rows * y_stride)
        layer["saved"] = memory.reserve(rows * y_stride) if slope_of_z or dropout else x
        x_stride = y_stride
    # The batch's targets, two gradients of activations, and workspaces.
    widest = int(max(layers["row_stride"]))
    head["targets"] = memory.reserve(batch * 8 if kind.labels else rows * x_stride)
    head["gradient"], head["other_gradient"] = (memory.reserve(rows * widest) for _ in range(2))
    head["row_values"], head["thread_sums"] = memory.reserve(3 * batch * size), memory.reserve(kind.threads * 8)
    head["step_scalars"] = memory.reserve(16 * size)
    if memory.end + VECTOR > max_bytes:
        return None
    # States, if they fit behind all that.
    with_states = SharedMemory(memory.end)
    for layer, spec in zip(layers, dense, strict=True):
        for i in range(len(OPTIMIZERS[kind.rule].states)):
            layer["w_states"][i] = with_states.reserve(spec.inputs * spec.outputs * size)
            layer["b_states"][i] = with_states.reserve(spec.outputs * size)
    head["states_resident"] = with_states.end + VECTOR <= max_bytes
    head["shared_bytes"] = with_states.end if head["states_resident"] else memory.end
    head["num_layers"], head["batch_rows"] = len(dense), batch
    return records


def split_records(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HEAD and the LAYERs of such an array, as views."""
    return records[: HEAD.itemsize].view(HEAD)[0], records[HEAD.itemsize :].view(LAYER)
