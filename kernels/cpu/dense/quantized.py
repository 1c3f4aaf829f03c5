"""Dense layers of integers: rows become uint8, products are exact in int32, and what follows is done on a tile.

- `quantize` makes rows of float32 uint8: code = clip(round(x inverse), -zero, 255 - zero) + zero, rounded to nearest,
  ties to even; NaN becomes the least code. `gather` reads them from the data, `rows` from a batch.
- `product` multiplies them with a layer's int8 codes: y = f(scale (start + sum code_x code_w) + b), float32, or the
  codes of the next layer at once. start takes the zero of x off (`int8.starts`), scale is that of x times that of the
  column.
- `weights` is for layers whose weights alone are codes: a strip of columns is made float32 in memory of a rank, a
  block of rows at a time, and multiplied as other matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.partition import batch_rows, batch_start, num_pieces, pieces_of_rank
from ..runtime.primitives import call_sgemm, call_tile, view
from ..runtime.records import CODED_WEIGHTS, CODES, GATHER, INT8_DENSE, RUN, read
from ..runtime.storage import widen_bfloat16
from .codes import codes_of_row, scale_group
from .int8 import ROW_UNIT, name_of, product_of
from .int8_tiles import GROUP, GROUP_BYTES, DotUnit, dot_unit
from .matmul import AS_IS, ROW_MAJOR
from .rows import ROWS, by_order

F = np.float32
BLOCK_ROWS, BLOCK_GROUPS = 4 * ROW_UNIT, 4  # of a piece of a product: sums of 12 kB
SUMS_BYTES = BLOCK_ROWS * BLOCK_GROUPS * GROUP * 4
STRIP_COLS, STRIP_ROWS = 64, 256  # of the weights that are made float32 at a time: 64 kB
STRIP_BYTES = STRIP_COLS * STRIP_ROWS * 4


# ---------------------------------------------------------------- rows
def _gather_codes(Order):
    """Codes of the batch's rows of x, straight from float32 data."""

    def gather_codes(work, step, rank, num_ranks):
        g = read(work, GATHER)
        run = read(g.run, RUN)
        rows, start = batch_rows(g.run, step), batch_start(run, step)
        order = view(run.order, run.num_rows if run.order else 0, Order)
        inverse, zero, inputs = F(g.inverse), g.zero, g.inputs
        for piece in pieces_of_rank(num_pieces(rows, ROWS), rank, num_ranks):
            for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
                # one row
                row = np.int64(order[start + i]) if run.order else start + i
                codes_of_row(g.x + row * g.row_bytes, g.batch_x + i * g.piece_cols, inputs, inverse, zero)

    return gather_codes


def _codes(work, step, rank, num_ranks):
    """Codes of the rows of a batch."""
    d = read(work, CODES)
    rows, inverse, zero, columns = batch_rows(d.run, step), F(d.inverse), d.zero, d.columns
    for piece in pieces_of_rank(num_pieces(rows, ROWS), rank, num_ranks):
        for i in range(piece * ROWS, min(rows, (piece + 1) * ROWS)):
            codes_of_row(d.x + i * columns * 4, d.y + i * d.row_bytes, columns, inverse, zero)


# ---------------------------------------------------------------- products of codes
def _product(product):
    """Codes of x times codes of w, a piece of rows and columns at a time."""

    def int8_product(work, step, rank, num_ranks):
        d = read(work, INT8_DENSE)
        rows, sums = batch_rows(d.run, step), d.scratch + rank * SUMS_BYTES
        groups = num_pieces(d.outputs, GROUP)
        pieces_down = num_pieces(rows, BLOCK_ROWS)
        for piece in pieces_of_rank(num_pieces(groups, BLOCK_GROUPS) * pieces_down, rank, num_ranks):
            # one piece: m x n from (r, c) on
            r, g = piece % pieces_down * BLOCK_ROWS, piece // pieces_down * BLOCK_GROUPS
            m, count, c = min(BLOCK_ROWS, rows - r), min(BLOCK_GROUPS, groups - g), g * GROUP
            n, stride = min(count * GROUP, d.outputs - c), count * GROUP * 4
            w = d.w + g * d.steps * GROUP * 4
            product(d.x + r * d.x_row, d.x_row, w, d.steps, count, d.start + c * 4, m, sums, stride)
            # times the scale of each column, in the same place, whole groups
            y = d.y + r * d.y_row
            for i in range(m):
                for first in range(0, stride, GROUP_BYTES):
                    scale_group(sums + i * stride + first, d.scale + c * 4 + first)
            # bias and activation
            call_tile(d.activate, sums, d.b + c * 4 if d.b else 0, sums, 0, m, n, count * GROUP)
            # y, or its codes
            inverse, zero = F(d.inverse), d.zero
            for i in range(m):
                if d.coded:
                    codes_of_row(sums + i * stride, y + i * d.y_row + c, count * GROUP, inverse, zero)
                else:
                    Y, Z = view(y + i * d.y_row + c * 4, n, F), view(sums + i * stride, n, F)
                    for j in range(n):
                        Y[j] = Z[j]

    return int8_product


# ---------------------------------------------------------------- codes of weights alone
def _int8_weight(code, k):
    return F(code)


def _int4_weight(code, k):
    """A byte has the codes of two rows, that of the first in its lower half."""
    return F(np.int32((code >> ((k & 1) * 4)) & 15) - 8)


def _bfloat16_weight(code, k):
    return widen_bfloat16(code)


class _Weight(NamedTuple):
    """Storage of weights: dtype of the codes, rows of w in a row of codes, and weight of row k without its scale."""

    T: Any
    rows: int
    of: Callable[..., Any]


WEIGHTS = {  # by bits
    8: _Weight(np.int8, 1, _int8_weight),
    4: _Weight(np.uint8, 2, _int4_weight),
    16: _Weight(np.uint16, 1, _bfloat16_weight),
}


def _coded_weights(stored, scaled):
    """y = f(x w + b), w made of its codes."""
    T, together, size = stored.T, stored.rows, np.dtype(stored.T).itemsize
    weight = register_jitable(forceinline=True)(stored.of)

    def coded_weights(work, step, rank, num_ranks):
        d = read(work, CODED_WEIGHTS)
        rows, strip = batch_rows(d.run, step), d.scratch + rank * STRIP_BYTES
        outputs, codes = d.outputs, d.codes
        for piece in pieces_of_rank(num_pieces(outputs, STRIP_COLS), rank, num_ranks):
            # one piece: a strip of columns
            c = piece * STRIP_COLS
            n = min(STRIP_COLS, outputs - c)
            for k in range(0, d.inputs, STRIP_ROWS):
                depth = min(STRIP_ROWS, d.inputs - k)
                for p in range(depth):
                    # one row of the strip, of arrays: LLVM makes no vectors of loads from computed addresses
                    W = view(strip + p * STRIP_COLS * 4, n, F)
                    row = view(codes + ((k + p) // together * outputs + c) * size, n, T)
                    if scaled:
                        scale = view(d.scales + ((k + p) // d.group * outputs + c) * 4, n, F)
                        for j in range(n):
                            W[j] = weight(row[j], k + p) * scale[j]
                    else:
                        for j in range(n):
                            W[j] = weight(row[j], k + p)
                # its product; all blocks of rows but the first add to y
                call_sgemm(
                    d.gemm, ROW_MAJOR, AS_IS, AS_IS, rows, n, depth, F(1), d.x + k * 4, d.inputs, strip, STRIP_COLS,
                    F(1) if k else F(0), d.y + c * 4, outputs,
                )  # fmt: skip
            # bias and activation
            call_tile(d.activate, d.y + c * 4, d.b + c * 4 if d.b else 0, d.y + c * 4, 0, rows, n, outputs)

    return coded_weights


# ---------------------------------------------------------------- kernels
CODES_KERNEL = Kernel(_codes, "codes_of_batch")


@cache
def gather_codes_kernel(order: str) -> Kernel:
    """order: the dtype of row numbers."""
    return Kernel(_gather_codes(getattr(np, order)), "codes_of_data" + by_order(order))


@cache
def product_kernel(unit: DotUnit | None) -> Kernel:
    return Kernel(_product(product_of(unit)), f"int8_product_{name_of(unit)}")


def int8_kernel() -> Kernel:
    """The product by the best instructions of the processor."""
    return product_kernel(dot_unit())


@cache
def coded_weights_kernel(bits: int) -> Kernel:
    return Kernel(_coded_weights(WEIGHTS[bits], bits != 16), f"coded_weights_{bits}")


def quantized_kernels(order: str) -> list[Kernel]:
    """All kernels of layers of codes."""
    return [CODES_KERNEL, gather_codes_kernel(order), int8_kernel(), *map(coded_weights_kernel, WEIGHTS)]
