"""Rules of your own: one Python function that updates one number becomes an optimizer like those that fastopt has.

    def update(p, g, s, lr, beta):
        velocity = beta * s[0] + g
        return p - lr * velocity, velocity

    HeavyBall = fo.OptimizerRule.define("HeavyBall", update, states=["velocity"], options={"beta": 0.9}, lr=0.01)
    model.compile(HeavyBall(lr=0.1), "mse")  # or HeavyBall(arrays).step(gradients), or compile("heavyball", ...)

`fastopt.activations` says what a formula may be, and what becomes of it. Whatever in it depends on options, `lr` and
`step` alone, such as `1 - beta ** step`, is computed once a step, on the host, in float64; at most 8 such numbers may
meet an element. On "numpy" a rule of + - * / and sqrt has the bits of the compiled kernels.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from .. import _definitions
from .._definitions import options_of
from .._validation import check_flag, check_number, describe
from ..kernels.formulas import defined
from ..kernels.formulas.defined import Option
from ..kernels.formulas.optimizers import (
    CLASSES,
    COMMON_OPTIONS,
    DOMAINS,
    OPTIMIZERS,
    Convention,
    OptimizerClass,
)
from ..kernels.formulas.optimizers.table import Option as ClassOption
from .base import Optimizer
from .optimizers import OPTIMIZER_CLASSES, SETTINGS, make_class

CONVENTION = "own"  # of classes that are defined: they have no other
_RESERVED = {"self", "params", "lr", "step", "t", "tiny", "p", "g", "s", "h", "betas", "beta1", "beta2", "weight_decay"}
_RESERVED |= {*COMMON_OPTIONS, *SETTINGS, "initial_accumulator_value", "decoupled"}
_RESERVED -= {"beta1", "beta2"}
_classes: dict[str, type[Optimizer]] = {}  # by the keys of their rules


class OptimizerRule:
    """Maker of optimizers; `define` is all that it has."""

    @staticmethod
    def define(
        name: str,
        update: Any,
        states: Iterable[str] = (),
        options: Mapping[str, Any] | None = None,
        lr: float = 1e-3,
        decoupled: bool = False,
        doc: str = "",
    ) -> type[Optimizer]:
        """Define an optimizer by the update of one number, and return its class, which is used like `fo.Adam`.

        Args:
            name: of the class. In lower case, `get_optimizer`, `compile` and files know it.
            update: update(p, g, s, lr, step, tiny, **options) -> (p, s), a Python function: the parameter, its
                gradient, and the tuple of its states, and the same of afterwards. Of the others, which are
                given by name, it takes those that it needs: the learning rate, the number of the step from 1 (also
                called `t`), and the options. The gradient has been clipped, negated if `maximize`, and joined by the
                penalties, as that of all optimizers (`fastopt.optim`).
            states: names of the numbers that are kept for each parameter, at most 3; they begin as 0.
            options: hyper-parameters of the class: name -> default, or (default, least, most); of a bool a flag.
            lr: default learning rate.
            decoupled: True: weight decay scales the parameter before the update, as AdamW's; False: it is a penalty.
            doc: beginning of the docstring of the class.

        States that became denormal are 0 after each step, since processors are slow on them. A rule that divides by
        one may take `tiny`, the smallest normal number, and keep its states out of that range itself.

        Returns:
            The class. It has what all optimizers have: schedules, groups, weight decay, clipping, forms of 16-bit
            arrays, state_dict, `backend`. `capturable=True` is refused if the update depends on the step or on `lr`
            other than by a plain `lr`: a GPU that counts its steps does not know the formula of such numbers.
            `fastopt.torch.class_of` makes one of torch's kind of it.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: a name that fastopt has itself, or a function that is no formula, with its line. Nothing is
                defined then.

        Example:
            >>> import numpy as np, fastopt as fo
            >>> def update(p, g, s, lr, beta):
            ...     velocity = beta * s[0] + g
            ...     return p - lr * velocity, velocity
            >>> HeavyBall = fo.OptimizerRule.define("HeavyBall", update, ["velocity"], {"beta": 0.9}, lr=0.5)
            >>> w = np.array([1.0, 2.0])
            >>> opt = HeavyBall(w, backend="numpy")
            >>> opt.step(np.ones(2)), opt.step(np.ones(2)), w.round(3).tolist()
            (True, True, [-0.45, 0.55])
            >>> fo.get_optimizer("heavyball", beta=0.5)
            HeavyBall(lr=0.5, beta=0.5, weight_decay=0.0, maximize=False, backend='cpu')
        """
        from ..kernels import definitions

        _definitions.check_new_name("optimizer", name, {*CLASSES, "momentum", "Optimizer"})
        names = _states(states)
        numbers = options_of("options", options, _RESERVED)
        rate, is_decoupled = check_number("lr", lr, 0.0), check_flag("decoupled", decoupled)
        with defined.lock:
            before = defined.present("optimizer", name)
            key = definitions.define_rule(name, update, names, numbers, rate, is_decoupled)
            if key not in _classes:
                try:
                    _definitions.check_rule(name, key)
                    text = doc or inspect.getdoc(update) or ""
                    _classes[key] = _make_class(name, key, numbers, rate, is_decoupled, text)
                except BaseException:
                    definitions.withdraw("optimizer", name, before)
                    raise
            OPTIMIZER_CLASSES[name.lower()] = _classes[key]
            return _classes[key]


def _states(given: Iterable[str]) -> tuple[str, ...]:
    from ..kernels.definitions import MOST_STATES

    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f"states must be names; got {describe(name)}")
        if name in ("step", "master"):
            raise ValueError(f"states must have names of their own; got {name!r}, which all optimizers may have")
    if len(set(names)) != len(names) or len(names) > MOST_STATES:
        raise ValueError(f"states must be at most {MOST_STATES} different names; got {', '.join(names)}")
    return names


def _make_class(
    name: str, key: str, options: Mapping[str, Option], lr: float, decoupled: bool, doc: str
) -> type[Optimizer]:
    defaults = {"lr": lr, **{option: value.default for option, value in options.items()}}
    row = OptimizerClass(
        name,
        {"lr": None, **dict.fromkeys(options), "weight_decay": 0.0},
        f"{doc or f'{name}, a rule of the user.'}",
        {CONVENTION: Convention(name, {"": key}, defaults, decoupled=decoupled)},
        options={n: ClassOption(value.domain, f"{value.domain}.") for n, value in options.items()},
    )
    domains = {**DOMAINS, **{option: value.domain for option, value in options.items()}}
    members = {
        "_domains": domains,
        "__reduce_ex__": _reduce,
        "__doc__": _docstring(row, defaults),
        "__module__": __name__,
    }
    return make_class(row, Optimizer, members)


def _docstring(row: OptimizerClass, defaults: Mapping[str, Any]) -> str:
    lines = [f"{option}: {row.option(option).doc.rstrip('.')}; {value!r}." for option, value in defaults.items()]
    return "\n".join([row.doc, "", "Args, with their defaults, beside those of all optimizers:", *lines])


def is_defined(cls: type) -> bool:
    """True for a class that `OptimizerRule.define` has made."""
    return cls in _classes.values()


def reference_to(cls: type[Optimizer]) -> tuple[str, str]:
    """The name and the key of a class that was defined, by which `class_named` finds it."""
    return cls.__name__, cls._conventions[CONVENTION].rows[""]


def class_named(name: str, key: str) -> type[Optimizer]:
    """The class of a formula; ValueError if that is not defined in this process."""
    _definitions.check_known("optimizer", name, key, OPTIMIZERS)
    return _classes[key]


def _reduce(self: Optimizer, protocol: Any) -> tuple[Any, ...]:
    """Recipe for pickle and copy: the class is found by its name, and by its formula."""
    return _restored, reference_to(type(self)), self.__getstate__()


def _restored(name: str, key: str) -> Optimizer:
    cls = class_named(name, key)
    return cls.__new__(cls)
