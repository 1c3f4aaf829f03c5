"""A stage's side of a survey: its reports; and compute-sanitizer, by a stand-in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from fastopt.benchmarks.cuda import child, facts, sanitizer
from fastopt.benchmarks.workloads import Absent


@pytest.fixture
def told(tmp_path, monkeypatch):
    """A function that returns the reports."""
    path = tmp_path / "result.json"
    monkeypatch.setenv(child.RESULT, str(path))
    monkeypatch.setattr(child, "_told", {})
    return lambda: json.loads(path.read_text())


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "status", "line", "code"),
    [
        (lambda: "all  is\nwell", "passed", "all is well", 0),
        (raising(child.NoDevice("none here")), "no device", "none here", 0),
        (raising(Absent("no torch")), "skipped", "no torch", 0),
        (raising(ValueError("x" * 1000)), "failed", "ValueError: " + "x" * (child.LONGEST - 12), 1),
        (raising(SystemExit(0)), "failed", "SystemExit: 0", 1),
    ],
)
def test_a_stage(told, run, status, line, code):
    assert child.stage(run) == code
    assert told() == {"status": status, "line": line}


def test_what_was_told_before_stays(told):
    child.tell(measured={"a": 1})
    child.tell(seconds=Path("x"))  # any type
    assert told() == {"measured": {"a": 1}, "seconds": "x"}
    child.stage(raising(ValueError("later")))
    assert told()["measured"] == {"a": 1}


def test_without_a_survey(monkeypatch, capsys):
    """A stage that is started by hand prints its report."""
    monkeypatch.delenv(child.RESULT, raising=False)
    assert child.stage(lambda: "well") == 0
    assert capsys.readouterr().out == "passed: well\n"


def test_a_line_about_a_device():
    assert facts.summary({"name": "A", "capability": "9.0"}) == "A, capability 9.0"
    line = facts.summary({"name": "A", "driver_version": "580", "clocks.sm": "345 MHz", "clocks.max.sm": "1980 MHz"})
    assert line.endswith("driver 580, clock 345 MHz of 1980 MHz")


# ---------------------------------------------------------------- compute-sanitizer
@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A function that puts a stand-in for compute-sanitizer into a folder."""
    monkeypatch.setattr(sanitizer, "device", lambda: None)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)

    def tool(said, code=0, folder="bin"):
        path = tmp_path / folder / "compute-sanitizer"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{sys.executable}\nimport sys\nprint({said!r}, sys.argv[1:])\nsys.exit({code})\n")
        path.chmod(0o755)
        return path

    return tool


def test_it_is_looked_for(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sanitizer.shutil, "which", _without_the_systems(sanitizer.shutil.which))
    with pytest.raises(Absent, match="compute-sanitizer is not installed"):
        sanitizer.binary()
    wheel = tool("", folder="site/nvidia/cu13/bin")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    assert sanitizer.binary() == str(wheel)
    toolkit = tool("", folder="toolkit/compute-sanitizer")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert sanitizer.binary() == str(toolkit)
    path = tool("")
    assert sanitizer.binary() == str(path)


def _without_the_systems(which):
    return lambda name, path=None: None if path and path.startswith("/usr/local/cuda") else which(name, path=path)


@pytest.mark.parametrize("name", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_the_command(name):
    command = sanitizer.command("tool", name, Path("helpers_every.py"))
    assert command[:3] == ["tool", "--tool", name]
    assert ("kernel_substring=fastopt" in command) == (name != "memcheck")
    assert command[-2:] == ["all" if name == "memcheck" else "ours", str(sanitizer.SECONDS)]


@pytest.mark.parametrize(
    ("said", "code", "expected"),
    [
        ("7 of 9 calls, of 3 kernels\n========= ERROR SUMMARY: 0 errors\n", 0, "7 of 9 calls, ERROR SUMMARY: 0 errors"),
        ("========= RACECHECK SUMMARY: 0 hazards displayed\n", 0, "RACECHECK SUMMARY: 0 hazards displayed"),
        ("========= Invalid __global__ read\n========= ERROR SUMMARY: 2 errors\n", 9, AssertionError("2 errors")),
        ("========= Error: Target application terminated\n", 1, AssertionError("Target application terminated")),
        ("", 0, AssertionError("said nothing")),
        ("Device not supported\n", 1, Absent("does not support this device")),
    ],
)
def test_what_it_found(tool, tmp_path, monkeypatch, told, capsys, said, code, expected):
    tool(said, code)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    if isinstance(expected, str):
        assert sanitizer.check("racecheck") == expected
        assert told()["summary"] == expected
    else:
        with pytest.raises(type(expected), match=str(expected)):
            sanitizer.check("racecheck")
    assert "helpers_every.py" in capsys.readouterr().out  # the log has all
