"""Description of a network as the GPU's wings read it: layers, dtypes, loss and metrics, without data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ...formulas import LOSSES
from ...metrics import Columns, Variation, has_counts, num_counts, sums_of
from ...spec import MOVING, DenseSpec, LayerSpec, LossSpec, dense_layers, parameter_shapes
from .products import Needs


class Structure(NamedTuple):
    """A network without its data. The last activation is linear if `link` follows."""

    layers: Sequence[LayerSpec]
    dtype: str  # of parameters, data and outputs
    compute: str  # dtype of the arrays between layers
    loss: LossSpec | None
    metrics: Sequence[str]
    link: str | None
    fused: Collection[str] | None = None  # activations that may be epilogues of products; None: those that are exact
    tf32: bool = False  # True: products may round their operands
    variation: Variation | None = None  # of the targets of a pass, where r2 is among the metrics
    updated: Sequence[bool] = ()  # for each parameter: True if training updates it; (): all are

    fixed: Collection[int] = ()  # indices of BatchNorms that go by their averages in training, too

    @property
    def dense(self) -> list[DenseSpec]:
        return dense_layers(self.layers)

    @property
    def needs(self) -> list[Needs]:
        """Gradients that training computes, of each dense layer."""
        needs, below = [], False
        for layer, of_params in zip(self.layers, self.updated_by_layer, strict=True):
            if isinstance(layer, DenseSpec):
                needs.append(Needs(of_params[0], layer.bias and of_params[1], below))
            below = below or any(of_params)
        return needs

    @property
    def updated_by_layer(self) -> list[list[bool]]:
        """For each layer, True for each of its parameters that is updated."""
        names = [list(parameter_shapes(layer)) for layer in self.layers]
        updated = iter(self.updated or [name not in MOVING for some in names for name in some])
        return [[next(updated) for _ in some] for some in names]

    @property
    def inputs(self) -> int:
        return self.dense[0].inputs

    @property
    def outputs(self) -> int:
        return self.dense[-1].outputs

    @property
    def sums(self) -> list[tuple[str, Columns]]:
        """Sums that metrics are made from: (metric, columns); those of classes follow them."""
        return sums_of(self.metrics, self.outputs, self.variation)

    @property
    def num_counts(self) -> int:
        """Number of counts of classes, which some metrics are made from."""
        if self.loss is None or not has_counts(self.metrics):
            return 0
        return num_counts(self.outputs, LOSSES[self.loss.name].hits_by_output(self.outputs))

    @property
    def num_sums(self) -> int:
        """Number of sums of a pass beside the losses."""
        return len(self.sums) + self.num_counts
