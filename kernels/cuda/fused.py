"""Training of a small network as one kernel: many batches, with all that belongs to each, in one block.

What such a network costs as launches is the launches: 14 for two layers, 2 us each or more, for 1 us of arithmetic. Here
parameters, activations and gradients stay in a multiprocessor's shared memory from batch to batch, and what was a launch
is a meeting of the block's threads:

    gather | forward | activate ... | loss | slopes | inputs, weights ... | update      | = all meet

A layer's bias is the last row of its weights, for the last column of what it multiplies is 1. So it needs nothing of its
own: products add it, and make its gradient. Rows are filled up with zeros to an odd number of vectors (`tiles.py`), and a
batch to a multiple of DEPTH rows, whose gradients are 0.

The kernel is made from the formulas of what a network uses. Its sizes are data (HEAD, LAYER), so that one kernel serves
networks of any depth and width. The sums of the loss are taken in float64, all else in the network's own dtype.
"""

from __future__ import annotations

import math
from collections import namedtuple
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from ..formulas import ACTIVATIONS, HYPER, LOSSES, OPTIMIZERS, dropout_draw, dropout_key
from .compile import SIMULATED, Kernel, device
from .layout import CLOCK, ROW, offset
from .primitives import ANY, SHARED, VECTOR, address_in, loader, reader, storer, word, writer
from .tiles import DEPTH, product

THREADS = 8 if SIMULATED else 512  # of the block: half of what there may be leaves each 128 registers
LANES = 4 if SIMULATED else 32  # threads side by side in a row, one behind the other for rows
DEEP = THREADS // LANES
STATES = 3  # of a rule, at most

# The network. Places in shared memory are counted from its beginning, where HEAD and the layers lie themselves.
HEAD = np.dtype([
    ("layers", "i8"),
    ("bytes", "i8"),  # of shared memory
    ("resident", "i8"),  # whether states lie there as well
    ("batch", "i8"),  # rows of a batch
    ("total", "i8"),  # rows of a pass
    ("ring", "i8"),  # rows of x and y
    ("x", "i8"), ("y", "i8"),  # rows of features and of targets, or labels
    ("order", "i8"),  # of rows; 0: as they come
    ("scalars", "i8"),  # ROW bytes for each step
    ("clock", "i8"),
    ("losses", "i8"),  # a float64 for each batch
    ("sums", "i8"), ("metrics", "i8"), ("metric", "i8", (4,)),  # a float64 for each metric, which is one of KINDS
    ("z_boundary", "f8"), ("t_boundary", "f8"), ("param", "f8"),  # of the loss
    ("targets", "i8"), ("gradient", "i8"), ("other", "i8"), ("rows", "i8"), ("totals", "i8"),  # in shared memory
    ("hyper", "i8"),
    ("scale", "f8"), ("threshold", "i8"), ("stream", "u8"),  # dropout of x; threshold 0: none
])  # fmt: skip

LAYER = np.dtype([
    ("inputs", "i8"), ("outputs", "i8"),
    ("x_gap", "i8"), ("gap", "i8"),  # bytes from row to row of x; of y, w and the gradients
    ("activation", "i8"),  # its place among those that the kernel knows
    ("before", "i8"),  # whether its slope is one of z
    ("plain", "i8"),  # whether its slope is 1, and nothing is dropped
    ("bias", "i8"),
    ("w", "i8"), ("b", "i8"),  # where they come from
    ("x", "i8"), ("weights", "i8"), ("y", "i8"), ("s", "i8"), ("dw", "i8"),  # in shared memory
    ("w_states", "i8", (STATES,)), ("b_states", "i8", (STATES,)),  # in shared memory if resident
    ("w_homes", "i8", (STATES,)), ("b_homes", "i8", (STATES,)),  # where they come from
    ("scale", "f8"), ("threshold", "i8"), ("stream", "u8"),  # dropout of y
])  # fmt: skip



def _offsets(kind: np.dtype[Any]) -> Any:
    """Of the fields of a record, by their names, as kernels can read them."""
    names = kind.names or ()
    return namedtuple("Offsets", names)(*[offset(kind, name) for name in names])  # type: ignore[misc]


H, L = _offsets(HEAD), _offsets(LAYER)
FIRST, RECORD = HEAD.itemsize, LAYER.itemsize
BATCH, EVER = offset(CLOCK, "batch"), offset(CLOCK, "ever")
KINDS = ("accuracy", "squared", "absolute")  # of metrics, by their number in HEAD

read_global, write_global = reader("int64", 1), writer("int64")
read_total, write_total = reader("float64", 1), writer("float64")
read_word, write_word = reader("int64", 1, SHARED), writer("int64", SHARED)
read_double, write_double = reader("float64", 1, SHARED), writer("float64", SHARED)


class Kind(NamedTuple):
    """What the code of a kernel depends on."""

    rule: str  # a row of OPTIMIZERS
    activations: tuple[str, ...]
    loss: str
    labels: bool
    link: str | None
    metrics: frozenset[str]  # of "accuracy", "squared", "absolute"
    dropout: bool
    dtype: str

    @property
    def name(self) -> str:
        parts = OPTIMIZERS[self.rule].rule.__name__, *self.activations, self.loss, *sorted(self.metrics)
        return "_".join(["fused", *parts, *["dropout"] * self.dropout, str(self.link), self.dtype])


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


def _whole(rows):
    """Rows of a batch with those that it is filled up with."""
    return (rows + DEPTH - 1) // DEPTH * DEPTH


def _place(table, at):
    """A place in shared memory that a record names, as an address."""
    return table + read_word(table + at)[0]


whole, place = device(_whole), device(_place)


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
    real, size = getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1), storer(kind.dtype, 1, SHARED)
    masked, labels, dropout = device(_masked(kind.dtype)[not kind.dropout]), kind.labels, kind.dropout
    zero, one = real(0), real(1)

    def source(table, start, row):
        order = read_word(table + H.order)[0]
        return read_global(order + (start + row) * 8)[0] if order != 0 else start % read_word(table + H.ring)[0] + row

    source = device(source)

    def gather(table, number, rows, ever, lane, deep):
        start, layer = number * read_word(table + H.batch)[0], table + FIRST
        x, y = read_word(table + H.x)[0], read_word(table + H.y)[0]
        columns, gap = read_word(layer + L.inputs)[0], read_word(layer + L.x_gap)[0]
        into, targets = place(table, FIRST + L.x), place(table, H.targets)
        last = table + FIRST + (read_word(table + H.layers)[0] - 1) * RECORD
        outputs, t_gap = read_word(last + L.outputs)[0], read_word(last + L.gap)[0]
        dropped = dropout and read_word(table + H.threshold)[0] != 0
        for row in range(deep, whole(rows), DEEP):
            there = source(table, start, row) if row < rows else 0
            for j in range(lane, gap // size, LANES):
                value = one if j == columns else zero
                if j < columns and row < rows:
                    value = load((x,), (there * columns + j) * size)[0][0]
                    if dropped:
                        value = masked(value, table + H.scale, row * columns + j, ever)
                store((into,), row * gap + j * size, ((value,),))
            if labels:
                if lane == 0 and row < rows:
                    write_word(targets + row * 8, read_global(y + there * 8)[0])
            elif row < rows:
                for j in range(lane, outputs, LANES):
                    store((targets,), row * t_gap + j * size, load((y,), (there * outputs + j) * size))

    return device(gather)


# ---------------------------------------------------------------- layers
def _forward(kind):
    real, size = getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    masked, dropout = device(_masked(kind.dtype)[not kind.dropout]), kind.dropout
    activate = _chosen([ACTIVATIONS[name].value for name in kind.activations])
    multiply, zero, one = product(kind.dtype, True, False, THREADS), real(0), real(1)

    def forward(table, layer, rows, ever, me, lane, deep):
        x, w = table + read_word(layer + L.x)[0], table + read_word(layer + L.weights)[0]
        y, s = table + read_word(layer + L.y)[0], table + read_word(layer + L.s)[0]
        x_gap, gap, columns = read_word(layer + L.x_gap)[0], read_word(layer + L.gap)[0], read_word(layer + L.outputs)[0]
        multiply(me, x, x_gap, w, gap, y, gap, whole(rows), columns, read_word(layer + L.inputs)[0] + 1)
        cuda.syncthreads()
        which, before = read_word(layer + L.activation)[0], read_word(layer + L.before)[0]
        dropped = dropout and read_word(layer + L.threshold)[0] != 0
        for row in range(deep, whole(rows), DEEP):
            for j in range(lane, gap // size, LANES):
                at, value = row * gap + j * size, one if j == columns else zero
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
    real, size = getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    masked, dropout = device(_masked(kind.dtype)[not kind.dropout]), kind.dropout
    slope, zero = _chosen([ACTIVATIONS[name].slope for name in kind.activations]), real(0)

    def slopes(table, layer, dy, rows, ever, lane, deep):
        # dy becomes dz.
        s, which = table + read_word(layer + L.s)[0], read_word(layer + L.activation)[0]
        gap, columns = read_word(layer + L.gap)[0], read_word(layer + L.outputs)[0]
        dropped = dropout and read_word(layer + L.threshold)[0] != 0
        for row in range(deep, whole(rows), DEEP):
            for j in range(lane, gap // size, LANES):
                at, value = row * gap + j * size, zero
                if j < columns:
                    value = load((dy,), at)[0][0]
                    if dropped:
                        value = masked(value, layer + L.scale, row * columns + j, ever)
                    value = value * slope(which, load((s,), at)[0][0])
                store((dy,), at, ((value,),))
        cuda.syncthreads()

    return device(slopes)


# ---------------------------------------------------------------- loss and metrics
def _errors(kind):
    """The errors that metrics add up, of an output as it is shown and its target."""
    squared = device(LOSSES["mean_squared_error"].value)
    absolute = device(LOSSES["mean_absolute_error"].value)
    real = getattr(np, kind.dtype)

    def both(found, y, t):
        a = real(0)
        return found[0] + np.float64(squared(y, t, a)), found[1] + np.float64(absolute(y, t, a))

    def neither(found, y, t):
        return found

    return device(both if kind.metrics & {"squared", "absolute"} else neither)


def _best(kind):
    load, size = loader(kind.dtype, 1, SHARED), np.dtype(kind.dtype).itemsize

    def best(row, columns):
        found, most = 0, load((row,), 0)[0][0]
        for j in range(1, columns):
            x = load((row,), j * size)[0][0]
            if x > most:
                found, most = j, x
        return found

    return device(best)


def _right(kind):
    """Whether the class of a row is right: of a single output, the side of the boundaries that it is on."""
    load, real, best, labels = loader(kind.dtype, 1, SHARED), getattr(np, kind.dtype), _best(kind), kind.labels

    def of_label(table, z, t, row, gap, columns):
        return best(z + row * gap, columns) == read_word(t + row * 8)[0]

    def of_targets(table, z, t, row, gap, columns):
        ours, theirs = z + row * gap, t + row * gap
        if columns > 1:
            return best(ours, columns) == best(theirs, columns)
        z_boundary, t_boundary = read_double(table + H.z_boundary)[0], read_double(table + H.t_boundary)[0]
        return (load((ours,), 0)[0][0] > real(z_boundary)) == (load((theirs,), 0)[0][0] > real(t_boundary))

    def uncounted(table, z, t, row, gap, columns):
        return False

    return device((of_label if labels else of_targets) if "accuracy" in kind.metrics else uncounted)


def _judge_elements(kind):
    row_of_loss, real, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope, errors, right = device(row_of_loss.value), device(row_of_loss.slope), _errors(kind), _right(kind)
    shown = device(ACTIVATIONS[kind.link or "linear"].value)
    zero = real(0)

    def judge(table, layer, rows, found, count, me, lane, deep):
        z, t, dz = place(table, layer - table + L.y), place(table, H.targets), place(table, H.gradient)
        gap, columns = read_word(layer + L.gap)[0], read_word(layer + L.outputs)[0]
        a, scale = real(read_double(table + H.param)[0]), real(1.0 / (rows * columns))
        for row in range(me, rows, THREADS):
            if right(table, z, t, row, gap, columns):
                count += 1
        total = 0.0
        for row in range(deep, whole(rows), DEEP):
            for j in range(lane, gap // size, LANES):
                at, d = row * gap + j * size, zero
                if j < columns and row < rows:
                    x, y = load((z,), at)[0][0], load((t,), at)[0][0]
                    total += np.float64(value(x, y, a))
                    d = slope(x, y, a) * scale
                    found = errors(found, shown(x), y)
                store((dz,), at, ((d,),))
        return total, found, count

    return device(judge)


def _judge_rows(kind):
    row_of_loss, real, size = LOSSES[kind.loss], getattr(np, kind.dtype), np.dtype(kind.dtype).itemsize
    load, store = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    value, slope, errors, right = device(row_of_loss.value), device(row_of_loss.slope), _errors(kind), _right(kind)
    zero, one, tiny, least = real(0), real(1), real(np.finfo(kind.dtype).tiny), real(-math.inf)
    labels, linked = kind.labels, kind.link is not None

    def judge(table, layer, rows, found, count, me, lane, deep):
        # Threads of a row would wait for each other at every step of a sum; so one goes along a row for its largest
        # element and its mass, and exponentials are everybody's. `tops` (3, batch): that, log(mass) and 1 / mass.
        z, t, dz = place(table, layer - table + L.y), place(table, H.targets), place(table, H.gradient)
        gap, columns = read_word(layer + L.gap)[0], read_word(layer + L.outputs)[0]
        tops, span = place(table, H.rows), read_word(table + H.batch)[0] * size
        smooth = real(read_double(table + H.param)[0])
        floor, keep, scale = smooth / real(columns), one - smooth, real(1.0 / rows)
        for row in range(me, rows, THREADS):
            top = least
            for j in range(columns):
                x = load((z,), row * gap + j * size)[0][0]
                top = x if x > top else top
            store((tops,), row * size, ((top,),))
            if right(table, z, t, row, gap, columns):
                count += 1
        cuda.syncthreads()
        for row in range(deep, whole(rows), DEEP):
            for j in range(lane, gap // size, LANES):
                at, e = row * gap + j * size, zero
                if j < columns and row < rows:
                    e = real(math.exp(load((z,), at)[0][0] - load((tops,), row * size)[0][0]))
                store((dz,), at, ((e,),))
        cuda.syncthreads()
        for row in range(me, rows, THREADS):
            mass = zero
            for j in range(columns):
                mass += load((dz,), row * gap + j * size)[0][0]
            store((tops,), span + row * size, ((real(math.log(mass)),),))
            store((tops,), 2 * span + row * size, ((one / mass,),))
        cuda.syncthreads()
        total = 0.0
        for row in range(deep, rows, DEEP):
            top, log_sum = load((tops,), row * size)[0][0], load((tops,), span + row * size)[0][0]
            share = load((tops,), 2 * span + row * size)[0][0]
            label = read_word(t + row * 8)[0] if labels else 0
            for j in range(lane, columns, LANES):
                at = row * gap + j * size
                if labels:  # noqa: SIM108 (as in losses.py)
                    target = one if j == label else zero
                else:
                    target = load((t,), at)[0][0]
                x, p = load((z,), at)[0][0], load((dz,), at)[0][0] * share
                found = errors(found, p if linked else x, target)
                target = target * keep + floor
                if target != zero:
                    total += np.float64(value(x - top, target, log_sum))
                g = slope(p, target) * scale
                store((dz,), at, ((zero if abs(g) < tiny else g,),))
        return total, found, count

    return device(judge)


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
    row_of_rule, size = OPTIMIZERS[kind.rule], np.dtype(kind.dtype).itemsize
    rule, load, store = device(row_of_rule.rule), loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)
    states_at, load_states, store_states = _states_of(kind.dtype, len(row_of_rule.states))
    read_scalars = reader(kind.dtype, HYPER + 1, SHARED)

    def update(table, layer, anywhere, lane, deep):
        # anywhere: what states' places are counted from.
        scalars = read_scalars(place(table, H.hyper))
        h, tiny = scalars[:HYPER], scalars[HYPER]
        w, dw = table + read_word(layer + L.weights)[0], table + read_word(layer + L.dw)[0]
        inputs, columns = read_word(layer + L.inputs)[0], read_word(layer + L.outputs)[0]
        gap, of_w, of_b = read_word(layer + L.gap)[0], states_at(layer + L.w_states), states_at(layer + L.b_states)
        for row in range(deep, inputs + read_word(layer + L.bias)[0], DEEP):
            states = of_w if row < inputs else of_b
            first = anywhere + (row * columns * size if row < inputs else 0)
            for j in range(lane, columns, LANES):
                at = row * gap + j * size
                p, g = load((w,), at)[0][0], load((dw,), at)[0][0]
                p, s = rule(p, g, load_states(states, first + j * size)[0], h, tiny)
                store((w,), at, ((p,),))
                store_states(states, first + j * size, (s,))

    return device(update)


def _moved(kind):
    """Parameters, and states if they are resident, from their homes and back."""
    size, states = np.dtype(kind.dtype).itemsize, len(OPTIMIZERS[kind.rule].states)
    load, store = loader(kind.dtype, 1), storer(kind.dtype, 1)
    load_here, store_here = loader(kind.dtype, 1, SHARED), storer(kind.dtype, 1, SHARED)

    def move(home, here, gap, rows, columns, back, lane, deep):
        for row in range(deep, rows, DEEP):
            for j in range(lane, columns, LANES):
                there, at = (row * columns + j) * size, row * gap + j * size
                if back:
                    store((home,), there, load_here((here,), at))
                else:
                    store_here((here,), at, load((home,), there))

    move = device(move)

    def moved(table, back, lane, deep):
        for number in range(read_word(table + H.layers)[0]):
            layer = table + FIRST + number * RECORD
            inputs, columns, gap = (
                read_word(layer + L.inputs)[0], read_word(layer + L.outputs)[0], read_word(layer + L.gap)[0],
            )  # fmt: skip
            w, bias = table + read_word(layer + L.weights)[0], read_word(layer + L.bias)[0]
            move(read_word(layer + L.w)[0], w, gap, inputs, columns, back, lane, deep)
            move(read_word(layer + L.b)[0], w + inputs * gap, gap, bias, columns, back, lane, deep)
            if read_word(table + H.resident)[0] != 0:
                for i in range(states):
                    at = layer + i * 8
                    w, b = table + read_word(at + L.w_states)[0], table + read_word(at + L.b_states)[0]
                    move(read_word(at + L.w_homes)[0], w, columns * size, inputs, columns, back, lane, deep)
                    move(read_word(at + L.b_homes)[0], b, columns * size, bias, columns, back, lane, deep)

    return device(moved)


def _sum_up(totals, me):
    """The first step of a sum of THREADS numbers: LANES are left."""
    if me < LANES:
        total = 0.0
        for i in range(me, THREADS, LANES):
            total += read_double(totals + i * 8)[0]
        write_double(totals + me * 8, total)


def _last_sum(totals):
    total = 0.0
    for i in range(LANES):
        total += read_double(totals + i * 8)[0]
    return total


sum_up, last_sum = device(_sum_up), device(_last_sum)


def _store_metric(table, number, value, me):
    """The sum of all threads' values, added where each metric of this number is kept."""
    totals = place(table, H.totals)
    write_double(totals + me * 8, value)
    cuda.syncthreads()
    sum_up(totals, me)
    cuda.syncthreads()
    if me == 0:
        total = last_sum(totals)
        for i in range(read_word(table + H.metrics)[0]):
            if read_word(table + H.metric + i * 8)[0] == number:
                at = read_word(table + H.sums)[0] + i * 8
                write_total(at, read_total(at)[0] + total)
    cuda.syncthreads()


store_metric = device(_store_metric)


# ---------------------------------------------------------------- the kernel
def _fused(kind):
    size, element = np.dtype(kind.dtype).itemsize, cuda.types.float64
    gather, forward, slopes, update, moved = (
        make(kind) for make in (_gather, _forward, _slopes, _update, _moved)
    )
    judge = (_judge_rows if LOSSES[kind.loss].by_row else _judge_elements)(kind)
    inputs_product, weights_product = product(kind.dtype, True, True, THREADS), product(kind.dtype, False, False, THREADS)
    address_here, address_anywhere = address_in(SHARED), address_in(ANY)
    load_scalar, store_scalar = loader(kind.dtype, 1), storer(kind.dtype, 1, SHARED)
    accuracy, errors = "accuracy" in kind.metrics, bool(kind.metrics & {"squared", "absolute"})

    def train(plan, count):
        # plan: address of HEAD and LAYERs; count: of batches, from the clock's on.
        memory = cuda.shared.array(0, element)
        table = (address_here(memory) + VECTOR - 1) // VECTOR * VECTOR
        anywhere = (address_anywhere(memory) + VECTOR - 1) // VECTOR * VECTOR
        me = cuda.threadIdx.x
        lane, deep = me % LANES, me // LANES
        layers = read_global(plan + H.layers)[0]
        end = FIRST + layers * RECORD
        for at in range(me * 8, read_global(plan + H.bytes)[0], THREADS * 8):
            write_word(table + at, read_global(plan + at)[0] if at < end else 0)
        cuda.syncthreads()
        moved(table, False, lane, deep)
        states = anywhere if read_word(table + H.resident)[0] != 0 else 0
        clock, last = read_word(table + H.clock)[0], table + FIRST + (layers - 1) * RECORD
        begin, ever = read_global(clock + BATCH)[0], read_global(clock + EVER)[0]
        batch, totals = read_word(table + H.batch)[0], place(table, H.totals)
        right, found = 0, (0.0, 0.0)
        for turn in range(count):
            number, now = begin + turn, ever + turn
            rows = min(batch, read_word(table + H.total)[0] - number * batch)
            cuda.syncthreads()  # all have updated
            gather(table, number, rows, now, lane, deep)
            scalars, hyper = read_word(table + H.scalars)[0] + number * ROW, place(table, H.hyper)
            for i in range(me, HYPER + 1, THREADS):
                store_scalar((hyper,), i * size, load_scalar((scalars,), i * size))
            cuda.syncthreads()
            for i in range(layers):
                forward(table, table + FIRST + i * RECORD, rows, now, me, lane, deep)
            total, found, right = judge(table, last, rows, found, right, me, lane, deep)
            write_double(totals + me * 8, total)
            cuda.syncthreads()
            sum_up(totals, me)
            dz, other = place(table, H.gradient), place(table, H.other)
            for i in range(layers):
                layer = last - i * RECORD
                if read_word(layer + L.plain)[0] == 0:
                    slopes(table, layer, dz, rows, now, lane, deep)
                x, w = table + read_word(layer + L.x)[0], table + read_word(layer + L.weights)[0]
                dw, columns = table + read_word(layer + L.dw)[0], read_word(layer + L.outputs)[0]
                x_gap, gap, inputs = (
                    read_word(layer + L.x_gap)[0], read_word(layer + L.gap)[0], read_word(layer + L.inputs)[0],
                )  # fmt: skip
                if layer != table + FIRST:
                    inputs_product(me, dz, gap, w, gap, other, x_gap, whole(rows), inputs, columns)
                # Where there are fewer tiles than threads, those that had none above come first.
                weights_product(THREADS - 1 - me, x, x_gap, dz, gap, dw, gap, inputs + 1, columns, whole(rows))
                dz, other = other, dz
                cuda.syncthreads()
            if me == 0:
                write_total(read_word(table + H.losses)[0] + number * 8, last_sum(totals))
            for i in range(layers):
                update(table, table + FIRST + i * RECORD, states, lane, deep)
        cuda.syncthreads()
        moved(table, True, lane, deep)
        if accuracy:
            store_metric(table, 0, np.float64(right), me)
        if errors:
            store_metric(table, 1, found[0], me)
            store_metric(table, 2, found[1], me)
        if me == 0:
            write_global(clock + BATCH, begin + count)
            write_global(clock + EVER, ever + count)

    return train


@cache
def _fused_kernel(kind: Kind) -> Kernel:
    return Kernel(_fused(kind), kind.name)


def fused_kernel(kind: Kind) -> Kernel:
    """Rows of OPTIMIZERS with the same rule share a kernel."""
    first = next(name for name, row in OPTIMIZERS.items() if row.rule is OPTIMIZERS[kind.rule].rule)
    return _fused_kernel(kind._replace(rule=first))
