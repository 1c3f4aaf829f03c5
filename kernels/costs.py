"""The least cost of each phase, from shapes: all formulas of `fastopt profile`.

Bytes: each operand is read once and each result written once a call, whatever is read again or comes from a cache;
memory that does not outlive a call (a tile of dw, sums of columns) does not count.
Operations: additions and multiplications of products (2 m n k), of biases and their gradients, and the arithmetic of
the optimizer's rule with its default options. Functions such as exp, comparisons, the draws of dropout, losses and
metrics do not count.

itemsize, in all functions: bytes of an element.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from .formulas import ACTIVATIONS, NUM_SCALARS, OPTIMIZERS
from .formulas.blockwise import BLOCK
from .profile import Cost
from .scalars import fill_scalars

LABEL, ORDER = 8, 4  # bytes of a label, and of the number of a row


class CountedValue:
    """A number that counts the operations on it: one for each + - * / and each function of `math`."""

    done = 0

    def __init__(self, value: Any) -> None:
        self.value: Any = value.value if isinstance(value, CountedValue) else value

    def __float__(self) -> float:  # called by the functions of `math`
        CountedValue.done += 1
        return float(self.value)

    def __neg__(self) -> CountedValue:
        return CountedValue(-self.value)

    def __abs__(self) -> CountedValue:
        return CountedValue(abs(self.value))

    def __eq__(self, other: object) -> bool:
        return self.value == CountedValue(other).value

    def __lt__(self, other: Any) -> bool:
        return self.value < CountedValue(other).value

    def __le__(self, other: Any) -> bool:
        return self.value <= CountedValue(other).value

    def __gt__(self, other: Any) -> bool:
        return self.value > CountedValue(other).value

    def __ge__(self, other: Any) -> bool:
        return self.value >= CountedValue(other).value

    def __hash__(self) -> int:
        return hash(self.value)

    def _operation(self, value: float) -> CountedValue:
        CountedValue.done += 1
        return CountedValue(value)

    def __add__(self, other: Any) -> CountedValue:
        return self._operation(self.value + CountedValue(other).value)

    def __sub__(self, other: Any) -> CountedValue:
        return self._operation(self.value - CountedValue(other).value)

    def __mul__(self, other: Any) -> CountedValue:
        return self._operation(self.value * CountedValue(other).value)

    def __truediv__(self, other: Any) -> CountedValue:
        return self._operation(self.value / CountedValue(other).value)


def count_operations(function: Any, *arguments: Any) -> int:
    """The operations on `CountedValue`s of a call."""
    before = CountedValue.done
    function(*arguments)
    return CountedValue.done - before


@cache
def update_flops(rule: str) -> int:
    """The operations of a step of an optimizer on one parameter.

    >>> update_flops("sgd")  # the sign, the (decoupled) decay, lr g, and the difference
    4
    """
    row, table = OPTIMIZERS[rule], np.zeros((1, NUM_SCALARS + 1))
    fill_scalars(table, rule, [2], row.options)
    h = [CountedValue(value) for value in table[0, :NUM_SCALARS].tolist()]
    states = tuple(CountedValue(0.5) for _ in row.states)
    return count_operations(row.rule, CountedValue(0.5), CountedValue(0.5), states, h, CountedValue(1e-38))


def _update_bytes(rule: str | None, itemsize: int) -> int:
    """Bytes of one parameter and its states, read and written; without a rule, of its gradient, written."""
    return 2 * (1 + len(OPTIMIZERS[rule].states)) * itemsize if rule else itemsize


def _update_flops(rule: str | None) -> int:
    return update_flops(rule) if rule else 0


def shuffle() -> Cost:
    """Indices of the rows of an epoch read, and written in another order."""
    return Cost("shuffle", row_bytes=2 * ORDER, once_an_epoch=True)


def gather(
    inputs: int, targets: int, ordered: bool, itemsize: int, labels: bool = False, stored: float | None = None
) -> Cost:
    """Rows of x and y (`targets` columns, or labels) copied to the batch; ordered: by row numbers, which are read.

    stored: bytes of a value of x where its dtype is another.
    """
    target = LABEL if labels else targets * itemsize
    x = inputs * itemsize + inputs * (itemsize if stored is None else stored)
    return Cost(f"gather {inputs}", row_bytes=int(x) + 2 * target + ordered * ORDER)


def sum_weights(itemsize: int) -> Cost:
    """Numbers and weights of the rows of an epoch read."""
    return Cost("sum of weights", row_bytes=ORDER + itemsize, once_an_epoch=True)


def gather_weights(itemsize: int) -> Cost:
    """Numbers and weights of the rows read, weights written."""
    return Cost("gather weights", row_bytes=ORDER + 2 * itemsize)


def scatter(outputs: int, itemsize: int) -> Cost:
    """Rows of the batch copied to the outputs."""
    return Cost(f"scatter {outputs}", row_bytes=2 * outputs * itemsize)


def dropout(columns: int, itemsize: int, backward: bool) -> Cost:
    """x (or dy) read, y (or dx) written; the mask is drawn, not kept."""
    return Cost(f"dropout{' backward' * backward} {columns}", row_bytes=2 * columns * itemsize)


def noise(columns: int, itemsize: int) -> Cost:
    """x read, y written."""
    return Cost(f"noise {columns}", row_bytes=2 * columns * itemsize)


def normalization(name: str, columns: int, params: int, itemsize: int, parameter_size: int) -> Cost:
    """x and so many parameters, of their own size, read, y written.

    A row takes one operation an element for the mean, three for the variance, and three for y.
    """
    in_training = name != "batch_norm_moving"
    moving = 2 * (name == "batch_norm")  # averages that are written, too
    return Cost(
        f"{name.replace('_moving', '')} {columns}",
        bytes=(params + moving) * columns * parameter_size,
        row_bytes=2 * columns * itemsize,
        row_flops=(7 if in_training else 3) * columns,
    )


def normalization_gradients(
    name: str, columns: int, arrays: int, gradients: int, updates: int, rule: str | None, itemsize: int,
    parameter_size: int,
) -> Cost:  # fmt: skip
    """So many arrays of rows read or written: x, dy and dx; gradients of parameters written, or parameters updated.

    A row takes five operations an element for the sums of both gradients, and five for dx.
    """
    return Cost(
        f"{name} {columns}",
        bytes=columns * (gradients * parameter_size + updates * _update_bytes(rule, parameter_size)),
        flops=columns * updates * _update_flops(rule),
        row_bytes=arrays * columns * itemsize,
        row_flops=(5 * (arrays > 1) + 5 * (arrays > 2)) * columns,
    )


def forward(inputs: int, outputs: int, activation: str, bias: bool, keeps_z: bool, itemsize: int) -> Cost:
    """x, w and b read; y written, and z where the backward pass needs it."""
    return Cost(
        f"forward {inputs}x{outputs} {activation}",
        bytes=(inputs + bias) * outputs * itemsize,
        row_bytes=(inputs + (1 + keeps_z) * outputs) * itemsize,
        row_flops=(2 * inputs + bias) * outputs,
    )


def codes(columns: int, itemsize: int) -> Cost:
    """x read, a byte of each element written."""
    return Cost(f"codes {columns}", row_bytes=columns * (itemsize + 1))


def fake_weights(inputs: int, outputs: int) -> Cost:
    """w read, and written rounded; a row of it takes two operations an element."""
    return Cost(f"rounded w {inputs}x{outputs}", bytes=8 * inputs * outputs, flops=2 * inputs * outputs)


def limits(columns: int) -> Cost:
    """x read."""
    return Cost(f"limits {columns}", row_bytes=4 * columns)


def fake_inputs(columns: int) -> Cost:
    """x read, and written rounded."""
    return Cost(f"rounded x {columns}", row_bytes=8 * columns, row_flops=2 * columns)


def gather_codes(inputs: int, ordered: bool) -> Cost:
    """Rows of float32 data read, by row numbers that are read if `ordered`, and a byte of each element written."""
    return Cost(f"gather codes {inputs}", row_bytes=inputs * 5 + ordered * ORDER)


def int8_product(inputs: int, outputs: int, activation: str, out_bytes: int) -> Cost:
    """Codes of x and w read, with start, scale and b of each column; y written, in so many bytes an element."""
    return Cost(
        f"int8 {inputs}x{outputs} {activation}",
        bytes=(inputs + 12) * outputs,
        row_bytes=inputs + outputs * out_bytes,
        row_flops=2 * inputs * outputs,
    )


def coded_weights(inputs: int, outputs: int, activation: str, bits: int, num_bytes: int) -> Cost:
    """x read, and so many bytes of codes, scales and b; y written."""
    return Cost(
        f"w{bits} {inputs}x{outputs} {activation}",
        bytes=num_bytes,
        row_bytes=(inputs + outputs) * 4,
        row_flops=2 * inputs * outputs,
    )


def products(inputs: int, outputs: int, num_splits: int, itemsize: int) -> Cost:
    """x and w read, the products of the splits of w written, for `combine` to add up."""
    return Cost(
        f"forward {inputs}x{outputs}",
        bytes=inputs * outputs * itemsize,
        row_bytes=(inputs + num_splits * outputs) * itemsize,
        row_flops=2 * inputs * outputs,
    )


def combine(outputs: int, activation: str, bias: bool, keeps_z: bool, num_splits: int, itemsize: int) -> Cost:
    """The products of the splits and b read; y written, and z where the backward pass needs it."""
    return Cost(
        f"combine {outputs} {activation}",
        bytes=bias * outputs * itemsize,
        row_bytes=(num_splits + 1 + keeps_z) * outputs * itemsize,
        row_flops=(num_splits - 1 + bias) * outputs,
    )


def slopes(outputs: int, activation: str, bias: bool, rule: str | None, itemsize: int) -> Cost:
    """The gradient of y read and that of z written in its place, y or z read for the slope; b updated.

    The linear activation's slope reads neither. A row takes a multiplication by the slope and an addition to db.
    """
    return Cost(
        f"slopes {outputs} {activation}",
        bytes=bias * outputs * _update_bytes(rule, itemsize),
        flops=bias * outputs * _update_flops(rule),
        row_bytes=(2 + _reads_for_slope(activation)) * outputs * itemsize,
        row_flops=(1 + bias) * outputs,
    )


def _reads_for_slope(activation: str) -> bool:
    return ACTIVATIONS[activation].slope is not ACTIVATIONS["linear"].slope


def activate(outputs: int, activation: str, bias: bool, itemsize: int) -> Cost:
    """The products and b read, y written."""
    return Cost(
        f"activate {outputs} {activation}",
        bytes=bias * outputs * itemsize,
        row_bytes=2 * outputs * itemsize,
        row_flops=bias * outputs,
    )


def bias_gradient(outputs: int, itemsize: int) -> Cost:
    """dz read, db written."""
    return Cost(f"sums {outputs}", bytes=outputs * itemsize, row_bytes=outputs * itemsize, row_flops=outputs)


def inputs_gradient(inputs: int, outputs: int, itemsize: int, below: str | None = None) -> Cost:
    """dz and w read, dx written; below: the activation of the layer below, whose slopes and sums dx is made dz with."""
    reads = below is not None and _reads_for_slope(below)
    return Cost(
        f"inputs {inputs}x{outputs}{f' {below}' if below else ''}",
        bytes=inputs * outputs * itemsize,
        row_bytes=(inputs + outputs + reads * inputs) * itemsize,
        row_flops=2 * inputs * outputs + (2 * inputs if below else 0),
    )


def weights(inputs: int, outputs: int, rule: str | None, itemsize: int, bias: bool = False) -> Cost:
    """x and dz read, w and its states read and written; without a rule, dw is written instead. bias: b as well."""
    elements = (inputs + bias) * outputs
    return Cost(
        f"weights{f'+{rule}' if rule else ''} {inputs}x{outputs}",
        bytes=elements * _update_bytes(rule, itemsize),
        flops=elements * _update_flops(rule),
        row_bytes=(inputs + outputs) * itemsize,
        row_flops=2 * inputs * outputs,
    )


def loss(name: str, outputs: int, labels: bool, itemsize: int) -> Cost:
    """z and the targets read, dz written."""
    return Cost(f"loss {name}", row_bytes=2 * outputs * itemsize + (LABEL if labels else outputs * itemsize))


def metric(name: str, outputs: int, labels: bool, itemsize: int) -> Cost:
    """The outputs and the targets read."""
    return Cost(f"metric {name}", row_bytes=outputs * itemsize + (LABEL if labels else outputs * itemsize))


def link(name: str, outputs: int, itemsize: int) -> Cost:
    """z read, y written."""
    return Cost(f"{name} {outputs}", row_bytes=2 * outputs * itemsize)


def accumulate(size: int, itemsize: int) -> Cost:
    """All gradients of a batch read, those of the step read and written."""
    return Cost("accumulate", bytes=3 * size * itemsize, flops=2 * size)


def squares(size: int, itemsize: int) -> Cost:
    """All gradients read."""
    return Cost("squares", bytes=size * itemsize, flops=2 * size)


def penalties(size: int, num_bytes: int) -> Cost:
    """The parameters with penalties read."""
    return Cost("penalties", bytes=num_bytes, flops=2 * size)


def apply(size: int, rule: str, itemsize: int) -> Cost:
    """All gradients read, parameters and states read and written."""
    bytes_of_one = itemsize + _update_bytes(rule, itemsize)
    return Cost(f"apply {rule}", bytes=size * bytes_of_one, flops=size * update_flops(rule))


def tree_sum(size: int, itemsize: int) -> Cost:
    """The gradient of a piece read and written once more, and on average a sum that waits read."""
    return Cost("tree_sum", bytes=3 * size * itemsize, flops=size)


def adding_up(cost: Cost, size: int, itemsize: int) -> Cost:
    """The cost of gradients of a piece that are added up tile by tile, too: on average a sum that waits read."""
    return cost._replace(bytes=cost.bytes + size * itemsize, flops=cost.flops + size)


def averaging(cost: Cost, size: int, itemsize: int) -> Cost:
    """The cost of updates that take so many parameters into their averages, too: these read and written."""
    return cost._replace(bytes=cost.bytes + 2 * size * itemsize, flops=cost.flops + 3 * size)


def measuring(cost: Cost, size: int) -> Cost:
    """The cost of updates that add up the squares of so many parameters, too."""
    return cost._replace(flops=cost.flops + 2 * size)


def sparse_build(inputs: int, outputs: int, left: int, itemsize: int) -> Cost:
    """w read, the weights that are left written, each with a number."""
    return Cost(f"sparse weights {inputs}-{outputs}", (inputs * outputs + 2 * left) * itemsize, once_an_epoch=True)


def sparse_forward(inputs: int, outputs: int, left: int, activation: str, bias: bool, itemsize: int) -> Cost:
    """x and the weights that are left read, y written; a product and a sum for each of these and each row."""
    return Cost(
        f"sparse {inputs}-{outputs} {activation}", bytes=2 * left * itemsize + bias * outputs * itemsize,
        row_bytes=(inputs + outputs) * itemsize, row_flops=2 * left + bias * outputs,
    )  # fmt: skip


def repack(name: str, columns: int, itemsize: int) -> Cost:
    """A batch read and written in another layout."""
    return Cost(f"{name} {columns}", row_bytes=2 * columns * itemsize)


def masking(cost: Cost, size: int) -> Cost:
    """The cost of updates that read a byte more of so many parameters: their mask."""
    return cost._replace(bytes=cost.bytes + size)


def coding(cost: Cost, size: int, rule: str, itemsize: int) -> Cost:
    """The cost of updates whose states, of so many parameters, are codes of 8 bits with a float32 for each block."""
    states = 2 * len(OPTIMIZERS[rule].states) * size  # read and written
    return cost._replace(bytes=cost.bytes + int(states * (1 + 4 / BLOCK - itemsize)))


def column_norms(size: int, itemsize: int) -> Cost:
    """Parameters read."""
    return Cost("column_norms", bytes=size * itemsize, flops=2 * size)


def after_step(size: int, averaged: int, itemsize: int) -> Cost:
    """Parameters read and written; `averaged` of them taken into averages, which are read and written, too.

    A product, and where there are norms of rows two operations more.
    """
    return Cost("after_step", bytes=2 * (size + averaged) * itemsize, flops=3 * (size + averaged))
