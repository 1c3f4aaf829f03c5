"""The wheel: its contents, its metadata, and its use without a checkout."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel built from a copy of the checkout, which is left as it was."""
    pytest.importorskip("build", reason="building a wheel needs the package build: it is in the extra `test`")
    setuptools = importlib.metadata.version("setuptools")
    if int(setuptools.partition(".")[0]) < 77:
        pytest.skip(f"building a wheel needs setuptools>=77 (in the extra `test`), not {setuptools}")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("fastopt", "kernels", "benchmarks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    result = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the unpacked wheel: what an installer puts into site-packages."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    # Every module of the checkout, so that a new folder is not forgotten in setup.cfg.
    for folder in ("fastopt", "kernels", "benchmarks"):
        package = "fastopt" if folder == "fastopt" else f"fastopt/{folder}"
        modules = {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
        assert modules <= names
    assert {"fastopt/py.typed", "fastopt/datasets/data/digits.npz", "fastopt/datasets/data/README.md"} <= names
    (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert f"{info}/licenses/LICENSE" in names
    assert {name.partition("/")[0] for name in names} == {"fastopt", info}  # no top-level `kernels` or `benchmarks`
    assert not [name for name in names if "__pycache__" in name]


def test_metadata(site):
    (distribution,) = importlib.metadata.distributions(path=[str(site)])
    assert distribution.metadata["License-Expression"].startswith("BSD-3-Clause")
    assert set(distribution.metadata.get_all("Provides-Extra")) >= {
        "bench",
        "cuda",
        "cuda-compiler",
        "data",
        "datasets",
        "mkl",
        "plot",
        "test",
    }
    (command,) = distribution.entry_points
    assert (command.name, command.group, command.value) == ("fastopt", "console_scripts", "fastopt.cli.main:main")


def test_import_from_another_folder(site, tmp_path):
    program = (
        "import sys, fastopt, fastopt.kernels.spec, fastopt.kernels.cpu, importlib.util\n"
        "from fastopt import datasets\n"
        "files = [m.__file__ for name, m in sys.modules.items() if name.split('.')[0] == 'fastopt']\n"
        "assert len(files) > 4 and all(file.startswith(sys.argv[1]) for file in files), files\n"
        "assert importlib.util.find_spec('kernels') is None\n"
        "print(datasets.load('digits').x_train.shape)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program, str(site)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False, timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "(1437, 64)\n"


def test_ci_names_files_that_exist():
    """The tests that CI runs beside inaccessible pages, and the modules whose coverage is left out."""
    script, settings = ((ROOT / name).read_text(encoding="utf-8") for name in (".ci/run", "pyproject.toml"))
    (pattern,) = re.findall(r"^guarded=\((.*)\)$", script, re.MULTILINE)
    before, names, after = re.fullmatch(r"(.*)\{(.*)\}(.*)", pattern).groups()
    (omitted,) = re.findall(r"^omit = \[(.*?)^\]", settings, re.MULTILINE | re.DOTALL)
    paths = [before + name + after for name in names.split(",")] + re.findall(r'"(.*?)/?\*?"', omitted)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
