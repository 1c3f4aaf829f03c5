"""Optimizers for arrays in place, with the formulas, defaults and state names of torch.optim.

    opt = fastopt.Adam([w, b], lr=1e-3)
    opt.step([dw, db])  # w and b have changed

Common to all of them:

- `params` is one array, a sequence, a (nested) mapping or sequence of arrays, or a list of groups: mappings with the
  key "params" and the group's own hyper-parameters. The arrays are float32, float64, float16 or bfloat16 (NumPy's with
  the dtype of ml_dtypes), of any shape and strides, and are updated in place; arrays with gaps, negative strides or
  foreign byte order go through a copy that is written back. Read-only arrays and arrays that share memory are refused.
  With `backend="cuda"` they are C-contiguous arrays in a GPU's memory, of Numba, CuPy or torch, and `step` does not
  wait: see `Optimizer.settle`. With `capturable=True` besides, the GPU counts the steps, so that one can be captured
  into a CUDA graph, after one that was not: each launch of the graph then is a step, on the same gradient arrays, with
  the hyper-parameters of the time of capture; `lr` must be a number. `steps` is what `settle` found last. None leaves
  the optimizer without arrays until `bind`, which `Sequential.compile` calls.
- An array is NumPy's, or any that speaks `__dlpack__` on the CPU: a torch tensor or parameter (or all of them:
  `model.parameters()`, `dict(model.named_parameters())`), and for gradients, which may be of another library than their
  parameter, JAX's too, which cannot be changed. Nothing is copied, and "params" of a group holds the objects as they
  came. They must stay where they are: after `p.data = ...`, `resize_` or `model.to(...)` a step is refused. It needs
  no `torch.no_grad()`; autograd notices the change, as it does with torch's own optimizers. `fastopt.torch` has
  optimizers for torch programs, which are faster there, take gradients from the parameters, and follow such moves.
- Arrays of 16 bits are worked on in float32, with float32 states; their gradients have the array's own dtype. A step
  that is smaller than half of the distance to the next number would be lost by rounding. So each has a master copy in
  float32, which is updated; the array is its rounding to nearest. The copy is saved with the states, as "master", and
  lies behind them in `opt.states`. Whoever writes to such an array between steps is heeded: where an element is no
  rounding of its copy any more, the copy is taken anew. With `master_weights=False` there is no copy; the new value is
  rounded up or down at random, in proportion to how near both neighbours are, so that on average nothing is lost. Which
  way is a function of `seed`, the number of the array in the optimizer, its step and the element (counted as they lie
  in memory; where rows have to be copied, see below, as they lie in the copy): the same bits for any number of threads.
  `seed` is saved in the state_dict. Either argument is without effect on arrays of float32 and float64, which the same
  optimizer may have, too.

      >>> import numpy as np, fastopt as fo
      >>> w = np.ones(3, np.float16)  # the next smaller number is 1 - 2**-11
      >>> opt = fo.SGD(w, lr=2.0**-13, backend="numpy")
      >>> done = [opt.step(np.ones(3, np.float16)) for _ in range(16)]
      >>> print(2**11 * (1 - w))
      [4. 4. 4.]

- States are NumPy arrays of the shape of their array, and of its dtype, but for those of 16 bits.
- Numbers below the smallest normal one (float32: 1.2e-38, float64: 2.2e-308), on which processors are slow, count as
  zero: in gradients, parameters, states, and in everything that is computed from them. Sums and means of squares become
  that smallest number instead, unless there was no gradient yet, so that nothing is divided by zero. Elements of 16
  bits are worked on in float32, so denormal numbers of float16, which are no denormal ones there, are kept. Only the
  arithmetic of a step is concerned: the threads, the caller's and those of other libraries, have their own setting
  again afterwards. That is so with `backend="cpu"` and, with the same bits, with "numpy" on Linux, macOS and Windows,
  on x86 and aarch64; elsewhere "numpy" keeps denormals. In that range alone results differ between machines: aarch64
  looks at a result before it is rounded, x86 afterwards, and "cuda" keeps denormal gradients and parameters, in float32
  and float64, though its states are never denormal either.
- `lr` and every other hyper-parameter may change between steps: `opt.param_groups[i]["lr"] = 1e-4`, or `opt.lr = 1e-4`.
- `lr` is a number, or a schedule: one of `fastopt.schedules`, or any function of the number of steps done (0 at the
  first step) that gives a finite number of at least 0. `opt.lr` is the rate of the next step. What a schedule gives is
  checked at every step, before anything changes; `Sequential.fit` asks it for all steps of an epoch before that begins.
- `convention` says whose optimizer this is, "torch", "keras", "optax" or "sklearn": see `fastopt.conventions`. `None`
  as an argument stands for that one's default. The formulas given with the classes are torch's.
- Every optimizer takes `l1`, and of `clip_value`, `clip_each` and `clip_norm` one at most; all are off by default. A
  group may have its own `l1`, `clip_value` and `clip_each`, which clips the gradient of every array by its own norm;
  `clip_norm` is for the gradients of all groups together. `clip_each` is not there for `backend="cuda"` nor for
  `Sequential.fit`, and arrays that it clips take a launch each.
- SGD, Adagrad and Adam take gradients of some rows of an array, such as an embedding table: `step((indices, values))`
  for one array, `step([dw, (indices, values)])` for two. Row `values[j]` is for row `indices[j]`; the values of a row
  that is listed several times are added up in their order, and everything below is done to the sums. Those rows are
  updated once, with their states. All others stay as they are ("lazy"): no mean, no momentum, no parameter decays
  there. Values of 16 bits are added up in float32, and the sums rounded once. The step is one of the array: by its
  number Adam corrects its means and Adagrad decays lr, and in the first one momentum starts; a row that is listed for
  the first time later starts from a buffer of zeros. As torch's SparseAdam (but for its eps, which it divides by
  sqrt(1 - beta2^step)), Adagrad, and SGD without momentum do to sparse gradients, which they refuse with weight
  decay. RMSprop and AdamW take none: the decay of AdamW is for all rows, as all decay is in Keras's convention, where
  it must be 0. Only arrays whose rows lie one behind the other are updated without copies of those rows.
- Wrong kinds and dtypes raise TypeError, wrong shapes and values ValueError, before anything has changed.

Below, g is made from the gradient in this order:

1. divided by `step`'s `grad_scale`; then with `clip_norm` multiplied by min(1, clip_norm / (norm + 1e-6)), where norm
   is the Euclidean norm of all gradients of the step (as torch.nn.utils.clip_grad_norm_, inf and NaN included), or
   with `clip_each` by clip_each / max(clip_each, norm) of the array's own gradient (as Keras's clipnorm); and negated
   if `maximize`;
2. with `clip_value` every element brought into [-clip_value, clip_value] (as torch.nn.utils.clip_grad_value_); NaN
   stays NaN;
3. plus `weight_decay` times the parameter p (but see AdamW), and plus `l1` times the sign of p, which is 0 at 0. The
   gradient of an L1 penalty goes through the rule's states like any other, in AdamW too; it makes weights small, but
   seldom exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from .. import _backends
from .._validation import check_name
from ..conventions import CONVENTIONS
from ._hyperparameters import EXTRA
from ._param_state import Hyper
from .base import Optimizer

__all__ = ["OPTIMIZER_CLASSES", "SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop", "get_optimizer"]

Rate = float | Callable[[int], float]  # a number or a schedule


class SGD(Optimizer):
    """Stochastic gradient descent, plain or with (heavy-ball or Nesterov) momentum.

        p = p - lr g                                                        momentum = 0
        b = momentum b + (1 - dampening) g  (first step: b = g)             else
        p = p - lr b, or with nesterov p = p - lr (g + momentum b)

    Source: Polyak 1964; Nesterov's form after Sutskever et al. 2013; as torch.optim.SGD. State:
    momentum_buffer, or velocity.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        momentum: at least 0; 0 for none.
        dampening: of the gradient's entry into the buffer.
        weight_decay: L2 penalty, at least 0.
        nesterov: needs momentum > 0 and dampening 0; in other conventions without effect where momentum is 0.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: how gradients are clipped, above 0; see the module.
        convention: "torch", "keras", "optax" or "sklearn": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        capturable: whether steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, or "numpy" for the reference.

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> opt = fo.SGD(w, lr=0.1, momentum=0.9, backend="numpy")
        >>> for _ in range(2):
        ...     _ = opt.step(2 * w)
        >>> print(w.round(3))
        [0.46 0.92]
    """

    _hyper = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "l1", "clip_value", "clip_each")
    _conventions = CONVENTIONS["SGD"]
    _states = frozenset(["momentum_buffer", "velocity"])

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
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        backend: str = _backends.DEFAULT,
    ) -> None:
        hyper = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        more = {"nesterov": nesterov, "maximize": maximize, "l1": l1, "clip_value": clip_value, "clip_each": clip_each}
        super().__init__(
            params, backend, {**hyper, **more}, clip_norm=clip_norm, convention=convention,
            master_weights=master_weights, seed=seed, capturable=capturable,
        )  # fmt: skip

    def _variant(self, hyper: Hyper) -> str:
        if self.convention == "torch" and hyper["nesterov"] and (hyper["momentum"] == 0 or hyper["dampening"] != 0):
            raise ValueError(
                "nesterov needs momentum > 0 and dampening 0;"
                f" got momentum={hyper['momentum']}, dampening={hyper['dampening']}"
            )
        return "momentum" if hyper["momentum"] else "sgd"


class Adagrad(Optimizer):
    """Adagrad: steps divided by the root of the sum of all squared gradients so far.

        s = s + g^2;  p = p - lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps)

    Source: Duchi, Hazan & Singer 2011; as torch.optim.Adagrad. State: sum.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        lr_decay: at least 0.
        weight_decay: L2 penalty, at least 0.
        initial_accumulator_value: of s, at least 0.
        eps: at least 0.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: how gradients are clipped, above 0; see the module.
        convention: "torch", "keras" or "optax": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        capturable: whether steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, or "numpy" for the reference.

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.Adagrad(w, lr=0.5, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> print(w.round(3))
        [0.5 2.5]
    """

    _hyper = (
        "lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value", "maximize", "l1", "clip_value",
        "clip_each",
    )  # fmt: skip
    _conventions = CONVENTIONS["Adagrad"]
    _states = frozenset(["sum"])

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
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        backend: str = _backends.DEFAULT,
    ) -> None:
        hyper = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay}
        initial = {"initial_accumulator_value": initial_accumulator_value}
        more = {"maximize": maximize, "l1": l1, "clip_value": clip_value, "clip_each": clip_each}
        super().__init__(
            params, backend, {**hyper, **initial, **more}, clip_norm=clip_norm, convention=convention,
            master_weights=master_weights, seed=seed, capturable=capturable,
        )  # fmt: skip

    def _variant(self, hyper: Hyper) -> str:
        return "adagrad"


class RMSprop(Optimizer):
    """RMSprop: steps divided by a running root mean square of the gradients.

        v = alpha v + (1 - alpha) g^2
        d = sqrt(v) + eps, or if centered, with a = alpha a + (1 - alpha) g, d = sqrt(v - a^2) + eps
        p = p - lr g / d, or with momentum b = momentum b + g / d, p = p - lr b

    Source: Tieleman & Hinton 2012, lecture 6.5; centred after Graves 2013; as torch.optim.RMSprop. States: square_avg,
    grad_avg, momentum_buffer (or velocity).

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        alpha: smoothing, in [0, 1).
        eps: at least 0.
        weight_decay: L2 penalty, at least 0.
        momentum: at least 0; 0 for none.
        centered: divide by the standard deviation instead.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: how gradients are clipped, above 0; see the module.
        convention: "torch", "keras" or "optax": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        capturable: whether steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, or "numpy" for the reference.

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.RMSprop(w, lr=0.05, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> print(w.round(3))
        [0.5 2.5]
    """

    _hyper = ("lr", "momentum", "alpha", "eps", "centered", "weight_decay", "maximize", "l1", "clip_value", "clip_each")
    _conventions = CONVENTIONS["RMSprop"]
    _states = frozenset(["square_avg", "grad_avg", "momentum_buffer", "velocity"])
    _sparse_refusal = "RMSprop has no form for some rows, here as in torch; SGD, Adagrad and Adam have"

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
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        backend: str = _backends.DEFAULT,
    ) -> None:
        hyper = {"lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered}
        more = {"weight_decay": weight_decay, "maximize": maximize, "l1": l1}
        bounds = {"clip_value": clip_value, "clip_each": clip_each}
        super().__init__(
            params, backend, {**hyper, **more, **bounds}, clip_norm=clip_norm, convention=convention,
            master_weights=master_weights, seed=seed, capturable=capturable,
        )  # fmt: skip

    def _variant(self, hyper: Hyper) -> str:
        return "rmsprop" + "_centered" * hyper["centered"] + "_momentum" * (hyper["momentum"] > 0)


class Adam(Optimizer):
    """Adam: running means of the gradient and of its square, corrected for their start at zero.

        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

    With `amsgrad` the largest v so far stands in for v. Source: Kingma & Ba 2015, algorithm 1; Reddi, Kale & Kumar
    2018, algorithm 2; as torch.optim.Adam. States: exp_avg, exp_avg_sq, max_exp_avg_sq.

    Args:
        params: arrays to update, NumPy's or others with `__dlpack__`, see the module; or None.
        lr: learning rate, at least 0, or a schedule; see the module.
        betas: (beta1, beta2), each in [0, 1).
        eps: at least 0.
        weight_decay: L2 penalty, at least 0.
        amsgrad: divide by the largest second moment so far.
        eps_root: optax's second eps, inside the root, at least 0.
        nesterov: optax's Adam with Nesterov's momentum, not with amsgrad; see `fastopt.conventions`.
        maximize: ascend instead of descend.
        l1: L1 penalty, at least 0; see the module.
        clip_value, clip_each, clip_norm: how gradients are clipped, above 0; see the module.
        convention: "torch", "keras", "optax" or "sklearn": whose formulas and defaults; see `fastopt.conventions`.
        master_weights, seed: how arrays of 16 bits are updated; see the module.
        capturable: whether steps may be captured into a CUDA graph; see the module.
        backend: "cpu" for compiled kernels, or "numpy" for the reference.

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> opt = fo.Adam({"w": w}, lr=0.5, backend="numpy")
        >>> opt.step({"w": np.array([3.0, -0.1])})
        True
        >>> print(w.round(3))
        [0.5 2.5]
    """

    _hyper = (
        "lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "l1", "clip_value", "clip_each", "eps_root",
        "nesterov",
    )  # fmt: skip
    _optional_defaults: ClassVar[Mapping[str, Any]] = {**EXTRA, "nesterov": False}
    _conventions = CONVENTIONS["Adam"]
    _states = frozenset(["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
    _decoupled = False

    def __init__(
        self,
        params: Any = None,
        lr: Rate | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float | None = 0.0,
        amsgrad: bool = False,
        *,
        eps_root: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        l1: float = 0.0,
        clip_value: float | None = None,
        clip_each: float | None = None,
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        backend: str = _backends.DEFAULT,
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        more = {"amsgrad": amsgrad, "maximize": maximize, "l1": l1, "clip_value": clip_value, "clip_each": clip_each}
        optaxs = {"eps_root": eps_root, "nesterov": nesterov}
        super().__init__(
            params, backend, {**hyper, **more, **optaxs}, clip_norm=clip_norm, convention=convention,
            master_weights=master_weights, seed=seed, capturable=capturable,
        )  # fmt: skip

    def _variant(self, hyper: Hyper) -> str:
        if hyper["nesterov"]:
            return "nadam" + "_amsgrad" * hyper["amsgrad"]
        return "amsgrad" if hyper["amsgrad"] else "adam"


class AdamW(Adam):
    """Adam with decoupled weight decay: p = p (1 - lr weight_decay) first, and g without weight decay.

    Source: Loshchilov & Hutter 2019; as torch.optim.AdamW. Arguments and states are those of Adam; scikit-learn has
    no such optimizer.

    Example:
        >>> import numpy as np, fastopt as fo
        >>> w = np.array([1.0, 2.0])
        >>> fo.AdamW(w, lr=0.5, weight_decay=0.1, backend="numpy").step(np.array([3.0, -0.1]))
        True
        >>> print(w.round(3))
        [0.45 2.4 ]
    """

    _conventions = CONVENTIONS["AdamW"]
    _decoupled = True
    _sparse_refusal = "AdamW's weight decay is for all rows in every step; SGD, Adagrad and Adam take rows"

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
        clip_norm: float | None = None,
        convention: str = "torch",
        master_weights: bool = True,
        seed: int = 0,
        capturable: bool = False,
        backend: str = _backends.DEFAULT,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad,
            eps_root=eps_root, nesterov=nesterov, maximize=maximize, l1=l1, clip_value=clip_value, clip_each=clip_each,
            clip_norm=clip_norm, convention=convention, master_weights=master_weights, seed=seed, capturable=capturable,
            backend=backend,
        )  # fmt: skip

    def _variant(self, hyper: Hyper) -> str:
        return "n" * hyper["nesterov"] + "adamw" + "_amsgrad" * hyper["amsgrad"]


OPTIMIZER_CLASSES: dict[str, Any] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}


def get_optimizer(optimizer: str | Optimizer | type[Optimizer], **hyper: Any) -> Optimizer:
    """An optimizer by its name in OPTIMIZER_CLASSES, or its class, with hyper-parameters; an optimizer as it is.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> import fastopt as fo
        >>> fo.get_optimizer("momentum", lr=0.1).rule
        'momentum'
    """
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer) and optimizer is not Optimizer:
        return optimizer(**hyper)
    if isinstance(optimizer, str) and optimizer.lower() in OPTIMIZER_CLASSES:  # "Adam", as Keras writes it
        optimizer = optimizer.lower()
    if not isinstance(optimizer, Optimizer):
        return OPTIMIZER_CLASSES[check_name("optimizer", optimizer, OPTIMIZER_CLASSES)](**hyper)
    if hyper:
        raise TypeError(f"hyper-parameters {list(hyper)} cannot be given beside an optimizer that has its own")
    return optimizer
