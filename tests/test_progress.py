"""The bar is drawn where it is wanted, and says what it should."""

import sys
from types import SimpleNamespace

import pytest
from helpers_model import blobs, classifier

from fastopt.models import progress


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
    assert progress.wants_bar("auto") is terminal


class Kernels:
    """Shells of IPython, as they tell that they are of a notebook."""

    with_kernel = SimpleNamespace(kernel=object())
    configured = SimpleNamespace(config={"IPKernelApp": {}})
    named = type("ZMQInteractiveShell", (), {})()


@pytest.fixture(params=["with_kernel", "configured", "named"])
def notebook(request, monkeypatch):
    shell = getattr(Kernels, request.param)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_auto_shows_the_bar_in_a_notebook(notebook, capsys):
    assert progress.wants_bar("auto")
    classifier().fit(*blobs(), epochs=2)
    assert "Epoch 2/2: 100%" in capsys.readouterr().err  # tqdm.auto draws text where it finds no widgets
    classifier().fit(*blobs(), verbose=0)
    assert capsys.readouterr().err == ""


def test_the_bar_of_a_notebook_is_a_widget(notebook, monkeypatch):
    made = []

    class Base:
        __module__ = "tqdm.notebook"

        def __init__(self, **options):
            made.append(options)

        def __getattr__(self, name):
            return lambda *_, **__: "1k"

    class Widget(Base):
        __module__ = "tqdm.auto"

    monkeypatch.setitem(sys.modules, "tqdm.auto", SimpleNamespace(tqdm=Widget))
    classifier().fit(*blobs(), epochs=2, verbose=1)
    assert len(made) == 2
    assert all("|{bar}|" in options["bar_format"] for options in made)  # in the place of which comes the widget


@pytest.mark.parametrize("shell", [None, SimpleNamespace(kernel=None, config={"TerminalIPythonApp": {}})])
def test_ipython_on_a_terminal_is_no_notebook(shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert not progress.in_notebook()
    assert progress.wants_bar("auto") is False
    assert progress.tqdm_class()[0].__module__ == "tqdm.std"


def test_auto_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    assert progress.wants_bar("auto") is False


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
