"""Ctrl-C is never lost: not in a held region, and not while kernels are compiled."""

import random
import signal
import sys
import threading
import time

import pytest
from helpers_interrupts import finish, handled, press, start

from fastopt.kernels.cpu.runtime.primitives import INTERPRETED
from fastopt.kernels.interrupts import interrupts_held

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
compiled = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")


# ---------------------------------------------------------------- held regions


def test_an_interrupt_comes_after_the_region():
    done = []

    def region():
        with interrupts_held():
            press()
            done.append(1)

    with handled():
        with pytest.raises(KeyboardInterrupt):
            region()
        with pytest.raises(KeyboardInterrupt):
            press()
    assert done == [1]


def test_an_interrupt_comes_when_the_region_looks():
    reached = []

    def region():
        with interrupts_held() as check:
            check()
            press()
            reached.append(1)
            check()
            reached.append(2)

    with handled(), pytest.raises(KeyboardInterrupt):
        region()
    assert reached == [1]


def test_an_interrupt_is_not_lost_where_the_region_fails():
    def region():
        with interrupts_held():
            press()
            raise ValueError("of the region")

    with handled(), pytest.raises(KeyboardInterrupt) as caught:
        region()
    assert isinstance(caught.value.__context__, ValueError)


def test_regions_in_regions():
    reached = []

    def region():
        with interrupts_held():
            with interrupts_held() as check:
                press()
                check()
                reached.append("the end of the inner region")
            reached.append("the end of the outer region")

    with handled(), pytest.raises(KeyboardInterrupt):
        region()
    assert len(reached) == 2


def test_a_handler_of_the_user_hears_of_every_interrupt():
    heard = []

    def mine(number, frame):
        heard.append(number)

    with handled(mine):
        with interrupts_held():
            press()
            press()
            assert heard == []
        assert heard == [signal.SIGINT] * 2
        assert signal.getsignal(signal.SIGINT) is mine


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_handlers_that_are_not_pythons_stay(handler):
    with handled(handler), interrupts_held():
        assert signal.getsignal(signal.SIGINT) == handler


def test_other_threads_hold_nothing():
    found = []

    def body():
        with interrupts_held() as check:
            check()
            found.append(signal.getsignal(signal.SIGINT))

    with handled():
        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
    assert found == [signal.default_int_handler]


# ---------------------------------------------------------------- compilation


@compiled
@posix
def test_an_interrupt_in_a_callback_of_the_compiler(tmp_path):
    """There an exception would be printed and forgotten."""
    program = """
from llvmlite import binding as llvm
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.cpu.runtime import objects
objects.usable = lambda: False  # Numba calls back for code that it keeps itself
find = llvm.ExecutionEngine._find_module_ptr  # which nothing calls but the callbacks
def pressed(*arguments):
    signal.raise_signal(signal.SIGINT)
    print("pressed")
    return find(*arguments)
llvm.ExecutionEngine._find_module_ptr = pressed
kernel = Kernel(lambda address: None, "nothing")
try:
    kernel.address
except KeyboardInterrupt:
    print("heard")
signal.signal(signal.SIGINT, lambda *_: print("mine"))
Kernel(lambda address, value: None, "nothing_else").address
print(bool(kernel.address))
"""
    status, out, err = finish(start(program, cache=tmp_path))
    assert (status, err) == (0, "")
    lines = out.split()
    assert lines.count("heard") == 1
    before, after = lines[: lines.index("heard")], lines[lines.index("heard") + 1 :]
    assert set(before) == {"pressed"}
    assert set(after) == {"pressed", "mine", "True"}
    assert after[-1] == "True"


TRIES = """
import os, random, shutil, sys, threading, time
from fastopt.kernels.cpu import all_kernels
kernels = sorted(all_kernels(["float32"]), key=lambda kernel: kernel.name)
rng = random.Random(int(sys.argv[1]))
lost = 0
for _ in range(int(sys.argv[2])):
    rng.shuffle(kernels)
    timer = threading.Timer(rng.uniform(0.0, 0.3), os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        for kernel in kernels:
            kernel.address
            if not timer.is_alive():
                break
        timer.join()
        lost += 1
    except KeyboardInterrupt:
        timer.join()
    for kernel in kernels:
        kernel._address = 0
    shutil.rmtree(os.environ["FASTOPT_CACHE_DIR"], ignore_errors=True)
print(lost)
"""


@compiled
@posix
@pytest.mark.repeats
def test_interrupts_at_random_moments_of_compilation(tmp_path):
    status, out, err = finish(start(TRIES, "0", "12", cache=tmp_path / "cache"), 300.0)
    assert (status, out.strip(), err) == (0, "0", "")


WHOLE = """
print("ready", flush=True)
import numpy as np, fastopt as fo
model = fo.Sequential([fo.Dense(8, "relu"), fo.Dense(1)])
model.compile("adam", "mean_squared_error")
model.fit(np.ones((64, 4)), np.ones((64, 1)), epochs=10**9, verbose=0)
"""


@compiled
@posix
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.repeats) for seed in (0, 2, 3))])
def test_an_interrupt_ends_a_program_at_any_moment(seed, tmp_path):
    """While it imports, while it compiles, and while it trains."""
    process = start(WHOLE, cache=tmp_path)
    assert process.stdout.readline() == "ready\n"
    time.sleep(random.Random(seed).uniform(0.0, 4.0))
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process, 60.0)
    assert status in (-signal.SIGINT, 130)
    assert err.rstrip().endswith("KeyboardInterrupt")
