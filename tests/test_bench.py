"""`fastopt bench`: what it runs and how, and that a run's file is one that `fastopt report` reads."""

import argparse
import ast
import json
import os
import sys
from pathlib import Path

import pytest

from fastopt.cli import bench, main
from fastopt.reports import read


@pytest.fixture
def pytest_call(monkeypatch):
    """Calls of pytest, as a list of (command, environment); the stand-in for it ends with the status in `status`."""

    class Process:
        calls, status = [], 0

        def __init__(self, command, env):
            self.calls.append((command, env))

        def wait(self):
            for option in self.calls[-1][0]:
                if option.startswith("--benchmark-json=") and self.measured:
                    Path(option.partition("=")[2]).write_text(self.measured, encoding="utf-8")
            return self.status

    Process.calls = []
    Process.measured = ""
    monkeypatch.setattr(bench.subprocess, "Popen", Process)
    return Process


def test_suites_are_the_files(capsys):
    files = {name for name in os.listdir(bench.folder()) if name.startswith("test_")}
    assert {f"test_{name}.py" for name in bench.suites()} == files
    assert {"dense", "epochs", "loops", "losses", "products", "program", "steps", "updates"} <= set(bench.suites())
    assert main.main(["bench", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(bench.suites())
    for line, path in zip(lines, bench.suites().values(), strict=True):
        assert line.partition("   ")[2].strip() in ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert len(line) > 30  # every suite says what it is


def test_suites_for_a_gpu(capsys):
    assert {"dense", "kernels", "limits", "networks", "small_networks", "steps", "updates"} == set(bench.suites("cuda"))
    assert main.main(["bench", "--backend", "cuda", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(bench.suites("cuda"))
    assert min(map(len, lines)) > 30


def test_a_gpu_is_looked_for_first(pytest_call, capsys, monkeypatch):
    def require():
        raise ImportError("the backend 'cuda' lacks a device: buy one")

    monkeypatch.setattr("fastopt.kernels.cuda.installation.require", require)
    assert main.main(["bench", "--backend", "cuda"]) == 2
    assert capsys.readouterr().err == "fastopt: error: the backend 'cuda' lacks a device: buy one\n"
    assert not pytest_call.calls
    monkeypatch.setattr("fastopt.kernels.cuda.installation.require", lambda: None)
    assert main.main(["bench", "--backend", "cuda", "updates"]) == 0
    ((command, _),) = pytest_call.calls
    assert command[-1] == str(bench.suites("cuda")["updates"])
    assert main.main(["bench", "--backend", "cuda", "--threads", "2"]) == 2
    assert "--threads is for the CPU" in capsys.readouterr().err


def test_all_suites_without_options(pytest_call):
    assert main.main(["bench"]) == 0
    ((command, environment),) = pytest_call.calls
    assert command[:3] == [sys.executable, "-m", "pytest"]
    assert command[-len(bench.suites()) :] == [str(path) for path in bench.suites().values()]
    assert environment == dict(os.environ)
    assert not [part for part in command if part.startswith(("--quick", "--benchmark-json", "-k"))]


def test_options_reach_pytest(pytest_call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pytest_call.measured = "figures"
    options = ["--json", "run.json", "--quick", "--threads", "3", "-k", "adam"]
    assert main.main(["bench", "updates", "dense", *options]) == 0
    ((command, environment),) = pytest_call.calls
    assert command[-2:] == [str(bench.suites()[name]) for name in ("updates", "dense")]
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == "figures"
    assert "--quick" in command
    assert command[command.index("-k") + 1] == "adam"
    assert {environment[name] for name in bench.THREADS} == {"3"}
    assert "fastopt report run.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "expected", "message"),
    [
        (1, 1, ""),
        (2, 130, "fastopt: interrupted"),
        (4, 2, "pytest ended with status 4"),
        (5, 2, "no benchmark matches -k 'x'"),
    ],
)
def test_how_pytest_ends(pytest_call, capsys, status, expected, message):
    pytest_call.status = status
    assert main.main(["bench", "-k", "x"]) == expected
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("status", "measured"), [(2, "figures"), (4, "figures"), (0, "")])
def test_a_file_stays_unless_something_was_measured_to_the_end(pytest_call, tmp_path, capsys, status, measured):
    path = tmp_path / "run.json"
    path.write_text("older", encoding="utf-8")
    pytest_call.status, pytest_call.measured = status, measured
    main.main(["bench", "--json", str(path)])
    assert path.read_text(encoding="utf-8") == "older"
    assert "What was measured" not in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["run.json"]


def test_an_interrupt_waits_for_pytest(pytest_call, monkeypatch):
    waits = []

    def wait(self):
        waits.append(self)
        if len(waits) == 1:
            raise KeyboardInterrupt
        return 2

    monkeypatch.setattr(pytest_call, "wait", wait)
    assert main.main(["bench"]) == 130
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["update"], "unknown suite 'update'; known: compress, dense, distributed, epochs, estimators, loops, losses"),
        (["--json", "no/such/folder/run.json"], "--json no/such/folder/run.json: there is no folder"),
        (["--json", "."], "got a folder"),
    ],
)
def test_errors_come_before_anything_runs(pytest_call, capsys, arguments, message):
    assert main.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not pytest_call.calls


@pytest.mark.parametrize("module", ["pytest", "pytest_benchmark"])
def test_without_pytest_benchmark(pytest_call, capsys, monkeypatch, module):
    find = bench.importlib.util.find_spec
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    assert main.main(["bench"]) == 2
    assert "the benchmarks need pytest" in capsys.readouterr().err
    assert not pytest_call.calls


def test_without_the_package_of_benchmarks(capsys, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert main.main(["bench"]) == 2
    assert "has no benchmarks" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.repeats
def test_a_quick_run_makes_a_report(tmp_path, capfd, monkeypatch):
    """A suite without other libraries, in the process that `bench` starts."""
    pytest.importorskip("pytest_benchmark", reason="in the extra `bench`")
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)  # pytest-benchmark measures nothing in one of several workers
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:timeout -p no:xdist")  # as where only the extra `bench` is installed
    path = tmp_path / "run.json"
    only = "(test_step and 1000-fastopt) or sgd-1000-fastopt"
    status = main.main(["bench", "steps", "updates", "--quick", "--threads", "1", "--json", str(path), "-k", only])
    out = capfd.readouterr().out
    assert status == 0, out
    run = read.read(path)
    assert [(result.kind, result.name, result.contestant) for result in run.results] == [
        ("step", "adam", "fastopt"),
        ("update", "sgd", "fastopt"),
    ]
    step, update = run.results
    assert (step.size, step.bytes, update.size, update.bytes) == (100_000, 2.8e6, 1000, 12e3)
    assert update.flops == 4 * 1000
    assert 0 < update.limit_seconds < 1
    assert run.roof > max(run.peaks.values()) / 2 > 0
    assert run.peak_by
    assert run.processor == f"{bench.processor()}, 1 threads"
    assert "1 threads" in run.machine
    info = json.loads(path.read_text(encoding="utf-8"))["benchmarks"][1]["extra_info"]
    assert info["threads"] == 1
    assert info["GB/s"] > 0


@pytest.mark.parametrize(
    ("host", "target", "expected"),
    [
        ("znver4", None, "zen4"),
        ("znver5", "host", "zen5"),
        ("znver5", "znver5", "zen5"),
        ("emeraldrapids", None, "emeraldrapids"),
        ("znver5", "haswell", "zen5-as-haswell"),
        ("apple-m1", None, "apple-m1"),
    ],
)
def test_a_run_is_named_after_the_processor(monkeypatch, pytest_call, tmp_path, host, target, expected):
    import llvmlite.binding
    import numba

    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_name", lambda: host)
    monkeypatch.setattr(numba.config, "CPU_NAME", target)
    assert bench.processor() == expected
    monkeypatch.chdir(tmp_path)
    pytest_call.measured = "figures"
    assert main.main(["bench", "updates", "--json", "--threads", "3"]) == 0
    monkeypatch.setenv("FASTOPT_NUM_THREADS", "5")
    assert main.main(["bench", "updates", "--json"]) == 0
    assert sorted(os.listdir(tmp_path)) == [f"cpu-{expected}-{cores}-cores.json" for cores in (3, 5)]


def test_command_is_for_this_python_only():
    args = argparse.Namespace(json=None, quick=False, only=None, backend="cpu")
    command = bench.command(args, [])
    assert command[0] == sys.executable
    assert "--import-mode=importlib" in command
