"""Subclasses of torch's optimizers, updated by our kernels: change the import, keep the program.

    from fastopt.torch import AdamW  # instead of: from torch.optim import AdamW

SGD, Adagrad, Adadelta, RMSprop, Adam, AdamW and NAdam are subclasses of torch's own. Arguments, parameter groups,
state_dict (in both directions), closures, hooks, schedulers, pickling and copying are torch's, because they are torch's
code: only the update itself is ours.

- CPU parameters of dtype float32, float64, float16 or bfloat16 are updated by our kernels, in place and in one pass
  over memory, by at most `torch.get_num_threads()` and `fastopt.get_num_threads()` threads. Results are the same
  bits for any number of threads.
- States of float16 and bfloat16 parameters have the same dtype, as in torch. A step computes in float32, as torch's
  `fused` ones do, and rounds its results once, to nearest; torch's default rounds after every operation.
- CUDA parameters of these dtypes are updated by our CUDA kernels, if the extra `fastopt[cuda]` is installed: one launch
  for each dtype and device, on torch's current stream, without waiting for the device. Parameters may be on several
  GPUs. With `fused` or `capturable` the number of steps is on the device, as in torch: a GradScaler's scale and verdict
  are then read there, the learning rate may be a tensor there, and a step can be captured into a CUDA graph, after one
  that was not. SGD, which has no such number, can always be captured. The first step compiles its kernels, which are
  kept on disk.
- All other parameters are updated by torch's own code, in the same step: those with sparse or complex gradients, other
  devices or dtypes, subclasses of Tensor, parameters with gaps between elements or that share memory, and
  `differentiable`. `explain` returns which code updates each parameter, and why.
- With `clip_norm=1.0`, an argument and an attribute of every class here, a step first scales all gradients so that
  their common norm is at most 1.0, as torch.nn.utils.clip_grad_norm_ before it would, but without writing to the
  gradients, which saves two passes over them. `optimizer.grad_norm` is the norm before clipping: a number, or a float64
  tensor on the GPU that holds all parameters. Neither is in checkpoints. If parameters are on several devices, or torch
  updates some of them, torch's code clips, and that waits for the GPU.
- NAdam's `mu_product` follows from the step and the present betas. Where it does not, because they have changed between
  steps (OneCycleLR and CyclicLR change them), and with `capturable` on a GPU, steps are torch's own.
- `foreach` and `fused` choose between torch's own implementations, so they matter only for the parameters that torch's
  code updates, and for a GradScaler, which leaves unscaling to a step with fused=True.
- On Linux a step runs on torch's OpenMP threads, which are awake after a backward pass. Elsewhere, in a process that
  was forked after torch was loaded, and if NUMBA_THREADING_LAYER names one of Numba's threading layers (tbb, omp), it
  runs on the layer's threads, with the same bits.
- Results agree with torch's within rounding. On the CPU denormal numbers count as zero (sums and means of squares
  become the smallest normal number instead), because processors are slow on them: see `fastopt.optim`. The threads' own
  setting, that of torch.set_flush_denormal, is kept. With `centered`, RMSprop takes a variance that rounding has made
  negative as zero, where torch gets NaN.

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
from ._rules import ROWS, torch_class
from ._step import Accelerated


def _make_class(row: OptimizerClass) -> type[Accelerated]:
    """Our subclass of torch's class for a row of CLASSES."""
    members = {"__doc__": torch_docstring(row), "__module__": __name__, "_has_derived": bool(row.derived)}
    return type(row.name, (Accelerated, torch_class(row)), members)  # type: ignore[return-value]


_CLASSES: dict[type, type[Accelerated]] = {peer: _make_class(row) for peer, row in ROWS.items()}
globals().update({cls.__name__: cls for cls in _CLASSES.values()})  # type checkers see them in `__init__.pyi`
__all__ = ["Explanation", "Placement", "accelerate", "explain", *[cls.__name__ for cls in _CLASSES.values()]]


def accelerate(optimizer: torch.optim.Optimizer) -> Any:
    """Convert an optimizer of torch's into ours, in place: the same object gets our class.

    Its groups, states, hooks and number of steps stay. Schedulers, scalers and trainers may go on using it.

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
