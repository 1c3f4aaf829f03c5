"""torch's optimizers, with updates by our kernels: change the import and keep the program.

    from fastopt.torch import AdamW  # instead of: from torch.optim import AdamW

SGD, Adagrad, RMSprop, Adam and AdamW are subclasses of torch's own. Arguments, parameter groups, state_dict (in both
directions), closures, hooks, schedulers, pickling and copying are torch's, because they are torch's code: only the
update itself is ours.

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

from ._accelerate import turn
from ._explain import Explanation, Placement, explain
from ._step import Accelerated

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Explanation",
    "Placement",
    "RMSprop",
    "accelerate",
    "explain",
]


class SGD(Accelerated, torch.optim.SGD):
    """torch.optim.SGD, with its arguments and its state: momentum_buffer.

        p = p - lr g                                                        momentum = 0
        b = momentum b + (1 - dampening) g  (first step: b = g)             else
        p = p - lr b, or with nesterov p = p - lr (g + momentum b)

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> opt = fastopt.torch.SGD([w], lr=0.1, momentum=0.9)
        >>> for _ in range(2):
        ...     opt.zero_grad()
        ...     w.square().sum().backward()
        ...     opt.step()
        >>> w.detach()
        tensor([0.4600, 0.9200])
    """


class Adagrad(Accelerated, torch.optim.Adagrad):
    """torch.optim.Adagrad, with its arguments and its states: step, sum.

        s = s + g^2;  p = p - lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps)

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.Adagrad([w], lr=0.5).step()
        >>> w.detach()
        tensor([0.5000, 2.5000])
    """


class RMSprop(Accelerated, torch.optim.RMSprop):
    """torch.optim.RMSprop, with its arguments and its states: step, square_avg, momentum_buffer, grad_avg.

        v = alpha v + (1 - alpha) g^2;  d = g / (sqrt(v) + eps)
        centered:      a = alpha a + (1 - alpha) g;  d = g / (sqrt(v - a^2) + eps)
        momentum > 0:  b = momentum b + d;  p = p - lr b;  else  p = p - lr d

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.RMSprop([w], lr=0.05).step()
        >>> w.detach()
        tensor([0.5000, 2.5000])
    """


class Adam(Accelerated, torch.optim.Adam):
    """torch.optim.Adam, with its arguments and its states: step, exp_avg, exp_avg_sq, max_exp_avg_sq.

        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)

    with the largest v so far in place of v if `amsgrad`.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.Adam([w], lr=0.5).step()
        >>> w.detach()
        tensor([0.5000, 2.5000])
    """


class AdamW(Accelerated, torch.optim.AdamW):
    """torch.optim.AdamW: Adam, with p multiplied by 1 - lr weight_decay before each step instead of an L2 penalty.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.AdamW([w], lr=0.5, weight_decay=0.2).step()
        >>> w.detach()
        tensor([0.4000, 2.3000])
    """


_CLASSES: dict[type, type[Accelerated]] = {cls.__bases__[1]: cls for cls in (SGD, Adagrad, RMSprop, Adam, AdamW)}


def accelerate(optimizer: torch.optim.Optimizer) -> Any:
    """Turn an optimizer of torch's into ours, in place: it stays the same object and becomes one of our class.

    Its groups, states, hooks and number of steps stay, and so does whoever holds it: schedulers, scalers, trainers.

    Args:
        optimizer: a torch.optim.SGD, Adagrad, RMSprop, Adam or AdamW; one that is ours already is left as it is.

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
    return turn(optimizer, _CLASSES)
