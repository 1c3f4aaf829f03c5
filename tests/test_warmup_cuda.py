"""`fastopt warmup --backend cuda`: the kernels that it compiles, its processes and its cache."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers_cuda import require_compiler

from fastopt.cli.main import main
from fastopt.cli.warmup_cuda import capability, widths

ONE = ("--optimizer", "sgd", "--dtype", "float32", "--capability", "9.0", "--quiet")
LOADS = """
from fastopt.kernels.cuda.runtime import compile
from fastopt.kernels.cuda.optim.updates import update_kernel
def link(*_): raise AssertionError("compiled anew")
compile.Kernel._link = link
print(len(update_kernel("sgd", "float32").cubin((9, 0))))
"""


def program(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=240
    )


def test_values_of_options():
    assert capability("12.1") == (12, 1)
    assert widths("3-1") == (3, 1)
    for make, texts in {capability: ["9", "90", "9.x", "", "9.00"], widths: ["3", "3-0", "a-b", "3,4", "-3-4"]}.items():
        for text in texts:
            with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
                make(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "2"], "--jobs is for kernels for GPUs: it needs --backend cuda"),
        (["--network", "3-4"], "--network is for kernels for GPUs: it needs --backend cuda"),
        (["--batch-size", "3"], "--batch-size is for kernels for GPUs: it needs --backend cuda"),
        (["--backend", "cuda", "--metric", "accuracy"], "--metric is for networks: it needs --network"),
    ],
)
def test_no_option_is_ignored(options, message, capsys):
    assert main(["warmup", *options]) == 2
    assert capsys.readouterr().err == f"fastopt: error: {message}\n"


class TestWithCompilers:
    """Compilations without a device."""

    @pytest.fixture(autouse=True)
    def compilers(self):
        require_compiler()

    def test_without_a_gpu_it_must_be_said_which(self, capsys):
        from fastopt.kernels.cuda.runtime import driver

        try:
            driver.device_count()
        except driver.CudaError:
            assert main(["warmup", "--backend", "cuda"]) == 2
            assert capsys.readouterr().err.endswith("say which ones kernels are for, such as --capability 9.0\n")
        else:
            pytest.skip("there is a GPU here")

    def test_kernels_of_a_network(self):
        from fastopt.cli.warmup_cuda import Selection, kernels

        selection = Selection(
            ("float32",), ((784, 256, 10),), (), "tanh", "sparse_categorical_crossentropy", (), 0.0, 256, None, (9, 0)
        )  # fmt: skip
        names = set(kernels(selection))
        assert {"update_adam_float32", "slopes_tanh_float32_wide", "totals_float32"} <= names, names
        assert not any("sgd" in name or "float64" in name for name in names)
        small = selection._replace(networks=((4, 8, 3),), optimizers=("sgd",), batch_size=16)
        assert any(name.startswith("fused_") for name in kernels(small))
        assert names < set(kernels(selection._replace(networks=())))  # the tables, where nothing is chosen

    def test_the_folder_is_used_by_another_machine(self, tmp_path):
        here, there = tmp_path / "here", tmp_path / "there"
        done = program("-m", "fastopt", "warmup", "--backend", "cuda", *ONE, "--jobs", "2", FASTOPT_CACHE_DIR=str(here))
        assert done.returncode == 0, done.stderr
        found = re.search(r"(\d+) kernels for compute capability 9.0: (\d+) compiled, 0 loaded, by 2", done.stdout)
        assert found, done.stdout
        assert found[1] == found[2]
        assert f"kept in {here}" in done.stdout
        shutil.copytree(here, there)
        shutil.rmtree(here)
        done = program("-c", LOADS, FASTOPT_CACHE_DIR=str(there))
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 1000
        done = program("-m", "fastopt", "warmup", "--backend", "cuda", *ONE, FASTOPT_CACHE_DIR=str(there))
        assert " 0 compiled, " in done.stdout

    def test_where_nothing_can_be_kept(self, tmp_path):
        (tmp_path / "file").touch()
        place = str(tmp_path / "file" / "cache")
        done = program("-m", "fastopt", "warmup", "--backend", "cuda", *ONE, "--jobs", "1", FASTOPT_CACHE_DIR=place)
        assert done.returncode == 1
        assert "kernels could not be kept in" in done.stderr
