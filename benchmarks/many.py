"""Many small models on the same data, by this library and by others: seeds of one network, with rates of their own.

All contestants start from the same weights, and take batches of 32 rows with Adam, every model in orders of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastopt as fo
from fastopt.benchmarks.peers import need

# The shape of the digits of scikit-learn, whose 1797 rows end here with a whole batch.
ROWS, WIDTHS, BATCH, MODELS, EPOCHS = 1792, (64, 32, 10), 32, 24, 20
RATES = np.geomspace(1e-4, 3e-3, MODELS)  # larger ones let roundings grow
Train = Callable[[], np.ndarray]  # trains all models for EPOCHS, from where it has left them: losses of the last epoch


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return x (1792, 64) float32 and y (1792,) int64: ten clouds that overlap."""
    rng = np.random.default_rng(1)
    y = np.arange(ROWS) % WIDTHS[-1]
    centres = rng.standard_normal((WIDTHS[-1], WIDTHS[0])) / 4
    return (centres[y] + rng.standard_normal((ROWS, WIDTHS[0]))).astype(np.float32), y


def models() -> list[fo.Sequential]:
    """Return our models, built."""
    made = []
    for seed, rate in enumerate(RATES.tolist()):
        model = fo.Sequential([fo.Dense(WIDTHS[1], "relu"), fo.Dense(WIDTHS[2], "softmax")], seed, inputs=WIDTHS[0])
        model.compile(fo.Adam(lr=rate), "sparse_categorical_crossentropy")
        made.append(model)
    return made


def one_by_one(x: np.ndarray, y: np.ndarray, shuffle: bool) -> Train:
    """`fit` of one model after the other, with as many threads as it takes."""
    ours = models()

    def train() -> np.ndarray:
        found = [model.fit(x, y, EPOCHS, BATCH, shuffle=shuffle, verbose=0) for model in ours]
        return np.array([history["loss"][-1] for history in found])

    return train


def together(x: np.ndarray, y: np.ndarray, shuffle: bool) -> Train:
    """`fit_many`."""
    ours = models()

    def train() -> np.ndarray:
        found = fo.fit_many(ours, x, y, epochs=EPOCHS, batch_size=BATCH, shuffle=shuffle, verbose=0)
        return np.array([history["loss"][-1] for history in found])

    return train


def by_jax(x: np.ndarray, y: np.ndarray, shuffle: bool) -> Train:
    """All epochs in one jitted scan, over a `vmap` of the models, with optax's Adam."""
    need("jax", "optax")
    import jax
    import optax

    device, steps = jax.local_devices(backend="cpu")[0], ROWS // BATCH
    rule = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        hidden = jax.nn.relu(x @ params[0] + params[1])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params[2] + params[3], y).mean()

    def run(carry: Any, key: Any, x: Any, y: Any) -> Any:
        def epoch(carry: Any, key: Any) -> Any:
            order = jax.random.permutation(key, ROWS) if shuffle else jax.numpy.arange(ROWS)

            def step(carry: Any, rows: Any) -> Any:
                params, states = carry
                loss, gradients = jax.value_and_grad(loss_of)(params, x[rows], y[rows])
                updates, states = rule.update(gradients, states, params)
                return (optax.apply_updates(params, updates), states), loss

            carry, losses = jax.lax.scan(step, carry, order.reshape(steps, BATCH))
            return carry, losses.mean()

        return jax.lax.scan(epoch, carry, jax.random.split(key, EPOCHS))

    jitted, key = jax.jit(jax.vmap(run, in_axes=(0, 0, None, None)), donate_argnums=0), jax.random.key(0)
    put = lambda array: jax.device_put(array, device)  # noqa: E731
    params = [put(np.stack(arrays)) for arrays in zip(*(model.get_weights() for model in models()), strict=True)]
    states = jax.vmap(rule.init)(params)
    states.hyperparams["learning_rate"] = put(RATES.astype(np.float32))
    inputs, labels, carry = put(x), put(y.astype("int32")), (params, states)

    def train() -> np.ndarray:
        nonlocal carry, key
        key, own = jax.random.split(key)
        carry, losses = jitted(carry, jax.random.split(own, MODELS), inputs, labels)
        return np.asarray(losses)[:, -1]

    return train


CONTESTANTS: dict[str, Callable[[np.ndarray, np.ndarray, bool], Train]] = {
    "fastopt": together, "fastopt-fit": one_by_one, "jax-vmap": by_jax,
}  # fmt: skip
TITLES = {"fastopt": "fit_many", "fastopt-fit": "fit, one after the other", "jax-vmap": "JAX, vmap of a jitted scan"}
