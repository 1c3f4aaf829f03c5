"""The linker: its library, its errors, and another version of it in the same process."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.runtime import nvjitlink

OPTIONS = ["-arch=sm_90", "-lto"]

# A library of CUDA 12 that refuses to link, as it does what CUDA 13 has compiled: INTERNAL.
STUB = "\n".join(
    f"int {name}() {{ return 6; }}"
    for name in ("nvJitLinkCreate", "nvJitLinkAddData", "nvJitLinkComplete", "nvJitLinkDestroy", "nvJitLinkVersion")
)
# torch's libraries are in the scope of all that is loaded later, as RTLD_GLOBAL puts them.
PROGRAM = """
import ctypes, os, sys
stub = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
assert ctypes.CDLL(None).nvJitLinkCreate() == 6  # it is what a look-up finds
from fastopt.kernels.cuda.runtime import nvjitlink
from fastopt.kernels.cuda.optim.norm import RESOLVE_STEP
assert nvjitlink.version() >= (13, 0)
print(len(RESOLVE_STEP.listing((9, 0)).cubin))
"""


def test_a_linker_of_cuda_12_in_the_process_changes_nothing(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("needs a C compiler, to make a stand-in for nvJitLink 12")
    source, library = tmp_path / "stub.c", tmp_path / "libnvJitLink.so.12"
    source.write_text(STUB)
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libnvJitLink.so.12", "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=60)
    command = [sys.executable, "-c", PROGRAM, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


def test_its_version_and_place():
    assert nvjitlink.version() >= (13, 0)
    assert nvjitlink.NAME in str(nvjitlink.find())


def test_it_says_what_it_refuses():
    with pytest.raises(nvjitlink.LinkError, match="^nvJitLink: UNRECOGNIZED_OPTION while options -arch=sm_90 -foo$"):
        nvjitlink.link(b"", "x", ["-arch=sm_90", "-foo"], "cubin")
    with pytest.raises(nvjitlink.LinkError, match="^nvJitLink: INCORRECT_INPUT_TYPE while reading x: ERROR 1: .*bad"):
        nvjitlink.link(b"no code", "x", OPTIONS, "cubin")


def test_where_there_is_none(monkeypatch):
    monkeypatch.setattr(nvjitlink, "NAME", "libno-such-linker.so.13")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    nvjitlink.find.cache_clear()
    try:
        assert nvjitlink.find() is None
        with pytest.raises(nvjitlink.LinkError, match="there is no libno-such-linker.so.13 here"):
            nvjitlink.library()
    finally:
        nvjitlink.find.cache_clear()
