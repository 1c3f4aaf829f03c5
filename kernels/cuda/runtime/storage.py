"""Formats of arrays: float32 and float64 as they are; 16 bits in memory, float32 in arithmetic.

The forms are those of `spec.py`, and COPY. A vector is as many elements as 16 bytes of the
narrowest array hold, and two loads of the others.
"""

from __future__ import annotations

from ...spec import SAME, STOCHASTIC
from .float16 import NARROW, NARROW_PYTHON, WIDEN, WIDEN_PYTHON, cut_bfloat16, cut_bfloat16_python
from .vectors import Store, plain

# A form for networks beside those of `spec.py`: the array and its states are float32, and the last state is an array
# that is written and never read: the first one rounded to 16 bits.
COPY = "copy"


def _of_16_bits(dtype: str) -> Store:
    return Store("uint16", "float32", WIDEN[dtype], NARROW[dtype], WIDEN_PYTHON[dtype], NARROW_PYTHON[dtype])


STORES = {
    "float32": plain("float32"),
    "float64": plain("float64"),
    "float16": _of_16_bits("float16"),
    "bfloat16": _of_16_bits("bfloat16"),
}
# For values that have been rounded before; those of bfloat16 that were rounded at random may be denormal.
ROUNDED = {**STORES, "bfloat16": STORES["bfloat16"]._replace(narrow=cut_bfloat16, narrowed=cut_bfloat16_python)}


def stores_of(dtype: str, states: int, form: str) -> tuple[Store, ...]:
    """Return the formats of a parameter and of so many states."""
    if form == COPY:
        return *[STORES["float32"]] * states, STORES[dtype]
    own = ROUNDED[dtype] if form == STOCHASTIC else STORES[dtype]
    return own, *[STORES[dtype] if form == SAME else STORES["float32"]] * states
