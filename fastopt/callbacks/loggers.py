"""Callbacks that write figures: to a table, and for TensorBoard. They read no weights."""

from __future__ import annotations

import csv
import io
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any

from .._exclusive import Single
from .._validation import check_count, check_flag, describe
from .base import Callback


class _Logger(Callback):
    """Base of callbacks that write to something that is open during a training."""

    reads_weights, writes_files = False, True

    def __init__(self) -> None:
        self._user = Single()

    @contextmanager
    def used(self) -> Iterator[None]:
        name = type(self).__name__
        refusal = f"this {name} is writing figures of another training: give each `fit` its own"
        with self._user.taken(refusal), self.opened():
            yield

    def opened(self) -> AbstractContextManager[None]:
        """Open until the training has ended, also by an error."""
        raise NotImplementedError


class CSVLogger(_Logger):
    """Write the figures of every epoch to a table: a line of names, "epoch" first, then one line for each epoch.

    filename   path of the file; its folder must be there
    separator  between columns, one character
    append     True: add lines to a file that is there, without a second line of names; ValueError, before anything is
               changed, where its columns are others. False: replace it

    Names and defaults are Keras's. Numbers are written in full, so that they can be read back exactly; figures of the
    validation in an epoch without one (`validation_freq`) are nan. Each line is flushed to the file when its epoch has
    ended. A training that goes on from a checkpoint takes out the lines of epochs after it, which come again.

    >>> CSVLogger("figures.csv").separator
    ','
    """

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        super().__init__()
        if not isinstance(filename, str | os.PathLike):
            raise TypeError(f"filename must be a str or a path; got {describe(filename)}")
        if not isinstance(separator, str):
            raise TypeError(f"separator must be a string; got {describe(separator)}")
        if len(separator) != 1 or separator in '\r\n"':
            raise ValueError(f"separator must be one character, no quote and no end of line; got {separator!r}")
        self.filename, self.separator, self.append = filename, separator, check_flag("append", append)
        self._columns: list[str] = []
        self._file: IO[bytes] | None = None
        self._first = 0  # bytes of the file before the lines of this training
        self._lines: list[str] | None = None  # of this training; None: it has not written anything yet

    def check(self, names: Sequence[str]) -> None:
        self._columns = ["epoch", *names]
        found = self._header()
        if found and found != self._columns:
            raise ValueError(
                f"the columns of {os.fspath(self.filename)} must be {', '.join(self._columns)}, to be added to; got"
                f" {', '.join(found)}"
            )

    def _header(self) -> list[str]:
        """Names in the file that lines are to be added to; none in one that is empty or is not there."""
        if not self.append or not os.path.exists(self.filename):
            return []
        with open(self.filename, newline="", encoding="utf-8") as file:
            return next(csv.reader(file, delimiter=self.separator), [])

    @contextmanager
    def opened(self) -> Iterator[None]:
        self._lines = None
        with open(self.filename, "ab") as self._file:
            try:
                yield
            finally:
                self._file = None

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> None:
        self._begin()
        self._write([epoch, *(repr(float(logs.get(name, math.nan))) for name in self._columns[1:])])

    def on_train_end(self, model: Any) -> None:
        self._begin()

    def state_dict(self) -> dict[str, Any]:
        self._begin()
        return {"first": self._first, "text": "".join(self._lines or ())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._first, self._lines = min(int(state["first"]), os.fstat(self._file.fileno()).st_size), [state["text"]]
        self._truncate(self._first)  # lines of epochs after the checkpoint, which come again
        self._add(state["text"])

    def _begin(self) -> None:
        """Write the names, unless the file has them; not before there is a line to write or the training has ended."""
        if self._lines is not None:
            return
        assert self._file is not None
        self._lines, begins = [], not self._header()
        if not self.append:
            self._truncate(0)
        self._first = os.fstat(self._file.fileno()).st_size
        if begins:
            self._write(self._columns)

    def _write(self, row: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line, delimiter=self.separator, lineterminator="\n").writerow(row)
        assert self._lines is not None
        self._lines.append(line.getvalue())
        self._add(line.getvalue())

    def _truncate(self, length: int) -> None:
        """Shorten the file, if it is one: a pipe or a device is not."""
        assert self._file is not None
        if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate(length)

    def _add(self, text: str) -> None:
        assert self._file is not None
        self._file.write(text.encode())
        self._file.flush()


class TensorBoard(_Logger):
    """Write the figures of every epoch, and the loss within epochs, for TensorBoard (extra `tensorboard`).

    log_dir      folder of the logs. Figures of the training rows go to its folder "train", those of the validation rows
                 to "validation", under the same names, such as "epoch_loss", so that they are drawn into one picture
    update_freq  "epoch", or n: "batch_loss" and "batch_lr" after every n steps, too, at the optimizer's step number

    Names and defaults are Keras's. Logs are written by tensorboardX, without TensorFlow; ImportError where it is not
    installed. `tensorboard --logdir logs` shows them.

    >>> board = TensorBoard("logs/first", update_freq=100)  # doctest: +SKIP
    """

    def __init__(self, log_dir: str | os.PathLike[str] = "logs", update_freq: str | int = "epoch") -> None:
        super().__init__()
        if not isinstance(log_dir, str | os.PathLike):
            raise TypeError(f"log_dir must be a str or a path; got {describe(log_dir)}")
        if isinstance(update_freq, str) and update_freq != "epoch":
            raise ValueError(f'update_freq must be "epoch" or a number of steps; got {update_freq!r}')
        self.every_steps = None if isinstance(update_freq, str) else check_count("update_freq", update_freq)
        self.log_dir, self.update_freq = log_dir, update_freq
        self._writers: dict[str, Any] = {}
        _summary_writer()

    @contextmanager
    def opened(self) -> Iterator[None]:
        try:
            yield
        finally:
            for writer in self._writers.values():
                writer.close()
            self._writers = {}

    def _writer(self, rows: str) -> Any:
        """The writer for figures of "train" or "validation" rows, which makes its folder."""
        if rows not in self._writers:
            self._writers[rows] = _summary_writer()(os.path.join(self.log_dir, rows))
        return self._writers[rows]

    def on_step_end(self, model: Any, step: int, logs: Mapping[str, float]) -> None:
        for name, value in logs.items():
            self._writer("train").add_scalar(f"batch_{name}", value, step)

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> None:
        for name, value in logs.items():
            rows = "validation" if name.startswith("val_") else "train"
            self._writer(rows).add_scalar(f"epoch_{name.removeprefix('val_')}", value, epoch)
        for writer in self._writers.values():
            writer.flush()


def _summary_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard needs tensorboardX: pip install 'fastopt[tensorboard]'") from error
    return SummaryWriter
