"""Descriptions of computations as plain data, the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

NO_PARAMS: Mapping[str, float] = MappingProxyType({})


class DenseSpec(NamedTuple):
    """A dense layer: y = activation(x w + b), with w of shape (inputs, outputs)."""

    inputs: int
    outputs: int
    activation: str = "linear"
    bias: bool = True


class DropoutSpec(NamedTuple):
    """Inverted dropout: in training each element is zeroed with probability `rate`, the others divided by 1 - rate."""

    rate: float


LayerSpec = DenseSpec | DropoutSpec


class LossSpec(NamedTuple):
    """A row of LOSSES with its parameters, such as `delta` of Huber's loss."""

    name: str
    params: Mapping[str, float] = NO_PARAMS


# Forms of the update of a 16-bit array. The arithmetic is in float32 in all of them.
SAME = "same"  # the states have the array's dtype; the only form of other arrays
MASTER = "master"  # the states are float32, and the last of them is the master copy, the array in float32. An element
#   that is not the rounding of its copy was written to by others, and replaces it.
STOCHASTIC = "stochastic"  # the states are float32, and the array is rounded up or down at random
FORMS = (SAME, MASTER, STOCHASTIC)


class Update(NamedTuple):
    """One optimizer update of one array: `rule` is a row of OPTIMIZERS, `step` counts from 1.

    p and g may be of 16 bits: float16, or bfloat16 as uint16 (its bits) or as the dtype of ml_dtypes.
    """

    rule: str
    p: np.ndarray
    g: np.ndarray
    states: tuple[np.ndarray, ...]
    options: Mapping[str, Any]
    step: int
    form: str = SAME
    stream: int = 0  # of the random numbers of the form STOCHASTIC: a `dropout_stream` of this array alone


class ArrayUpdate(NamedTuple):
    """An array that is updated step after step, for a backend's `ArrayPlan`; `rule` is a row of OPTIMIZERS.

    shape: a gradient of this shape and dtype (the very object) needs no further check if it is C-contiguous, aligned,
    owns its memory, and is none of the plan's `owners`. None: every gradient is checked.
    """

    rule: str
    p: np.ndarray | None  # C-contiguous; None: given in every step
    states: tuple[np.ndarray, ...]
    dtype: np.dtype[Any]
    elements: int
    shape: tuple[int, ...] | None
    group: int  # index of its options among those given to `update`
    form: str = SAME
    stream: int = 0  # of the random numbers of the form STOCHASTIC: a `dropout_stream` of this array alone


class BufferUpdate(NamedTuple):
    """An array to be updated, by addresses: `elements` values without gaps, aligned, native. The caller owns it."""

    rule: str  # a row of OPTIMIZERS
    dtype: str  # of p and g: "float32", "float64", "float16" or "bfloat16"
    elements: int
    p: int  # address; 0: given in every step
    states: Sequence[int]  # addresses, in the order of the rule's row; the master copy is the last
    group: int = 0  # index of its options among those given to `update`
    form: str = SAME  # of 16-bit arrays: one of spec.FORMS
    stream: int = 0  # of the random numbers of the form STOCHASTIC: a `dropout_stream` of this array alone


class Batches(NamedTuple):
    """Rows `order[i * batch_size : (i + 1) * batch_size]` of x and y are batch i; the last one may be shorter.

    The gradients of `accumulate` successive batches make one optimizer step: their mean over all rows of the group.
    """

    x: np.ndarray  # (n, inputs)
    y: np.ndarray  # (n,) int64 labels, or (n, outputs) of x's dtype
    order: np.ndarray  # (m,) int64 row indices
    batch_size: int
    accumulate: int = 1

    @property
    def batches(self) -> int:
        return -(-len(self.order) // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return -(-len(self.order) // (self.batch_size * self.accumulate))


class OptimizerSteps(NamedTuple):
    """The next steps of an optimizer on the parameters of a network, one for each of `learning_rates`."""

    rule: str  # a row of OPTIMIZERS
    states: Sequence[tuple[np.ndarray, ...]]  # of each parameter, in the order of the rule's row; changed in place
    options: Mapping[str, Any]  # of the rule; lr is not read
    learning_rates: np.ndarray  # (steps,) float64
    steps_done: int = 0  # before the first of these
    clip_norm: float | None = None  # the largest norm of all gradients of a step together


class PassResult(NamedTuple):
    """Results of a pass over the data."""

    losses: np.ndarray  # (steps,) float64, the mean loss of the rows of every optimizer step
    metrics: dict[str, float]
    seconds: float
    lr: float = float("nan")  # the learning rate of the last step; whoever knows the optimizer sets it
