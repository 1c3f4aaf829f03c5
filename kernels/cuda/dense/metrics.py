"""Metrics of classes: the rows, or the outputs, of a batch that are right. Metrics of values are sums in `losses`.

    hits       sums[tile] of the rows, or the outputs, that a metric counts as right

A row is shared by COLUMN_LANES threads, so that they read its columns side by side.
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


def _hits(score, dtype, scored):
    load, real, size = array_loader((plain(dtype),), 1), getattr(np, dtype), np.dtype(dtype).itemsize
    score, argmax_of, rank_of = device(score), argmax(dtype), rank_of_class(dtype)
    labels, by_output = scored == "labels", scored == "outputs"

    def hits(z, t, sums, rows, columns, z_stride, t_stride, boundaries):
        # boundaries: of z, of t
        maxima = cuda.shared.array((ROW_LANES, COLUMN_LANES), real)
        indices = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.int64)
        totals = cuda.shared.array(THREADS, np.float64)
        tid = cuda.threadIdx.x
        column_lane, row_lane = tid % COLUMN_LANES, tid // COLUMN_LANES
        z_boundary, t_boundary = real(read_double(boundaries)[0]), real(read_double(boundaries + 8)[0])
        for tile in range(cuda.blockIdx.x, (rows + TILE_ROWS - 1) // TILE_ROWS, cuda.gridDim.x):
            hit = 0
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
                            hit += 1
                else:
                    # the right class of the row
                    if labels:
                        right = read_word(t + row * 8)[0] if end != 0 else 0
                    else:
                        right = argmax_of(targets, end, maxima, indices, row_lane, column_lane)
                    # its rank among the outputs
                    rank = rank_of(outputs, end, right, indices, row_lane, column_lane)
                    if column_lane == 0 and end != 0 and rank < NOT_RANKED and score(rank):
                        hit += 1
            # the sum of the tile
            totals[tid] = np.float64(hit)
            add_up(totals, tid, THREADS)
            if tid == 0:
                write_double(sums + tile * 8, totals[0])
            cuda.syncthreads()  # the next tile begins with totals

    return hits


@cache
def hits_kernel(name: str, dtype: str, scored: str) -> Kernel:
    """Return the kernel of a metric of classes; scored: one of `scored_forms` the metric."""
    return Kernel(_hits(METRICS[name].score, dtype, scored), f"{name}_{scored}_{dtype}")


def metric_kernels(dtype: str) -> list[Kernel]:
    """Return every kernel of a dtype."""
    names = [name for name, row in METRICS.items() if row.of_classes]
    return list(dict.fromkeys(hits_kernel(name, dtype, scored) for name in names for scored in scored_forms(name)))


def hits_tiles(rows: int) -> int:
    """Return the number of sums that `run_hits` leaves."""
    return -(-rows // TILE_ROWS)


def run_hits(
    gpu: Device, stream: int, name: str, scored: str, z: int, t: int, sums: int, boundaries: int, shape: Shape,
    t_stride: int,
) -> None:  # fmt: skip
    """sums (hits_tiles,) float64 of a metric of classes.

    scored: one of `scored_forms` the metric; boundaries: address of two float64.
    """
    rows, columns, stride, dtype, _ = shape
    kernel = hits_kernel(name, dtype, scored)
    launch(gpu, kernel, hits_tiles(rows), stream, z, t, sums, rows, columns, stride, t_stride, boundaries)
