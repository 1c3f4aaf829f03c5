"""Phases of normalization in the program of a batch: forward, and backward with the updates of gamma and beta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ... import costs
from ...spec import BatchNormSpec, LayerNormSpec
from ..dense.normalization import ROWS, SCRATCH_BYTES, normalization_kernel
from ..runtime.partition import num_pieces
from ..runtime.primitives import aligned_zeros
from ..runtime.records import NORMALIZATION, fill
from .after_step import AfterUpdates
from .phases import PhaseList


class Normalized(NamedTuple):
    """A normalization of the forward pass, saved for backward."""

    x: np.ndarray
    y: np.ndarray
    spec: LayerNormSpec | BatchNormSpec
    compute: str
    by_batch: bool  # normalized by the batch, not by the moving averages
    fields: dict[str, Any]  # of its record


def add_forward(
    program: PhaseList, spec: LayerNormSpec | BatchNormSpec, x: np.ndarray, params: Mapping[str, np.ndarray],
    compute: str, by_batch: bool,
) -> Normalized:  # fmt: skip
    """Add y = gamma (x - mean) / sqrt(variance + epsilon) + beta; params: by name. Barrier: y is read by all ranks.

    by_batch: columns are normalized by the batch, which moves the averages, else by those.
    """
    by_columns = isinstance(spec, BatchNormSpec)
    y, count = program.zeros(*x.shape), spec.columns if by_columns else program.batch_size
    scratch = aligned_zeros(program.num_ranks * SCRATCH_BYTES, np.uint8)
    fields: dict[str, Any] = {
        "run": program.run, "x": x, "y": y, "columns": spec.columns, "epsilon": spec.epsilon, "scratch": scratch,
        "scratch_bytes": SCRATCH_BYTES, "means": aligned_zeros(count, np.float64),
        "inverses": aligned_zeros(count, np.float64), **params,
    }  # fmt: skip
    name = "layer_norm"
    if isinstance(spec, BatchNormSpec):
        name = "batch_norm" if by_batch else "batch_norm_moving"
        fields |= {"momentum": spec.momentum, "weights": program.row_weights and program.row_weights.record}
    program.kept.append(fields)
    cost = costs.normalization(name, spec.columns, len(params), *[program.net.itemsize] * 2)
    program.add(normalization_kernel(name, compute), fill(NORMALIZATION, **fields), barrier=True, cost=cost)
    return Normalized(x, y, spec, compute, by_batch, fields)


def add_backward(
    program: PhaseList, saved: Normalized, dy: np.ndarray, needs_dx: bool, gradients: Mapping[str, Any],
    rule: str | None, same_columns: bool, after: AfterUpdates,
) -> None:  # fmt: skip
    """Add dx, in the place of dy, and the gradients of gamma and beta, with their updates if there is a `rule`.

    gradients: fields of the record that say where these go; after: the work after the updates. same_columns: the next
    phase works on the same columns on each rank, as `slopes` does, and needs no barrier behind one on columns.
    """
    columns, itemsize = saved.spec.columns, program.net.itemsize
    num_gradients = sum(gradients.get(name) is not None for name in ("dgamma", "dbeta"))
    num_updates = sum(bool(gradients.get(name)) for name in ("update_gamma", "update_beta"))
    fields = {**saved.fields, **gradients, "dy": dy, "needs_dx": int(needs_dx)}
    ends_backward = rule is None and not needs_dx
    if isinstance(saved.spec, BatchNormSpec) and not saved.by_batch:
        cost = costs.normalization_gradients("batch_norm backward", columns, 2, 0, 0, None, itemsize, itemsize)
        record = fill(NORMALIZATION, **fields)
        program.add(normalization_kernel("batch_norm_fixed_backward", saved.compute), record, not same_columns, cost)
        return
    if isinstance(saved.spec, BatchNormSpec):
        barrier = ends_backward or (needs_dx and not same_columns)
        cost = costs.normalization_gradients(
            "batch_norm backward", columns, 3 if needs_dx else 2, num_gradients, num_updates, rule, itemsize, itemsize
        )
        cost = after.cost_of_update(cost, num_updates * columns)
        record = fill(NORMALIZATION, **fields)
        program.add(normalization_kernel("batch_norm_backward", saved.compute), record, barrier, cost)
        return
    sums = aligned_zeros(num_pieces(program.batch_size, ROWS) * 2 * columns, np.float64)
    program.kept.append(sums)
    record = fill(NORMALIZATION, sums=sums, **fields)
    cost = costs.normalization_gradients(
        "layer_norm backward", columns, 3 if needs_dx else 2, 0, 0, None, itemsize, itemsize
    )
    program.add(normalization_kernel("layer_norm_backward", saved.compute), record, True, cost)
    if num_gradients or num_updates:
        cost = costs.normalization_gradients(
            "layer_norm gradients", columns, 0, num_gradients, num_updates, rule, itemsize, itemsize
        )
        cost = after.cost_of_update(cost, num_updates * columns)
        program.add(normalization_kernel("layer_norm_gradients", saved.compute), record, ends_backward, cost)
