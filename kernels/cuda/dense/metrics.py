"""Metrics of classes: the rows, or the outputs, of a batch that are right. Metrics of values are sums in `losses`.

    hits       sums[tile] of the rows, or the outputs, that a metric counts as right
    classes    the class that each row, or each output, is predicted to be, and the one that it is
    counts     adds to the counts of each class how often it was right, was predicted and is there

A row is shared by COLUMN_LANES threads, so that they read its columns side by side. A thread counts a class, so that
nothing is added by two threads at once.

Weighted kernels read weights (rows, 2), float64, of which the first column has the weights of rows, as in `losses`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from ...formulas import METRICS
from ...metrics import scored_forms
from ..runtime.compile import THREADS, Kernel, device
from ..runtime.device import Device, launch
from ..runtime.primitives import reader, writer
from ..runtime.vectors import array_loader, plain
from .epilogues import Shape
from .reductions import COLUMN_LANES, NOT_RANKED, ROW_LANES, add_up, argmax, rank_of_class

TILE_ROWS = 4 * ROW_LANES

read_word, read_double, write_double = reader("int64", 1), reader("float64", 1), writer("float64")
read_total, write_word = reader("float64", 1), writer("int64")


def _weight_of_row(weighted):
    """f: the weight of a row in a weighted kernel, else 1."""

    def weight_of_row(weights, row):
        return read_double(weights + row * 16)[0]

    def one(weights, row):
        return 1

    return device(weight_of_row if weighted else one)


def _hits(score, dtype, scored, weighted):
    load, real, size = array_loader((plain(dtype),), 1), getattr(np, dtype), np.dtype(dtype).itemsize
    score, argmax_of, rank_of = device(score), argmax(dtype), rank_of_class(dtype)
    labels, by_output, weight_of_row = scored == "labels", scored == "outputs", _weight_of_row(weighted)
    nothing = 0.0 if weighted else 0

    def hits(z, t, sums, rows, columns, z_stride, t_stride, boundaries, weights):
        # boundaries: of z, of t
        maxima = cuda.shared.array((ROW_LANES, COLUMN_LANES), real)
        indices = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.int64)
        totals = cuda.shared.array(THREADS, np.float64)
        tid = cuda.threadIdx.x
        column_lane, row_lane = tid % COLUMN_LANES, tid // COLUMN_LANES
        z_boundary, t_boundary = real(read_double(boundaries)[0]), real(read_double(boundaries + 8)[0])
        for tile in range(cuda.blockIdx.x, (rows + TILE_ROWS - 1) // TILE_ROWS, cuda.gridDim.x):
            hit = nothing
            for part in range(TILE_ROWS // ROW_LANES):
                row = tile * TILE_ROWS + part * ROW_LANES + row_lane
                end = columns if row < rows else 0  # all threads of a block meet, also those without a row
                outputs, targets = z + row * z_stride * size, t + row * t_stride * size
                if by_output:
                    # each output is a class of its own
                    for j in range(column_lane, end, COLUMN_LANES):
                        x, y = load((outputs,), j)[0][0], load((targets,), j)[0][0]
                        rank = 0 if (x > z_boundary) == (y > t_boundary) else 1
                        if x == x and score(rank):
                            hit += weight_of_row(weights, row)
                else:
                    # the right class of the row
                    if labels:
                        right = read_word(t + row * 8)[0] if end != 0 else 0
                    else:
                        right = argmax_of(targets, end, maxima, indices, row_lane, column_lane)
                    # its rank among the outputs
                    rank = rank_of(outputs, end, right, indices, row_lane, column_lane)
                    if column_lane == 0 and end != 0 and rank < NOT_RANKED and score(rank):
                        hit += weight_of_row(weights, row)
            # the sum of the tile
            totals[tid] = np.float64(hit)
            add_up(totals, tid, THREADS)
            if tid == 0:
                write_double(sums + tile * 8, totals[0])
            cuda.syncthreads()  # the next tile begins with totals

    return hits


@cache
def hits_kernel(name: str, dtype: str, scored: str, weighted: bool) -> Kernel:
    """Return the kernel of a metric of classes; scored: one of `scored_forms` the metric."""
    body = _hits(METRICS[name].score, dtype, scored, weighted)
    return Kernel(body, f"{name}_{scored}{'_weighted' * weighted}_{dtype}")


# ---------------------------------------------------------------- counts of classes
def _classes(dtype, scored):
    load, real, size = array_loader((plain(dtype),), 1), getattr(np, dtype), np.dtype(dtype).itemsize
    argmax_of, labels, by_output = argmax(dtype), scored == "labels", scored == "outputs"

    def classes(z, t, found, rows, columns, z_stride, t_stride, boundaries):
        # found: (rows, 2) int64, or (rows, columns, 2): predicted (-1: an output is NaN), actual
        maxima = cuda.shared.array((ROW_LANES, COLUMN_LANES), real)
        indices = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.int64)
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        z_boundary, t_boundary = real(read_double(boundaries)[0]), real(read_double(boundaries + 8)[0])
        for part in range(cuda.blockIdx.x, (rows + ROW_LANES - 1) // ROW_LANES, cuda.gridDim.x):
            row = part * ROW_LANES + row_lane
            end = columns if row < rows else 0  # all threads of a block meet, also those without a row
            outputs, targets = z + row * z_stride * size, t + row * t_stride * size
            if by_output:
                # an output is two classes: it is not, or it is
                for j in range(column_lane, end, COLUMN_LANES):
                    x, y = load((outputs,), j)[0][0], load((targets,), j)[0][0]
                    at = found + (row * columns + j) * 16
                    write_word(at, -1 if x != x else 2 * j + (1 if x > z_boundary else 0))
                    write_word(at + 8, 2 * j + (1 if y > t_boundary else 0))
            else:
                predicted = argmax_of(outputs, end, maxima, indices, row_lane, column_lane)
                if labels:
                    actual = read_word(t + row * 8)[0] if end != 0 else 0
                else:
                    actual = argmax_of(targets, end, maxima, indices, row_lane, column_lane)
                if column_lane == 0 and end != 0:
                    write_word(found + row * 16, predicted)
                    write_word(found + row * 16 + 8, actual)

    return classes


def _counts(weighted):
    weight_of_row, nothing = _weight_of_row(weighted), 0.0 if weighted else 0

    def counts(found, number, classes, columns, sums, weights):
        # found: (number, 2); sums: (3, classes) float64. With columns above 0 found are those of as many outputs of
        # each row, and output j has classes 2 j and 2 j + 1: a thread reads those of its own output.
        first, step = cuda.blockIdx.x * THREADS + cuda.threadIdx.x, cuda.gridDim.x * THREADS
        for k in range(first, classes, step):
            right, predicted, actual = nothing, nothing, nothing
            begin, stride = (k // 2, columns) if columns > 0 else (0, 1)
            for i in range(begin, number, stride):
                mine, other = read_word(found + i * 16)[0], read_word(found + i * 16 + 8)[0]
                weight = weight_of_row(weights, i // stride)
                if mine == k:
                    predicted += weight
                if other == k:
                    actual += weight
                    if mine == k:
                        right += weight
            into = sums + k * 8
            write_double(into, read_total(into)[0] + np.float64(right))
            write_double(into + classes * 8, read_total(into + classes * 8)[0] + np.float64(predicted))
            write_double(into + 2 * classes * 8, read_total(into + 2 * classes * 8)[0] + np.float64(actual))

    return counts


@cache
def classes_kernel(dtype: str, scored: str) -> Kernel:
    """Return the kernel that tells classes; scored: one of SCORED but values."""
    return Kernel(_classes(dtype, scored), f"classes_{scored}_{dtype}")


COUNTS, WEIGHTED_COUNTS = Kernel(_counts(False), "counts"), Kernel(_counts(True), "counts_weighted")


def metric_kernels(dtype: str) -> list[Kernel]:
    """Return every kernel of a dtype."""
    kernels, both = [], (False, True)
    for name, row in METRICS.items():
        for scored in scored_forms(name) if row.of_classes else ():
            if row.of_counts:
                kernels.append(classes_kernel(dtype, scored))
            else:
                kernels += [hits_kernel(name, dtype, scored, weighted) for weighted in both]
    return list(dict.fromkeys([*kernels, COUNTS, WEIGHTED_COUNTS]))


def hits_tiles(rows: int) -> int:
    """Return the number of sums that `run_hits` leaves."""
    return -(-rows // TILE_ROWS)


def run_hits(
    gpu: Device, stream: int, name: str, scored: str, z: int, t: int, sums: int, boundaries: int, shape: Shape,
    t_stride: int, weights: int = 0,
) -> None:  # fmt: skip
    """sums (hits_tiles,) float64 of a metric of classes.

    scored: one of `scored_forms` the metric; boundaries: address of two float64; weights: (rows, 2) float64, or 0.
    """
    rows, columns, stride, dtype, _ = shape
    kernel = hits_kernel(name, dtype, scored, weights != 0)
    launch(gpu, kernel, hits_tiles(rows), stream, z, t, sums, rows, columns, stride, t_stride, boundaries, weights)


def found_bytes(scored: str, rows: int, columns: int) -> int:
    """Return the bytes of the classes that `run_classes` writes and `run_counts` reads."""
    return 16 * rows * (columns if scored == "outputs" else 1)


def run_classes(
    gpu: Device, stream: int, scored: str, z: int, t: int, found: int, boundaries: int, shape: Shape, t_stride: int
) -> None:
    """found (found_bytes): classes that rows, or outputs, are predicted to be, and that they are.

    scored: one of SCORED but values; boundaries: address of two float64.
    """
    rows, columns, stride, dtype, _ = shape
    kernel = classes_kernel(dtype, scored)
    launch(gpu, kernel, -(-rows // ROW_LANES), stream, z, t, found, rows, columns, stride, t_stride, boundaries)


def run_counts(
    gpu: Device, stream: int, scored: str, found: int, sums: int, rows: int, columns: int, weights: int = 0
) -> None:
    """Add the counts of all classes of `run_classes` to sums, (3, classes) float64: right, predicted, actual.

    weights: (rows, 2) float64, of which the first of a row counts instead of 1; 0: rows have none.
    """
    by_output = scored == "outputs"
    number, classes = (rows * columns, 2 * columns) if by_output else (rows, columns)
    arguments = found, number, classes, columns if by_output else 0, sums, weights
    launch(gpu, WEIGHTED_COUNTS if weights else COUNTS, -(-classes // THREADS), stream, *arguments)
