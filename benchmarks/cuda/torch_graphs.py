"""torch's steps as CUDA graphs, as torch's documentation says to capture them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastopt.benchmarks.workloads import Absent
from fastopt.kernels.cuda.runtime.compile import SIMULATED

WARM = 3  # calls before the capture, on another stream


def on_stream(handle: int, call: Callable[[], Any]) -> Callable[[], None]:
    """A call that gives torch's work to this stream."""
    import torch

    stream = torch.cuda.ExternalStream(handle)

    def there() -> None:
        with torch.cuda.stream(stream):
            call()

    return there


def captured(step: Callable[[], Any], restore: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """A call that replays what `step` gives to the device; `restore` undoes the calls before. Raises Absent.

    https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    import torch

    if SIMULATED or not torch.cuda.is_available():
        raise Absent("CUDA graphs need a GPU")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    torch.cuda.synchronize()
    restore()
    return graph.replay
