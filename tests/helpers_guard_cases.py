"""Every CPU kernel of the tables on small arrays, as cases for memory that ends, or starts, at an inaccessible page.

    python tests/helpers_guard_cases.py GROUP,... [thorough]

runs the cases of groups, first on ordinary memory and then on guarded memory on each side, and compares the bits. It
prints the name of each before it runs, so that the one that ends the process is known, and "done" at the end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
from helpers_guard import guarded_memory
from optimizers import repeats

import fastopt as fo
from fastopt import profiling
from fastopt.kernels import cpu
from fastopt.kernels.cpu.dense import layer as dense
from fastopt.kernels.cpu.dense import losses as dense_losses
from fastopt.kernels.cpu.dense.blas import BFLOAT16, PLAIN, _open_openblas, _openblas_path, own
from fastopt.kernels.cpu.dense.matmul import AS_IS, DEPTH, ROW_MAJOR, TRANSPOSED, available
from fastopt.kernels.cpu.optim import norm, plan, sparse_rows, streaming_loops
from fastopt.kernels.cpu.optim.counters import StepCounters
from fastopt.kernels.cpu.optim.updates import TILE, update_kernel
from fastopt.kernels.cpu.runtime import launch, openmp
from fastopt.kernels.cpu.runtime.compile import Kernel, ffi
from fastopt.kernels.cpu.runtime.primitives import address_of
from fastopt.kernels.cpu.training import flat_updates, network, pieces, tree_sums
from fastopt.kernels.cpu.training import sparse as sparse_layers
from fastopt.kernels.formulas import ACTIVATIONS, LOSSES, METRICS, OPTIMIZERS, dropout_stream
from fastopt.kernels.loss_rule import LossRule
from fastopt.kernels.reference.bits16 import store, widened
from fastopt.kernels.sources import Source, SparseRows, Stage
from fastopt.kernels.spec import (
    BLOCKWISE,
    BLOCKWISE_RANDOM,
    FORMS,
    MASTER,
    MOVING,
    SAME,
    ActivationSpec,
    AfterStep,
    Batches,
    BatchNormSpec,
    Constraint,
    DenseSpec,
    DropoutSpec,
    EpochHooks,
    FakeQuantized,
    GaussianNoiseSpec,
    LayerNormSpec,
    LossSpec,
    OptimizerSteps,
    ParamSettings,
    Quantized,
    Shuffle,
    Update,
    parameter_shapes,
)

THOROUGH = sys.argv[2:] == ["thorough"]  # every loop of 16 bits
Case = tuple[str, Callable[[], list[Any]]]

REAL, DTYPES_16BIT = ("float32", "float64"), ("float16", "bfloat16")
FORMS_OF = {**dict.fromkeys(REAL, (SAME,)), **dict.fromkeys(DTYPES_16BIT, FORMS)}
# One element, a vector less or more than one, blocks of 64, a tile less or more than one; most of them odd, so that at
# the end arrays are aligned to their elements only.
LENGTHS = (1, 15, 16, 33, 65, 127, TILE + 1)
EDGES = (1, 15, 16, 17, 31, 32, 33)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape)


def kept_as(values: np.ndarray, dtype: str) -> np.ndarray:
    """A copy in any dtype that updates accept; bfloat16 as its bits."""
    if dtype in REAL:
        return np.array(values, dtype)
    out = np.zeros(values.shape, np.float16 if dtype == "float16" else np.uint16)
    store(values.astype("float32"), out)
    return out


# ---------------------------------------------------------------- optimizers
def job(rule: str, dtype: str, form: str, shape: tuple[int, ...], rows_of_g: int | None = None) -> Update:
    p = kept_as(drawn(*shape), dtype)
    g = kept_as(drawn(*(shape if rows_of_g is None else (rows_of_g, *shape[1:])), seed=1), dtype)
    own = dtype if form == SAME else "float32"
    states = [kept_as(np.abs(drawn(*shape, seed=2 + i)), own) for i in range(len(OPTIMIZERS[rule].states))]
    if form == MASTER:
        states.append(widened(p).copy())
    options = {**OPTIMIZERS[rule].options, "weight_decay": 0.1, "l1": 0.01, "clip_value": 1.5}
    return Update(rule, p, g, tuple(states), options, 3, form, dropout_stream(5, 1))


def _updates(rule: str, dtype: str, form: str) -> list[Any]:
    jobs = [job(rule, dtype, form, (length,)) for length in LENGTHS]
    cpu.update(jobs)
    return [array for one in jobs for array in (one.p, *one.states)]


def _streamed(rule: str, dtype: str) -> list[Any]:
    with mock.patch.object(streaming_loops, "STREAMED_BYTES", 0):
        return _updates(rule, dtype, SAME)


def _coded(rule: str, dtype: str, storage: str) -> list[Any]:
    """Updates of arrays whose states are codes of 8 bits."""
    jobs = []
    for length in (*LENGTHS, 255, 256, 2 * TILE + 257):
        one = job(rule, dtype, SAME, (length,))
        states: list[Any] = []
        for seed, _ in enumerate(OPTIMIZERS[rule].states):
            codes = np.random.default_rng(seed).integers(0, 256, length).astype(np.uint8)
            states += [codes, np.abs(drawn(-(-length // 256), seed=seed)).astype("float32")]
        jobs.append(one._replace(states=tuple(states), storage=storage))
    cpu.update(jobs)
    return [array for one in jobs for array in (one.p, *one.states)]


def coded() -> Iterator[Case]:
    for rule in ("adam", "momentum", "amsgrad") if THOROUGH else ("adam",):
        for dtype in REAL if THOROUGH else ("float32",):
            for storage in (BLOCKWISE, BLOCKWISE_RANDOM) if THOROUGH else (BLOCKWISE,):
                yield f"{rule}, {dtype}, {storage}", lambda r=rule, d=dtype, s=storage: _coded(r, d, s)


def updates() -> Iterator[Case]:
    for rule in OPTIMIZERS:
        for dtype, forms in FORMS_OF.items():
            for form in forms:
                if not THOROUGH and repeats(rule, dtype, form):
                    continue
                yield f"{rule}, {dtype}, {form}", lambda r=rule, d=dtype, f=form: _updates(r, d, f)
        if streaming_loops.ahead_bytes(len(OPTIMIZERS[rule].states)):
            for dtype in REAL:
                yield f"{rule}, {dtype}, streamed", lambda r=rule, d=dtype: _streamed(r, d)
    yield from coded()


def _rows(rule: str, dtype: str, form: str, columns: int) -> list[Any]:
    listed = np.array([0, 2, 3, 4, 11, 17, 39, 40])  # the first, the last, neighbours, and more than are fetched ahead
    one = job(rule, dtype, form, (41, columns), len(listed))
    cpu.update_rows(one, listed, 0.5)
    return [one.p, *one.states]


def _sums(dtype: str, columns: int) -> list[Any]:
    indices = np.array([2050, 0, 3, 2050, 0, 3, 3, 4_200_000, 1])
    found = []
    for count in (1, 2, 5, len(indices)):
        found += cpu.sum_rows(indices[:count].copy(), kept_as(drawn(count, columns), dtype))
    return found


def sparse() -> Iterator[Case]:
    for dtype, forms in FORMS_OF.items():
        for columns in (1, 15, 16, 17, 33, 300):
            yield f"sums of rows, {dtype}, {columns} columns", lambda d=dtype, c=columns: _sums(d, c)
            for form in forms:
                for rule in ("sgd", "adam", "amsgrad"):
                    yield (
                        f"rows, {rule}, {dtype}, {form}, {columns} columns",
                        lambda r=rule, d=dtype, f=form, c=columns: _rows(r, d, f, c),
                    )


def _norms(dtype: str) -> list[Any]:
    arrays = [kept_as(drawn(length), dtype) for length in (*LENGTHS, norm.PIECE - 1, norm.PIECE + 1)]
    return [cpu.gradient_norm(arrays), *(cpu.gradient_norm([array]) for array in arrays)]


def norms() -> Iterator[Case]:
    for dtype in FORMS_OF:
        yield f"norm, {dtype}", lambda d=dtype: _norms(d)


class _Exporter:
    """An array that only DLPack knows."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **asked: Any) -> Any:
        return self.array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def _steps(dtype: str, wrapped: bool, **options: Any) -> list[Any]:
    shapes = (), (1,), (5, 3), (17,), (33, 31)
    params = [kept_as(drawn(*shape), dtype) for shape in shapes]
    given = [_Exporter(p) if wrapped else p for p in params]
    optimizer = fo.Adam(given, **options)
    for step in range(3):
        gradients = [kept_as(drawn(*shape, seed=step), dtype) for shape in shapes]
        optimizer.step([_Exporter(g) if wrapped else g for g in gradients])
    return [*params, *(state for states in optimizer.states for state in states)]


def optimizers() -> Iterator[Case]:
    ways: dict[str, dict[str, Any]] = {
        "plain": {}, "clipped by norm": {"clip_norm": 0.1}, "each clipped": {"clip_each": 0.1},
        "AMSGrad": {"amsgrad": True},
    }  # fmt: skip
    for dtype in (*REAL, "float16"):
        for name, options in ways.items():
            for wrapped in (False, True):
                yield (
                    f"steps of Adam, {name}, {dtype}{', by DLPack' * wrapped}",
                    lambda d=dtype, w=wrapped, o=options: _steps(d, w, **o),
                )


    yield "counters of steps", _counted


def _counted() -> list[Any]:
    """Counters of both sizes, each flush against a page, in two steps; the second leaves one out."""
    counters = [np.array([4.0], dtype) for dtype in REAL]
    counted = StepCounters([(address_of(counter), counter.itemsize) for counter in counters] + [(0, 0)], 2)
    found = []
    for gradients in (np.array([8, 8, 8]), np.array([8, 0, 8])):
        found.append(counted.next_steps(address_of(gradients)).copy())
        counted.advance(address_of(gradients))
    return [*found, *counters]


class _Team:
    """A pool of one thread, where torch's are not: it calls what every thread of theirs calls."""

    threads = 2
    numbers = ffi.callback("int(void)", lambda: 0), ffi.callback("int(void)", lambda: 1)  # of the thread, of threads

    def run(self, kernel: Kernel, work: int, step: int, num_ranks: int) -> None:
        thread_num, num_threads = (int(ffi.cast("intptr_t", number)) for number in self.numbers)
        record = np.array([thread_num, num_threads, kernel.address, work, step, num_ranks])
        openmp.BODY(address_of(record))


def _on_team(dtype: str) -> list[Any]:
    with mock.patch.object(openmp, "torch_threads", _Team):
        return [*_updates("adam", dtype, SAME), *_norms(dtype)]


def teams() -> Iterator[Case]:
    for dtype in FORMS_OF:
        yield f"ranks on another library's threads, {dtype}", lambda d=dtype: _on_team(d)


# ---------------------------------------------------------------- layers
def _layer(activation: str, dtype: str, sizes: tuple[int, int, int], bias: bool) -> list[Any]:
    count, inputs, outputs = sizes
    x, w, b, dy = (
        drawn(*shape).astype(dtype) for shape in ((count, inputs), (inputs, outputs), (outputs,), (count, outputs))
    )
    y, dx, dw, db = (np.empty(array.shape, dtype) for array in (dy, x, w, b))
    z = np.empty(dy.shape, dtype) if ACTIVATIONS[activation].uses == "z" else None
    cpu.dense_forward(x, w, b if bias else None, activation, y, z)
    cpu.dense_backward(dy, x, w, y if z is None else z, activation, dx, dw, db)
    return [y, dx, dw, db, *([] if z is None else [z])]


def layers() -> Iterator[Case]:
    sizes = [(1, 1, 1), (2, 3, 5), (17, 31, 33), (31, 16, 15), (dense.TILE_ROWS + 1, 33, dense.TILE_COLS + 1)]
    for dtype in REAL:
        for activation in ACTIVATIONS:
            for size in sizes:
                for bias in (True, False):
                    yield (
                        f"layer, {activation}, {dtype}, {size}{'' if bias else ', no bias'}",
                        lambda a=activation, d=dtype, s=size, b=bias: _layer(a, d, s, b),
                    )


def targets_for(name: str, count: int, columns: int, dtype: str) -> np.ndarray:
    row, rng = LOSSES[name], np.random.default_rng(1)
    if row.targets == "labels":
        return np.array(rng.integers(0, columns, count))
    t = rng.random((count, columns))
    if row.by_row:
        t /= t.sum(axis=1, keepdims=True)
    if row.signs:
        t = np.where(t > 0.5, 1, -1)
    return t.astype(dtype)


def _loss(name: str, dtype: str, params: dict[str, float]) -> list[Any]:
    found = []
    for count, columns in ((1, 1), (1, 7), (31, 3), (32, 16), (33, 17), (65, 33)):
        z, t = drawn(count, columns).astype(dtype), targets_for(name, count, columns, dtype)
        gradient = np.empty(z.shape, dtype)
        found += [cpu.loss(LossSpec(name, params), z, t, gradient), gradient, cpu.loss(LossSpec(name, params), z, t)]
    return found


def _activate(name: str, dtype: str) -> list[Any]:
    found = []
    for shape in ((1, 1), (31, 3), (33, 17), (65, 33), (7,)):
        z = drawn(*shape).astype(dtype)
        y = np.empty(shape, dtype)
        cpu.activate(name, z, y)
        cpu.activate(name, z, z)
        found += [y, z]
    return found


def losses() -> Iterator[Case]:
    for dtype in REAL:
        for name in LOSSES:
            for value in (None, 0.3) if LOSSES[name].params else (None,):
                params = {} if value is None else dict.fromkeys(LOSSES[name].params, value)
                yield f"loss, {name}, {dtype}, {params}", lambda n=name, d=dtype, p=params: _loss(n, d, p)
        for name in (*ACTIVATIONS, "softmax"):
            yield f"activate, {name}, {dtype}", lambda n=name, d=dtype: _activate(n, d)


# ---------------------------------------------------------------- products
def _product(gemm: int, dtype: str, ta: int, tb: int, m: int, n: int, k: int, padding: int) -> np.ndarray:
    """C (m, n) = A B, then with a quarter of it added; rows are `padding` apart, but nothing is behind the last one."""

    def matrix(height: int, width: int, seed: int) -> tuple[np.ndarray, int]:
        stride = width + padding
        return drawn(height * stride - padding, seed=seed).astype(dtype), stride

    a, lda = matrix(*((m, k) if ta == AS_IS else (k, m)), 1)
    b, ldb = matrix(*((k, n) if tb == AS_IS else (n, k)), 2)
    c, ldc = matrix(m, n, 3)
    real = "float" if dtype == "float32" else "double"
    kind = f"void(*)(int, int, int, int, int, int, {real}, intptr_t, int, intptr_t, int, {real}, intptr_t, int)"
    function = ffi.cast(kind, gemm)
    for alpha, beta in ((1.0, 0.0), (0.25, 1.0)):
        function(
            ROW_MAJOR, ta, tb, m, n, k, alpha, address_of(a), lda, address_of(b), ldb, beta, address_of(c), ldc,
        )  # fmt: skip
    return c


def _products(gemm: int, dtype: str, ta: int, tb: int, padding: int) -> list[Any]:
    sizes = [(m, n, k) for m in EDGES for n in EDGES for k in (1, 17)]
    sizes += [(5, 97, 96), (96, 5, 97), (9, 33, DEPTH - 1), (9, 31, DEPTH + 1), (17, 65, 2 * DEPTH + 1), (64, 10, 784)]
    sizes += [(24, 170, 65), (32, 513, 33)]  # B and A are copied
    return [_product(gemm, dtype, ta, tb, *size, padding) for size in sizes]


def _all_products(backend: Any, dtypes: tuple[str, ...] = REAL) -> Iterator[Case]:
    kinds = {"A B": (AS_IS, AS_IS), "A' B": (TRANSPOSED, AS_IS), "A B'": (AS_IS, TRANSPOSED)}
    kinds["A' B'"] = TRANSPOSED, TRANSPOSED
    for dtype in dtypes:
        for name, (ta, tb) in kinds.items():
            for padding in (0, 3):
                yield (
                    f"{backend.name} {backend.version}, {name}, {dtype}, rows {padding} apart",
                    lambda d=dtype, ta=ta, tb=tb, p=padding: _products(backend.gemm[d], d, ta, tb, p),
                )


def products() -> Iterator[Case]:
    yield from _all_products(PLAIN)
    if available():
        yield from _all_products(own())
    yield from _all_products(BFLOAT16, ("float32",))


def library() -> Iterator[Case]:
    path = _openblas_path()
    if path is not None:
        yield from _all_products(_open_openblas(path))


# ---------------------------------------------------------------- networks
def _network(layers: list[Any], loss: str, dtype: str, rule: str = "adam", **more: Any) -> list[Any]:
    """Two epochs of training, an evaluation and a prediction; the last batch is a short one."""
    ends = [layer for layer in layers if isinstance(layer, DenseSpec)]
    params, frozen, own, fixed = [], more.pop("frozen", ()), more.pop("own", None), more.pop("fixed", ())
    for i, layer in enumerate(layers):
        for name, shape in parameter_shapes(layer).items():
            if name in MOVING or i in fixed:
                frozen += (len(params),)
            scale = np.sqrt(shape[0]) if name == "kernel" else 1
            params.append(drawn(*shape).astype(dtype) / np.array(scale, dtype))
            if name == "moving_variance":
                params[-1] = np.abs(params[-1])
    states = [
        None if i in frozen else tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states) for i, p in enumerate(params)
    ]
    metrics = [name for name, metric in METRICS.items() if metric.goes_with(LOSSES[loss])]
    count = 37
    x, y = drawn(count, ends[0].inputs).astype(dtype), targets_for(loss, count, ends[-1].outputs, dtype)
    x, order = more.pop("keep", lambda x: x)(x), np.arange(count, dtype=np.uint32)
    has_weight = more.pop("has_weight", None)
    weights = None if has_weight is None else drawn(count).astype(dtype) ** 2 * has_weight(np.arange(count))
    group = more.pop("accumulate", 1)
    batches = Batches(x, y, order, 8, group, epochs=2, shuffle=Shuffle(5), weights=weights)
    rates, options = np.full(2 * batches.steps, 1e-2), {**OPTIMIZERS[rule].options}
    after, averages = more.pop("after", None), list[np.ndarray]()
    if after is not None:
        averages = [p.copy() for p in params]
        limits = (after * len(params))[: len(params)]
        after = AfterStep(limits, averages, np.full(len(rates), 0.25))
    masks: Any = ()
    if more.pop("pruned", False):
        masks = [(drawn(*p.shape) > 0.8).astype(np.uint8) if p.ndim == 2 else None for p in params]
    net = cpu.Network(layers, params, dtype, LossSpec(loss), metrics, more.pop("compute", None), masks)
    settings = [own] * len(params) if own else ()
    clip_norm = more.pop("clip_norm", None)
    steps = OptimizerSteps(rule, states, options, rates, clip_norm=clip_norm, settings=settings, after=after)
    steps = steps._replace(fixed=fixed, masks=masks)
    rule = LossRule(0.0, patience=2, of_all=True) if more.pop("judged", False) else None
    totals = net.train(batches, steps, 3, None, EpochHooks(lambda results: None, lambda: False, rule=rule))
    judged = net.evaluate(x, y, 24, weights)
    figures = [*totals.metrics.values(), *judged.metrics.values()]
    of_params = [*averages, *(s for of_param in states for s in of_param or ())]
    arrays = [*params, *of_params, totals.losses, judged.losses]
    return [*arrays, net.predict(x, 24), np.array(figures)]


def _profiled(dtype: str) -> list[Any]:
    with profiling.profile() as profile:
        found = _network(DEEP, "mean_squared_error", dtype)
    assert profile.totals
    return found


DEEP = [DenseSpec(7, 9, "relu"), DropoutSpec(0.25), DenseSpec(9, 17, "gelu", False), DropoutSpec(0.1), DenseSpec(17, 3)]
def with_weight(i: np.ndarray) -> np.ndarray:
    """The rows that have a weight above 0."""
    return i % 5 > 0


# Constraints of the parameters of DEEP, in turn.
LIMITS = {
    "constraints of columns": [
        Constraint("max_norm"), Constraint("non_negative"), None, Constraint("unit_norm"), Constraint("max_norm"),
    ],
    "constraints of rows": [Constraint("max_norm", (1,)), None, *[Constraint("unit_norm", (1,))] * 2, None],
    "constraints of whole arrays": [Constraint("unit_norm", (0, 1)), None, None, Constraint("max_norm", (0, 1)), None],
}
NORMALIZED = [
    BatchNormSpec(7), GaussianNoiseSpec(0.2), DenseSpec(7, 65), BatchNormSpec(65, center=False), LayerNormSpec(65),
    DropoutSpec(0.1), DenseSpec(65, 33), LayerNormSpec(33, scale=False), DenseSpec(33, 17),
    BatchNormSpec(17, scale=False), GaussianNoiseSpec(0.2), LayerNormSpec(17, center=False),
    ActivationSpec(17, "tanh"), ActivationSpec(17, "silu"), DenseSpec(17, 3),
]  # fmt: skip
WIDE = [DenseSpec(65, 33, "silu"), DenseSpec(33, 31, "relu"), DenseSpec(31, 2)]


def networks() -> Iterator[Case]:
    for dtype in REAL:
        for loss in LOSSES:
            yield f"network, {loss}, {dtype}", lambda n=loss, d=dtype: _network(DEEP, n, d)
            yield (
                f"network, {loss} of weighted rows, {dtype}",
                lambda n=loss, d=dtype: _network(DEEP, n, d, has_weight=with_weight, accumulate=2),
            )
            if link := LOSSES[loss].link:
                linked = [*DEEP[:-1], DenseSpec(17, 3, link)]
                yield f"network, {loss} of {link}, {dtype}", lambda s=linked, n=loss, d=dtype: _network(s, n, d)
        for activation in ACTIVATIONS:
            specs = [DenseSpec(5, 33, activation), DenseSpec(33, 4, activation), DenseSpec(4, 1)]
            yield (
                f"network, {activation}, {dtype}",
                lambda s=specs, d=dtype: _network(s, "mean_squared_error", d),
            )
        for rule in OPTIMIZERS:
            yield (
                f"network, {rule}, {dtype}",
                lambda r=rule, d=dtype: _network(DEEP, "sparse_categorical_crossentropy", d, r),
            )
        for rule in {row.rule: name for name, row in OPTIMIZERS.items()}.values():
            yield (
                f"network, {rule} and averages, {dtype}",
                lambda r=rule, d=dtype: _network(DEEP, "mean_squared_error", d, r, after=[]),
            )
        for name, limits in LIMITS.items():
            yield (
                f"network, {name}, {dtype}",
                lambda d=dtype, of=limits: _network(DEEP, "mean_squared_error", d, "sgd", after=of, accumulate=2),
            )
        for name, more in {
            "clipped": {"clip_norm": 0.1}, "batches added up": {"accumulate": 2},
            "batches added up and clipped": {"accumulate": 3, "clip_norm": 0.1},
            "with penalties": {"own": ParamSettings(l1=0.1, l2=0.1)},
            "with penalties, and frozen layers": {"own": ParamSettings(l1=0.1), "frozen": (0, 1, 3), "accumulate": 2},
            "with penalties, steps without weight": {"own": ParamSettings(l2=0.1), "has_weight": lambda i: i == 0},
            "columns that are measured with their updates": {"after": LIMITS["constraints of columns"]},
            "judged": {"judged": True}, "judged, with penalties and weights": {
                "judged": True, "weighted": True, "own": ParamSettings(l2=0.1), "accumulate": 2,
            },
        }.items():  # fmt: skip
            yield (
                f"network, {name}, {dtype}",
                lambda d=dtype, m=more: _network(DEEP, "sparse_categorical_crossentropy", d, **m),
            )
        for name, more in {
            "": {}, ", clipped": {"clip_norm": 0.1}, ", with weights": {"has_weight": with_weight},
            ", fixed": {"fixed": (9,)},
        }.items():  # fmt: skip
            yield (
                f"network with normalization{name}, {dtype}",
                lambda d=dtype, m=more: _network(NORMALIZED, "mean_squared_error", d, "momentum", **m),
            )
        yield f"network of wider layers, {dtype}", lambda d=dtype: _network(WIDE, "mean_squared_error", d)
    for name, keep in {"bytes": _bytes, "columns first": _columns_first, "sparse": _sparse}.items():
        yield f"network, {name}", lambda k=keep: _network(DEEP, "mean_squared_error", "float32", keep=k)


def _bytes(x: np.ndarray) -> Source:
    """Bytes, which two stages prepare."""
    inputs = x.shape[1]
    stages = tuple(Stage(divides, np.full(inputs, 2.0), np.full(inputs, 0.5)) for divides in (False, True))
    return Source((20 * x + 100).astype(np.uint8), stages)


def _columns_first(x: np.ndarray) -> Source:
    return Source(np.asfortranarray(x.astype(">i2")))


def _sparse(x: np.ndarray) -> Source:
    """The positive numbers."""
    rows, columns = np.nonzero(x > 0)
    starts = np.searchsorted(rows, np.arange(len(x) + 1)).astype(np.int32)
    return Source(SparseRows(x[rows, columns], columns.astype(np.int32), starts, x.shape[1]))


def networks_in_bfloat16() -> Iterator[Case]:
    for activation in ACTIVATIONS:
        for bias in (True, False):
            specs = [DenseSpec(5, 33, activation, bias), DenseSpec(33, 4, activation, bias), DenseSpec(4, 1)]
            yield (
                f"network in bfloat16, {activation}{'' if bias else ', no bias'}",
                lambda s=specs: _network(s, "mean_squared_error", "float32", compute="bfloat16"),
            )
    for name, (specs, fixed) in {"deep": (DEEP, ()), "wide": (WIDE, ()), "normalized": (NORMALIZED, (9,))}.items():
        yield (
            f"{name} network in bfloat16",
            lambda s=specs, f=fixed: _network(s, "mean_squared_error", "float32", compute="bfloat16", fixed=f),
        )


def _predicted(layers: list[Any], x: np.ndarray | Source, order: np.ndarray | None = None) -> list[Any]:
    """Outputs of layers of codes, whose arrays are drawn."""
    params: list[np.ndarray] = []
    for layer in layers:
        for name, shape in parameter_shapes(layer).items():
            dtype = {8: "i1", 4: "u1", 16: "u2"}[layer.quantized.bits] if name == "codes" else "f4"
            params.append((20 * np.abs(drawn(*shape))).astype(dtype))
    return [cpu.Network(layers, params, "float32").predict(x, 24, order)]


def integers() -> Iterator[Case]:
    for inputs, hidden, outputs in ((1, 1, 1), (3, 17, 5), (16, 15, 33), (31, 64, 2), (33, 65, 16)):
        for quantized in (
            Quantized(8, 0, 0.5, 3), Quantized(8), Quantized(8, 5), Quantized(4, 3), Quantized(4), Quantized(16),
        ):  # fmt: skip
            specs = [
                DenseSpec(inputs, hidden, "relu", True, quantized), DenseSpec(hidden, outputs, "tanh", False, quantized)
            ]  # fmt: skip
            for count in (1, 25, 61):
                x = drawn(count, inputs).astype("f4")
                yield f"layers of {quantized}, {inputs}, {hidden}, {outputs}", lambda s=specs, x=x: _predicted(s, x)
            order = np.arange(20, dtype=np.uint32)[::-1].copy()
            yield f"rows by number, {quantized}", lambda s=specs, x=x, o=order: _predicted(s, x, o)
            yield f"bytes, {quantized}", lambda s=specs, x=x: _predicted(s, _bytes(x))
    for fake in (FakeQuantized(8), FakeQuantized(4, 5)):
        for name, layers in {"deep": DEEP, "wide": WIDE}.items():
            specs = [spec._replace(fake=fake) if isinstance(spec, DenseSpec) else spec for spec in layers]
            yield f"{name} network, {fake}", lambda s=specs: _network(s, "mean_squared_error", "float32")


def _together(dtype: str) -> list[Any]:
    x, y = np.random.default_rng(0).standard_normal((37, 7)).astype(dtype), np.arange(37) % 3
    models = [fo.Sequential([fo.Dense(w, "relu"), fo.Dense(3, "softmax")], w, dtype=dtype) for w in (5, 9, 17)]
    for model in models:
        model.compile("adam", "sparse_categorical_crossentropy")
    histories = fo.fit_many(models, x, y, epochs=2, batch_size=8, verbose=0)
    return [*(p for model in models for p in model.parameters), *(history["loss"] for history in histories)]


def together() -> Iterator[Case]:
    for dtype in REAL:
        yield f"many networks, {dtype}", lambda d=dtype: _together(d)


def pruned() -> Iterator[Case]:
    """Pruned layers, which are multiplied sparsely in passes that update nothing."""
    specs = [DenseSpec(65, 33, "silu"), DenseSpec(33, 31, "relu", False), LayerNormSpec(31), DenseSpec(31, 17)]
    for dtype in REAL:
        for name, more in {"": {}, ", clipped": {"clip_norm": 0.1}, ", with averages": {"after": []}}.items():
            yield (
                f"pruned network{name}, {dtype}",
                lambda d=dtype, m=more: _network(specs, "mean_squared_error", d, pruned=True, **m),
            )
def _in_pieces(dtype: str) -> list[Any]:
    """The gradient of a step in four pieces, the last one shorter, its sum with another, and an update of a part."""
    layers = [DenseSpec(7, 9, "relu"), DropoutSpec(0.25), DenseSpec(9, 3)]
    params = [drawn(*shape).astype(dtype) for layer in layers for shape in parameter_shapes(layer).values()]
    x, y = drawn(37, 7).astype(dtype), drawn(37, 3).astype(dtype)
    data, options = Batches(x, y, np.arange(37, dtype=np.uint32), 10), {**OPTIMIZERS["sgd"].options}
    steps = OptimizerSteps("sgd", [()] * len(params), options, np.full(1, 1e-2), clip_norm=0.5)
    net = cpu.Network(layers, params, dtype, LossSpec("mean_squared_error"))
    with mock.patch.object(tree_sums, "IN_TILES", 63):  # of the first layer
        program = cpu.Pieces(net, data, 4, steps, 3, None)
    program.run(data.order, np.array([0, 10, 20, 30, 37]), cpu.Draws(0, 0), 37.0)
    other = program.gradient.copy()
    cpu.Additions([(other, program.gradient)]).run()
    part = cpu.FlatUpdates(net, steps, program.flat, other[16:64].copy(), 16, 16)
    part.update(0, float(np.sqrt(part.squares().sum())))
    bits, values = np.zeros(33, np.uint16), np.zeros(33, np.float32)
    cpu.narrow(drawn(33).astype(np.float32), bits)
    cpu.widen(bits, values)
    return [values, program.gradient, other, program.losses, *params]


def in_pieces() -> Iterator[Case]:
    for dtype in REAL:
        yield f"pieces of a step, {dtype}", lambda d=dtype: _in_pieces(d)


def profiles() -> Iterator[Case]:
    for dtype in REAL:
        yield f"profiled network, {dtype}", lambda d=dtype: _profiled(d)


# Each group's cases, and the names of the kernels that it is to use: those of `all_kernels` that match.
GROUPS: dict[str, tuple[Callable[[], Iterator[Case]], str]] = {
    "updates": (updates, r"enter|assign_scalar_rows|launch|update_(?!rows|.*_averaging_).*"),
    "sparse": (sparse, r"sort_rows|update_rows|sum_rows_.*"),
    "norms": (norms, r"squares.*"),
    "optimizers": (optimizers, r"read_arrays|read_foreign|count_steps"),
    "teams": (teams, r"openmp_body"),
    "layers": (layers, r"dense_(?!combine|penalties).*|(activate_(?!rows)|slope_(?!rows)).*(?<!bfloat16)"),
    "losses": (losses, r"loss_(?!.*_weighted).*|activate_rows_.*"),
    "products": (products, r"matmul_.*"),
    "library": (library, r"(?!)"),
    "networks": (
        networks,
        r"run_program|member|serve|claim|shuffle|total|penalty|finish|judge|after_step|measure_columns|column_squares_.*|magnitudes_.*"
        r"|(share|constraint)_.*|update_.*_averaging_.*"
        r"|(gather|scatter|dropout|noise|batch_norm|layer_norm|slope_rows|metric|counts|apply)_.*(?<!bfloat16)"
        r"|dense_(combine|penalties)_.*|loss_.*_weighted_.*|sum_weights_.*|weighed",
    ),
    "networks in bfloat16": (
        networks_in_bfloat16,
        r"(activate|slope|gather|dropout|noise|batch_norm|layer_norm|round)_(.*_)?bfloat16",
    ),
    "integers": (integers, r"fake_.*|codes_of_.*|int8_product_.*|coded_weights_.*"),
    "many networks": (together, r"run_queue"),
    "pruned": (pruned, r"(mask_tile|sparse)_.*"),
    "pieces": (in_pieces, r"(tree_sum|tree_tile|additions|narrow|widen)_.*"),
    "profiles": (profiles, r"run_program_marked"),
}

# To be found: a kernel that is told of an element more than there is, behind an array and before it.
BROKEN: dict[str, tuple[Callable[[], Iterator[Case]], str]] = {
    "behind": (lambda: iter([("an element behind", lambda: _beyond(0))]), r"(?!)"),
    "before": (lambda: iter([("an element before", lambda: _beyond(-4))]), r"(?!)"),
}


def _beyond(shift: int) -> list[Any]:
    x = np.zeros(33, "float32")
    norm.Squares([("float32", len(x) + 1)]).norm([address_of(x) + shift])
    return []


@contextlib.contextmanager
def many_ranks() -> Iterator[None]:
    """Two threads for any work, however small."""
    small = [(plan, "UPDATE_ELEMENTS"), (norm, "UPDATE_ELEMENTS"), (sparse_rows, "UPDATE_ELEMENTS")]
    small += [(dense_losses, "ELEMENTS_PER_THREAD"), (dense, "CALL_FLOPS")]
    small += [(network, "STEP_FLOPS"), (network, "PASS_FLOPS"), (pieces, "STEP_FLOPS")]
    small += [(module, "UPDATE_ELEMENTS") for module in (flat_updates, tree_sums)]
    with contextlib.ExitStack() as stack:
        for module, name in [*small, (sparse_layers, "WEIGHTS")]:
            stack.enter_context(mock.patch.object(module, name, 1))
        stack.enter_context(mock.patch.object(sparse_layers, "MOST_LEFT", {1: 1.0}))
        stack.enter_context(mock.patch.object(launch, "_threads", 2))
        yield


def owners(kernel: Kernel) -> list[str]:
    """The groups that are to use a kernel."""
    return [group for group, (_, names) in GROUPS.items() if re.fullmatch(names, kernel.name)]


def due() -> list[Kernel]:
    """The kernels that cases are to use: all of them, but for loops that only --thorough runs."""
    ways = [(rule, kind, form) for rule in OPTIMIZERS for kind in DTYPES_16BIT for form in FORMS]
    loops = {
        left_out: [
            update_kernel(OPTIMIZERS[rule].rule, len(OPTIMIZERS[rule].states), kind, form)
            for rule, kind, form in ways
            if left_out is (not THOROUGH and repeats(rule, kind, form))
        ]
        for left_out in (True, False)
    }
    return [kernel for kernel in cpu.all_kernels() if kernel not in loops[True] or kernel in loops[False]]


def _bits(results: list[Any]) -> list[bytes]:
    return [np.asarray(result).tobytes() for result in results]


def run(group: str) -> None:
    """Run the cases of a group on memory of all kinds."""
    one, two = contextlib.nullcontext, many_ranks  # on one side of a case's arrays one rank, on the other two
    ways = [("end", one), ("start", two)], [("end", two), ("start", one)]
    for number, (name, call) in enumerate({**GROUPS, **BROKEN}[group][0]()):
        print(name, flush=True)
        expected = _bits(call())
        for side, how in ways[number % 2]:
            print(f"{name}, guarded at the {side}", flush=True)
            with how(), guarded_memory(side):
                found = _bits(call())
            if group != "library":  # its kernels may go by where an array lies
                assert found == expected, f"other bits on guarded memory: {name}, {side}"


def main(groups: list[str]) -> None:
    faulthandler.enable()
    dense.SPLIT_FLOPS = 1  # so that small layers are split as well, if their shapes allow it
    for group in groups:
        run(group)
        left_out = [kernel.name for kernel in due() if group in owners(kernel) and not kernel._address]
        assert not left_out, f"no case of the group {group} uses {left_out}"
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1].split(","))
