"""Phases of dense layers whose weights are mostly zero, in passes that update nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...spec import ActivationSpec, DenseSpec, DropoutSpec, GaussianNoiseSpec, LayerSpec, parameter_shapes
from ..dense.layer import activate_kernel
from ..dense.sparse import CHUNK, available, scratch_bytes, sparse_kernel, strip_rows
from ..dense.sparse_entries import Entries, entries_of
from ..runtime.partition import num_pieces
from ..runtime.primitives import aligned_zeros
from ..runtime.records import SPARSE, fill
from .phases import PhaseList, Structure

# The largest share of weights that is left where a layer is multiplied sparsely, from so many rows of a pass on. On one
# thread and two of a Zen 5, 784-1024-1024-10 took 0.64 of the time of dense products at 64 rows and 10 %, 0.85 at 128
# and 20 %, 0.67 at 256 and 20 %, 0.45 at 256 and 10 %, 0.7 at 1,024 and 30 %; two threads for 64 rows of 784-256-128-10
# and 20 % took 1.19.
MOST_LEFT = {1024: 0.3, 256: 0.25, 128: 0.2, 64: 0.12}
WEIGHTS = 4096  # fewest of a layer
BATCH = 256  # most rows of a batch of such a pass: the packed rows of several layers stay in the second-level cache


class SparseLayer(NamedTuple):
    """A layer that is multiplied sparsely."""

    spec: DenseSpec
    fields: dict[str, Any]  # of its record
    left: int  # weights that its mask leaves


class SparseChoice:
    """The layers of a network that are multiplied sparsely, and the entries of each, made when they are needed.

    masks: of each parameter of the network.
    """

    def __init__(self, net: Structure, masks: Sequence[np.ndarray | None]) -> None:
        self._masks: dict[int, tuple[np.ndarray, float]] = {}  # with the share that is left: later it may be less
        self._entries: dict[int, Entries] = {}
        self._itemsize, first = net.itemsize, 0
        can = net.compute == net.dtype and available()
        for i, layer in enumerate(net.layers if can else ()):
            mask = masks[first] if isinstance(layer, DenseSpec) else None
            if mask is not None and WEIGHTS <= mask.size < 1 << 31:
                self._masks[i] = mask, np.count_nonzero(mask) / mask.size
            first += len(parameter_shapes(layer))

    def layers(self, rows: int) -> dict[int, Entries]:
        """The entries of layers, by their index, for a pass over so many rows."""
        most = next((share for least, share in MOST_LEFT.items() if rows >= least), 0.0)
        return {i: self._entries_of(i) for i, (_, left) in self._masks.items() if left <= most}

    def _entries_of(self, i: int) -> Entries:
        if i not in self._entries:
            self._entries[i] = entries_of(self._masks[i][0], self._itemsize)
        return self._entries[i]


def add_builds(program: PhaseList, layers: Mapping[int, Entries]) -> None:
    """Add the phases that read the weights of these layers, which run once a pass; the first phases of a program."""
    if not layers:
        return
    net, first = program.net, 0
    for i, layer in enumerate(net.layers):
        if i in layers:
            assert isinstance(layer, DenseSpec)
            bias = net.params[first + 1] if layer.bias else None
            sparse = _sparse_layer(program, layer, net.params[first], bias, layers[i])
            program.sparse[i] = sparse
            record, cost = fill(SPARSE, **sparse.fields), costs.sparse_build(*layer[:2], sparse.left, net.itemsize)
            program.add(sparse_kernel("build", net.dtype), record, barrier=False, cost=cost)
        first += len(parameter_shapes(layer))
    program.meet()
    program.run["epoch_phases"] = len(program.phases)


def _sparse_layer(
    program: PhaseList, layer: DenseSpec, w: np.ndarray, b: np.ndarray | None, entries: Entries
) -> SparseLayer:
    """A layer, with entries whose weights are those of this program."""
    chunks, itemsize = num_pieces(layer.outputs, CHUNK), program.net.itemsize
    bytes_of_rank = -(-scratch_bytes(itemsize) // 64) * 64
    own = aligned_zeros(entries.template.size, entries.template.dtype)
    own[:] = entries.template
    fields = {
        "run": program.run, "w": w, "b": b, "inputs": layer.inputs, "outputs": layer.outputs, "block": entries.block,
        "room": entries.room, "entries": own, "starts": entries.starts, "places": entries.places,
        "source": entries.source, "target": entries.target, "fits": np.zeros(chunks, np.int64),
        "scratch": aligned_zeros(program.num_ranks * bytes_of_rank, np.uint8), "scratch_bytes": bytes_of_rank,
    }  # fmt: skip
    program.kept.append(fields)
    program.num_bytes += own.nbytes
    return SparseLayer(layer, fields, len(entries.source))


def _strips(program: PhaseList, columns: int) -> np.ndarray:
    """Memory for a packed batch."""
    rows = strip_rows(program.net.itemsize)
    return program.zeros(num_pieces(program.batch_size, rows), columns, rows)


def add_sparse(
    program: PhaseList, sparse: SparseLayer, activation: str, x: np.ndarray, stays_packed: bool
) -> np.ndarray:
    """Add the phases of a layer; return its outputs, which stay packed for a next sparse layer.

    x: (rows, inputs), or packed by the layer before: (strips, inputs, rows of a strip).
    """
    net, layer = program.net, sparse.spec
    fields = dict(sparse.fields)
    if x.ndim == 2:
        fields |= {"rows_x": x, "x": _strips(program, layer.inputs)}
        cost = costs.repack("pack", layer.inputs, net.itemsize)
        program.add(sparse_kernel("pack", net.dtype), fill(SPARSE, **fields), barrier=True, cost=cost)
    else:
        fields["x"] = x
    fields |= {"y": _strips(program, layer.outputs), "activate": activate_kernel(activation, net.dtype).address}
    cost = costs.sparse_forward(*layer[:2], sparse.left, activation, layer.bias, net.itemsize)
    program.add(sparse_kernel("forward", net.dtype), fill(SPARSE, **fields), barrier=True, cost=cost)
    if stays_packed:
        packed: np.ndarray = fields["y"]
        return packed
    y = program.zeros(program.batch_size, layer.outputs)
    cost = costs.repack("unpack", layer.outputs, net.itemsize)
    program.add(sparse_kernel("unpack", net.dtype), fill(SPARSE, **fields, rows_y=y), barrier=True, cost=cost)
    return y


def precedes_sparse(program: PhaseList, i: int) -> bool:
    """True if the next layer after layer i that does something, where nothing is trained, is a sparse one."""
    for j, layer in enumerate(program.net.layers[i + 1 :], i + 1):
        if not _does_nothing(layer):
            return j in program.sparse
    return False


def _does_nothing(layer: LayerSpec) -> bool:
    if isinstance(layer, ActivationSpec):
        return layer.activation == "linear"
    return isinstance(layer, DropoutSpec | GaussianNoiseSpec)
