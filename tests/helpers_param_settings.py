"""Parameters with settings of their own, and parameters that are not updated: a backend against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from helpers_network import TOLERANCE, data_for, kept_in, params_for

from fastopt.kernels import reference
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Batches, DenseSpec, DropoutSpec, LayerSpec, LossSpec, OptimizerSteps, ParamSettings

LAYERS: list[LayerSpec] = [
    DenseSpec(7, 6, "tanh"), DropoutSpec(0.25), DenseSpec(6, 5, "silu", False), DenseSpec(5, 4, "tanh"),
    DenseSpec(4, 3),
]  # fmt: skip
NUM_PARAMS = 7
NEUTRAL = ParamSettings()

# Settings of each parameter of LAYERS: w0, b0, w1, w2, b2, w3, b3.
SETTINGS: dict[str, list[ParamSettings]] = {
    "rates": [ParamSettings(lr_scale=scale) for scale in (0.5, 2.0, 1.0, 0.0, 1.0, 0.25, 2.0)],
    "decay": [ParamSettings(weight_decay=decay) for decay in (0.3, 0.0, None, 0.1, 0.0, None, 0.0)],
    "l2": [ParamSettings(l2=0.1), NEUTRAL, ParamSettings(l2=0.02), NEUTRAL, NEUTRAL, NEUTRAL, ParamSettings(l2=0.3)],
    "l1": [ParamSettings(l1=0.1), NEUTRAL, NEUTRAL, ParamSettings(l1=0.02), NEUTRAL, NEUTRAL, ParamSettings(l1=0.3)],
    "late": [ParamSettings(late=late) for late in (3, 3, 0, 0, 0, 2, 3)],
    "all": [
        ParamSettings(0.5, 0.2, 0.01, 0.02), ParamSettings(2.0, 0.0), ParamSettings(l1=0.05, l2=0.01),
        ParamSettings(1.0, None, 0.0, 0.1, 3), NEUTRAL, ParamSettings(0.5, 0.2, 0.01, 0.02), ParamSettings(0.1),
    ],
}  # fmt: skip

# Numbers of the parameters of LAYERS that are not updated.
FROZEN: dict[str, tuple[int, ...]] = {
    "first layer": (0, 1),
    "lowest two": (0, 1, 2),
    "middle": (2,),
    "last": (5, 6),
    "all but biases": (0, 2, 3, 5),
    "biases": (1, 4, 6),
    "bias alone above frozen layers": (0, 1, 2, 3),
    "all but the last bias": (0, 1, 2, 3, 4, 5),
    "all": tuple(range(NUM_PARAMS)),
}


class Trained:
    """A network with parameters and states of its own, on a backend, after some epochs."""

    def __init__(
        self, backend: Any, dtype: str, rule: str, settings: list[ParamSettings] | None = None,
        frozen: tuple[int, ...] = (), layers: list[LayerSpec] = LAYERS, epochs: int = 2, batch_size: int = 4,
        accumulate: int = 1, clip_norm: float | None = None, num_rows: int = 14,
        sizes: list[int] | None = None, divisors: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        more = {"compute": dtype} if dtype == "bfloat16" else {}
        kept = kept_in(dtype)
        self.params = params_for(np.random.default_rng(1), layers, kept)
        self.before = [p.copy() for p in self.params]
        self.states = [
            None if i in frozen else tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states)
            for i, p in enumerate(self.params)
        ]
        self.net = backend.Network(layers, self.params, kept, LossSpec("mean_squared_error"), [], **more)
        x, y = data_for(np.random.default_rng(0), "mean_squared_error", num_rows, 7, 3, kept)
        options = {**OPTIMIZERS[rule].options, **options}
        batches = Batches(x, y, np.arange(num_rows), batch_size, accumulate)
        if sizes:
            batches = batches._replace(batch_size=max(sizes), sizes=np.array(sizes))
        self.losses: list[float] = []
        for epoch in range(epochs):
            rates = 0.01 * (1 + np.arange(epoch * batches.steps, (epoch + 1) * batches.steps))
            steps = OptimizerSteps(
                rule, self.states, options, rates, 3 + epoch * batches.steps, clip_norm, tuple(settings or ()),
                penalty_divisors=batches.weight_of_steps() if divisors else None,
            )  # fmt: skip
            self.losses += self.net.train(batches, steps, 5).losses.tolist()


def assert_like_reference(backend: Any, dtype: str, rule: str, **options: Any) -> Trained:
    """Train on a backend and on the reference: parameters, states and losses agree; frozen parameters keep their bits.

    Returns the training on the backend.
    """
    ours, theirs = (Trained(some, dtype, rule, **options) for some in (backend, reference))
    rounding = {"rtol": 50 * TOLERANCE[dtype], "atol": 50 * TOLERANCE[dtype]}
    np.testing.assert_allclose(ours.losses, theirs.losses, **rounding)
    for before, p, expected, states, expected_states in zip(
        ours.before, ours.params, theirs.params, ours.states, theirs.states, strict=True
    ):
        if states is None:
            np.testing.assert_array_equal(p, before)
            np.testing.assert_array_equal(expected, before)
            continue
        assert not np.array_equal(p, before) or options.get("settings") is SETTINGS["rates"]
        for a, b in zip((p, *states), (expected, *(expected_states or ())), strict=True):
            np.testing.assert_allclose(a, b, **rounding)
    return ours
