"""The page of a survey, its verdict, and its file for reports, from made-up records."""

from __future__ import annotations

import doctest
import json
import re

import pytest
from helpers_survey import measured, record

from fastopt.benchmarks.cuda import goals, page, records, stages, wheels
from fastopt.benchmarks.cuda.goals import FIGURES, verdict_of
from fastopt.benchmarks.cuda.records import Folder
from fastopt.reports import read

GPU = {
    "name": "NVIDIA Example", "capability": "9.0", "driver_version": "580.1", "clocks.sm": "345 MHz",
    "clocks.max.sm": "1980 MHz", "cuda": "13.0", "temperature.gpu": "40",
}  # fmt: skip
ROWS = sum(len(figure.goals) for figure in FIGURES.values())


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path / "out")
    made.make()
    return made


def put(folder, *found):
    for one in found:
        folder.add(one)


def rows(folder):
    """The table of figures, by cells."""
    page.write(folder)
    text = (folder.path / records.PAGE).read_text(encoding="utf-8")
    table = text.partition("## The figures")[2].strip().split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\\\)\|", line)[1:-1]] for line in table[2:]]


@pytest.mark.parametrize(("factor", "expected"), [(1.02, "met"), (1.0, "met"), (0.98, "missed")])
@pytest.mark.parametrize("name", FIGURES)
def test_each_figure(folder, name, factor, expected):
    (found,) = [one for one in measured(factor) if one["stage"] == f"figure/{name}"]
    put(folder, found)
    own = {goal.what: verdict_of(goal, found["data"]["measured"]) for goal in FIGURES[name].goals}
    assert set(own.values()) == {expected}
    table = rows(folder)
    assert len(table) == ROWS
    verdicts = [line[4] for line in table]
    assert verdicts.count(expected) == len(own)
    assert verdicts.count("not measured") == ROWS - len(own)
    for title, goal, text, share, verdict in table:
        if verdict != "not measured":
            assert float(share) == pytest.approx(found["data"]["measured"][goal.split(" ", 3)[3]], rel=0.01)
            assert "3 ms, 0.93 TB/s" in text
            assert title in (FIGURES[name].title, "")
    lines = [line for line in page.verdict(folder).splitlines() if FIGURES[name].title in line]
    assert len(lines) == 1
    assert lines[0].startswith(expected.upper() if expected == "missed" else expected)


@pytest.mark.parametrize("number", [float("nan"), None, "0.95", True, [1]])
def test_what_is_no_number_is_not_measured_or_missed(number):
    goal = FIGURES["adam-float32"].goals[0]
    found = verdict_of(goal, {goal.what: number})
    assert found == ("missed" if isinstance(number, float) else "not measured")


def test_figures_that_failed_say_why(folder):
    put(
        folder,
        record("figure/adam-float32", "crashed", "SIGSEGV: at once"),
        record("figure/mlp-64", "timed out", "after 150 s", measured={"of torch eager, fused Adam": 0.14}),
    )
    table = rows(folder)
    assert table[0][2:] == ["crashed: SIGSEGV: at once", "", "not measured"]
    mlp = [line for line in table if "torch eager" in line[1] or "torch compiled" in line[1]]
    assert [line[4] for line in mlp] == ["met", "not measured"]  # measurements before the hang count


def everything(folder):
    """A survey with a bit of everything."""
    facts = {"gpu": GPU, "versions": {"torch": "2.11", "mkl": None}, "trouble": "", "tools": {"nvcc": None}}
    put(folder, record("facts", line="NVIDIA Example, driver 580.1", **facts))
    put(folder, record("smoke/a"), record("smoke/b", "crashed", "SIGSEGV"), record("smoke/c", "skipped", "no CuPy"))
    put(folder, record("warmup", line="365 kernels"), *measured(1.1))
    failures = [{"test": "tests/x.py::test_y", "what": "assert 1 == 2"}]
    put(folder, record("tests", "failed", "1 failed, 300 passed", failures=failures, counts={"failed": 1}))
    put(folder, record("suite/updates", "not run", "no time"), record("suite/limits", line="12 passed"))
    put(folder, record("sanitizer/memcheck", line="ERROR SUMMARY: 0 errors"), record("clocks", line="clock 1980 MHz"))


def test_the_page(folder):
    everything(folder)
    page.write(folder)
    text = (folder.path / records.PAGE).read_text(encoding="utf-8")
    order = [
        "# Survey of NVIDIA Example", "580.1", "clock 1980 MHz", "torch 2.11", "## The figures", "## Smoke checks",
        "1 passed, 1 crashed, 1 skipped", "## Tests", "tests/x.py::test_y", "## Suites", "12 passed",
        "## compute-sanitizer", "0 errors", "## The rest", "365 kernels",
    ]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_the_verdict(folder):
    everything(folder)
    said = page.verdict(folder)
    for part in ("NVIDIA Example", "clock 1980 MHz", "b: crashed: SIGSEGV", "tests/x.py::test_y", "suite/updates",
                 "1 passed, 1 crashed, 1 skipped", "warmup: passed: 365 kernels"):  # fmt: skip
        assert part in said
    assert said.count("\nmet ") == ROWS


def test_however_much_went_wrong_the_verdict_fits_a_screen(folder):
    everything(folder)
    put(folder, *(record(f"smoke/{i}", "failed", f"{i} " + "long " * 200) for i in range(60)))
    put(folder, *(record(f"suite/{i}", "failed", f"{i} other") for i in range(60)))
    put(folder, *(record(f"sanitizer/{i}", "failed", f"{i} hazards") for i in range(60)))
    failures = [{"test": f"t{i}", "what": "x" * 400} for i in range(100)]
    put(folder, record("tests", "failed", "y" * 400, failures=failures))
    lines = page.verdict(folder).splitlines()
    assert len(lines) <= page.LINES == 60
    assert max(map(len, lines)) <= page.WIDTH
    assert sum(line.startswith("met ") for line in lines) == ROWS
    assert lines[-1].startswith("records, page and logs:")


def test_problems_alike_are_one_line(folder):
    put(folder, *(record(f"smoke/{i}", "no device", "no GPU is visible") for i in range(9)))
    assert page.verdict(folder).count("no GPU is visible") == 1


def test_hostile_records(folder):
    """A page is made from records of any content."""
    bad = "a | b\n# not a heading\r\n|---|"
    put(folder, record("smoke/x", "failed", bad), {"stage": "facts", "status": "passed"})
    put(folder, {"stage": "tests", "status": "failed", "line": None, "data": {"failures": ["x", {"test": bad}]}})
    put(folder, {"stage": "figure/mlp-64", "status": "passed", "data": [1]})
    seconds = {"fastopt": "x", "torch": None}
    put(folder, record("figure/adam-float32", measured=3, seconds=seconds, copy="?", absent=[1]))
    put(folder, record("figure/host-time", measured={}, seconds={}, before=3, after=None))
    page.write(folder)
    text = (folder.path / records.PAGE).read_text(encoding="utf-8")
    assert not re.search("^# not", text, re.MULTILINE)
    assert "a \\| b" in text
    assert page.verdict(folder)


def test_benchmarks_for_reports(folder):
    put(folder, record("facts", gpu=GPU))
    info = {
        "kind": "update", "name": "adam", "title": "adam", "contestant": "fastopt", "contestant_title": "fastopt",
        "shape": "", "size": 100, "dtype": "float32", "bytes": 2800.0, "flops": 1200.0, "samples": 0.0,
        "limit_seconds": 1e-6, "stream_bytes_per_second": 3e12, "gemm_flops_per_second": 5e13,
    }  # fmt: skip
    for median in (3e-6, 2e-6):  # the last of the same name counts
        noted = {"fullname": "a", "datetime": "2026-01-02T03:04:05", "stats": {"median": median}, "extra_info": info}
        records.append(folder.records, {"benchmark": noted})
    records.append(folder.records, {"benchmark": "nothing"})
    page.write(folder)
    run = read.read(folder.path / records.BENCHMARKS)
    assert [(result.kind, result.seconds) for result in run.results] == [("update", 2e-6)]
    assert run.gpu
    assert "NVIDIA Example" in run.machine
    assert run.when == "2026-01-02 03:04"
    assert json.loads((folder.path / records.BENCHMARKS).read_text(encoding="utf-8"))["machine_info"]["gpu"] == GPU


@pytest.mark.parametrize("module", [goals, page, records, stages, wheels])
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
