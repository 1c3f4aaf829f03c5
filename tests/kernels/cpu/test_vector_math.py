"""Functions for whole vectors: within units in the last place of the true value, and right at the ends."""

import math
import platform
import re

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest

from fastopt.kernels.cpu.runtime import frontend
from fastopt.kernels.cpu.runtime import vector_math as vector
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="formulas call the functions of math when interpreted")

# Name: functions of float32 and float64, the true one in extended precision, the domain, units in the last place.
FUNCTIONS = {
    "exp": (vector._exp32, vector._exp64, np.exp, (-80, 80), (1.1, 2.1)),
    "expm1": (vector._expm1_32, vector._expm1_64, np.expm1, (-80, 0), (1.1, 3.1)),
    "log": (vector._log32, vector._log64, lambda x: np.log(np.where(x > 0, x, np.nan)), (1e-30, 50), (1.1, 1.2)),
    "log1pexp": (vector._log1pexp32, vector._log1pexp64, lambda x: np.log1p(np.exp(x)), (-80, 0), (1.6, 2.5)),
    "tanh": (vector._tanh32, vector._tanh64, np.tanh, (-20, 20), (1.5, 2.0)),
    "erf": (vector._erf32, vector._erf64, np.vectorize(math.erf, otypes=["f8"]), (-7, 7), (2.5, 2.5)),
}
ENDS = {
    "exp": [(math.inf, math.inf), (-math.inf, 0.0), (0.0, 1.0), (1000.0, math.inf), (-1000.0, 0.0)],
    "expm1": [(-math.inf, -1.0), (0.0, 0.0), (-1000.0, -1.0)],
    "log": [(1.0, 0.0), (2.0, math.log(2)), (2.0**-53, -53 * math.log(2))],
    "log1pexp": [(-math.inf, 0.0), (0.0, math.log(2)), (-1000.0, 0.0)],
    "tanh": [(math.inf, 1.0), (-math.inf, -1.0), (0.0, 0.0)],
    "erf": [(math.inf, 1.0), (-math.inf, -1.0), (0.0, 0.0)],
}


def loop_of(name, dtype):
    function = FUNCTIONS[name][dtype == "float64"]
    frontend.prepare()

    @numba.njit(error_model="numpy")
    def loop(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    return loop


def compiled(name, dtype):
    loop = loop_of(name, dtype)

    def call(x):
        x = np.asarray(x, dtype)
        y = np.empty_like(x)
        loop(x, y)
        return y

    return call


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values(name, dtype):
    true, (low, high), units = FUNCTIONS[name][2:]
    rng = np.random.default_rng(0)
    tiny = 10.0 ** rng.uniform(-30, 0, 20_000)
    x = np.concatenate([rng.uniform(low, high, 100_000), -tiny, tiny * min(1, high)]).astype(dtype)
    y, expected = compiled(name, dtype)(x), true(x.astype(np.longdouble))
    seen = np.abs(expected) >= np.finfo(dtype).tiny
    error = np.abs(y[seen] - expected[seen]) / np.spacing(np.abs(expected[seen]).astype(dtype))
    assert error.max() <= units[dtype == "float64"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_ends(name, dtype):
    call = compiled(name, dtype)
    x, expected = np.array(ENDS[name], dtype).T
    y = call(x)
    np.testing.assert_array_equal(y, expected)
    assert np.isnan(call([math.nan]))[0]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="it is of AVX2")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_vectors_are_not_taken_apart_for_want_of_an_instruction(name, dtype):
    """AVX2 has none between float64 and integers of 64 bits, which LLVM makes of eight or more for single numbers."""
    loop = loop_of(name, dtype)
    loop.compile((numba.types.Array(getattr(numba.types, dtype), 1, "C"),) * 2)
    (code,) = loop.inspect_llvm().values()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu="haswell", opt=3)
    text = machine.emit_assembly(llvm.parse_assembly(re.sub(r'"target-(cpu|features)"="[^"]*"', "", code)))
    assert re.search(r"\tvmulp[sd]\s", text)  # there are vectors
    # rests of loops convert one number or two; a vector taken apart, four
    blocks = re.split(r"^\.L\w+:", text, flags=re.MULTILINE)
    assert max(len(re.findall(r"\tv?cvt(?:t?s[sd]2si|si2s[sd])", block)) for block in blocks) < 4
