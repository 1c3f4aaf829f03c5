"""A rehearsal finds the kernels that a real device launches."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
from fastopt import Adam, Dense, Dropout, RMSprop, Sequential
from fastopt.kernels.cuda import gpu_of
from fastopt.kernels.cuda.runtime.rehearsal import SHARED, rehearsed, rehearsing
from fastopt.losses import LOSS_CLASSES

pytestmark = pytest.mark.skipif(not SIMULATED, reason="kernels that run are noted by the simulator's device")

X = np.random.default_rng(0).standard_normal((9, 5)).astype("float32")
LABELS = np.arange(9) % 3


def model(loss="sparse_categorical_crossentropy", metrics=("accuracy",), optimizer=Adam, dropout=0.0, **how):
    hidden = [Dense(4, "gelu"), *([Dropout(dropout)] if dropout else [])]
    made = Sequential([*hidden, Dense(3)], backend="cuda", inputs=5, **how)
    made.compile(optimizer(), loss, metrics)
    return made


def use(made, **options):
    y = LABELS if made.loss.name == "sparse_categorical_crossentropy" else np.eye(3)[LABELS]
    with np.errstate(all="ignore"):
        made.fit(X, y, batch_size=4, verbose=0, **options)
        made.evaluate(X, y)
        made.predict(X)


CASES = {
    **{f"loss {name}": ({"loss": name, "metrics": ()}, {}) for name in LOSS_CLASSES},
    "metrics": ({"loss": "mean_squared_error", "metrics": ("r2", "mean_absolute_error")}, {}),
    "dropout": ({"dropout": 0.5}, {}),
    "clipped": ({"optimizer": partial(Adam, clip_norm=1.0)}, {}),
    "accumulated": ({}, {"accumulate": 2}),
    "bfloat16": ({"compute_dtype": "bfloat16"}, {}),
    "float64": ({"dtype": "float64", "optimizer": RMSprop}, {}),
}


@pytest.mark.parametrize("fused", ["0", "1"])
@pytest.mark.parametrize("case", CASES)
def test_kernels_are_those_of_a_device(case, fused, monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_FUSED", fused)
    how, options = CASES[case]
    gpu, launched = type(gpu_of(())), set()
    for name in ("launch", "launch_one_block"):
        really = getattr(gpu, name)

        def noting(self, kernel, *args, really=really):
            launched.add(kernel.name)
            really(self, kernel, *args)

        monkeypatch.setattr(gpu, name, noting)
    use(model(**how), **options)
    with rehearsing((9, 0)) as kernels:
        use(model(**how), **options)
    assert {kernel.name for kernel in kernels} == launched
    assert rehearsed() is None


def test_shared_memory_is_that_of_the_capability():
    for capability, kilobytes in SHARED.items():
        with rehearsing(capability):
            gpu = gpu_of(())
            assert (gpu.capability, gpu.shared_bytes) == (capability, kilobytes << 10)
    with rehearsing((13, 0)):  # unknown: what every device has
        assert gpu_of(()).shared_bytes == 99 << 10


def test_it_is_this_contexts_alone():
    from concurrent.futures import ThreadPoolExecutor

    with rehearsing((9, 0)), ThreadPoolExecutor(1) as pool:
        assert rehearsed() is not None
        assert pool.submit(rehearsed).result() is None
