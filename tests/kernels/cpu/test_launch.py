"""Launches from several threads, after forks, and beside other users of threads: always the same bits."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from fastopt.kernels import cpu
from fastopt.kernels.cpu.optim import plan
from fastopt.kernels.cpu.runtime import launch, teams
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, address_of, atomic_add
from fastopt.kernels.cpu.training import network, program
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Batches, DenseSpec, LossSpec, OptimizerSteps, Update

compiled = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels know no threading layer")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

NAMES = ["tbb", "omp", "workqueue"]
# TBB's is the one that is chosen, workqueue the one that launches nothing; the default is one of them.
LAYERS = ["tbb", "workqueue", *(pytest.param(name, marks=pytest.mark.repeats) for name in ("omp", "default"))]

PRELUDE = """
import multiprocessing, os, signal, sys, threading, time
import numpy as np
from fastopt.kernels import cpu
from fastopt.kernels.cpu.runtime import launch
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Batches, DenseSpec, LossSpec, OptimizerSteps, Update

OPTIONS = dict(OPTIMIZERS["adam"].options)

def data(rows, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, 64)).astype("f4"), rng.integers(0, 64, rows), rng

def updates(seed=0):
    rng = np.random.default_rng(seed)
    p, g = rng.standard_normal((2, 200_000)).astype("f4")
    states = np.zeros_like(p), np.zeros_like(p)
    for step in range(1, 11):
        cpu.update([Update("adam", p, g, states, OPTIONS, step)])
    return p.tobytes()

class Fit:
    def __init__(self, seed=0):
        self.x, self.y, rng = data(256, seed)
        self.params = [rng.standard_normal((64, 64)).astype("f4") / 8, np.zeros(64, "f4")]
        self.states = [(np.zeros_like(p), np.zeros_like(p)) for p in self.params]
        self.network = cpu.Network([DenseSpec(64, 64)], self.params, "float32",
                                   LossSpec("sparse_categorical_crossentropy"), ["accuracy"])

    def __call__(self, steps, progress=None):
        batches = Batches(self.x, self.y, np.arange(256 * steps) % 256, 256)
        self.network.train(batches, OptimizerSteps("adam", self.states, OPTIONS, np.full(steps, 1e-3)), 0, progress)
        return self.bits()

    def bits(self):
        return b"".join(p.tobytes() for p in self.params)

def work(seed=0):
    return updates(seed), Fit(seed)(20)

def serial(seed=0):
    launch.set_num_threads(1)
    try:
        return work(seed)
    finally:
        launch.set_num_threads(2)
"""


@pytest.fixture
def python(tmp_path):
    """python(code, **environment): run it after the prelude in a new process; nothing may come on stderr."""

    def run(code, **environment):
        script = tmp_path / "script.py"
        body = textwrap.indent(textwrap.dedent(code), "    ")
        script.write_text(f'{PRELUDE}\nif __name__ == "__main__":\n{body}\n')
        # From Python 3.12 on a fork of a process with threads is warned of; that it works is what is tested.
        command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(script)]
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stderr == ""
        assert done.returncode == 0
        return done.stdout

    return run


@pytest.fixture(params=LAYERS)
def layer(request, python):
    """The environment for a threading layer that is there."""
    if INTERPRETED:
        pytest.skip("interpreted kernels know no threading layer")
    if request.param not in _loadable():
        pytest.skip(f"threading layer {request.param} cannot be loaded here")
    return {"NUMBA_THREADING_LAYER": request.param}


def _loadable(known={"workqueue", "default"}):  # noqa: B006 (a memory)
    if "omp" not in known:
        try:
            from numba.np.ufunc import omppool  # noqa: F401

            known.add("omp")
        except ImportError:
            pass
        launch._prefer_tbb()
        if launch._has_tbb():
            known.add("tbb")
    return known


# ---------------------------------------------------------------- several Python threads
def test_launches_from_four_python_threads_at_once(python, layer):
    python(
        """
        expected = [serial(seed) for seed in range(4)]
        found = [None] * 4
        gate = threading.Barrier(4)
        def body(seed):
            gate.wait()
            found[seed] = work(seed), work(seed)
        threads = [threading.Thread(target=body, args=(seed,)) for seed in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert found == [(bits, bits) for bits in expected]
        """,
        **layer,
    )


@pytest.mark.parametrize("name", ["tbb", pytest.param("omp", marks=pytest.mark.repeats)])
@compiled
def test_beside_a_numba_function_of_the_users(python, name, tmp_path):
    if name not in _loadable():
        pytest.skip(f"threading layer {name} cannot be loaded here")
    python(
        """
        import numba
        launch.threading_layer()  # finds the TBB that pip installed, which Numba does not
        def total(x):
            s = 0.0
            for i in numba.prange(x.size):
                s += x[i]
            return s
        total = numba.njit(parallel=True)(total)
        ones = np.ones(300_000)
        total(ones)
        expected, found, sums = serial(), [], set()
        def theirs():
            while len(found) < 3:
                sums.add(total(ones))
        def ours():
            while len(found) < 3:
                found.append(work())
        threads = [threading.Thread(target=body) for body in (theirs, ours)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert found[:3] == [expected] * 3 and sums == {300_000.0}
        """,
        NUMBA_THREADING_LAYER=name,
    )


def test_threads_that_ask_for_the_same_new_kernel_at_once(python, layer, tmp_path):
    python(
        """
        sys.setswitchinterval(1e-6)
        gate, found = threading.Barrier(6), []
        def body():
            gate.wait()
            p = np.ones(8, "f4")
            cpu.update([Update("sgd", p, p.copy(), (), dict(OPTIMIZERS["sgd"].options, lr=0.5), 1)])
            found.append(p.tolist())
        threads = [threading.Thread(target=body) for _ in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert found == [[0.5] * 8] * 6
        """,
        **layer,
    )


# ---------------------------------------------------------------- forks
CHILD = """
def child(function):
    pid = os.fork()
    if not pid:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return pid
"""


@forks
def test_after_a_fork(python, layer):
    python(
        CHILD
        + """
expected = serial()
assert work() == expected
def grandchild():
    assert work() == expected
def first():
    assert work() == expected
    assert os.waitpid(child(grandchild), 0)[1] == 0
pids = [child(first), child(grandchild)]
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
assert work() == expected
""",
        **layer,
    )


@forks
@compiled
def test_a_fork_amid_launches_of_other_threads(python):
    # With TBB, which survives most, Numba prints on stdout that not all threads could be joined.
    python(
        CHILD
        + """
launch.threading_layer()
expected, running = serial(), True
def body():
    while running:
        updates()
threads = [threading.Thread(target=body) for _ in range(2)]
[thread.start() for thread in threads]
def same():
    assert work() == expected
def fails(pid):
    until = time.monotonic() + 30
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return "hangs"
found = [fails(child(same)) for _ in range(8)]
running = False
[thread.join() for thread in threads]
assert found == [0] * 8, found
"""
    )


@forks
@pytest.mark.skipif(INTERPRETED or "omp" not in _loadable(), reason="OpenMP's layer cannot be loaded here")
def test_a_fork_after_a_launch_of_the_users_only(python):
    # Numba ends a process that launches on OpenMP after a fork, whoever launched before it.
    python(
        CHILD
        + """
import numba
from numba.np.ufunc.parallel import _launch_threads
_launch_threads()
expected = serial()
launch.threading_layer.cache_clear()
def same():
    assert not launch._can_launch()
    assert work() == expected
assert os.waitpid(child(same), 0)[1] == 0
""",
        NUMBA_THREADING_LAYER="omp",
    )


@forks
@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels have no compiler to wait for")
def test_a_fork_waits_for_a_compilation(python, tmp_path):
    python(
        CHILD
        + """
launch.threading_layer()  # in this thread: Numba complains of forks by another than the one that has started TBB
thread = threading.Thread(target=updates)
heard = threading.Event()
with cpu.compiling(lambda name: heard.set()):
    thread.start()
    assert heard.wait(60)
    def same():
        signal.alarm(60)
        assert updates(0)
    assert os.waitpid(child(same), 0)[1] == 0
    thread.join()
""",
        FASTOPT_CACHE_DIR=str(tmp_path / "cache"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "method"),
    [
        *((name, "fork") for name in NAMES),
        # a spawned process is as new as any other, whatever the layer
        *(pytest.param(name, "spawn", marks=pytest.mark.repeats) for name in (*NAMES, "default")),
        pytest.param("default", "fork", marks=pytest.mark.repeats),
    ],
    indirect=["layer"],
)
def test_pools(python, layer, method):
    if method == "fork" and not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    python(
        f"""
expected = [serial(seed) for seed in range(3)]
assert work(0) == expected[0]
with multiprocessing.get_context("{method}").Pool(2) as pool:
    assert pool.map(work, range(3), 1) == expected
assert work(0) == expected[0]
""",
        **layer,
    )


# ---------------------------------------------------------------- other users of threads
def test_nobody_elses_settings_change(python, layer):
    pytest.importorskip("threadpoolctl")
    python(
        """
import ctypes, numba
from threadpoolctl import threadpool_info
before = [(i["filepath"], i["num_threads"]) for i in threadpool_info()]
chosen = numba.config.THREADING_LAYER, numba.config.NUMBA_NUM_THREADS
work()
launch.set_num_threads(2)
work()
after = [(i["filepath"], i["num_threads"]) for i in threadpool_info()]
assert before and [line for line in after if line[0] in dict(before)] == before
assert (numba.config.THREADING_LAYER, numba.config.NUMBA_NUM_THREADS) == chosen
numba.set_num_threads(1)
work()
assert numba.get_num_threads() == 1
""",
        **layer,
    )


@compiled
@pytest.mark.skipif("omp" not in _loadable(), reason="OpenMP's layer cannot be loaded here")
def test_the_number_of_openmp_threads_stays(python):
    # Numba sets it for the thread that starts the layer, so a library that shares the OpenMP run time would feel it.
    python(
        """
import ctypes
from numba.np.ufunc import omppool
openmp = ctypes.CDLL(omppool.__file__)
openmp.omp_set_num_threads(1)
work()
assert launch.threading_layer() == "omp"
assert openmp.omp_get_max_threads() == 1
""",
        NUMBA_THREADING_LAYER="omp",
        NUMBA_NUM_THREADS="2",
    )


def test_torchs_number_of_threads_stays(python, layer):
    pytest.importorskip("torch")
    python(
        """
import torch
torch.set_num_threads(1)
a = torch.ones(300, 300)
a @ a
assert work() == serial()
assert torch.get_num_threads() == 1
a @ a
torch.set_num_threads(2)
assert work() == serial()
assert torch.get_num_threads() == 2
""",
        **layer,
    )


# ---------------------------------------------------------------- the number of threads
@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(launch, "_threads", None)
    monkeypatch.delenv("FASTOPT_NUM_THREADS", raising=False)


def test_the_default_is_the_processors_available():
    assert launch.get_num_threads() == launch._available() >= 1


def test_the_environment_and_then_the_call_choose(monkeypatch):
    monkeypatch.setenv("FASTOPT_NUM_THREADS", "3")
    assert launch.get_num_threads() == 3
    launch.set_num_threads(5)
    assert launch.get_num_threads() == 5


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", "²", " "])
def test_a_bad_environment_is_named(monkeypatch, value):
    monkeypatch.setenv("FASTOPT_NUM_THREADS", value)
    with pytest.raises(ValueError, match="FASTOPT_NUM_THREADS must be an integer of at least 1; got"):
        launch.get_num_threads()


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-2, ValueError), (2.0, TypeError), (True, TypeError)])
def test_a_bad_number_changes_nothing(value, error):
    launch.set_num_threads(2)
    with pytest.raises(error, match="the number of threads must be"):
        launch.set_num_threads(value)
    assert launch.get_num_threads() == 2


def test_ranks_follow_the_work():
    launch.set_num_threads(4)
    assert launch.num_threads_for(0, 100, 8) == 1
    assert launch.num_threads_for(199, 100, 8) == 1
    assert launch.num_threads_for(200, 100, 8) == 2
    assert launch.num_threads_for(10_000, 100, 8) == 4
    assert launch.num_threads_for(10_000, 100, 3) == 3
    assert launch.num_threads_for(10_000, 100, 0) == 1
    assert [launch.num_threads_for(10_000, 100, 8, limit=lambda n=n: n) for n in (1, 2, 7)] == [1, 2, 4]
    assert launch.num_threads_for(199, 100, 8, limit=lambda: pytest.fail("asked")) == 1


def sgd(size):
    p = np.linspace(-1, 1, size)
    cpu.update([Update("sgd", p, np.ones_like(p), (), dict(OPTIMIZERS["sgd"].options), 1)])
    return p.tobytes()


@pytest.mark.parametrize(("size", "launched"), [(1, 0), (2 * launch.UPDATE_ELEMENTS - 1, 0), (200_000, 1)])
@compiled
def test_small_work_is_not_launched(monkeypatch, size, launched):
    calls = []
    kernel = launch.LAUNCH
    monkeypatch.setattr(launch.openmp, "torch_threads", lambda: None)  # a test may have imported torch
    monkeypatch.setattr(launch, "LAUNCH", lambda *args: [calls.append(args), kernel(*args)])
    monkeypatch.setattr(launch, "_can_launch", lambda: True)
    launch.set_num_threads(2)
    sgd(size)
    assert len(calls) == launched


@pytest.mark.parametrize("layer_here", ["tbb", "omp", "workqueue", "none"])
@pytest.mark.parametrize("forked", [False, True])
@compiled
def test_where_launching_is_not_safe_the_caller_runs_all(monkeypatch, layer_here, forked):
    calls = []
    monkeypatch.setattr(launch.openmp, "torch_threads", lambda: None)
    monkeypatch.setattr(launch, "LAUNCH", lambda kernel, work, step, num_ranks: calls.append(num_ranks))
    monkeypatch.setattr(launch, "threading_layer", lambda: layer_here)
    monkeypatch.setattr(launch._Fork, "happened", forked)
    launch.set_num_threads(2)
    safe = layer_here in ("tbb", "omp") and not forked
    p = np.zeros(200_000)
    cpu.update([Update("sgd", p, np.ones_like(p), (), dict(OPTIMIZERS["sgd"].options, lr=1.0), 1)])
    assert calls == [2] * safe
    assert safe or (p == -1).all()


def test_the_same_bits_for_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(plan, "UPDATE_ELEMENTS", 64)
    size = 300 if INTERPRETED else 200_000
    found = set()
    for threads in (1, 2, 4):
        launch.set_num_threads(threads)
        found.add(sgd(size))
    assert len(found) == 1


def test_no_threading_layer_at_all(monkeypatch, caplog):
    def fail():
        raise ValueError("No threading layer could be loaded.")

    monkeypatch.setattr("numba.np.ufunc.parallel._launch_threads", fail)
    launch.threading_layer.cache_clear()
    try:
        assert launch.threading_layer() == "none"
        assert launch.threading_layer() == "none"
    finally:
        launch.threading_layer.cache_clear()
    assert len(caplog.records) == (0 if INTERPRETED else 1)


# ---------------------------------------------------------------- teams
def fit(steps, threads, monkeypatch, progress=None):
    """A fit whose every batch deserves all threads; the network, and its parameters as bytes."""
    monkeypatch.setattr(network, "STEP_FLOPS", 1)
    monkeypatch.setattr(network, "PASS_FLOPS", 1)
    monkeypatch.setattr(launch, "_threads", threads)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 8)), rng.integers(0, 4, 64)
    params = [rng.standard_normal((8, 80)), np.zeros(80), rng.standard_normal((80, 4)), np.zeros(4)]
    net = cpu.Network(
        [DenseSpec(8, 80, "relu"), DenseSpec(80, 4)], params, "float64", LossSpec("sparse_categorical_crossentropy")
    )
    batches = Batches(x, y, np.arange(64 * steps) % 64, 64)
    options = dict(OPTIMIZERS["sgd"].options)
    try:
        net.train(batches, OptimizerSteps("sgd", [()] * 4, options, np.full(steps, 1e-3)), 0, progress)
    except BaseException as error:
        error.net = net
        raise
    return b"".join(p.tobytes() for p in params)


STEPS = 2 if INTERPRETED else 50


@pytest.mark.parametrize("long", [0, 1e18])
@pytest.mark.parametrize("threads", [2, 4])
def test_a_team_gives_the_same_bits(monkeypatch, threads, long):
    monkeypatch.setattr(program, "WATCHED_FLOPS", long)
    assert fit(STEPS, threads, monkeypatch) == fit(STEPS, 1, monkeypatch)


@pytest.fixture
def no_workers(monkeypatch):
    """No thread waits for a team."""
    monkeypatch.setattr(teams, "_idle", [])


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("long", [0, 1e18])
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_a_team_shrinks_where_threads_are_refused(monkeypatch, granted, long):
    expected, start, left = fit(STEPS, 1, monkeypatch), threading.Thread.start, [granted]

    def reluctant(thread):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(program, "WATCHED_FLOPS", long)
    monkeypatch.setattr(threading.Thread, "start", reluctant)
    assert fit(STEPS, 4, monkeypatch) == expected
    assert left == [0]
    assert len(teams._idle) == granted


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("long", [0, 1e18])
def test_threads_of_teams_are_kept_for_the_next_call(monkeypatch, long):
    monkeypatch.setattr(program, "WATCHED_FLOPS", long)
    expected = fit(STEPS, 4, monkeypatch)
    before, kept = threading.active_count(), list(teams._idle)
    assert len(kept) == (3 if long else 4)  # where nobody watches, the caller is one of the team
    for threads in (2, 4, 3):
        assert fit(STEPS, threads, monkeypatch) == expected
    assert threading.active_count() == before
    assert set(teams._idle) == set(kept)


def _count(work, step, rank, num_ranks):
    atomic_add(work, 1 + 1000 * rank)


@pytest.mark.parametrize("looks", [1, teams.LOOKS])
def test_no_rank_is_lost_as_workers_fall_asleep(monkeypatch, looks):
    """Teams of several threads come at random times, before, while and after workers begin to wait for the lock."""
    monkeypatch.setattr(teams, "LOOKS", looks)
    if not INTERPRETED:
        monkeypatch.setattr(teams, "SERVE", Kernel(teams._serve, f"serve_after_{looks}"))
    monkeypatch.setattr(teams, "_idle", [])
    kernel, sums = Kernel(_count, "count"), {}

    def run(seed):
        rng, counter, expected = random.Random(seed), np.zeros(1, np.int64), 0
        for _ in range(20 if INTERPRETED else 400):
            ranks, watch = rng.choice([2, 3]), (lambda: None) if rng.random() < 0.1 else None
            teams.run_team(kernel, address_of(counter), ranks, watch)
            expected += sum(1 + 1000 * rank for rank in range(ranks))
            end = time.perf_counter() + rng.random() * (1e-5 if looks == 1 else 2e-4)
            while time.perf_counter() < end:
                pass
        sums[seed] = counter[0] == expected

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == dict.fromkeys(range(3), True)


def _fail(work, step, rank, num_ranks):
    raise ValueError("no phase")


@pytest.mark.skipif(not INTERPRETED, reason="compiled kernels raise nothing")
def test_ranks_that_raise_do_not_keep_their_caller_waiting(monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda error: raised.append(str(error.exc_value)))
    monkeypatch.setattr(teams, "_idle", [])
    caller = threading.Thread(target=teams.run_team, args=(Kernel(_fail, "fail"), 0, 2, lambda: None), daemon=True)
    caller.start()
    caller.join(20)
    assert not caller.is_alive()
    assert raised == ["no phase"] * 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interruption_ends_at_a_batch(monkeypatch, kind, threads):
    steps = 200 if INTERPRETED else 200_000
    monkeypatch.setattr(program, "WATCHED_FLOPS", 0)

    def progress(done, loss):
        raise kind("enough")

    with pytest.raises(kind, match="enough") as caught:
        fit(steps, threads, monkeypatch, progress)
    net = caught.value.net
    assert 0 < net.steps_done < steps
    assert b"".join(p.tobytes() for p in net.params) == fit(net.steps_done, 1, monkeypatch)


@pytest.mark.usefixtures("no_workers")
def test_an_interruption_before_the_team_works(monkeypatch):
    start, started = threading.Thread.start, []

    def starting(thread):
        start(thread)
        started.append(thread)
        if len(started) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(program, "WATCHED_FLOPS", 0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", starting)
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(STEPS, 4, monkeypatch)
    assert caught.value.net.steps_done == 0
    assert len(teams._idle) == 1  # the first one, which waits for the next team
    assert fit(STEPS, 4, monkeypatch) == fit(STEPS, 1, monkeypatch)


@pytest.mark.own_process
@pytest.mark.parametrize("long", [0, 1e18])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_an_interrupt_while_ranks_are_started_waits_until_all_are(monkeypatch, long):
    begin = teams._Worker.start

    def beginning(worker, *args):
        begin(worker, *args)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(program, "WATCHED_FLOPS", long)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with monkeypatch.context() as patch:
            patch.setattr(teams._Worker, "start", beginning)
            with pytest.raises(KeyboardInterrupt) as caught:
                fit(STEPS, 4, monkeypatch)
    finally:
        signal.signal(signal.SIGINT, before)
    done = caught.value.net.steps_done
    assert done == STEPS if long else 0 < done <= STEPS
    assert b"".join(p.tobytes() for p in caught.value.net.params) == fit(done, 1, monkeypatch)


@compiled
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_control_c(python):
    # More than once, because the second must not release the memory that the team still works on.
    out = python(
        """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
updates()
Fit()(2)
fit, steps = Fit(), 40_000
def press():
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.0005)
thread = threading.Thread(target=press)
def progress(done, loss):
    if not thread.ident:
        thread.start()
try:
    fit(steps, progress)
except KeyboardInterrupt:
    done, bits = fit.network.steps_done, fit.bits()
    for _ in range(20):  # the others come now at the latest
        try:
            time.sleep(0.02)
        except KeyboardInterrupt:
            pass
assert bits == fit.bits()
assert 0 < done < steps
assert Fit()(done) == bits
print(done)
"""
    )
    assert int(out) > 0
