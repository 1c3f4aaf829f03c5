"""Base class of immutable objects that hold arrays."""

from __future__ import annotations

from typing import Any

import numpy as np


class Frozen:
    """Frozen dataclass whose arrays stay read-only, and in memory of its own, through pickle and copy.

    Both would make arrays writeable, and views of buffers of others. The arrays must be read-only from the start.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if isinstance(value, np.ndarray):
                value = np.array(value, order="C", subok=False)
                value.flags.writeable = False
            object.__setattr__(self, name, value)
