"""Steps as CUDA graphs, by a driver and a cuBLASLt that replay graphs on the host."""

from __future__ import annotations

import gc
import logging

import helpers_blaslt
import numpy as np
import pytest
from helpers_cuda import SIMULATED, require_device

require_device()
from helpers_driver import CONTEXT, OTHER, install
from helpers_network import LAYERS, Run, data_for

from fastopt.kernels import cuda
from fastopt.kernels.cuda.dense import blaslt
from fastopt.kernels.cuda.dense.gemm import Gemm
from fastopt.kernels.cuda.runtime import gpu as gpu_
from fastopt.kernels.cuda.training import data_feed, network, program

pytestmark = [
    pytest.mark.skipif(not SIMULATED, reason="where there is a device, the other tests ask the real driver"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of the kernels that run in the simulator's threads
]

LABELS = "sparse_categorical_crossentropy"
X, Y = data_for(np.random.default_rng(0), LABELS, 11, 3, 3, "float32")


def trained(epochs=2, dtype="float32", **options):
    """All that comes out of a network: batches of 4 rows, 4 and 3, and of 5, 5 and 1."""
    run, found = Run(cuda, LAYERS, LABELS, ["accuracy"], dtype), []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(11)
        found.append(run.train(X, Y, order, 4, **options)[:2])
    return *found, run.net.evaluate(X, Y, 5)[:2], run.net.predict(X, 5), *run.params


@pytest.fixture(scope="module")
def one_by_one():
    return trained()


@pytest.fixture
def fake(monkeypatch, one_by_one):
    """A driver in place of the simulator's device; products are a part of the graph, too."""
    fake = install(monkeypatch)
    try:
        library = helpers_blaslt.Library(blaslt.library())
    except blaslt.BlasLtError:
        pytest.skip("needs cuBLASLt: pip install nvidia-cublas")
    multiply = helpers_blaslt.matmul

    def matmul(*args):
        if fake.capture is None:
            multiply(*args)
        else:
            fake.capture[1].append(lambda: multiply(*args))

    monkeypatch.setattr(helpers_blaslt, "matmul", matmul)
    monkeypatch.setattr(blaslt, "library", lambda: library)
    monkeypatch.delenv("FASTOPT_CUDA_GRAPHS", raising=False)
    device = gpu_.Gpu(1)
    gemm = Gemm(device)
    monkeypatch.setattr(network, "gpu_of", lambda places: device)
    monkeypatch.setattr(program, "gemm_of", lambda gpu: gemm)
    fake.device, fake.memory_before = device, len(fake.memory)
    return fake


def assert_same_bits(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_equal(a, b)


def test_graphs_give_the_same_bits(fake, one_by_one):
    assert_same_bits(trained(), one_by_one)
    # In the first epoch the second of two batches of 4, in the second epoch the one of 3; the second batch of 5 rows in
    # an evaluation and in a prediction.
    assert fake.calls["cuGraphInstantiateWithFlags"] == fake.calls["cuGraphDestroy"] == 4
    assert fake.calls["cuGraphLaunch"] == 1 + 3 + 1 + 1
    assert fake.calls["cuStreamCreate"] == 2  # of the network, and for predictions
    assert 5001 in fake.streams
    assert len(set(fake.streams) - {0}) == 2
    assert (fake.contexts, fake.capture) == ([OTHER], None)
    gc.collect()
    assert not fake.graphs
    assert len(fake.memory) == fake.memory_before + 1  # the workspace of the stream
    assert set(fake.device.idle_streams) == set(fake.streams) - {0}


def test_graphs_in_16_bits(fake, monkeypatch):
    found = trained(epochs=1, dtype="bfloat16")
    assert fake.calls["cuGraphLaunch"] == 1 + 1 + 1
    monkeypatch.setenv("FASTOPT_CUDA_GRAPHS", "0")
    assert_same_bits(trained(epochs=1, dtype="bfloat16"), found)


def test_graphs_can_be_turned_off(fake, one_by_one, monkeypatch):
    monkeypatch.setenv("FASTOPT_CUDA_GRAPHS", "0")
    assert_same_bits(trained(), one_by_one)
    assert not fake.calls["cuStreamBeginCapture_v2"]


@pytest.mark.parametrize("call", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_where_nothing_can_be_captured(fake, call, caplog):
    gpu, stream, runs = fake.device, fake.device.stream().handle, []
    with gpu.active(), caplog.at_level(logging.WARNING, "fastopt"):
        memory = gpu.allocate(8)

        def run():
            runs.append(fake.capture is None)
            gpu.zero(memory.address, 8, stream)

        replay = gpu.replay(stream, run)
        replay.launch()
        fake.refuse = call
        replay.launch()
        (message,) = caplog.messages
        assert message.startswith("cannot be captured into a CUDA graph, so launches are done one by one: CUDA_ERROR")
        fake.refuse = None
        replay.launch()  # it is tried once
    assert runs.count(True) == 3
    assert runs.count(False) == (call != "cuStreamBeginCapture_v2")
    assert fake.capture is None
    assert not fake.graphs


def test_an_interrupt_while_a_graph_is_made(fake):
    stream, calls = fake.device.stream().handle, []

    def run():
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt

    replay = fake.device.replay(stream, run)
    replay.launch()
    with pytest.raises(KeyboardInterrupt):
        replay.launch()
    assert fake.capture is None
    assert not fake.graphs


def test_data_come_on_a_stream_of_their_own(fake, one_by_one, monkeypatch):
    monkeypatch.setattr(data_feed, "MEMORY_SHARE", 0)
    monkeypatch.setattr(data_feed, "PART_BYTES", 1)
    assert_same_bits(trained(), one_by_one)
    assert fake.calls["cuStreamCreate"] == 5  # of the network, of three passes over data, and for predictions
    assert fake.calls["cuStreamWaitEvent"] > 12
    assert fake.contexts == [OTHER]
    del fake.device._staging  # whose memory and events live as long as the device
    gc.collect()
    assert not fake.events
    assert not fake.pinned
    assert sorted(fake.device.idle_streams) == sorted(set(fake.device.idle_streams))


def test_the_context_of_the_device_is_current_in_a_pass(fake):
    fake.contexts = [CONTEXT]
    trained(epochs=1)
    assert fake.contexts == [CONTEXT]
