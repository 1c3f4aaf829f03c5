"""The English of the product: how docstrings and comments begin, and the one dialect of error messages."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# An indirect question, or a genitive without its noun: the reader must go on to learn what is spoken of.
OPENINGS = {"What", "Whatever", "Whether", "Where", "Wherever", "How", "Who", "Whoever", "Whose", "Why", "Of", "That"}
# Errors say "x must be ...; got ...", and nothing of what was expected and came instead.
DIALECTS = ("but came", "but got", "expected ")

# Faults of files that are still to be rewritten, which may only become fewer. This list is to become empty, and to go.
TO_REWRITE = {
    "benchmarks/conftest.py": 3,
    "benchmarks/contest.py": 1,
    "benchmarks/cuda/device.py": 1,
    "benchmarks/cuda/kernels.py": 4,
    "benchmarks/cuda/limits.py": 1,
    "benchmarks/cuda/needs.py": 1,
    "benchmarks/cuda/peers.py": 2,
    "benchmarks/cuda/test_limits.py": 1,
    "benchmarks/cuda/test_updates.py": 2,
    "benchmarks/cuda/updates.py": 2,
    "benchmarks/cuda/work.py": 1,
    "benchmarks/limits.py": 1,
    "benchmarks/memory.py": 1,
    "benchmarks/peers/__init__.py": 1,
    "benchmarks/test_updates.py": 2,
    "benchmarks/turns.py": 2,
    "benchmarks/updates.py": 1,
    "benchmarks/work.py": 1,
    "benchmarks/workloads.py": 2,
    "fastopt/_backends.py": 2,
    "fastopt/_dlpack.py": 4,
    "fastopt/_validation.py": 1,
    "fastopt/cli/bench.py": 2,
    "fastopt/cli/contest.py": 2,
    "fastopt/cli/info.py": 3,
    "fastopt/cli/outcome.py": 1,
    "fastopt/cli/rates.py": 1,
    "fastopt/cli/train.py": 1,
    "fastopt/conventions.py": 1,
    "fastopt/datasets/loading.py": 1,
    "fastopt/losses.py": 1,
    "fastopt/models/checkpoint.py": 2,
    "fastopt/models/history.py": 1,
    "fastopt/models/sequential.py": 3,
    "fastopt/optim/_aliases.py": 2,
    "fastopt/optim/_clipping.py": 1,
    "fastopt/optim/_dlpack_gradients.py": 1,
    "fastopt/optim/_engine.py": 2,
    "fastopt/optim/_engine_cuda.py": 2,
    "fastopt/optim/_hyperparameters.py": 3,
    "fastopt/optim/_param_state.py": 1,
    "fastopt/optim/_parameters.py": 5,
    "fastopt/optim/_settings.py": 7,
    "fastopt/optim/base.py": 2,
    "fastopt/profiling.py": 2,
    "fastopt/reports/__init__.py": 1,
    "fastopt/reports/read.py": 3,
    "fastopt/reports/sections.py": 1,
    "fastopt/schedules.py": 2,
    "fastopt/torch/_accelerate.py": 1,
    "fastopt/torch/_cuda.py": 2,
    "fastopt/torch/_explain.py": 2,
    "fastopt/torch/_fast_path.py": 1,
    "fastopt/torch/_param_states.py": 9,
    "fastopt/torch/_reach.py": 1,
    "fastopt/torch/_rules.py": 5,
    "fastopt/torch/_step.py": 8,
    "kernels/costs.py": 2,
    "kernels/cpu/dense/layer.py": 2,
    "kernels/cpu/dense/matmul.py": 1,
    "kernels/cpu/optim/arrays.py": 3,
    "kernels/cpu/optim/bfloat16_loops.py": 1,
    "kernels/cpu/optim/dlpack.py": 3,
    "kernels/cpu/optim/plan.py": 2,
    "kernels/cpu/runtime/compile.py": 4,
    "kernels/cpu/runtime/launch.py": 4,
    "kernels/cpu/runtime/primitives.py": 3,
    "kernels/cpu/runtime/records.py": 2,
    "kernels/cpu/runtime/storage.py": 3,
    "kernels/cpu/training/program.py": 1,
    "kernels/cuda/dense/blaslt.py": 2,
    "kernels/cuda/dense/blaslt_simulator.py": 4,
    "kernels/cuda/dense/epilogues.py": 5,
    "kernels/cuda/dense/gemm.py": 5,
    "kernels/cuda/dense/losses.py": 1,
    "kernels/cuda/dense/products.py": 9,
    "kernels/cuda/dense/rows.py": 1,
    "kernels/cuda/fused/kernel.py": 3,
    "kernels/cuda/fused/layout.py": 5,
    "kernels/cuda/fused/select.py": 5,
    "kernels/cuda/fused/tiles.py": 1,
    "kernels/cuda/optim/arrays.py": 4,
    "kernels/cuda/optim/counted.py": 1,
    "kernels/cuda/optim/plan.py": 7,
    "kernels/cuda/runtime/compile.py": 2,
    "kernels/cuda/runtime/driver.py": 1,
    "kernels/cuda/runtime/float16.py": 1,
    "kernels/cuda/runtime/gpu.py": 2,
    "kernels/cuda/runtime/memory.py": 1,
    "kernels/cuda/runtime/primitives.py": 1,
    "kernels/cuda/runtime/records.py": 6,
    "kernels/cuda/runtime/simulator.py": 1,
    "kernels/cuda/runtime/simulator_threads.py": 1,
    "kernels/cuda/runtime/storage.py": 5,
    "kernels/cuda/runtime/streams.py": 1,
    "kernels/cuda/runtime/timing.py": 2,
    "kernels/cuda/training/data_feed.py": 1,
    "kernels/cuda/training/launch_costs.py": 1,
    "kernels/cuda/training/network.py": 1,
    "kernels/cuda/training/optimizer_step.py": 2,
    "kernels/cuda/training/passes.py": 1,
    "kernels/cuda/training/program.py": 5,
    "kernels/disk_cache.py": 2,
    "kernels/formulas/optimizers.py": 3,
    "kernels/formulas/rules.py": 3,
    "kernels/profile.py": 2,
    "kernels/reference/bits16.py": 2,
    "kernels/reference/network.py": 1,
    "kernels/reference/updates.py": 1,
    "kernels/spec.py": 2,
}


class Fault(NamedTuple):
    """A text that is not as it should be."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every docstring with the number of its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def comment_blocks(source: str) -> Iterator[tuple[int, str]]:
    """The first line of every block of comments; one at the end of a line of code is none."""
    before = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            if token.start[0] != before + 1:
                yield token.start[0], token.string.lstrip("#").strip()
            before = token.start[0]


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The text of every error that is raised; what is put in for {names} is left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            pieces = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
            yield node.lineno, "".join(piece for piece in pieces if isinstance(piece, str))


def openings(path: str, source: str) -> Iterator[Fault]:
    """Docstrings and comments that begin with one of OPENINGS."""
    for line, text in [*docstrings(ast.parse(source)), *comment_blocks(source)]:
        if text.split()[:1] and text.split()[0].strip(",.:;'s") in OPENINGS:
            yield Fault(path, line, text.partition("\n")[0])


def dialects(path: str, source: str) -> Iterator[Fault]:
    """Error messages that speak another dialect than "x must be ...; got ..."."""
    for line, text in messages(ast.parse(source)):
        if any(words in text for words in DIALECTS):
            yield Fault(path, line, text)


@cache
def files() -> dict[str, str]:
    """Every file of the product with its source."""
    paths = [path for folder in ("fastopt", "kernels", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_openings():
    found = {path: list(openings(path, source)) for path, source in files().items()}
    more = [str(fault) for path, faults in found.items() if len(faults) > TO_REWRITE.get(path, 0) for fault in faults]
    assert not more, "begin with a noun or a verb:\n" + "\n".join(more)


def test_what_is_rewritten_leaves_the_list():
    done = [path for path in TO_REWRITE if path not in files() or not list(openings(path, files()[path]))]
    assert done == [], "take these out of TO_REWRITE"


def test_one_dialect_of_errors():
    found = [str(fault) for path, source in files().items() for fault in dialects(path, source)]
    assert not found, 'write "x must be ...; got ...":\n' + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""What a thread does."""', 1),
        ('def f():\n    """Whether it is there."""', 1),
        ('class C:\n    """Of the random numbers: the key."""', 1),
        ('"""Offsets of the columns."""\n# Whole rows first.\nx = 1  # what it is', 0),
        ("# Where there is none,\n# What follows.\n\n# How it ends.", 2),
        ('"""A module."""\nx = "What a text"', 0),
    ],
)
def test_openings_are_found(source, count):
    assert len(list(openings("x.py", source))) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('raise ValueError(f"expected {n} rows, but got {m}")', 1),
        ('raise ValueError(f"{n} rows" " but came " f"{m}")', 1),
        ('raise ValueError(f"x must have {n} rows; got {m}")', 0),
        ('log.info("but got none")', 0),
    ],
)
def test_dialects_are_found(source, count):
    assert len(list(dialects("x.py", source))) == count
