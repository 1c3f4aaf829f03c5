"""Names of arguments in other libraries' optimizers, with a hint for users who write them here."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

_BETAS = "give betas=(beta1, beta2)"
_TORCH = "it chooses among torch's implementations, and here is one"
_EMA = "no average of the parameters is kept: take it after each step"
_DTYPES = "states have the dtype of their array, and float32 for arrays of 16 bits"

FOREIGN_ARGUMENTS: dict[str, str] = {
    "learning_rate": "it is called lr",
    "learning_rate_init": "it is called lr",
    "lr_schedule": "give lr a schedule, see fastopt.schedules",
    "power_t": "give lr a schedule, see fastopt.schedules",
    "b1": _BETAS,
    "b2": _BETAS,
    "beta_1": _BETAS,
    "beta_2": _BETAS,
    "epsilon": "it is called eps",
    "rho": "RMSprop's is called alpha",
    "decay": "RMSprop's is called alpha",
    "alpha": "RMSprop has one; scikit-learn's is weight_decay times the rows of a batch",
    "nesterov": "SGD has it, and Adam and AdamW in the convention optax",
    "nesterovs_momentum": "it is called nesterov",
    "eps_in_sqrt": "the convention torch has eps beside the root, keras and optax have it inside",
    "initial_scale": "the second moment starts from 0",
    "bias_correction": "RMSprop's moments are not corrected; Adam with betas=(0, alpha) corrects its second one",
    "clipnorm": "it is called clip_each",
    "clipvalue": "it is called clip_value",
    "global_clipnorm": "it is called clip_norm",
    "loss_scale_factor": "give step a grad_scale",
    "gradient_accumulation_steps": "add the gradients up before step, or give Sequential.fit accumulate",
    "use_ema": _EMA,
    "ema_momentum": _EMA,
    "ema_overwrite_frequency": _EMA,
    "name": "optimizers have no names",
    "mask": 'give groups: [{"params": ..., "weight_decay": 0.0}, {"params": ...}]',
    "weight_decay_mask": 'give groups: [{"params": ..., "weight_decay": 0.0}, {"params": ...}]',
    "mu_dtype": _DTYPES,
    "accumulator_dtype": _DTYPES,
    "optim_bits": "it is called state_bits",
    "min_8bit_size": "arrays of fewer than 4,096 elements have whole states; give a group state_bits=32 for others",
    "foreach": _TORCH,
    "fused": _TORCH,
    "differentiable": "steps are not differentiated; fastopt.torch leaves that to torch",
    "decoupled_weight_decay": "AdamW is Adam with it",
}


def refuse_foreign(cls: type, given: Iterable[str]) -> None:
    """Raise TypeError for an argument that only another library's class has, with our name of it."""
    for word in given:
        if word in FOREIGN_ARGUMENTS and word not in _arguments(cls):
            raise TypeError(f"{cls.__name__} has no argument {word}: {FOREIGN_ARGUMENTS[word]}")


def hints_for(unknown: Iterable[str]) -> str:
    """Hints for other libraries' words among unknown ones, to be appended to an error message."""
    return "".join(f"; {word}: {FOREIGN_ARGUMENTS[word]}" for word in unknown if word in FOREIGN_ARGUMENTS)


def _arguments(cls: type) -> frozenset[str]:
    """The names of a class's arguments; all known names for a class with **kwargs."""
    parameters = inspect.signature(cls).parameters.values()
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return frozenset(FOREIGN_ARGUMENTS) if anything else frozenset(parameter.name for parameter in parameters)
