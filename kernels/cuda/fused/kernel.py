"""Training of a small network as one kernel: many batches, with all that belongs to each, in one block.

What such a network costs as launches is the launches: 14 for two layers, 2 us each or more, for 1 us of arithmetic.
Here parameters, activations and gradients stay in a multiprocessor's shared memory from batch to batch, and what was a
launch is a meeting of the block's threads:

    gather | forward | activate ... | loss | slopes | inputs, weights ... | update      | = all meet

The kernel is made from the formulas of what a network uses. Its sizes are data (`fused_layout.py`), so that one kernel
serves networks of any depth and width. The sums of the loss are taken in float64, all else in the network's own dtype.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from ...formulas import ACTIVATIONS, HYPER, LOSSES, OPTIMIZERS, dropout_draw, dropout_key
from ..runtime.compile import Kernel, device
from ..runtime.primitives import ANY, SHARED, VECTOR, address_in, loader, reader, storer, word, writer
from ..runtime.records import CLOCK, ROW, offset
from .layout import COLUMN_LANES, FIRST, RECORD, H, Kind, L
from .loss import judge_elements, judge_rows, read_double, read_word, write_double
from .tiles import DEPTH, product

BATCH, EVER = offset(CLOCK, "batch"), offset(CLOCK, "ever")

read_global, write_global = reader("int64", 1), writer("int64")
read_total, write_total = reader("float64", 1), writer("float64")
write_word = writer("int64", SHARED)


def _meet():
    cuda.syncthreads()


def _chosen(functions):
    """One of these functions of a number, by its place."""
    first, *others = functions
    first = device(first)

    def one(which, x):
        return first(x)

    def either(number, f, rest):
        f, rest = device(f), device(rest)

        def two(which, x):
            return f(x) if which == number else rest(which, x)

        return two

    found = one
    for number, f in enumerate(others, 1):
        found = either(number, f, found)
    return device(found)


# ---------------------------------------------------------------- rows of the batch
def _masked(dtype):
    """x after dropout by the record at `at`: of element i of a batch."""
    real, key_of, draw = getattr(np, dtype), device(dropout_key), device(dropout_draw)

    def masked(x, at, i, ever):
        threshold = word(read_word(at + H.threshold - H.scale)[0])
        key = key_of(word(read_word(at + H.stream - H.scale)[0]), word(ever + 1))
        return real(0) if draw(key, word(i)) < threshold else x * real(read_double(at)[0])

    def same(x, at, i, ever):
        return x

    return masked, same


def _gather(kind):
    row_lanes = kind.threads // COLUMN_LANES
    real, size = getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1), storer(kind.dtype, 1, SHARED)
    masked, labels, dropout = device(_masked(kind.dtype)[not kind.dropout]), kind.labels, kind.dropout
    zero, one = real(0), real(1)

    def source(table, start, row):
        order = read_word(table + H.order)[0]
        return (
            read_global(order + (start + row) * 8)[0] if order != 0 else start % read_word(table + H.ring_rows)[0] + row
        )

    source = device(source)

    def gather(table, number, rows, padded_rows, ever, column_lane, row_lane):
        start, layer = number * read_word(table + H.batch_rows)[0], table + FIRST
        x, y = read_word(table + H.x)[0], read_word(table + H.y)[0]
        columns, row_stride = read_word(layer + L.inputs)[0], read_word(layer + L.x_stride)[0]
        into, targets = table + read_word(table + FIRST + L.x)[0], table + read_word(table + H.targets)[0]
        last = table + FIRST + (read_word(table + H.num_layers)[0] - 1) * RECORD
        outputs, t_stride = read_word(last + L.outputs)[0], read_word(last + L.row_stride)[0]
        dropped = dropout and read_word(table + H.threshold)[0] != 0
        for row in range(row_lane, padded_rows, row_lanes):
            there = source(table, start, row) if row < rows else 0
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                value = one if j == columns else zero
                if j < columns and row < rows:
                    value = load((x,), (there * columns + j) * size)[0][0]
                    if dropped:
                        value = masked(value, table + H.scale, row * columns + j, ever)
                store((into,), row * row_stride + j * size, ((value,),))
            if labels:
                if column_lane == 0 and row < rows:
                    write_word(targets + row * 8, read_global(y + there * 8)[0])
            elif row < rows:
                for j in range(column_lane, outputs, COLUMN_LANES):
                    store((targets,), row * t_stride + j * size, load((y,), (there * outputs + j) * size))

    return device(gather)


# ---------------------------------------------------------------- layers
def _forward(kind):
    row_lanes = kind.threads // COLUMN_LANES
    real, size = getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    masked, dropout = device(_masked(kind.dtype)[not kind.dropout]), kind.dropout
    activate = _chosen([ACTIVATIONS[name].value for name in kind.activations])
    multiply, zero, one = product(kind.dtype, True, False, kind.threads), real(0), real(1)

    def forward(table, layer, padded_rows, ever, tid, column_lane, row_lane):
        x, w = table + read_word(layer + L.x)[0], table + read_word(layer + L.weights)[0]
        y, s = table + read_word(layer + L.y)[0], table + read_word(layer + L.saved)[0]
        x_stride, row_stride = read_word(layer + L.x_stride)[0], read_word(layer + L.row_stride)[0]
        inputs, columns = read_word(layer + L.inputs)[0], read_word(layer + L.outputs)[0]
        multiply(tid, x, x_stride, w, row_stride, y, row_stride, padded_rows, columns, inputs + 1)
        cuda.syncthreads()
        which, before = read_word(layer + L.activation)[0], read_word(layer + L.slope_of_z)[0]
        dropped = dropout and read_word(layer + L.threshold)[0] != 0
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, value = row * row_stride + j * size, one if j == columns else zero
                if j < columns:
                    z = load((y,), at)[0][0]
                    value = activate(which, z)
                    if s != y:
                        store((s,), at, ((z if before != 0 else value,),))
                    if dropped:
                        value = masked(value, layer + L.scale, row * columns + j, ever)
                store((y,), at, ((value,),))
        cuda.syncthreads()

    return device(forward)


def _slopes(kind):
    row_lanes = kind.threads // COLUMN_LANES
    real, size = getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    masked, dropout = device(_masked(kind.dtype)[not kind.dropout]), kind.dropout
    slope, zero = _chosen([ACTIVATIONS[name].slope for name in kind.activations]), real(0)

    def slopes(table, layer, dy, padded_rows, ever, column_lane, row_lane):
        # dy becomes dz.
        s, which = table + read_word(layer + L.saved)[0], read_word(layer + L.activation)[0]
        row_stride, columns = read_word(layer + L.row_stride)[0], read_word(layer + L.outputs)[0]
        dropped = dropout and read_word(layer + L.threshold)[0] != 0
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, value = row * row_stride + j * size, zero
                if j < columns:
                    value = load((dy,), at)[0][0]
                    if dropped:
                        value = masked(value, layer + L.scale, row * columns + j, ever)
                    value = value * slope(which, load((s,), at)[0][0])
                store((dy,), at, ((value,),))
        cuda.syncthreads()

    return device(slopes)


# ---------------------------------------------------------------- the step
def _states_of(dtype, count):
    """How the states of an element are found, loaded and stored, of which there may be none."""

    def nowhere(record):
        return ()

    def nothing(places, at):
        return ((),)

    def leave(places, at, lanes):
        pass

    if not count:
        return device(nowhere), device(nothing), device(leave)
    return reader("int64", count, SHARED), loader(dtype, 1, ANY), storer(dtype, 1, ANY)


def _update(kind):
    row_lanes = kind.threads // COLUMN_LANES
    row_of_rule, size = OPTIMIZERS[kind.rule], np.dtype(kind.dtype).itemsize
    rule, load, store = device(row_of_rule.rule), loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    states_at, load_states, store_states = _states_of(kind.dtype, len(row_of_rule.states))
    read_scalars = reader(kind.dtype, HYPER + 1, SHARED)

    def update(table, layer, anywhere, column_lane, row_lane):
        # anywhere: what states' places are counted from.
        scalars = read_scalars(table + read_word(table + H.step_scalars)[0])
        h, tiny = scalars[:HYPER], scalars[HYPER]
        w, dw = table + read_word(layer + L.weights)[0], table + read_word(layer + L.dw)[0]
        inputs, columns = read_word(layer + L.inputs)[0], read_word(layer + L.outputs)[0]
        row_stride, of_w, of_b = (
            read_word(layer + L.row_stride)[0],
            states_at(layer + L.w_states),
            states_at(layer + L.b_states),
        )
        for row in range(row_lane, inputs + read_word(layer + L.bias)[0], row_lanes):
            states = of_w if row < inputs else of_b
            first = anywhere + (row * columns * size if row < inputs else 0)
            for j in range(column_lane, columns, COLUMN_LANES):
                at = row * row_stride + j * size
                p, g = load((w,), at)[0][0], load((dw,), at)[0][0]
                p, s = rule(p, g, load_states(states, first + j * size)[0], h, tiny)
                store((w,), at, ((p,),))
                store_states(states, first + j * size, (s,))

    return device(update)


def _moved(kind):
    """Parameters, and states if they are resident, from their homes and back."""
    row_lanes = kind.threads // COLUMN_LANES
    size, states = np.dtype(kind.dtype).itemsize, len(OPTIMIZERS[kind.rule].states)
    load, store = loader(kind.dtype, 1), storer(kind.dtype, 1)
    load_here, store_here = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)

    def move(home, here, row_stride, rows, columns, back, column_lane, row_lane):
        for row in range(row_lane, rows, row_lanes):
            for j in range(column_lane, columns, COLUMN_LANES):
                there, at = (row * columns + j) * size, row * row_stride + j * size
                if back:
                    store((home,), there, load_here((here,), at))
                else:
                    store_here((here,), at, load((home,), there))

    move = device(move)

    def moved(table, back, column_lane, row_lane):
        for number in range(read_word(table + H.num_layers)[0]):
            layer = table + FIRST + number * RECORD
            inputs, columns, row_stride = (
                read_word(layer + L.inputs)[0], read_word(layer + L.outputs)[0], read_word(layer + L.row_stride)[0],
            )  # fmt: skip
            w, bias = table + read_word(layer + L.weights)[0], read_word(layer + L.bias)[0]
            move(read_word(layer + L.w)[0], w, row_stride, inputs, columns, back, column_lane, row_lane)
            move(
                read_word(layer + L.b)[0],
                w + inputs * row_stride,
                row_stride,
                bias,
                columns,
                back,
                column_lane,
                row_lane,
            )
            if read_word(table + H.states_resident)[0] != 0:
                for i in range(states):
                    at = layer + i * 8
                    w, b = table + read_word(at + L.w_states)[0], table + read_word(at + L.b_states)[0]
                    move(
                        read_word(at + L.w_state_addresses)[0],
                        w,
                        columns * size,
                        inputs,
                        columns,
                        back,
                        column_lane,
                        row_lane,
                    )
                    move(
                        read_word(at + L.b_state_addresses)[0],
                        b,
                        columns * size,
                        bias,
                        columns,
                        back,
                        column_lane,
                        row_lane,
                    )

    return device(moved)


def _sums(kind):
    """How numbers of all threads in shared memory are added up: first COLUMN_LANES sums of them, then one."""
    threads = kind.threads

    def some(totals, tid):
        if tid < COLUMN_LANES:
            total = 0.0
            for i in range(tid, threads, COLUMN_LANES):
                total += read_double(totals + i * 8)[0]
            write_double(totals + tid * 8, total)

    def all_of_them(totals):
        total = 0.0
        for i in range(COLUMN_LANES):
            total += read_double(totals + i * 8)[0]
        return total

    return device(some), device(all_of_them)


def _keep_metric(kind):
    """The sum of all threads' values, added where each metric of this number is kept."""
    some, all_of_them = _sums(kind)

    def keep_metric(table, number, value, tid):
        totals = table + read_word(table + H.thread_sums)[0]
        write_double(totals + tid * 8, value)
        cuda.syncthreads()
        some(totals, tid)
        cuda.syncthreads()
        if tid == 0:
            total = all_of_them(totals)
            for i in range(read_word(table + H.num_metrics)[0]):
                if read_word(table + H.metric_kinds + i * 8)[0] == number:
                    at = read_word(table + H.metric_sums)[0] + i * 8
                    write_total(at, read_total(at)[0] + total)
        cuda.syncthreads()

    return device(keep_metric)


# ---------------------------------------------------------------- the kernel
def _fused(kind):
    size, element = np.dtype(kind.dtype).itemsize, cuda.types.float64
    gather, forward, slopes, update, moved = (make(kind) for make in (_gather, _forward, _slopes, _update, _moved))
    judge = judge_rows(kind, device(_meet)) if LOSSES[kind.loss].by_row else judge_elements(kind)
    threads, keep_metric, (some, all_of_them) = kind.threads, _keep_metric(kind), _sums(kind)
    inputs_product = product(kind.dtype, True, True, threads)
    weights_product = product(kind.dtype, False, False, threads)
    address_here, address_anywhere = address_in(SHARED), address_in(ANY)
    load_scalar, store_scalar = loader(kind.dtype, 1), storer(kind.dtype, 1, SHARED)
    accuracy, errors = "accuracy" in kind.metrics, bool(kind.metrics & {"squared", "absolute"})

    def train(plan, count):
        # plan: address of HEAD and LAYERs; count: of batches, from the clock's on.
        memory = cuda.shared.array(0, element)
        table = (address_here(memory) + VECTOR - 1) // VECTOR * VECTOR
        anywhere = (address_anywhere(memory) + VECTOR - 1) // VECTOR * VECTOR
        tid = cuda.threadIdx.x
        column_lane, row_lane = tid % COLUMN_LANES, tid // COLUMN_LANES
        layers = read_global(plan + H.num_layers)[0]
        end = FIRST + layers * RECORD
        for at in range(tid * 8, read_global(plan + H.shared_bytes)[0], threads * 8):
            write_word(table + at, read_global(plan + at)[0] if at < end else 0)
        cuda.syncthreads()
        moved(table, False, column_lane, row_lane)
        states = anywhere if read_word(table + H.states_resident)[0] != 0 else 0
        clock, last = read_word(table + H.clock)[0], table + FIRST + (layers - 1) * RECORD
        begin, ever = read_global(clock + BATCH)[0], read_global(clock + EVER)[0]
        batch, totals = read_word(table + H.batch_rows)[0], table + read_word(table + H.thread_sums)[0]
        right, found = 0, (0.0, 0.0)
        for turn in range(count):
            number, now = begin + turn, ever + turn
            rows = min(batch, read_word(table + H.pass_rows)[0] - number * batch)
            padded_rows = (rows + DEPTH - 1) // DEPTH * DEPTH
            cuda.syncthreads()  # all have updated
            gather(table, number, rows, padded_rows, now, column_lane, row_lane)
            scalars, hyper = (
                read_word(table + H.scalars)[0] + number * ROW,
                table + read_word(table + H.step_scalars)[0],
            )
            for i in range(tid, HYPER + 1, threads):
                store_scalar((hyper,), i * size, load_scalar((scalars,), i * size))
            cuda.syncthreads()
            for i in range(layers):
                forward(table, table + FIRST + i * RECORD, padded_rows, now, tid, column_lane, row_lane)
            total, found, right = judge(table, last, rows, padded_rows, found, right, tid, column_lane, row_lane)
            write_double(totals + tid * 8, total)
            cuda.syncthreads()
            some(totals, tid)
            dz, other = table + read_word(table + H.gradient)[0], table + read_word(table + H.other_gradient)[0]
            for i in range(layers):
                layer = last - i * RECORD
                if read_word(layer + L.skips_slopes)[0] == 0:
                    slopes(table, layer, dz, padded_rows, now, column_lane, row_lane)
                x, w = table + read_word(layer + L.x)[0], table + read_word(layer + L.weights)[0]
                dw, columns = table + read_word(layer + L.dw)[0], read_word(layer + L.outputs)[0]
                x_stride, row_stride = read_word(layer + L.x_stride)[0], read_word(layer + L.row_stride)[0]
                inputs = read_word(layer + L.inputs)[0]
                if layer != table + FIRST:
                    inputs_product(tid, dz, row_stride, w, row_stride, other, x_stride, padded_rows, inputs, columns)
                # Where there are fewer tiles than threads, those that had none above come first.
                weights_product(
                    threads - 1 - tid, x, x_stride, dz, row_stride, dw, row_stride, inputs + 1, columns, padded_rows
                )
                dz, other = other, dz
                cuda.syncthreads()
            if tid == threads - 1:  # whose line has no more rows to update than others
                write_total(read_word(table + H.losses)[0] + number * 8, all_of_them(totals))
            for i in range(layers):
                update(table, table + FIRST + i * RECORD, states, column_lane, row_lane)
        cuda.syncthreads()
        moved(table, True, column_lane, row_lane)
        if accuracy:
            keep_metric(table, 0, np.float64(right), tid)
        if errors:
            keep_metric(table, 1, found[0], tid)
            keep_metric(table, 2, found[1], tid)
        if tid == 0:
            write_global(clock + BATCH, begin + count)
            write_global(clock + EVER, ever + count)

    return train


@cache
def _fused_kernel(kind: Kind) -> Kernel:
    return Kernel(_fused(kind), kind.name, kind.registers)


def fused_kernel(kind: Kind) -> Kernel:
    """Rows of OPTIMIZERS with the same rule share a kernel."""
    first = next(name for name, row in OPTIMIZERS.items() if row.rule is OPTIMIZERS[kind.rule].rule)
    return _fused_kernel(kind._replace(rule=first))
