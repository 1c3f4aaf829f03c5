"""The examples in docstrings run and give what they say."""

import doctest
import importlib
import pkgutil
from importlib.util import find_spec

import pytest

import fastopt
import fastopt.kernels


def modules():
    """Names of all modules of both packages (in a checkout the second is not a folder of the first)."""
    found = {
        module.name
        for package in (fastopt, fastopt.kernels)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
    return sorted(name for name in found | {"fastopt", "fastopt.kernels"} if not name.endswith(".__main__"))


TRAINS_MUCH = "fastopt.study._study"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == TRAINS_MUCH else name for name in modules()]
)
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
