"""Arrays that share hyper-parameters."""

from __future__ import annotations

from typing import Any

from ._hyper import rate
from ._slot import Slot
from .kernels.formulas import OPTIMIZERS

Hyper = dict[str, Any]


class Group:
    """Arrays that share hyper-parameters. `public` is the dictionary that users read and change."""

    def __init__(self, public: Hyper, slots: list[Slot], decoupled: bool) -> None:
        self.public = public
        self.slots = slots
        self.decoupled = decoupled  # of rules that take weight decay in both ways
        self.values: tuple[Any, ...] = ()  # the hyper-parameters that `rule` and `options` were made from
        self.rule = ""
        self.options: dict[str, Any] = {}  # of the rule; lr may be a schedule

    def take(self, rule: str, hyper: Hyper) -> None:
        """Takes over checked hyper-parameters, and gives the arrays the states that they need now."""
        self.public.update(hyper)
        named = {**hyper, "decoupled": self.decoupled}
        if "betas" in named:
            named["beta1"], named["beta2"] = named.pop("betas")
        self.options = {name: named[name] for name in OPTIMIZERS[rule].options}
        self.rule = rule
        self.values = tuple(hyper.values())
        for slot in self.slots:
            slot.use(rule, hyper.get("initial_accumulator_value", 0.0))

    def at(self, step: int) -> dict[str, Any]:
        """The options for a step, counted from 0: with the learning rate that a schedule gives for it."""
        lr = self.options["lr"]
        return {**self.options, "lr": rate(lr, step)} if callable(lr) else self.options
