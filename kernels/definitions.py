"""Rows that users add to the tables of formulas while a program runs: activations, losses and optimizers' rules.

Each function is read into a graph and written out for the backends (`language`): once as a scalar function, which is
the row of `formulas` and so the body of compiled kernels, and once on arrays, the row of `reference`. It is checked
here against the user's own function, called by Python on float64 numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import formulas
from .formulas import ACTIVATIONS, LOSSES, OPTIMIZERS, defined
from .formulas.defined import Option
from .formulas.optimizers import common
from .formulas.optimizers.table import rule_options
from .language import checks, writing
from .language.formula import ElementText, UpdateText, element_text
from .language.source import source_of
from .reference import defined as reference

MOST_STATES = 3  # of a rule; records have room for these and a master copy

TARGETS: dict[str, dict[str, Any]] = {  # of losses: the fields of their rows
    "numbers": {},
    "fractions": {"target_range": (0.0, 1.0)},
    "signs": {"signs": True, "boundary": (0.0, 0.0)},
    "labels": {},
}

ARRAY_NAMES = {**writing.ARRAYS.names, "erf": reference.erf}


_made: dict[str, tuple[Any, Any]] = {}  # rows of both tables, by their keys: the same formula has the same functions


# ---------------------------------------------------------------- tables
TABLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "activation": (ACTIVATIONS, reference.ACTIVATIONS),
    "loss": (LOSSES, reference.LOSSES),
    "optimizer": (OPTIMIZERS, reference.UPDATES),
}


def _add(kind: str, name: str, key: str, is_variant: bool = False) -> str:
    """Put the rows of a formula into the tables, where they may be already; return the key.

    is_variant: the name goes on to stand for another key.
    """
    with defined.lock:
        for table, row in zip(TABLES[kind], _made[key], strict=True):
            table.setdefault(key, row)
        defined.names[key] = name
        if not is_variant:
            defined.keys[kind][name] = key
    return key


def _make(key: str, row: Any, counterpart: Any, functions: Sequence[Callable[..., Any]]) -> None:
    """Keep the rows of a new formula, and let kernels call its functions."""
    with defined.lock:
        if key not in _made:  # by another thread
            _made[key] = row, counterpart
            defined.FUNCTIONS.extend(functions)


def withdraw(kind: str, name: str, before: str | None = None) -> None:
    """Undo a definition: the name stands for the key `before`, or for nothing."""
    with defined.lock:
        key = defined.keys[kind].pop(name)
        if before is not None:
            defined.keys[kind][name] = before
        if before != key:
            for table in TABLES[kind]:
                table.pop(key, None)
            defined.names.pop(key, None)


# ---------------------------------------------------------------- activations
def define_activation(name: str, value: Any, slope: Any, slope_of: str, check: bool = True) -> str:
    """Add value(z) and slope(z), or slope(y), as an activation; return its key.

    check: False leaves out the comparison with finite differences.

    Raises TypeError for what is no function, FormulaError for what is no formula, or not that of the derivative.
    """
    sources = {"value": source_of("value", value), "slope": source_of("slope", slope)}
    texts = {
        "value": element_text(sources["value"], {"z": "z"}, {}),
        "slope": element_text(sources["slope"], {slope_of: "z"}, {}),
    }
    tag = writing.digest(texts["value"].scalar, texts["slope"].scalar, slope_of)
    key = f"{name}_{tag}"
    if key in _made:
        return _add("activation", name, key)
    scalar = {which: text.scalar_function(f"{name}_{which}_{tag}") for which, text in texts.items()}
    checks.check_activation(sources["value"], sources["slope"], scalar["value"], scalar["slope"], slope_of, check)
    row = formulas.Activation(scalar["value"], scalar["slope"], slope_of, "the user's")
    arrays = {which: text.array_function(f"{name}_{which}", ARRAY_NAMES) for which, text in texts.items()}
    _make(key, row, reference.activation(slope_of, arrays["value"], arrays["slope"]), list(scalar.values()))
    return _add("activation", name, key)


# ---------------------------------------------------------------- losses
def define_loss(
    name: str,
    value: Any,
    gradient: Any,
    params: Mapping[str, Option],
    targets: str,
    link: str | None,
    check: bool = True,
    values: Mapping[str, float] | None = None,
) -> str:
    """Add value(z, t) and gradient(z, t), its derivative by z, as a loss; return its key.

    params: arguments that both may take. Kernels hand on one; of several, `values` are constants of the formula, a row
    for each: None for the defaults. link: a row of ACTIVATIONS. check: as for activations.

    targets "labels": the functions are of log(p) of the right class, see `formulas.losses`; the parameters are
    constants, and there is no link to choose.
    """
    sources = {"value": source_of("value", value), "gradient": source_of("gradient", gradient)}
    by_label, is_variant = targets == "labels", values is not None
    several = by_label or len(params) > 1
    constants = values or {param: option.default for param, option in params.items()} if several else {}
    handed_on: Mapping[str, Option] = {} if several else params
    elements = {"log_p": "log_p"} if by_label else {"z": "z", "t": "t"}
    options, more = dict.fromkeys(handed_on, "a"), "" if by_label else "a"
    texts = {which: element_text(source, elements, options, more, constants) for which, source in sources.items()}
    tag = writing.digest(texts["value"].scalar, texts["gradient"].scalar, targets, link, sorted(params.items()))
    key = f"{name}_{tag}"
    if key in _made:
        return _add("loss", name, key, is_variant)
    scalar = {which: text.scalar_function(f"{name}_{which}_{tag}") for which, text in texts.items()}
    default = next((option.default for option in handed_on.values()), 0.0)
    defaults = {param: option.default for param, option in handed_on.items()}
    pairs = (sources["value"], scalar["value"]), (sources["gradient"], scalar["gradient"])
    checks.check_loss(*pairs, targets, defaults, check, constants)
    arrays = {which: text.array_function(f"{name}_{which}", ARRAY_NAMES) for which, text in texts.items()}
    if by_label:
        return _add_label_loss(name, key, texts, arrays, is_variant)
    fields: dict[str, Any] = {**TARGETS[targets], "link": link}
    if link == "sigmoid" and targets == "fractions":
        fields["boundary"] = (0.0, 0.5)
    row = formulas.Loss(scalar["value"], scalar["gradient"], "dense", "the user's", defaults, **fields)
    other = reference.loss(arrays["value"], arrays["gradient"], default, link, row.boundary, row.binary)
    _make(key, row, other, list(scalar.values()))
    return _add("loss", name, key, is_variant)


def _add_label_loss(
    name: str, key: str, texts: Mapping[str, ElementText], arrays: Mapping[str, Callable[..., Any]], is_variant: bool
) -> str:
    """Add a loss of log(p) of the right class."""
    tag = key.removeprefix(f"{name}_")
    # of a row with z, shifted, of the right class, and log(sum(exp(z))); the target of that class is 1
    begin, lines = ["T = type(z)", "log_p = z - log_sum"], texts["value"].scalar
    value = writing.function(f"{name}_row_{tag}", "z, t, log_sum", [*begin, *lines], writing.SCALAR.names)
    *before, last = texts["gradient"].scalar
    lines = ["T = type(log_p)", *before, f"return -T({last.removeprefix('return ')})"]
    factor = writing.function(f"{name}_factor_{tag}", "log_p", lines, writing.SCALAR.names)
    row = formulas.Loss(
        value, formulas.losses.cross_entropy_slope, "labels", "the user's", link="softmax", factor=factor
    )
    _make(key, row, reference.label_loss(arrays["value"], arrays["gradient"]), [value, factor])
    return _add("loss", name, key, is_variant)


# ---------------------------------------------------------------- optimizers
def define_rule(
    name: str, update: Any, states: Sequence[str], options: Mapping[str, Option], lr: float, decoupled: bool
) -> str:
    """Add update(p, g, s, lr, ...) -> (p, s) as a rule of optimizers; return its key.

    The gradient that it gets has been scaled and clipped, with the penalties added, as that of all rules. Whatever
    depends on options, learning rate and step alone is computed on the host, in float64, once a step.
    """
    source = source_of("update", update)
    rule = UpdateText(source, states, list(options))
    tag = writing.digest(rule.scalar, rule.host, states, sorted(options.items()), decoupled)
    key = f"{name}_{tag}"
    if key in _made:
        return _add("optimizer", name, key)
    function = writing.function(
        f"{name}_{tag}", "p, g, s, h, tiny", rule.scalar,
        {**writing.SCALAR.names, "flush": common.flush, "preprocess_gradient": common.preprocess_gradient},
    )  # fmt: skip
    own = writing.function(f"{name}_scalars", rule.host_arguments, rule.host, writing.HOST.names)
    scalars = _Scalars(own, tuple(options), rule.changing, decoupled)
    row = formulas.Optimizer(
        function,
        tuple(states),
        scalars,
        common.constant if not any(rule.changing[1:]) else not_counted,
        rule_options(lr, **{option: value.default for option, value in options.items()}),
        "the user's",
    )
    checks.check_rule(source, row, options)
    arrays = writing.function(f"{name}_arrays", "p, g, s, h, tiny", rule.arrays, ARRAY_NAMES)
    _make(key, row, reference.update(arrays, own, tuple(options), decoupled), [function])
    return _add("optimizer", name, key)


def not_counted(step, lr, h):
    """Stand-in for `Optimizer.at_step` of rules whose scalars a device that counts its steps cannot compute."""
    raise NotImplementedError


class _Scalars:
    """The columns of h of a user's rule, see `formulas.Optimizer`."""

    def __init__(
        self, own: Callable[..., tuple[float, ...]], options: Sequence[str], changing: Sequence[bool], decoupled: bool
    ) -> None:
        self.own, self.options, self.changing, self.decoupled = own, options, changing, decoupled

    def __call__(
        self,
        steps: Sequence[float],
        rates: list[float],
        weight_decay: float,
        maximize: bool,
        l1: float,
        clip_value: float | None,
        **options: float,
    ) -> tuple[common.Column, ...]:
        columns = common.common_scalars(rates, weight_decay, maximize, l1, clip_value, self.decoupled)
        given = [options[name] for name in self.options]
        if not any(self.changing[1:]):
            return *columns, rates, *self.own(1.0, 0.0, *given)[1:]
        rows = [self.own(float(step), lr, *given) for step, lr in zip(steps, rates, strict=True)]
        values = zip(*(rows or [self.own(1.0, 0.0, *given)]), strict=True)
        return *columns, *(list(v) if changes else v[0] for v, changes in zip(values, self.changing, strict=True))
