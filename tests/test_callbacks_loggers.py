"""Figures in tables and for TensorBoard are those of the history, and files are closed however a training ends."""

from __future__ import annotations

import csv
import sys
from typing import ClassVar

import pytest
from helpers_model import blobs, classifier

from fastopt import Callback
from fastopt.callbacks import CSVLogger, TensorBoard


class Fail(Callback):
    def on_epoch_end(self, model, epoch, logs):
        if epoch == 2:
            raise RuntimeError("from a callback")


def fit(*callbacks, backend="numpy", epochs=3, **options):
    return classifier(backend).fit(
        *blobs(40), epochs=epochs, validation_split=0.25, callbacks=callbacks, verbose=0, **options
    )


def read(path, **options):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file, **options))


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_has_the_history_to_the_last_bit(separator, backend, tmp_path):
    path = tmp_path / "figures.csv"
    history = fit(CSVLogger(path, separator), backend=backend)
    header, *lines = read(path, delimiter=separator)
    assert header == list(history.to_dict())
    assert [[float(value) for value in line] for line in lines] == [
        list(row) for row in zip(*history.to_dict().values(), strict=True)
    ]
    assert [line[0] for line in lines] == ["1", "2", "3"]


def test_a_table_is_replaced_or_continued(tmp_path):
    path = tmp_path / "figures.csv"
    path.write_text("old")
    fit(CSVLogger(path))
    assert len(read(path)) == 4
    fit(CSVLogger(str(path), append=True), epochs=5, initial_epoch=3)
    assert [row[0] for row in read(path)] == ["epoch", "1", "2", "3", "4", "5"]
    path.write_text("")
    fit(CSVLogger(path, append=True))
    assert [row[0] for row in read(path)] == ["epoch", "1", "2", "3"]
    before, model = path.read_bytes(), classifier()
    with pytest.raises(ValueError, match="the columns of .* must be epoch, loss, accuracy, lr, .*; got epoch, "):
        model.fit(*blobs(40), callbacks=[CSVLogger(path, append=True)])
    assert path.read_bytes() == before
    assert model.optimizer.steps == 0


def test_after_an_error_a_table_has_the_epochs_before_it_and_is_closed(tmp_path):
    path = tmp_path / "figures.csv"
    logger = CSVLogger(path)
    with pytest.raises(RuntimeError, match="from a callback"):
        fit(logger, Fail())
    assert [row[0] for row in read(path)] == ["epoch", "1", "2"]
    assert logger._file is None
    fit(logger)  # which can be used again
    assert len(read(path)) == 4


def test_a_logger_writes_one_training_at_a_time(tmp_path):
    logger = CSVLogger(tmp_path / "figures.csv")

    class Nested(Callback):
        def on_epoch_end(self, model, epoch, logs):
            fit(logger)

    with pytest.raises(RuntimeError, match="this CSVLogger is writing figures of another training: give each `fit`"):
        fit(logger, Nested())


def test_a_folder_that_is_not_there_is_an_error_before_the_first_step(tmp_path):
    model = classifier()
    with pytest.raises(FileNotFoundError):
        model.fit(*blobs(), callbacks=[CSVLogger(tmp_path / "no" / "figures.csv")])
    assert model.optimizer.steps == 0


# ---------------------------------------------------------------- TensorBoard


class Writer:
    """Stands in for tensorboardX's: the calls, and the numbers."""

    made: ClassVar = []

    def __init__(self, logdir):
        self.logdir, self.scalars, self.closed = str(logdir), [], False
        Writer.made.append(self)

    def add_scalar(self, tag, value, global_step):
        self.scalars.append((tag, value, global_step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    module = type(sys)("tensorboardX")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_figures_of_epochs_go_to_two_folders(writers, backend, tmp_path):
    history = fit(TensorBoard(tmp_path / "logs"), backend=backend)
    assert [writer.logdir for writer in writers] == [str(tmp_path / "logs" / name) for name in ("train", "validation")]
    for writer, prefix in zip(writers, ("", "val_"), strict=True):
        wanted = [
            (f"epoch_{name.removeprefix('val_')}", values[i], i + 1)
            for i in range(3)
            for name, values in history.history.items()
            if name.startswith("val_") == bool(prefix)
        ]
        assert writer.scalars == wanted
        assert writer.closed


def test_writers_are_closed_after_an_error(writers):
    board = TensorBoard("logs")
    with pytest.raises(RuntimeError, match="from a callback"):
        fit(board, Fail())
    assert [writer.closed for writer in writers] == [True, True]
    fit(board)
    assert len(writers) == 4


def test_tensorboard_reads_what_is_written(tmp_path):
    pytest.importorskip("tensorboardX")
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    record = pytest.importorskip("tensorboardX.record_writer")
    history = fit(TensorBoard(tmp_path))
    (path,) = (tmp_path / "validation").iterdir()
    data, found = path.read_bytes(), []
    while data:  # length (8), its checksum (4), an event, its checksum (4)
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        assert int.from_bytes(data[8:12], "little") == record.masked_crc32c(data[:8])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + size :]
    losses = [(step, value) for tag, step, value in found if tag == "epoch_loss"]
    assert losses == [(i + 1, pytest.approx(value, rel=1e-6)) for i, value in enumerate(history["val_loss"])]


def test_without_tensorboardx_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"TensorBoard needs tensorboardX: pip install 'fastopt\[tensorboard\]'"):
        TensorBoard()


# ---------------------------------------------------------------- arguments

WRONG = [
    (lambda: CSVLogger(3), TypeError, "filename must be a str or a path; got 3"),
    (lambda: CSVLogger("a", 3), TypeError, "separator must be a string; got 3"),
    (lambda: CSVLogger("a", ";;"), ValueError, "separator must be one character, no quote and no end of line"),
    (lambda: CSVLogger("a", "\n"), ValueError, "separator must be one character"),
    (lambda: CSVLogger("a", append=1), TypeError, "append must be True or False"),
    (lambda: TensorBoard(3), TypeError, "log_dir must be a str or a path; got 3"),
    (lambda: TensorBoard(update_freq="batch"), ValueError, 'update_freq must be "epoch" or a number of steps'),
    (lambda: TensorBoard(update_freq=0), ValueError, "update_freq must be at least 1"),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG)
def test_wrong_arguments(make, error, message, writers):
    with pytest.raises(error, match=message):
        make()
