"""What each launch of a batch is called, and what it moves and computes at least: for profiles.

A program lists calls of functions (`Program.add`), which know nothing of profiles: here their arguments are read. Calls
that are several launches, those of dense layers, are taken apart while they are done: the device and the products that
they are handed are stand-ins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ... import costs
from ...formulas import LOSSES
from ...profile import Cost
from ..dense.epilogues import activate
from ..dense.finish import finish
from ..dense.layer import run_backward, run_forward
from ..dense.losses import run_loss, run_softmax
from ..dense.metrics import run_hits
from ..dense.products import APPLIED, BYTES, Product
from ..dense.rows import LABEL, dropout, gather, scatter
from ..dense.structure import Structure
from ..runtime.compile import Kernel
from .optimizer_step import Updates

Around = Callable[[Cost, Callable[[], None]], None]  # does a launch, whose cost this is


class Described:
    """Does the launches of a batch, one by one, each through `around`."""

    def __init__(self, net: Structure, around: Around) -> None:
        self.net, self.around, self.width = net, around, BYTES[net.dtype]
        self.elements = sum((layer.inputs + layer.bias) * layer.outputs for layer in net.dense)
        loss = LOSSES.get(net.loss.name) if net.loss else None
        self.labels = bool(loss and loss.targets == "labels")

    def run(self, launches: Sequence[partial[None]]) -> None:
        """All of them, in order."""
        above, judged = len(self.net.dense), False
        below = 0
        for launch in launches:
            named = inspect.signature(launch.func).bind(*launch.args).arguments
            if launch.func is run_forward:
                _Forward(below, named, self.around).run(launch)
                below += 1
            elif launch.func is run_backward:
                above -= 1
                _Backward(above, named, self.around).run(launch)
            else:
                self.around(self._cost(launch.func, named, judged), launch)
                judged = judged or launch.func is run_loss

    def fused(self, rule: str) -> Cost:
        """A batch of a small network, as a part of one kernel: what stays in shared memory is not moved."""
        layers = self.net.dense
        products = [costs.forward(d.inputs, d.outputs, d.activation, d.bias, False, self.width) for d in layers]
        products += [costs.weights(d.inputs, d.outputs, None, self.width) for d in layers]
        products += [costs.inputs_gradient(d.inputs, d.outputs, self.width) for d in layers[1:]]
        gathered = costs.gather(self.net.inputs, self.net.outputs, False, self.width, self.labels)
        return Cost(
            f"fused {'-'.join(map(str, [self.net.inputs, *(d.outputs for d in layers)]))}",
            flops=self.elements * costs.update_flops(rule),
            row_bytes=gathered.row_bytes // 2 + costs.INDEX,  # read, and not written anywhere
            row_flops=sum(cost.row_flops for cost in products),
        )

    def _cost(self, function: Callable[..., None], named: dict[str, Any], judged: bool) -> Cost:
        """judged: the loss comes before it."""
        outputs, width = self.net.outputs, self.width
        if function is gather:
            of_labels, ordered = named["dtype"] == LABEL, named["order"] != 0
            if of_labels:
                return costs.gather(0, 0, ordered, width, labels=True)._replace(name="gather labels")
            return costs.gather(named["columns"], 0, ordered, BYTES[named["dtype"]])
        if function is scatter:
            return costs.scatter(outputs, width)
        if function is dropout:
            return costs.dropout(named["columns"], BYTES[named["dtype"]], backward=judged)
        if function is run_loss:
            count = costs.metric if judged else costs.loss
            return count(named["name"], named["shape"].columns, self.labels, width)
        if function is run_hits:
            return costs.metric(named["name"], outputs, named["scored"] == "labels", width)
        if function is run_softmax:
            return costs.link("softmax", outputs, width)
        if function is activate:
            return costs.link(named["name"], outputs, width)
        if function is finish:
            return Cost("finish")
        updates = getattr(function, "__self__", None)
        if isinstance(updates, Updates):
            return self._update(function.__name__, updates)
        if function.__name__ == "zero":
            return Cost("zero", bytes=named["size"])
        return Cost(function.__name__)

    def _update(self, verb: str, updates: Updates) -> Cost:
        if verb == "update":
            return costs.apply(self.elements, updates.rule, self.width)
        count = {"accumulate": costs.accumulate, "clip": costs.squares}[verb]
        return count(self.elements, self.width)


class _Layer:
    """The launches of a call of `run_forward` or `run_backward`, for the layer of this number."""

    def __init__(self, number: int, named: dict[str, Any], around: Around) -> None:
        self.number, self.plan, self.layer, self.activation = number, named["plan"], named["layer"], named["activation"]
        self.sizes, self.width = (self.layer.inputs, self.layer.outputs), BYTES[self.layer.dtype]
        self.named, self._around = named, around

    def run(self, launch: partial[None]) -> None:
        gemm, *others = launch.args
        launch.func(_Gemm(gemm, self), *others)

    def around(self, cost: Cost, run: Callable[[], None]) -> None:
        self._around(cost._replace(name=f"dense{self.number}.{cost.name}"), run)

    def product(self, product: Product) -> Cost:
        raise NotImplementedError

    def kernel(self, kind: str) -> Cost:
        raise NotImplementedError


class _Forward(_Layer):
    def product(self, product: Product) -> Cost:
        applied = any(bits and product.has(bits) for bits in APPLIED.values())
        shown = self.activation if applied else "linear"
        return costs.forward(*self.sizes, shown, product.reads_bias, bool(product.aux_stride), self.width)

    def kernel(self, kind: str) -> Cost:
        bias = bool(self.named["b"]) and not self.plan.product.reads_bias
        return costs.activate(self.layer.outputs, self.activation, bias, self.width)


class _Backward(_Layer):
    def product(self, product: Product) -> Cost:
        if product is self.plan.inputs:
            return costs.inputs_gradient(*self.sizes, self.width)
        cost, sums = costs.weights(*self.sizes, None, self.width), self.plan.db == "weights"
        outputs = sums * self.layer.outputs  # db, the sums of dz, which is read anyway
        return cost._replace(bytes=cost.bytes + outputs * self.width, row_flops=cost.row_flops + outputs)

    def kernel(self, kind: str) -> Cost:
        outputs, bias = self.layer.outputs, self.plan.db == "kernel"
        if kind != "slopes":
            return Cost(f"{kind} {outputs}")
        if self.plan.dz != "kernel":
            return costs.bias_gradient(outputs, self.width)
        return costs.slopes(outputs, self.activation, bias, None, self.width)


class _Gemm:
    """The products that a layer is handed."""

    def __init__(self, gemm: Any, layer: _Layer) -> None:
        self._gemm, self._layer, self.gpu = gemm, layer, _Gpu(gemm.gpu, layer)

    def call(self, product: Product, *places: int) -> _Call:
        return _Call(self._gemm.call(product, *places), self._layer, product)


class _Call:
    def __init__(self, call: Any, layer: _Layer, product: Product) -> None:
        self._call, self._layer, self._product = call, layer, product

    def run(self, stream: int) -> None:
        self._layer.around(self._layer.product(self._product), partial(self._call.run, stream))


class _Gpu:
    """The device that a layer is handed."""

    def __init__(self, gpu: Any, layer: _Layer) -> None:
        self._gpu, self._layer = gpu, layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gpu, name)

    def launch(self, kernel: Kernel, *args: int) -> None:
        cost = self._layer.kernel(kernel.name.partition("_")[0])
        self._layer.around(cost, partial(self._gpu.launch, kernel, *args))
