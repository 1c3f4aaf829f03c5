"""Gradients clipped each by its own norm (`clip_each`): norms of all in one pass, then a launch for each scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..kernels.formulas import clip_each_factor
from ._sparse_gradients import Rows, joint_norm


def own_scales(
    plan: Any, gradients: Any, rows: Mapping[int, Rows], most: Sequence[float | None], scale: float, backend: str
) -> list[float]:
    """What each array's gradient is to be multiplied by: `scale`, and what brings it to `most`, where that is given."""
    norms = plan.norms(gradients)
    for i, some in rows.items():
        norms[i] = joint_norm(0.0, {i: some}, backend)
    pairs = zip(most, norms, strict=True)
    return [scale if bound is None else scale * clip_each_factor(bound, scale * norm) for bound, norm in pairs]


def by_scale(gradients: Any, scales: Sequence[float]) -> Iterator[tuple[float, Any]]:
    """The gradients of a plan, apart: with each scale those that are to be multiplied by it, and none of the others."""
    members: dict[float, list[int]] = {}
    for i, scale in enumerate(scales):
        members.setdefault(scale, []).append(i)
    for scale, its in members.items():
        some = gradients.copy()
        for i in set(range(len(scales))).difference(its):
            some[i] = 0 if isinstance(some, np.ndarray) else None
        yield scale, some
