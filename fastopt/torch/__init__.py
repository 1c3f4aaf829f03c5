"""torch's optimizers, with updates by our kernels: change the import and keep the program.

    from fastopt.torch import AdamW  # instead of: from torch.optim import AdamW

SGD, Adagrad, Adadelta, RMSprop, Adam, AdamW and NAdam are subclasses of torch's own. Arguments, parameter groups,
state_dict (in both directions), closures, hooks, schedulers, pickling and copying are torch's, because they are torch's
code: only the update itself is ours.

- Parameters on the CPU of dtype float32, float64, float16 or bfloat16 are updated by our kernels, in place and in one
  pass over memory, with up to as many threads as `torch.get_num_threads()` says, and no more than
  `fastopt.get_num_threads()`. Neither is changed, and results are the same bits for any number.
- Of float16 and bfloat16 parameters the states have the same dtype, as torch makes them. A step calculates in float32,
  as torch's `fused` ones do, and rounds what it writes once, to nearest; torch's default rounds after every operation.
- CUDA tensors of these dtypes are updated by our CUDA kernels, where the extra `fastopt[cuda]` is installed: one
  launch for all of a dtype on a device, on torch's current stream, without waiting for the device. Each of several GPUs
  may have a part of the parameters. With `fused` or `capturable` the number of steps is on the device, as torch keeps
  it there: a GradScaler's scale and verdict are then read there, the learning rate may be a tensor there, and a step
  may be captured into a CUDA graph, after one that was not. SGD, which has no such number, can always be captured. The
  first step compiles its kernels, which are then kept on disk.
- Everything else is updated by torch's own code, in the same step: sparse and complex gradients, other devices and
  dtypes, subclasses of Tensor, parameters with gaps between elements or that share memory, and `differentiable`.
  `explain` says who updates what, and why.
- With `clip_norm=1.0`, of every class here, or the attribute of that name at any time, a step first brings the norm of
  all gradients together down to 1.0, as torch.nn.utils.clip_grad_norm_ would before it: but without writing to the
  gradients, which saves two passes over them. `optimizer.grad_norm` then is what the norm was: a number, or a float64
  tensor on the GPU where all parameters are. No checkpoint has it. Where parameters are in several places, or some are
  torch's to update, torch clips, and that waits for the GPU.
- NAdam's `mu_product` follows from the step and the present betas. Where it does not, because they have changed between
  steps (OneCycleLR and CyclicLR change them), and with `capturable` on a GPU, steps are torch's own.
- `foreach` and `fused` are accepted; they choose between torch's own implementations, so they matter only for the
  parameters that those update, and for a GradScaler, which leaves unscaling to the step with fused=True.
- On Linux a step runs on torch's own OpenMP threads, which after a backward pass are awake and have the cores.
  Elsewhere, in a process that was forked when torch was loaded, and where NUMBA_THREADING_LAYER names one of Numba's
  threading layers (tbb, omp), it runs on those of the layer, with the same bits.
- Results agree with torch's within rounding. On the CPU numbers below the smallest normal one count as zero (sums and
  means of squares become that number instead), because processors are slow on them: see `fastopt.optim`. Threads keep
  their own setting, that of torch.set_flush_denormal. And with `centered`, RMSprop takes
  a variance that rounding has made negative as zero, where torch gets NaN.

Needs PyTorch, which the extra `fastopt[torch]` installs.
"""

from __future__ import annotations

from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    needs = 'fastopt.torch needs PyTorch; install it with: pip install "fastopt[torch]"'
    raise ModuleNotFoundError(needs, name="torch") from error

from ..kernels.formulas.optimizers import OptimizerClass
from ..optim._docstrings import torch_docstring
from ._accelerate import convert
from ._explain import Explanation, Placement, explain
from ._rules import ROWS, derived_numbers, torch_class
from ._step import Accelerated, step_as_torch


def _make_class(row: OptimizerClass) -> type[Accelerated]:
    """Our subclass of torch's class for a row of CLASSES."""
    members: dict[str, Any] = {"__doc__": torch_docstring(row), "__module__": __name__}
    if row.derived:
        members["step"] = _step_with_derived
    return type(row.name, (Accelerated, torch_class(row)), members)  # type: ignore[return-value]


def _step_with_derived(self: Accelerated, closure: Any = None) -> Any:
    """The step of an optimizer with numbers in its states that follow from the steps done, which ours does not write.

    They do not follow if hyper-parameters have changed between steps: such a step is torch's own.
    """
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    if torch.compiler.is_compiling() or any(abs(float(a) - b) > 1e-6 + 1e-3 * b for a, b in derived_numbers(self)):
        step_as_torch(self)
    else:
        Accelerated.step(self)
        for number, value in derived_numbers(self):
            number.fill_(value)
    return loss


_CLASSES: dict[type, type[Accelerated]] = {peer: _make_class(row) for peer, row in ROWS.items()}
globals().update({cls.__name__: cls for cls in _CLASSES.values()})  # type checkers see them in `__init__.pyi`
__all__ = ["Explanation", "Placement", "accelerate", "explain", *[cls.__name__ for cls in _CLASSES.values()]]


def accelerate(optimizer: torch.optim.Optimizer) -> Any:
    """Turn an optimizer of torch's into ours, in place: it stays the same object and becomes one of our class.

    Its groups, states, hooks and number of steps stay, and so does whoever holds it: schedulers, scalers, trainers.

    Args:
        optimizer: one of torch.optim of which there is a class here; one that is ours already is left as it is.

    Returns:
        The optimizer.

    Raises:
        TypeError: for other classes, derived ones included, because what they change would be lost.
        ValueError: if the object's own `step` was replaced by another function than a scheduler's.

    Example:
        >>> import torch, fastopt.torch
        >>> opt = torch.optim.Adam([torch.zeros(3, requires_grad=True)])
        >>> fastopt.torch.accelerate(opt) is opt
        True
        >>> isinstance(opt, fastopt.torch.Adam)
        True
    """
    return convert(optimizer, _CLASSES)
