"""Phases of the gradients, last layer first, and of the updates that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import costs
from ...spec import parameter_shapes
from ..dense.layer import dense_kernel, num_weight_tiles, round_kernel, slope_kernel, weight_tiles_down
from ..dense.rows import rows_kernel
from ..runtime.partition import num_pieces
from ..runtime.primitives import address_of, aligned_zeros
from ..runtime.records import DENSE, DROPOUT, fill
from .activation import Activated, add_slopes
from .after_step import AfterUpdates
from .forward import Saved, SavedDense, SavedDropout
from .normalization import Normalized, add_backward
from .optimizer_step import OptimizerStep
from .penalties import Penalties
from .phases import PhaseList


def add_gradients(
    program: PhaseList, saved_for_backward: list[Saved], output_gradient: np.ndarray, rule: str,
    states: Sequence[tuple[np.ndarray, ...] | None], scalars: np.ndarray, rows: Sequence[int],
    optimizer_step: OptimizerStep | None, after: AfterUpdates, penalties: Penalties | None = None,
) -> None:  # fmt: skip
    """Add the gradients, last layer first, and the updates: each with its gradient, or all in `optimizer_step`.

    There is nothing below the lowest layer with a parameter that is updated: one whose states are not None.
    scalars: (steps, settings, NUM_SCALARS + 1); rows: index among the settings of each parameter.
    """
    net, dy, end = program.net, output_gradient, len(program.net.params)
    scratch_bytes = max(saved.fields["scratch_bytes"] for saved in saved_for_backward if isinstance(saved, SavedDense))
    scratch = aligned_zeros(program.num_ranks * scratch_bytes, np.uint8)
    tables = [np.array(after.state_words(i, arrays or ()), np.int64) for i, arrays in enumerate(states)]
    row_scalars = [scalars[0, row] for row in rows]
    program.kept += [scratch, tables, scalars, states]
    updates = [after.update_code(rule, i) for i in range(len(states))]
    program.needs_weight = True
    col_sums: np.ndarray | None = None  # of the layer's dz, if the layer above makes it
    lowest = _lowest_updated(saved_for_backward, states)
    for i, saved in reversed(list(enumerate(saved_for_backward))):
        if i < lowest:
            break
        needs_dx, below = i > lowest, saved_for_backward[i - 1] if i else None
        if isinstance(saved, Activated):  # dx takes the place of dy
            add_slopes(program, saved, dy)
            continue
        if isinstance(saved, Normalized):  # dx takes the place of dy
            names = list(parameter_shapes(saved.spec))
            end -= len(names)
            own = {name: end + k for k, name in enumerate(names) if states[end + k] is not None}
            into: dict[str, Any] = {}
            if optimizer_step:
                into |= {f"d{name}": optimizer_step.gradients[k] for name, k in own.items()}
                into |= {"alpha_beta": optimizer_step.alpha_beta}
            else:
                for name, k in own.items():
                    into |= {f"update_{name}": updates[k], f"{name}_states": tables[k]}
                    into |= {f"{name}_scalars": row_scalars[k], "scalars_row_bytes": scalars.strides[0]}
            add_backward(
                program, saved, dy, needs_dx, into, None if optimizer_step else rule,
                isinstance(below, SavedDense), after,
            )  # fmt: skip
            if optimizer_step:
                optimizer_step.end_layer(program, end)
            continue
        dx = program.zeros(*saved.x.shape) if needs_dx else None
        if isinstance(saved, SavedDense):
            # where the gradients of w and b go: into memory, or straight into the update
            bias = saved.spec.bias
            end -= 1 + bias
            updates_w, updates_b = states[end] is not None, bias and states[end + 1] is not None
            into = {"num_splits": saved.fields["num_splits"] * updates_w}
            into |= {"b": saved.fields["b"] if updates_b else None}
            if optimizer_step:
                db = optimizer_step.gradients[end + 1] if bias else None
                into |= {"dw": optimizer_step.gradients[end], "db": db, "alpha_beta": optimizer_step.alpha_beta}
                into |= optimizer_step.tile_fields(end) if updates_w else {}
            else:
                into |= {"update": updates[end], "scalars_row_bytes": scalars.strides[0], "w_scalars": row_scalars[end]}
                into |= {"b_scalars": row_scalars[end + 1] if bias else None}
                into |= {"w_states": tables[end], "b_states": tables[end + 1] if bias else None}
                into |= after.fields_of_tiles(end, weight_tiles_down(saved.fields)) if updates_w else {}
            if penalties:
                into |= penalties.fields_of_tiles(end, num_weight_tiles(saved.fields))
            fields = {**saved.fields, **into, "scratch": scratch, "scratch_bytes": scratch_bytes}
            below = below if isinstance(below, SavedDense) else None
            fields["col_sums"] = col_sums
            own_rule, masked = None if optimizer_step else rule, after.masks[end] is not None
            col_sums = _add_dense(program, saved, dy, dx, below, fields, own_rule, after, masked)
            if optimizer_step:
                optimizer_step.end_layer(program, end)
        elif dx is not None:
            cost = costs.dropout(saved.x.shape[1], net.itemsize, backward=True)
            record = fill(DROPOUT, x=dy, y=dx, **saved.fields)
            program.add(rows_kernel("dropout", saved.compute), record, barrier=True, cost=cost)
        if dx is not None:
            dy = dx
    if optimizer_step:
        optimizer_step.add_to(program)
    program.needs_weight = False


def _lowest_updated(saved_for_backward: list[Saved], states: Sequence[tuple[np.ndarray, ...] | None]) -> int:
    """Index of the lowest layer with a parameter that is updated; behind the last one if there is none."""
    first = 0
    for i, saved in enumerate(saved_for_backward):
        if not isinstance(saved, SavedDropout):
            end = first + len(parameter_shapes(saved.spec))
            if any(of_param is not None for of_param in states[first:end]):
                return i
            first = end
    return len(saved_for_backward)


def _add_dense(
    program: PhaseList, saved: SavedDense, dy: np.ndarray, dx: np.ndarray | None, below: SavedDense | None,
    fields: dict[str, Any], rule: str | None, after: AfterUpdates, masked: bool,
) -> np.ndarray | None:  # fmt: skip
    """Add the phases of a layer; return the column sums of dx if it is made dz of the dense layer `below`.

    rule: of the updates that these phases do; None: they write gradients, which others read. masked: w and b have
    masks.
    """
    dtype, itemsize, sizes = program.net.dtype, program.net.itemsize, (saved.spec.inputs, saved.spec.outputs)
    compute, bias_sums, sums_below = program.net.compute, fields["col_sums"] is not None, None
    if below is not None:
        sums_below = np.zeros((num_pieces(program.batch_size, fields["dx_tile_rows"]), saved.spec.inputs))
        program.kept.append(sums_below)
        fields |= {
            "slope_below": slope_kernel(below.activation, compute).address,
            "s_below": below.fields["y" if below.fields["uses_y"] else "z"], "col_sums_below": sums_below,
        }  # fmt: skip
    round_tile = round_kernel(compute).address if compute != dtype and dx is not None else 0
    slope = slope_kernel(saved.activation, compute).address
    record = fill(DENSE, dz=dy, dx=dx, slope=slope, round_tile=round_tile, **fields)
    if not bias_sums:
        makes_db = fields["b"] is not None
        cost = costs.slopes(saved.spec.outputs, saved.activation, makes_db, rule, itemsize)
        if rule and makes_db:
            cost = after.cost_of_update(cost, sizes[1], masked)
        program.add(dense_kernel("slopes", dtype), record, barrier=True, cost=cost)
    if dx is not None:  # before the weights, which it reads, are updated
        cost = costs.inputs_gradient(*sizes, itemsize, below.activation if below else None)
        read = record
        if saved.multiplied is not saved.fields["w"]:
            read = record.copy()
            read["w"] = address_of(saved.multiplied)
        program.add(dense_kernel("inputs", dtype), read, barrier=True, cost=cost)
    ends_backward = rule is None and dx is None
    updates_w, makes_db = fields["num_splits"] > 0, bias_sums and fields["b"] is not None
    if not updates_w and not makes_db:
        return sums_below
    cost = costs.weights(*sizes, rule, itemsize, makes_db)
    if rule:
        cost = after.cost_of_update(cost, (sizes[0] + makes_db) * sizes[1], masked)
    if "measure" in fields:
        cost = costs.measuring(cost, sizes[0] * sizes[1])
    if "tree" in fields:
        cost = costs.adding_up(cost, sizes[0] * sizes[1], itemsize)
    if not updates_w:
        cost = costs.bias_gradient(sizes[1], itemsize)
    sums = dense_kernel("penalties", dtype) if "lanes" in fields else None
    program.add(dense_kernel("weights", dtype), record, barrier=ends_backward, cost=cost, otherwise=sums)
    return sums_below
