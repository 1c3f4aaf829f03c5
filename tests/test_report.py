"""`fastopt report`: tables and plots of small files with known figures, and errors of other files."""

import json
import re
import subprocess
import sys

import pytest

from fastopt.cli import main, report
from fastopt.reports import page, read, sections


def record(kind, name, contestant, seconds, **changes):
    info = {
        "kind": kind,
        "name": name,
        "title": name,
        "contestant": contestant,
        "contestant_title": contestant.title(),
        "shape": "",
        "size": 1_000_000,
        "dtype": "float32",
        "bytes": 28e6,
        "flops": 14e6,
        "limit_seconds": 0.5e-3,
        "stream_bytes_per_second": 50e9,
        "gemm_flops_per_second": 200e9,
    }
    return {"name": "test", "stats": {"median": seconds}, "extra_info": info | changes}


RECORDS = [
    record("update", "adam", "torch-fused", 2e-3),
    record("update", "adam", "fastopt", 1e-3),
    record("update", "adam", "fastopt", 12e-3, size=10_000_000, bytes=28e7, flops=14e7, limit_seconds=10e-3),
    record("step", "adam", "fastopt", 5e-6, shape="100 x 1000"),
    record("loop", "adam step", "torch-fused", 250e-6, title="step in a loop", shape="MLP"),
    record("loop", "adam step", "fastopt", 200e-6, title="step in a loop", shape="MLP"),
    record("tiny", "adam", "torch-fused", 1.5e-3, shape="gradients of 0.01"),
    record("tiny", "adam", "fastopt", 1e-3, shape="gradients of 0.01"),
    record("tiny", "adam", "fastopt", 1.1e-3, shape="gradients of 1e-20"),
    record("tiny", "adam", "torch-fused", 3e-3, shape="gradients of 1e-20"),
    record("dense", "forward relu", "fastopt", 1e-3, shape="64x784x256", bytes=1e6, flops=25.7e6),
    record("loss", "hinge", "fastopt", 1e-5, shape="64x10", bytes=5e3, flops=4e3),
    record("epoch", "digits", "fastopt", 0.3e-3, title="digits, 64-32-10", bytes=0.0),
    record("memory", "wide", "fastopt", 1.0, before_bytes=2e8, peak_bytes=5.5e8),
    record("epoch", "digits", "jax-scan", 0.6e-3, title="digits, 64-32-10", bytes=0.0),
    record("memory", "wide", "torch-fused", 1.0, before_bytes=2e8, peak_bytes=9e8),
    record("program", "import", "fastopt", 4e-3, title="import", contestant_title="import fastopt, after numpy"),
    record("program", "import", "numpy", 64e-3, title="import", contestant_title="import numpy"),
    record("program", "train later", "fastopt", 2.2, title="fastopt train, afterwards"),
    record("accuracy", "fashion-64", "fastopt", 0.4, title="ten epochs", accuracy=0.8903, fifth_over_first=0.98),
    record("accuracy", "fashion-64", "numpy", 1.2, title="ten epochs", accuracy=0.8866, fifth_over_first=1.01),
    *(
        record("compressed", "8-4", way, seconds, shape=f"{rows} rows", rows=rows, accuracy=found, share_of_bytes=share)
        for way, share, found in (("float32", 1.0, 0.893), ("int8", 0.2649, 0.89449))
        for rows, seconds in ((256, 4e-4 * share), (1, 2.2e-5 * share))
    ),
]
MACHINE = {"cpu": {"brand_raw": "A Processor"}, "fastopt": {"threads": 2, "versions": {"torch": "2.9"}}}


def document(records=RECORDS, **changes):
    return {"benchmarks": records, "datetime": "2030-01-02T03:04:05", "machine_info": MACHINE} | changes


@pytest.fixture
def write(tmp_path):
    """A function that writes a document, or text as it is, and returns the path."""

    def write(content, name="run.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


def fails(capsys, *arguments):
    assert main.main(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastopt: error: ")
    assert err.count("\n") == 1
    return err


def test_tables(write, capsys):
    path = write(document())
    assert main.main(["report", path]) == 0
    out = capsys.readouterr().out
    assert f"- {path.replace('_', chr(92) + '_')}, 2030-01-02 03:04: A Processor, 2 threads, torch 2.9" in out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    # 28 MB in 1 ms; half a millisecond would be the limit; torch takes twice as long
    assert ["adam", "1,000,000", "Fastopt", "1 ms", "", "28", "0.50"] in rows
    assert ["adam", "1,000,000", "Torch-Fused", "2 ms", "0.50", "14", "0.25"] in rows
    assert ["adam", "10,000,000", "Fastopt", "12 ms", "", "23.3", "0.83"] in rows
    assert ["digits, 64-32-10", "Jax-Scan", "600 us", "0.50", "23.3", "1.20"] in rows  # of the products alone
    assert ["digits, 64-32-10", "300 us", "its products alone 500 us", "0.60"] in rows
    assert ["adam", "100 x 1000", "Fastopt", "5 us", ""] in rows
    assert ["step in a loop", "MLP", "Torch-Fused", "250 us", "0.80"] in rows
    assert ["step in a loop: MLP", "200 us", "Torch-Fused 250 us", "0.80"] in rows
    assert ["adam, 1 M", "gradients of 1e-20", "Fastopt", "1.1 ms", "1.10"] in rows
    assert ["adam, 1 M", "gradients of 1e-20", "Torch-Fused", "3 ms", "2.00"] in rows
    assert ["forward relu", "64x784x256", "Fastopt", "1 ms", "", "1", "25.7", "0.50"] in rows
    assert ["wide", "Fastopt", "200 MB", "550 MB", "350 MB"] in rows
    # The summary: a line for each other contestant, of whole programs and large updates only
    assert ["digits, 64-32-10", "300 us", "Jax-Scan 600 us", "0.50"] in rows
    assert ["adam update, 10 M float32", "12 ms, 23.3 GB/s", "streaming limit 10 ms", "1.20"] in rows
    assert ["memory for training wide", "350 MB", "Torch-Fused 700 MB", "0.50"] in rows
    assert ["import", "4 ms", "import numpy 64 ms", "0.06"] in rows
    assert ["fastopt train, afterwards", "2.2 s", "", ""] in rows
    assert ["test accuracy: ten epochs", "89.03 %", "Numpy 88.66 %", ""] in rows
    assert ["ten epochs: epoch 5 against epoch 1", "", "", "0.98"] in rows
    assert "50 GB/s streamed, 200 GFLOP/s in large products" in out
    assert "## Change" not in out
    at = rows.index(["8-4", "bytes", "accuracy", "1", "256"])
    assert rows[at + 2 : at + 4] == [
        ["Float32", "1.00", "89.3 %", "22", "400"], ["Int8", "0.26", "89.4 %", "5.83", "106"],
    ]  # fmt: skip


def product(name, contestant, rate, share=0.8, **changes):
    """A product of 1 GFLOP at so many GFLOP/s, and the peak of registers that makes `share` of it."""
    of_peak = {"limit_seconds": share / rate, "fma_flops_per_second": 260e9, "gemm_by": "MKL 2030"}
    return record("product", name, contestant, 1 / rate, flops=1e9, title="products of a step, one thread",
                  **of_peak | changes)  # fmt: skip


PRODUCTS = [
    product("forward", "mkl", 100.0, shape="a"),
    product("forward", "fastopt", 200.0, shape="a"),
    product("forward", "openblas", 160.0, shape="a"),
    product("forward", "fastopt", 50.0, 0.2, shape="b"),
    product("forward", "openblas", 250.0, shape="b"),
    product("dw", "fastopt", 20.0, shape="c", dtype="float64", gemm_flops_per_second=90e9, gemm_by="OpenBLAS 1.2"),
]


def test_products_stand_beside_each_other(write):
    run = read.read(write(document(PRODUCTS)))
    assert (run.roof, run.peaks) == (260e9, {"float32": 200e9, "float64": 90e9})
    assert run.peak_by == {"float32": "MKL 2030", "float64": "OpenBLAS 1.2"}
    parts = {part.title: part for part in sections.sections([run])}
    assert parts["Matrix products"].rows == [
        ["work", "shape", "Fastopt", "Openblas", "Mkl", "share of registers", "speed / best other's"],
        ["forward", "a", "200", "160", "100", "0.80", "1.25"],
        ["forward", "b", "50", "250", "", "0.20", "0.20"],
        ["dw, float64", "c", "20", "", "", "0.80", ""],
    ]
    # geometric means, of the shapes that both have: 200 and 50 are 100, 160 and 250 are 200
    assert parts["Summary"].rows[1:] == [
        ["products of a step, one thread, 2 shapes", "100 GFLOP/s", "Openblas 200 GFLOP/s", "2.00"],
        ["products of a step, one thread, 2 shapes", "200 GFLOP/s", "Mkl 100 GFLOP/s", "0.50"],
        ["products of a step, one thread, 2 shapes", "100 GFLOP/s", "the best of them 200 GFLOP/s", "2.00"],
    ]


def test_limits_of_a_run_with_registers(write):
    known = {"fma_flops_per_second": 260e9, "gemm_by": "MKL 2030"}
    records = [r | {"extra_info": r["extra_info"] | known} for r in RECORDS]
    run = read.read(write(document(records)))
    parts = {part.title: part for part in sections.sections([run])}
    text = "50 GB/s streamed, 260 GFLOP/s in registers, 200 GFLOP/s in large products (MKL 2030)."
    assert text in parts["Dense layers and losses"].text
    assert "arithmetic in registers for dense layers" in parts["Dense layers and losses"].text
    assert "at 200 GFLOP/s in large products (MKL 2030)" in parts["Epochs against other libraries"].text
    plots = pytest.importorskip("fastopt.reports.plots", exc_type=ImportError)
    picture = plots.plot([run])["roofline"].decode()
    assert "<!-- float32 products of MKL 2030 -->" in picture  # the dashed line
    assert "<!-- 50 GB/s, 260 GFLOP/s -->" in picture


def test_machines_side_by_side(write, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    faster = [
        record("epoch", "digits", "fastopt", 0.1e-3, title="digits, 64-32-10"),
        record("epoch", "digits", "jax-scan", 0.4e-3, title="digits, 64-32-10"),
        record("epoch", "wide", "fastopt", 2.0, title="a wide one"),
    ]
    machine = {"fastopt": {"processor": "zen5", "threads": 2}}
    first, second = write(document(), "cpu-zen4-2-cores.json"), write(document(faster, machine_info=machine))
    images = tmp_path / "images"
    assert main.main(["report", first, second, "--side-by-side"]) == 0
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == ["work", "against", "zen4, 2 threads", "zen5, 2 threads"]
    assert ["digits, 64-32-10", "Jax-Scan", "300 us / 600 us = 0.50", "100 us / 400 us = 0.25"] in rows
    assert ["digits, 64-32-10", "its products alone", "300 us / 500 us = 0.60", "100 us / 500 us = 0.20"] in rows
    assert ["a wide one", "", "", "2 s"] in rows
    assert ["fastopt train, afterwards", "", "2.2 s", ""] in rows
    assert ["ten epochs: epoch 5 against epoch 1", "", "0.98", ""] in rows
    assert ["adam update, 10 M float32", "streaming limit", "12 ms, 23.3 GB/s / 10 ms = 1.20", ""] in rows
    assert main.main(["report", first, second, "--side-by-side", "--images", str(images)]) == 0
    (picture,) = images.iterdir()
    text = picture.read_text(encoding="utf-8")
    assert picture.name == "epochs.svg"
    assert text.count("<!-- zen4, 2 threads -->") == 1  # above its bars, in the one panel that it has
    assert text.count("<!-- zen5, 2 threads -->") == 2


def test_ours_comes_first_then_the_fastest(write):
    runs = [read.read(write(document([*RECORDS, record("update", "adam", "numpy", 1.5e-3)])))]
    (updates,) = (part for part in sections.sections(runs) if part.title == "Optimizer updates")
    assert [row[2] for row in updates.rows[1:4]] == ["Fastopt", "Numpy", "Torch-Fused"]


def test_change_between_files(write):
    before = read.read(write(document(), "before.json"))
    slower = [record("update", "adam", "fastopt", 1.5e-3), record("update", "sgd", "fastopt", 1e-3)]
    after = read.read(write(document([*slower, record("update", "adam", "torch-fused", 1e-3)]), "after.json"))
    change = sections.sections([before, after])[-1]
    assert change.title == f"{after.path}: Change"
    assert [row[1:] for row in change.rows[1:]] == [
        ["Fastopt", "1 ms", "1.5 ms", "1.50"],
        ["Torch-Fused", "2 ms", "1 ms", "0.50"],
    ]  # sgd is in one file only


def test_files_are_written(write, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    first, second = write(document(), "1.json"), write(document(), "2.json")
    html, tables, images = tmp_path / "page.html", tmp_path / "tables.md", tmp_path / "a" / "images"
    options = ["--html", str(html), "--markdown", str(tables), "--images", str(images)]
    assert main.main(["report", first, second, *options]) == 0
    assert capsys.readouterr() == ("", "")
    names = {path.name for path in images.iterdir()}
    assert names == {f"{name}-{i}.svg" for name in ("epochs", "updates", "roofline") for i in (1, 2)} | {"change-2.svg"}
    assert all("<svg" in path.read_text(encoding="utf-8") for path in images.iterdir())
    text = html.read_text(encoding="utf-8")
    assert text.count('src="data:image/svg+xml;base64,') == len(names)
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # needs no other file
    assert "<td>28</td>" in text
    assert "| --- |" in tables.read_text(encoding="utf-8")


def test_the_same_file_gives_the_same_pictures(write):
    plots = pytest.importorskip("fastopt.reports.plots", exc_type=ImportError)
    runs = [read.read(write(document()))]
    pictures = plots.plot(runs)
    assert pictures == plots.plot(runs)
    for picture in pictures.values():  # each text is there as a comment, too: no formula is left unset
        assert b"<!-- " in picture
        assert b"mathdefault" not in picture


def test_texts_are_escaped(write):
    evil = "<script>alert(1)</script>|`$\\frac{|*_\n# &amp;"
    changes = {"title": evil, "contestant_title": evil, "shape": evil}
    cpu = {"cpu": {"brand_raw": evil}}
    runs = [read.read(write(document([record("update", evil, "fastopt", 1.0, **changes)], machine_info=cpu)))]
    parts = sections.sections(runs)
    text = page.html(runs, parts, {})
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    tables = page.markdown(runs, parts)
    rows = [line for line in tables.splitlines() if line.startswith("| ")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [len(parts[0].rows[0]) + 1] * 3
    assert "<script>" not in tables.replace("\\<", "")
    assert not re.search(r"(?<!\\)`", tables)


def test_plots_take_texts_as_they_are(write):
    plots = pytest.importorskip("fastopt.reports.plots", exc_type=ImportError)
    evil = "$\\frac{<script>$ & ]]>"
    changes = {"title": evil, "contestant_title": evil, "shape": evil}
    records = [record(kind, evil, "fastopt", 1.0, **changes) for kind in ("update", "epoch", "dense")]
    run = read.read(write(document(records)))
    for picture in plots.plot([run, run]).values():
        assert b"<script>" not in picture


BROKEN = {
    "not json": ("{", "cannot be parsed"),
    "deep": ("[" * 100_000, "cannot be parsed"),
    "binary": ("\x00\x01", "cannot be parsed"),
    "a list": ([], "a list 'benchmarks'"),
    "another object": ({"benchmarks": {}}, "a list 'benchmarks'"),
    "of another project": ({"benchmarks": [{"name": "test", "stats": {}, "extra_info": {}}, 3]}, "got 2 benchmarks"),
    "no statistics": (document([RECORDS[0] | {"stats": None}]), r"benchmarks\[0\]: 'stats'"),
    "no time": (document([RECORDS[0] | {"stats": {"median": 0}}]), "above 0"),
    "a time that is no number": (document([RECORDS[0] | {"stats": {"median": "1"}}]), "'median' must be a number"),
    "NaN": (document([record("update", "adam", "fastopt", float("nan"))]), "'median' must be a finite number"),
    "a huge number": (document([record("update", "a", "fastopt", 1.0, bytes=10**400)]), "'bytes' must be a finite"),
    "below zero": (document([record("update", "a", "fastopt", 1.0, flops=-1)]), "'flops' must be a finite"),
    "no accuracy": (document([record("accuracy", "a", "fastopt", 1.0)]), "'accuracy' must be a number"),
    "no peak": (document([record("memory", "a", "fastopt", 1.0)]), "'before_bytes' must be a number"),
    "a flag": (document([record("update", "a", "fastopt", 1.0, size=True)]), "'size' must be a number"),
    "a long name": (document([record("update", "a" * 201, "fastopt", 1.0)]), "'name' must be a text"),
    "no rate": (document([record("update", "a", "fastopt", 1.0, fma_flops_per_second="x")]), "'fma_flops_per_sec"),
    "no library": (document([record("update", "a", "fastopt", 1.0, gemm_by=3)]), "'gemm_by' must be a text"),
    "a name that is none": (document([record("update", "a", "fastopt", 1.0, title=["x"])]), "'title' must be a text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(write, capsys, name):
    content, message = BROKEN[name]
    path = write(content)
    err = fails(capsys, path)
    assert path in err
    assert re.search(message, err)


@pytest.mark.parametrize("info", [None, 3, [], {"cpu": 3, "fastopt": []}, {"fastopt": {"versions": 3, "threads": "x"}}])
def test_a_machine_that_is_not_described(write, info):
    assert read.read(write(document(machine_info=info, datetime=3))).machine == "unknown machine"


def test_quick_runs_say_so(write):
    assert "a quick run" in read.read(write(document(machine_info={"fastopt": {"quick": True}}))).machine


def test_files_that_are_not_there(write, tmp_path, capsys):
    assert "nothing.json" in fails(capsys, str(tmp_path / "nothing.json"))
    assert "there is no folder" in fails(capsys, write(document()), "--html", str(tmp_path / "no" / "page.html"))
    assert "got a folder" in fails(capsys, write(document()), "--markdown", str(tmp_path))


def test_without_matplotlib(write, tmp_path, capsys, monkeypatch):
    find = report.importlib.util.find_spec
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    path, html = write(document()), tmp_path / "page.html"
    assert main.main(["report", path, "--html", str(html)]) == 0
    assert "pip install 'fastopt[plot]'" in capsys.readouterr().err
    assert "<td>28</td>" in html.read_text(encoding="utf-8")
    assert "<img" not in html.read_text(encoding="utf-8")
    assert "pip install 'fastopt[plot]'" in fails(capsys, path, "--images", str(tmp_path / "images"))


def test_images_do_not_replace_a_file(write, capsys):
    pytest.importorskip("matplotlib")
    path = write(document())
    assert "must be a folder" in fails(capsys, path, "--images", path)


def test_tables_need_neither_matplotlib_nor_a_compiler(write):
    program = (
        "import sys; from fastopt.cli.main import main; status = main(sys.argv[1:]); "
        "print(status, *sorted({'matplotlib', 'numba', 'pytest'} & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "report", write(document())]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stderr.split() == ["0"]
