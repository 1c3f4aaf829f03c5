"""Optimizers for arrays in place, with the formulas, defaults and state names of torch.optim.

    opt = fastopt.Adam([w, b], lr=1e-3)
    opt.step([dw, db])  # w and b have changed

Common to all of them:

- `params` is one array; a sequence or (nested) mapping of arrays; or a list of groups: mappings with the key "params"
  and the group's own hyper-parameters. None leaves the optimizer without arrays until `bind`, which
  `Sequential.compile` calls.
- Arrays are float32, float64, float16 or bfloat16 (NumPy's with the dtype of ml_dtypes), of any shape and strides, and
  are updated in place; arrays with gaps, negative strides or foreign byte order through a copy that is written back.
  Read-only arrays and arrays that share memory raise an error.
- With `backend="cuda"` they are C-contiguous arrays in a GPU's memory, of Numba, CuPy or torch, and `step` does not
  wait: see `Optimizer.settle`. With `capturable=True`, too, the GPU counts the steps, so that a step can be captured
  into a CUDA graph, after one that was not. Each launch of the graph is a step on the same gradient arrays, with the
  hyper-parameters at the time of capture; `lr` must be a number, and `steps` dates from the last `settle`.
- An array is NumPy's, or any that has `__dlpack__` on the CPU, such as a torch tensor or parameter (or all of them:
  `model.parameters()`, `dict(model.named_parameters())`). Gradients may be of another library than their parameter;
  JAX's arrays, which are immutable, can only be gradients. Nothing is copied. Parameters must keep their memory: after
  `p.data = ...`, `resize_` or `model.to(...)` a step raises an error. `torch.no_grad()` is not needed; autograd is told
  of the change, as by torch's own optimizers. For torch programs `fastopt.torch` is faster, takes gradients from the
  parameters, and follows such moves.
- 16-bit arrays are updated in float32, with float32 states; their gradients have the array's dtype. Rounding would lose
  a step that is smaller than half of the distance to the next 16-bit number. So each array has a float32 master copy,
  which is updated; the array is its rounding to nearest. The copy is saved with the states, as "master", and is the
  last one in `opt.states`. If an element was changed between steps, so that it is not the rounding of its copy, the
  copy's element is taken from it.
- With `master_weights=False` there is no copy, and the new value is rounded stochastically: up or down at random, the
  more probably the nearer, so that it is right on average. The random numbers are a function of `seed` (saved in the
  state_dict), the array's number in the optimizer, its step and the element's position in memory (in the copy, for
  arrays that are copied): the same bits for any number of threads. Both arguments have no effect on float32 and float64
  arrays.

      >>> import numpy as np, fastopt as fo
      >>> w = np.ones(3, np.float16)  # the next smaller number is 1 - 2**-11
      >>> opt = fo.SGD(w, lr=2.0**-13, backend="numpy")
      >>> done = [opt.step(np.ones(3, np.float16)) for _ in range(16)]
      >>> print(2**11 * (1 - w))
      [4. 4. 4.]

- States are NumPy arrays of the array's shape, and of its dtype, but float32 for 16-bit arrays.
- With `state_bits=8` the states of arrays of at least 4,096 elements are codes of 8 bits: block-wise dynamic
  quantisation (Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"), with the maps of bitsandbytes, a
  signed one, and one for sums and means of squares. `opt.states` then has two arrays for a state, uint8 codes of the
  array's shape, and float32 magnitudes of blocks of 256 elements in the order of memory. Each block is dequantized,
  updated and requantized in float32 (float64 rules calculate in float64), in one pass. Parameters of 16 bits keep their
  master copy, or are rounded at random. Groups may have bits of their own, and change them: states are converted. Codes
  are of the nearest numbers, or with `state_rounding="stochastic"` of either neighbour, by random numbers as those
  above. A second moment above zero never becomes zero. state_dict has such states in the layout of bitsandbytes'
  Adam8bit (`state1`, `qmap1`, `absmax1`, ...), and reads its. Gradients of some rows need `state_bits=32`.
- Denormal numbers, below 1.2e-38 in float32 and 2.2e-308 in float64, count as zero in gradients, parameters, states and
  intermediate results, because processors are slow on them. Sums and means of squares become the smallest normal number
  instead, unless there was no gradient yet, so that nothing is divided by zero. Denormal numbers of float16 are kept:
  they are normal in float32. The setting holds for the arithmetic of a step alone, not for the calling thread
  afterwards. `backend="cpu"`, and with the same bits "numpy" on Linux, macOS and Windows, on x86 and aarch64, do so;
  "numpy" elsewhere keeps denormals. In that range alone machines differ: aarch64 tests a result before it is rounded,
  x86 afterwards, and "cuda" keeps denormal gradients and parameters, but never has denormal states.
- `lr` and every other hyper-parameter may change between steps: `opt.param_groups[i]["lr"] = 1e-4`, or `opt.lr = 1e-4`.
- `lr` is a number, or a schedule: one of `fastopt.schedules`, or any function of the number of steps done (0 at the
  first step) that returns a finite number of at least 0. `opt.lr` is the rate of the next step. The rate is checked at
  every step, before anything changes; `Sequential.fit` computes all rates of an epoch before the epoch begins.
- `convention` is the library whose formulas, defaults and options the optimizer has, "torch", "keras", "optax" or
  "sklearn": see `fastopt.conventions`. The argument `None` stands for the library's default. The formulas in the
  docstrings of the classes are torch's.
- Every optimizer has `l1`, and at most one of `clip_value`, `clip_each` and `clip_norm`; all are off by default. A
  group may have its own `l1`, `clip_value` and `clip_each`, which clips each array's gradient by its own norm;
  `clip_norm` is for the gradients of all groups together. `backend="cuda"` and `Sequential.fit` do not have
  `clip_each`; the arrays that it clips take a launch each.
- SGD, Lion, Adagrad and Adam take gradients of some rows of an array, such as an embedding table: `step((indices,
  values))` for one array, `step([dw, (indices, values)])` for two. Row `values[j]` is for row `indices[j]`; the values
  of a row that is listed several times are added up in their order, and everything below is done to the sums. Those
  rows are updated once, with their states. All others stay as they are ("lazy"): no mean, no momentum, no parameter
  decays there. Values of 16 bits are added up in float32, and the sums rounded once. The step is one of the array: by
  its number Adam corrects its means and Adagrad decays lr, and in the first one momentum starts; a row that is listed
  for the first time later starts from a buffer of zeros. As torch's SparseAdam (but for its eps, which it divides by
  sqrt(1 - beta2^step)), Adagrad, and SGD without momentum do to sparse gradients, which they refuse with weight decay.
  The others take none: the decay of AdamW is for all rows, as all decay is in Keras's convention, where it must be 0.
  Only arrays whose rows lie one behind the other are updated without copies of those rows.
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
   seldom exactly zero. Neither is in a loss that `Sequential` reports; the penalties of `fastopt.regularizers`, of
   single layers, are.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from .. import _backends
from .._validation import check_name
from ..kernels.formulas.optimizers import CLASSES, COMMON_OPTIONS, OPTIMIZERS, OptimizerClass
from ._docstrings import docstring
from ._hyperparameters import EXTRA
from .base import Optimizer

# Arguments of every optimizer after its hyper-parameters, with their types and defaults.
SETTINGS: dict[str, tuple[str, Any]] = {
    "clip_norm": ("float | None", None),
    "convention": ("str", None),
    "master_weights": ("bool", True),
    "seed": ("int", 0),
    "capturable": ("bool", False),
    "state_rounding": ("str", "nearest"),
    "backend": ("str", _backends.DEFAULT),
}


def signature_of(row: OptimizerClass) -> inspect.Signature:
    """The signature of `__init__`: params, the row's own arguments, and what all optimizers take by keyword."""

    def parameter(name: str, default: Any, positional: bool = False) -> inspect.Parameter:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if positional else inspect.Parameter.KEYWORD_ONLY
        type_ = SETTINGS[name][0] if name in SETTINGS else row.option(name).type
        if default is None and not type_.endswith("None"):
            type_ += " | None"
        return inspect.Parameter(name, kind, default=default, annotation=type_)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    params = own.replace(name="params", default=None, annotation="Any")
    positional = [parameter(name, default, True) for name, default in row.arguments.items()]
    settings = {name: default for name, (_, default) in SETTINGS.items()} | {"convention": next(iter(row.conventions))}
    keywords = {**row.keywords, **COMMON_OPTIONS, **settings}
    by_keyword = [parameter(name, default) for name, default in keywords.items()]
    return inspect.Signature([own, params, *positional, *by_keyword], return_annotation="None")


def _init_of(row: OptimizerClass) -> Any:
    signature = signature_of(row)
    defaults = {name: of.default for name, of in signature.parameters.items() if name != "self"}
    assert inspect.Parameter.empty not in defaults.values()

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = {**defaults, **kwargs}
        if args or len(given) > len(defaults):  # `bind` takes 40 us
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{row.name}.__init__() {error}") from None
            given |= bound.arguments
        settings = {name: given[name] for name in SETTINGS if name != "backend"}
        hyper = {name: given[name] for name in row.hyper}
        Optimizer.__init__(self, given["params"], given["backend"], hyper, **settings)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{row.name}.__init__"
    return __init__


def make_class(row: OptimizerClass, base: type[Optimizer], more: Mapping[str, Any] | None = None) -> type[Optimizer]:
    """The class of a row of CLASSES, with `more` members or others; without a docstring if it is among them."""
    rules = [OPTIMIZERS[rule] for convention in row.conventions.values() for rule in convention.rows.values()]
    members = {
        **({} if more and "__doc__" in more else {"__doc__": docstring(row)}),
        "__module__": __name__,
        "__init__": _init_of(row),
        "_hyper": row.hyper,
        "_optional_defaults": {**EXTRA, **row.keywords},
        "_conventions": row.conventions,
        "_states": frozenset(state for rule in rules for state in rule.states),
        "_decoupled": row.decoupled,
        "_derived": row.derived,
        "_sparse_refusal": row.no_rows,
        "_variant": staticmethod(row.variant),
    }
    return type(row.name, (base,), {**members, **(more or {})})


_classes: dict[str, type[Optimizer]] = {}
for _row in CLASSES.values():
    _classes[_row.name] = make_class(_row, _classes.get(_row.base, Optimizer))
globals().update(_classes)  # type checkers see them in `__init__.pyi`

OPTIMIZER_CLASSES: dict[str, Any] = {
    "sgd": _classes["SGD"],
    "momentum": partial(_classes["SGD"], momentum=0.9),
    **{name.lower(): cls for name, cls in _classes.items()},
}
__all__ = ["OPTIMIZER_CLASSES", "Optimizer", "get_optimizer", *CLASSES]


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
