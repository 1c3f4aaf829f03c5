"""A kernel that keeps a stream busy for a while, so that later work on the stream is late."""

from __future__ import annotations

from typing import Any

from fastopt.kernels.cuda.runtime.compile import SIMULATED, Kernel
from fastopt.kernels.cuda.runtime.primitives import reader, writer

ROUNDS = 1 if SIMULATED else 20_000_000  # of two dependent operations in float64: some 0.2 s

read_double, write_double = reader("float64", 1), writer("float64")


def _spin(into, rounds):
    x = read_double(into)[0]  # a value that the compiler does not know, or it would remove the loop
    for _ in range(rounds):
        x = x * 0.999 + 1.5
    write_double(into, x)


SPIN = Kernel(_spin, "spin")


def occupy(gpu: Any, stream: int, room: int) -> None:
    """Keep a stream busy for a while; room: address of a float64, which is changed."""
    with gpu.active():
        gpu.launch(SPIN, 1, stream, room, ROUNDS)
