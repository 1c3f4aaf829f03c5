"""Launches on torch's OpenMP threads: which processes have them, forks, threads at once, always the same bits."""

import os
import subprocess
import sys
import textwrap

import pytest

from fastopt.kernels.cpu.runtime import launch
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED

pytest.importorskip("torch", reason="in the extra `torch`")
pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="interpreted kernels run on one thread"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere launches are Numba's layer's"),
]

WORK = """
import ctypes, multiprocessing, os, signal, sys, threading, time
import numpy as np

def launched_by():
    from fastopt.kernels.cpu.runtime import launch
    return launch.launcher()

def of_numpy(seed=0):
    # The bits that steps give, with tiny gradients among others.
    import fastopt as fo
    rng = np.random.default_rng(seed)
    p, g = rng.standard_normal((2, 200_003)).astype("f4")
    g[::3] *= np.float32(1e-20)
    optimizer = fo.Adam(p)
    for _ in range(5):
        optimizer.step(g)
    return p.tobytes()

def work(seed=0):
    import torch, fastopt.torch
    rng = np.random.default_rng(seed)
    t, g = (torch.from_numpy(x.astype("f4")) for x in rng.standard_normal((2, 200_003)))
    t.requires_grad_().grad = g
    optimizer = fastopt.torch.Adam([t], clip_norm=1.0)
    for _ in range(5):
        optimizer.step()
    return of_numpy(seed), t.detach().numpy().tobytes()

def serial(seed=0, what=work):
    import fastopt as fo
    before = fo.get_num_threads()
    fo.set_num_threads(1)
    try:
        return what(seed)
    finally:
        fo.set_num_threads(before)

def child(function):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return pid

def ends_well(pid, seconds=60):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False
"""

# torch's pool, at work: where a fork leaves threads behind that its child would wait for.
TORCH = """
import torch
torch.set_num_threads(2)
torch.ones(1_000_000).mul_(2)
import fastopt as fo, fastopt.torch
from fastopt.kernels.cpu.runtime import launch, openmp
fo.set_num_threads(2)
"""


@pytest.fixture
def python(tmp_path):
    """python(code, **environment): run it in a new process, where torch is at work unless torch=False."""

    def run(code, torch=True, **environment):
        script = tmp_path / "script.py"
        body = textwrap.indent((TORCH if torch else "") + textwrap.dedent(code), "    ")
        script.write_text(f'{WORK}\nif __name__ == "__main__":\n{body}\n')
        command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", str(script)]
        own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "NUMBA_THREADING"))}
        own["OMP_WAIT_POLICY"] = "passive"  # where other processes want the cores, threads that spin take minutes
        done = subprocess.run(command, env=own | environment, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


# ---------------------------------------------------------------- the choice
def test_the_bits_are_those_of_one_thread_and_of_the_layer(python):
    python(
        """
        expected = serial()
        assert launched_by() == "torch"
        for ours in (1, 2, 4):
            fo.set_num_threads(ours)
            for theirs in (1, 2, 3, 4):
                torch.set_num_threads(theirs)
                assert launched_by() == ("torch" if theirs > 1 else launch.threading_layer())
                assert work() == expected
                assert torch.get_num_threads() == theirs
        openmp.torch_threads = lambda: None
        assert launched_by() == launch.threading_layer() != "torch"
        assert work() == expected
        """
    )


def test_torch_may_come_after_the_first_launch(python):
    python(
        """
        import fastopt as fo
        fo.set_num_threads(2)
        p = np.ones(200_000, "f4")
        fo.Adam(p).step(p.copy())
        assert launched_by() in ("tbb", "omp", "none")
        import torch
        torch.set_num_threads(2)
        assert launched_by() == "torch"
        assert work() == serial()
        """,
        torch=False,
    )


@pytest.mark.parametrize("layer", ["tbb", "omp", "workqueue"])
def test_a_layer_that_the_user_has_chosen_is_used(python, layer):
    if layer == "omp":
        pytest.importorskip("numba.np.ufunc.omppool", exc_type=ImportError)
    if layer == "tbb":
        launch._prefer_tbb()
        if not launch._has_tbb():
            pytest.skip("TBB is not installed")
    python(
        f"""
        assert openmp.torch_threads() is None
        assert launched_by() == {layer!r} or {layer!r} == "workqueue" and launched_by() == "none"
        assert work() == serial()
        """,
        NUMBA_THREADING_LAYER=layer,
    )


def test_a_pool_of_another_library_is_left_alone(python):
    python(
        """
        from fastopt.kernels.cpu.runtime import openmp
        class Library:
            dlsym = staticmethod(lambda handle, name: openmp.ffi.cast("void *", 16))
            def dladdr(self, address, info):
                self.kept = openmp.ffi.new("char[]", b"/somewhere/libiomp5.so")
                info.path = self.kept
                return 1
        class Linker:
            new = openmp.linker.new
            dlopen = staticmethod(lambda name: Library())
        assert openmp._find() is not None
        openmp._find.cache_clear()
        openmp.linker = Linker()
        assert openmp._find() is None and launched_by() != "torch"
        assert work() == serial()
        """
    )


def test_ranks_are_those_of_the_work_and_the_team_is_torchs(python, tmp_path):
    python(
        """
        from fastopt.kernels.cpu.runtime.compile import Kernel
        from fastopt.kernels.cpu.runtime.primitives import atomic_add
        def count(work, step, rank, num_ranks):
            atomic_add(work + 8 * rank, 1)
            atomic_add(work + 8 * 16, num_ranks)
        kernel = Kernel(count, "test_count")
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            for num_ranks in range(2, 9):  # more num_ranks than threads as well: a team may be smaller than asked for
                words = np.zeros(17, np.int64)
                openmp.torch_threads().run(kernel, words.ctypes.data, 0, num_ranks)
                assert words.tolist() == [1] * num_ranks + [0] * (16 - num_ranks) + [num_ranks * num_ranks]
                words[:] = 0
                launch.parallel(kernel, words.ctypes.data, 0, num_ranks)
                assert words.tolist() == [1] * num_ranks + [0] * (16 - num_ranks) + [num_ranks * num_ranks]
        """,
        FASTOPT_CACHE_DIR=str(tmp_path),
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_NUM_THREADS": "3"},
        {"OMP_DYNAMIC": "true"},
        {"OMP_THREAD_LIMIT": "1"},
        {"OMP_WAIT_POLICY": "active"},
        {"OMP_MAX_ACTIVE_LEVELS": "2", "OMP_PROC_BIND": "true"},
    ],
    ids=lambda environment: " ".join(f"{name}={value}" for name, value in environment.items()),
)
def test_settings_of_openmp(python, environment):
    set_by_hand = "OMP_NUM_THREADS" not in environment  # by the prelude
    own = "" if set_by_hand else "import torch, fastopt as fo\nfo.set_num_threads(2)\n"
    python(f"{own}assert work() == serial()\n", torch=set_by_hand, **environment)


# ---------------------------------------------------------------- threads
def test_four_python_threads_at_once(python):
    python(
        """
        expected = [serial(seed) for seed in range(4)]
        gate, found = threading.Barrier(4), [None] * 4
        def body(seed):
            gate.wait()
            found[seed] = work(seed), work(seed)
        for _ in range(3):
            threads = [threading.Thread(target=body, args=(seed,)) for seed in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            assert found == [(bits, bits) for bits in expected]
        """
    )


@pytest.mark.parametrize("levels", ["1", "2"])
def test_inside_a_parallel_region(python, levels):
    python(
        """
        expected, found = {seed: serial(seed) for seed in range(2)}, {}
        library = ctypes.CDLL(openmp._find().path)
        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def body(data):
            rank = library.omp_get_thread_num()
            found[rank] = work(rank)
        library.GOMP_parallel(body, None, 2, 0)
        assert found == expected
        """,
        OMP_MAX_ACTIVE_LEVELS=levels,
    )


def test_threads_of_torch_keep_their_setting_of_denormals(python, tmp_path):
    python(
        """
        from fastopt.kernels.cpu.runtime.compile import Kernel
        from fastopt.kernels.cpu.runtime.primitives import _read_control, call_int, enter, view
        def note(record):
            r = view(record, 3, np.int64)
            view(r[1] + 8 * call_int(r[0]), 1, np.int64)[0] = _read_control()
        library, kernel = openmp._find(), Kernel(note, "test_note")
        def controls():
            words = np.zeros(3, np.int64)
            record = openmp.ffi.new("int64_t[6]", (library.thread_num, words.ctypes.data, 0, 0, 0, 0))
            library.start(kernel.address, record, 3, 0)
            return [int(word) & ~0x3F for word in words]
        torch.set_num_threads(3)
        before = controls()
        assert len(set(before)) == 1
        work()
        assert launched_by() == "torch"
        assert controls() == before
        torch.set_num_threads(4)  # some threads end, others start
        work()
        torch.set_num_threads(3)
        assert controls() == before
        assert (torch.full((300_000,), 1e-40) * 1.0).min() > 0
        """,
        FASTOPT_CACHE_DIR=str(tmp_path),
    )


# ---------------------------------------------------------------- forks
# torch's own work in a child hangs if it needs threads; so it is left alone there, or told to use one.
def test_after_a_fork(python):
    python(
        """
        expected, whole = serial(what=of_numpy), serial()
        assert work() == whole and launched_by() == "torch"
        def grandchild():
            assert launched_by() != "torch"
            assert of_numpy() == expected
        def first():
            assert launched_by() != "torch"
            assert of_numpy() == expected
            assert ends_well(child(grandchild), 20)
            torch.set_num_threads(1)
            assert work() == whole
        for _ in range(3):
            assert ends_well(child(first))
            assert work() == whole and launched_by() == "torch"
        """
    )


def test_a_fork_amid_launches_of_other_threads(python):
    python(
        """
        expected, running = serial(what=of_numpy), True
        def body():
            while running:
                work()
        threads = [threading.Thread(target=body) for _ in range(2)]
        [thread.start() for thread in threads]
        def same():
            assert of_numpy() == expected
        found = [ends_well(child(same)) for _ in range(6)]
        running = False
        [thread.join() for thread in threads]
        assert found == [True] * 6
        """
    )


def test_a_child_of_a_process_that_only_used_torch(python):
    # A module that is imported after the fork must find out by itself that there was one.
    python(
        """
        import torch
        torch.set_num_threads(2)
        torch.ones(1_000_000).mul_(2)
        def same():
            import fastopt as fo
            fo.set_num_threads(2)
            p = np.ones(200_000, "f4")
            fo.SGD(p, lr=0.5).step(p.copy())
            assert (p == 0.5).all()
            assert launched_by() != "torch"
        assert ends_well(child(same))
        """,
        torch=False,
    )


def test_a_child_that_is_the_first_to_load_torch_has_its_threads(python):
    python(
        """
        import fastopt as fo
        from fastopt.kernels.cpu.runtime import launch
        def body():
            import torch
            torch.set_num_threads(2)
            fo.set_num_threads(2)
            assert launched_by() == "torch"
            assert work() == serial()
        assert ends_well(child(body))
        """,
        torch=False,
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools(python, method):
    python(
        f"""
        does = of_numpy if {method!r} == "fork" else work
        expected = [serial(seed, does) for seed in range(3)]
        assert does(0) == expected[0]
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            assert pool.map_async(does, range(3), 1).get(100) == expected
        assert does(0) == expected[0]
        """
    )
