"""Classes of losses that users define."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from . import _backends, _definitions
from ._validation import check_flag, check_name
from .kernels import definitions
from .kernels.definitions import TARGETS
from .kernels.formulas import LOSSES, OUTPUTS, defined
from .kernels.formulas.defined import Option
from .kernels.language.source import source_of
from .kernels.spec import LossSpec

_classes: dict[str, Any] = {}  # by the keys of their rows


def define(
    base: Any,
    name: str,
    value: Any,
    gradient: Any,
    params: Mapping[str, Any] | None,
    targets: str,
    link: str | None,
    check: bool,
) -> Any:
    """The class of a loss, derived from `base`, see `Loss.define`; its name has been checked."""
    numbers = _definitions.options_of("params", params, ("self", "z", "t", "log_p", "backend", "name"))
    check_name("targets", targets, TARGETS)
    by_label = targets == "labels"
    if link is not None:
        check_name("link", link, ["softmax"] if by_label else [output for output in OUTPUTS if output != "softmax"])
    link = None if by_label else link  # theirs is always softmax
    check_flag("check", check)
    sources = source_of("value", value), source_of("gradient", gradient)
    with defined.lock:
        before = defined.present("loss", name)
        key = definitions.define_loss(name, *sources, numbers, targets, link, check)
        if key not in _classes:
            try:
                spec = LossSpec(key, {param: option.default for param, option in numbers.items()})
                _definitions.check_loss(name, spec, targets)
                doc = inspect.getdoc(value) or f"{name}, a loss of the user."
                variant = partial(
                    definitions.define_loss, name, *sources, numbers, targets, link, check
                ) if len(numbers) > (not by_label) else None  # fmt: skip
                _classes[key] = _make_class(base, name, key, numbers, doc, variant)
            except BaseException:
                definitions.withdraw("loss", name, before)
                raise
        return _classes[key]


def _make_class(
    base: Any, name: str, key: str, params: Mapping[str, Option], doc: str, variant: Callable[..., str] | None
) -> Any:
    """The class; variant(values=) is the key of the row whose constants are these parameters, None: they are none."""
    kind = inspect.Parameter
    own = [kind(param, kind.POSITIONAL_OR_KEYWORD, default=option.default) for param, option in params.items()]
    backend = kind("backend", kind.KEYWORD_ONLY, default=_backends.DEFAULT)
    signature = inspect.Signature([kind("self", kind.POSITIONAL_OR_KEYWORD), *own, backend])

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        base.__init__(**bound.arguments)
        if variant is not None:
            with defined.lock:
                self.spec = self.spec._replace(name=variant(values=self.spec.params))

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    members = {
        "__doc__": doc,
        "__module__": __name__,
        "__init__": __init__,
        "__reduce__": _reduce,
        "name": name,
        "_key": key,
        "_domains": {param: option.domain for param, option in params.items()},
    }
    return type("".join(part.title() if part.islower() else part for part in name.split("_")), (base,), members)


def _reduce(self: Any) -> tuple[Any, ...]:
    """Recipe for pickle and copy: the class is found by its name, and by its formula."""
    return restored, (self.name, self._key, dict(self.spec.params), self.backend)


def restored(name: str, key: str, params: dict[str, float], backend: str) -> Any:
    """A loss of a class that was defined, for pickle; ValueError if it is not defined here."""
    _definitions.check_known("loss", name, key, LOSSES)
    return _classes[key](**params, backend=backend)
