"""A training pass on the GPU: its memory, and the launches of a batch, from the gather to the updates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import compress
from typing import Any

import numpy as np

from ... import costs
from ...metrics import Variation
from ...profile import Cost
from ...spec import WHOLE, Batches, LayerSpec, OptimizerSteps, parameter_shapes
from ..dense.mixed import Weights
from ..dense.structure import Structure
from ..fused.select import Fused, FusedPass, fused_training
from ..optim.penalties import Penalties
from ..runtime.memory import Block, Mirror
from ..runtime.records import ROW
from .after_step import AfterUpdates
from .masks import Masks
from .optimizer_step import BY_LAYER, ParamArrays, Updates
from .passes import BatchKind, Pass
from .program import Program


class TrainingPass:
    """A pass that trains, with gradients, states, scalars and updates.

    mirror: the parameters of the network, which other passes read, too.
    """

    def __init__(
        self,
        gpu: Any,
        stream: int,
        net: Structure,
        mirror: Weights,
        data: Batches,
        optimizer: OptimizerSteps,
        seed: int,
        variation: Variation | None,
    ) -> None:
        params, group = mirror.arrays, data.accumulate
        rule, updated, norm = optimizer.rule, optimizer.updated, optimizer.clip_norm is not None
        states = [of_param for of_param in optimizer.states if of_param is not None]
        sizes = [p.nbytes if on else 0 for p, on in zip(params, updated, strict=True)]
        self.gpu, self.stream, self.norm = gpu, stream, norm
        averages = [average for average in (optimizer.after.averages if optimizer.after else ()) if average is not None]
        # with the averages behind them
        self.states = Mirror(gpu, [*(state for of_param in states for state in of_param), *averages])
        self.gradients = Block(gpu, sizes)
        self.totals = Block(gpu, sizes) if group > 1 else self.gradients
        settings, rows = optimizer.rows()
        self.steps, self.num_settings = data.most_steps, len(settings)
        self.sized = data.sizes is not None
        self.scalars = gpu.allocate(self.num_settings * self.steps * ROW)
        places = iter(self.states.addresses)
        of_all = mirror.addresses, self.gradients.addresses, self.totals.addresses, mirror.copies
        changed, gradients, totals, copies = (list(compress(some, updated)) for some in of_all)
        of_states = [[next(places) for _ in of_param] for of_param in states]
        arrays = ParamArrays(changed, of_states, gradients, totals, copies)
        elements = [p.size for p in compress(params, updated)]
        net = net._replace(variation=variation, updated=updated, fixed=tuple(optimizer.fixed))
        copy = net.compute if arrays.copies else ""
        mirrored = mirror.addresses, mirror.copies, net.compute
        self.after = AfterUpdates(gpu, stream, optimizer.after, params, *mirrored, list(places), self.steps)
        masks = list(compress(optimizer.masks, updated)) if optimizer.masks else ()
        self.masks = Masks(gpu, stream, net.dtype, masks, totals)
        # each batch is a step, and no update waits for other gradients
        storages = list(compress(optimizer.storages, updated)) if optimizer.storages else []
        self.num_coded = sum(n for n, storage in zip(elements, storages, strict=False) if storage != WHOLE)
        alone = group == 1 and not norm and not self.after and not self.masks and not self.num_coded
        by_layer = alone and all(updated) and sum(elements) >= BY_LAYER
        layers = _params_of_layers(net.layers) if by_layer else []
        layers = layers if len(layers) > 1 else []
        scalars = [self.scalars.address + row * self.steps * ROW for row in compress(rows, updated)]
        self.updates = Updates(
            gpu, stream, rule, net.dtype, elements, arrays, scalars, copy, layers, storages, self.masks.addresses
        )
        self.penalties: Penalties | None = None
        if optimizer.penalties:
            of_params = mirror.addresses, [p.size for p in params]
            self.penalties = Penalties(gpu, stream, net.dtype, *of_params, optimizer.penalties)
            self.penalty_of_batch = gpu.allocate(8 * self.steps * group)
        self.program = Program(gpu, stream, net, mirror.read, data.batch_size, seed)
        num_rows = self.steps * group * data.batch_size if self.sized else data.num_rows
        weighted = data.weights is not None
        self.batches = Pass(self.program, data.x, data.y, num_rows, True, group, weighted=weighted)
        # as the kernel has it
        plain = all(updated) and self.num_settings == 1 and not (weighted or self.penalties or self.sized)
        self.together = self._fused(rule, arrays.states) if alone and plain else None

    def _fused(self, rule: str, states: Sequence[Sequence[int]]) -> Fused | None:
        """The pass as one kernel; None where graphs are faster, or the kernel is impossible."""
        program, batches = self.program, self.batches
        feed, clock, sums = batches.feed, program.clock.address, batches.results.address
        data = FusedPass(
            program.params, states, program.seed, batches.layout, batches.labels, program.batch, batches.rows,
            feed.ring, feed.x, feed.y, batches.stages, batches.order, self.scalars.address, clock, batches.losses,
            sums,
        )  # fmt: skip
        return fused_training(self.gpu, self.stream, program.net, rule, data)

    def begin(self, table: np.ndarray, optimizer: OptimizerSteps) -> None:
        """Copy the scalars of all steps, (steps, settings, scalars), and what the updates are told to the device."""
        rows = np.zeros((self.num_settings, self.steps, ROW // table.itemsize), table.dtype)
        rows[:, : len(table), : table.shape[2]] = table.swapaxes(0, 1)
        self.gpu.copy_in(self.scalars.address, rows, self.stream)
        self.updates.begin(optimizer.clip_norm)
        self.after.begin(optimizer.after and optimizer.after.shares)
        self.masks.begin()
        self._divisors = optimizer.penalty_divisors
        if self.penalties:
            self.penalties.set_factors(optimizer.penalties)
            self.gpu.zero(self.penalty_of_batch.address, 8 * self.batches.batches, self.stream)

    def penalties_of_steps(self, batches: int) -> np.ndarray:
        """The penalty of each step that has begun among so many batches. Waits for all launches."""
        found = np.zeros(self.batches.batches)
        if self.penalties:
            self.gpu.copy_out(found, self.penalty_of_batch.address, self.stream)
            self.gpu.wait(self.stream)
        of_steps = found[: batches : self.batches.group]
        return of_steps if self._divisors is None else of_steps / self._divisors[: len(of_steps)]

    def list_batch(self, kind: BatchKind) -> None:
        """Add the launches for a kind of batch."""
        program, updates, rows = self.program, self.updates, kind.rows
        x, t, labels = self.batches.gather(rows)
        z, saved = program.forward(x, rows, kind.updates)
        sums = self.batches.losses, 8, self.batches.results.address
        weights = self.batches.gather_weights(rows)
        more = self._add_penalties() if kind.starts_step else []
        table = program.loss_and_metrics(z, t, labels, rows, *sums, program.output_gradient, weights, more)
        ends = kind.ends_step and kind.updates
        by_layer = updates.by_layer and not self.batches.marked and kind.updates
        update_layer = partial(program.add, Cost("update of a layer"), updates.update_layer)
        program.backward(saved, rows, self.gradients.addresses, update_layer if by_layer else None)
        size, width, rule = updates.num_elements, program.size, updates.rule
        if self.totals is not self.gradients:
            if kind.starts_step:
                total_bytes = self.totals.size
                zero = self.gpu.zero, self.totals.memory.address, total_bytes, self.stream
                program.add(Cost("zero", bytes=total_bytes), *zero)
            # where rows have weights, the loss divides by those of the step
            share = updates.weight(1.0 if weights else rows / kind.step_rows)
            program.add(costs.accumulate(size, width), updates.accumulate, share)
        if ends and self.norm:
            self.masks.add_before_norm(program)
            program.add(costs.squares(size, width), updates.clip)
        if ends:
            cost = costs.coding(costs.apply(size, rule, width), self.num_coded, rule, width)
            cost = cost._replace(bytes=cost.bytes + width * self.masks.elements)
            program.add(cost, updates.join if by_layer else updates.update)
            self.after.add_to(program, updates.control.address)
        program.finish(table, 1 + len(program.net.sums) + len(more), updates.control.address if kind.ends_step else 0)

    def _add_penalties(self) -> list[tuple[int, int, int, int]]:
        """Add the penalties of a step, if there are any; return the record of their sum."""
        if not self.penalties:
            return []
        cost = costs.penalties(self.penalties.num_elements, self.penalties.num_elements * self.program.size)
        self.program.add(cost, self.penalties.launch)
        return [(self.penalties.sums, self.penalties.tiles, self.penalty_of_batch.address, 8)]


def _params_of_layers(layers: Sequence[LayerSpec]) -> list[range]:
    """Indices of the parameters of each layer that has some."""
    counts = [len(shapes) for shapes in map(parameter_shapes, layers) if shapes]
    ends = np.cumsum(counts).tolist()
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
