"""Shared fixtures, and hooks of pytest: the choice of tests, their processes, and their time limits."""

from __future__ import annotations

import ast
import faulthandler
import gc
import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helpers_guard
import hypothesis
import numpy as np
import pytest
from helpers_formulas import forget_formulas
from optimizers import first_of_its_kind, repeats

from fastopt import _backends
from fastopt.cli import main

CHILD = "FASTOPT_TEST_PROCESS"  # set in a process that runs one test
LAST_RESORT = 60  # seconds after a test's timeout


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--guard", choices=("end", "start"), help="lay all arrays flush against inaccessible pages")
    parser.addoption("--about", metavar="WORD", help="only tests that speak of it, as of a library that is optional")
    parser.addoption("--thorough", action="store_true", help="also run what repeats other tests, with more examples")


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all is collected, which has little garbage: 3 of 11 s
    # Number of examples of a test that gives none itself; no database in a folder that cannot be written to.
    place = {} if os.access(".", os.W_OK) else {"database": None}
    hypothesis.settings.register_profile("thorough", max_examples=100, **place)
    hypothesis.settings.register_profile("quick", max_examples=20, **place)
    hypothesis.settings.load_profile("thorough" if config.getoption("--thorough") else "quick")
    if CHILD in os.environ:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job of a shell ignores
    if side := config.getoption("--guard"):
        config.stash[GUARD] = helpers_guard.guarded_memory(side)
        config.stash[GUARD].__enter__()
    # A copy of stderr that no test captures; a process may also have been started without one.
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            config.stash[STDERR] = os.dup(2)
        except OSError:
            config.stash[STDERR] = os.open(os.devnull, os.O_WRONLY)


GUARD: pytest.StashKey[Any] = pytest.StashKey()
STDERR: pytest.StashKey[int] = pytest.StashKey()


# ---------------------------------------------------------------- which tests
def _repeats(item: pytest.Item) -> bool:
    """True for a test that repeats others: it is marked so, or another rule's or 16-bit update's shows the same."""
    if item.get_closest_marker("repeats"):
        return True
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if item.get_closest_marker("around_formulas") and not first_of_its_kind(params["rule"]):
        return True
    kind = params.get("kind", params.get("dtype"))
    kind = {"float16": "float16", "uint16": "bfloat16"}.get(kind.name) if isinstance(kind, np.dtype) else kind
    return "rule" in params and "form" in params and repeats(params["rule"], kind, params["form"])


@cache
def _source(thing: Any) -> str:
    return inspect.getsource(thing)


@cache
def _is_about(module: Any, word: str) -> bool:
    """True if a module's name, imports or marks speak of a word."""
    outermost = [ast.unparse(node) for node in ast.parse(_source(module)).body if not isinstance(node, _INNER)]
    telling = [text for text in outermost if text.startswith(("import ", "from ")) or "pytest." in text]
    return word in module.__name__.split("_") or any(re.search(rf"\b{word}\b", text) for text in telling)


_INNER = (ast.FunctionDef, ast.ClassDef)


def _speaks_of(item: pytest.Item, word: str) -> bool:
    """True if a test, its parameters, its fixtures or its module as a whole speak of a word."""
    if not isinstance(item, pytest.Function) or _is_about(item.module, word):
        return True
    fixtures = [fixture.func for known in item._fixtureinfo.name2fixturedefs.values() for fixture in known]
    functions = [item.function, *(f for f in fixtures if getattr(f, "__module__", "") == item.module.__name__)]
    texts = [item.name, *(_source(function) for function in functions if inspect.isfunction(function))]
    return any(re.search(rf"\b{word}\b", text) for text in texts)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that repeat others, unless asked for by the option or by name, and those about something else."""
    for item in items:
        if _repeats(item):
            item.add_marker("repeats")
    left_out = []
    if not config.getoption("--thorough") and not any("::" in argument for argument in config.args):
        left_out += [item for item in items if item.get_closest_marker("repeats")]
    if word := config.getoption("--about"):
        left_out += [item for item in items if not _speaks_of(item, word)]
    if left_out:
        config.hook.pytest_deselected(items=list(dict.fromkeys(left_out)))
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Let the collector pass over what lives as long as this process."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite on all processors; a part of it, or a debugged test, runs in this process."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    option = config.option
    chosen = option.keyword or option.markexpr or option.usepdb or option.capture == "no" or option.collectonly
    if whole and not chosen and getattr(option, "numprocesses", 0) is None and not hasattr(config, "workerinput"):
        option.numprocesses = "auto"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Let NumPy multiply on one thread where tests share the processors.

    Its threads spin after each product, while those of the other processes wait: 40 CPU seconds became 26, in 661 tests
    of models and estimators in two processes.
    """
    if (getattr(session.config.option, "numprocesses", None) or 0) > 1:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # which the processes inherit


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give every process neighbouring tests, which share kernels and fixtures, unless another order was asked for."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


# ---------------------------------------------------------------- what hangs
@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """End the process some time after a test's timeout.

    The timeout raises an exception in Python, for which compiled code may never return to it, and which code may catch.
    """
    if not item.config.getoption("usepdb"):
        faulthandler.dump_traceback_later(settings.timeout + LAST_RESORT, exit=True, file=item.config.stash[STDERR])


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """A thread that a test has left behind must not keep the process from ending."""
    faulthandler.dump_traceback_later(LAST_RESORT, exit=True, file=config.stash[STDERR])


# ---------------------------------------------------------------- processes and signals
@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `own_process` in one: it may send itself signals, and is ended if it hangs."""
    if CHILD in os.environ or not pyfuncitem.get_closest_marker("own_process"):
        return None
    done = _own_process(pyfuncitem.config, pyfuncitem.nodeid.partition("[")[0])
    assert done.returncode == 0, f"in a process of its own:\n{done.stdout}\n{done.stderr}"
    if skipped := re.search(r"^SKIPPED \[\d+\] (.*)", done.stdout, re.MULTILINE):
        pytest.skip(skipped[1])
    assert f"PASSED {pyfuncitem.nodeid}" in done.stdout.splitlines()
    return True


@cache
def _own_process(config: pytest.Config, function: str) -> subprocess.CompletedProcess[str]:
    """Run a function's tests, with all of their parameters, in a process, whose start takes longer than they do."""
    command = [sys.executable, "-m", "pytest", "-c", str(config.inipath), "--rootdir", str(config.rootpath)]
    command += ["-q", "-rps", "-p", "no:cacheprovider", "-p", "no:randomly", function]
    return subprocess.run(
        command, cwd=config.rootpath, env=os.environ | {CHILD: function}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _signals() -> Iterator[None]:
    """Tests may not interrupt this process, and processes that they start do not ignore interrupts.

    A background job of a shell ignores SIGINT, and so do its children, unless the job handles the signal.
    """
    if CHILD in os.environ:
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    kill, raise_signal = os.kill, signal.raise_signal

    def careful_kill(pid: int, number: int) -> None:
        assert pid != os.getpid() or number != signal.SIGINT, REFUSAL
        kill(pid, number)

    def careful_raise(number: int) -> None:
        assert number != signal.SIGINT, REFUSAL
        raise_signal(number)

    def refuse(*args: Any) -> None:
        raise AssertionError(REFUSAL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", careful_kill)
        patch.setattr(signal, "raise_signal", careful_raise)
        patch.setattr("_thread.interrupt_main", refuse)
        yield
    signal.signal(signal.SIGINT, before)


REFUSAL = "a test that interrupts its own process is to be marked `own_process`"


# ---------------------------------------------------------------- fixtures
@pytest.fixture(params=list(_backends.HOST))
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend in turn."""
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a model file that does not exist yet, in a folder of its own."""
    return tmp_path / "model.safetensors"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that runs a command line in this process and returns (status, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def _formulas_forgotten() -> Iterator[None]:
    """After a test, take formulas that it has defined out of the tables, which other tests go through."""
    yield
    forget_formulas()


@pytest.fixture(autouse=True)
def _nadam_in_float64(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch keeps NAdam's product of momenta in float32, unless that is not the default dtype; ours is of float64."""
    if not re.search("nadam", request.node.nodeid, re.IGNORECASE) or "torch" not in sys.modules:
        yield
        return
    torch = sys.modules["torch"]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def _number_of_threads() -> Iterator[None]:
    """Put back the number of threads that a test has set, which the next one would find."""
    name = "fastopt.kernels.cpu.runtime.launch"
    before = getattr(sys.modules.get(name), "_threads", None)
    yield
    if name in sys.modules:
        sys.modules[name]._threads = before  # type: ignore[attr-defined]
