"""Quantization-aware training: the names that `compile` takes, and who can train so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._validation import check_name
from ..kernels.spec import DenseSpec, FakeQuantized, LayerSpec

GROUP = 64  # rows of w that share a scale of 4 bits
WAYS = {
    "int8": FakeQuantized(8),
    "int8_weights": FakeQuantized(8, inputs=False),
    "int4": FakeQuantized(4, GROUP, inputs=False),
}
BACKENDS = ("cpu", "numpy")


def check(way: Any, dtype: str, compute: str, backend: str) -> str | None:
    """Return one of WAYS, or None; ValueError for others, and for a model that cannot be trained so."""
    if way is None:
        return None
    way = check_name("quantize", way, WAYS)
    if dtype != "float32" or compute != dtype:
        raise ValueError(
            f"quantize={way!r} is for models that compute in float32; got dtype={dtype!r}, compute_dtype={compute!r}"
        )
    if backend not in BACKENDS:
        raise ValueError(
            f"the backend {backend!r} does not round weights in training, as quantize={way!r} asks for; those that do:"
            f" {', '.join(BACKENDS)}"
        )
    return way


def rounded_specs(specs: Sequence[LayerSpec], way: str | None) -> list[LayerSpec]:
    """Return specs whose dense layers are trained so."""
    fake = None if way is None else WAYS[way]
    return [spec._replace(fake=fake) if isinstance(spec, DenseSpec) else spec for spec in specs]
