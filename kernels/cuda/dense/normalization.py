"""Normalization of the columns or the rows of a batch, forward and backward, with the gradients of gamma and beta.

    batch_norm                 y, the statistics of the columns, the moving averages
    batch_norm_moving          y by the moving averages
    batch_norm_backward        the gradients, and dx in the place of dy
    batch_norm_fixed_backward  dx in the place of dy, where training goes by the moving averages
    layer_norm                 y, the statistics of the rows
    layer_norm_gradients       the gradients; the next launch overwrites dy, which they are made from
    layer_norm_backward        dx in the place of dy

A block is a grid of threads, (ROW_LANES, COLUMN_LANES), and works on COLUMN_LANES columns with all their rows, or on
ROW_LANES rows with all their columns. Sums are in float64 and in a fixed order. An address of 0 stands for an array
that is not there. Parameters and their gradients are of the dtype of the arithmetic, and so never of 16 bits.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda

from ..runtime.compile import Kernel, device
from ..runtime.device import Device, launch
from ..runtime.primitives import reader, writer
from ..runtime.records import NORMALIZATION, offset
from ..runtime.storage import STORES
from ..runtime.vectors import array_loader, array_storer, plain
from .epilogues import TILE_ROWS
from .reductions import COLUMN_LANES, ROW_LANES, total_of_column, total_of_row

EPSILON, MOMENTUM = offset(NORMALIZATION, "epsilon"), offset(NORMALIZATION, "momentum")
read_double, write_double = reader("float64", 1), writer("float64")


def _gamma_and_beta(dtype):
    """f(gamma, beta, column): elements of both, 1 and 0 where there are none."""
    real, load = getattr(np, STORES[dtype].real), array_loader((plain(STORES[dtype].real),), 1)

    def gamma_and_beta(gamma, beta, column):
        return (
            load((gamma,), column)[0][0] if gamma != 0 else real(1),
            load((beta,), column)[0][0] if beta != 0 else real(0),
        )

    return device(gamma_and_beta)


def _statistics(dtype, total_of, lanes):
    """f: the mean and the biased variance of `count` elements of x, from `origin` on every `step`-th.

    A thread has every `lanes`-th of them from `lane` on and before `last`, which is 0 where there are none.
    """
    load = array_loader((STORES[dtype],), 1)

    def statistics(x, origin, step, lane, last, count, cells, row_lane, column_lane):
        part = 0.0
        for i in range(lane, last, lanes):
            part += np.float64(load((x,), origin + i * step)[0][0])
        mean = total_of(cells, part, row_lane, column_lane) / count
        part = 0.0
        for i in range(lane, last, lanes):
            deviation = np.float64(load((x,), origin + i * step)[0][0]) - mean
            part += deviation * deviation
        return mean, total_of(cells, part, row_lane, column_lane) / count

    return device(statistics)


def _column_gradients(dtype, of_rows):
    """f: the sums of dy n and of dy over a column, n = (x - mean) inverse; they are written to dgamma and dbeta.

    of_rows: True if means and inverses are those of the rows, else of the columns.
    """
    own, real = STORES[dtype], getattr(np, STORES[dtype].real)
    load, store_parameter = array_loader((own,), 1), array_storer((plain(own.real),), 1)

    def column_gradients(
        x, dy, means, inverses, dgamma, dbeta, column, rows, columns, stride, cells, row_lane, column_lane
    ):
        last_row, mean, inverse = 0, 0.0, 0.0  # a column that is not there has no rows
        if column < columns:
            last_row = rows
            if not of_rows:
                mean, inverse = read_double(means + column * 8)[0], read_double(inverses + column * 8)[0]
        # the sums
        part_n, part_1 = 0.0, 0.0
        for row in range(row_lane, last_row, ROW_LANES):
            if of_rows:
                mean, inverse = read_double(means + row * 8)[0], read_double(inverses + row * 8)[0]
            at = row * stride + column
            d = np.float64(load((dy,), at)[0][0])
            part_n += d * ((np.float64(load((x,), at)[0][0]) - mean) * inverse)
            part_1 += d
        sum_n = total_of_column(cells, part_n, row_lane, column_lane)
        sum_1 = total_of_column(cells, part_1, row_lane, column_lane)
        # the gradients
        if row_lane == 0 and column < columns:
            if dgamma != 0:
                store_parameter((dgamma,), column, ((real(sum_n),),))
            if dbeta != 0:
                store_parameter((dbeta,), column, ((real(sum_1),),))
        return sum_n, sum_1

    return device(column_gradients)


# ---------------------------------------------------------------- columns
def _batch_norm(dtype):
    own, real = STORES[dtype], getattr(np, STORES[dtype].real)
    load, store = array_loader((own,), 1), array_storer((own,), 1)
    load_parameter, store_parameter = array_loader((plain(own.real),), 1), array_storer((plain(own.real),), 1)
    gamma_and_beta, statistics = _gamma_and_beta(dtype), _statistics(dtype, total_of_column, ROW_LANES)

    def batch_norm(
        x, y, gamma, beta, moving_mean, moving_variance, means, inverses, settings, rows, columns, stride
    ):
        cells = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.float64)
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        epsilon, momentum = read_double(settings + EPSILON)[0], read_double(settings + MOMENTUM)[0]
        for first in range(cuda.blockIdx.x * COLUMN_LANES, columns, cuda.gridDim.x * COLUMN_LANES):
            column = first + column_lane
            last_row = rows if column < columns else 0  # a column that is not there has no rows
            mean, variance = statistics(x, column, stride, row_lane, last_row, rows, cells, row_lane, column_lane)
            inverse = 1.0 / math.sqrt(variance + epsilon)
            # for the backward pass, and the moving averages
            if row_lane == 0 and column < columns:
                write_double(means + column * 8, mean)
                write_double(inverses + column * 8, inverse)
                average = momentum * np.float64(load_parameter((moving_mean,), column)[0][0])
                store_parameter((moving_mean,), column, ((real(average + (1.0 - momentum) * mean),),))
                average = momentum * np.float64(load_parameter((moving_variance,), column)[0][0])
                store_parameter((moving_variance,), column, ((real(average + (1.0 - momentum) * variance),),))
            # y
            if column < columns:
                scale, shift = gamma_and_beta(gamma, beta, column)
                center, factor = real(mean), real(inverse * np.float64(scale))
                for row in range(row_lane, rows, ROW_LANES):
                    at = row * stride + column
                    store((y,), at, (((load((x,), at)[0][0] - center) * factor + shift,),))

    return batch_norm


def _batch_norm_moving(dtype):
    own, real = STORES[dtype], getattr(np, STORES[dtype].real)
    load, store = array_loader((own,), 1), array_storer((own,), 1)
    load_parameter, gamma_and_beta = array_loader((plain(own.real),), 1), _gamma_and_beta(dtype)

    def batch_norm_moving(x, y, gamma, beta, moving_mean, moving_variance, settings, rows, columns, stride):
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        epsilon = read_double(settings + EPSILON)[0]
        across = (columns + COLUMN_LANES - 1) // COLUMN_LANES
        for tile in range(cuda.blockIdx.x, across * ((rows + TILE_ROWS - 1) // TILE_ROWS), cuda.gridDim.x):
            # one tile: COLUMN_LANES columns of TILE_ROWS rows
            first_row, column = tile // across * TILE_ROWS, tile % across * COLUMN_LANES + column_lane
            if column < columns:
                scale, shift = gamma_and_beta(gamma, beta, column)
                center = load_parameter((moving_mean,), column)[0][0]
                variance = np.float64(load_parameter((moving_variance,), column)[0][0])
                factor = real(1.0 / math.sqrt(variance + epsilon) * np.float64(scale))
                for row in range(first_row + row_lane, min(rows, first_row + TILE_ROWS), ROW_LANES):
                    at = row * stride + column
                    store((y,), at, (((load((x,), at)[0][0] - center) * factor + shift,),))

    return batch_norm_moving


def _batch_norm_fixed_backward(dtype):
    own, real = STORES[dtype], getattr(np, STORES[dtype].real)
    load, store = array_loader((own,), 1), array_storer((own,), 1)
    load_parameter, gamma_and_beta = array_loader((plain(own.real),), 1), _gamma_and_beta(dtype)

    def batch_norm_fixed_backward(dy, gamma, moving_variance, settings, rows, columns, stride):
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        epsilon = read_double(settings + EPSILON)[0]
        across = (columns + COLUMN_LANES - 1) // COLUMN_LANES
        for tile in range(cuda.blockIdx.x, across * ((rows + TILE_ROWS - 1) // TILE_ROWS), cuda.gridDim.x):
            # one tile: COLUMN_LANES columns of TILE_ROWS rows
            first_row, column = tile // across * TILE_ROWS, tile % across * COLUMN_LANES + column_lane
            if column < columns:
                scale = gamma_and_beta(gamma, 0, column)[0]
                variance = np.float64(load_parameter((moving_variance,), column)[0][0])
                factor = real(1.0 / math.sqrt(variance + epsilon) * np.float64(scale))
                for row in range(first_row + row_lane, min(rows, first_row + TILE_ROWS), ROW_LANES):
                    at = row * stride + column
                    store((dy,), at, ((load((dy,), at)[0][0] * factor,),))

    return batch_norm_fixed_backward


def _batch_norm_backward(dtype):
    own, real = STORES[dtype], getattr(np, STORES[dtype].real)
    load, store = array_loader((own,), 1), array_storer((own,), 1)
    gamma_and_beta, column_gradients = _gamma_and_beta(dtype), _column_gradients(dtype, of_rows=False)

    def batch_norm_backward(x, dy, gamma, means, inverses, dgamma, dbeta, needs_dx, rows, columns, stride):
        cells = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.float64)
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        for first in range(cuda.blockIdx.x * COLUMN_LANES, columns, cuda.gridDim.x * COLUMN_LANES):
            column = first + column_lane
            sum_n, sum_1 = column_gradients(
                x, dy, means, inverses, dgamma, dbeta, column, rows, columns, stride, cells, row_lane, column_lane
            )
            # dx = gamma inverse (dy - mean(dy) - n mean(dy n))
            if needs_dx != 0 and column < columns:
                scale = gamma_and_beta(gamma, 0, column)[0]
                mean, inverse = read_double(means + column * 8)[0], read_double(inverses + column * 8)[0]
                center, factor = real(mean), real(inverse * np.float64(scale))
                of_mean, of_deviation = real(sum_1 / rows), real(inverse * (sum_n / rows))
                for row in range(row_lane, rows, ROW_LANES):
                    at = row * stride + column
                    d, deviation = load((dy,), at)[0][0], load((x,), at)[0][0] - center
                    store((dy,), at, ((factor * (d - of_mean - deviation * of_deviation),),))

    return batch_norm_backward


# ---------------------------------------------------------------- rows
def _layer_norm(dtype):
    own, real = STORES[dtype], getattr(np, STORES[dtype].real)
    load, store, gamma_and_beta = array_loader((own,), 1), array_storer((own,), 1), _gamma_and_beta(dtype)
    statistics = _statistics(dtype, total_of_row, COLUMN_LANES)

    def layer_norm(x, y, gamma, beta, means, inverses, settings, rows, columns, stride):
        # means and inverses: 0, if no backward pass follows
        cells = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.float64)
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        epsilon = read_double(settings + EPSILON)[0]
        for first in range(cuda.blockIdx.x * ROW_LANES, rows, cuda.gridDim.x * ROW_LANES):
            row = first + row_lane
            last_column = columns if row < rows else 0  # a row that is not there has no columns
            mean, variance = statistics(
                x, row * stride, 1, column_lane, last_column, columns, cells, row_lane, column_lane
            )
            inverse = 1.0 / math.sqrt(variance + epsilon)
            if means != 0 and column_lane == 0 and row < rows:
                write_double(means + row * 8, mean)
                write_double(inverses + row * 8, inverse)
            # y
            center, factor = real(mean), real(inverse)
            for column in range(column_lane, last_column, COLUMN_LANES):
                scale, shift = gamma_and_beta(gamma, beta, column)
                at = row * stride + column
                store((y,), at, (((load((x,), at)[0][0] - center) * factor * scale + shift,),))

    return layer_norm


def _layer_norm_gradients(dtype):
    column_gradients = _column_gradients(dtype, of_rows=True)

    def layer_norm_gradients(x, dy, means, inverses, dgamma, dbeta, rows, columns, stride):
        cells = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.float64)
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        for first in range(cuda.blockIdx.x * COLUMN_LANES, columns, cuda.gridDim.x * COLUMN_LANES):
            column = first + column_lane
            column_gradients(
                x, dy, means, inverses, dgamma, dbeta, column, rows, columns, stride, cells, row_lane, column_lane
            )

    return layer_norm_gradients


def _layer_norm_backward(dtype):
    own, real = STORES[dtype], getattr(np, STORES[dtype].real)
    load, store, gamma_and_beta = array_loader((own,), 1), array_storer((own,), 1), _gamma_and_beta(dtype)

    def layer_norm_backward(x, dy, gamma, means, inverses, rows, columns, stride):
        cells = cuda.shared.array((ROW_LANES, COLUMN_LANES), np.float64)
        column_lane, row_lane = cuda.threadIdx.x % COLUMN_LANES, cuda.threadIdx.x // COLUMN_LANES
        for first in range(cuda.blockIdx.x * ROW_LANES, rows, cuda.gridDim.x * ROW_LANES):
            row = first + row_lane
            last_column, mean, inverse = 0, 0.0, 0.0
            if row < rows:
                last_column, mean = columns, read_double(means + row * 8)[0]
                inverse = read_double(inverses + row * 8)[0]
            # sums of g = gamma dy and of g n, n = (x - mean) inverse
            part_1, part_n = 0.0, 0.0
            for column in range(column_lane, last_column, COLUMN_LANES):
                at = row * stride + column
                g = np.float64(load((dy,), at)[0][0] * gamma_and_beta(gamma, 0, column)[0])
                part_1 += g
                part_n += g * ((np.float64(load((x,), at)[0][0]) - mean) * inverse)
            sum_1 = total_of_row(cells, part_1, row_lane, column_lane)
            sum_n = total_of_row(cells, part_n, row_lane, column_lane)
            # dx = inverse (g - mean(g) - n mean(g n))
            center, factor = real(mean), real(inverse)
            of_mean, of_deviation = real(sum_1 / columns), real(inverse * (sum_n / columns))
            for column in range(column_lane, last_column, COLUMN_LANES):
                at = row * stride + column
                g = load((dy,), at)[0][0] * gamma_and_beta(gamma, 0, column)[0]
                deviation = load((x,), at)[0][0] - center
                store((dy,), at, ((factor * (g - of_mean - deviation * of_deviation),),))

    return layer_norm_backward


BUILDERS = {
    "batch_norm": _batch_norm,
    "batch_norm_moving": _batch_norm_moving,
    "batch_norm_backward": _batch_norm_backward,
    "batch_norm_fixed_backward": _batch_norm_fixed_backward,
    "layer_norm": _layer_norm,
    "layer_norm_gradients": _layer_norm_gradients,
    "layer_norm_backward": _layer_norm_backward,
}


@cache
def normalization_kernel(name: str, dtype: str) -> Kernel:
    """Return a kernel of BUILDERS for arrays of a dtype."""
    return Kernel(BUILDERS[name](dtype), f"{name}_{dtype}")


def normalization_kernels(dtype: str) -> list[Kernel]:
    """Return every kernel of a dtype."""
    return [normalization_kernel(name, dtype) for name in BUILDERS]


# ---------------------------------------------------------------- launches
class Sizes(NamedTuple):
    """Shape and dtype of a batch; `stride`: elements from row to row."""

    rows: int
    columns: int
    stride: int
    dtype: str

    @property
    def column_groups(self) -> int:
        """Blocks that the columns are worth."""
        return -(-self.columns // COLUMN_LANES)

    @property
    def row_groups(self) -> int:
        """Blocks that the rows are worth."""
        return -(-self.rows // ROW_LANES)


class Arrays(NamedTuple):
    """Addresses of the parameters of a layer, and of what its forward pass keeps; 0: not there.

    mean and inverse: float64, of each column (batch) or row (layer); settings: a record NORMALIZATION.
    """

    gamma: int
    beta: int
    mean: int
    inverse: int
    settings: int
    moving_mean: int = 0
    moving_variance: int = 0


def _run(gpu: Device, stream: int, name: str, pieces: int, sizes: Sizes, *args: int) -> None:
    launch(gpu, normalization_kernel(name, sizes.dtype), pieces, stream, *args, *sizes[:3])


def batch_norm(gpu: Device, stream: int, x: int, y: int, arrays: Arrays, sizes: Sizes) -> None:
    """y by the statistics of the batch, which move the averages and are kept for `batch_norm_backward`."""
    a = arrays
    args = x, y, a.gamma, a.beta, a.moving_mean, a.moving_variance, a.mean, a.inverse, a.settings
    _run(gpu, stream, "batch_norm", sizes.column_groups, sizes, *args)


def batch_norm_moving(gpu: Device, stream: int, x: int, y: int, arrays: Arrays, sizes: Sizes) -> None:
    """y by the moving averages."""
    a, pieces = arrays, sizes.column_groups * -(-sizes.rows // TILE_ROWS)
    args = x, y, a.gamma, a.beta, a.moving_mean, a.moving_variance, a.settings
    _run(gpu, stream, "batch_norm_moving", pieces, sizes, *args)


def batch_norm_backward(
    gpu: Device, stream: int, x: int, dy: int, arrays: Arrays, dgamma: int, dbeta: int, needs_dx: bool, sizes: Sizes
) -> None:
    """The gradients of gamma and beta, and dx in the place of dy."""
    a = arrays
    args = x, dy, a.gamma, a.mean, a.inverse, dgamma, dbeta, int(needs_dx)
    _run(gpu, stream, "batch_norm_backward", sizes.column_groups, sizes, *args)


def batch_norm_fixed_backward(gpu: Device, stream: int, dy: int, arrays: Arrays, sizes: Sizes) -> None:
    """dx in the place of dy, by the moving averages."""
    a, pieces = arrays, sizes.column_groups * -(-sizes.rows // TILE_ROWS)
    _run(gpu, stream, "batch_norm_fixed_backward", pieces, sizes, dy, a.gamma, a.moving_variance, a.settings)


def layer_norm(gpu: Device, stream: int, x: int, y: int, arrays: Arrays, sizes: Sizes) -> None:
    """y by the statistics of each row, which are kept for the backward pass, unless there is no place for them."""
    a = arrays
    _run(gpu, stream, "layer_norm", sizes.row_groups, sizes, x, y, a.gamma, a.beta, a.mean, a.inverse, a.settings)


def layer_norm_gradients(
    gpu: Device, stream: int, x: int, dy: int, arrays: Arrays, dgamma: int, dbeta: int, sizes: Sizes
) -> None:
    """The gradients of gamma and beta."""
    args = x, dy, arrays.mean, arrays.inverse, dgamma, dbeta
    _run(gpu, stream, "layer_norm_gradients", sizes.column_groups, sizes, *args)


def layer_norm_backward(gpu: Device, stream: int, x: int, dy: int, arrays: Arrays, sizes: Sizes) -> None:
    """dx in the place of dy."""
    args = x, dy, arrays.gamma, arrays.mean, arrays.inverse
    _run(gpu, stream, "layer_norm_backward", sizes.row_groups, sizes, *args)
