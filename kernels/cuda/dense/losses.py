"""Losses with their gradients, softmax, metrics, and the sums of them over a batch.

    loss       sums[tile] of the loss, and dz, its gradient: elementwise, or by rows where the loss includes the softmax
    softmax    y = softmax(z), by rows
    hits       sums[tile] of the rows, or the outputs, that a metric of classes counts as right
    finish     adds the sums of all tiles to one number: that of the batch, or of the whole pass; the batch is done

Other metrics are sums of values, as elementwise losses are. Tiles are cut by the shape alone, sums are taken in float64
and added in a fixed order, so they are the same bits in every run. Arrays lie in rows, z and dz with one stride and
targets with another. A row that is taken as a whole is shared by LANES threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from ...formulas import LOSSES, METRICS, Loss
from ...metrics import OF_CLASSES
from ...spec import LossSpec
from ..runtime.array_interface import current_stream, gpu_of, see
from ..runtime.compile import THREADS, Kernel, device
from ..runtime.device import Device, launch
from ..runtime.primitives import array_loader, array_storer, loader, reader, storer, writer
from ..runtime.records import CLOCK, CONTROL, ROW, TOTALS, offset
from ..runtime.storage import STORES, pair_map, vector_map
from .epilogues import DEEP, LANES, Shape, is_wide
from .epilogues import activate as activate_elements

ELEMENTS = 16 * THREADS  # of a tile, where a loss goes by elements
ROWS = 4 * DEEP  # of a tile, where it goes by rows
BATCH, EVER = offset(CLOCK, "batch"), offset(CLOCK, "ever")
SHIFT, SKIPS = offset(CONTROL, "shift"), offset(CONTROL, "skips")
TOTAL = TOTALS.itemsize
NOT_RANKED = 1 << 32  # more than a row has columns

read_word, read_words4, write_word = reader("int64", 1), reader("int64", 4), writer("int64")
read_double, write_double = reader("float64", 1), writer("float64")


def _add_up(totals, me, count):
    """The sum of `count` numbers in shared memory, a power of two, by halves; it ends in the first."""
    half = count // 2
    while half > 0:
        cuda.syncthreads()
        if me < half:
            totals[me] += totals[me + half]
        half //= 2


def _along(cells, deep, lane):
    """Each row of cells (DEEP, LANES) added up into its first."""
    half = LANES // 2
    while half > 0:
        cuda.syncthreads()
        if lane < half:
            cells[deep, lane] += cells[deep, lane + half]
        half //= 2
    cuda.syncthreads()


def _tops(cells, deep, lane):
    """The largest of each row of cells (DEEP, LANES) into its first."""
    half = LANES // 2
    while half > 0:
        cuda.syncthreads()
        if lane < half and cells[deep, lane + half] > cells[deep, lane]:
            cells[deep, lane] = cells[deep, lane + half]
        half //= 2
    cuda.syncthreads()


add_up, along, tops = device(_add_up), device(_along), device(_tops)


@cache
def _mass_of_row(dtype):
    """The largest z of a row, and in masses[deep, 0] the sum of exp(z - it); of no columns -inf and 0.

    To be called by all threads of a block; `largest` and `masses` are its shared memory, (DEEP, LANES).
    """
    load, real, size = loader(dtype, 1), getattr(np, dtype), np.dtype(dtype).itemsize

    def mass_of_row(z, row, stride, columns, largest, masses, deep, lane):
        top = real(-math.inf)
        for j in range(lane, columns, LANES):
            x = load((z,), (row * stride + j) * size)[0][0]
            top = x if x > top else top
        largest[deep, lane] = top
        tops(largest, deep, lane)
        top, mass = largest[deep, 0], 0.0
        for j in range(lane, columns, LANES):
            mass += np.float64(math.exp(load((z,), (row * stride + j) * size)[0][0] - top))
        masses[deep, lane] = mass
        along(masses, deep, lane)
        return top

    return device(mass_of_row)


# ---------------------------------------------------------------- losses
def _elementwise(value, slope, dtype, width):
    own, real, value, slope = (STORES[dtype],), getattr(np, dtype), device(value), device(slope)
    load, store = array_loader(own, width), array_storer(own, width)

    def lost(x, a):
        return (value(x[0], x[1], a),)

    def sloped(x, a, scale):
        return (slope(x[0], x[1], a) * scale,)

    def both(z, t):
        return z[0], t[0]

    losses, slopes, paired = vector_map(lost, width), vector_map(sloped, width), pair_map(both, width)

    def loss(z, t, dz, sums, rows, columns, z_stride, t_stride, param):
        totals = cuda.shared.array(THREADS, np.float64)
        me, elements = cuda.threadIdx.x, rows * columns
        a, scale = real(read_double(param)[0]), real(1.0 / elements)
        down, right = THREADS * width // columns, THREADS * width % columns
        for tile in range(cuda.blockIdx.x, (elements + ELEMENTS - 1) // ELEMENTS, cuda.gridDim.x):
            # A vector of columns at a time. Where the next one lies is counted on, to divide once a tile.
            start, total = tile * ELEMENTS, 0.0
            first = start + me * width
            row, column = first // columns, first % columns
            for _ in range(first, min(start + ELEMENTS, elements), THREADS * width):
                at = row * z_stride + column
                x = paired(load((z,), at), load((t,), row * t_stride + column))
                for one in losses(x, a):
                    total += np.float64(one[0])
                if dz != 0:
                    store((dz,), at, slopes(x, a, scale))
                row += down
                column += right
                if column >= columns:
                    column -= columns
                    row += 1
            totals[me] = total
            add_up(totals, me, THREADS)
            if me == 0:
                write_double(sums + tile * 8, totals[0])
            cuda.syncthreads()  # the next tile begins with totals

    return loss


def _by_row(value, slope, dtype, labels):
    value, slope = device(value), device(slope)
    load, store, real, size = loader(dtype, 1), storer(dtype, 1), getattr(np, dtype), np.dtype(dtype).itemsize
    tiny, largest_of = real(np.finfo(dtype).tiny), _mass_of_row(dtype)

    def loss(z, t, dz, sums, rows, columns, z_stride, t_stride, param):
        # As on the CPU: t is the smoothed target, and z is taken from the largest of its row.
        largest = cuda.shared.array((DEEP, LANES), real)
        masses = cuda.shared.array((DEEP, LANES), np.float64)
        totals = cuda.shared.array(THREADS, np.float64)
        me = cuda.threadIdx.x
        lane, deep = me % LANES, me // LANES
        zero, one, smooth = real(0), real(1), real(read_double(param)[0])
        floor, keep, scale = smooth / real(columns), one - smooth, real(1.0 / rows)
        for tile in range(cuda.blockIdx.x, (rows + ROWS - 1) // ROWS, cuda.gridDim.x):
            total = 0.0
            for part in range(ROWS // DEEP):
                row = tile * ROWS + part * DEEP + deep
                end = columns if row < rows else 0  # all threads of a block meet, also those without a row
                top = largest_of(z, row, z_stride, end, largest, masses, deep, lane)
                log_sum, share = zero, zero
                if end != 0:
                    log_sum, share = real(math.log(masses[deep, 0])), real(1.0 / masses[deep, 0])
                label = read_word(t + row * 8)[0] if labels and end != 0 else 0
                for j in range(lane, end, LANES):
                    at = (row * z_stride + j) * size
                    x = load((z,), at)[0][0] - top
                    if labels:  # noqa: SIM108 (the other form is longer than a line)
                        target = one if j == label else zero
                    else:
                        target = load((t,), (row * t_stride + j) * size)[0][0]
                    target = target * keep + floor
                    if target != zero:
                        total += np.float64(value(x, target, log_sum))
                    if dz != 0:
                        g = slope(real(math.exp(x)) * share, target) * scale
                        store((dz,), at, ((zero if abs(g) < tiny else g,),))
                cuda.syncthreads()  # the next part begins with largest and masses
            totals[me] = total
            add_up(totals, me, THREADS)
            if me == 0:
                write_double(sums + tile * 8, totals[0])
            cuda.syncthreads()

    return loss


def _softmax(dtype):
    load, store, real, size = loader(dtype, 1), storer(dtype, 1), getattr(np, dtype), np.dtype(dtype).itemsize
    largest_of = _mass_of_row(dtype)

    def softmax(z, y, rows, columns, z_stride, y_stride):
        largest = cuda.shared.array((DEEP, LANES), real)
        masses = cuda.shared.array((DEEP, LANES), np.float64)
        lane, deep = cuda.threadIdx.x % LANES, cuda.threadIdx.x // LANES
        for part in range(cuda.blockIdx.x, (rows + DEEP - 1) // DEEP, cuda.gridDim.x):
            row = part * DEEP + deep
            end = columns if row < rows else 0
            top = largest_of(z, row, z_stride, end, largest, masses, deep, lane)
            for j in range(lane, end, LANES):
                x = real(math.exp(load((z,), (row * z_stride + j) * size)[0][0] - top))
                store((y,), (row * y_stride + j) * size, ((real(np.float64(x) / masses[deep, 0]),),))
            cuda.syncthreads()

    return softmax


# ---------------------------------------------------------------- metrics of classes
@cache
def _largest_of_row(dtype):
    """The number of the largest element of a row that LANES threads share: of equal ones the first, -1 if one is NaN.

    Of no columns it is 0.

    To be called by all threads of a block; `tops` and `places` are its shared memory, (DEEP, LANES).
    """
    load, real, size = loader(dtype, 1), getattr(np, dtype), np.dtype(dtype).itemsize

    def largest_of_row(row, columns, tops, places, deep, lane):
        # The largest of a thread's own columns; a place behind the row: it has none.
        place, most = columns, real(-math.inf)
        for j in range(lane, columns, LANES):
            x = load((row,), j * size)[0][0]
            if x != x:
                place = -1
            elif place == columns or (place >= 0 and x > most):
                place, most = j, x
        tops[deep, lane], places[deep, lane] = most, place
        # The largest of the row, by halves: of equal ones the first; nothing is larger than NaN.
        half = LANES // 2
        while half > 0:
            cuda.syncthreads()
            if lane < half:
                mine, other = places[deep, lane], places[deep, lane + half]
                x, y = tops[deep, lane], tops[deep, lane + half]
                if other < 0 or (mine >= 0 and other < columns and (y > x or (y == x and other < mine))):
                    places[deep, lane], tops[deep, lane] = other, y
            half //= 2
        cuda.syncthreads()
        place = places[deep, 0]
        cuda.syncthreads()  # the next row begins with places
        return place

    return device(largest_of_row)


@cache
def _rank_of_row(dtype):
    """The number of classes that a row of outputs prefers to the right one, as on the CPU; NOT_RANKED or more: NaN.

    To be called by all threads of a block; `ranks` is its shared memory, (DEEP, LANES).
    """
    load, size = loader(dtype, 1), np.dtype(dtype).itemsize

    def rank_of_row(row, columns, right, ranks, deep, lane):
        rank = 0
        if columns != 0:
            score = load((row,), right * size)[0][0]
            for j in range(lane, columns, LANES):
                x = load((row,), j * size)[0][0]
                if x != x:
                    rank += NOT_RANKED
                elif x > score or (x == score and j < right):
                    rank += 1
        ranks[deep, lane] = rank
        along(ranks, deep, lane)
        rank = ranks[deep, 0]
        cuda.syncthreads()  # the next row begins with ranks
        return rank

    return device(rank_of_row)


def _hits(score, dtype, scored):
    load, real, size = loader(dtype, 1), getattr(np, dtype), np.dtype(dtype).itemsize
    score, best_of, rank_of = device(score), _largest_of_row(dtype), _rank_of_row(dtype)
    labels, by_output = scored == "labels", scored == "outputs"

    def hits(z, t, sums, rows, columns, z_stride, t_stride, boundaries):
        # LANES threads take a row, so that they read its columns side by side. Boundaries: of z, of t.
        tops = cuda.shared.array((DEEP, LANES), real)
        places = cuda.shared.array((DEEP, LANES), np.int64)
        totals = cuda.shared.array(THREADS, np.float64)
        me = cuda.threadIdx.x
        lane, deep = me % LANES, me // LANES
        z_boundary, t_boundary = real(read_double(boundaries)[0]), real(read_double(boundaries + 8)[0])
        for tile in range(cuda.blockIdx.x, (rows + ROWS - 1) // ROWS, cuda.gridDim.x):
            hit = 0
            for part in range(ROWS // DEEP):
                row = tile * ROWS + part * DEEP + deep
                end = columns if row < rows else 0  # all threads of a block meet, also those without a row
                ours, theirs = z + row * z_stride * size, t + row * t_stride * size
                if by_output:
                    for j in range(lane, end, LANES):
                        x, y = load((ours,), j * size)[0][0], load((theirs,), j * size)[0][0]
                        rank = 0 if (x > z_boundary) == (y > t_boundary) else 1
                        if x == x and score(rank):
                            hit += 1
                else:
                    if labels:
                        right = read_word(t + row * 8)[0] if end != 0 else 0
                    else:
                        right = best_of(theirs, end, tops, places, deep, lane)
                    rank = rank_of(ours, end, right, places, deep, lane)
                    if lane == 0 and end != 0 and rank < NOT_RANKED and score(rank):
                        hit += 1
            totals[me] = np.float64(hit)
            add_up(totals, me, THREADS)
            if me == 0:
                write_double(sums + tile * 8, totals[0])
            cuda.syncthreads()

    return hits


def _finish(table, count, clock, control):
    totals = cuda.shared.array(THREADS, np.float64)
    me, batch = cuda.threadIdx.x, read_word(clock + BATCH)[0]
    for i in range(count):
        sums, tiles, into, stride = read_words4(table + i * TOTAL)
        total = 0.0
        for tile in range(me, tiles, THREADS):
            total += read_double(sums + tile * 8)[0]
        totals[me] = total
        add_up(totals, me, THREADS)
        if me == 0:
            place = into + batch * stride
            write_double(place, read_double(place)[0] + totals[0])
        cuda.syncthreads()  # the next one begins with totals
    if me == 0:
        write_word(clock + BATCH, batch + 1)
        write_word(clock + EVER, read_word(clock + EVER)[0] + 1)
        if control != 0:  # a step was done; `settle` takes the row of this count, too
            done = read_word(control + SKIPS)[0] + 1
            write_word(control + SKIPS, done)
            write_word(control + SHIFT, done * ROW)


FINISH = Kernel(_finish, "finish")


# ---------------------------------------------------------------- kernels
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


@cache
def _loss_kernel(
    name: str, value: Callable[..., Any], slope: Callable[..., Any], dtype: str, kind: str, wide: bool
) -> Kernel:
    if kind == "elements":
        width = STORES[dtype].width if wide else 1
        return Kernel(_elementwise(value, slope, dtype, width), f"loss_{name}_{dtype}{'_wide' * wide}")
    return Kernel(_by_row(value, slope, dtype, kind == "labels"), f"loss_{name}_{dtype}")


def loss_kernel(name: str, dtype: str, wide: bool = False) -> Kernel:
    """The kernel of a row of SUMMED. wide: in vectors, where the loss goes by elements."""
    row = SUMMED[name]
    kind = row.targets if row.by_row else "elements"
    return _loss_kernel(name, row.value, row.slope, dtype, kind, wide and not row.by_row)


@cache
def softmax_kernel(dtype: str) -> Kernel:
    return Kernel(_softmax(dtype), f"softmax_{dtype}")


@cache
def hits_kernel(name: str, dtype: str, scored: str) -> Kernel:
    """The kernel of a metric of classes; scored: one of OF_CLASSES."""
    return Kernel(_hits(METRICS[name].score, dtype, scored), f"{name}_{scored}_{dtype}")


def loss_kernels(dtype: str) -> list[Kernel]:
    """Every kernel of a dtype, with that of none."""
    metrics = [name for name, row in METRICS.items() if row.of_classes]
    hits = [hits_kernel(name, dtype, scored) for name in metrics for scored in OF_CLASSES]
    losses = [loss_kernel(name, dtype, wide) for name in SUMMED for wide in (False, True)]
    return list(dict.fromkeys([FINISH, *losses, softmax_kernel(dtype), *hits]))


# ---------------------------------------------------------------- launches
def loss_tiles(name: str, rows: int, columns: int) -> int:
    """How many sums a row of SUMMED leaves."""
    return -(-rows // ROWS) if SUMMED[name].by_row else -(-rows * columns // ELEMENTS)


def hits_tiles(rows: int) -> int:
    return -(-rows // ROWS)


def run_loss(
    gpu: Device, stream: int, name: str, z: int, t: int, dz: int, sums: int, param: int, shape: Shape, t_stride: int
) -> None:
    """sums (loss_tiles,) float64 of the loss of z, and dz, the gradient of its mean; dz may be 0: it is not wanted.

    t: int64 labels, or targets; param: address of the loss's parameter, a float64.
    """
    rows, columns, stride, dtype, _ = shape
    wide = is_wide(dtype, columns, stride, z, dz) and is_wide(dtype, columns, t_stride, t)
    kernel = loss_kernel(name, dtype, wide)
    pieces = loss_tiles(name, rows, columns)
    launch(gpu, kernel, pieces, stream, z, t, dz, sums, rows, columns, stride, t_stride, param)


def run_hits(
    gpu: Device, stream: int, name: str, scored: str, z: int, t: int, sums: int, boundaries: int, shape: Shape,
    t_stride: int,
) -> None:  # fmt: skip
    """sums (hits_tiles,) float64 of a metric of classes.

    scored: one of OF_CLASSES; boundaries: address of two float64.
    """
    rows, columns, stride, dtype, _ = shape
    kernel = hits_kernel(name, dtype, scored)
    launch(gpu, kernel, hits_tiles(rows), stream, z, t, sums, rows, columns, stride, t_stride, boundaries)


def run_softmax(gpu: Device, stream: int, z: int, y: int, shape: Shape, y_stride: int) -> None:
    """y = softmax(z), by rows; y may be z, with the same stride."""
    rows, columns, stride, dtype, _ = shape
    launch(gpu, softmax_kernel(dtype), -(-rows // DEEP), stream, z, y, rows, columns, stride, y_stride)


def finish(gpu: Device, stream: int, table: int, count: int, clock: int, control: int) -> None:
    """Adds up what a batch has left, by a table of `count` records TOTALS, and moves the clock on to the next.

    control: of the updates, where the batch ended a step; 0: it did not.
    """
    launch(gpu, FINISH, 1, stream, table, count, clock, control)


# ---------------------------------------------------------------- verbs
def loss(spec: LossSpec, outputs: Any, targets: Any, gradient: Any = None) -> float:
    """The mean loss of outputs (rows, columns); writes its gradient if given. Waits for it.

    Arrays on one device, C-contiguous, of float32 or float64; targets like the outputs, or int64 labels (rows,).
    """
    row, seen = LOSSES[spec.name], see(outputs)
    (rows, columns), dtype = seen.shape, seen.dtype
    z, t, dz = seen.address, see(targets).address, 0 if gradient is None else see(gradient).address
    gpu, stream = gpu_of({z, t, dz}), current_stream(outputs)
    param = next((float(spec.params.get(name, default)) for name, default in row.params.items()), 0.0)
    tiles = loss_tiles(spec.name, rows, columns)
    with gpu.active():
        memory = gpu.allocate(CLOCK.itemsize + TOTAL + 16 + 8 * tiles)
        table = (
            memory.address + CLOCK.itemsize
        )  # behind a clock that stands at 0; then the parameter, the result, the sums
        at = table + TOTAL
        gpu.copy_in(table, np.array([(at + 16, tiles, at + 8, 0)], TOTALS), stream)
        gpu.copy_in(at, np.array([param]), stream)
        shape = Shape(rows, columns, columns, dtype)
        run_loss(gpu, stream, spec.name, z, t, dz, at + 16, at, shape, columns)
        finish(gpu, stream, table, 1, memory.address, 0)
        result = np.zeros(1)
        gpu.copy_out(result, at + 8, stream)
        gpu.wait(stream)
    return float(result[0]) / (rows if row.by_row else rows * columns)


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
