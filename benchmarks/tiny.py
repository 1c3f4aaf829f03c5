"""Tiny work: whole fits of few rows, and predictions of few rows, by this library and by others.

All contestants start from the same weights. Those that fit take the same full batches with Adam, draw an order of the
rows for every epoch, and add up the losses of an epoch, as `fit` does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

import fastopt as fo
from fastopt.benchmarks.peers import need

ROWS, WIDTHS, LR = 150, (4, 16, 3), 0.01  # the shape of the iris data
WIDE = (784, 256, 128, 10)  # of the network that predicts


def weights_of(widths: tuple[int, ...]) -> list[np.ndarray]:
    """Return [w0, b0, w1, b1, ...] of float32."""
    rng = np.random.default_rng(0)
    made = []
    for inputs, outputs in pairwise(widths):
        made += [rng.standard_normal((inputs, outputs)) / np.sqrt(inputs), 0.1 * rng.standard_normal(outputs)]
    return [array.astype(np.float32) for array in made]


def clouds() -> tuple[np.ndarray, np.ndarray]:
    """Return x (150, 4) float32 and y (150,) int64: three clouds that overlap."""
    rng = np.random.default_rng(1)
    y = np.arange(ROWS) % WIDTHS[-1]
    centres = rng.standard_normal((WIDTHS[-1], WIDTHS[0]))
    return (centres[y] + rng.standard_normal((ROWS, WIDTHS[0]))).astype(np.float32), y


def model_of(widths: tuple[int, ...], backend: str = "cpu") -> fo.Sequential:
    """Return our model of the weights: ReLU, and softmax at the end."""
    layers = [*(fo.Dense(width, "relu") for width in widths[1:-1]), fo.Dense(widths[-1], "softmax")]
    model = fo.Sequential(layers, inputs=widths[0], backend=backend)
    model.set_weights(weights_of(widths))
    return model


# ---------------------------------------------------------------- fits
# A function of a contestant, given x and y, is to return fit(epochs) -> the mean loss of the last of so many epochs.
# They go on from where the fit before has left the weights.
Fit = Callable[[int], float]


def fit_by_fastopt(x: np.ndarray, y: np.ndarray) -> Fit:
    """`Sequential.fit`."""
    model = model_of(WIDTHS)
    model.compile(fo.Adam(lr=LR), "sparse_categorical_crossentropy")

    def fit(epochs: int) -> float:
        return model.fit(x, y, epochs=epochs, batch_size=ROWS, verbose=0)["loss"][-1]

    return fit


def torch_model(widths: tuple[int, ...]) -> Any:
    """Return a `torch.nn.Sequential` of the weights that ends with logits."""
    import torch

    from fastopt.benchmarks.peers.with_torch import use_our_threads

    use_our_threads()
    layers: list[Any] = []
    for w, b in zip(*[iter(weights_of(widths))] * 2, strict=True):
        layer = torch.nn.Linear(*w.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(w.T.copy()))
            layer.bias.copy_(torch.from_numpy(b))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def fit_by_torch(x: np.ndarray, y: np.ndarray) -> Fit:
    """The loop of torch's tutorials, with the fused Adam."""
    need("torch")
    import torch

    model, loss_of = torch_model(WIDTHS), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)

    def fit(epochs: int) -> float:
        for _ in range(epochs):
            order = torch.randperm(len(inputs))
            optimizer.zero_grad()
            loss = loss_of(model(inputs[order]), labels[order])
            loss.backward()
            optimizer.step()
            mean = loss.item()
        return mean

    return fit


def fit_by_jax(x: np.ndarray, y: np.ndarray) -> Fit:
    """All epochs in one jitted scan, with optax's Adam."""
    need("jax", "optax")
    import jax
    import jax.numpy as jnp
    import optax

    device = jax.local_devices(backend="cpu")[0]
    rule = optax.adam(LR)

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        hidden = jax.nn.relu(x @ params[0] + params[1])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params[2] + params[3], y).mean()

    def run(carry: Any, x: Any, y: Any, keys: Any) -> Any:
        def epoch(carry: Any, key: Any) -> Any:
            params, states = carry
            order = jax.random.permutation(key, ROWS)
            loss, gradients = jax.value_and_grad(loss_of)(params, x[order], y[order])
            updates, states = rule.update(gradients, states, params)
            return (optax.apply_updates(params, updates), states), loss

        return jax.lax.scan(epoch, carry, keys)

    jitted, key = jax.jit(run, donate_argnums=0), jax.random.key(0)
    put = lambda array: jax.device_put(array, device)  # noqa: E731
    params = [put(w) for w in weights_of(WIDTHS)]
    inputs, labels, carry = put(x), put(y.astype("int32")), (params, jax.tree.map(put, rule.init(params)))

    def fit(epochs: int) -> float:
        nonlocal carry, key
        key, own = jax.random.split(key)
        carry, losses = jitted(carry, inputs, labels, jax.random.split(own, epochs))
        return float(jnp.asarray(losses)[-1])

    return fit


def classifier_of(widths: tuple[int, ...], x: np.ndarray, y: np.ndarray, **options: Any) -> Any:
    """Return scikit-learn's MLPClassifier with the weights."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        widths[1:-1], learning_rate_init=LR, alpha=0.0, batch_size=len(x), tol=0.0, warm_start=True,
        n_iter_no_change=10**9, random_state=0, max_iter=1, **options,
    )  # fmt: skip
    model.fit(x, y)
    ours = weights_of(widths)
    model.coefs_, model.intercepts_ = [w.copy() for w in ours[::2]], [b.copy() for b in ours[1::2]]
    return model


def fit_by_sklearn(x: np.ndarray, y: np.ndarray) -> Fit:
    """`MLPClassifier.fit`, which starts from the weights it has (warm_start) and with a new Adam."""
    need("sklearn")
    model = classifier_of(WIDTHS, x, y)

    def fit(epochs: int) -> float:
        model.max_iter = epochs
        model.fit(x, y)
        return float(model.loss_curve_[-1])

    return fit


FITS: dict[str, Callable[[np.ndarray, np.ndarray], Fit]] = {
    "fastopt": fit_by_fastopt,
    "torch-fused": fit_by_torch,
    "jax-scan": fit_by_jax,
    "sklearn": fit_by_sklearn,
}


# ---------------------------------------------------------------- predictions
# A function of a contestant, given rows x, is to return predict() -> probabilities of x.
Predict = Callable[[], np.ndarray]


def predict_by_fastopt(x: np.ndarray) -> Predict:
    """`Sequential.predict`."""
    model = model_of(WIDE)
    return lambda: model.predict(x)


def predict_by_torch(x: np.ndarray) -> Predict:
    """The module in inference mode, from NumPy to NumPy."""
    need("torch")
    import torch

    model = torch.nn.Sequential(torch_model(WIDE), torch.nn.Softmax(1)).eval()

    def predict() -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(x)))

    return predict


def predict_by_onnxruntime(x: np.ndarray) -> Predict:
    """A session on the CPU, with as many threads as kernels may use."""
    need("onnxruntime", "onnx")
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, name, arrays = [], [], "x", weights_of(WIDE)
    for i, (w, b) in enumerate(zip(arrays[::2], arrays[1::2], strict=True)):
        constants += [numpy_helper.from_array(w, f"w{i}"), numpy_helper.from_array(b, f"b{i}")]
        last = i == len(arrays) // 2 - 1
        nodes.append(helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [f"z{i}"]))
        nodes.append(helper.make_node("Softmax" if last else "Relu", [f"z{i}"], [f"y{i}"]))
        name = f"y{i}"
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, k]) for n, k in (("x", 784), (name, 10))]
    graph = helper.make_graph(nodes, "mlp", kinds[:1], kinds[1:], constants)
    onnx_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = fo.get_num_threads()
    session = onnxruntime.InferenceSession(onnx_model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def predict_by_sklearn(x: np.ndarray) -> Predict:
    """`MLPClassifier.predict_proba`."""
    need("sklearn")
    rows = np.random.default_rng(0).random((WIDE[-1], WIDE[0]), np.float32)
    model = classifier_of(WIDE, rows, np.arange(WIDE[-1]))
    return lambda: model.predict_proba(x)


PREDICTIONS: dict[str, Callable[[np.ndarray], Predict]] = {
    "fastopt": predict_by_fastopt,
    "torch-default": predict_by_torch,
    "onnxruntime": predict_by_onnxruntime,
    "sklearn": predict_by_sklearn,
}
TITLES = {
    "fastopt": "fastopt",
    "torch-fused": "torch loop, fused=True",
    "torch-default": "torch, inference mode",
    "jax-scan": "JAX, one scan",
    "onnxruntime": "onnxruntime",
    "sklearn": "scikit-learn MLPClassifier",
}
