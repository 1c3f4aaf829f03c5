"""The bar is drawn where it is wanted, and says what it should."""

import sys

import pytest
from helpers_model import blobs, classifier

from fastopt import progress


def test_bar_shows_epochs_figures_and_speed(capsys):
    classifier().fit(*blobs(), epochs=2, validation_split=0.25, verbose=1)
    output = capsys.readouterr()
    assert output.out == ""
    for part in ("Epoch 1/2: ", "Epoch 2/2: 100%", "90.0/90.0", "loss=", "accuracy=", "val_accuracy=", "samples/s"):
        assert part in output.err
    assert "seconds=" not in output.err


@pytest.mark.parametrize("verbose", ["auto", 0, False])
def test_silent(verbose, capsys):
    classifier().fit(*blobs(), verbose=verbose)
    output = capsys.readouterr()
    assert output.out == output.err == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_auto_asks_whether_stderr_is_a_terminal(terminal, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert progress.wanted("auto") is terminal


def test_auto_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    assert progress.wanted("auto") is False


def test_bar_moves_and_names_what_is_compiled(capsys):
    bar = progress.Bar(1, 3, samples=100, batch_size=8)
    bar.compiling("update_adam")
    bar.advance(5, 0.125)
    bar.advance(13, 0.25)  # 104 rows would be more than there are
    bar.close()
    err = capsys.readouterr().err
    for part in ("Epoch 1/3 (compiling update_adam)", "Epoch 1/3:  40%", "loss=0.125", "100%", "100/100"):
        assert part in err


@pytest.mark.parametrize(
    ("verbose", "error"), [(2, ValueError), ("yes", ValueError), (None, TypeError), (0.5, TypeError)]
)
def test_wrong_verbose(verbose, error):
    with pytest.raises(error, match='verbose must be "auto", 0 or 1; got'):
        classifier().fit(*blobs(), verbose=verbose)
