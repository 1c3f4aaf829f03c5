"""The list of phases that a pass runs for every batch, for a network of any depth, and the pass itself.

A `Program` is built like this: gather | forward, layer by layer | loss and metrics | gradients, last layer first, with
the updates | finish. Each phase is a kernel with its record. A barrier follows it if the next phase reads what other
ranks wrote. A new kind of layer is a new phase, and evaluation is a shorter program.

`phases` has the list, with its memory. The phases of the network are in `forward`, `loss_and_metrics` and `backward`,
those that begin and end a batch or an epoch are here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np

from ... import costs
from ...profile import recorder
from ...sources import Source
from ...spec import Batches, DenseSpec, Shuffle
from ..dense.gather import gather_kernel, layout_of
from ..dense.layer import splits_of
from ..dense.quantized import gather_codes_kernel
from ..dense.rows import rows_kernel
from ..runtime.compile import ffi
from ..runtime.launch import get_num_threads
from ..runtime.primitives import address_of
from ..runtime.records import GATHER, RUN, SHUFFLE, STOP_BATCH, STOP_EPOCH, fill, word_of, words_of
from ..runtime.teams import run_team
from .backward import add_gradients
from .forward import add_layers, add_link
from .judge import JUDGE_KERNEL, Judge
from .loss_and_metrics import add_loss_and_metrics, has_labels
from .phases import PhaseList
from .quantized import codes_of_data, takes_codes
from .row_weights import RowWeights
from .run import FINISH, RUN_PROGRAM, clock, marking
from .shuffle import shuffle_kernel
from .source import SourceWords

WATCHED_FLOPS = 2e8  # operations after which a pass is worth watching, some 10 ms
BATCH_FLOPS = 2e4  # operations that take as long as a batch takes beside its own: some 1 us for its phases


# Words of records that change from pass to pass: an assignment to a word of a memoryview takes 0.02 us, to a field of a
# record 0.2 us.
NUM_ROWS, NUM_BATCHES, FIRST_BATCH, NUM_EPOCHS, EPOCH_STRIDE, ORDER, DONE, STOP, EPOCH_ENDS, CLOCK, LOSSES_OF_EPOCHS = (
    word_of(RUN, name)
    for name in (
        "num_rows", "num_batches", "first_batch", "num_epochs", "epoch_stride", "order", "done", "stop", "epoch_ends",
        "clock", "losses",
    )
)
STARTS, JUDGED, JUDGE_CODE = (word_of(RUN, name) for name in ("starts", "judge", "judge_code"))
RESET = [word_of(RUN, name) for name in ("arrivals", "done", "stop", "halt", "epoch_ends", "losses", "starts", "judge")]
X, Y, ROW_BYTES = word_of(GATHER, "x"), word_of(GATHER, "y"), word_of(GATHER, "row_bytes")


class Program(PhaseList):
    """The phases of a batch, and the passes that run them."""

    source: SourceWords  # of the record of the gather
    target: memoryview  # of the scatter
    rows: np.ndarray | None = None  # record of the shuffle
    starts = np.zeros(0, np.int64)  # of the batches of this pass, where each has a size of its own
    blocks: np.ndarray | None = None  # memory of the shuffle for the order of blocks
    judge: Judge | None = None  # of the last pass that had one

    # ------------------------------------------------------------ the network
    forward = add_layers
    link = add_link
    loss_and_metrics = add_loss_and_metrics
    backward = add_gradients

    # ------------------------------------------------------------ the batch
    def shuffle(self, order: str, in_blocks: bool) -> None:
        """Add the order of an epoch's rows; the first phase, which runs before the first batch of an epoch only.

        order: the dtype of row numbers.
        """
        self.rows = fill(SHUFFLE, run=self.run)
        self.add(shuffle_kernel(order, in_blocks), self.rows, barrier=True, cost=costs.shuffle())
        self.run["epoch_phases"] = len(self.phases)

    def weigh(self, order: str, accumulate: int = 1) -> None:
        """Add the weights of rows, before `gather`; `accumulate` batches make a step. order: dtype of row numbers."""
        self.row_weights = RowWeights(self.run, self.zeros(self.batch_size), accumulate, order)
        self.row_weights.add_sums_to(self)
        self.run["epoch_phases"] = len(self.phases)
        self.row_weights.add_gather_to(self)

    def gather(self, data: Batches) -> tuple[np.ndarray, np.ndarray | None]:
        """Add the copy of the batch's rows; return where they lie: x and, if there are targets, y.

        x is (splits, rows, columns of a split) if the first layer of a training is split, else (rows, inputs).
        """
        net, labels, first = self.net, False, self.net.layers[0]
        if data.y is None and not isinstance(data.x, Source) and takes_codes(first):
            return self._gather_codes(data), None
        num_splits, split_cols = 1, net.inputs
        if self.verb == "train" and isinstance(first, DenseSpec):
            num_splits, split_cols = splits_of(self.batch_size, first.inputs, first.outputs)
        splits = (num_splits,) if num_splits > 1 else ()
        x, y = self.zeros(*splits, self.batch_size, split_cols), None
        fields: dict[str, Any] = {
            "run": self.run, "batch_x": x, "inputs": net.inputs, "piece_cols": split_cols,
            "capacity": self.batch_size,
        }  # fmt: skip
        if data.y is not None:
            labels = has_labels(data.y)
            y = np.zeros(self.batch_size, np.int64) if labels else self.zeros(self.batch_size, net.outputs)
            self.kept.append(y)
            fields |= {"y": data.y, "batch_y": y, "outputs": net.outputs, "has_labels": int(labels)}
        targets = 0 if y is None else net.outputs
        stored = data.x.nbytes / max(1, data.x.shape[0] * data.x.shape[1]) if isinstance(data.x, Source) else None
        cost = costs.gather(net.inputs, targets, self.verb == "train", net.itemsize, labels, stored)
        record = fill(GATHER, **fields)
        self.source = SourceWords(record, net.compute)
        kernel = gather_kernel(layout_of(data.x), net.compute, data.order.dtype.name)
        self.add(kernel, record, barrier=True, cost=cost)
        return x, y

    def _gather_codes(self, data: Batches) -> np.ndarray:
        """Add the codes of the batch's rows for the first layer; return where they lie."""
        order = data.order.dtype.name
        x, record, cost = codes_of_data(self)
        self.source = SourceWords(record, self.net.compute)
        self.add(gather_codes_kernel(order), record, barrier=True, cost=cost)
        return x

    def scatter(self, outputs: np.ndarray, out: np.ndarray) -> None:
        """Add the copy of the batch's outputs to their rows of `out`."""
        record = fill(GATHER, run=self.run, x=out, batch_x=outputs, inputs=self.net.outputs)
        self.target = words_of(record)
        cost = costs.scatter(self.net.outputs, self.net.itemsize)
        self.add(rows_kernel("scatter", self.net.dtype), record, barrier=False, cost=cost)

    def finish(self) -> None:
        """Add the end of a batch: the program is complete."""
        self.add(FINISH, self.run, barrier=True)
        table = np.array(self.phases, np.int64)
        self.kept.append(table)
        self.run["phases"], self.run["num_phases"] = address_of(table), len(table)

    def read_from(self, x: np.ndarray | Source, y: np.ndarray | None) -> None:
        """Read the rows of other data, of the same layout and columns, which the caller keeps alive for a pass."""
        words = self.source.words
        if isinstance(x, Source):
            self.source.describe(x)
        else:
            words[X], words[ROW_BYTES] = _address(x), x.strides[0]
        words[Y] = 0 if y is None else _address(y)

    def write_to(self, out: np.ndarray) -> None:
        """Write the outputs to another array, which the caller keeps alive for a pass."""
        self.target[X] = _address(out)

    # ------------------------------------------------------------ a pass
    def begin(
        self, num_rows: int, order: np.ndarray | None, first_batch: int = 0, num_epochs: int = 1, epoch_stride: int = 0
    ) -> None:
        """Set the rows of a pass: their number, and their order, which the caller keeps alive.

        first_batch: number of batches done before. epoch_stride: numbers from the first batch of an epoch to that of
        the next one; 0: there are no epochs, but one way through the data.
        """
        words = self.words
        words[NUM_ROWS], words[NUM_BATCHES], words[FIRST_BATCH] = num_rows, -(-num_rows // self.batch_size), first_batch
        words[NUM_EPOCHS], words[EPOCH_STRIDE] = num_epochs, epoch_stride
        words[ORDER] = 0 if order is None else _address(order)
        for word in RESET:
            words[word] = 0

    def cut_at(self, starts: np.ndarray) -> None:
        """Let the batches of the only epoch begin at these rows; the last one is past the end. Call it after `begin`.

        starts: (batches + 1,) int64.
        """
        self.words[STARTS], self.words[NUM_BATCHES] = address_of(starts), len(starts) - 1
        self.starts = starts

    def shuffle_from(self, rows: np.ndarray, shuffle: Shuffle) -> None:
        """Let every epoch begin by drawing the order of these rows, which the caller keeps alive."""
        assert self.rows is not None
        self.rows["rows"], self.rows["count"], self.rows["seed"] = rows.ctypes.data, len(rows), shuffle.seed
        self.rows["first_epoch"] = shuffle.first_epoch
        if shuffle.block_rows:
            blocks = np.empty(-(-len(rows) // shuffle.block_rows), rows.dtype)
            self.rows["block_rows"], self.rows["window_rows"] = shuffle.block_rows, shuffle.window_rows
            self.rows["blocks"], self.blocks = address_of(blocks), blocks

    def time_epochs(self) -> Callable[[int, int, int], np.ndarray]:
        """Let a pass keep the times at which its epochs end; call it after `begin`.

        Returns a function (start, end, n) -> seconds of each of the first n epochs, (n,) float64. start, end: those of
        the pass, in nanoseconds of time.perf_counter_ns. The function is to live as long as the pass.
        """
        num_epochs = self.words[NUM_EPOCHS]
        if num_epochs == 1:  # it ends with the pass
            return lambda start, end, epochs: np.full(epochs, (end - start) / 1e9)
        now, ends = clock(), np.zeros((num_epochs, 2), np.int64)
        self.words[EPOCH_ENDS], self.words[CLOCK] = _address(ends), now.address
        return lambda start, end, epochs: np.diff(now.nanoseconds(ends[:epochs]), prepend=start) / 1e9

    def end_if_diverged(self, losses: np.ndarray) -> None:
        """Let a pass end with an epoch whose losses are not finite; call it after `begin`."""
        self.words[LOSSES_OF_EPOCHS] = _address(losses)

    def judge_by(self, judge: Judge) -> None:
        """Let a pass end by the losses of its epochs; call it after `begin`."""
        self.words[JUDGED], self.words[JUDGE_CODE] = _address(judge.record), JUDGE_KERNEL.address
        self.judge = judge

    @property
    def done(self) -> int:
        """The number of the next batch."""
        return self.words[DONE]

    def execute(self, flops: float, watch: Callable[[int], bool] | None = None) -> None:
        """Run all batches; `run` has the number of the next one, less than all if the pass was ended early.

        flops: of the pass. watch: is told this number some twenty times a second if the pass takes long. The pass ends
        with the epoch if it returns true, and with the batch if it raises or the calling thread is interrupted.
        """
        words, num_ranks = self.words, self.num_ranks
        listener = recorder.get()  # an open `fastopt.profile`
        is_long = flops + BATCH_FLOPS * words[NUM_EPOCHS] * words[NUM_BATCHES] > WATCHED_FLOPS
        if num_ranks == 1 and not is_long and listener is None:
            RUN_PROGRAM.run(self.address, 0, 0, 1)
            return

        def look() -> None:
            if watch and watch(words[DONE]):
                words[STOP] = STOP_EPOCH

        def stop() -> None:
            words[STOP] = STOP_BATCH

        if num_ranks > 1:
            num_ranks = min(num_ranks, get_num_threads())
        marked = nullcontext(RUN_PROGRAM) if listener is None else marking(
            listener, self.verb, self.net.compute, self.run[0], self.costs, num_ranks, self.starts.tolist()
        )  # fmt: skip
        with marked as kernel:
            run_team(kernel, self.address, num_ranks, look if is_long else None, stop)


def _address(array: np.ndarray) -> int:
    """The address of a contiguous array that is not empty, in half the time of `address_of`."""
    return int(ffi.cast("intptr_t", ffi.from_buffer(array)))
