"""Smoke checks of products, of kernels of networks, and of whole networks, against the reference."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from unittest import mock

from fastopt.benchmarks.contest import contest
from fastopt.benchmarks.cuda import kernels as cases
from fastopt.benchmarks.cuda.child import device
from fastopt.benchmarks.cuda.dense import Dense
from fastopt.benchmarks.cuda.peers import GraphABatch, OnDevice, OneKernel
from fastopt.benchmarks.peers.own import Reference
from fastopt.benchmarks.workloads import Workload, make, random_classes
from fastopt.kernels.cuda.dense.blaslt import Epilogue
from fastopt.kernels.cuda.dense.gemm import gemm_of
from fastopt.kernels.cuda.dense.products import SLOPES, Product, plan_network
from fastopt.kernels.cuda.runtime.compile import SIMULATED
from fastopt.kernels.cuda.training import data_feed
from fastopt.kernels.spec import DenseSpec

# Widths, and rows of a batch.
NETWORKS = (
    [((5, 4, 3), 4)]
    if SIMULATED
    else [
        ((784, 256, 128, 10), 64), ((784, 256, 128, 10), 256), ((64, 32, 10), 32), ((1024, 4096, 4096, 10), 4096),
        ((4096, 4096, 4096, 4096, 10), 4096), ((13, 7, 3), 5), ((30, 1), 1),
    ]
)  # fmt: skip
KINDS = {  # dtype, compute in TF32, dtype of gradients and of the last outputs if another
    "float32": ("float32", False, ""), "tf32": ("float32", True, ""), "float64": ("float64", False, ""),
    "bfloat16": ("bfloat16", False, ""), "float16": ("float16", False, ""), "mixed": ("bfloat16", False, "float32"),
}  # fmt: skip
ALL = frozenset({"linear", *SLOPES})  # activations that may be epilogues
SOME = ("gather", "dropout", "slopes", "loss", "softmax", "accuracy", "norm", "clipped step")
LOSSES = ("sparse_categorical_crossentropy", "mean_squared_error")


# ---------------------------------------------------------------- products
def planned() -> list[tuple[str, Product]]:
    """Every product of these networks' plans, with all known epilogues supported, and with none."""
    found: dict[Product, str] = {}
    for widths, rows in NETWORKS:
        for activation in ("relu", "gelu_tanh"):
            hidden = [DenseSpec(i, o, activation) for i, o in pairwise(widths[:-1])]
            specs = [*hidden, DenseSpec(*widths[-2:])]
            for kind, (dtype, tf32, other) in KINDS.items():
                name = f"{'-'.join(map(str, widths))}, {rows} rows, {activation}, {kind}"
                for fused in (None, ALL):
                    plans = plan_network(specs, rows, dtype, tf32, other, fused, output=other)
                    plans += plan_network(specs, rows, dtype, tf32, other, fused, _plain, output=other)
                    for plan in plans:
                        products = plan.forward.product, plan.backward.weights, plan.backward.inputs
                        found |= {product: name for product in products if product is not None and product not in found}
    return [(name, product) for product, name in found.items()]


def _plain(product: Product) -> bool:
    """True for a product without an epilogue, the fallback of all others."""
    return product.epilogue == Epilogue.DEFAULT


def heuristics() -> str:
    """Find and run an algorithm for every product of the plans; products with epilogues may have none."""
    products = planned()
    gpu = device()
    gemm, refused = gemm_of(gpu), []
    roles = "a", "b", "d", "bias", "aux"
    sizes = [max(own) for own in zip(*(product.sizes() for _, product in products), strict=True)]
    rooms = {role: gpu.allocate(size) for role, size in zip(roles, sizes, strict=True)}  # not compared
    for name, product in products:
        if gemm.supported(product):
            print(f"{name}: {product}", flush=True)  # the last one reported is the one that crashes or hangs
            used = [role for role, size in zip(roles, product.sizes(), strict=True) if size]
            gemm.call(product, **{role: rooms[role].address for role in used}).run(0)
            with gpu.active():
                gpu.wait(0)
        else:
            refused.append((name, product))
            print(f"no algorithm: {name}: {product}")
    plain = [name for name, product in refused if _plain(product)]
    assert not plain, f"no algorithm for plain products of {plain}"
    return f"{len(products) - len(refused)} of {len(products)} products, the others with epilogues"


def _dense(kind: str) -> str:
    sizes = (9, 8, 16) if SIMULATED else (256, 784, 128)
    device()
    for activation in ("linear", "relu", "gelu_tanh"):
        dense = Dense(sizes, activation, kind)
        for fused in (None, ALL):
            dense.forward(fused)(0)
            if not (fused and activation == "gelu_tanh" and kind == "float32"):  # the epilogue's tanh has 11 bits
                dense.check("forward")
        if activation != "gelu_tanh":  # its slope needs z, which is not kept here
            dense.backward()(0)
            dense.check("backward")
    return f"{'x'.join(map(str, sizes))}, forward and backward, against float64"


def dense_float32() -> str:
    return _dense("float32")


def dense_tf32() -> str:
    return _dense("tf32")


def dense_float16() -> str:
    return _dense("float16")


def dense_bfloat16() -> str:
    return _dense("bfloat16")


# ---------------------------------------------------------------- kernels
def kernels() -> str:
    """Kernels of a batch against float64, on sizes of a few blocks."""
    rows, columns = cases.TINY if SIMULATED else (1000, 37)
    wanted = [(kernel, name, dtype) for kernel, name, dtype in cases.CASES if kernel in SOME]
    wanted = [case for case in wanted if case[1] in (case[0], "relu", "gelu", *LOSSES)]
    device()
    for kernel, name, dtype in wanted:
        work = cases.MAKERS[kernel](cases.Case(name, rows, columns, dtype))
        work.call()
        work.check()
    return f"{len(wanted)} kernels on {rows} x {columns}"


# ---------------------------------------------------------------- networks
def workload(widths: tuple[int, ...], batch: int, steps: int, dtype: str = "float32") -> Workload:
    """A network on random classes; the last batch is shorter."""
    if SIMULATED:
        widths, batch, steps = (*(min(width, 5) for width in widths[:-1]), 10), 4, 3
    inputs, *hidden, _ = widths
    made = make("smoke", *random_classes(steps * batch - 1, inputs), tuple(hidden), batch)
    return replace(made, dtype=dtype)


def _same_losses(work: Workload, ours: type, name: str) -> str:
    """Train an epoch, and compare with the reference."""
    device()
    found = contest(work, ["reference", name], 0, 0, {"reference": Reference, name: ours})
    if name not in found.losses:
        raise AssertionError(found.absent[name])
    ours_, theirs = (found.losses[one][0] for one in (name, "reference"))
    return f"{work.shape}, {work.steps} steps: loss {ours_:.6f}, of the reference {theirs:.6f}"


def graph_network() -> str:
    return _same_losses(workload((784, 256, 128, 10), 64, 40), GraphABatch, "a graph a batch")


def fused_network() -> str:
    return _same_losses(workload((64, 32, 10), 32, 200), OneKernel, "one kernel")


def mixed_network() -> str:
    work = workload((784, 256, 128, 10), 64, 20, "bfloat16")
    device()
    exact = Reference(replace(work, dtype="float32")).epoch()
    ours = OnDevice(work).epoch()
    assert abs(ours - exact) <= 3e-2 * exact, f"a loss of {ours}, in float32 {exact}"
    return f"{work.shape}: loss {ours:.5f}, of the reference in float32 {exact:.5f}"


def streamed_network() -> str:
    """Data streamed from the host, as if the device had no memory for them."""
    work = workload((784, 64, 10), 64, 40)
    row = work.x[0].nbytes + 8
    part = (1 if SIMULATED else 3) * work.batch_size * row  # bytes: several parts
    with mock.patch.multiple(data_feed, MEMORY_SHARE=-1.0, PART_BYTES=part):
        return _same_losses(work, GraphABatch, "streamed")
