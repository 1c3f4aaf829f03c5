"""The examples in docstrings and in the README run and give what they say."""

import doctest
import importlib
import pkgutil
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastopt
import fastopt.kernels
from fastopt.cli import main

README = Path(__file__).parents[1] / "README.md"


def modules():
    """Names of all modules of both packages (in a checkout the second is not a folder of the first)."""
    found = {
        module.name
        for package in (fastopt, fastopt.kernels)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
    return sorted(name for name in found | {"fastopt", "fastopt.kernels"} if not name.endswith(".__main__"))


@pytest.mark.parametrize("name", modules())
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith("fastopt.kernels.cuda.") and find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda, which is optional, is not installed: Numba's own module of that name lacks too much")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "fastopt":
            raise
        pytest.skip(f"{error.name}, which is optional, is not installed")
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    report = []
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.slow
def test_readme(tmp_path, monkeypatch):
    """The python blocks, one after the other in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    namespace = {"__name__": "__main__"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], README, "exec"), namespace)


def test_readme_shows_what_was_measured(capsys):
    """Every line of the table is one of the report on the run that is kept."""
    text, results = README.read_text(encoding="utf-8"), README.parent / "benchmarks" / "results"
    (picture,) = re.findall(r"^!\[.*\]\((benchmarks/results/.*\.svg)\)$", text, re.MULTILINE)
    assert (README.parent / picture).is_file()
    assert main.main(["report", str(results / f"{Path(picture).parent.name}.json")]) == 0
    reported = capsys.readouterr().out.splitlines()
    _, _, table = text.partition("| work | fastopt | against |")
    rows = [line for line in table.partition("\n\n")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    assert [row for row in rows if row not in reported] == []
