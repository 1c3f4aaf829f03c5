"""Numbers rounded to codes in training, in the reference: what products read in the place of weights and inputs."""

from __future__ import annotations

import numpy as np

from ..denormals import flushed
from ..spec import FakeQuantized

Array = np.ndarray


@flushed
@np.errstate(all="ignore")
def fake_weights(w: Array, fake: FakeQuantized) -> Array:
    """Return weights rounded to their codes: scale code, with the scales of these weights.

    >>> fake_weights(np.array([[1.27, 0.0], [0.006, 0.0]], np.float32), FakeQuantized(8)).round(6)
    array([[1.27, 0.  ],
           [0.01, 0.  ]], dtype=float32)
    """
    rows = fake.group or len(w)
    largest = np.maximum.reduceat(np.abs(w), np.arange(0, len(w), rows), axis=0)
    scales = (largest.astype(np.float64) / (127 if fake.bits == 8 else 7)).astype(np.float32)
    scales = np.repeat(np.where(scales > np.finfo(np.float32).tiny, scales, np.float32(1)), rows, axis=0)[: len(w)]
    return np.rint(w * (np.float32(1) / scales)) * scales


@flushed
@np.errstate(all="ignore")
def fake_inputs(x: Array) -> Array:
    """Return rows rounded to the 256 codes of their range, in which 0 is.

    >>> fake_inputs(np.array([[-1.0, 0.0, 0.011, 4.1]], np.float32)).round(4)
    array([[-1.  ,  0.  ,  0.02,  4.1 ]], dtype=float32)
    """
    low, high = min(float(np.nanmin(x)), 0.0), max(float(np.nanmax(x)), 0.0)
    scale, zero = np.float32((high - low) / 255), 0.0
    if scale > np.finfo(np.float32).tiny:
        zero = float(np.clip(np.rint(-low / float(scale)), 0, 255))
    else:
        scale = np.float32(1)
    limited = np.clip(x * (np.float32(1) / scale), np.float32(-zero), np.float32(255 - zero))
    return np.rint(limited) * scale
