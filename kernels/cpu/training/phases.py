"""Phases in order, and the memory that they work on: what a program is made of.

`program` adds to it what a pass needs; `forward`, `loss_and_metrics` and `backward` add the phases of a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...profile import Cost
from ...spec import DenseSpec, LayerSpec, LossSpec, dense_layers
from ..runtime.compile import Kernel
from ..runtime.primitives import address_of, aligned_zeros
from ..runtime.records import RUN, fill, words_of
from ..runtime.teams import yield_address
from .row_weights import RowWeights


class Structure(NamedTuple):
    """A network without data. Its outputs are logits where a `link`, the activation that the loss undoes, follows."""

    layers: Sequence[LayerSpec]
    params: Sequence[np.ndarray]  # [w0, b0, w1, b1, ...], without b where a layer has none
    dtype: str
    loss: LossSpec | None
    metrics: Sequence[str]
    link: str | None
    compute: str  # the dtype that layers compute in
    # of codes, by their ids: these packed, and what sums start from (see `quantized`)
    packed: dict[int, tuple[np.ndarray, np.ndarray]]

    @property
    def dense(self) -> list[DenseSpec]:
        return dense_layers(self.layers)

    @property
    def inputs(self) -> int:
        return self.dense[0].inputs

    @property
    def outputs(self) -> int:
        return self.dense[-1].outputs

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def loss_spec(self) -> LossSpec:
        assert self.loss is not None
        return self.loss


class PhaseList:
    """Phases in order, and the memory that they work on."""

    num_ranks = 1  # at most: there is scratch memory for so many
    row_weights: RowWeights | None = None  # None: rows have none
    needs_weight = False  # the phases that are added are left out in steps whose weights sum to 0

    def __init__(self, net: Structure, verb: str, batch_size: int) -> None:
        self.net, self.verb, self.batch_size = net, verb, batch_size
        self.run = fill(RUN, batch_size=batch_size, yield_cpu=yield_address())
        self.address, self.words = address_of(self.run), words_of(self.run)
        self.phases: list[tuple[int, int, int]] = []  # as RUN has them
        self.costs: list[Cost] = []  # of the phases
        self.kept: list[Any] = []  # memory that records point to
        self.num_bytes = 0  # of the arrays between phases
        self.sparse: dict[int, Any] = {}  # the layers, by index, that are multiplied sparsely

    def add(
        self, kernel: Kernel, record: np.ndarray, barrier: bool, cost: Cost | None = None,
        otherwise: Kernel | None = None,
    ) -> None:  # fmt: skip
        """Add a phase; barrier: all ranks meet after it. otherwise: its part that steps without weight do, too."""
        cost = cost or Cost(kernel.name)
        if self.row_weights and self.needs_weight:
            kernel, record = self.row_weights.weighed(kernel, record, otherwise)
        self.kept.append(record)
        self.phases.append((kernel.address, address_of(record), int(barrier)))
        self.costs.append(cost)

    def meet(self) -> None:
        """Let all ranks meet after the last phase so far, if there is one."""
        if self.phases:
            self.phases[-1] = (*self.phases[-1][:2], 1)

    def zeros(self, *shape: int) -> np.ndarray:
        """An array of the network's dtype that lives as long as the program."""
        array = aligned_zeros(int(np.prod(shape)), self.net.dtype).reshape(shape)
        self.kept.append(array)
        self.num_bytes += array.nbytes
        return array
