"""Dense layers: a GEMM on tiles, and everything else on a tile while it is in cache.

Five phases, each free of barriers: forward (x, w, b -> y), combine (adds the products of splits of w), slopes
(dy -> dz, db), inputs (dz, w -> dx, or straight dz of the layer below) and weights (x, dz -> dw, or straight into the
update of w). The tiles of a product
depend on its shape alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from ...formulas import ACTIVATIONS
from ..runtime.compile import Kernel
from ..runtime.frontend import register_jitable
from ..runtime.launch import CALL_FLOPS, num_threads_for, parallel
from ..runtime.partition import batch_rows, equal_size, num_pieces, pieces_of_rank
from ..runtime.primitives import CALL_GEMM, address_of, aligned_zeros, call_tile, call_update, view
from ..runtime.processors import microarchitecture
from ..runtime.records import DENSE, RUN, fill, read
from ..runtime.storage import ARITHMETIC
from .blas import products
from .matmul import AS_IS, ROW_MAJOR, TRANSPOSED
from .tile_sums import tile_penalties, tile_sums, weight_piece, weight_pieces

TILE_ROWS = 128  # of a tile of y or dx, at most
TILE_COLS = 64
ROW_COLS = 256  # of a tile of a single row
DW_ELEMENTS = 16_384  # of a tile of dw: with w and two states 256 kB in float32, inside the second-level cache
DW_SHARE = 8  # tiles that dw is cut into, at least
# On processors with 2 MB of second-level cache, where large tiles of dw, with x packed for each, took an epoch of
# 784-256-128-10 at batch 1024 from 309 to 263 ms (Emerald Rapids). On Zen 5 they gain nothing.
LARGE_DW = dict.fromkeys(("sapphirerapids", "emeraldrapids", "graniterapids", "graniterapids-d"), (65_536, 2))
DW_COLS = 256
# Products of bfloat16 pack both operands of each tile, so larger ones gain: 3 to 10 % of an epoch of 784-256-128-10.
PACKED_ROWS, PACKED_COLS, PACKED_DW = 256, 128, (65_536, 4)
SPLITS = 2  # of the rows of w
SPLIT_FLOPS = 1e6  # a product of fewer is not worth the phase `combine`
ROW_UNIT = 8  # rows of a tile of registers
COMBINED = 8  # pieces of the phase `combine` at least, if there are so many rows
SLOPE_COLS = 64  # columns of a piece of the phase `slopes`


def _whole_units(rows: int) -> int:
    return num_pieces(rows, ROW_UNIT) * ROW_UNIT


def forward_tile(rows: int, inputs: int, outputs: int, unpacked: int) -> tuple[int, int]:
    """Rows and columns of a tile of y: small enough for the BLAS not to pack its operands, if there is such a size."""
    if rows == 1:  # w is read once: the longer the pieces of its rows, the better
        return 1, min(outputs, ROW_COLS)
    cols = min(outputs, TILE_COLS)
    most_rows = unpacked // max(1, inputs * cols) // 4 * 4
    return (equal_size(rows, min(most_rows, TILE_ROWS), 1) if most_rows >= 8 else TILE_ROWS), cols


def weight_tile(
    rows: int, inputs: int, outputs: int, unpacked: int, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Rows and columns of a tile of dw: an eighth of dw, or as near to it as the limits of a tile allow.

    Equal tiles of whole rows of register tiles, where that is possible; 392 x 256 in 7 tiles of 56 rows takes 1 to 2 %
    less than in 9 of 44. size: the most elements of a tile and the tiles that dw is cut into, if not the processor's.
    """
    cols = min(outputs, DW_COLS)
    most, share = size or LARGE_DW.get(microarchitecture(), (DW_ELEMENTS, DW_SHARE))
    if unpacked // rows >= DW_ELEMENTS // 8:
        most = min(most, unpacked // rows)
    wanted = max(inputs * outputs // share, DW_ELEMENTS // 8)
    most_rows = max(4, min(_whole_units(num_pieces(wanted, cols)), most // cols // 4 * 4))
    even = equal_size(inputs, most_rows, 1)
    return min(inputs, _whole_units(even)) if _whole_units(even) <= most_rows else even, cols


@register_jitable
def alpha_beta(d, step):
    """alpha and beta of this batch's dw = alpha x^T dz + beta dw."""
    if d.alpha_beta == 0:
        return 1.0, 0.0
    pair = view(d.alpha_beta + step * 16, 2, np.float64)
    return pair[0], pair[1]


# ---------------------------------------------------------------- tiles
def _activate(value, arithmetic):
    """y = f(z + b) on a tile; z keeps z + b where it is not y itself, for the slopes that need it.

    b, z + b and y are rounded. An array that is read and written goes by one name: under two, the compiler's check for
    overlap would keep it from vectors.
    """
    T, itemsize, round_ = arithmetic.T, arithmetic.itemsize, arithmetic.round

    def activate(z, b, y, unused, rows, columns, stride):
        B = view(b, columns, T)
        for i in range(rows):
            # one row of the tile
            Z, Y = view(z + i * stride * itemsize, columns, T), view(y + i * stride * itemsize, columns, T)
            if z == y and b == 0:
                for j in range(columns):
                    Y[j] = round_(value(round_(Y[j])))
            elif z == y:
                for j in range(columns):
                    Y[j] = round_(value(round_(Y[j] + round_(B[j]))))
            elif b == 0:
                for j in range(columns):
                    Z[j] = round_(Z[j])
                    Y[j] = round_(value(Z[j]))
            else:
                for j in range(columns):
                    Z[j] = round_(Z[j] + round_(B[j]))
                    Y[j] = round_(value(Z[j]))

    return activate


def _slope(slope, arithmetic):
    """dz *= f'(s) on a tile, rounded, and the sums of its columns in float64."""
    T, itemsize, round_ = arithmetic.T, arithmetic.itemsize, arithmetic.round

    def gradient(dz, s, sums, unused, rows, columns, stride):
        col_sums = view(sums, columns, np.float64)
        for j in range(columns):
            col_sums[j] = 0
        for i in range(rows):
            # one row of the tile
            skip = i * stride * itemsize
            D, S = view(dz + skip, columns, T), view(s + skip, columns, T)
            for j in range(columns):
                D[j] = round_(D[j] * slope(S[j]))
                col_sums[j] += D[j]

    return gradient


def _round_tile(arithmetic):
    """A tile, rounded in place."""
    T, itemsize, round_ = arithmetic.T, arithmetic.itemsize, arithmetic.round

    def round_tile(x, unused1, unused2, unused3, rows, columns, stride):
        for i in range(rows):
            X = view(x + i * stride * itemsize, columns, T)
            for j in range(columns):
                X[j] = round_(X[j])

    return round_tile


# dtype: that which layers compute in. Arrays of float32 may hold numbers of bfloat16.
@cache
def activate_kernel(name: str, dtype: str) -> Kernel:
    return Kernel(_activate(ACTIVATIONS[name].value, ARITHMETIC[dtype]), f"activate_{name}_{dtype}")


@cache
def slope_kernel(name: str, dtype: str) -> Kernel:
    return Kernel(_slope(ACTIVATIONS[name].slope, ARITHMETIC[dtype]), f"slope_{name}_{dtype}")


@cache
def round_kernel(dtype: str) -> Kernel:
    return Kernel(_round_tile(ARITHMETIC[dtype]), f"round_{dtype}")


# ---------------------------------------------------------------- phases
def _forward(gemm, T, itemsize):
    """y = f(x w + b), or with several splits the product of each split's columns of x and rows of w."""

    def forward(work, step, rank, num_ranks):
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        tiles_across = num_pieces(d.outputs, d.tile_cols)
        num_tiles = num_pieces(rows, d.tile_rows) * tiles_across
        for piece in pieces_of_rank(d.num_splits * num_tiles, rank, num_ranks):
            # one tile of the product of one split: m x n from (r, c) on, summed over `depth` from k on
            split, tile = piece // num_tiles, piece % num_tiles
            r, c, k = tile // tiles_across * d.tile_rows, tile % tiles_across * d.tile_cols, split * d.split_rows
            m, n, depth = min(d.tile_rows, rows - r), min(d.tile_cols, d.outputs - c), min(d.split_rows, d.inputs - k)
            # where it begins
            skip = (r * d.outputs + c) * itemsize
            x = d.x + (split * d.x_split + r * d.x_stride) * itemsize
            w = d.w + (k * d.outputs + c) * itemsize
            z = (d.z if d.num_splits == 1 else d.split_products + split * rows * d.outputs * itemsize) + skip
            # the product
            gemm(
                d.gemm, ROW_MAJOR, AS_IS, AS_IS, m, n, depth, T(1), x, d.x_stride, w, d.outputs,
                T(0), z, d.outputs,
            )  # fmt: skip
            # bias and activation, while the tile is in cache
            if d.num_splits == 1:
                b = d.b + c * itemsize if d.b else 0
                call_tile(d.activate, z, b, d.y + skip, 0, m, n, d.outputs)

    return forward


def _combine(gemm, T, itemsize):
    """The products of the splits added up in their order, and the activation."""

    def combine(work, step, rank, num_ranks):
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        most = min(max(rows // COMBINED, 1), ROW_UNIT)
        for piece in pieces_of_rank(num_pieces(rows, most), rank, num_ranks):
            # one piece: some rows, which lie behind one another
            r = piece * most
            m = min(most, rows - r)
            n, skip = m * d.outputs, r * d.outputs * itemsize
            first, z = view(d.split_products + skip, n, T), view(d.z + skip, n, T)
            for split in range(1, d.num_splits):
                other = view(d.split_products + split * rows * d.outputs * itemsize + skip, n, T)
                if split == 1:
                    for j in range(n):
                        z[j] = first[j] + other[j]
                else:
                    for j in range(n):
                        z[j] += other[j]
            # bias and activation
            call_tile(d.activate, d.z + skip, d.b, d.y + skip, 0, m, d.outputs, d.outputs)

    return combine


def _slopes(gemm, T, itemsize):
    """dz = dy f'(z) in the place of dy; its column sums are db, or straight the gradient of the update of b."""

    bias_gradient = _bias_gradient(T, itemsize)

    def slopes(work, step, rank, num_ranks):
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        scratch = d.scratch + rank * d.scratch_bytes
        for piece in pieces_of_rank(num_pieces(d.outputs, SLOPE_COLS), rank, num_ranks):
            # one piece: some columns, all rows
            c = piece * SLOPE_COLS
            n, skip = min(SLOPE_COLS, d.outputs - c), c * itemsize
            # dz and the column sums
            s = (d.y if d.uses_y else d.z) + skip
            call_tile(d.slope, d.dz + skip, s, scratch, 0, rows, n, d.outputs)
            bias_gradient(d, step, scratch, c, n)

    return slopes


def _bias_gradient(T, itemsize):
    def bias_gradient(d, step, scratch, c, n):
        """db of n columns from c on, of their sums in scratch: written, or handed to the update of b."""
        if d.db or (d.update and d.b):
            # db, in memory or behind the sums
            sums = view(scratch, n, np.float64)
            db = view(d.db + c * itemsize if d.db else scratch + SLOPE_COLS * 8, n, T)
            alpha, beta = alpha_beta(d, step)
            for j in range(n):
                db[j] = T(alpha * sums[j]) if beta == 0 else db[j] + T(alpha * sums[j])
            # the update of b
            if d.update:
                scalars = d.b_scalars + step * d.scalars_row_bytes
                call_update(d.update, d.b, scratch + SLOPE_COLS * 8, d.b_states, scalars, c, 1, n, 0)

    return register_jitable(bias_gradient)


def _inputs(gemm, T, itemsize):
    """dx = dz w^T; if a dense layer is below, times its slopes: its dz and, for each tile of rows, the column sums."""

    def inputs(work, step, rank, num_ranks):
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        tiles_across = num_pieces(d.inputs, d.dx_tile_cols)
        for piece in pieces_of_rank(num_pieces(rows, d.dx_tile_rows) * tiles_across, rank, num_ranks):
            # one tile: m x n from (r, c) on
            r, c = piece // tiles_across * d.dx_tile_rows, piece % tiles_across * d.dx_tile_cols
            m, n = min(d.dx_tile_rows, rows - r), min(d.dx_tile_cols, d.inputs - c)
            dz, w = d.dz + r * d.outputs * itemsize, d.w + c * d.outputs * itemsize
            dx = d.dx + (r * d.inputs + c) * itemsize
            gemm(
                d.gemm, ROW_MAJOR, AS_IS, TRANSPOSED, m, n, d.outputs, T(1), dz, d.outputs, w, d.outputs,
                T(0), dx, d.inputs,
            )  # fmt: skip
            if d.round_tile:
                call_tile(d.round_tile, dx, 0, 0, 0, m, n, d.inputs)
            # dz of the layer below, while the tile is in cache
            if d.slope_below:
                sums = d.col_sums_below + (r // d.dx_tile_rows * d.inputs + c) * 8
                call_tile(d.slope_below, dx, d.s_below + (r * d.inputs + c) * itemsize, sums, 0, m, n, d.inputs)

    return inputs


def _weights(gemm, T, itemsize):
    """dw = alpha x^T dz + beta dw, written, or a tile at a time handed to the update of the same tile of w.

    db as well, if the phase `inputs` of the layer above has left the column sums. Without splits it is db alone.
    """
    bias_gradient, sums_of_tile = _bias_gradient(T, itemsize), tile_sums(itemsize)

    def weights(work, step, rank, num_ranks):
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        scratch = d.scratch + rank * d.scratch_bytes
        scalars = d.w_scalars + step * d.scalars_row_bytes
        if d.col_sums:
            for piece in pieces_of_rank(num_pieces(d.outputs, SLOPE_COLS), rank, num_ranks):
                # one piece of b: the sums of all tiles of rows
                c = piece * SLOPE_COLS
                n = min(SLOPE_COLS, d.outputs - c)
                sums = view(scratch, n, np.float64)
                for j in range(n):
                    sums[j] = 0
                for tile in range(num_pieces(rows, d.dx_tile_rows)):
                    of_tile = view(d.col_sums + (tile * d.outputs + c) * 8, n, np.float64)
                    for j in range(n):
                        sums[j] += of_tile[j]
                bias_gradient(d, step, scratch, c, n)
        alpha, beta = alpha_beta(d, step)
        for piece in pieces_of_rank(weight_pieces(d), rank, num_ranks):
            # one tile of one split of w: m x n from (r, c) on
            split, r, c, m, n = weight_piece(d, piece)
            if m <= 0:  # the last split is the shortest, and may need fewer tiles
                continue
            # the tile of dw
            x = d.x + (split * d.x_split + r - split * d.split_rows) * itemsize
            dz, first = d.dz + c * itemsize, r * d.outputs + c
            g, stride = (scratch, n) if d.update or d.tree_tile else (d.dw + first * itemsize, d.outputs)
            gemm(
                d.gemm, ROW_MAJOR, TRANSPOSED, AS_IS, m, n, rows, T(alpha), x, d.x_stride, dz, d.outputs,
                T(beta), g, stride,
            )  # fmt: skip
            if d.mask_tile:
                call_tile(d.mask_tile, g, d.mask + first, 0, 0, m, n, d.outputs)
            # the sums of a tree over pieces, of whole rows at once where the tile has them
            if d.tree_tile and n == d.outputs:
                call_tile(d.tree_tile, g, d.tree, first, step, 1, m * n, 0)
            elif d.tree_tile:
                call_tile(d.tree_tile, g, d.tree, first, step, m, n, d.outputs)
            # the update of w, of whole rows at once where the tile has them
            if d.lanes:
                sums_of_tile(d, rank, piece, first, m, n)
            if d.update and n == d.outputs:
                call_update(d.update, d.w, g, d.w_states, scalars, first, 1, m * n, 0)
            elif d.update:
                call_update(d.update, d.w, g, d.w_states, scalars, first, m, n, d.outputs)
            if d.measure:
                squares = d.column_squares + (piece // num_pieces(d.outputs, d.dw_tile_cols) * d.outputs + c) * 8
                call_tile(d.measure, d.w + first * itemsize, squares, 0, 0, m, n, d.outputs)

    return weights


DENSE_PHASES: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "combine": _combine,
    "slopes": _slopes,
    "inputs": _inputs,
    "weights": _weights,
    "penalties": tile_penalties,
}


@cache
def dense_kernel(phase: str, dtype: str) -> Kernel:
    build = DENSE_PHASES[phase]
    return Kernel(build(CALL_GEMM[dtype], getattr(np, dtype), np.dtype(dtype).itemsize), f"dense_{phase}_{dtype}")


def splits_of(rows: int, inputs: int, outputs: int) -> tuple[int, int]:
    """The number of splits of the rows of w, and the rows of each.

    A rank that owns rows of w multiplies them with its columns of x, updates them, and shares nothing but y and dz with
    the others. Those are smaller than w, x and their like unless there are many rows.
    """
    if rows > 2 * inputs or 2 * rows * inputs * outputs < SPLIT_FLOPS:
        return 1, inputs
    split_rows = min(inputs, _whole_units(num_pieces(inputs, SPLITS)))
    return num_pieces(inputs, split_rows), split_rows


def weight_tiles_down(fields: Mapping[str, int]) -> int:
    """Rows of tiles of dw that a layer with these fields of its shape is cut into, those of all splits."""
    return fields["num_splits"] * num_pieces(fields["split_rows"], fields["dw_tile_rows"])


def num_weight_tiles(fields: Mapping[str, int]) -> int:
    """Tiles of dw that such a layer is cut into."""
    return weight_tiles_down(fields) * num_pieces(fields["outputs"], fields["dw_tile_cols"])


def shape_fields(
    rows: int, inputs: int, outputs: int, dtype: str, whole: bool = True, compute: str | None = None
) -> dict[str, int]:
    """The fields of a record that follow from a layer's shape (rows: of a full batch) and the products in use.

    whole: the rows of w are not split. compute: the dtype of the products' operands, if not that of the arrays.
    """
    gemm, unpacked = products(compute or dtype).gemm[dtype], products(compute or dtype).unpacked
    num_splits, split_rows = (1, inputs) if whole else splits_of(rows, inputs, outputs)
    tile_rows, tile_cols = forward_tile(rows, split_rows, outputs, unpacked)
    dw_tile_rows, dw_tile_cols = weight_tile(rows, split_rows, outputs, unpacked)
    dx_tile_rows, dx_tile_cols = equal_size(rows, TILE_ROWS, 1), TILE_COLS
    if compute == "bfloat16":
        tile_rows, tile_cols, dx_tile_cols = equal_size(rows, PACKED_ROWS, 1), min(outputs, PACKED_COLS), PACKED_COLS
        dw_tile_rows, dw_tile_cols = weight_tile(rows, split_rows, outputs, unpacked, PACKED_DW)
    # memory of a rank: a tile of dw, or column sums in float64 and in the array's type
    scratch_bytes = max(dw_tile_rows * dw_tile_cols * np.dtype(dtype).itemsize, SLOPE_COLS * 16)
    return {
        "inputs": inputs, "outputs": outputs, "gemm": gemm, "tile_rows": tile_rows,
        "x_stride": inputs, "x_split": split_rows, "tile_cols": tile_cols, "dw_tile_rows": dw_tile_rows,
        "dx_tile_rows": dx_tile_rows, "dx_tile_cols": dx_tile_cols, "dw_tile_cols": dw_tile_cols,
        "num_splits": num_splits, "split_rows": split_rows, "scratch_bytes": -(-scratch_bytes // 64) * 64,
    }  # fmt: skip


# ---------------------------------------------------------------- verbs
def dense_forward(x, w, b, activation, y, z=None) -> None:
    """y = f(x w + b); z, the pre-activation, is needed where the slope is a function of it."""
    (rows, inputs), outputs, dtype = x.shape, w.shape[1], x.dtype.name
    if not y.size:
        return
    run = fill(RUN, batch_size=rows, num_rows=rows)
    work = fill(
        DENSE, run=run, x=x, w=w, b=b, z=y if z is None else z, y=y,
        activate=activate_kernel(activation, dtype).address, **shape_fields(rows, inputs, outputs, dtype),
    )  # fmt: skip
    num_ranks = num_threads_for(2 * rows * inputs * outputs, CALL_FLOPS, 1 << 30)
    parallel(dense_kernel("forward", dtype), address_of(work), 0, num_ranks)


def dense_backward(dy, x, w, s, activation, dx, dw, db) -> None:
    """Write dx, dw and db (each may be None) for y = f(x w + b); s is y or z, as the activation's row says."""
    (rows, inputs), outputs, dtype = x.shape, w.shape[1], x.dtype.name
    if not rows or not outputs:
        for gradient in (dx, dw, db):
            if gradient is not None:
                gradient[...] = 0
        return
    num_ranks = num_threads_for(2 * rows * inputs * outputs, CALL_FLOPS, 1 << 30)
    fields = shape_fields(rows, inputs, outputs, dtype)
    run, dz = fill(RUN, batch_size=rows, num_rows=rows), dy.copy()
    scratch = aligned_zeros(num_ranks * fields["scratch_bytes"], np.uint8)
    work = fill(
        DENSE, run=run, x=x, w=w, y=s, z=s, dz=dz, dx=dx, dw=dw, db=db,
        slope=slope_kernel(activation, dtype).address, scratch=scratch, **fields,
    )  # fmt: skip
    needed = {"slopes": True, "inputs": dx is not None and inputs, "weights": dw is not None and inputs}
    for phase in (phase for phase, is_needed in needed.items() if is_needed):
        parallel(dense_kernel(phase, dtype), address_of(work), 0, num_ranks)
