"""Penalties of parameters in the loss, l1 sum |p| + l2 sum p^2, for those that have one: one launch for all of them.

One block a tile adds up the terms of its elements in float64, in a fixed order; the tiles' sums are added up by
`finish`, beside those of the loss, or on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from ...spec import ParamSettings
from ..runtime.compile import THREADS, Kernel
from ..runtime.device import launch
from ..runtime.primitives import VECTOR, reader, writer
from ..runtime.records import PENALTIES, TILE, offset
from ..runtime.storage import STORES
from ..runtime.vectors import array_loader
from .norm import add_up

RECORD_BYTES, FIRST_TILE, L1 = PENALTIES.itemsize, offset(PENALTIES, "first_tile"), offset(PENALTIES, "l1")

read_owner, read_word, read_words2 = reader("int32", 1), reader("int64", 1), reader("int64", 2)
read_doubles2, write_double = reader("float64", 2), writer("float64")


def _penalties(dtype):
    own = STORES[dtype]
    width = own.width
    load, load1 = array_loader((own,), width), array_loader((own,), 1)

    def penalties(records, owners, tiles, sums):
        magnitudes = cuda.shared.array(THREADS, np.float64)
        squares = cuda.shared.array(THREADS, np.float64)
        tid = cuda.threadIdx.x
        for tile in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            # the array of the tile, and its part of it
            record = records + read_owner(owners + tile * 4)[0] * RECORD_BYTES
            p, elements = read_words2(record)
            start = (tile - read_word(record + FIRST_TILE)[0]) * TILE
            end = min(start + TILE, elements)
            magnitude, square = 0.0, 0.0
            whole = start
            # whole vectors
            if p % VECTOR == 0:
                whole = end - (end - start) % width
                for j in range(start + tid * width, whole, THREADS * width):
                    for lane in load((p,), j):
                        x = np.float64(lane[0])
                        magnitude += abs(x)
                        square += x * x
            # the rest, element by element
            for j in range(whole + tid, end, THREADS):
                x = np.float64(load1((p,), j)[0][0])
                magnitude += abs(x)
                square += x * x
            # the penalty of the tile
            magnitudes[tid], squares[tid] = magnitude, square
            add_up(magnitudes, squares, tid)
            if tid == 0:
                l1, l2 = read_doubles2(record + L1)
                write_double(sums + tile * 8, l1 * magnitudes[0] + l2 * squares[0])
            cuda.syncthreads()  # the next tile begins with these cells

    return penalties


@cache
def penalties_kernel(dtype: str) -> Kernel:
    """Return the kernel of sums[tile], the penalties of parameters of one dtype."""
    return Kernel(_penalties(dtype), f"penalties_{dtype}")


class Penalties:
    """The penalties of some parameters on the device.

    params: addresses of all; those without a penalty are not read. sums: address of a float64 for each of `tiles`.
    """

    def __init__(
        self, gpu: Any, stream: int, dtype: str, params: Sequence[int], elements: Sequence[int],
        settings: Sequence[ParamSettings],
    ) -> None:  # fmt: skip
        self.gpu, self.stream, self.kernel = gpu, stream, penalties_kernel(dtype)
        self.indices = [i for i, own in enumerate(settings) if own.has_penalty]
        self.records = np.zeros(len(self.indices), PENALTIES)
        self.records["p"] = [params[i] for i in self.indices]
        self.records["elements"] = sizes = np.array([elements[i] for i in self.indices])
        tiles = -(-sizes // TILE)
        self.records["first_tile"] = np.cumsum(tiles) - tiles
        owners = np.repeat(np.arange(len(sizes), dtype=np.int32), tiles)  # the array of each tile
        self.tiles, self.num_elements = int(tiles.sum()), int(sizes.sum())
        self._memory, self._owners = gpu.allocate(self.records.nbytes), gpu.allocate(owners.nbytes)
        self._sums = gpu.allocate(8 * self.tiles)
        self.sums = int(self._sums.address)
        gpu.copy_in(self._owners.address, owners, stream)
        self.set_factors(settings)

    def set_factors(self, settings: Sequence[ParamSettings]) -> None:
        """Take the factors of these settings, of the same parameters, from now on."""
        for name in ("l1", "l2"):
            self.records[name] = [getattr(settings[i], name) for i in self.indices]
        self.gpu.copy_in(self._memory.address, self.records, self.stream)

    def launch(self) -> None:
        """Write the sums of all tiles."""
        addresses = self._memory.address, self._owners.address
        launch(self.gpu, self.kernel, self.tiles, self.stream, *addresses, self.tiles, self.sums)

    def value(self) -> float:
        """Return the penalty of the parameters as they are on the device. Waits for it."""
        self.launch()
        sums = np.zeros(self.tiles)
        self.gpu.copy_out(sums, self.sums, self.stream)
        self.gpu.wait(self.stream)
        return sum(sums.tolist())
