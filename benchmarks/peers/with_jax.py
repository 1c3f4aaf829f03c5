"""Peers in JAX with optax, on the CPU: a jitted step, and a whole epoch as a jitted scan over its batches."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax

from fastopt.benchmarks.workloads import Workload


class Step:
    """One jitted call for each batch; it gathers the rows, and updates parameters and states in place (donated)."""

    same_steps = True

    def __init__(self, workload: Workload) -> None:
        # The CPU, even if JAX finds another device.
        self.device = jax.local_devices(backend="cpu")[0]
        put = partial(jax.device_put, device=self.device)
        rule = optax.sgd(workload.lr, momentum=0.9) if workload.optimizer == "momentum" else optax.adam(workload.lr)
        self.x, self.y = put(workload.x), put(workload.y.astype("int32") if workload.classes else workload.y)
        self.params = [put(p) for p in workload.weights]
        self.states = jax.tree.map(put, rule.init(self.params))
        self.rows = len(workload.order)
        self.batches = [put(rows.astype("int32")) for rows in workload.batches()]

        def loss_of(params, x, y):
            last = len(params) - 2
            for i in range(0, len(params), 2):
                x = x @ params[i] + params[i + 1]
                x = x if i == last else jax.nn.relu(x)
            if workload.classes:
                return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()
            return jnp.mean((x - y) ** 2)

        def step(params, states, total, x, y, rows):
            loss, gradients = jax.value_and_grad(loss_of)(params, x[rows], y[rows])
            updates, states = rule.update(gradients, states, params)
            return optax.apply_updates(params, updates), states, total + loss * len(rows)

        self.step = step
        self.jitted = jax.jit(step, donate_argnums=(0, 1, 2))

    def epoch(self) -> float:
        total = jax.device_put(jnp.float32(0), self.device)
        for rows in self.batches:
            self.params, self.states, total = self.jitted(self.params, self.states, total, self.x, self.y, rows)
        jax.block_until_ready(self.params)
        return float(total) / self.rows


class Scan(Step):
    """The whole epoch in one jitted call: a scan over the full batches, and the shorter one after it."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        size = workload.batch_size
        num_full = len(workload.order) // size * size  # rows of full batches
        full, rest = workload.order[:num_full].reshape(-1, size), workload.order[num_full:]
        self.batches = [jax.device_put(rows.astype("int32"), self.device) for rows in (full, rest)]

        def epoch(params, states, x, y, full, rest):
            def body(carry, rows):
                return self.step(*carry, x, y, rows), None

            carry, _ = jax.lax.scan(body, (params, states, jnp.float32(0)), full)
            return self.step(*carry, x, y, rest) if len(rest) else carry

        self.jitted = jax.jit(epoch, donate_argnums=(0, 1))

    def epoch(self) -> float:
        self.params, self.states, total = self.jitted(self.params, self.states, self.x, self.y, *self.batches)
        jax.block_until_ready(self.params)
        return float(total) / self.rows
