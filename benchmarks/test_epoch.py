"""A whole epoch, every batch of it: the reference and the compiled kernels from the same weights on the same rows."""

import numpy as np
import pytest

import fastopt as fo
from fastopt.benchmarks.limits import gemm_peak

CASES = {  # hidden widths, batch size
    "digits": ((16,), 32),
    "fashion-mnist": ((256, 128), 64),
}


def refuse(name):
    raise OSError(f"{name} is not downloaded for a check of agreement")


def load(name, short):
    """The data set; where it is not on this machine, random data of its shape. A few batches of it if not timed."""
    try:
        data = fo.datasets.load(name)
        x, y = data.x_train, data.y_train
    except (OSError, ValueError):
        rng = np.random.default_rng(0)
        x, y = rng.random((60_000, 784), dtype="float32"), rng.integers(0, 10, 60_000)
    return (x[:640], y[:640]) if short else (x, y)


def model_for(widths, backend):
    model = fo.Sequential([*(fo.Dense(width, "relu") for width in widths), fo.Dense(10)], seed=0, backend=backend)
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_epoch(benchmark, note, monkeypatch, backend, name):
    widths, batch_size = CASES[name]
    benchmark.group = f"epoch of {name}, {'-'.join(map(str, widths))}, Adam, batch {batch_size}"
    if benchmark.disabled:  # agreement only, without the network
        monkeypatch.setattr(fo.datasets, "_download", refuse)
    x, y = load(name, benchmark.disabled)
    ours, reference = (model_for(widths, b).fit(x[:3200], y[:3200], batch_size=batch_size, verbose=0)
                       for b in (backend, "numpy"))  # fmt: skip
    np.testing.assert_allclose(ours.step_losses, reference.step_losses, rtol=1e-5)

    model = model_for(widths, backend)
    rounds = {"digits": 20, "fashion-mnist": 3}[name]
    benchmark.pedantic(
        lambda: model.fit(x, y, epochs=1, batch_size=batch_size, verbose=0), rounds=rounds, warmup_rounds=1
    )
    flops = 6.0 * len(x) * sum(p.size for p in model.parameters if p.ndim == 2)
    note(flops=flops, samples=len(x), limit=0 if benchmark.disabled else gemm_peak("float32"))
