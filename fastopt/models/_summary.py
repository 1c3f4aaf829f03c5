"""Text of `summary`: a table of the layers of a model."""

from __future__ import annotations

import math
from typing import Any

from ..kernels.spec import parameter_shapes
from ..layers import Dense, Dropout, Trained

HEADER = ("layer", "activation", "outputs", "parameters")


def of(model: Any) -> str:
    """Return the table: each layer with its outputs and parameters, and the share of its kernel that is pruned."""
    width, total, frozen, pruned, first = model.inputs, 0, 0, 0, 0
    rows: list[tuple[str, ...]] = [HEADER + ("pruned",) * (model._masks is not None)]
    for layer, name in zip(model.layers, model.names, strict=True):
        count: int | None = 0
        if isinstance(layer, Trained):
            shapes = {} if width is None else parameter_shapes(layer.spec(width))
            count = None if width is None else sum(map(math.prod, shapes.values()))
        total += count or 0
        if isinstance(layer, Dense):
            width, what = layer.units, layer.activation
        else:
            what = f"rate {layer.rate:g}" if isinstance(layer, Dropout) else layer.formula()
        if isinstance(layer, Trained) and not layer.trainable:
            frozen += count or 0
            name += " (frozen)"
        outputs, parameters = ("?" if number is None else f"{number:,}" for number in (width, count))
        row: tuple[str, ...] = name, what, outputs, parameters
        if model._masks is not None:
            mask = model._masks.arrays[first] if isinstance(layer, Dense) else None
            zeros = 0 if mask is None else mask.size - model._masks.left[first]
            pruned, first = pruned + zeros, first + (len(layer.arrays) if isinstance(layer, Trained) else 0)
            row += ("" if mask is None else f"{zeros / mask.size:.1%}",)
        rows.append(row)
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        words = [f"{text:<{size}}" for text, size in zip(row[:2], sizes[:2], strict=True)]
        numbers = [f"{text:>{size}}" for text, size in zip(row[2:], sizes[2:], strict=True)]
        lines.append("  ".join([*words, *numbers]).rstrip())
    of_which = [f"{count:,} {what}" for count, what in ((frozen, "frozen"), (pruned, "pruned")) if count]
    brackets = f" ({', '.join(of_which)})" if of_which else ""
    built = f"total: {total:,} parameters{brackets}, {model.inputs or 0:,} inputs"
    end = built if model.inputs else "not built: inputs unknown"
    return "\n".join([*lines, f"{end}, {model.dtype.name}{f', computed in {model._compute}' * model._mixed}"])
