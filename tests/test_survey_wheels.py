"""The wheels for a GPU machine without a network: which are asked for, with a stand-in for pip that has them all."""

from __future__ import annotations

import shlex
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from fastopt.benchmarks.cuda import wheels

pytest.importorskip("packaging", reason="comes with pytest")

# Requirements of each package in the index. Those that are not named require nothing.
REQUIRES = {
    "cffi": ['pycparser; implementation_name != "PyPy"'],
    "numba-cuda": ["cuda-core>=0.5", 'cuda-bindings<14; extra == "cu13"'],
    "cuda-core": ["cuda-pathfinder>=1.3", 'backports; python_version < "3.11"'],
    "hypothesis": ["sortedcontainers<3", 'exceptiongroup; python_version < "3.11"'],
    "pytest": ["iniconfig", "pluggy<2"],
}
PIP = """
import json, re, sys, zipfile
from pathlib import Path
requires, size, log = json.loads(Path(sys.argv[1]).read_text())
verb, args = sys.argv[2], sys.argv[3:]
with open(log, "a") as file:
    file.write(json.dumps([verb, *args]) + "\\n")
folder = Path(args[args.index("-d" if verb == "download" else "-w") + 1])
names = args[args.index("-d") + 2:] if verb == "download" else ["fastopt==0.1.0"]
for text in names:
    name, pinned = re.match("([A-Za-z0-9-]+)(?:==([0-9.]+)$)?", text).groups()
    if name == "expecttest" and "missing" in log:
        sys.exit("ERROR: No matching distribution found for expecttest")
    lines = [f"Name: {name}", f"Version: {pinned or '9.9'}", *(f"Requires-Dist: {r}" for r in requires.get(name, []))]
    base = f"{name.replace('-', '_')}-{pinned or '9.9'}"
    with zipfile.ZipFile(folder / f"{base}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{base}.dist-info/METADATA", "\\n".join(lines) + "\\n\\nText\\n")
        wheel.writestr(f"{base}/vendor/x.dist-info/METADATA", "Name: another\\n")
        wheel.writestr("data", "x" * size)
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs the command: (status, names of wheels, calls of pip, output, errors)."""
    import json

    def run(*arguments, present="", size=10, log="calls"):
        script, index, calls = (tmp_path / name for name in ("pip.py", "index.json", log))
        script.write_text(PIP)
        index.write_text(json.dumps([REQUIRES, size, str(calls)]))
        monkeypatch.setattr(wheels, "PIP", [sys.executable, str(script), str(index)])
        (tmp_path / "present.txt").write_text(present)
        folder = tmp_path / "wheels"
        status = wheels.main(["--python", "3.12", "--present", str(tmp_path / "present.txt"), "--folder", str(folder),
                              *arguments])  # fmt: skip
        found = {wheels.metadata(path)[0] for path in folder.glob("*.whl")} if folder.exists() else set()
        asked = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        return (status, found, asked, *capsys.readouterr())

    return run


IMAGE = """Package Version
------------ -------
numpy 2.5.2
numba 0.68.1
torch 2.11.0
cuda_bindings 13.0.3
cuda-pathfinder 1.4
nvidia-cublas 13.1.0.3
nvidia-cuda-nvrtc 13.0.88
nvidia-cuda-runtime 13.0.96
nvidia-nvjitlink 13.0.88
pytest 8.0.1
sortedcontainers
tqdm, safetensors
"""


def test_what_is_lacking(run):
    status, found, asked, out, err = run(present=IMAGE)
    assert (status, err) == (0, "")
    assert found >= {"cffi", "pycparser", "scipy-openblas32", "tbb", "numba-cuda", "cuda-core", "expecttest",
                     "pytest-timeout", "hypothesis", "fastopt"}  # fmt: skip
    # Left out: packages of the machine, of the toolkit, and of another Python or an extra:
    assert not found & {"numpy", "numba", "torch", "cuda-bindings", "cuda-pathfinder", "nvidia-cublas", "nvidia-nvvm",
                        "pytest", "iniconfig", "sortedcontainers", "exceptiongroup", "backports", "tqdm", "another",
                        "matplotlib", "jax", "pooch"}  # fmt: skip
    assert [call[0] for call in asked] == ["download", "download", "wheel"]
    first = asked[0]
    assert first[first.index("--python-version") + 1] == "3.12"
    assert {"--no-deps", "--only-binary=:all:", "manylinux_2_28_x86_64", "manylinux2014_x86_64"} <= set(first)
    assert f"cffi=={version('cffi')}" in first  # the version that was tested
    for name in found:
        assert name.replace("-", "_") in out


def test_what_is_there_in_the_wrong_version_is_carried(run):
    _, found, asked, *_ = run(present=IMAGE.replace("cuda_bindings 13.0.3", "cuda_bindings 12.9.1"))
    assert "cuda-bindings" in found
    assert any(word.startswith("cuda-bindings==13.0") for word in asked[0])
    _, found, *_ = run(present=IMAGE.replace("pytest 8.0.1", "pytest 7.4"))
    assert {"pytest", "iniconfig", "pluggy"} <= found


def test_carried_all_the_same(run):
    _, found, *_ = run("--carry", "nvidia-nvvm", "--carry", "Numba", present=IMAGE)
    assert {"nvidia-nvvm", "numba"} <= found


def test_the_newest_versions(run):
    _, _, asked, *_ = run("--unpinned", present=IMAGE)
    assert not [word for word in asked[0] if word.startswith("cffi==")]
    assert any(word.startswith("numba-cuda") and "<0.31" in word for word in asked[0])  # the requirement still holds


def test_again(run, tmp_path):
    """Old wheels are removed, and nothing else."""
    run(present=IMAGE)
    with zipfile.ZipFile(tmp_path / "wheels" / "old-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("old-1.dist-info/METADATA", "Name: old\n")
    status, found, *_ = run(present=IMAGE)
    assert status == 0
    assert "old" not in found
    (tmp_path / "wheels" / "thesis.txt").write_text("for three years")
    status, *_, err = run(present=IMAGE)
    assert status == 2
    assert "must have nothing but wheels" in err
    assert (tmp_path / "wheels" / "thesis.txt").exists()


def test_too_much(run):
    status, *_, err = run("--limit", "1", present=IMAGE, size=3000)
    assert status == 0, err
    status, *_, err = run("--limit", "0.01", present=IMAGE, size=3000)
    assert status == 2
    assert "MiB of wheels, more than 0; the largest: " in err


def test_pip_finds_none(run):
    status, _, _, _, err = run(present=IMAGE, log="missing")
    assert status == 2
    assert "No matching distribution found for expecttest" in err


@pytest.mark.parametrize("python", ["3", "2.7", "3.12.1", "cp312", ""])
def test_another_python(run, python):
    status, _, asked, _, err = run("--python", python)
    assert status == 2
    assert f"--python must be a version such as 3.12; got {python!r}" in err
    assert not asked


def test_the_command(run, tmp_path):
    _, _, _, out, _ = run("--out", "$OUT", "--budget", "300", present=IMAGE)
    text = out.splitlines()[-1]
    assert len(text) < 2000
    assert "--budget 300" in text
    assert '--out "$OUT"' in text
    for part in ("CUDA_HOME", "PYTHONSAFEPATH=1", "--no-index", "python3 -m fastopt.benchmarks.cuda.survey"):
        assert part in text
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0
    with pytest.raises(ValueError, match="must have fewer than 2000 characters"):
        wheels.command("wheels", "x" * 2000, 570)


def test_the_command_sets_up_a_package_that_can_be_imported(tmp_path):
    """All but pip and the survey, run in a copy of the checkout's folders: kernels are found, the sources are new."""
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    for folder in ("fastopt", "kernels", "benchmarks"):
        (checkout / folder).mkdir(parents=True)
        (checkout / folder / "__init__.py").write_text(f"name = {folder!r}\n")
    (site / "fastopt").mkdir(parents=True)
    (site / "fastopt" / "__init__.py").write_text("name = 'of an old wheel'\n")
    code = "import fastopt, fastopt.kernels, fastopt.benchmarks; print(fastopt.name, fastopt.kernels.name)"
    text = wheels.command("wheels", "out", 9)
    steps = [step for step in text.split(" && ") if "pip install" not in step and "survey" not in step]
    steps[0] = f"S={shlex.quote(str(site))}"
    steps.append(f"{shlex.quote(sys.executable)} -S -c {shlex.quote(code)}")
    whole = ["bash", "-ec", " && ".join(steps)]
    done = subprocess.run(whole, cwd=checkout, capture_output=True, text=True, check=False)
    if sys.version_info >= (3, 11):  # which knows PYTHONSAFEPATH
        assert done.stdout.split() == ["fastopt", "kernels"], done.stderr
    assert (site / "sitecustomize.py").read_text() == f"import site; site.addsitedir('{site}')\n"


def test_lists_of_packages():
    assert wheels.present("") == {}
    assert wheels.present("a==1.0\nB_c 2.1\n\n# d\n-e git+x\nx @ file:///y\n") == {"a": "1.0", "b-c": "2.1", "x": ""}


def test_it_names_no_place_of_this_machine():
    text = Path(wheels.__file__).read_text(encoding="utf-8")
    assert "/work" not in text
    assert "/home" not in text
