"""Checks of a formula when it is defined: that it was read right, and that a derivative is one.

All in float64, by Python, at points that are no round numbers, so that none of the usual corners is among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np

from ..formulas import NUM_SCALARS, Optimizer
from .source import Source

POINTS = (*(-8.0371 + 0.4973 * i for i in range(33)), -0.0173, 0.0119)
TARGETS = {"numbers": (-1.1071, 0.2663, 2.0131), "fractions": (0.0, 0.2663, 1.0), "signs": (-1.0, 1.0)}
STEP = 1e-3  # of a finite difference: the rule of five points is exact to 1e-12
EXACT, SLOPE = 1e-7, 1e-5  # relative differences that pass: of two readings, and of a slope
SMALLEST = 2.2250738585072014e-308

Call = Callable[..., Any]


def check_activation(
    value_source: Source, slope_source: Source, value: Call, slope: Call, slope_of: str, differences: bool
) -> None:
    """FormulaError unless both are the user's functions, and the slope is the derivative of the value.

    differences: False leaves out the latter.
    """
    check_reading(value_source, value, [(z,) for z in POINTS], ("z",))
    places = [(z, _float(value, z)) for z in POINTS]
    inputs = [(y if slope_of == "y" else z,) for z, y in places if math.isfinite(y)]
    if not inputs:
        raise value_source.error(f"value(z) must be a number for some z; it is {places[0][1]} at z = {POINTS[0]:g}")
    check_reading(slope_source, slope, inputs, (slope_of,))
    for z, y in places if differences else ():
        found = _float(slope, y if slope_of == "y" else z)
        expected = derivative(value, z)
        if expected is not None and not _is_close(found, expected, SLOPE):
            other = {"z": "y", "y": "z"}[slope_of]
            raise slope_source.error(
                f"slope({slope_of}) must be the derivative of value(z); at z = {z:g} it is {found:.6g}, but by finite"
                f" differences {expected:.6g}. slope_of='{other}' is for a slope({other})"
            )


def check_loss(
    value_pair: tuple[Source, Call],
    slope_pair: tuple[Source, Call],
    targets: str,
    params: Mapping[str, float],
    differences: bool,
    constants: Mapping[str, float],
) -> None:
    """FormulaError unless both are the user's functions, and the gradient is the derivative of the value by z.

    Each pair is the source and the function that was written out. differences: False leaves out the latter. constants:
    arguments of the user's functions whose values are written out.
    """
    if targets == "labels":
        _check_label_loss(value_pair, slope_pair, differences, constants)
        return
    (_, value), (slope_source, slope), a = value_pair, slope_pair, list(params.values())
    places = [(z, t, *a) for z, t in product(POINTS, TARGETS[targets])]
    for source, function in (value_pair, slope_pair):
        check_reading(source, function, places, ("z", "t", *params), 2, constants)
    for z, t, *_ in places if differences else ():
        rest = (t, *a) if a else (t, 0.0)
        found, expected = _float(slope, z, *rest), derivative(value, z, *rest)
        if expected is not None and not _is_close(found, expected, SLOPE):
            raise slope_source.error(
                f"gradient(z, t) must be the derivative of value(z, t) by z; at z = {z:g}, t = {t:g} it is"
                f" {found:.6g}, but by finite differences {expected:.6g}"
            )


def _check_label_loss(
    value_pair: tuple[Source, Call], slope_pair: tuple[Source, Call], differences: bool, constants: Mapping[str, float]
) -> None:
    """`check_loss` of functions of log(p), which is below 0."""
    (_, value), (slope_source, slope) = value_pair, slope_pair
    places = [z for z in POINTS if z < 0]
    for source, function in (value_pair, slope_pair):
        check_reading(source, function, [(log_p,) for log_p in places], ("log_p",), constants=constants)
    for log_p in places if differences else ():
        found, expected = _float(slope, log_p), derivative(value, log_p)
        if expected is not None and not _is_close(found, expected, SLOPE):
            raise slope_source.error(
                f"gradient(log_p) must be the derivative of value(log_p) by log_p; at log_p = {log_p:g} it is"
                f" {found:.6g}, but by finite differences {expected:.6g}"
            )


def check_reading(
    source: Source, written: Call, places: Iterable[tuple[float, ...]], names: Sequence[str], fixed: int = 1,
    constants: Mapping[str, float] = MappingProxyType({}),
) -> None:  # fmt: skip
    """FormulaError unless a function that was written out equals the user's; where that raises, all is right.

    fixed: arguments that are given by position; the others by name, as constants are, if the user's function has them.
    """
    taken = source.function.__code__.co_varnames[: source.function.__code__.co_argcount]
    for place in places:
        named = {**dict(zip(names, place, strict=True)), **constants}
        keywords = {name: value for name, value in named.items() if name in taken[fixed:]}
        expected = _call(source.function, *place[:fixed], **keywords)
        found = _float(written, *place, *[0.0] * (len(names) == 2))
        if expected is not None and not _is_close(found, expected, EXACT):
            where = ", ".join(f"{name} = {value:g}" for name, value in zip(names, place, strict=True))
            raise source.error(
                f"a formula must give the same number each time that it is called; at {where} it was read as"
                f" {found:.6g}, and gives {expected:.6g}"
            )


def check_rule(source: Source, row: Optimizer, options: Mapping[str, Any]) -> None:
    """FormulaError unless a rule is the user's update."""
    taken = source.function.__code__.co_varnames[: source.function.__code__.co_argcount]
    rng = np.random.default_rng(0)
    defaults = {name: option.default for name, option in options.items()}
    common = {"weight_decay": 0.0, "maximize": False, "l1": 0.0, "clip_value": None}
    for step in (1, 2, 3, 10):
        p, g, *s = rng.uniform(0.1, 1.0, 2 + len(row.states)).tolist()
        g, lr = g * (-1) ** step, 0.1
        more = {**defaults, "lr": lr, "step": step, "t": step, "tiny": SMALLEST}
        expected = _call_any(source.function, p, g, tuple(s), **{n: v for n, v in more.items() if n in taken[3:]})
        columns = row.scalars([step], [lr], **common, **defaults)
        h = [float(column[0] if isinstance(column, list) else column) for column in columns]
        found = row.rule(p, g, tuple(s), tuple(h + [0.0] * (NUM_SCALARS - len(h))), SMALLEST)
        for a, b in zip(_flat(found), _flat(expected), strict=False):
            if not _is_close(a, b, EXACT):
                raise source.error(
                    f"an update must give the same numbers each time that it is called; at p = {p:g}, g = {g:g}, step ="
                    f" {step} it was read as {a:.6g}, and gives {b:.6g}"
                )


def derivative(value: Call, z: float, *rest: float) -> float | None:
    """value'(z) by differences of five points; None near a corner, where two step sizes do not agree."""
    coarse, fine = (_differences(value, z, step, rest) for step in (STEP, STEP / 3))
    return fine if math.isfinite(fine) and _is_close(coarse, fine, SLOPE / 10) else None


def _differences(value: Call, z: float, step: float, rest: tuple[float, ...]) -> float:
    h = step * max(1.0, abs(z) / 8)
    near = _float(value, z + h, *rest) - _float(value, z - h, *rest)
    far = _float(value, z + 2 * h, *rest) - _float(value, z - 2 * h, *rest)
    return (8 * near - far) / (12 * h)


def _float(function: Call, *arguments: float) -> float:
    """The value of a written function; NaN where Python divides by zero, as it does and NumPy does not."""
    found = _call(function, *arguments)
    return math.nan if found is None else found


def _call(function: Call, *arguments: Any, **keywords: Any) -> float | None:
    found = _call_any(function, *arguments, **keywords)
    return None if found is None else float(found)


def _call_any(function: Call, *arguments: Any, **keywords: Any) -> Any:
    """The value of a function; None where Python has none, as at a division by zero."""
    with np.errstate(all="ignore"):
        try:
            return function(*arguments, **keywords)
        except (ArithmeticError, ValueError):
            return None


def _flat(value: Any) -> list[float]:
    return [one for part in value for one in _flat(part)] if isinstance(value, tuple) else [float(value)]


def _is_close(a: float, b: float, relative: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or abs(a - b) <= relative * max(1e-3, abs(a), abs(b))
