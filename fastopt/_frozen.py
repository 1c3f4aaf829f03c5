"""Base of immutable objects that hold arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


class Frozen:
    """Keeps arrays read-only, and in memory of the object's own, through pickle and copy, which do neither.

    For frozen dataclasses whose arrays are read-only from the start.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if isinstance(value, np.ndarray):
                value = np.array(value, order="C", subok=False)
                value.flags.writeable = False
            object.__setattr__(self, name, value)
