"""Gradients clipped each by its own norm (`clip_each`): norms of all in one pass, then one launch per scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels.formulas import clip_each_factor
from ._sparse_gradients import SparseGradient, joint_norm


def own_scales(
    plan: Any,
    gradients: Any,
    sparse: Mapping[int, SparseGradient],
    bounds: Sequence[float | None],
    scale: float,
    backend: str,
) -> list[float]:
    """Factor of each array's gradient: `scale`, and if it has a bound, the factor that brings its norm down to that."""
    norms = plan.norms(gradients)
    for i, gradient in sparse.items():
        norms[i] = joint_norm(0.0, {i: gradient}, backend)
    pairs = zip(bounds, norms, strict=True)
    return [scale if bound is None else scale * clip_each_factor(bound, scale * norm) for bound, norm in pairs]


def by_scale(gradients: Any, scales: Sequence[float]) -> Iterator[tuple[float, Any]]:
    """Each different scale with the gradients of a plan that it multiplies; the others are left out."""
    members: dict[float, list[int]] = {}
    for i, scale in enumerate(scales):
        members.setdefault(scale, []).append(i)
    for scale, kept in members.items():
        selected = gradients.copy()
        for i in set(range(len(scales))).difference(kept):
            selected[i] = 0 if isinstance(selected, np.ndarray) else None
        yield scale, selected
