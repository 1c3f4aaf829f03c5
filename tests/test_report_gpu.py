"""`fastopt report` on files of a GPU's run. All figures here are made up: no GPU has anything to do with them."""

import re

import pytest
from test_report import document, record, write  # noqa: F401

from fastopt.cli import main
from fastopt.reports import read, sections

COPY = {"stream_bytes_per_second": 1e12}


def made_up(kind, name, contestant, seconds, dtype="float32", **changes):
    peak = {"float32": 1e13, "tf32": 4e13, "bfloat16": 8e13, "float64": 5e12}[dtype]
    return record(kind, name, contestant, seconds, dtype=dtype, gemm_flops_per_second=peak, **COPY, **changes)


LARGE = {"size": 100_000_000, "bytes": 2.8e9, "flops": 1.4e9, "limit_seconds": 3e-3}
RECORDS = [
    made_up("limit", "copy", "driver", 2e-3, bytes=2e9, flops=0.0, shape="1,000,000,000 bytes"),
    made_up("limit", "product", "cublaslt", 1e-3, "bfloat16", bytes=0.0, flops=8e10, shape="3420x3420x3420"),
    made_up("update", "adam", "fastopt", 3.5e-3, **LARGE),
    made_up("update", "adam", "torch-fused", 7e-3, **LARGE),
    made_up("update", "adam", "fastopt", 7e-3, "float64", **LARGE | {"bytes": 5.6e9}),
    made_up("update", "adam", "fastopt", 40e-6, size=1_000_000),
    made_up("step", "adam", "fastopt", 28e-6, shape="100 x 1000", bytes=2.8e6),
    made_up("dense", "forward relu", "fastopt", 1e-3, "tf32", shape="9x8x7", bytes=1e6, flops=1e10),
    made_up("dense", "forward relu", "fastopt", 1e-3, "bfloat16", shape="9x8x7", bytes=1e6, flops=4e10),
    made_up("loss", "loss: hinge", "fastopt", 1e-3, shape="64x10", bytes=5e8, flops=4e3),
    made_up("kernel", "gather", "fastopt", 1e-3, shape="64x784", bytes=4e8, flops=0.0),
    made_up("epoch", "mlp-64", "fastopt", 0.01, title="an MLP", bytes=0.0),
    made_up("epoch", "mlp-64", "torch-graph", 0.02, title="an MLP", bytes=0.0),
]
GPU = {"name": "A made-up GPU", "capability": "9.9", "driver_version": "1.2.3", "clock_mhz": 1000.0, "cublas": "13.9.9"}
MACHINE = {"cpu": {"brand_raw": "A Processor"}, "fastopt": {"threads": 2, "blas": "some BLAS"}, "gpu": GPU}


@pytest.fixture
def path(write):  # noqa: F811
    return write(document(RECORDS, machine_info=MACHINE))


def table(path, capsys):
    assert main.main(["report", path]) == 0
    out = capsys.readouterr().out
    return out, [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]


def test_the_machine_is_the_gpu(path):
    run = read.read(path)
    assert run.gpu
    assert run.machine.startswith(
        "A made-up GPU, compute capability 9.9, driver 1.2.3, cuBLASLt 13.9.9, 1000.0 MHz at most, A Processor"
    )
    assert "BLAS," not in run.machine
    assert run.peaks == {"float32": 1e13, "bfloat16": 8e13, "float64": 5e12, "tf32": 4e13}
    assert run.roof == 8e13


def test_a_file_of_the_cpu_has_no_gpu(write):  # noqa: F811
    run = read.read(write(document()))
    assert not run.gpu
    assert run.peaks == {"float32": 200e9}
    assert "share of copy" not in str(sections.sections([run]))


def test_tables(path, capsys):
    out, rows = table(path, capsys)
    # 2.8 GB in 3.5 ms, where copying would take 2.8 ms, and streaming the same arrays 3
    assert ["adam", "100,000,000", "Fastopt", "3.5 ms", "", "800", "0.86", "0.80"] in rows
    assert ["adam", "100,000,000", "Torch-Fused", "7 ms", "0.50", "400", "0.43", "0.40"] in rows
    assert ["adam, float64", "100,000,000", "Fastopt", "7 ms", "", "800", "0.43", "0.80"] in rows
    assert ["adam", "100 x 1000", "Fastopt", "28 us", "", "100"] in rows
    assert ["forward relu, tf32", "9x8x7", "Fastopt", "1 ms", "", "1", "10,000", "0.50"] in rows
    assert ["gather", "64x784", "Fastopt", "1 ms", "", "400", "", "0.50"] in rows
    assert ["copy", "1,000,000,000 bytes", "Driver", "2 ms", "1,000", ""] in rows
    assert ["product, bfloat16", "3420x3420x3420", "Cublaslt", "1 ms", "", "80,000"] in rows
    known = "1,000 GB/s streamed, 10,000 GFLOP/s of float32, 80,000 GFLOP/s of bfloat16"
    assert known in out


def test_summary(path, capsys):
    """Updates: the largest in float32 alone, against a copy of as many bytes."""
    _, rows = table(path, capsys)
    assert ["adam update, 100 M float32", "3.5 ms, 800 GB/s", "copying as much 2.8 ms", "1.25"] in rows
    assert ["adam update, 100 M float32", "3.5 ms, 800 GB/s", "Torch-Fused 7 ms, 400 GB/s", "0.50"] in rows
    assert ["an MLP", "10 ms", "Torch-Graph 20 ms", "0.50"] in rows
    assert not [row for row in rows if row[0].startswith("adam update, 1 M")]


def test_plots(path):
    plots = pytest.importorskip("fastopt.reports.plots", exc_type=ImportError)
    pictures = plots.plot([read.read(path)])
    assert set(pictures) == {"epochs", "updates", "roofline"}
    assert b"adam, float64" in pictures["updates"]
    for dtype in (b"tf32", b"bfloat16"):  # a ceiling for each dtype
        assert re.search(rb"<!-- " + dtype + rb" -->", pictures["roofline"])
