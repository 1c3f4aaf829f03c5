"""Phases of dense layers of codes (`spec.Quantized`), for predictions, and of numbers rounded to codes in training.

A layer that takes codes finds them made by the layer below, if that is one of codes, too, or by the gather; else a
phase makes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ... import costs
from ...profile import Cost
from ...spec import DenseSpec, DropoutSpec, GaussianNoiseSpec, LayerSpec, Quantized
from ..dense.blas import products
from ..dense.fake_quantized import FAKE_INPUTS_KERNEL, FAKE_LIMITS_KERNEL, FAKE_SCRATCH, FAKE_WEIGHTS_KERNEL
from ..dense.int8 import ROW_UNIT, pack, row_bytes, starts
from ..dense.int8_tiles import WORD
from ..dense.layer import activate_kernel
from ..dense.quantized import (
    CODES_KERNEL,
    STRIP_BYTES,
    SUMS_BYTES,
    coded_weights_kernel,
    int8_kernel,
)
from ..dense.rows import ROWS
from ..runtime.partition import num_pieces
from ..runtime.primitives import aligned_zeros
from ..runtime.records import CODED_WEIGHTS, CODES, FAKE_INPUTS, FAKE_WEIGHTS, GATHER, INT8_DENSE, fill
from .phases import PhaseList

Array = np.ndarray
MOST = {8: 127, 4: 7}  # the largest code of weights


def takes_codes(layer: LayerSpec) -> bool:
    """True for a dense layer whose rows are codes."""
    return isinstance(layer, DenseSpec) and layer.quantized is not None and layer.quantized.input_scale > 0


def _dense(layer: LayerSpec) -> tuple[DenseSpec, Quantized]:
    """A dense layer of codes, with what they are."""
    assert isinstance(layer, DenseSpec)
    assert layer.quantized is not None
    return layer, layer.quantized


def _inverse(quantized: Quantized) -> float:
    """The factor, a float32, from numbers to codes."""
    return float(np.float32(1) / np.float32(quantized.input_scale))


def _codes(program: PhaseList, columns: int) -> Array:
    """Memory for the codes of a batch: whole tiles of whole words, of which the last bytes stay 0."""
    rows = num_pieces(program.batch_size, ROW_UNIT) * ROW_UNIT
    codes = aligned_zeros(rows * row_bytes(columns), np.uint8).reshape(rows, row_bytes(columns))
    program.kept.append(codes)
    program.num_bytes += codes.nbytes
    return codes


def codes_of_data(program: PhaseList) -> tuple[Array, Array, Cost]:
    """Memory for the codes of the data's rows, the record of the gather that makes them, and its cost."""
    layer, quantized = _dense(program.net.layers[0])
    codes = _codes(program, layer.inputs)
    record = fill(
        GATHER, run=program.run, batch_x=codes, inputs=layer.inputs, piece_cols=codes.shape[1],
        zero=quantized.input_zero, inverse=_inverse(quantized),
    )  # fmt: skip
    return codes, record, costs.gather_codes(layer.inputs, program.verb == "train")


def add_quantized(program: PhaseList, index: int, x: Array, arrays: Sequence[Array]) -> Array:
    """Add the dense layer of codes of this index; return its outputs, or the codes that the layer above takes.

    x: float32, or codes. arrays: codes, scales and bias, as many as there are.
    """
    net = program.net
    layer, quantized = _dense(net.layers[index])
    is_last = not any(isinstance(above, DenseSpec) for above in net.layers[index + 1 :])
    activation = "linear" if is_last and net.link else layer.activation
    if not takes_codes(layer):
        return _add_coded_weights(program, layer, quantized, activation, x, arrays)
    if x.dtype != np.uint8:
        x = _add_codes(program, x, quantized)
    above = (other for other in net.layers[index + 1 :] if not isinstance(other, DropoutSpec | GaussianNoiseSpec))
    return _add_product(program, layer, quantized, activation, x, arrays, next(above, None))


def _add_codes(program: PhaseList, x: Array, quantized: Quantized) -> Array:
    columns = x.shape[1]
    codes = _codes(program, columns)
    record = fill(
        CODES, run=program.run, x=x, y=codes, columns=columns, row_bytes=codes.shape[1], zero=quantized.input_zero,
        inverse=_inverse(quantized),
    )  # fmt: skip
    program.add(CODES_KERNEL, record, barrier=True, cost=costs.codes(columns, x.itemsize))
    return codes


def _packed(program: PhaseList, codes: Array, zero: int) -> tuple[Array, Array]:
    """The codes of w packed, and what the sums start from: the same arrays for all programs of a network."""
    packed = program.net.packed
    if id(codes) not in packed:
        packed[id(codes)] = pack(codes), starts(codes, zero)
    return packed[id(codes)]


def _add_product(
    program: PhaseList, layer: DenseSpec, quantized: Quantized, activation: str, x: Array, arrays: Sequence[Array],
    above: LayerSpec | None,
) -> Array:  # fmt: skip
    codes, scales = arrays[:2]
    packed, start = _packed(program, codes, quantized.input_zero)
    scale = aligned_zeros(len(start), np.float32)
    scale[: layer.outputs] = np.float32(quantized.input_scale) * scales[0]
    b = arrays[2] if layer.bias else None
    fields: dict[str, float] = {}
    coded = above is not None and takes_codes(above)
    if above is not None and coded:
        y, (_, of_above) = _codes(program, layer.outputs), _dense(above)
        fields = {"zero": of_above.input_zero, "inverse": _inverse(of_above)}
    else:
        y = program.zeros(program.batch_size, layer.outputs)
    scratch = aligned_zeros(program.num_ranks * SUMS_BYTES, np.uint8)
    program.kept += [packed, start, scale, b, scratch]
    record = fill(
        INT8_DENSE, run=program.run, x=x, x_row=x.shape[1], w=packed, steps=num_pieces(layer.inputs, WORD), start=start,
        scale=scale, b=b, y=y, y_row=y.strides[0], outputs=layer.outputs,
        activate=activate_kernel(activation, "float32").address, coded=int(coded), scratch=scratch, **fields,
    )  # fmt: skip
    cost = costs.int8_product(layer.inputs, layer.outputs, activation, y.itemsize)
    program.add(int8_kernel(), record, barrier=True, cost=cost)
    return y


def _add_coded_weights(
    program: PhaseList, layer: DenseSpec, quantized: Quantized, activation: str, x: Array, arrays: Sequence[Array]
) -> Array:
    codes, scales = arrays[0], arrays[1] if quantized.bits != 16 else None
    b = arrays[-1] if layer.bias else None
    y = program.zeros(program.batch_size, layer.outputs)
    scratch = aligned_zeros(program.num_ranks * STRIP_BYTES, np.uint8)
    program.kept.append(scratch)
    record = fill(
        CODED_WEIGHTS, run=program.run, x=x, codes=codes, scales=scales, group=quantized.group or layer.inputs, b=b,
        y=y, inputs=layer.inputs, outputs=layer.outputs, gemm=products("float32").gemm["float32"],
        activate=activate_kernel(activation, "float32").address, scratch=scratch,
    )  # fmt: skip
    num_bytes = sum(array.nbytes for array in arrays)
    cost = costs.coded_weights(layer.inputs, layer.outputs, activation, quantized.bits, num_bytes)
    program.add(coded_weights_kernel(quantized.bits), record, barrier=True, cost=cost)
    return y


# ---------------------------------------------------------------- training
def add_fake(program: PhaseList, layer: DenseSpec, x: Array, w: Array) -> tuple[Array, Array]:
    """Add the rounding of what a layer multiplies in training; return the rounded x and w.

    x: (rows, columns), or (splits, rows, columns of a split).
    """
    assert layer.fake is not None
    rounded = program.zeros(*w.shape)
    scratch = aligned_zeros(program.num_ranks * FAKE_SCRATCH, np.uint8)
    program.kept.append(scratch)
    record = fill(
        FAKE_WEIGHTS, run=program.run, w=w, y=rounded, inputs=layer.inputs, outputs=layer.outputs,
        group=layer.fake.group or layer.inputs, most=MOST[layer.fake.bits], scratch=scratch,
    )  # fmt: skip
    cost = costs.fake_weights(layer.inputs, layer.outputs)
    program.add(FAKE_WEIGHTS_KERNEL, record, barrier=True, cost=cost)
    return (_add_fake_inputs(program, x) if layer.fake.inputs else x), rounded


def _add_fake_inputs(program: PhaseList, x: Array) -> Array:
    splits, (capacity, columns), rounded = x.shape[0] if x.ndim == 3 else 1, x.shape[-2:], program.zeros(*x.shape)
    limits = np.zeros((num_pieces(capacity, ROWS), 2), np.float32)
    scratch = aligned_zeros(program.num_ranks * 2 * columns, np.float32)
    program.kept += [limits, scratch]
    record = fill(
        FAKE_INPUTS, run=program.run, x=x, y=rounded, splits=splits, capacity=capacity, columns=columns,
        limits=limits, scratch=scratch,
    )  # fmt: skip
    program.add(FAKE_LIMITS_KERNEL, record, barrier=True, cost=costs.limits(splits * columns))
    program.add(FAKE_INPUTS_KERNEL, record, barrier=True, cost=costs.fake_inputs(splits * columns))
    return rounded
