"""`fastopt warmup --backend cuda`: compile kernels for GPUs, in parallel; the machine needs no GPU."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np

from .. import _backends
from ..kernels.formulas import ACTIVATIONS, LOSSES, METRICS
from ..models.progress import tqdm_class, wants_bar
from ..optim import OPTIMIZER_CLASSES, get_optimizer

Capability = tuple[int, int]
# Defaults of the options that are for GPUs alone, and of those that are for networks.
FOR_GPUS: dict[str, Any] = {"capability": None, "jobs": None, "network": [], "optimizer": []}
FOR_NETWORKS: dict[str, Any] = {
    "activation": "relu", "loss": "sparse_categorical_crossentropy", "metric": [], "dropout": 0.0, "batch_size": 64,
    "compute_dtype": None,
}  # fmt: skip


class Selection(NamedTuple):
    """The kernels to compile, by what they are for: plain values, which go to other processes."""

    dtypes: tuple[str, ...]
    networks: tuple[tuple[int, ...], ...]
    optimizers: tuple[str, ...]
    activation: str
    loss: str
    metrics: tuple[str, ...]
    dropout: float
    batch_size: int
    compute_dtype: str | None
    capability: Capability


def capability(text: str) -> Capability:
    """Return a compute capability.

    >>> capability("9.0")
    (9, 0)
    """
    major, point, minor = text.partition(".")
    if not (point and major.isdecimal() and minor.isdecimal() and len(minor) == 1):
        raise argparse.ArgumentTypeError(f"must be a compute capability, such as 9.0; got {text!r}")
    return int(major), int(minor)


def widths(text: str) -> tuple[int, ...]:
    """Return the widths of a network, its inputs first.

    >>> widths("784-128-10")
    (784, 128, 10)
    """
    numbers = text.split("-")
    if len(numbers) < 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"must be widths from inputs to outputs, such as 784-128-10; got {text!r}")
    return tuple(map(int, numbers))


def refuse(args: argparse.Namespace) -> None:
    """Raise ValueError for options that would be ignored."""
    if args.backend == "cpu":
        _refuse(args, FOR_GPUS | FOR_NETWORKS, "kernels for GPUs: it needs --backend cuda")
    elif not args.network:
        _refuse(args, FOR_NETWORKS, "networks: it needs --network")


def _refuse(args: argparse.Namespace, defaults: dict[str, Any], what_for: str) -> None:
    for name, default in defaults.items():
        if getattr(args, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} is for {what_for}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only kernels for GPUs need."""
    from .arguments import integer

    group = parser.add_argument_group("for GPUs (--backend cuda)")
    group.add_argument(
        "--capability",
        type=capability,
        action="append",
        metavar="X.Y",
        help="compute capability of the GPUs, such as 9.0; may be repeated (default: of those here)",
    )
    group.add_argument("--jobs", type=integer(1), metavar="N", help="processes that compile (default: the processors)")
    group.add_argument(
        "--network",
        type=widths,
        action="append",
        default=FOR_GPUS["network"],
        metavar="WIDTHS",
        help="only what training such a network needs, such as 784-256-128-10; may be repeated",
    )
    group.add_argument(
        "--optimizer",
        choices=OPTIMIZER_CLASSES,
        action="append",
        default=FOR_GPUS["optimizer"],
        metavar="NAME",
        help="only what these optimizers need, of networks too (default there: adam); may be repeated",
    )
    for name, options in {
        "activation": {"choices": ACTIVATIONS, "metavar": "NAME", "help": "of hidden layers (default: relu)"},
        "loss": {"choices": LOSSES, "metavar": "NAME", "help": "of networks (default: for labels)"},
        "metric": {"choices": METRICS, "metavar": "NAME", "action": "append", "help": "of networks; may be repeated"},
        "dropout": {"type": float, "metavar": "RATE", "help": "after every hidden layer"},
        "batch_size": {"type": integer(1), "metavar": "N", "help": "of networks (default: 64)"},
        "compute_dtype": {"choices": _backends.COMPUTE, "help": "of layers, if not --dtype"},
    }.items():
        group.add_argument(f"--{name.replace('_', '-')}", default=FOR_NETWORKS[name], **options)


def run(args: argparse.Namespace, dtypes: Sequence[str]) -> int:
    """Compile or load the selected kernels, and print how many of each."""
    from ..kernels.cuda.runtime import requirements

    found = requirements.find_requirements()
    if lacking := [name for name in requirements.COMPILER if found[name] is None]:
        raise ImportError(f"compiling for GPUs lacks {', '.join(lacking)}: pip install 'fastopt[cuda-compiler]'")
    if requirements.simulated():
        raise ValueError("NUMBA_ENABLE_CUDASIM is set, so there is nothing to compile")
    start = time.perf_counter()
    selections = [_selection(args, dtypes, one) for one in args.capability or _capabilities()]
    work = [(selection, name) for selection in selections for name in kernels(selection)]
    jobs = min(args.jobs or _processors(), len(work))
    compiled, reasons = 0, list[str]()
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    silent = args.quiet or not wants_bar("auto")
    tqdm, _ = tqdm_class()
    with (
        ProcessPoolExecutor(jobs, context) as pool,
        tqdm(total=len(work), desc="compiling kernels", file=sys.stderr, disable=silent) as bar,
    ):
        pending = [pool.submit(compile_one, *one) for one in work]
        try:
            for done in as_completed(pending):
                new, reason = done.result()
                compiled += new
                reasons += [reason] * bool(reason)
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    names = ", ".join(".".join(map(str, selection.capability)) for selection in selections)
    print(
        f"{len(work)} kernels for compute capability {names}: {compiled} compiled, {len(work) - compiled} loaded, by "
        f"{jobs} process{'es' * (jobs > 1)} in {time.perf_counter() - start:.1f} s"
    )
    from ..kernels.cuda.runtime.compile import cache_folder
    from ..kernels.disk_cache import why_not_kept

    if reasons:
        folder, count = cache_folder(), len(reasons)
        why = why_not_kept(folder) or reasons[0]
        print(f"fastopt: error: {count} kernels could not be kept in {folder}: {why}", file=sys.stderr)
        return 1
    print(f"kept in {cache_folder()}; a copy of this folder in the cache folder of another machine is used there")
    return 0


def _selection(args: argparse.Namespace, dtypes: Sequence[str], one: Capability) -> Selection:
    return Selection(
        tuple(dtypes), tuple(args.network), tuple(args.optimizer), args.activation, args.loss, tuple(args.metric),
        args.dropout, args.batch_size, args.compute_dtype, one,
    )  # fmt: skip


def _capabilities() -> list[Capability]:
    """Compute capabilities of the GPUs of this machine."""
    from ..kernels.cuda.runtime import driver

    try:
        found = {driver.capability(driver.device(i)): None for i in range(driver.device_count())}
    except driver.CudaError:
        found = {}
    if not found:
        raise ValueError("there is no GPU here: say which ones kernels are for, such as --capability 9.0")
    return list(found)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kernels(selection: Selection) -> dict[str, Any]:
    """Return the selected kernels by their names."""
    from ..kernels.cuda.kernels import all_kernels, optimizer_kernels

    if not selection.networks and not selection.optimizers:
        return {kernel.name: kernel for kernel in all_kernels(selection.dtypes)}
    rules = [get_optimizer(name).rule for name in selection.optimizers]
    needed = optimizer_kernels(selection.dtypes, rules) if rules else []
    for network in selection.networks:
        for optimizer in selection.optimizers or ("adam",):
            for dtype in [name for name in selection.dtypes if name in ("float32", "float64")]:
                needed += _network_kernels(selection, network, optimizer, dtype)
    return {kernel.name: kernel for kernel in needed}


def _network_kernels(selection: Selection, network: tuple[int, ...], optimizer: str, dtype: str) -> list[Any]:
    """The kernels of training, evaluating and predicting, recorded while all three run without a device."""
    from ..kernels.cuda.runtime.rehearsal import rehearsing
    from ..layers import Dense, Dropout, Layer
    from ..models.sequential import Sequential

    inputs, *hidden, outputs = network
    layers: list[Layer] = []
    for units in hidden:
        layers += [Dense(units, selection.activation), *([Dropout(selection.dropout)] if selection.dropout else [])]
    loss = LOSSES[selection.loss]
    layers.append(Dense(outputs, loss.link or "linear"))
    compute = selection.compute_dtype if dtype == "float32" else None
    model = Sequential(layers, backend="cuda", dtype=dtype, inputs=inputs, compute_dtype=compute)
    model.compile(optimizer, selection.loss, selection.metrics)
    rows = 2 * selection.batch_size + 1  # with a last batch of another size
    x = np.zeros((rows, inputs), dtype)
    # The first class in every row: every loss takes it.
    y = np.zeros(rows, np.int64) if loss.targets == "labels" else np.eye(outputs, dtype=dtype)[np.zeros(rows, int)]
    with rehearsing(selection.capability) as found:
        model.fit(x, y, batch_size=selection.batch_size, verbose=0)
        model.evaluate(x, y)
        model.predict(x)
    return list(found)


_known: dict[Selection, dict[str, Any]] = {}  # in this process


def compile_one(selection: Selection, name: str) -> tuple[bool, str]:
    """Compile or load a kernel; return True if it was compiled, and why the cache cannot load it, or ""."""
    from ..kernels.cuda.runtime.compile import compiling
    from ..kernels.disk_cache import why_not_loaded

    if selection not in _known:
        _known[selection] = kernels(selection)
    kernel, compiled = _known[selection][name], list[str]()
    with compiling(compiled.append):
        kernel.cubin(selection.capability)
    return bool(compiled), why_not_loaded(kernel.path(selection.capability))
