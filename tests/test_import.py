"""The package's front door: cheap to import, every name there, one version."""

import ast
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastopt


def in_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    return done.stdout.strip()


def test_import_loads_nothing_heavy():
    loaded = in_new_process("import sys, fastopt; print(*sys.modules)").split()
    assert not {"numpy", "numba", "cffi", "tqdm", "safetensors", "pooch", "importlib.metadata"} & set(loaded)


def test_optimizers_on_the_reference_load_no_compiler():
    step = "fastopt.Adam(numpy.ones(2), backend='numpy').step(numpy.ones(2))"
    loaded = in_new_process(f"import sys, fastopt, numpy; {step}; print(*sys.modules)").split()
    assert not {"numba", "cffi", "tqdm", "safetensors", "pooch"} & set(loaded)


@pytest.mark.parametrize("name", fastopt.__all__)
def test_every_public_name_is_there(name):
    value = getattr(fastopt, name)
    assert value is getattr(fastopt, name)
    assert name in dir(fastopt)
    if inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value):
        assert inspect.getdoc(value)


def stubbed_names(module):
    stub = Path(fastopt.__file__).with_name(module) / "__init__.pyi"
    (names,) = [node.value for node in ast.parse(stub.read_text()).body if isinstance(node, ast.Assign)][:1]
    return ast.literal_eval(names)


def test_type_checkers_are_told_the_same_names():
    (block,) = [node for node in ast.parse(inspect.getsource(fastopt)).body if isinstance(node, ast.If)]
    told = {"__version__"}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            starred = node.names[0].name == "*"  # all names of a stub
            names = stubbed_names(node.module) if starred else [alias.asname for alias in node.names]
            told |= set(names)
            home = fastopt._MODULE_OF.get(names[0])
            assert home == node.module
    assert told == set(fastopt.__all__)


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'fastopt' has no attribute 'Adamm'"):
        fastopt.Adamm  # noqa: B018
    with pytest.raises(ImportError):
        from fastopt import nothing  # noqa: F401


def test_version():
    assert fastopt.__version__ == importlib.metadata.version("fastopt")
