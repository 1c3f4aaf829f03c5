"""How arrays keep their values: float32 and float64 as they are, 16 bits as float32 to be computed with.

The forms are those of `spec.py`, and COPY. One load takes 16 bytes, or as many elements as 16 bytes of the narrowest
array hold: of the others it takes two loads then.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from ...spec import SAME, STOCHASTIC
from .compile import SIMULATED, device
from .float16 import NARROW, NARROW_PYTHON, WIDEN, WIDEN_PYTHON, cut_bfloat16, cut_bfloat16_python
from .primitives import Store, plain

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


# ---------------------------------------------------------------- functions of an element, for vectors
def _simulated_map(one, width, results, numbered):
    def mapped(x, *args):
        if numbered:
            return tuple([one(x[k], *args[:-1], args[-1] + k) for k in range(width)])
        return tuple([one(x[k], *args) for k in range(width)])

    return mapped


def _compiled_map(one, width, results, numbered):
    from numba.cuda import cgutils
    from numba.cuda.extending import intrinsic

    types = cuda.types

    @intrinsic
    def mapped(typingctx, x, *args):
        result = types.UniTuple(x.dtype.dtype, results)
        inner = result(x.dtype, *args)

        def codegen(context, builder, signature, values):
            found = []
            for k, elements in enumerate(cgutils.unpack_tuple(builder, values[0], width)):
                others = cgutils.unpack_tuple(builder, values[1], len(args))
                if numbered:
                    others[-1] = builder.add(others[-1], others[-1].type(k))
                found.append(context.compile_internal(builder, one.py_func, inner, (elements, *others)))
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(result, width)(x, types.StarArgTuple(args)), codegen

    return mapped


def vector_map(one: Any, width: int, results: int = 1, numbered: bool = False) -> Any:
    """Return f(x, *args): one(x[k], *args), a tuple of so many results, for each of `width` tuples of elements.

    numbered: the last of the arguments is the number of the first element; `one` is called with that of its own.

    Numba compiles `one` once, and LLVM puts it in place: to have Numba do that eight times takes 10 s.
    """
    return (_simulated_map if SIMULATED else _compiled_map)(device(one), width, results, numbered)


def pair_map(one: Any, width: int) -> Any:
    """Return f(u, v): one(u[k], v[k]) for each of `width` elements of two vectors; for small functions."""
    one, half = device(one), width // 2
    if width == 1:

        def pair(u, v):
            return (one(u[0], v[0]),)

        return device(pair)
    halved = pair_map(one, half)

    def pairs(u, v):
        return (*halved(u[:half], v[:half]), *halved(u[half:], v[half:]))

    return device(pairs)
