"""The textbooks' models: each runs as a module, agrees with the textbook, and is short."""

import importlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

from fastopt import examples

NAMES = [module.name for module in pkgutil.iter_modules(examples.__path__)]
TEXTBOOKS = {
    "accumulated_gradient", "adagrad", "adam", "bias_and_variance", "linear_regression", "logistic_regression",
    "optimizers_in_turn", "perceptron", "ridge_and_lasso", "stochastic_gradient_descent",
}  # fmt: skip


def test_each_model_of_the_textbooks_is_there():
    assert set(NAMES) == TEXTBOOKS


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "logistic_regression" else name for name in NAMES]
)
def test_it_agrees_with_the_textbook(name, capsys):
    """`compare` raises where it does not."""
    importlib.import_module(f"fastopt.examples.{name}").main()
    lines = capsys.readouterr().out.splitlines()
    assert sum("textbook" in line for line in lines) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short(name):
    module = importlib.import_module(f"fastopt.examples.{name}")
    with open(module.__file__, encoding="utf-8") as file:
        assert len(file.readlines()) <= 40


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "fastopt.examples.linear_regression"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.startswith("gradient descent: [ 3.024067 -1.953004  0.988955], textbook [ 3.024067")


@pytest.mark.parametrize("other", [[1.0, 2.1], [1.0, np.nan]])
def test_another_result_is_an_error(other, capsys):
    with pytest.raises(ValueError, match="theta must be those of the textbook"):
        examples.compare("theta", [1.0, 2.0], other)
    assert "difference" in capsys.readouterr().out
