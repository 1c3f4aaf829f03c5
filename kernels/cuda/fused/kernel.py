"""Training of a small network as one kernel of one block, which goes through many batches.

Launched kernel by kernel, such a network costs 14 launches of 2 us or more for two layers, and 1 us of arithmetic. Here
parameters, activations and gradients stay in a multiprocessor's shared memory from batch to batch, and a barrier of the
block's threads stands where a launch ended:

    gather | forward | activate ... | loss | slopes | inputs, weights ... | update      | = barrier

The code is made from the formulas of a network (`Kind`), and sizes are data (`layout.py`), so that one kernel serves
networks of any depth and width. Sums of the loss are float64, all else has the network's dtype.

Arguments of the phases: `table` is the address of the records in shared memory, `layer` that of a LAYER among them;
`rows` are those of the batch, `padded_rows` with the rows of zeros that fill it up. A thread takes the columns
`column_lane`, `column_lane` + COLUMN_LANES ... of the rows `row_lane`, `row_lane` + row_lanes ...
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda

from ...formulas import ACTIVATIONS, LOSSES, METRICS, NUM_SCALARS, OPTIMIZERS, dropout_draw, dropout_key
from ..dense.stored import Layout, value_of
from ..runtime.compile import Kernel, device
from ..runtime.primitives import ANY, SHARED, VECTOR, address_in, reader, word, writer
from ..runtime.records import CLOCK, ROW, offset
from ..runtime.vectors import loader, storer
from .access import SECTOR, field, prefetch, read_double, read_word, resolve, write_double, write_word
from .layout import COLUMN_LANES, FIRST, RECORD, H, Kind, L
from .loss import elementwise_loss, row_loss
from .sums import add_metrics, block_sums
from .tiles import DEPTH, product

BATCH, EVER = offset(CLOCK, "batch"), offset(CLOCK, "ever")

read_global, write_global = reader("int64", 1), writer("int64")
read_row_number = reader("uint32", 1)
write_total = writer("float64")


def _barrier():
    cuda.syncthreads()


def _by_index(functions):
    """One function f(index, x) = functions[index](x)."""
    first, *others = functions
    first = device(first)

    def only(index, x):
        return first(x)

    def either(number, f, rest):
        f, rest = device(f), device(rest)

        def two(index, x):
            return f(x) if index == number else rest(index, x)

        return two

    found = only
    for number, f in enumerate(others, 1):
        found = either(number, f, found)
    return device(found)


# ---------------------------------------------------------------- rows of the batch
def _dropout(kind):
    """x after dropout: element i of a batch, with the settings from `scale` on in a record; x where none is used."""
    T, key_of, draw = getattr(np, kind.dtype), device(dropout_key), device(dropout_draw)

    def dropout(x, scale, i, ever):
        threshold = word(read_word(scale + H.threshold - H.scale)[0])
        key = key_of(word(read_word(scale + H.stream - H.scale)[0]), word(ever + 1))
        return T(0) if draw(key, word(i)) < threshold else x * T(read_double(scale)[0])

    def identity(x, scale, i, ever):
        return x

    return device(dropout if kind.dropout else identity)


def _prefetch_row():
    """Ask for the bytes of a row of global memory, a sector for each column lane."""

    def prefetch_row(address, size, column_lane):
        for at in range(column_lane * SECTOR, size, COLUMN_LANES * SECTOR):
            prefetch(address + at)
        if column_lane == 0:  # the last byte, as a row need not begin at a sector
            prefetch(address + size - 1)

    return device(prefetch_row)


def _gather(kind):
    row_lanes = kind.threads // COLUMN_LANES
    T, size = getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1), storer(kind.dtype, 1, SHARED)
    dropout, uses_dropout, labels = _dropout(kind), kind.dropout, kind.labels
    zero, one, prefetch_row = T(0), T(1), _prefetch_row()
    layout = kind.x or Layout(kind.dtype)
    value_in_x, x_size = value_of(layout, kind.dtype), layout.size

    def source(table, start, row):
        # Number of the row of x and y: by the order of the pass, or by its position in the ring.
        order = field(table + H.order)
        if order != 0:
            return np.int64(read_row_number(order + (start + row) * 4)[0])
        return start % field(table + H.ring_rows) + row

    source = device(source)

    def gather(table, number, rows, next_rows, padded_rows, ever, column_lane, row_lane):
        # next_rows: rows of the next batch, which are asked for while this one is computed; 0: there is none.
        batch, layer = field(table + H.batch_rows), table + FIRST
        start, x, y = number * batch, field(table + H.x), field(table + H.y)
        stages = field(table + H.stages)
        columns, x_stride = field(layer + L.inputs), field(layer + L.x_stride)
        into, targets = resolve(table, layer + L.x), resolve(table, table + H.targets)
        last = table + FIRST + (field(table + H.num_layers) - 1) * RECORD
        outputs, t_stride = field(last + L.outputs), field(last + L.row_stride)
        drops = uses_dropout and field(table + H.threshold) != 0
        for row in range(row_lane, padded_rows, row_lanes):
            from_row = source(table, start, row) if row < rows else 0
            next_row = source(table, start + batch, row) if row < next_rows else -1
            # features, and a column of ones for the bias
            for j in range(column_lane, x_stride // size, COLUMN_LANES):
                value = one if j == columns else zero
                if j < columns and row < rows:
                    value = value_in_x(x, stages, columns, from_row, j)
                    if drops:
                        value = dropout(value, table + H.scale, row * columns + j, ever)
                store((into,), row * x_stride + j * size, ((value,),))
            # targets
            if labels:
                if column_lane == 0 and row < rows:
                    write_word(targets + row * 8, read_global(y + from_row * 8)[0])
            elif row < rows:
                for j in range(column_lane, outputs, COLUMN_LANES):
                    store((targets,), row * t_stride + j * size, load((y,), (from_row * outputs + j) * size))
            # the same row of the next batch
            if next_row >= 0:
                y_size = 8 if labels else outputs * size
                prefetch_row(x + next_row * columns * x_size, columns * x_size, column_lane)
                prefetch_row(y + next_row * y_size, y_size, column_lane)

    return device(gather)


# ---------------------------------------------------------------- layers
def _forward(kind):
    row_lanes = kind.threads // COLUMN_LANES
    T, size = getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    dropout, uses_dropout = _dropout(kind), kind.dropout
    activate = _by_index([ACTIVATIONS[name].value for name in kind.activations])
    multiply, zero, one = product(kind.dtype, True, False, kind.threads), T(0), T(1)

    def forward(table, layer, padded_rows, ever, tid, column_lane, row_lane):
        x, w = resolve(table, layer + L.x), resolve(table, layer + L.weights)
        y, saved = resolve(table, layer + L.y), resolve(table, layer + L.saved)
        x_stride, row_stride = field(layer + L.x_stride), field(layer + L.row_stride)
        inputs, columns = field(layer + L.inputs), field(layer + L.outputs)
        # z = x w + b
        multiply(tid, x, x_stride, w, row_stride, y, row_stride, padded_rows, columns, inputs + 1)
        cuda.syncthreads()
        # y = dropout(f(z)), and a column of ones for the next layer's bias
        activation, slope_of_z = field(layer + L.activation), field(layer + L.slope_of_z)
        drops = uses_dropout and field(layer + L.threshold) != 0
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, value = row * row_stride + j * size, one if j == columns else zero
                if j < columns:
                    z = load((y,), at)[0][0]
                    value = activate(activation, z)
                    if saved != y:
                        store((saved,), at, ((z if slope_of_z != 0 else value,),))
                    if drops:
                        value = dropout(value, layer + L.scale, row * columns + j, ever)
                store((y,), at, ((value,),))
        cuda.syncthreads()

    return device(forward)


def _slopes(kind):
    row_lanes = kind.threads // COLUMN_LANES
    T, size = getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    dropout, uses_dropout = _dropout(kind), kind.dropout
    slope, zero = _by_index([ACTIVATIONS[name].slope for name in kind.activations]), T(0)

    def slopes(table, layer, dy, padded_rows, ever, column_lane, row_lane):
        # dz = dropout(dy) f'(saved), in place
        saved, activation = resolve(table, layer + L.saved), field(layer + L.activation)
        row_stride, columns = field(layer + L.row_stride), field(layer + L.outputs)
        drops = uses_dropout and field(layer + L.threshold) != 0
        for row in range(row_lane, padded_rows, row_lanes):
            for j in range(column_lane, row_stride // size, COLUMN_LANES):
                at, value = row * row_stride + j * size, zero
                if j < columns:
                    value = load((dy,), at)[0][0]
                    if drops:
                        value = dropout(value, layer + L.scale, row * columns + j, ever)
                    value = value * slope(activation, load((saved,), at)[0][0])
                store((dy,), at, ((value,),))
        cuda.syncthreads()

    return device(slopes)


# ---------------------------------------------------------------- the step
def _state_access(dtype, count):
    """Functions that find, load and store the `count` states of an element; without states they do nothing."""

    def no_addresses(record):
        return ()

    def load_none(addresses, at):
        return ((),)

    def store_none(addresses, at, lanes):
        pass

    if not count:
        return device(no_addresses), device(load_none), device(store_none)
    return reader("int64", count, SHARED), loader(dtype, 1, ANY), storer(dtype, 1, ANY)


def _update(kind):
    row_lanes = kind.threads // COLUMN_LANES
    row_of_rule, size = OPTIMIZERS[kind.rule], np.dtype(kind.dtype).itemsize
    rule, load, store = device(row_of_rule.rule), loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    state_addresses, load_states, store_states = _state_access(kind.dtype, len(row_of_rule.states))
    read_scalars = reader(kind.dtype, NUM_SCALARS + 1, SHARED)

    def update(table, layer, state_base, column_lane, row_lane):
        # state_base: generic address of shared memory if states are there, else 0.
        scalars = read_scalars(resolve(table, table + H.step_scalars))
        h, tiny = scalars[:NUM_SCALARS], scalars[NUM_SCALARS]
        w, dw = resolve(table, layer + L.weights), resolve(table, layer + L.dw)
        inputs, columns = field(layer + L.inputs), field(layer + L.outputs)
        row_stride = field(layer + L.row_stride)
        w_states, b_states = state_addresses(layer + L.w_states), state_addresses(layer + L.b_states)
        # rows of w, then the bias
        for row in range(row_lane, inputs + field(layer + L.bias), row_lanes):
            states = w_states if row < inputs else b_states
            first = state_base + (row * columns * size if row < inputs else 0)
            for j in range(column_lane, columns, COLUMN_LANES):
                at = row * row_stride + j * size
                p, g = load((w,), at)[0][0], load((dw,), at)[0][0]
                p, s = rule(p, g, load_states(states, first + j * size)[0], h, tiny)
                store((w,), at, ((p,),))
                store_states(states, first + j * size, (s,))

    return device(update)


def _transfer(kind):
    """Copy parameters, and states if they are resident, between global and shared memory."""
    row_lanes = kind.threads // COLUMN_LANES
    size, num_states = np.dtype(kind.dtype).itemsize, len(OPTIMIZERS[kind.rule].states)
    load, store = loader(kind.dtype, 1), storer(kind.dtype, 1)
    load_shared, store_shared = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)

    def copy(array, shared, row_stride, rows, columns, to_global, column_lane, row_lane):
        for row in range(row_lane, rows, row_lanes):
            for j in range(column_lane, columns, COLUMN_LANES):
                at, shared_at = (row * columns + j) * size, row * row_stride + j * size
                if to_global:
                    store((array,), at, load_shared((shared,), shared_at))
                else:
                    store_shared((shared,), shared_at, load((array,), at))

    copy = device(copy)

    def transfer(table, to_global, column_lane, row_lane):
        for number in range(field(table + H.num_layers)):
            layer = table + FIRST + number * RECORD
            inputs, columns, row_stride = field(layer + L.inputs), field(layer + L.outputs), field(layer + L.row_stride)
            w, bias = resolve(table, layer + L.weights), field(layer + L.bias)
            # parameters, where the bias is the last row of w
            copy(field(layer + L.w), w, row_stride, inputs, columns, to_global, column_lane, row_lane)
            b = w + inputs * row_stride
            copy(field(layer + L.b), b, row_stride, bias, columns, to_global, column_lane, row_lane)
            # states
            if field(table + H.states_resident) != 0:
                for i in range(num_states):
                    at = layer + i * 8
                    w, b = resolve(table, at + L.w_states), resolve(table, at + L.b_states)
                    w_state, b_state = field(at + L.w_state_addresses), field(at + L.b_state_addresses)
                    copy(w_state, w, columns * size, inputs, columns, to_global, column_lane, row_lane)
                    copy(b_state, b, columns * size, bias, columns, to_global, column_lane, row_lane)

    return device(transfer)


# ---------------------------------------------------------------- the kernel
def _backward(kind):
    """Gradients of all parameters, from the last layer to the first."""
    slopes, threads = _slopes(kind), kind.threads
    inputs_product = product(kind.dtype, True, True, threads)
    weights_product = product(kind.dtype, False, False, threads)

    def backward(table, last, padded_rows, ever, tid, column_lane, row_lane):
        dz, dx = resolve(table, table + H.gradient), resolve(table, table + H.other_gradient)
        for i in range(field(table + H.num_layers)):
            layer = last - i * RECORD
            if field(layer + L.skips_slopes) == 0:
                slopes(table, layer, dz, padded_rows, ever, column_lane, row_lane)
            x, w, dw = resolve(table, layer + L.x), resolve(table, layer + L.weights), resolve(table, layer + L.dw)
            inputs, columns = field(layer + L.inputs), field(layer + L.outputs)
            x_stride, row_stride = field(layer + L.x_stride), field(layer + L.row_stride)
            # dx = dz w'
            if layer != table + FIRST:
                inputs_product(tid, dz, row_stride, w, row_stride, dx, x_stride, padded_rows, inputs, columns)
            # dw = x' dz: where tiles are fewer than threads, threads without a tile of dx come first
            other = threads - 1 - tid
            weights_product(other, x, x_stride, dz, row_stride, dw, row_stride, inputs + 1, columns, padded_rows)
            dz, dx = dx, dz
            cuda.syncthreads()

    return device(backward)


def _fused(kind):
    size, element = np.dtype(kind.dtype).itemsize, cuda.types.float64
    gather, forward, backward, update, transfer = (
        make(kind) for make in (_gather, _forward, _backward, _update, _transfer)
    )
    loss_and_metrics = row_loss(kind, device(_barrier)) if LOSSES[kind.loss].by_row else elementwise_loss(kind)
    threads, (partial_sums, total_sum) = kind.threads, block_sums(kind)
    shared_address, generic_address = address_in(SHARED), address_in(ANY)
    load_scalar, store_scalar = loader(kind.dtype, 1), storer(kind.dtype, 1, SHARED)
    of_classes, of_values = ([name for name in kind.metrics if METRICS[name].of_classes is so] for so in (True, False))
    add_hits, add_values = add_metrics(kind, of_classes), add_metrics(kind, of_values)
    no_hits, no_values = (0,) * max(1, len(of_classes)), (0.0,) * max(1, len(of_values))

    def train(plan, count):
        # plan: address of HEAD and LAYERs in global memory; count: batches, from the clock's on.
        memory = cuda.shared.array(0, element)
        table = (shared_address(memory) + VECTOR - 1) // VECTOR * VECTOR
        generic = (generic_address(memory) + VECTOR - 1) // VECTOR * VECTOR
        tid = cuda.threadIdx.x
        column_lane, row_lane = tid % COLUMN_LANES, tid // COLUMN_LANES
        # records to shared memory, zeros to all that follows
        num_layers = read_global(plan + H.num_layers)[0]
        end = FIRST + num_layers * RECORD
        for at in range(tid * 8, read_global(plan + H.shared_bytes)[0], threads * 8):
            write_word(table + at, read_global(plan + at)[0] if at < end else 0)
        cuda.syncthreads()
        # parameters and states to shared memory
        transfer(table, False, column_lane, row_lane)
        state_base = generic if field(table + H.states_resident) != 0 else 0
        clock, last = field(table + H.clock), table + FIRST + (num_layers - 1) * RECORD
        begin, begin_ever = read_global(clock + BATCH)[0], read_global(clock + EVER)[0]
        batch, thread_sums = field(table + H.batch_rows), resolve(table, table + H.thread_sums)
        hits, value_sums = no_hits, no_values
        for i in range(count):
            number, ever = begin + i, begin_ever + i
            rest = field(table + H.pass_rows) - number * batch
            rows = min(batch, rest)
            next_rows = min(batch, rest - batch) if i + 1 < count else 0
            padded_rows = (rows + DEPTH - 1) // DEPTH * DEPTH
            cuda.syncthreads()  # the update before has ended
            # rows of the batch, scalars of the step
            gather(table, number, rows, next_rows, padded_rows, ever, column_lane, row_lane)
            scalars, step_scalars = field(table + H.scalars) + number * ROW, resolve(table, table + H.step_scalars)
            for k in range(tid, NUM_SCALARS + 1, threads):
                store_scalar((step_scalars,), k * size, load_scalar((scalars,), k * size))
            cuda.syncthreads()
            # forward
            for k in range(num_layers):
                forward(table, table + FIRST + k * RECORD, padded_rows, ever, tid, column_lane, row_lane)
            # loss, its gradient, metrics
            total, value_sums, hits = loss_and_metrics(
                table, last, rows, padded_rows, value_sums, hits, tid, column_lane, row_lane
            )
            write_double(thread_sums + tid * 8, total)
            cuda.syncthreads()
            partial_sums(thread_sums, tid)
            # backward
            backward(table, last, padded_rows, ever, tid, column_lane, row_lane)
            # the loss, by a thread whose lane has no more rows to update than others
            if tid == threads - 1:
                write_total(field(table + H.losses) + number * 8, total_sum(thread_sums))
            # update
            for k in range(num_layers):
                update(table, table + FIRST + k * RECORD, state_base, column_lane, row_lane)
        cuda.syncthreads()
        # parameters and states back to global memory, metrics, the clock
        transfer(table, True, column_lane, row_lane)
        add_hits(table, hits, tid)
        add_values(table, value_sums, tid)
        if tid == 0:
            write_global(clock + BATCH, begin + count)
            write_global(clock + EVER, begin_ever + count)

    return train


@cache
def _fused_kernel(kind: Kind) -> Kernel:
    return Kernel(_fused(kind), kind.name, kind.registers)


def fused_kernel(kind: Kind) -> Kernel:
    """The kernel of a kind; rows of OPTIMIZERS with the same rule share it."""
    first = next(name for name, row in OPTIMIZERS.items() if row.rule is OPTIMIZERS[kind.rule].rule)
    return _fused_kernel(kind._replace(rule=first))
