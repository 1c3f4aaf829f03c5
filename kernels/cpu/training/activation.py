"""Phases of an activation that is a layer of its own, in the program of a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ... import costs
from ...formulas import ACTIVATIONS
from ...spec import ActivationSpec
from ..dense.layer import activate_kernel, slope_kernel
from ..dense.losses import activate_rows_kernel
from ..dense.slopes import slope_rows_kernel
from ..runtime.records import ACTIVATE, SLOPES, fill
from .phases import PhaseList


class Activated(NamedTuple):
    """An activation of the forward pass, saved for backward."""

    x: np.ndarray
    y: np.ndarray
    spec: ActivationSpec
    compute: str


def add_activation(program: PhaseList, spec: ActivationSpec, x: np.ndarray, compute: str) -> Activated:
    """Add y = f(x)."""
    y, name, net = program.zeros(*x.shape), spec.activation, program.net
    code = activate_kernel(name, compute).address
    record = fill(ACTIVATE, run=program.run, z=x, y=y, columns=spec.columns, activate=code)
    cost = costs.activate(spec.columns, name, False, net.itemsize)
    program.add(activate_rows_kernel(net.dtype), record, barrier=True, cost=cost)
    return Activated(x, y, spec, compute)


def add_slopes(program: PhaseList, saved: Activated, dy: np.ndarray) -> None:
    """Add dx = dy f'(s), in the place of dy."""
    columns, name, net = saved.spec.columns, saved.spec.activation, program.net
    scratch = np.zeros((program.num_ranks, columns))
    program.kept.append(scratch)
    s = saved.y if ACTIVATIONS[name].uses == "y" else saved.x
    code = slope_kernel(name, saved.compute).address
    record = fill(SLOPES, run=program.run, dz=dy, s=s, columns=columns, slope=code, scratch=scratch)
    cost = costs.slopes(columns, name, False, None, net.itemsize)
    program.add(slope_rows_kernel(net.dtype), record, barrier=True, cost=cost)
