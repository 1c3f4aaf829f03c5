"""Written by tests/helpers_stubs.py; do not edit."""

from collections.abc import Callable
from typing import Any

from .base import Optimizer as Optimizer
from .rules import OptimizerRule as OptimizerRule

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "NAdam",
    "Optimizer",
    "OptimizerRule",
    "RMSprop",
    "get_optimizer",
]

Rate = float | Callable[[int], float]  # a number or a schedule

OPTIMIZER_CLASSES: dict[str, Any]

def get_optimizer(optimizer: str | Optimizer | type[Optimizer], **hyper: Any) -> Optimizer: ...

class SGD(Optimizer):
    """Stochastic gradient descent, plain or with (heavy-ball or Nesterov) momentum.

        p = p - lr g                                                        momentum = 0
        b = momentum b + (1 - dampening) g  (first step: b = g)             else
        p = p - lr b, or with nesterov p = p - lr (g + momentum b)

    Source: Robbins & Monro 1951. Polyak 1964; Nesterov's form after Sutskever et al. 2013; torch's form.

    States: momentum_buffer, velocity.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        momentum: at least 0; 0 for none.
        dampening: of the gradient's entry into the buffer.
        weight_decay: L2 penalty, at least 0; see the module.
        nesterov: needs momentum > 0 and dampening 0; in other conventions without effect if momentum is 0.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: bounds of gradients, of one kind at most, above 0; see the module.
        convention: "torch", "keras", "optax" or "sklearn": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        state_bits, state_rounding: 8: states as codes of 8 bits, rounded to nearest or stochastically; see the module.
        capturable: steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, "numpy" for the reference, or "cuda" for arrays of a GPU.

    Defaults of the conventions:
        torch (torch.optim.SGD): lr=0.001, momentum=0.0, nesterov=False
        keras (keras.optimizers.SGD): lr=0.01, momentum=0.0, nesterov=False
        optax (optax.sgd): momentum=0.0, nesterov=False
        sklearn (scikit-learn's solver sgd): lr=0.001, momentum=0.9, nesterov=True

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.SGD(w, lr=0.1, momentum=0.9, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> w.round(3).tolist()
        [0.7, 2.01]
    """
    def __init__(
        self,
        params: Any = None,
        lr: Rate | None = None,
        momentum: float | None = None,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool | None = None,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        clip_value: float | None = None,
        clip_each: float | None = None,
        state_bits: int = 32,
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        state_rounding: str = "nearest",
        backend: str = "cpu",
    ) -> None: ...

class Lion(Optimizer):
    """Lion: steps of one size, lr, by the sign of a momentum.

        p = p (1 - lr weight_decay);  p = p - lr sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g

    Source: Chen et al. 2023.

    States: exp_avg.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        betas: (beta1, beta2), each in [0, 1).
        weight_decay: decoupled weight decay, at least 0: it scales the parameter before the step.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: bounds of gradients, of one kind at most, above 0; see the module.
        convention: "paper", "keras" or "optax": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        state_bits, state_rounding: 8: states as codes of 8 bits, rounded to nearest or stochastically; see the module.
        capturable: steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, "numpy" for the reference, or "cuda" for arrays of a GPU.

    Defaults of the conventions:
        paper (Lion of Chen et al. 2023): lr=0.0001, weight_decay=0.0
        keras (keras.optimizers.Lion): lr=0.001, weight_decay=0.0
        optax (optax.lion): weight_decay=0.001

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.Lion(w, lr=0.5, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> w.round(3).tolist()
        [0.5, 2.5]
    """
    def __init__(
        self,
        params: Any = None,
        lr: Rate | None = None,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float | None = None,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        clip_value: float | None = None,
        clip_each: float | None = None,
        state_bits: int = 32,
        clip_norm: float | None = None,
        convention: str = "paper",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        state_rounding: str = "nearest",
        backend: str = "cpu",
    ) -> None: ...

class Adagrad(Optimizer):
    """Adagrad: steps divided by the root of the sum of all squared gradients so far.

        s = s + g^2;  p = p - lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps)

    Source: Duchi, Hazan & Singer 2011.

    States: sum.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        lr_decay: at least 0.
        weight_decay: L2 penalty, at least 0; see the module.
        initial_accumulator_value: of s, at least 0.
        eps: at least 0.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: bounds of gradients, of one kind at most, above 0; see the module.
        convention: "torch", "keras" or "optax": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        state_bits, state_rounding: 8: states as codes of 8 bits, rounded to nearest or stochastically; see the module.
        capturable: steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, "numpy" for the reference, or "cuda" for arrays of a GPU.

    Defaults of the conventions:
        torch (torch.optim.Adagrad): lr=0.01, initial_accumulator_value=0.0, eps=1e-10
        keras (keras.optimizers.Adagrad): lr=0.001, initial_accumulator_value=0.1, eps=1e-07
        optax (optax.adagrad): initial_accumulator_value=0.1, eps=1e-07

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.Adagrad(w, lr=0.5, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> w.round(3).tolist()
        [0.5, 2.5]
    """
    def __init__(
        self,
        params: Any = None,
        lr: Rate | None = None,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float | None = None,
        eps: float | None = None,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        clip_value: float | None = None,
        clip_each: float | None = None,
        state_bits: int = 32,
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        state_rounding: str = "nearest",
        backend: str = "cpu",
    ) -> None: ...

class Adadelta(Optimizer):
    """Adadelta: gradients in units of the parameter, by the running mean squares of the steps and of the gradients.

        v = rho v + (1 - rho) g^2;  d = sqrt(u + eps) / sqrt(v + eps) g;  u = rho u + (1 - rho) d^2;  p = p - lr d

    Source: Zeiler 2012, algorithm 1.

    States: square_avg, acc_delta.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        rho: smoothing of both means, in [0, 1).
        eps: at least 0.
        weight_decay: L2 penalty, at least 0; see the module.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: bounds of gradients, of one kind at most, above 0; see the module.
        convention: "torch", "keras" or "optax": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        state_bits, state_rounding: 8: states as codes of 8 bits, rounded to nearest or stochastically; see the module.
        capturable: steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, "numpy" for the reference, or "cuda" for arrays of a GPU.

    Defaults of the conventions:
        torch (torch.optim.Adadelta): lr=1.0, rho=0.9, eps=1e-06
        keras (keras.optimizers.Adadelta): lr=0.001, rho=0.95, eps=1e-07
        optax (optax.adadelta): rho=0.9, eps=1e-06

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.Adadelta(w, lr=0.5, rho=0.0, eps=16.0, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> w.round(3).tolist()
        [-0.2, 2.05]
    """
    def __init__(
        self,
        params: Any = None,
        lr: Rate | None = None,
        rho: float | None = None,
        eps: float | None = None,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        clip_value: float | None = None,
        clip_each: float | None = None,
        state_bits: int = 32,
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        state_rounding: str = "nearest",
        backend: str = "cpu",
    ) -> None: ...

class RMSprop(Optimizer):
    """RMSprop: steps divided by a running root mean square of the gradients.

        v = alpha v + (1 - alpha) g^2
        d = sqrt(v) + eps, or if centered, with a = alpha a + (1 - alpha) g, d = sqrt(v - a^2) + eps
        p = p - lr g / d, or with momentum b = momentum b + g / d, p = p - lr b

    Source: Tieleman & Hinton 2012, lecture 6.5; torch's form. Graves 2013; torch's form.

    States: square_avg, momentum_buffer, grad_avg, velocity.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        alpha: smoothing, in [0, 1).
        eps: at least 0.
        weight_decay: L2 penalty, at least 0; see the module.
        momentum: at least 0; 0 for none.
        centered: divide by the standard deviation instead.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: bounds of gradients, of one kind at most, above 0; see the module.
        convention: "torch", "keras" or "optax": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        state_bits, state_rounding: 8: states as codes of 8 bits, rounded to nearest or stochastically; see the module.
        capturable: steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, "numpy" for the reference, or "cuda" for arrays of a GPU.

    Defaults of the conventions:
        torch (torch.optim.RMSprop): lr=0.01, alpha=0.99, eps=1e-08
        keras (keras.optimizers.RMSprop): lr=0.001, alpha=0.9, eps=1e-07
        optax (optax.rmsprop): alpha=0.9, eps=1e-08

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.RMSprop(w, lr=0.05, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> w.round(3).tolist()
        [0.5, 2.5]
    """
    def __init__(
        self,
        params: Any = None,
        lr: Rate | None = None,
        alpha: float | None = None,
        eps: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        clip_value: float | None = None,
        clip_each: float | None = None,
        state_bits: int = 32,
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        state_rounding: str = "nearest",
        backend: str = "cpu",
    ) -> None: ...

class Adam(Optimizer):
    """Adam: running means of the gradient and of its square, corrected for their start at zero.

        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    With `amsgrad` the largest v so far stands in for v.

    Source: Kingma & Ba 2015, algorithm 1; torch's form. Reddi, Kale & Kumar 2018, algorithm 2; torch's form. Loshchilov
    & Hutter 2019; torch's form. Reddi, Kale & Kumar 2018, algorithm 2; torch's form, decoupled decay.

    States: exp_avg, exp_avg_sq, max_exp_avg_sq.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        betas: (beta1, beta2), each in [0, 1).
        eps: at least 0.
        weight_decay: L2 penalty, at least 0; see the module.
        amsgrad: divide by the largest second moment so far.
        eps_root: optax's second eps, inside the root, at least 0.
        nesterov: optax's Adam with Nesterov's momentum, not with amsgrad; see `fastopt.conventions`.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: bounds of gradients, of one kind at most, above 0; see the module.
        convention: "torch", "keras", "optax" or "sklearn": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        state_bits, state_rounding: 8: states as codes of 8 bits, rounded to nearest or stochastically; see the module.
        capturable: steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, "numpy" for the reference, or "cuda" for arrays of a GPU.

    Defaults of the conventions:
        torch (torch.optim.Adam): lr=0.001, eps=1e-08
        keras (keras.optimizers.Adam): lr=0.001, eps=1e-07
        optax (optax.adam): eps=1e-08
        sklearn (scikit-learn's solver adam): lr=0.001, eps=1e-08

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.Adam(w, lr=0.5, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> w.round(3).tolist()
        [0.5, 2.5]
    """
    def __init__(
        self,
        params: Any = None,
        lr: Rate | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        eps_root: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        l1: float = 0.0,
        clip_value: float | None = None,
        clip_each: float | None = None,
        state_bits: int = 32,
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        state_rounding: str = "nearest",
        backend: str = "cpu",
    ) -> None: ...

class AdamW(Adam):
    """AdamW: Adam with decoupled weight decay, which scales the parameter first and does not enter the moments.

        p = p (1 - lr weight_decay);  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    With `amsgrad` the largest v so far stands in for v.

    Source: Loshchilov & Hutter 2019; torch's form. Reddi, Kale & Kumar 2018, algorithm 2; torch's form, decoupled
    decay.

    States: exp_avg, exp_avg_sq, max_exp_avg_sq.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        betas: (beta1, beta2), each in [0, 1).
        eps: at least 0.
        weight_decay: decoupled weight decay, at least 0: it scales the parameter before the step.
        amsgrad: divide by the largest second moment so far.
        eps_root: optax's second eps, inside the root, at least 0.
        nesterov: optax's Adam with Nesterov's momentum, not with amsgrad; see `fastopt.conventions`.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: bounds of gradients, of one kind at most, above 0; see the module.
        convention: "torch", "keras" or "optax": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        state_bits, state_rounding: 8: states as codes of 8 bits, rounded to nearest or stochastically; see the module.
        capturable: steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, "numpy" for the reference, or "cuda" for arrays of a GPU.

    Defaults of the conventions:
        torch (torch.optim.AdamW): lr=0.001, eps=1e-08, weight_decay=0.01
        keras (keras.optimizers.AdamW): lr=0.001, eps=1e-07, weight_decay=0.004
        optax (optax.adamw): eps=1e-08, weight_decay=0.0001

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.AdamW(w, lr=0.5, weight_decay=0.1, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> w.round(3).tolist()
        [0.45, 2.4]
    """
    def __init__(
        self,
        params: Any = None,
        lr: Rate | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float | None = None,
        amsgrad: bool = False,
        *,
        eps_root: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        l1: float = 0.0,
        clip_value: float | None = None,
        clip_each: float | None = None,
        state_bits: int = 32,
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        state_rounding: str = "nearest",
        backend: str = "cpu",
    ) -> None: ...

class NAdam(Optimizer):
    """NAdam: Adam with Nesterov's look-ahead, by a momentum that grows to beta1.

        mu(k) = beta1 (1 - 0.96^(k momentum_decay) / 2);  M = mu(1) ... mu(step);  m, v: as Adam's
        d = mu(step + 1) m / (1 - M mu(step + 1)) + (1 - mu(step)) g / (1 - M)
        p = p - lr d / (sqrt(v / (1 - beta2^step)) + eps)

    Source: Dozat 2016, algorithm 2; torch's form.

    States: exp_avg, exp_avg_sq.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        betas: (beta1, beta2), each in [0, 1).
        eps: at least 0.
        weight_decay: L2 penalty, at least 0; see the module.
        momentum_decay: of the momentum's growth, at least 0.
        decoupled_weight_decay: weight decay as in AdamW.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: bounds of gradients, of one kind at most, above 0; see the module.
        convention: "torch" or "keras": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        state_bits, state_rounding: 8: states as codes of 8 bits, rounded to nearest or stochastically; see the module.
        capturable: steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, "numpy" for the reference, or "cuda" for arrays of a GPU.

    Defaults of the conventions:
        torch (torch.optim.NAdam): lr=0.002, eps=1e-08, momentum_decay=0.004, decoupled_weight_decay=False
        keras (keras.optimizers.Nadam): lr=0.001, eps=1e-07, momentum_decay=1.0, decoupled_weight_decay=True

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.NAdam(w, lr=0.5, betas=(0.0, 0.999), backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> w.round(3).tolist()
        [0.5, 2.5]
    """
    def __init__(
        self,
        params: Any = None,
        lr: Rate | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 0.0,
        momentum_decay: float | None = None,
        decoupled_weight_decay: bool | None = None,
        *,
        maximize: bool = False,
        l1: float = 0.0,
        clip_value: float | None = None,
        clip_each: float | None = None,
        state_bits: int = 32,
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        state_rounding: str = "nearest",
        backend: str = "cpu",
    ) -> None: ...
