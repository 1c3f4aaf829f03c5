"""Formulas are read as Python means them, written alike for all backends, and refused by the line."""

import linecache
import math

import numpy as np
import pytest
from helpers_formulas import function_of
from hypothesis import given
from hypothesis import strategies as st

from fastopt.kernels.formulas import ACTIVATIONS
from fastopt.kernels.language import library, writing
from fastopt.kernels.language.formula import UpdateText, element_text
from fastopt.kernels.language.source import FormulaError, source_of
from fastopt.kernels.reference.defined import erf

POINTS = np.array([-40.0, -7.3, -1.5, -1.0, -0.3, -1e-9, -0.0, 0.0, 1e-9, 0.3, 0.75, 1.0, 2.5, 7.3, 40.0])
ARRAYS = {**writing.ARRAYS.names, "erf": erf}

# One number: text of a formula of z, and the same in NumPy's extended precision.
CALLS = {
    "abs": ("abs(z)", np.abs),
    "fabs": ("math.fabs(z)", np.abs),
    "exp": ("math.exp(z)", np.exp),
    "exp2": ("np.exp2(z)", np.exp2),
    "expm1": ("math.expm1(z)", np.expm1),
    "log": ("np.log(z)", np.log),
    "log2": ("math.log2(z) if z > 0 else z", lambda z: np.where(z > 0, np.log2(np.where(z > 0, z, 1)), z)),
    "log10": ("np.log10(z)", np.log10),
    "log1p": ("np.log1p(z)", np.log1p),
    "sqrt": ("np.sqrt(z)", np.sqrt),
    "square": ("np.square(z)", np.square),
    "tanh": ("math.tanh(z)", np.tanh),
    "sinh": ("math.sinh(z)", np.sinh),
    "cosh": ("math.cosh(z)", np.cosh),
    "erf": ("math.erf(z)", np.vectorize(math.erf)),
    "sin": ("math.sin(z)", np.sin),
    "cos": ("np.cos(z)", np.cos),
    "tan": ("math.tan(z)", np.tan),
    "arctan": ("np.arctan(z)", np.arctan),
    "atan": ("math.atan(z)", np.arctan),
    "sign": ("np.sign(z)", np.sign),
    "min": ("min(z, 1, 0.5)", lambda z: np.minimum(z, 0.5)),
    "max": ("max(z, -1)", lambda z: np.maximum(z, -1)),
    "minimum": ("np.minimum(z, 0.25)", lambda z: np.minimum(z, 0.25)),
    "maximum": ("np.maximum(0.25, z)", lambda z: np.maximum(z, 0.25)),
    "clip": ("np.clip(z, -1, 2)", lambda z: np.clip(z, -1, 2)),
    "where": ("np.where(z > 0, z, -2)", lambda z: np.where(z > 0, z, -2)),
    "pow": ("math.pow(abs(z), 1.5)", lambda z: np.abs(z) ** 1.5),
    "power": ("np.power(z, 3)", lambda z: z**3),
    "absolute": ("np.absolute(z)", np.abs),
    "logaddexp": ("np.logaddexp(z, 0.5)", lambda z: np.logaddexp(z, np.longdouble(0.5))),
    "isnan": ("1 if math.isnan(z) else 2", lambda z: np.full_like(z, 2)),
    "isinf": ("1 if np.isinf(1 / z) else 2", lambda z: np.where(z == 0, 1, 2)),
    "isfinite": ("1 if np.isfinite(1 / z) else 2", lambda z: np.where(z == 0, 2, 1)),
    "logical_and": ("1 if np.logical_and(z > 0, z < 1) else 2", lambda z: np.where((z > 0) & (z < 1), 1, 2)),
    "logical_or": ("1 if np.logical_or(z < 0, z > 1) else 2", lambda z: np.where((z < 0) | (z > 1), 1, 2)),
    "logical_not": ("1 if np.logical_not(z > 0) else 2", lambda z: np.where(z > 0, 2, 1)),
}
# Syntax of Python besides calls.
SYNTAX = {
    "literals": ("1 + z * 2 - 0.5", lambda z: 1 + z * 2 - 0.5),
    "powers": ("z ** 2 + z ** 5 - z ** 0", lambda z: z**2 + z**5 - 1),
    "negative power": ("z ** -3 if z else 1", lambda z: np.where(z == 0, 1, 1 / np.where(z == 0, 1, z) ** 3)),
    "half power": ("(z * z) ** 0.5", np.abs),
    "power of a number": ("2 ** z", lambda z: 2**z),
    "chain": ("z if -1 < z <= 1 else 0", lambda z: np.where((z > -1) & (z <= 1), z, 0)),
    "boolean": (
        "z if z > 1 or (z < 0 and not z < -2) else 0",
        lambda z: np.where((z > 1) | ((z < 0) & (z >= -2)), z, 0),
    ),
    "folded": ("z * (1 / 3) + math.pi * 2 - math.e ** 2", lambda z: z * (1 / 3) + math.pi * 2 - math.e**2),
    "cast": ("type(z)(0.5) * z", lambda z: 0.5 * z),
    "tuple": ("(z, 2 * z)[1] + (1, z, 3)[-1]", lambda z: 2 * z + 3),
}
FUNCTIONS = {
    "early return": (
        "def f(z):\n    'A docstring.'\n    if z > 1:\n        return 2 * z\n    y = z + 1\n    return y * y\n",
        lambda z: np.where(z > 1, 2 * z, (z + 1) ** 2),
    ),
    "branches": (
        "def f(z):\n    a = b = 0\n    if z > 0:\n        a = z\n    elif z > -1:\n        b = z\n    else:\n"
        "        a = 1\n    return a - 3 * b\n",
        lambda z: np.where(z > 0, z, np.where(z > -1, -3 * z, 1)),
    ),
    "nested returns": (
        "def f(z):\n    if z > 0:\n        if z > 1:\n            return 1\n        z = z * z\n    else:\n"
        "        z = -z\n    return z + 0.5\n",
        lambda z: np.where(z > 1, 1, np.where(z > 0, z * z, -z) + 0.5),
    ),
    "loop": (
        "def f(z):\n    total, term = 0, 1\n    for i in range(1, 5):\n        total += term\n        term *= z / i\n"
        "    return total\n",
        lambda z: 1 + z + z**2 / 2 + z**3 / 6,
    ),
    "known branch": (
        "flag = True\nscale = 3\n"
        "def f(z, power=2):\n    if flag:\n        return scale * z ** power\n    return undefined\n",
        lambda z: 3 * z**2,
    ),
    "helpers": (
        "def half(x, y=0.5):\n    return x * y\n"
        "def f(z):\n    x, (y, _) = half(z), (half(y=2, x=z), 0)\n    return x + y\n",
        lambda z: 2.5 * z,
    ),
    "closure": (
        "def outer(k):\n    def inner(z):\n        return z - k\n    return inner\nf = outer(0.25)\n",
        lambda z: z - 0.25,
    ),
    "annotated": ("def f(z: float) -> float:\n    y: float = z\n    y += 1\n    return y\n", lambda z: z + 1),
}


def written(text):
    source = source_of("value", text if callable(text) else function_of(text))
    return element_text(source, {"z": "z"}, {})


CASES = {name: (f"def f(z):\n    return {body}\n", true) for name, (body, true) in (CALLS | SYNTAX).items()} | FUNCTIONS


@pytest.mark.parametrize("name", CASES)
def test_a_formula_is_what_python_means(name):
    text, true = CASES[name]
    formula = written(text)
    scalar, array = formula.scalar_function("scalar"), formula.array_function("array", ARRAYS)
    with np.errstate(all="ignore"):
        expected = np.asarray(true(POINTS.astype(np.longdouble)), np.float64)
        found = [float(scalar(z)) for z in POINTS]
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-300)
        np.testing.assert_allclose(np.broadcast_to(array(POINTS), POINTS.shape), expected, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("name", CASES)
def test_numbers_keep_their_type(name):
    formula = written(CASES[name][0])
    points = POINTS.astype(np.float32)
    with np.errstate(all="ignore"):
        scalar = formula.scalar_function("scalar")
        assert {type(scalar(z)) for z in points} == {np.float32}
        assert np.asarray(formula.array_function("array", ARRAYS)(points)).dtype == np.float32


def test_every_function_of_the_library_is_here():
    assert set(CALLS) == set(library.NAMES)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_built_in_formulas_are_formulas(name):
    row = ACTIVATIONS[name]
    for function in (row.value, row.slope):
        scalar = written(function).scalar_function("scalar")
        for z in POINTS.astype(np.float32):
            with np.errstate(all="ignore"):
                np.testing.assert_array_equal(scalar(z), np.float32(function(z)))


LOGARITHMS = [(math.inf, math.inf), (0.0, -math.inf), (-1.0, math.nan), (math.nan, math.nan)]


@pytest.mark.parametrize(("z", "expected"), LOGARITHMS)
def test_the_ends_of_a_logarithm(z, expected):
    np.testing.assert_equal(written("def f(z):\n    return math.log(z)\n").scalar_function("scalar")(z), expected)


# ---------------------------------------------------------------- drawn formulas
LEAVES = st.one_of(
    st.just("z"), st.just("k"), st.integers(-3, 3).map(str), st.floats(-2, 2).map(lambda x: repr(round(x, 3)))
)


def _grown(inner):
    pairs = st.tuples(inner, inner)
    return st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        pairs.map(lambda t: f"({t[0]} / (1.25 + abs({t[1]})))"),
        inner.map(lambda x: f"(-{x})"),
        inner.map(lambda x: f"abs({x})"),
        pairs.map(lambda t: f"min({t[0]}, {t[1]})"),
        pairs.map(lambda t: f"max({t[0]}, {t[1]})"),
        st.tuples(inner, inner, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), inner, inner).map(
            lambda t: f"({t[0]} if {t[1]} {t[2]} {t[3]} else {t[4]})"
        ),
        inner.map(lambda x: f"math.tanh({x})"),
        st.tuples(inner, st.integers(2, 4)).map(lambda t: f"({t[0]}) ** {t[1]}"),
    )


@given(body=st.recursive(LEAVES, _grown, max_leaves=12), branch=st.booleans(), z=st.floats(-3, 3))
def test_any_formula(body, branch, z):
    end = "        return z\n" if branch else ""
    function = function_of(f"def f(z, k=0.75):\n    if z > 0.5:\n        z = z - k\n{end}    return {body}\n")
    formula = written(function)
    expected = float(function(z))
    found = formula.scalar_function("scalar")(z)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    array = np.broadcast_to(formula.array_function("array", ARRAYS)(np.array([z, z])), (2,))
    np.testing.assert_allclose(array, [found, found], rtol=1e-12, atol=1e-300)


# ---------------------------------------------------------------- refusals
REFUSED = {
    "def f(z):\n    return g(z)\n": ("g is not defined", "g(z)", "^"),
    "def f(z):\n    return z // 2\n": ("no //", "return z // 2", "^^^^^^"),
    "def f(z):\n    while z:\n        z = z - 1\n    return z\n": ("no while", "while z:", "^"),
    "def f(z):\n    if z > 0:\n        return z\n": ("on every way", "if z > 0:", "^"),
    "def f(z):\n    print(z)\n    return z\n": ("no such statement", "print(z)", "^^^^^^^^"),
    "def f(z):\n    return math.gamma(z)\n": ("math.gamma is not for formulas; they know", "math.gamma(z)", "^^^^^^"),
    "def f(z):\n    return np.float32(z)\n": ("fixes a type", "np.float32(z)", "^^^^"),
    "def f(z):\n    return z, z\n": ("must return one number; got tuple", "def f(z):", "^^^"),
    "def f(z):\n    return 'z'\n": ("is of numbers; got 'z'", "return 'z'", "^^^"),
    "def f(z):\n    return z + 1 / 0\n": ("division by zero", "1 / 0", "^^^^^"),
    "def f(z):\n    for i in range(z):\n        z = z + i\n    return z\n": ("known whole numbers", "range(z)", "^"),
    "def f(z):\n    for i in range(999):\n        z = z + i\n    return z\n": ("at most 256 turns", "range(999)", "^"),
    "def f(z):\n    if z > 0:\n        y = z\n    return y\n": ("y has no value on some way", "return y", "^"),
    "def f(z):\n    return f(z)\n": ("depth of at most", "f(z)", "^"),
    "def f(z, t):\n    return z\n": ("f(z, t) must take (z)", "def f(z, t):", "^"),
    "def f():\n    return 1\n": ("f() must take (z)", "def f():", "^"),
    "def f(*z):\n    return z[0]\n": ("no *arguments", "def f(*z):", "^"),
    "table = {1: 2}\ndef f(z):\n    return z + table\n": ("table is a dict", "z + table", "^^^^^"),
    "def f(z):\n    return z.real\n": ("has no real", "z.real", "^^^^^^"),
    "def f(z):\n    return (1, 2)[z > 0]\n": ("a known one of 2", "(1, 2)[z > 0]", "^"),
    "def f(z):\n    x, y = z, z, z\n    return x\n": ("as many names", "x, y = z, z, z", "^^^^"),
    "def f(z):\n    return z if z > 0 else (z, z)\n": ("both branches", "z if z > 0", "^"),
    "def f(z):\n    return (-8) ** 0.5 * z\n": ("real numbers", "(-8) ** 0.5", "^"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_formula_is_quoted(text):
    message, line, marks = REFUSED[text]
    with pytest.raises(FormulaError) as raised:
        written(text)
    said = str(raised.value)
    assert message in said.splitlines()[0]
    assert 'File "<cell ' in said
    quoted, marked = said.splitlines()[-2:]
    assert line in quoted
    assert marks in marked
    assert len(marked) <= len(quoted)


def test_sources_that_cannot_be_read():
    scope = {}
    exec("def f(z):\n    return z\n", scope)
    with pytest.raises(FormulaError, match="must be readable; it is not found in <string>"):
        source_of("value", scope["f"])
    with pytest.raises(TypeError, match="value must be a Python function; got <built-in function exp>"):
        source_of("value", math.exp)


def test_a_block_within_other_text():
    """As an example in a paper, which is no Python as a whole."""
    text = "# A title\n\nWords, (and\n\n    def f(z):\n        return (z +\n                1) / 2\n\nothers.\n"
    file = "<paper>"
    linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    scope = {}
    exec(compile("\n\n\n\ndef f(z):\n    return (z +\n            1) / 2\n", file, "exec"), scope)
    assert written(scope["f"]).scalar_function("scalar")(3.0) == 2.0


def test_lambdas_of_one_line_are_told_apart():
    first, second, third = (lambda z: z + 1), (lambda z: z - 1), (lambda z: 1 - z)
    assert [written(f).scalar_function("scalar")(3.0) for f in (first, second, third)] == [4.0, 2.0, -2.0]


# ---------------------------------------------------------------- updates
def test_what_is_the_same_for_all_elements_is_computed_on_the_host():
    text = (
        "def f(p, g, s, lr, step, beta, eps):\n    m = beta * s[0] + (1 - beta) * g\n"
        "    return p - lr * m / (1 - beta ** step) / (math.sqrt(g * g) + eps), m\n"
    )
    update = UpdateText(source_of("update", function_of(text)), ["m"], ["beta", "eps"])
    assert update.host_arguments == "step, lr, o0, o1"
    own = writing.function("own", update.host_arguments, update.host, writing.HOST.names)
    assert sorted(own(3.0, 0.5, 0.9, 1e-3)) == sorted([0.5, 0.9, 1 - 0.9, 1 - 0.9**3, 1e-3])
    assert own(3.0, 0.5, 0.9, 1e-3)[0] == 0.5
    assert own(math.inf, 0.5, 1.0, 1e-3)[0] == 0.5  # never an exception
    assert "power" not in "".join(update.scalar)


def test_a_rule_has_room_for_eight_numbers():
    names = [f"o{i}" for i in range(9)]
    text = f"def f(p, g, s, lr, {', '.join(names)}):\n    return p - lr * g{''.join(f' * {n}' for n in names)}\n"
    with pytest.raises(FormulaError, match="at most 8 numbers that are the same for all elements; got 10"):
        UpdateText(source_of("update", function_of(text)), [], names)
    joined = text.replace("lr * g * ", "lr * (").rstrip() + ") * g\n"
    assert UpdateText(source_of("update", function_of(joined)), [], names).changing == [True, True]
