"""Tests and benchmarks as stages of a survey: reports while they run, and a context that a test has spoilt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastopt.benchmarks.cuda import records, stages
from fastopt.benchmarks.cuda.child import RECORDS, RESULT
from fastopt.benchmarks.cuda.processes import run

pytestmark = pytest.mark.repeats  # processes that hang take seconds each

PLUGIN = ["-p", "fastopt.benchmarks.cuda.outcomes"]
with_xdist = pytest.mark.skipif(not find_spec("xdist"), reason="needs pytest-xdist")
MIXED = """
import pytest

def test_good(): pass
def test_bad(): assert 1 == 2, "one is not two"
@pytest.mark.skip(reason="no GPU here")
def test_skipped(): pass
@pytest.fixture
def broken(): raise OSError("the fixture")
def test_error(broken): pass
@pytest.fixture
def spoilt():
    yield
    raise OSError("afterwards")
def test_teardown(spoilt): pass
"""


@pytest.fixture
def session(tmp_path):
    """A function that runs pytest on a module: (exit status, reports, records)."""

    def session(source, *options, limit=60.0, name="test_it.py"):
        path, result, kept = tmp_path / name, tmp_path / "result.json", tmp_path / "records.jsonl"
        path.write_text(source)
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={tmp_path}", *PLUGIN, *options]
        environment = {RESULT: str(result), RECORDS: str(kept), "PYTEST_XDIST_WORKER": "", "PYTEST_ADDOPTS": ""}
        environment |= {name: value for name, value in os.environ.items() if name not in environment}
        del environment["PYTEST_XDIST_WORKER"]
        before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PYTEST_XDIST")}
        try:
            ended = run([*command, str(path)], limit, environment)
        finally:
            os.environ.update(before)
        told = json.loads(result.read_text()) if result.exists() else {}
        return ended, told, records.read(kept)

    return session


@pytest.mark.parametrize("options", [(), pytest.param(("-n", "2"), marks=with_xdist)])
def test_outcomes(session, options):
    ended, told, kept = session(MIXED, *options)
    assert ended.status == 1
    assert told["status"] == "failed"
    assert told["counts"] == {"passed": 2, "failed": 1, "skipped": 1, "error": 2}
    failures = {failure["test"].partition("::")[2]: failure["what"] for failure in told["failures"]}
    assert set(failures) == {"test_bad", "test_error", "test_teardown"}
    assert "one is not two" in failures["test_bad"]
    assert {found["failure"].partition("::")[2] for found in kept} == set(failures)


def test_all_passed(session):
    _, told, _ = session("def test_good(): pass\n")
    assert (told["status"], told["line"]) == ("passed", "1 passed")


def test_what_cannot_be_collected(session):
    ended, told, _ = session("import no_such_module\n")
    assert ended.status == 2
    assert told["status"] == "failed"
    assert "no_such_module" in told["failures"][0]["what"]


@pytest.mark.parametrize(
    ("reason", "status"), [("the backend 'cuda' lacks driver", "no device"), ("Tuesdays only", "skipped")]
)
def test_where_nothing_runs(session, reason, status):
    _, told, _ = session(f'import pytest\npytest.skip("{reason}", allow_module_level=True)\n')
    assert (told["status"], told["line"]) == (status, reason)


def test_nothing_was_found(session):
    _, told, _ = session("")
    assert told["status"] == "failed"


@pytest.mark.slow
def test_a_hang_keeps_what_was_told_before(session):
    source = (
        "import time\ndef test_a(): assert 0\ndef test_b(): time.sleep(0.6)\ndef test_c(): pass\n"
        "def test_d(): time.sleep(99)\n"
    )
    ended, told, kept = session(source, limit=12.0)
    assert ended.late
    assert told["counts"]["failed"] == 1
    assert told["failures"][0]["test"].endswith("test_a")
    assert kept
    stage = stages.Stage("tests", (), 6.0, 0, read=stages._pytest)
    status, line = stages.outcome(stage, ended, told, False)
    assert status == "timed out"
    assert "1 failed" in line


def test_how_pytest_ends():
    stage = stages.Stage("tests", (), 6.0, 0, read=stages._pytest)
    from fastopt.benchmarks.cuda.processes import Ended

    usage = Ended(4, 1.0, False, b"error: unrecognized arguments: --timeout\n")
    assert stages.outcome(stage, usage, {}, False) == (
        "failed", "pytest ended with status 4: error: unrecognized arguments: --timeout"
    )  # fmt: skip


# ---------------------------------------------------------------- a spoilt context
SPOILT = """
import pytest
from helpers_gpu import settle
from fastopt.kernels.cuda.runtime.driver import CudaError

def wait():
    if spoilt:
        raise CudaError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered", 700)

spoilt = []

@pytest.fixture(autouse=True)
def settled(request):
    yield
    settle(request.node.nodeid, wait)

def test_a(): pass
def test_b(): spoilt.append(1)
def test_c(): assert not spoilt
def test_d(): assert not spoilt
"""


@pytest.fixture
def helpers(monkeypatch):
    pytest.importorskip("cffi")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.slow
@with_xdist
def test_a_worker_with_a_spoilt_context_is_replaced(session, helpers):
    ended, told, _ = session(SPOILT, "-n", "1", "--dist", "loadfile")
    assert ended.status == 1
    assert told["counts"] == {"passed": 4, "failed": 1, "skipped": 1}  # its own call had passed
    (failure,) = told["failures"]
    assert failure["test"].endswith("test_b")
    assert failure["what"].startswith("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered: worker")


@pytest.mark.slow
@with_xdist
def test_a_test_that_crashes_is_run_once(session):
    """Several of them, in one file: each ends one worker, and the others are run."""
    source = "import os\n" + "".join(f"def test_{i}(): {'os._exit(3)' if i % 3 == 1 else 'pass'}\n" for i in range(12))
    ended, told, _ = session(source, "-n", "1", "--dist", "loadfile", "--max-worker-restart", "100")
    assert ended.status == 1
    assert told["counts"] == {"passed": 8, "failed": 4, "skipped": 4}
    assert {failure["test"].rpartition("_")[2] for failure in told["failures"]} == {"1", "4", "7", "10"}


@pytest.mark.slow
@with_xdist
@pytest.mark.skipif(not find_spec("pytest_timeout"), reason="needs pytest-timeout")
def test_a_test_that_hangs_is_run_once(session):
    source = "import time\ndef test_a(): pass\ndef test_b(): time.sleep(99)\ndef test_c(): pass\n"
    _, told, _ = session(source, "-n", "1", "--dist", "loadfile", "--timeout", "1", "--timeout-method", "thread")
    assert told["counts"] == {"passed": 2, "failed": 1, "skipped": 1}
    assert told["failures"][0]["test"].endswith("test_b")


def test_without_workers_the_session_ends(session, helpers):
    from helpers_gpu import SPOILT as status

    ended, _, _ = session(SPOILT)
    assert ended.status == status
    assert b"test_b: CUDA_ERROR_ILLEGAL_ADDRESS" in ended.output
    assert b"nothing more can run in this process" in ended.output


def test_a_device_that_is_well(monkeypatch):
    pytest.importorskip("cffi")
    from helpers_gpu import settle

    called = []
    settle("a test", lambda: called.append(1))
    assert called == [1]


def test_the_profile_for_gpus():
    from helpers_gpu import EXAMPLES
    from hypothesis import settings

    assert settings.get_profile("gpu").max_examples == EXAMPLES == 20
    done = subprocess.run(
        [sys.executable, "-c", "from helpers_cuda import drawing\nfrom hypothesis import settings\n"
         "import helpers_gpu\nassert drawing(7).max_examples == 100\nsettings.load_profile('gpu')\n"
         "assert drawing(7).max_examples == 20"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "NUMBA_ENABLE_CUDASIM": "0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
