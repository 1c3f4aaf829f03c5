"""Written by tests/helpers_stubs.py; do not edit."""

from typing import Any

import torch

from ._defined import class_of as class_of
from ._explain import Explanation as Explanation
from ._explain import Placement as Placement
from ._explain import explain as explain
from ._in_backward import StepInBackward as StepInBackward
from ._step import Accelerated

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Explanation",
    "NAdam",
    "Placement",
    "RMSprop",
    "StepInBackward",
    "accelerate",
    "class_of",
    "explain",
    "step_in_backward",
]

def accelerate(optimizer: torch.optim.Optimizer) -> Any: ...
def step_in_backward(optimizer: torch.optim.Optimizer) -> StepInBackward: ...

class SGD(Accelerated, torch.optim.SGD):
    """torch.optim.SGD with its arguments, clip_norm and state_bits; states: momentum_buffer.

        p = p - lr g                                                        momentum = 0
        b = momentum b + (1 - dampening) g  (first step: b = g)             else
        p = p - lr b, or with nesterov p = p - lr (g + momentum b)

    Source: Robbins & Monro 1951. Polyak 1964; Nesterov's form after Sutskever et al. 2013; torch's form.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.SGD([w], lr=0.1, momentum=0.9).step()
        >>> w.detach()
        tensor([0.7000, 2.0100])
    """

class Adagrad(Accelerated, torch.optim.Adagrad):
    """torch.optim.Adagrad with its arguments, clip_norm and state_bits; states: sum.

        s = s + g^2;  p = p - lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps)

    Source: Duchi, Hazan & Singer 2011.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.Adagrad([w], lr=0.5).step()
        >>> w.detach()
        tensor([0.5000, 2.5000])
    """

class Adadelta(Accelerated, torch.optim.Adadelta):
    """torch.optim.Adadelta with its arguments, clip_norm and state_bits; states: square_avg, acc_delta.

        v = rho v + (1 - rho) g^2;  d = sqrt(u + eps) / sqrt(v + eps) g;  u = rho u + (1 - rho) d^2;  p = p - lr d

    Source: Zeiler 2012, algorithm 1.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.Adadelta([w], lr=0.5, rho=0.0, eps=16.0).step()
        >>> w.detach()
        tensor([-0.2000, 2.0500])
    """

class RMSprop(Accelerated, torch.optim.RMSprop):
    """torch.optim.RMSprop with its arguments, clip_norm and state_bits; states: square_avg, momentum_buffer, grad_avg.

        v = alpha v + (1 - alpha) g^2
        d = sqrt(v) + eps, or if centered, with a = alpha a + (1 - alpha) g, d = sqrt(v - a^2) + eps
        p = p - lr g / d, or with momentum b = momentum b + g / d, p = p - lr b

    Source: Tieleman & Hinton 2012, lecture 6.5; torch's form. Graves 2013; torch's form.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.RMSprop([w], lr=0.05).step()
        >>> w.detach()
        tensor([0.5000, 2.5000])
    """

class Adam(Accelerated, torch.optim.Adam):
    """torch.optim.Adam with its arguments, clip_norm and state_bits; states: exp_avg, exp_avg_sq, max_exp_avg_sq.

        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    With `amsgrad` the largest v so far stands in for v.

    Source: Kingma & Ba 2015, algorithm 1; torch's form. Reddi, Kale & Kumar 2018, algorithm 2; torch's form. Loshchilov
    & Hutter 2019; torch's form. Reddi, Kale & Kumar 2018, algorithm 2; torch's form, decoupled decay.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.Adam([w], lr=0.5).step()
        >>> w.detach()
        tensor([0.5000, 2.5000])
    """

class AdamW(Accelerated, torch.optim.AdamW):
    """torch.optim.AdamW with its arguments, clip_norm and state_bits; states: exp_avg, exp_avg_sq, max_exp_avg_sq.

        p = p (1 - lr weight_decay);  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    With `amsgrad` the largest v so far stands in for v.

    Source: Loshchilov & Hutter 2019; torch's form. Reddi, Kale & Kumar 2018, algorithm 2; torch's form, decoupled
    decay.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.AdamW([w], lr=0.5, weight_decay=0.1).step()
        >>> w.detach()
        tensor([0.4500, 2.4000])
    """

class NAdam(Accelerated, torch.optim.NAdam):
    """torch.optim.NAdam with its arguments, clip_norm and state_bits; states: exp_avg, exp_avg_sq.

        mu(k) = beta1 (1 - 0.96^(k momentum_decay) / 2);  M = mu(1) ... mu(step);  m, v: as Adam's
        d = mu(step + 1) m / (1 - M mu(step + 1)) + (1 - mu(step)) g / (1 - M)
        p = p - lr d / (sqrt(v / (1 - beta2^step)) + eps)

    Source: Dozat 2016, algorithm 2; torch's form.

    Example:
        >>> import torch, fastopt.torch
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> w.grad = torch.tensor([3.0, -0.1])
        >>> fastopt.torch.NAdam([w], lr=0.5, betas=(0.0, 0.999)).step()
        >>> w.detach()
        tensor([0.5000, 2.5000])
    """
