"""Descriptions of computations as plain data, the same for every backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from .loss_rule import LossRule
from .sources import Source

NO_PARAMS: Mapping[str, float] = MappingProxyType({})


class Quantized(NamedTuple):
    """Integers in the place of a dense layer's weights, w = scale code, which are then no longer trained.

    bits: 8, codes int8 (inputs, outputs) of -127 to 127; 4, two codes of -8 to 7 in a byte, uint8 (inputs / 2,
    outputs), rounded up, 8 more than the code, that of the even row in the lower half; 16, no codes but the bits of
    bfloat16 numbers, uint16 (inputs, outputs), without scales. Scales are float32 (groups, outputs).

    With an input_scale the rows that come in are uint8 codes, too, x = input_scale (code - input_zero), for 8 bits and
    one group. Sums of the codes' products are exact.
    """

    bits: int = 8
    group: int = 0  # rows of w that share the scale of a column; 0: all
    input_scale: float = 0.0  # a float32; 0: rows are float32
    input_zero: int = 0  # the code of 0, from 0 to 255

    def num_groups(self, inputs: int) -> int:
        """Return how many scales a column has."""
        return -(-inputs // self.group) if self.group else 1


class FakeQuantized(NamedTuple):
    """Training with the numbers that `Quantized` would leave (quantization-aware): products read them rounded.

    Weights are rounded to codes of so many bits, 8 or 4, as if they were quantized as they are in this step; with
    `inputs` rows that come in are rounded to the 256 codes of the range of the batch. Gradients are those by the
    rounded numbers, and pass straight through to the others (Bengio et al. 2013): updates are of exact weights.
    """

    bits: int = 8
    group: int = 0  # rows of w that share the scale of a column; 0: all
    inputs: bool = True


LARGEST_INPUTS = (2**31 - 1) // (255 * 127)  # of a layer of codes: more products might not fit in an int32


class DenseSpec(NamedTuple):
    """A dense layer: y = activation(x w + b), with w of shape (inputs, outputs)."""

    inputs: int
    outputs: int
    activation: str = "linear"
    bias: bool = True
    quantized: Quantized | None = None  # for prediction alone
    fake: FakeQuantized | None = None  # in training, of float32


class DropoutSpec(NamedTuple):
    """Inverted dropout: in training each element is zeroed with probability `rate`, the others divided by 1 - rate."""

    rate: float


class GaussianNoiseSpec(NamedTuple):
    """Gaussian noise: in training a draw of N(0, stddev^2) is added to each element."""

    stddev: float


class LayerNormSpec(NamedTuple):
    """Each row normalized: y = gamma (x - mean) / sqrt(variance + epsilon) + beta, with the row's mean and variance.

    scale, center: there is a gamma, a beta; they are parameters of shape (columns,).
    """

    columns: int
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True


class BatchNormSpec(NamedTuple):
    """Each column normalized, in training by the mean and the biased variance of the batch, else by moving averages.

    Parameters are gamma and beta, as of `LayerNormSpec`, then the averages, which every training batch brings nearer to
    its own: average = momentum average + (1 - momentum) of the batch. Rows count alike, whatever their weights are; a
    step whose weights sum to 0 moves nothing.
    """

    columns: int
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    momentum: float = 0.99


class ActivationSpec(NamedTuple):
    """An activation by itself: y = f(x), for one behind a normalization."""

    columns: int
    activation: str  # a row of ACTIVATIONS


LayerSpec = DenseSpec | DropoutSpec | GaussianNoiseSpec | LayerNormSpec | BatchNormSpec | ActivationSpec
MOVING = ("moving_mean", "moving_variance")  # parameters that no optimizer updates


def dense_layers(layers: Sequence[LayerSpec]) -> list[DenseSpec]:
    """Return the dense ones of some layers."""
    return [layer for layer in layers if isinstance(layer, DenseSpec)]


def parameter_shapes(layer: LayerSpec) -> dict[str, tuple[int, ...]]:
    """Return the names of a layer's parameters with their shapes, in the order in which networks have them.

    >>> parameter_shapes(DenseSpec(4, 3))
    {'kernel': (4, 3), 'bias': (3,)}
    >>> list(parameter_shapes(BatchNormSpec(3, center=False)))
    ['gamma', 'moving_mean', 'moving_variance']
    >>> parameter_shapes(DenseSpec(5, 3, bias=False, quantized=Quantized(4, group=2)))
    {'codes': (3, 3), 'scales': (3, 3)}
    """
    if isinstance(layer, DenseSpec):
        kernel: dict[str, tuple[int, ...]] = {"kernel": (layer.inputs, layer.outputs)}
        if layer.quantized is not None:
            kernel = _quantized_shapes(layer, layer.quantized)
        return kernel | ({"bias": (layer.outputs,)} if layer.bias else {})
    if isinstance(layer, DropoutSpec | GaussianNoiseSpec | ActivationSpec):
        return {}
    names = ["gamma"] * layer.scale + ["beta"] * layer.center
    return dict.fromkeys([*names, *(MOVING if isinstance(layer, BatchNormSpec) else ())], (layer.columns,))


def _quantized_shapes(layer: DenseSpec, quantized: Quantized) -> dict[str, tuple[int, ...]]:
    rows = -(-layer.inputs // 2) if quantized.bits == 4 else layer.inputs
    scales = {"scales": (quantized.num_groups(layer.inputs), layer.outputs)} if quantized.bits != 16 else {}
    return {"codes": (rows, layer.outputs), **scales}


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

# Storage of the states of an array, of any form. With codes each state of the rule's row is two arrays, uint8 codes of
# the array's shape and float32 largest magnitudes of its blocks (`formulas.blockwise`); a master copy is as it was.
WHOLE = "whole"  # numbers
BLOCKWISE = "blockwise"  # codes of the nearest entries
BLOCKWISE_RANDOM = "blockwise_random"  # of one of the two neighbours, at random, right on average
STORAGES = (WHOLE, BLOCKWISE, BLOCKWISE_RANDOM)


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
    stream: int = 0  # of the random numbers of STOCHASTIC and BLOCKWISE_RANDOM: a `dropout_stream` of this array alone
    storage: str = WHOLE  # of the states: one of STORAGES


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
    stream: int = 0  # of the random numbers of STOCHASTIC and BLOCKWISE_RANDOM: a `dropout_stream` of this array alone
    storage: str = WHOLE  # of the states: one of STORAGES


class BufferUpdate(NamedTuple):
    """An array to be updated, by addresses: `elements` values without gaps, aligned, native. The caller owns it."""

    rule: str  # a row of OPTIMIZERS
    dtype: str  # of p and g: "float32", "float64", "float16" or "bfloat16"
    elements: int
    p: int  # address; 0: given in every step
    states: Sequence[int]  # addresses, in the order of the rule's row; the master copy is the last
    group: int = 0  # index of its options among those given to `update`
    form: str = SAME  # of 16-bit arrays: one of spec.FORMS
    stream: int = 0  # of the random numbers of STOCHASTIC and BLOCKWISE_RANDOM: a `dropout_stream` of this array alone
    storage: str = WHOLE  # of the states: one of STORAGES


class Shuffle(NamedTuple):
    """A new order of rows for every epoch: a pure function of a seed and the number of the epoch.

    It is drawn by NumPy's `g = Generator(PCG64(SeedSequence(seed, spawn_key=(1, epoch))))`: `g.permutation(rows)`.

    With `block_rows` neighbours stay near each other, for data beyond memory. The rows are cut into blocks of so many
    (the last one may be shorter), which are put in the order `g.permutation(number of blocks)`. Then every
    `window_rows` rows, one window after the other, are put in random order by `g.shuffle`.
    """

    seed: int  # in [0, 2^64)
    first_epoch: int = 0  # number, in the life of a model, of the first epoch of a pass
    block_rows: int = 0  # 0: all rows are mixed with one another
    window_rows: int = 0

    def order(self, rows: np.ndarray, epoch: int = 0) -> np.ndarray:
        """Return `rows`, (m,), in the order of an epoch of the pass, counted from 0: a new array.

        >>> rows = np.arange(10, 16)
        >>> sorted(Shuffle(seed=0).order(rows).tolist()) == rows.tolist()
        True
        >>> Shuffle(seed=0, first_epoch=2).order(rows).tolist() == Shuffle(seed=0).order(rows, epoch=2).tolist()
        True
        >>> Shuffle(seed=0, block_rows=2, window_rows=4).order(rows).tolist()
        [13, 15, 12, 14, 11, 10]
        """
        key = SHUFFLE_STREAM, self.first_epoch + epoch
        g = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)))
        if not self.block_rows:
            return g.permutation(rows)
        starts = g.permutation(-(-len(rows) // self.block_rows)) * self.block_rows
        order = np.concatenate([rows[:0], *(rows[start : start + self.block_rows] for start in starts)])
        for start in range(0, len(rows), self.window_rows):
            g.shuffle(order[start : start + self.window_rows])
        return order


def row_numbers(rows: int) -> np.ndarray:
    """Return the numbers of all rows, 0 ... rows - 1, for an order: uint32 where they fit.

    >>> row_numbers(3)
    array([0, 1, 2], dtype=uint32)
    """
    return np.arange(rows, dtype=np.uint32 if rows <= 1 << 32 else np.int64)


SHUFFLE_STREAM = 1  # random stream of a seed for orders of rows; fastopt._random_rows has the others


class EpochParts:
    """An epoch whose parts are passes by themselves, one after the other: what a backend hands on to the next one.

    whole: the batches of the whole epoch; rows: number of those done. The rest is the backend's: `carried`, sums for
    metrics after the parts done, None before the first, and `variation`, of the targets of the whole epoch. `carried`
    is made of mappings, lists, numbers and arrays, so that a file can hold it: another process may go on with the
    epoch, which finds the variation anew. weight: sum of the weights of the rows done, 0 where rows have none.
    """

    def __init__(self, whole: Batches) -> None:
        self.whole, self.rows, self.weight = whole, 0, 0.0
        self.carried: Any = None
        self.variation: Any = None

    def carry(self, sums: Any, rows: int, weight: float = 0.0) -> None:
        """Keep the sums after a part of so many rows; weight: that of all rows done."""
        self.carried, self.rows, self.weight = sums, self.rows + rows, weight


class Batches(NamedTuple):
    """Rows `order[i * batch_size : (i + 1) * batch_size]` of x and y are batch i; the last one may be shorter.

    The gradients of `accumulate` successive batches make one optimizer step: their mean over all rows of the group.

    With weights w every mean over rows is sum(w l) / sum(w): the gradient of a step, the loss of a step and of an
    epoch, the metrics. A row of weight 0 is as good as absent. A step whose weights sum to 0 leaves parameters and
    states as they are, constraints and averages included, and its loss is 0, but for penalties; it counts as a step,
    with the learning rate of its number.

    >>> batches = Batches(np.zeros((7, 1)), np.zeros((7, 1)), np.arange(7), batch_size=3, accumulate=2)
    >>> batches.rows_of_batches().tolist(), batches.rows_of_steps().tolist()
    ([3, 3, 1], [6, 1])
    >>> batches._replace(sizes=np.array([1, 3, 2])).rows_of_batches().tolist()  # the last row is left out
    [1, 3, 2]
    """

    x: np.ndarray | Source  # (n, inputs), of the network's dtype, or a source of any
    y: np.ndarray  # (n,) int64 labels, or (n, outputs) of the network's dtype
    order: np.ndarray  # (m,) row indices: uint32 or, for the same bits, int64
    batch_size: int
    accumulate: int = 1
    epochs: int = 1  # passes over all batches, one after the other
    shuffle: Shuffle | None = None  # each epoch goes through `order` in a new order; None: as it is
    parts: EpochParts | None = None  # the epoch that these batches are a part of, whose metrics go on; None: of none
    weights: np.ndarray | None = None  # (n,) of x's dtype, of the rows of x and y: finite, 0 or normal; None: all 1
    used: int | None = None  # an epoch's rows, the first of its order; None: all, or with `sizes` their sum
    # (batches,) int64, 1 to batch_size rows of each batch of the only epoch; None: batch_size each, and what is left
    sizes: np.ndarray | None = None

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        if self.sizes is not None:
            return int(self.sizes.sum())
        return len(self.order) if self.used is None else self.used

    @property
    def leaves_out(self) -> bool:
        """True if an epoch leaves out the last rows of its order."""
        return self.num_rows < len(self.order)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        if self.sizes is not None:
            return len(self.sizes)
        return -(-(len(self.order) if self.used is None else self.used) // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        if self.sizes is not None:
            return -(-len(self.sizes) // self.accumulate)
        return -(-(len(self.order) if self.used is None else self.used) // (self.batch_size * self.accumulate))

    @property
    def most_steps(self) -> int:
        """Steps to make room for: if batches have random sizes, more than another epoch of the same rows may have.

        The number of n such steps has a deviation of at most 0.6 sqrt(n).
        """
        return self.steps if self.sizes is None else self.steps + 8 * math.isqrt(self.steps) + 8

    def rows_of_batches(self) -> np.ndarray:
        """Return the rows of every batch of an epoch, (batches,) int64."""
        return self._cut(self.batch_size) if self.sizes is None else self.sizes

    def rows_of_steps(self) -> np.ndarray:
        """Return the rows of every optimizer step of an epoch, (steps,) int64."""
        if self.sizes is None:
            return self._cut(self.batch_size * self.accumulate)
        return np.add.reduceat(self.sizes, np.arange(0, len(self.sizes), self.accumulate))

    def weight_of_steps(self) -> np.ndarray:
        """Return the weight of every step of all epochs, (steps of all epochs,) float64: rows, or the sum of theirs.

        Where rows have weights, the order of every epoch is drawn for this.

        >>> batches = Batches(np.zeros((5, 1)), np.zeros((5, 1)), np.arange(5), batch_size=2, epochs=2)
        >>> batches.weight_of_steps().tolist()
        [2.0, 2.0, 1.0, 2.0, 2.0, 1.0]
        >>> batches._replace(weights=np.arange(5.0), epochs=1).weight_of_steps().tolist()
        [1.0, 5.0, 4.0]
        """
        rows = self.rows_of_steps()
        if self.weights is None or not len(rows):
            return np.tile(rows.astype(np.float64), self.epochs)
        starts = np.cumsum(rows) - rows
        of_rows = (self.weights[self.epoch(i).order].astype(np.float64) for i in range(self.epochs))
        return np.concatenate([np.add.reduceat(weights, starts) for weights in of_rows])

    def _cut(self, size: int) -> np.ndarray:
        """The sizes of the pieces of an epoch: `size` rows, and what is left."""
        rows = len(self.order) if self.used is None else self.used
        sizes = np.full(-(-rows // size), size)
        sizes[-1:] = rows - (len(sizes) - 1) * size
        return sizes

    def epoch(self, i: int) -> Batches:
        """Return the batches of epoch i alone, in their order."""
        order = self.order if self.shuffle is None else self.shuffle.order(self.order, i)
        return self._replace(order=order[: self.num_rows], epochs=1, shuffle=None, used=None)

    def part(self, steps: range) -> Batches:
        """Return some steps of an epoch whose order is its own: those of `epoch`."""
        first, end = steps.start * self.accumulate, min(steps.stop * self.accumulate, self.batches)
        if self.sizes is None:
            return self._replace(order=self.order[first * self.batch_size : end * self.batch_size])
        before, rows = int(self.sizes[:first].sum()), int(self.sizes[first:end].sum())
        return self._replace(order=self.order[before : before + rows], sizes=self.sizes[first:end])


class ParamSettings(NamedTuple):
    """Settings of one parameter, beside the options that all have in common; those of the defaults change nothing."""

    lr_scale: float = 1.0  # factor of every learning rate
    weight_decay: float | None = None  # in the place of that of the options; None: that one
    l1: float = 0.0  # the loss has l1 sum |p| more: l1 sign(p) joins the gradient, as that of the options does
    l2: float = 0.0  # the loss has l2 sum p^2 more: 2 l2 p joins the gradient, also where weight decay is decoupled
    late: int = 0  # steps that the optimizer had done before the parameter's first: its own count is so much behind

    @property
    def has_penalty(self) -> bool:
        """True if the parameter adds to the loss."""
        return self.l1 != 0 or self.l2 != 0


class Constraint(NamedTuple):
    """A constraint on a parameter: a row of CONSTRAINTS, by name, with its settings."""

    name: str
    axes: tuple[int, ...] = (0,)  # that a norm goes over, each from 0; of a matrix (0,): a norm of each column
    most: float = 1.0  # the largest norm


class AfterStep(NamedTuple):
    """Work on the parameters after the update of every step: first constraints, then averages over the steps.

    A parameter that is not updated has neither.
    """

    constraints: Sequence[Constraint | None] = ()  # of each parameter; empty: there are none
    averages: Sequence[np.ndarray | None] = ()  # of each parameter, of its shape and dtype; changed in place
    shares: np.ndarray | None = None  # (steps of all epochs,) float64: average += share (parameter - average)

    def epoch(self, i: int, steps: int) -> AfterStep:
        """Return the work of epoch i alone, each epoch having so many steps."""
        return self if self.shares is None else self._replace(shares=self.shares[i * steps : (i + 1) * steps])


NEUTRAL = ParamSettings()


class OptimizerSteps(NamedTuple):
    """The next steps of an optimizer on the parameters of a network, one for each of `learning_rates`."""

    rule: str  # a row of OPTIMIZERS
    # Those of each parameter, in the order of the rule's row; changed in place. None: the parameter is not updated, and
    # no gradient of it is computed.
    states: Sequence[tuple[np.ndarray, ...] | None]
    options: Mapping[str, Any]  # of the rule; lr is not read
    learning_rates: np.ndarray  # (steps of all epochs,) float64
    steps_done: int = 0  # before the first of these
    clip_norm: float | None = None  # the largest norm of all gradients of a step together
    settings: Sequence[ParamSettings] = ()  # of each parameter; (): none has settings of its own
    after: AfterStep | None = None  # work that follows each update
    fixed: Sequence[int] = ()  # indices of BatchNorms among the layers that go by their averages, and do not move them
    # (steps of all epochs,) float64: by these the penalties of settings are divided in each step; None: by 1
    penalty_divisors: np.ndarray | None = None
    # uint8 of the shape of each parameter, 0 where it is pruned, else 1; None: nothing of it is. Empty: nothing of any.
    # A pruned element has gradient 0, also in a norm, and is 0 after every step, as its states are.
    masks: Sequence[np.ndarray | None] = ()
    storages: Sequence[str] = ()  # of each parameter's states: WHOLE or BLOCKWISE; (): all are WHOLE

    @property
    def updated(self) -> tuple[bool, ...]:
        """For each parameter: True if it is updated."""
        return tuple(states is not None for states in self.states)

    @property
    def penalties(self) -> tuple[ParamSettings, ...]:
        """Settings of all parameters if one of them adds to the loss; else ()."""
        return tuple(self.settings) if any(own.has_penalty for own in self.settings) else ()

    def rows(self) -> tuple[list[ParamSettings], tuple[int, ...]]:
        """Return the different settings of parameters that are updated, and the index among them of each parameter.

        There is one at least. The index of a parameter that is not updated is 0.

        >>> half = ParamSettings(lr_scale=0.5)
        >>> OptimizerSteps("sgd", [(), None, ()], {}, np.ones(1), settings=[half, half, ParamSettings()]).rows()[1]
        (0, 0, 1)
        """
        if not self.settings:
            return [NEUTRAL], (0,) * len(self.states)
        different = list(dict.fromkeys(own for own, on in zip(self.settings, self.updated, strict=True) if on))
        different = different or [NEUTRAL]
        indices = (different.index(own) if on else 0 for own, on in zip(self.settings, self.updated, strict=True))
        return different, tuple(indices)

    def options_of(self, own: ParamSettings) -> dict[str, Any]:
        """Return the options of parameters with these settings. Penalties are not among them."""
        decay = self.options["weight_decay"] if own.weight_decay is None else own.weight_decay
        return {**self.options, "weight_decay": decay}

    @property
    def last_rate(self) -> float:
        """The learning rate of the last step; NaN without steps."""
        return float(self.learning_rates[-1]) if len(self.learning_rates) else float("nan")

    def epoch(self, i: int, steps: int) -> OptimizerSteps:
        """Return the steps of epoch i alone, each epoch having so many."""
        rates = self.learning_rates[i * steps : (i + 1) * steps]
        after, divisors = self.after and self.after.epoch(i, steps), self.penalty_divisors
        divisors = None if divisors is None else divisors[i * steps : (i + 1) * steps]
        done = self.steps_done + i * steps
        return self._replace(learning_rates=rates, steps_done=done, after=after, penalty_divisors=divisors)


class PassResult(NamedTuple):
    """Results of a pass over the data."""

    losses: np.ndarray  # (steps,) float64, the mean loss of the rows of every optimizer step
    metrics: dict[str, float]
    seconds: float
    lr: float = float("nan")  # the learning rate of the last step
    weights: np.ndarray | None = None  # (steps,) float64, sums of the weights of rows; None: rows have none


class EpochResults(NamedTuple):
    """Results of successive epochs of a training pass."""

    losses: np.ndarray  # (epochs, steps) float64, the mean loss of the rows of every optimizer step
    metrics: dict[str, list[float]]  # a value for each epoch
    seconds: np.ndarray  # (epochs,) float64
    rates: np.ndarray  # (epochs,) float64, the learning rate of the last step of each
    weights: np.ndarray | None = None  # (epochs, steps) float64, sums of the weights of rows; None: rows have none

    @classmethod
    def of(cls, result: PassResult) -> EpochResults:
        """Return the results of a single epoch."""
        metrics = {name: [value] for name, value in result.metrics.items()}
        weights = None if result.weights is None else result.weights[np.newaxis]
        return cls(result.losses[np.newaxis], metrics, np.array([result.seconds]), np.array([result.lr]), weights)

    def last(self) -> PassResult:
        """Return the results of the last epoch."""
        metrics = {name: values[-1] for name, values in self.metrics.items()}
        weights = None if self.weights is None else self.weights[-1]
        return PassResult(self.losses[-1], metrics, float(self.seconds[-1]), float(self.rates[-1]), weights)


class EpochHooks(NamedTuple):
    """Functions of the caller that a training pass of several epochs calls."""

    finished: Callable[[EpochResults], None]  # given the results of whole epochs, also if the pass is interrupted
    stop: Callable[[], bool]  # asked now and then, at most at every end of an epoch; true: the pass ends with its epoch
    until_diverged: bool = False  # the pass ends with the first epoch whose losses are not finite
    rule: LossRule | None = None  # by which the pass ends; None: by none

    def after(self, result: PassResult) -> bool:
        """Hand over the result of an epoch; return true if the pass ends with it."""
        self.finished(EpochResults.of(result))
        return self.stop() or (self.until_diverged and not np.isfinite(result.losses.sum()))
