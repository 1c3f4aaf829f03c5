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
  updates some of them, torch's code clips, and that waits for the GPU. It is refused inside of torch's
  ZeroRedundancyOptimizer, where an optimizer has one rank's share of the parameters.
- With `state_bits=8`, an argument of every class and an entry of groups, the states of parameters of 4,096 elements
  and more are codes of 8 bits (`fastopt.optim`), `state1` and `absmax1` of each. A state_dict has them in the layout of
  bitsandbytes' Adam8bit, and that of bitsandbytes, or torch's own, can be loaded. `state_rounding="stochastic"` rounds
  them at random, by numbers that depend on `seed`.
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

Rules of your own (`fo.OptimizerRule.define`) become optimizers of torch's kind by `class_of`.

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
from ._defined import class_of
from ._explain import Explanation, Placement, explain
from ._in_backward import StepInBackward, make_handle
from ._rules import ROWS, torch_class
from ._step import Accelerated


def _make_class(row: OptimizerClass) -> type[Accelerated]:
    """Our subclass of torch's class for a row of CLASSES."""
    members = {"__doc__": torch_docstring(row), "__module__": __name__, "_has_derived": bool(row.derived)}
    return type(row.name, (Accelerated, torch_class(row)), members)  # type: ignore[return-value]


_CLASSES: dict[type, type[Accelerated]] = {peer: _make_class(row) for peer, row in ROWS.items()}
globals().update({cls.__name__: cls for cls in _CLASSES.values()})  # type checkers see them in `__init__.pyi`
__all__ = ["Explanation", "Placement", "StepInBackward", "accelerate", "class_of", "explain", "step_in_backward"]
__all__ += [cls.__name__ for cls in _CLASSES.values()]


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


def step_in_backward(optimizer: torch.optim.Optimizer) -> StepInBackward:
    """Update each parameter inside `loss.backward()`, as soon as its gradient is complete, and free the gradient.

    The gradients of a model are then never all in memory: of n equal layers, one n-th of them is. Parameters and states
    get the bits of a step after the backward pass. On the CPU and on GPUs, for every optimizer here.

        handle = fastopt.torch.step_in_backward(optimizer)
        for x, y in batches:
            criterion(model(x), y).backward()  # updates the model
            scheduler.step()
        handle.remove()                        # optimizer.step() updates it again

    - `optimizer.step()` is not needed. It may be called after every backward pass, as before: it calls the hooks of
      steps, counts nothing twice, and updates what still has a gradient, such as one that was set by hand. With a
      closure, which calls backward, it returns the loss. `zero_grad()` finds nothing to do.
    - Learning-rate schedulers, `state_dict` and `load_state_dict` work as before. Copies and pickles of the optimizer
      have their steps outside of backward.
    - Every backward pass is a step. Gradients cannot be accumulated over several: with `step()` after the last of
      them, that raises RuntimeError.
    - A parameter that gets no gradient in a backward pass is not updated, and its steps are not counted.
    - Gradients of less than 4 MiB wait for others, or for the end of the pass, and are updated in one launch.
    - Changes that are made to gradients after the pass find none: torch.nn.utils.clip_grad_norm_, GradScaler.unscale_.
      Hooks of the tensor itself (`register_hook`) come before the update.
    - If an error ends a backward pass, some parameters have been updated, others have not.
    - torch.utils.checkpoint must have use_reentrant=False if a parameter is used in several of its segments.

    Args:
        optimizer: one of this module's. Not one of torch.optim's, which `accelerate` converts.

    Returns:
        A handle with `remove()`, which leaves steps to `optimizer.step()` again; also a context manager.

    Raises:
        TypeError: for an optimizer that is not of this module, or of a class with a `step` of its own.
        ValueError: with `clip_norm`, for the norm of all gradients is not known before the last of them; with
            `differentiable`; if the optimizer has a handle already, or another one with a handle has the parameter.
        RuntimeError: in torch.distributed with several processes, where gradients are averaged later. Also raised by
            `optimizer.step()` if a GradScaler calls it, as parameters have been updated by scaled gradients.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.ones(3, requires_grad=True)
        >>> optimizer = fastopt.torch.SGD([w], lr=0.5)
        >>> with fastopt.torch.step_in_backward(optimizer):
        ...     w.sum().backward()
        >>> w.tolist(), w.grad
        ([0.5, 0.5, 0.5], None)
    """
    return make_handle(optimizer, _CLASSES)
