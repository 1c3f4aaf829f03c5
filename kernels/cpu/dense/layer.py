"""Dense layers: the vendor's GEMM on tiles, and everything else on the tile while it is in cache.

Five phases, each free of barriers: forward (x, w, b -> y), combine (where forward left a sum of products), slopes
(dy -> dz, db), inputs (dz, w -> dx) and weights (x, dz -> dw, or straight into the update of w). How a product is cut
depends on its shape alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba.extending import register_jitable

from ...formulas import ACTIVATIONS
from ..runtime.compile import Kernel
from ..runtime.launch import CALL_FLOPS, num_threads_for, parallel
from ..runtime.partition import batch_rows, num_pieces, pieces_of_rank
from ..runtime.primitives import CALL_GEMM, address_of, aligned_zeros, call_tile, call_update, view
from ..runtime.records import DENSE, RUN, fill, read
from .blas import blas
from .matmul import AS_IS, ROW_MAJOR, TRANSPOSED

ROWS = 128  # of an output tile
COLUMNS = 64
WEIGHTS = 16_384  # elements of a tile of dw: with w and two states 256 kB in float32, inside the second-level cache
WEIGHT_COLUMNS = 256
PARTS = 2  # of the rows of w
PART_FLOPS = 1e6  # of a product that is worth a phase more
LINE = 16  # numbers of float32 in a cache line
SUMS = 64  # columns of a piece of the slope phase


def _even(total: int, most: int) -> int:
    """The size of equal pieces of `total`, none larger than `most`."""
    return -(-total // num_pieces(total, most))


def forward_tile(rows: int, inputs: int, outputs: int, unpacked: int) -> tuple[int, int]:
    """Rows and columns of a tile of y: small enough for the BLAS not to pack its operands, if there is such a size."""
    wide = min(outputs, COLUMNS)
    high = unpacked // max(1, inputs * wide) // 4 * 4
    return (_even(rows, min(high, ROWS)) if high >= 8 else ROWS), wide


def weight_tile(rows: int, inputs: int, outputs: int, unpacked: int) -> tuple[int, int]:
    """Rows and columns of a tile of dw: an eighth of it where that is neither too small nor too large.

    Whole rows if they are not too long.
    """
    wide = min(outputs, WEIGHT_COLUMNS)
    elements = min(max(inputs * outputs // 8, WEIGHTS // 8), WEIGHTS)
    if unpacked // rows >= WEIGHTS // 8:
        elements = min(elements, unpacked // rows)
    return max(1, _even(inputs, max(4, elements // wide // 4 * 4))), wide


@register_jitable
def shares(d, step):
    """How the gradients of this step's batch are weighted, and whether they are added to those that are there (1)."""
    if d.shares == 0:
        return 1.0, 0.0
    s = view(d.shares + step * 16, 2, np.float64)
    return s[0], s[1]


# ---------------------------------------------------------------- tiles
def _activate(value, T, itemsize):
    def activate(z, b, y, unused, rows, columns, stride):
        # y = f(z + b) on a tile; z keeps z + b where it is not y itself, for the slopes that need it. An array that is
        # read and written goes by one name: under two, the compiler's check for overlap would keep it from vectors.
        B = view(b, columns, T)
        for i in range(rows):
            Z, Y = view(z + i * stride * itemsize, columns, T), view(y + i * stride * itemsize, columns, T)
            if z == y and b == 0:
                for j in range(columns):
                    Y[j] = value(Y[j])
            elif z == y:
                for j in range(columns):
                    Y[j] = value(Y[j] + B[j])
            elif b == 0:
                for j in range(columns):
                    Y[j] = value(Z[j])
            else:
                for j in range(columns):
                    Z[j] += B[j]
                    Y[j] = value(Z[j])

    return activate


def _slope(slope, T, itemsize):
    def gradient(dz, s, sums, unused, rows, columns, stride):
        # dz *= f'(s) on a tile, and the sums of its columns in float64.
        D = view(sums, columns, np.float64)
        for j in range(columns):
            D[j] = 0
        for i in range(rows):
            skip = i * stride * itemsize
            Z, S = view(dz + skip, columns, T), view(s + skip, columns, T)
            for j in range(columns):
                Z[j] *= slope(S[j])
                D[j] += Z[j]

    return gradient


@cache
def activate_kernel(name: str, dtype: str) -> Kernel:
    T = getattr(np, dtype)
    return Kernel(_activate(ACTIVATIONS[name].value, T, np.dtype(dtype).itemsize), f"activate_{name}_{dtype}")


@cache
def slope_kernel(name: str, dtype: str) -> Kernel:
    T = getattr(np, dtype)
    return Kernel(_slope(ACTIVATIONS[name].slope, T, np.dtype(dtype).itemsize), f"slope_{name}_{dtype}")


# ---------------------------------------------------------------- phases
def _forward(gemm, T, itemsize):
    def forward(work, step, rank, num_ranks):
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        across = num_pieces(d.outputs, d.wide)
        tiles = num_pieces(rows, d.high) * across
        for piece in pieces_of_rank(d.parts * tiles, rank, num_ranks):
            part, tile = piece // tiles, piece % tiles
            r, c, k = tile // across * d.high, tile % across * d.wide, part * d.part
            m, n, depth = min(d.high, rows - r), min(d.wide, d.outputs - c), min(d.part, d.inputs - k)
            at = (r * d.outputs + c) * itemsize
            x, w = d.x + (r * d.inputs + k) * itemsize, d.w + (k * d.outputs + c) * itemsize
            z = (d.z if d.parts == 1 else d.sums + part * rows * d.outputs * itemsize) + at
            gemm(
                d.gemm, ROW_MAJOR, AS_IS, AS_IS, m, n, depth, T(1), x, d.inputs, w, d.outputs,
                T(0), z, d.outputs,
            )  # fmt: skip
            if d.parts == 1:
                b = d.b + c * itemsize if d.b else 0
                call_tile(d.activate, z, b, d.y + at, 0, m, n, d.outputs)

    return forward


def _combine(gemm, T, itemsize):
    def combine(work, step, rank, num_ranks):
        # The products of the parts, summed in their order, and the activation.
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        for piece in pieces_of_rank(num_pieces(d.outputs, COLUMNS), rank, num_ranks):
            c = piece * COLUMNS
            n = min(COLUMNS, d.outputs - c)
            for i in range(rows):
                at = (i * d.outputs + c) * itemsize
                first, z = view(d.sums + at, n, T), view(d.z + at, n, T)
                for part in range(1, d.parts):
                    other = view(d.sums + part * rows * d.outputs * itemsize + at, n, T)
                    if part == 1:
                        for j in range(n):
                            z[j] = first[j] + other[j]
                    else:
                        for j in range(n):
                            z[j] += other[j]
            b, at = d.b + c * itemsize if d.b else 0, c * itemsize
            call_tile(d.activate, d.z + at, b, d.y + at, 0, rows, n, d.outputs)

    return combine


def _slopes(gemm, T, itemsize):
    def slopes(work, step, rank, num_ranks):
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        scratch = d.scratch + rank * d.scratch_size
        for piece in pieces_of_rank(num_pieces(d.outputs, SUMS), rank, num_ranks):
            c = piece * SUMS
            n, at = min(SUMS, d.outputs - c), c * itemsize
            s = (d.y if d.uses_y else d.z) + at
            call_tile(d.slope, d.dz + at, s, scratch, 0, rows, n, d.outputs)
            if d.db or (d.update and d.b):
                sums = view(scratch, n, np.float64)
                db = view(d.db + at if d.db else scratch + SUMS * 8, n, T)
                share, kept = shares(d, step)
                for j in range(n):
                    db[j] = T(share * sums[j]) if kept == 0 else db[j] + T(share * sums[j])
                if d.update:
                    scalars = d.scalars + step * d.scalars_stride
                    call_update(d.update, d.b, scratch + SUMS * 8, d.b_states, scalars, c, 1, n, 0)

    return slopes


def _inputs(gemm, T, itemsize):
    def inputs(work, step, rank, num_ranks):
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        down = num_pieces(rows, ROWS)
        for piece in pieces_of_rank(num_pieces(d.inputs, COLUMNS) * down, rank, num_ranks):
            r, c = piece % down * ROWS, piece // down * COLUMNS
            m, n = min(ROWS, rows - r), min(COLUMNS, d.inputs - c)
            dz, w = d.dz + r * d.outputs * itemsize, d.w + c * d.outputs * itemsize
            dx = d.dx + (r * d.inputs + c) * itemsize
            gemm(
                d.gemm, ROW_MAJOR, AS_IS, TRANSPOSED, m, n, d.outputs, T(1), dz, d.outputs, w, d.outputs,
                T(0), dx, d.inputs,
            )  # fmt: skip

    return inputs


def _weights(gemm, T, itemsize):
    def weights(work, step, rank, num_ranks):
        d = read(work, DENSE)
        rows = batch_rows(d.run, step)
        across = num_pieces(d.outputs, d.dw_wide)
        scratch = d.scratch + rank * d.scratch_size
        scalars = d.scalars + step * d.scalars_stride
        share, kept = shares(d, step)
        tiles = num_pieces(d.part, d.dw_high) * across
        for piece in pieces_of_rank(d.parts * tiles, rank, num_ranks):
            part, tile = piece // tiles, piece % tiles
            r, c = part * d.part + tile // across * d.dw_high, tile % across * d.dw_wide
            m, n = min(d.dw_high, min((part + 1) * d.part, d.inputs) - r), min(d.dw_wide, d.outputs - c)
            if m <= 0:  # the last part is the shortest, and may need fewer tiles
                continue
            x, dz, at = d.x + r * itemsize, d.dz + c * itemsize, r * d.outputs + c
            g, stride = (scratch, n) if d.update else (d.dw + at * itemsize, d.outputs)
            gemm(
                d.gemm, ROW_MAJOR, TRANSPOSED, AS_IS, m, n, rows, T(share), x, d.inputs, dz, d.outputs,
                T(kept), g, stride,
            )  # fmt: skip
            if d.update and n == d.outputs:
                call_update(d.update, d.w, g, d.w_states, scalars, at, 1, m * n, 0)
            elif d.update:
                call_update(d.update, d.w, g, d.w_states, scalars, at, m, n, d.outputs)

    return weights


DENSE_PHASES: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "combine": _combine,
    "slopes": _slopes,
    "inputs": _inputs,
    "weights": _weights,
}


@cache
def dense_kernel(phase: str, dtype: str) -> Kernel:
    build = DENSE_PHASES[phase]
    return Kernel(build(CALL_GEMM[dtype], getattr(np, dtype), np.dtype(dtype).itemsize), f"dense_{phase}_{dtype}")


def parts_of(rows: int, inputs: int, outputs: int) -> tuple[int, int]:
    """In how many parts the rows of w are cut, and how many rows each has (whole cache lines of x).

    A rank that owns rows of w multiplies them with its columns of x, updates them, and shares nothing but y and dz with
    the others. Of those there is less than of w, x and their like unless there are many rows.
    """
    if rows > 2 * inputs or 2 * rows * inputs * outputs < PART_FLOPS:
        return 1, inputs
    part = -(-inputs // (PARTS * LINE)) * LINE
    return num_pieces(inputs, part), part


def shape_fields(rows: int, inputs: int, outputs: int, dtype: str, whole: bool = True) -> dict[str, int]:
    """The fields of a record that follow from a layer's shape (rows: of a full batch) and the BLAS."""
    unpacked = blas().unpacked
    parts, part = (1, inputs) if whole else parts_of(rows, inputs, outputs)
    high, wide = forward_tile(rows, part, outputs, unpacked)
    dw_high, dw_wide = weight_tile(rows, part, outputs, unpacked)
    # What a rank needs for itself: a tile of dw, or column sums in float64 and in the array's type.
    scratch = max(dw_high * dw_wide * np.dtype(dtype).itemsize, SUMS * 16)
    return {
        "inputs": inputs, "outputs": outputs, "gemm": blas().gemm[dtype], "high": high, "wide": wide,
        "dw_high": dw_high, "dw_wide": dw_wide, "parts": parts, "part": part,
        "scratch_size": -(-scratch // 64) * 64,
    }  # fmt: skip


# ---------------------------------------------------------------- verbs
def dense_forward(x, w, b, activation, y, z=None) -> None:
    """y = f(x w + b); z, the pre-activation, is needed where the slope is a function of it."""
    (rows, inputs), outputs, dtype = x.shape, w.shape[1], x.dtype.name
    if not y.size:
        return
    run = fill(RUN, batch=rows, rows=rows)
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
    work_done = 2 * rows * inputs * outputs
    num_ranks = num_threads_for(work_done, CALL_FLOPS, 1 << 30)
    fields = shape_fields(rows, inputs, outputs, dtype)
    run, dz = fill(RUN, batch=rows, rows=rows), dy.copy()
    scratch = aligned_zeros(num_ranks * fields["scratch_size"], np.uint8)
    work = fill(
        DENSE, run=run, x=x, w=w, y=s, z=s, dz=dz, dx=dx, dw=dw, db=db,
        slope=slope_kernel(activation, dtype).address, scratch=scratch, **fields,
    )  # fmt: skip
    wanted = {"slopes": True, "inputs": dx is not None and inputs, "weights": dw is not None and inputs}
    for phase in (phase for phase, needed in wanted.items() if needed):
        parallel(dense_kernel(phase, dtype), address_of(work), 0, num_ranks)
