"""Every kernel of the tables once, on small arrays: for tests of all of them, and as a script for compute-sanitizer.

compute-sanitizer --tool racecheck python tests/helpers_every.py ours
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from helpers_cuda import SIMULATED, Bits, to_device

from fastopt.kernels import cuda
from fastopt.kernels.cuda.dense import epilogues, losses, metrics, normalization, rows
from fastopt.kernels.cuda.dense.blaslt_simulator import decode, encode
from fastopt.kernels.cuda.dense.epilogues import TILE_ROWS, Shape
from fastopt.kernels.cuda.kernels import all_kernels, forms_of
from fastopt.kernels.cuda.optim.updates import update_kernel
from fastopt.kernels.cuda.runtime.array_interface import gpu_of, see
from fastopt.kernels.cuda.runtime.compile import Kernel
from fastopt.kernels.cuda.runtime.float16 import DTYPES_16BIT
from fastopt.kernels.cuda.runtime.records import CLOCK, DROPOUT, NOISE, NORMALIZATION, TILE
from fastopt.kernels.cuda.runtime.storage import COPY
from fastopt.kernels.cuda.training import data_feed
from fastopt.kernels.formulas import ACTIVATIONS, CONSTRAINTS, LOSSES, METRICS, OPTIMIZERS, dropout_stream
from fastopt.kernels.metrics import scored_forms
from fastopt.kernels.spec import (
    BLOCKWISE,
    BLOCKWISE_RANDOM,
    MASTER,
    SAME,
    STOCHASTIC,
    AfterStep,
    Batches,
    BufferUpdate,
    Constraint,
    DenseSpec,
    DropoutSpec,
    LossSpec,
    OptimizerSteps,
    ParamSettings,
    Update,
)

REAL = ("float32", "float64")
ALL = (*REAL, "float16", "bfloat16")
Outputs = list[Any]  # arrays on the device

# More rows than a tile of sums has, and in the second shape whole vectors of 16 bytes.
SHAPES = [(TILE_ROWS + 3, 7), (TILE_ROWS + 3, 8)]
SHAPE, WIDE = (19, 7), (19, 8)  # of kernels that go by rows, in single values and in vectors


def kernels() -> list[Kernel]:
    """Return every kernel but those of products."""
    copying = {update_kernel(rule, "bfloat16", COPY) for rule in OPTIMIZERS}
    others = copying - {update_kernel("adam", "bfloat16", COPY)}  # one rule stands for all
    return [kernel for kernel in all_kernels(ALL) if kernel not in others]


def at(array: Any) -> int:
    return see(array).address


def there(values: Any, kind: str) -> Any:
    return to_device(encode(np.ascontiguousarray(values), kind))


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).random(shape) - 0.5


def every() -> Iterator[tuple[str, Callable[[], Outputs]]]:
    """(name, call): a call works on new arrays, always with the same numbers, and returns what it has written."""
    for rule in {update_kernel(rule, "float32"): rule for rule in OPTIMIZERS}.values():
        for dtype in ALL:
            for form in forms_of(dtype):
                yield (
                    f"update {rule} {dtype} {form}",
                    lambda rule=rule, dtype=dtype, form=form: _update(rule, dtype, form),
                )
    for rule in ("adam", "momentum"):
        for storage in (BLOCKWISE, BLOCKWISE_RANDOM):
            yield f"update {rule} {storage}", lambda rule=rule, storage=storage: _coded_update(rule, storage)
    for dtype in ALL:
        yield f"norm {dtype}", lambda dtype=dtype: _norm(dtype)
    for dtype in DTYPES_16BIT:
        yield f"widened {dtype}", lambda dtype=dtype: _widened(dtype)
    for dtype in REAL:
        for shape in SHAPES:
            yield f"scatter {shape} {dtype}", lambda dtype=dtype, shape=shape: _scatter(shape, dtype)
            for columns in (0, 3, 4):
                yield (
                    f"gather {shape} {columns} {dtype}",
                    lambda dtype=dtype, shape=shape, columns=columns: _gather(shape, dtype, columns),
                )
        for name in LOSSES:
            for shape in (SHAPE, WIDE):
                yield (
                    f"loss {name} {shape} {dtype}",
                    lambda name=name, shape=shape, dtype=dtype: _loss(name, shape, dtype),
                )
                yield (
                    f"weighted loss {name} {shape} {dtype}",
                    lambda name=name, shape=shape, dtype=dtype: _weighted_loss(name, shape, dtype),
                )
        yield f"softmax {dtype}", lambda dtype=dtype: _softmax(dtype)
        for name, row in METRICS.items():
            for scored in scored_forms(name) if row.of_classes and not row.of_counts else ():
                for weighted in (False, True):
                    yield (
                        f"{name} {scored} {dtype}{' weighted' * weighted}",
                        lambda name=name, scored=scored, dtype=dtype, w=weighted: _hits(name, scored, dtype, w),
                    )
        for scored in scored_forms("precision"):
            for weighted in (False, True):
                yield (
                    f"counts {scored} {dtype}{' weighted' * weighted}",
                    lambda scored=scored, dtype=dtype, w=weighted: _counts(scored, dtype, w),
                )
        yield f"network {dtype}", lambda dtype=dtype: _network(dtype)
        yield f"masked {dtype}", lambda dtype=dtype: _masked(dtype)
        yield f"penalties {dtype}", lambda dtype=dtype: _penalties(dtype)
        for axes in ((0,), (1,)):
            for name in CONSTRAINTS:
                yield (
                    f"averages and {name} {axes} {dtype}",
                    lambda name=name, axes=axes, dtype=dtype: _after_steps(name, axes, dtype),
                )
        for loss in ("sparse_categorical_crossentropy", "binary_crossentropy"):
            yield f"fused {loss} {dtype}", lambda loss=loss, dtype=dtype: _fused(loss, dtype)
    for dtype in (*REAL, "bfloat16"):
        for shape in (SHAPE, WIDE):
            for name in ("dropout", "noise"):
                yield f"{name} {shape} {dtype}", lambda n=name, dtype=dtype, shape=shape: _random(n, shape, dtype)
        for axis in (0, 1):
            yield f"normalization {axis} {dtype}", lambda dtype=dtype, axis=axis: _normalization(axis, dtype)
    for shape in SHAPES:
        yield f"gather {shape} float32 to bfloat16", lambda shape=shape: _narrowing(shape)
    yield "network bfloat16", lambda: _network("float32", "bfloat16")
    yield "counted", _counted
    for dtype in ALL:
        for name in ACTIVATIONS:
            for shape in SHAPES:
                yield (
                    f"epilogues {name} {shape} {dtype}",
                    lambda name=name, shape=shape, dtype=dtype: _epilogues(name, shape, dtype),
                )


def _update(rule: str, dtype: str, form: str) -> Outputs:
    p, g, *states = (drawn(TILE + 5) for _ in range(2 + len(OPTIMIZERS[rule].states)))
    kept = [there(np.abs(s), dtype if form == SAME else "float32") for s in states]
    if form == MASTER:
        kept.append(there(decode(encode(p, dtype), dtype), "float32"))
    p, g, stream = there(p, dtype), there(g, dtype), dropout_stream(7, 3) if form == STOCHASTIC else 0
    cuda.update([Update(rule, p, g, tuple(kept), OPTIMIZERS[rule].options, 3, form, stream)])
    return [p, *kept]


def _coded_update(rule: str, storage: str) -> Outputs:
    elements = TILE + 261
    p, g = (there(drawn(elements), "float32") for _ in range(2))
    states: list[Any] = []
    for _ in OPTIMIZERS[rule].states:
        states += [
            to_device((np.arange(elements) % 256).astype(np.uint8)),
            there(np.ones(-(-elements // 256)), "float32"),
        ]
    cuda.update([Update(rule, p, g, tuple(states), OPTIMIZERS[rule].options, 3, SAME, dropout_stream(7, 3), storage)])
    return [p, *states]


def _widened(dtype: str) -> Outputs:
    x = encode(drawn(TILE + 5), dtype)
    return [cuda.widened(Bits(x) if dtype == "bfloat16" else to_device(x))]


def _counted() -> Outputs:
    """Run steps that the device counts: a rule of every kind, with a learning rate on the device."""
    rules = ("sgd", "momentum", "adagrad", "adamw", "adam_hat", "adam_eps_root")
    p, g = (there(drawn(len(rules), 9), "float64") for _ in range(2))
    steps = there(np.ones(len(rules)), "float64")
    states = [[there(drawn(9) + 0.5, "float64") for _ in OPTIMIZERS[rule].states] for rule in rules]
    lr = there([0.1], "float32")
    rate = cuda.Number(at(lr), 4)
    targets = [
        BufferUpdate(rule, "float64", 9, at(p) + 72 * i, [at(s) for s in states[i]], i) for i, rule in enumerate(rules)
    ]
    counters = [cuda.Number(at(steps) + 8 * i, 8) for i in range(len(rules))]
    plan = cuda.CountedPlan(targets, counters, gpu_of({at(p)}))
    options = [{**OPTIMIZERS[rule].options, "lr": rate} for rule in rules]
    plan.update([at(g) + 72 * i for i in range(len(rules))], options)
    return [lr, p, steps, *(s for own in states for s in own)]


def _norm(dtype: str) -> Outputs:
    return [there([cuda.gradient_norm([there(drawn(2 * TILE + 3), dtype)])], "float64")]


def _clock() -> Any:
    return to_device(np.array([(1, 41)], CLOCK).view(np.int64))


def _narrowing(shape: tuple[int, int]) -> Outputs:
    (count, columns), stride = shape, 8
    x, into, now = there(drawn(*shape), "float32"), there(np.zeros((count, stride)), "bfloat16"), _clock()
    copied = rows.Rows(at(x), at(into), columns, stride, "bfloat16")
    rows.gather_narrow(gpu_of({at(x)}), 0, copied, 0, count // 2, at(now), count // 2, count)
    return [into]


def _gather(shape: tuple[int, int], dtype: str, y_columns: int) -> Outputs:
    """y_columns: of targets; 0: labels."""
    (count, columns), half = shape, shape[0] // 2
    order, now = to_device(np.random.default_rng(0).permutation(count).astype("uint32")), _clock()
    x, into = there(drawn(*shape), dtype), there(np.zeros((half, columns)), dtype)
    y, y_into = there(drawn(count, y_columns), dtype), there(np.zeros((half, y_columns)), dtype)
    if not y_columns:
        y, y_into = to_device(np.arange(count)), to_device(np.zeros(half, np.int64))
    width, kind = y_columns or 1, dtype if y_columns else rows.LABEL
    copied = rows.Rows(at(x), at(into), columns, columns, dtype), rows.Rows(at(y), at(y_into), width, width, kind)
    rows.gather(gpu_of({at(x)}), 0, *copied, at(order), half, at(now), half, count)
    return [into, y_into]


def _scatter(shape: tuple[int, int], dtype: str) -> Outputs:
    (count, columns), half, now = shape, shape[0] // 2, _clock()
    y, out = there(drawn(half, columns), dtype), there(np.zeros(shape), dtype)
    copied = rows.Rows(at(y), at(out), columns, columns, dtype)
    rows.scatter(gpu_of({at(y)}), 0, copied, half, at(now), half, count)
    return [out]


def _random(name: str, shape: tuple[int, int], dtype: str) -> Outputs:
    """Run dropout or noise."""
    (count, columns), now, stream = shape, _clock(), dropout_stream(3, 1)
    x, strides = there(drawn(*shape), dtype), [columns]
    if name == "dropout":
        record, strides = np.array([(1.25, int(0.2 * 2**53), stream)], DROPOUT), [columns, columns]
    else:
        record = np.array([(0.5, stream)], NOISE)
    settings, run = to_device(record.view(np.int64)), getattr(rows, name)
    run(gpu_of({at(x)}), 0, at(x), at(x), count, columns, *strides, dtype, at(now), at(settings))
    return [x]


def _normalization(axis: int, dtype: str) -> Outputs:
    """Normalize columns (axis 0) or rows, forward and backward; columns also by the moving averages."""
    (count, columns), own = SHAPES[0], "float64" if dtype == "float64" else "float32"
    x, y, dy = (there(drawn(count, columns), dtype) for _ in range(3))
    gamma, beta, mean, variance, dgamma, dbeta = kept = [there(drawn(columns) + 0.5, own) for _ in range(6)]
    statistics = [there(np.zeros((columns, count)[axis]), "float64") for _ in range(2)]
    settings = to_device(np.array([(0.01, 0.9)], NORMALIZATION).view(np.float64))
    arrays = normalization.Arrays(*map(at, (gamma, beta, *statistics, settings, mean, variance)))
    gpu, sizes = gpu_of({at(x)}), normalization.Sizes(count, columns, columns, dtype)
    gradients = at(dgamma), at(dbeta)
    if axis == 0:
        normalization.batch_norm(gpu, 0, at(x), at(y), arrays, sizes)
        normalization.batch_norm_backward(gpu, 0, at(x), at(dy), arrays, *gradients, True, sizes)
        normalization.batch_norm_moving(gpu, 0, at(x), at(x), arrays, sizes)
        normalization.batch_norm_fixed_backward(gpu, 0, at(dy), arrays, sizes)
    else:
        normalization.layer_norm(gpu, 0, at(x), at(y), arrays, sizes)
        normalization.layer_norm_gradients(gpu, 0, at(x), at(dy), arrays, *gradients, sizes)
        normalization.layer_norm_backward(gpu, 0, at(x), at(dy), arrays, sizes)
    return [x, y, dy, *statistics, *kept]


def _targets(name: str, shape: tuple[int, int], dtype: str) -> Any:
    if LOSSES[name].targets == "labels":
        return to_device(np.random.default_rng(1).integers(0, shape[1], shape[0]))
    return there(drawn(*shape) + 0.5, dtype)


def _loss(name: str, shape: tuple[int, int], dtype: str) -> Outputs:
    z, t, dz = there(drawn(*shape), dtype), _targets(name, shape, dtype), there(np.zeros(shape), dtype)
    return [there([cuda.loss(LossSpec(name), z, t, dz)], "float64"), dz]


def _weights(rows: int) -> Any:
    """Weights and shares of the gradient, (rows, 2); one row has none."""
    w = drawn(rows) + 0.5
    w[1] = 0
    return there(np.stack([w, w / w.sum()], axis=1), "float64")


def _weighted_loss(name: str, shape: tuple[int, int], dtype: str) -> Outputs:
    z, t, dz = there(drawn(*shape), dtype), _targets(name, shape, dtype), there(np.zeros(shape), dtype)
    sums, param = there(np.zeros(losses.loss_tiles(name, *shape)), "float64"), there([0.5], "float64")
    weights, how = _weights(shape[0]), Shape(*shape, shape[1], dtype)
    places = at(z), at(t), at(dz), at(sums), at(param)
    losses.run_loss(gpu_of({at(z)}), 0, name, *places, how, shape[1], at(weights))
    return [sums, dz]


def _softmax(dtype: str) -> Outputs:
    z = there(drawn(*SHAPE), dtype)
    cuda.activate("softmax", z, z)
    return [z]


def _hits(name: str, scored: str, dtype: str, weighted: bool) -> Outputs:
    shape = SHAPE
    loss = "sparse_categorical_crossentropy" if scored == "labels" else "categorical_crossentropy"
    z, t = there(drawn(*shape), dtype), _targets(loss, shape, dtype)
    sums, boundaries = there(np.zeros(metrics.hits_tiles(shape[0])), "float64"), there([0, 0], "float64")
    places = at(z), at(t), at(sums), at(boundaries)
    how, weights = Shape(*shape, shape[1], dtype), _weights(shape[0])
    metrics.run_hits(gpu_of({at(z)}), 0, name, scored, *places, how, shape[1], at(weights) if weighted else 0)
    return [sums]


def _counts(scored: str, dtype: str, weighted: bool) -> Outputs:
    (rows_, columns), gpu_sums = SHAPE, there(np.zeros(6 * SHAPE[1]), "float64")
    loss = "sparse_categorical_crossentropy" if scored == "labels" else "categorical_crossentropy"
    z, t, boundaries = there(drawn(*SHAPE), dtype), _targets(loss, SHAPE, dtype), there([0, 0], "float64")
    found = to_device(np.zeros(metrics.found_bytes(scored, *SHAPE) // 8, np.int64))
    gpu, places = gpu_of({at(z)}), (at(z), at(t), at(found), at(boundaries))
    metrics.run_classes(gpu, 0, scored, *places, Shape(*SHAPE, columns, dtype), columns)
    weights = _weights(rows_)
    metrics.run_counts(gpu, 0, scored, at(found), at(gpu_sums), rows_, columns, at(weights) if weighted else 0)
    return [found, gpu_sums]


def _epilogues(name: str, shape: tuple[int, int], dtype: str) -> Outputs:
    z, b, y, dz = (there(drawn(*size), dtype) for size in (shape, shape[1:], shape, shape))
    db, gpu, how = there(np.zeros(shape[1]), dtype), gpu_of({at(z)}), Shape(*shape, shape[1], dtype)
    sums = gpu.allocate(epilogues.sums_bytes(how))
    epilogues.activate(gpu, 0, name, at(z), at(b), at(y), how)
    s = z if ACTIVATIONS[name].uses == "z" else y
    epilogues.slopes(gpu, 0, name, at(z), at(s), at(dz), sums.address, at(db), how)
    gpu.wait(0)  # before the memory of the sums goes back
    return [z, y, dz, db]


def _network(dtype: str, compute: str | None = None) -> Outputs:
    """Run a pass with all features: dropout, gradients of two batches added up and clipped, a metric, a prediction."""
    layers = [DropoutSpec(0.2), DenseSpec(6, 8, "relu"), DenseSpec(8, 3, "softmax")]
    params = [drawn(6, 8).astype(dtype), np.zeros(8, dtype), drawn(8, 3).astype(dtype), np.zeros(3, dtype)]
    states = [tuple(np.zeros_like(p) for _ in range(2)) for p in params]
    x, y = drawn(11, 6).astype(dtype), np.arange(11) % 3
    network = cuda.Network(layers, params, dtype, LossSpec("sparse_categorical_crossentropy"), ["accuracy"], compute)
    batches = Batches(x, y, np.arange(11)[::-1].copy(), 3, 2)
    options = OPTIMIZERS["adam"].options
    losses_ = network.train(batches, OptimizerSteps("adam", states, options, np.full(2, 0.01), clip_norm=0.1), 5).losses
    return [to_device(array) for array in (*params, losses_, network.predict(x, 4))]


def _after_steps(name: str, axes: tuple[int, ...], dtype: str) -> Outputs:
    """Run a pass whose steps end with a constraint, and averages."""
    params = [drawn(37, 3).astype(dtype), drawn(3).astype(dtype)]
    averages, x, y = [np.zeros_like(p) for p in params], drawn(4, 37).astype(dtype), drawn(4, 3).astype(dtype)
    network = cuda.Network([DenseSpec(37, 3)], params, dtype, LossSpec("mean_squared_error"), [])
    after = AfterStep([Constraint(name, axes), None], averages, np.array([0.5, 0.25]))
    steps = OptimizerSteps("sgd", [(), ()], OPTIMIZERS["sgd"].options, np.full(2, 0.1), after=after)
    network.train(Batches(x, y, np.arange(4), 2), steps, 0)
    return [to_device(array) for array in (*params, *averages)]


def _masked(dtype: str) -> Outputs:
    """Run a pass with masks, of a parameter of several tiles, whose gradients are clipped by their norm."""
    inputs = TILE // 4 + 1
    params = [drawn(inputs, 8).astype(dtype), drawn(8).astype(dtype)]
    network = cuda.Network([DenseSpec(inputs, 8)], params, dtype, LossSpec("mean_squared_error"), [])
    states = [tuple(np.zeros_like(p) for _ in range(2)) for p in params]
    masks, rates = [(drawn(inputs, 8) > 0).astype(np.uint8), None], np.full(2, 0.01)
    steps = OptimizerSteps("adam", states, OPTIMIZERS["adam"].options, rates, clip_norm=0.1, masks=masks)
    network.train(Batches(drawn(4, inputs).astype(dtype), drawn(4, 8).astype(dtype), np.arange(4), 2), steps, 0)
    return [to_device(array) for array in (*params, *states[0], *states[1])]


def _penalties(dtype: str) -> Outputs:
    """Run a pass with L1 and L2 in its losses, of a parameter of several tiles and of a single value."""
    inputs = TILE // 4 + 1
    params = [drawn(*shape).astype(dtype) for shape in ((inputs, 8), (8,), (8, 1), (1,))]
    layers = [DenseSpec(inputs, 8, "tanh"), DenseSpec(8, 1)]
    network = cuda.Network(layers, params, dtype, LossSpec("mean_squared_error"), [])
    settings = [ParamSettings(l1=0.1, l2=0.2), ParamSettings(), ParamSettings(), ParamSettings(l2=0.1)]
    steps = OptimizerSteps("sgd", [()] * 4, OPTIMIZERS["sgd"].options, np.full(2, 0.01), settings=settings)
    x, y = drawn(4, inputs).astype(dtype), drawn(4, 1).astype(dtype)
    totals = network.train(Batches(x, y, np.arange(4), 2), steps, 0)
    return [to_device(array) for array in (*params, totals.losses, np.array([network.penalty(settings)]))]


def _fused(loss: str, dtype: str) -> Outputs:
    """Run a pass as one kernel, in two launches and with a short batch at the end."""
    layers = [DropoutSpec(0.2), DenseSpec(6, 9, "relu"), DropoutSpec(0.1), DenseSpec(9, 8, "gelu"), DenseSpec(8, 3)]
    params = [drawn(*shape).astype(dtype) for shape in ((6, 9), (9,), (9, 8), (8,), (8, 3), (3,))]
    states = [tuple(np.zeros_like(p) for _ in range(2)) for p in params]
    x, y = drawn(11, 6).astype(dtype), np.arange(11) % 3
    if loss == "binary_crossentropy":
        y = (drawn(11, 3) > 0).astype(dtype)
    options, order = OPTIMIZERS["adam"].options, np.arange(11)[::-1].copy()
    with mock.patch.dict("os.environ", FASTOPT_CUDA_FUSED="1"), mock.patch.object(data_feed, "FIRST_CHUNK", 1):
        network = cuda.Network(layers, params, dtype, LossSpec(loss), ["accuracy"])
        totals = network.train(Batches(x, y, order, 3), OptimizerSteps("adam", states, options, np.full(4, 0.01)), 5)
    return [to_device(array) for array in (*params, totals.losses)]


def products() -> Outputs:
    """Run the library's products, by the verbs of dense layers; return what they have written."""
    written = []
    for dtype in ("float32", "float64", "float16"):
        x, w, b, dy = (there(drawn(*shape), dtype) for shape in ((33, 24), (24, 16), (16,), (33, 16)))
        for name in ("linear", "relu", "gelu_tanh"):
            y, z, dx, dw, db = (there(np.zeros(a.shape), dtype) for a in (dy, dy, x, w, b))
            cuda.dense_forward(x, w, b, name, y, z)
            cuda.dense_backward(dy, x, w, z if ACTIVATIONS[name].uses == "z" else y, name, dx, dw, db)
            written += [y, z, dx, dw, db]
    return written


def main(what: str, seconds: float = math.inf) -> None:
    """Run every call ("all"), or all but the library's products ("ours"), and read the results.

    seconds: after which no more is begun; what comes before is a fair sample of all kinds.
    """
    start, count, calls = time.monotonic(), 0, [call for _, call in every()]
    if what == "all":
        calls.insert(0, products)
    if seconds < math.inf:
        calls = [calls[i] for i in np.random.default_rng(0).permutation(len(calls))]
    for call in calls:
        if time.monotonic() - start > seconds:
            break
        for array in call():
            array.copy_to_host()
        count += 1
    kind = " in the simulator" if SIMULATED else ""
    print(f"{count} of {len(calls)} calls, of {len(kernels())} kernels{kind}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
