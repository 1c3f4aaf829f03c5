"""The survey of a GPU, without one: no stage keeps the next one from running, and no result is lost."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from helpers_survey import PASS, TELL, gone, record, stage

from fastopt.benchmarks.cuda import page, processes, records, smoke, stages, survey
from fastopt.benchmarks.cuda.goals import FIGURES
from fastopt.benchmarks.cuda.records import Folder
from fastopt.cli import bench

pytestmark = [
    pytest.mark.repeats,  # processes that hang take seconds each
    pytest.mark.skipif(not hasattr(os, "waitid"), reason="a survey runs where there are GPUs: on Linux"),
]

CRASH = "import ctypes; print('about to', flush=True); ctypes.string_at(0)"
HANG = "import time; print('waiting', flush=True); time.sleep(1000)"


@pytest.fixture
def folder(tmp_path):
    made = Folder(tmp_path / "out")
    made.make()
    return made


@pytest.fixture
def run(folder):
    """A function that runs stages within a budget, and returns their records."""

    def run(*some, budget=100.0, rehearsal=False, jobs=2):
        made = survey.Survey(folder, budget, rehearsal, start=time.monotonic() + survey.RESERVE)
        made.run(some, jobs)
        return folder.latest()

    return run


class TestWhateverAStageDoes:
    def test_it_passes(self, run, folder, capsys):
        found = run(stage("one", PASS), stage("two", PASS + "; tell(number=3)"))
        assert [found[name]["status"] for name in ("one", "two")] == ["passed", "passed"]
        assert found["two"]["data"] == {"number": 3}
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["passed", "passed"]
        assert lines[0].endswith("well")

    def test_it_crashes(self, run):
        found = run(stage("one", CRASH), stage("two", PASS))
        assert found["one"]["status"] == "crashed"
        assert found["one"]["line"].startswith("SIGSEGV: File ")
        assert "string_at" in found["one"]["line"]  # where it was
        assert found["two"]["status"] == "passed"

    def test_it_crashes_after_it_has_passed(self, run):
        found = run(stage("one", f"{PASS}; {CRASH}"), stage("two", f"{PASS}; raise SystemExit(3)"))
        assert found["one"]["status"] == "crashed"
        assert found["two"]["status"] == "failed"
        assert "status 3 afterwards" in found["two"]["line"]

    def test_it_fails(self, run):
        found = run(
            stage("one", "raise ValueError('no such thing')"), stage("two", TELL + "tell(status='failed', line='x')")
        )
        assert (found["one"]["status"], found["two"]["status"]) == ("failed", "failed")
        assert "ValueError: no such thing" in found["one"]["line"]

    def test_it_hangs(self, run):
        told = TELL + "tell(line='half of it', measured={'a': 1}); "
        start = time.monotonic()
        found = run(stage("one", told + HANG, limit=3.0), stage("two", PASS))
        assert time.monotonic() - start < 30
        assert found["one"]["status"] == "timed out"
        assert found["one"]["line"] == "after 3 s: half of it: waiting"
        assert found["one"]["data"] == {"measured": {"a": 1}}  # its earlier reports are kept
        assert found["two"]["status"] == "passed"

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
    @pytest.mark.parametrize("session", [False, True])
    @pytest.mark.parametrize("end", ["hangs", "passes"])
    def test_what_it_has_started_ends_with_it(self, run, tmp_path, session, end):
        """Also processes with a session of their own, and processes that hold the output open."""
        pids = tmp_path / "pids"
        start = (
            "import subprocess, sys, pathlib; "
            f"child = subprocess.Popen([sys.executable, '-c', {HANG!r}], start_new_session={session}); "
            f"pathlib.Path({str(pids)!r}).write_text(str(child.pid)); "
        )
        begin = time.monotonic()
        found = run(stage("one", start + (HANG if end == "hangs" else PASS), limit=3.0))
        assert time.monotonic() - begin < 30
        assert found["one"]["status"] == ("timed out" if end == "hangs" else "passed")
        assert gone(int(pids.read_text()))

    def test_where_it_hangs_is_said(self, run):
        code = (
            "from fastopt.benchmarks.cuda.child import main; import time\ndef stuck():\n    time.sleep(99)\nmain(stuck)"
        )
        found = run(stage("one", code, limit=3.0))
        assert found["one"]["status"] == "timed out"
        assert "in stuck" in found["one"]["line"]

    def test_it_ignores_polite_signals(self, run):
        code = "import signal; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT)]; "
        assert run(stage("one", code + HANG, limit=2.0))["one"]["status"] == "timed out"

    def test_it_prints_megabytes(self, run, folder):
        code = "print('the first'); [print('x' * 99) for _ in range(200_000)]; print('the last'); "
        found = run(stage("one", code + PASS))
        assert found["one"]["status"] == "passed"
        with tarfile.open(folder.path / records.LOGS) as archive:
            log = archive.extractfile("one.log").read()
        assert len(log) <= records.MOST_LOG
        assert log.startswith(b"the first\n")
        assert log.endswith(b"the last\n")
        assert b"bytes left out" in log

    def test_it_prints_no_text(self, run):
        found = run(stage("one", "import os; os.write(1, bytes(range(256))); raise SystemExit(1)"))
        assert found["one"]["status"] == "failed"

    def test_it_leaves_half_a_record(self, run):
        code = "import os; open(os.environ['FASTOPT_SURVEY_RESULT'], 'w').write('{\"status\": \"pas')"
        found = run(stage("one", code))
        assert (found["one"]["status"], found["one"]["line"]) == ("failed", "left half a record")

    def test_it_cannot_be_started(self, run):
        found = run(stages.Stage("one", ("/no/such/program",), 5, 0), stage("two", PASS))
        assert found["one"]["status"] == "failed"
        assert "/no/such/program" in found["one"]["line"]
        assert found["two"]["status"] == "passed"

    def test_a_driver_that_does_not_let_go(self, monkeypatch):
        """A process that a signal cannot end is waited for only a moment."""

        stuck = []

        def wait(self, timeout=None):
            stuck.append(self)
            raise subprocess.TimeoutExpired("stuck", timeout)

        with monkeypatch.context() as patch:
            patch.setattr(subprocess.Popen, "wait", wait)
            ended = processes.run([sys.executable, "-c", HANG], 0.3)
        stuck[0].wait()
        assert ended.status is None
        assert ended.late
        status, line = stages.outcome(stage("one", ""), ended, {}, False)
        assert status == "timed out"
        assert "could not be killed" in line


class TestTime:
    def test_a_budget_that_runs_out(self, run):
        some = [stage("one", HANG, limit=3.0), stage("two", PASS, least=18.0), stage("three", PASS, least=0.1)]
        found = run(*some, budget=20.0)
        assert found["one"]["status"] == "timed out"
        assert (found["two"]["status"], found["two"]["line"]) == ("not run", "no time")
        assert found["three"]["status"] == "passed"

    def test_what_is_cut_short_is_not_done(self, run):
        """Its own limit was longer, so another day it may pass."""
        found = run(stage("one", HANG, limit=60.0, least=0.5), budget=3.0)
        assert found["one"]["status"] == "not run"
        assert "waiting" in found["one"]["line"]

    def test_stages_side_by_side(self, run, tmp_path):
        """Each waits until all have started."""
        code = "import os, time, uuid\nopen({0!r} + '/at' + uuid.uuid4().hex, 'w').close()\n" + (
            "while sum(name.startswith('at') for name in os.listdir({0!r})) < 4: time.sleep(0.02)\n"
        )
        code = code.format(str(tmp_path)) + PASS
        found = run(*(stage(f"smoke/{i}", code, side_by_side=True) for i in range(4)), jobs=4)
        assert all(record["status"] == "passed" for record in found.values())

    def test_others_one_after_the_other(self, run, tmp_path):
        path = tmp_path / "busy"
        code = f"import os, time; os.mkdir({str(path)!r}); time.sleep(0.2); os.rmdir({str(path)!r}); " + PASS
        found = run(*(stage(f"figure/{i}", code) for i in range(3)), jobs=4)
        assert all(record["status"] == "passed" for record in found.values())


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """A function that runs the command with made-up stages: (status, out, err)."""

    def command(*arguments, some=()):
        monkeypatch.setattr(survey, "stages", lambda rehearsal: list(some))
        monkeypatch.setattr(survey, "START", time.monotonic())
        try:
            status = survey.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        return (status, *capsys.readouterr())

    return command


class TestCommand:
    def test_resume(self, command, tmp_path):
        out = tmp_path / "out"
        some = [
            stage("facts", PASS, always=True), stage("good", PASS), stage("bad", "raise ValueError"),
            stage("absent", TELL + "tell(status='skipped', line='no torch')"),
        ]  # fmt: skip
        args = ("--budget", 60, "--out", out)
        assert command(*args, some=some)[0] == 1
        assert len(records.read(out / records.NAME)) == 4
        status, _, err = command(*args, some=some)
        assert status == 2
        assert "has a survey already" in err
        assert command(*args, "--resume", some=some)[0] == 0
        names = [found["stage"] for found in records.read(out / records.NAME)]
        assert names[4:] == ["facts"]
        more = [*some[:2], stage("bad", PASS), *some[3:], stage("new", PASS)]
        assert command(*args, "--resume", "--retry", some=more)[0] == 0
        names = [found["stage"] for found in records.read(out / records.NAME)]
        assert names[5:] == ["facts", "bad", "new"]
        assert command(*args, "--only", "good", some=more)[0] == 0
        assert records.read(out / records.NAME)[-1]["stage"] == "good"

    def test_resume_does_what_there_was_no_time_for(self, command, tmp_path):
        out = tmp_path / "out"
        some = [stage("one", PASS), stage("two", PASS, least=1e5)]
        assert command("--budget", 60, "--out", out, some=some)[0] == 1
        some[1] = stage("two", PASS)
        assert command("--budget", 60, "--out", out, "--resume", some=some)[0] == 0
        assert [found["stage"] for found in records.read(out / records.NAME)] == ["one", "two", "two"]

    def test_only_a_group(self, command, tmp_path):
        some = [stage("smoke/a", PASS), stage("smoke/b", PASS), stage("tests", PASS)]
        assert command("--budget", 60, "--out", tmp_path / "out", "--only", "smoke", some=some)[0] == 0
        assert set(Folder(tmp_path / "out").latest()) == {"smoke/a", "smoke/b"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--out", "x"], "--budget and --out are needed"),
            (["--budget", "0", "--out", "x"], "must be a number of seconds above 0; got '0'"),
            (["--budget", "nan", "--out", "x"], "must be a number of seconds above 0; got 'nan'"),
            (["--budget", "9", "--out", "x", "--only", "y"], "unknown stage 'y'; known: one"),
            (["--budget", "9", "--out", "x", "--retry"], "--retry needs --resume"),
            (["--budget", "9", "--out", "x", "--jobs", "0"], "--jobs must be at least 1; got 0"),
            (["--page", "nowhere"], "nowhere has no records of a survey"),
            (["--bud", "9"], "unrecognized arguments: --bud"),
        ],
    )
    def test_arguments(self, command, tmp_path, monkeypatch, arguments, message):
        monkeypatch.chdir(tmp_path)
        status, _, err = command(*arguments, some=[stage("one", PASS)])
        assert status == 2
        assert message in err
        assert not list(tmp_path.iterdir())

    def test_rehearsal(self, command, tmp_path):
        """A rehearsal expects no device; otherwise that is a failure."""
        code = TELL + (
            "from fastopt.benchmarks.cuda.child import rehearsing; "
            "tell(status='no device' if rehearsing() else 'failed', line='a rehearsal')"
        )
        some = [stage("one", code)]
        assert command("--budget", 60, "--out", tmp_path / "a", "--rehearse", some=some)[0] == 0
        assert Folder(tmp_path / "a").latest()["one"]["status"] == "no device"
        assert command("--budget", 60, "--out", tmp_path / "b", some=some)[0] == 1

    def test_a_folder_that_cannot_be_made(self, command, tmp_path):
        (tmp_path / "file").touch()
        status, _, err = command("--budget", 60, "--out", tmp_path / "file" / "out", some=[stage("one", PASS)])
        assert status == 2
        assert "--out" in err

    def test_a_disk_that_is_full(self, command, tmp_path, monkeypatch):
        """The survey goes on, and names the files that it cannot write."""

        def write(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(records, "append", write)
        status, out, _ = command(
            "--budget", 60, "--out", tmp_path / "out", some=[stage("one", PASS), stage("two", PASS)]
        )
        assert status == 1  # nothing was recorded
        assert out.count("No space left on device") == 2

    def test_a_page_that_cannot_be_made(self, command, tmp_path, monkeypatch):
        monkeypatch.setattr(page, "write", lambda folder: 1 / 0)
        status, out, err = command("--budget", 60, "--out", tmp_path / "out", some=[stage("one", PASS)])
        assert status == 0
        assert "ZeroDivisionError" in err
        assert "verdict" in out

    def test_page_again(self, command, tmp_path):
        out = tmp_path / "out"
        assert command("--budget", 60, "--out", out, some=[stage("facts", PASS)])[0] == 0
        first = (out / records.PAGE).read_text(encoding="utf-8")
        (out / records.PAGE).unlink()
        status, said, _ = command("--page", out)
        assert status == 0
        assert "verdict" in said
        assert (out / records.PAGE).read_text(encoding="utf-8") == first

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_stopped_from_outside(self, tmp_path, number):
        """All running processes are killed, and the page is written."""
        script, pid = tmp_path / "survey_of_one.py", tmp_path / "pid"
        code = f"import os; open({str(pid)!r}, 'w').write(str(os.getpid())); {HANG}"
        script.write_text(
            "import sys\nfrom fastopt.benchmarks.cuda import survey\nfrom fastopt.benchmarks.cuda.stages import Stage\n"
            f"some = [Stage('one', (sys.executable, '-c', {code!r}), 60, 0), Stage('two', ('true',), 60, 0)]\n"
            "survey.stages = lambda rehearsal: some\nsys.exit(survey.main(sys.argv[1:]))\n"
        )
        out = tmp_path / "out"
        process = subprocess.Popen(
            [sys.executable, str(script), "--budget", "90", "--out", str(out)], stdout=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 30
        while not (pid.exists() and pid.read_text()):
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "verdict" in said
        assert gone(int(pid.read_text()))
        assert {record["status"] for record in Folder(out).latest().values()} == {"not run"}
        assert (out / records.PAGE).exists()


class TestStages:
    def test_order(self):
        names = [stage.name for stage in stages.stages(False)]
        assert len(set(names)) == len(names)
        groups = list(dict.fromkeys(name.partition("/")[0] for name in names))
        assert groups == ["facts", "smoke", "warmup", "figure", "tests", "suite", "sanitizer", "clocks"]
        assert [name.partition("/")[2] for name in names if name.startswith("figure/")] == list(FIGURES)
        assert {name.partition("/")[2] for name in names if name.startswith("suite/")} == set(bench.suites("cuda"))
        assert len(smoke.CHECKS) >= 25
        assert all(0 < stage.least <= stage.limit <= 300 for stage in stages.stages(False))

    def test_every_check_is_there(self):
        for name, home in smoke.CHECKS.items():
            source = Path(smoke.__file__).with_name(f"smoke_{home}.py").read_text(encoding="utf-8")
            functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
            assert name.replace("-", "_") in functions

    def test_tests(self):
        (found,) = [stage for stage in stages.stages(False) if stage.name == "tests"]
        command = " ".join(found.command)
        assert "-m gpu and not slow" in command
        assert "--tb=line --continue-on-collection-errors" in command
        assert "-W default" in command
        assert "tests/kernels/cuda/test_streams.py" in command
        assert "test_torch_gpu.py" in command
        assert "test_survey.py" not in command.replace(str(Path.cwd()), "")

    def test_the_survey_touches_no_cuda(self):
        """Nor does it load torch, or anything that takes seconds."""
        code = (
            "import sys\nfrom fastopt.benchmarks.cuda import survey\nassert survey.main(['--list']) == 0\n"
            "loaded = {name.partition('.')[0] for name in sys.modules}\n"
            "assert not loaded & {'numba', 'numba_cuda', 'cuda', 'torch', 'cffi', 'pytest'}, loaded\n"
            "assert not [name for name in sys.modules if name.startswith(('fastopt.kernels.c', 'fastopt.kernels.r'))]"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "smoke/zero-memset" in done.stdout

    @pytest.mark.parametrize(
        ("status", "output", "expected"),
        [
            (0, b"kept in /tmp\n", ("passed", "kept in /tmp")),
            (0, b"9 kernels: 8 compiled, 1 loaded\nkept in /tmp\n", ("passed", "9 kernels: 8 compiled, 1 loaded")),
            (2, b"fastopt: error: unrecognized arguments: --backend cuda\n", ("skipped", "this fastopt has no")),
            (1, b"12 kernels could not be kept\n", ("failed", "status 1: 12 kernels could not be kept")),
        ],
    )
    def test_warmup(self, status, output, expected):
        (found,) = [stage for stage in stages.stages(False) if stage.name == "warmup"]
        ended = processes.Ended(status, 1.0, False, output)
        told, line = stages.outcome(found, ended, {}, False)
        assert told == expected[0]
        assert line.startswith(expected[1])


class TestRecords:
    def test_a_line_that_was_cut_off(self, tmp_path):
        path = tmp_path / "records.jsonl"
        records.append(path, {"a": 1})
        with open(path, "ab") as file:
            file.write(b'{"b": [1, 2')
        records.append(path, {"c": Path("x")})
        records.append(path, {"d": "ä\n"})
        assert records.read(path) == [{"a": 1}, {"c": "x"}, {"d": "ä\n"}]

    def test_what_is_no_record(self, tmp_path):
        path = tmp_path / "records.jsonl"
        lines = b"[1]", b"3", b"\xff\xfe", b'{"stage": 3, "status": "passed"}', b'{"stage": "x"}', b"[" * 100_000
        path.write_bytes(b"\n".join(lines) + b"\n")
        assert Folder(tmp_path).latest() == {}
        assert records.read(tmp_path / "none.jsonl") == []

    def test_leaving_out_what_has_run(self, folder):
        for found in (record("one"), record("one", "not run"), record("two", "not run"), record("two", "failed")):
            folder.add(found)
        assert {name: found["status"] for name, found in folder.latest().items()} == {"one": "passed", "two": "failed"}

    def test_the_archive_has_an_end(self, folder, monkeypatch):
        monkeypatch.setattr(records, "MOST_LOGS", 200_000)
        for number in range(30):
            folder.add(record(f"s/{number}"), os.urandom(9000))
        assert (folder.path / records.LOGS).stat().st_size <= 200_000
        with tarfile.open(folder.path / records.LOGS) as archive:
            names = archive.getnames()
        assert names[0] == "s-0.log"
        assert len(names) >= 10
        assert len(records.read(folder.records)) == 30

    @pytest.mark.parametrize("cut", [1, 5_000, 10_300, 12_000])
    def test_an_archive_that_was_cut_off(self, folder, cut):
        for number in range(3):
            folder.add(record(f"s/{number}"), b"%d" % number * 3000)
        path = folder.path / records.LOGS
        content = path.read_bytes()
        path.write_bytes(content[:-cut])
        folder.add(record("s/9"), b"9" * 100)
        with tarfile.open(path) as archive:
            logs = {entry.name: archive.extractfile(entry).read() for entry in archive}
        assert logs["s-9.log"] == b"9" * 100
        assert all(logs[f"s-{n}.log"] == b"%d" % n * 3000 for n in range(3) if f"s-{n}.log" in logs)
        assert "s-0.log" in logs


def test_no_more_than_eight_files(run, folder):
    run(stage("facts", PASS), stage("smoke/a", PASS), stage("b", CRASH))
    assert {path.name for path in folder.path.iterdir()} == {records.NAME, records.PAGE, records.LOGS}
    assert len(page.verdict(folder).splitlines()) <= page.LINES
