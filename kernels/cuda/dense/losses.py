"""Losses with their gradients, and softmax.

    loss       sums[tile] of the loss, and dz, its gradient: elementwise, or by rows where the loss includes the softmax
    softmax    y = softmax(z), by rows

Metrics of values are sums as elementwise losses are, without a gradient. Tiles are cut by the shape alone, sums are
taken in float64 and added in a fixed order, so they are the same bits in every run. Arrays lie in rows, z and dz with
one stride and targets with another. A row that is read as a whole is shared by COLUMN_LANES threads.

Weighted kernels also read weights (rows, 2), float64: of each row its weight, by which its losses are multiplied, and
its share of the gradient, which stands for the 1 / rows of a plain mean. A row of weight 0 is absent: its loss may be
inf or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from ...formulas import LOSSES, METRICS, Loss
from ...formulas.losses import cross_entropy_factor
from ...spec import LossSpec
from ..runtime.array_interface import current_stream, gpu_of, see
from ..runtime.compile import THREADS, Kernel, device
from ..runtime.device import Device, launch
from ..runtime.primitives import reader, writer
from ..runtime.records import CLOCK, TOTALS
from ..runtime.storage import STORES
from ..runtime.vectors import array_loader, array_storer, pair_map, vector_map
from .epilogues import Shape, is_wide, width_of
from .epilogues import activate as activate_elements
from .finish import finish
from .reductions import COLUMN_LANES, ROW_LANES, add_up, softmax_sums

TILE_ELEMENTS = 16 * THREADS  # where a loss goes by elements
TILE_ROWS = 4 * ROW_LANES  # where it goes by rows

read_word, read_double, write_double = reader("int64", 1), reader("float64", 1), writer("float64")
read_double2 = reader("float64", 2)


# ---------------------------------------------------------------- kernels
def _elementwise(value, slope, dtype, width, weighted):
    own, real, value, slope = (STORES[dtype],), getattr(np, dtype), device(value), device(slope)
    load, store = array_loader(own, width), array_storer(own, width)

    def loss_of(x, a):
        return (value(x[0], x[1], a),)

    def gradient_of(x, a, scale):
        if weighted and scale == 0:
            return (real(0),)
        return (slope(x[0], x[1], a) * scale,)

    def both(z, t):
        return z[0], t[0]

    losses, gradients, paired = vector_map(loss_of, width), vector_map(gradient_of, width), pair_map(both, width)

    def loss(z, t, dz, sums, rows, columns, z_stride, t_stride, param, weights):
        totals = cuda.shared.array(THREADS, np.float64)
        tid, elements = cuda.threadIdx.x, rows * columns
        a, scale = real(read_double(param)[0]), real(1.0 / elements)
        down, right = THREADS * width // columns, THREADS * width % columns
        for tile in range(cuda.blockIdx.x, (elements + TILE_ELEMENTS - 1) // TILE_ELEMENTS, cuda.gridDim.x):
            start, total = tile * TILE_ELEMENTS, 0.0
            first = start + tid * width
            row, column = first // columns, first % columns
            # one vector of columns at a time
            for _ in range(first, min(start + TILE_ELEMENTS, elements), THREADS * width):
                at = row * z_stride + column
                x = paired(load((z,), at), load((t,), row * t_stride + column))
                weight = 1.0
                if weighted:
                    weight, share = read_double2(weights + row * 16)
                    scale = real(share / columns)
                if weight != 0:
                    for one in losses(x, a):
                        total += weight * np.float64(one[0])
                if dz != 0:
                    store((dz,), at, gradients(x, a, scale))
                # the place of the next vector, without a division
                row += down
                column += right
                if column >= columns:
                    column -= columns
                    row += 1
            # the sum of the tile
            totals[tid] = total
            add_up(totals, tid, THREADS)
            if tid == 0:
                write_double(sums + tile * 8, totals[0])
            cuda.syncthreads()  # the next tile begins with totals

    return loss


def _by_row(value, slope, factor, dtype, labels, weighted):
    own, real, value, slope = (STORES[dtype],), getattr(np, dtype), device(value), device(slope)
    has_factor, factor_of = factor is not None, device(factor or cross_entropy_factor)
    load, store = array_loader(own, 1), array_storer(own, 1)
    tiny, sums_of_row = real(np.finfo(dtype).tiny), softmax_sums(dtype)

    def loss(z, t, dz, sums, rows, columns, z_stride, t_stride, param, weights):
        # t is the smoothed target, and z the distance to the largest of its row, as on the CPU.
        maxima = cuda.shared.array((ROW_LANES, COLUMN_LANES), real)
        masses = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.float64)
        totals = cuda.shared.array(THREADS, np.float64)
        tid = cuda.threadIdx.x
        column_lane, row_lane = tid % COLUMN_LANES, tid // COLUMN_LANES
        zero, one, smooth = real(0), real(1), real(read_double(param)[0])
        floor, keep, scale = smooth / real(columns), one - smooth, real(1.0 / rows)
        for tile in range(cuda.blockIdx.x, (rows + TILE_ROWS - 1) // TILE_ROWS, cuda.gridDim.x):
            total = 0.0
            for part in range(TILE_ROWS // ROW_LANES):
                row = tile * TILE_ROWS + part * ROW_LANES + row_lane
                end = columns if row < rows else 0  # all threads of a block meet, also those without a row
                # softmax of the row
                largest = sums_of_row(z, row, z_stride, end, maxima, masses, row_lane, column_lane)
                log_sum, share = zero, zero
                if end != 0:
                    log_sum, share = real(math.log(masses[row_lane, 0])), real(1.0 / masses[row_lane, 0])
                label = read_word(t + row * 8)[0] if labels and end != 0 else 0
                weight = 1.0
                if weighted and end != 0:
                    weight, of_row = read_double2(weights + row * 16)
                    scale = real(of_row)
                factor = one
                if has_factor and end != 0:
                    factor = factor_of(load((z,), row * z_stride + label)[0][0] - largest - log_sum)
                for j in range(column_lane, end, COLUMN_LANES):
                    at = row * z_stride + j
                    x = load((z,), at)[0][0] - largest
                    # smoothed target
                    if labels:  # noqa: SIM108 (the other form is longer than a line)
                        target = one if j == label else zero
                    else:
                        target = load((t,), row * t_stride + j)[0][0]
                    target = target * keep + floor
                    # loss, and its gradient
                    if target != zero and weight != 0:
                        total += weight * np.float64(value(x, target, log_sum))
                    if dz != 0:
                        g = slope(real(math.exp(x)) * share, target) * scale
                        if has_factor:
                            g *= factor
                        store((dz,), at, ((zero if abs(g) < tiny or weight == 0 else g,),))
                cuda.syncthreads()  # the next part begins with maxima and masses
            # the sum of the tile
            totals[tid] = total
            add_up(totals, tid, THREADS)
            if tid == 0:
                write_double(sums + tile * 8, totals[0])
            cuda.syncthreads()

    return loss


def _softmax(dtype):
    own, real, sums_of_row = (STORES[dtype],), getattr(np, dtype), softmax_sums(dtype)
    load, store = array_loader(own, 1), array_storer(own, 1)

    def softmax(z, y, rows, columns, z_stride, y_stride):
        maxima = cuda.shared.array((ROW_LANES, COLUMN_LANES), real)
        masses = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.float64)
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        for part in range(cuda.blockIdx.x, (rows + ROW_LANES - 1) // ROW_LANES, cuda.gridDim.x):
            row = part * ROW_LANES + row_lane
            end = columns if row < rows else 0  # all threads of a block meet, also those without a row
            largest = sums_of_row(z, row, z_stride, end, maxima, masses, row_lane, column_lane)
            for j in range(column_lane, end, COLUMN_LANES):
                x = real(math.exp(load((z,), row * z_stride + j)[0][0] - largest))
                store((y,), row * y_stride + j, ((real(np.float64(x) / masses[row_lane, 0]),),))
            cuda.syncthreads()  # the next part begins with maxima and masses

    return softmax


def _no_slope(z, t, a):
    return type(z)(0)


# Metric of values -> the loss with the same function, whose kernel adds it up; without such a loss the metric itself.
SUMS_OF_METRICS = {
    name: next((loss for loss, row in LOSSES.items() if row.value is metric.score), name)
    for name, metric in METRICS.items()
    if not metric.of_classes
}
SUMMED = LOSSES | {  # a loss, or a metric of values: what `run_loss` adds up
    name: Loss(METRICS[name].score, _no_slope, "dense", "")
    for name, sums in SUMS_OF_METRICS.items()
    if sums not in LOSSES
}


def summed(name: str) -> Loss:
    """Row that `run_loss` adds up: a loss, also one that users have defined, or a metric of values."""
    return LOSSES.get(name) or SUMMED[name]


@cache
def _loss_kernel(
    name: str, value: Callable[..., Any], slope: Callable[..., Any], factor: Callable[..., Any] | None, dtype: str,
    kind: str, wide: bool, weighted: bool,
) -> Kernel:  # fmt: skip
    title = f"loss_{name}{'_weighted' * weighted}_{dtype}{'_wide' * wide}"
    if kind == "elements":
        return Kernel(_elementwise(value, slope, dtype, width_of(dtype, wide), weighted), title)
    return Kernel(_by_row(value, slope, factor, dtype, kind == "labels", weighted), title)


def loss_kernel(name: str, dtype: str, wide: bool = False, weighted: bool = False) -> Kernel:
    """Return the kernel of a row of SUMMED. wide: in vectors, where the loss goes by elements."""
    row = summed(name)
    kind = row.targets if row.by_row else "elements"
    return _loss_kernel(name, row.value, row.slope, row.factor, dtype, kind, wide and not row.by_row, weighted)


@cache
def softmax_kernel(dtype: str) -> Kernel:
    """Return the kernel of softmax by rows."""
    return Kernel(_softmax(dtype), f"softmax_{dtype}")


def loss_kernels(dtype: str) -> list[Kernel]:
    """Return every kernel of a dtype."""
    both = False, True
    losses = [loss_kernel(name, dtype, wide, weighted) for name in SUMMED for wide in both for weighted in both]
    return list(dict.fromkeys([*losses, softmax_kernel(dtype)]))


# ---------------------------------------------------------------- launches
def loss_tiles(name: str, rows: int, columns: int) -> int:
    """Return the number of sums that a row of SUMMED leaves."""
    return -(-rows // TILE_ROWS) if summed(name).by_row else -(-rows * columns // TILE_ELEMENTS)


def run_loss(
    gpu: Device, stream: int, name: str, z: int, t: int, dz: int, sums: int, param: int, shape: Shape, t_stride: int,
    weights: int = 0,
) -> None:  # fmt: skip
    """sums (loss_tiles,) float64 of the loss of z, and dz, the gradient of its mean; dz may be 0: it is not wanted.

    t: int64 labels, or targets; param: address of the loss's parameter, a float64; weights: (rows, 2) float64, weight
    and share of the gradient of each row; 0: rows have none.
    """
    rows, columns, stride, dtype, _ = shape
    wide = is_wide(dtype, columns, stride, z, dz) and is_wide(dtype, columns, t_stride, t)
    kernel = loss_kernel(name, dtype, wide, weights != 0)
    pieces = loss_tiles(name, rows, columns)
    launch(gpu, kernel, pieces, stream, z, t, dz, sums, rows, columns, stride, t_stride, param, weights)


def run_softmax(gpu: Device, stream: int, z: int, y: int, shape: Shape, y_stride: int) -> None:
    """y = softmax(z), by rows; y may be z, with the same stride."""
    rows, columns, stride, dtype, _ = shape
    launch(gpu, softmax_kernel(dtype), -(-rows // ROW_LANES), stream, z, y, rows, columns, stride, y_stride)


# ---------------------------------------------------------------- verbs
def loss(spec: LossSpec, outputs: Any, targets: Any, gradient: Any = None) -> float:
    """Return the mean loss of outputs (rows, columns); write its gradient if given. Waits for it.

    Arrays on one device, C-contiguous, of float32 or float64; targets like the outputs, or int64 labels (rows,).
    """
    row, seen = LOSSES[spec.name], see(outputs)
    (rows, columns), dtype = seen.shape, seen.dtype
    z, t, dz = seen.address, see(targets).address, 0 if gradient is None else see(gradient).address
    gpu, stream = gpu_of({z, t, dz}), current_stream(outputs)
    value = next((float(spec.params.get(name, default)) for name, default in row.params.items()), 0.0)
    tiles = loss_tiles(spec.name, rows, columns)
    with gpu.active():
        # a clock that stands at 0, a record TOTALS, the parameter of the loss, the result, the sums
        memory = gpu.allocate(CLOCK.itemsize + TOTALS.itemsize + 16 + 8 * tiles)
        table = memory.address + CLOCK.itemsize
        param = table + TOTALS.itemsize
        result, sums = param + 8, param + 16
        gpu.copy_in(table, np.array([(sums, tiles, result, 0)], TOTALS), stream)
        gpu.copy_in(param, np.array([value]), stream)
        run_loss(gpu, stream, spec.name, z, t, dz, sums, param, Shape(rows, columns, columns, dtype), columns)
        finish(gpu, stream, table, 1, memory.address, 0)
        total = np.zeros(1)
        gpu.copy_out(total, result, stream)
        gpu.wait(stream)
    return float(total[0]) / (rows if row.by_row else rows * columns)


def activate(name: str, z: Any, y: Any) -> None:
    """y = f(z), elementwise or, for softmax, over rows (rows, columns); y may be z. On one device, C-contiguous."""
    seen, into = see(z), see(y).address
    elements = math.prod(seen.shape)
    if not elements:
        return
    gpu, stream = gpu_of({seen.address, into}), current_stream(y)
    rows, columns = seen.shape if len(seen.shape) == 2 else (1, elements)
    if name == "softmax":
        run_softmax(gpu, stream, seen.address, into, Shape(rows, columns, columns, seen.dtype), columns)
    else:
        activate_elements(gpu, stream, name, seen.address, 0, into, Shape(1, elements, elements, seen.dtype))
