"""The stubs of the optimizers' classes are those that their table gives."""

import ast
import inspect

import helpers_stubs
import pytest

import fastopt as fo
from fastopt.kernels.formulas.optimizers import CLASSES


@pytest.mark.parametrize("path", helpers_stubs.STUBS, ids=lambda path: path.parent.name)
def test_stubs_are_up_to_date(path):
    assert path.read_text(encoding="utf-8") == helpers_stubs.STUBS[path](), "run: python tests/helpers_stubs.py"


@pytest.mark.parametrize("name", CLASSES)
def test_a_stub_has_the_arguments_and_the_docstring_of_its_class(name):
    path = next(iter(helpers_stubs.STUBS))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next(node for node in node.body if isinstance(node, ast.FunctionDef))
    stated = [arg.arg for arg in (*init.args.args, *init.args.kwonlyargs)]
    assert stated == ["self", *inspect.signature(getattr(fo, name)).parameters]
    assert ast.get_docstring(node) == inspect.getdoc(getattr(fo, name))
