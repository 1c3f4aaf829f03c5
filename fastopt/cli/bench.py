"""`fastopt bench`: run suites of benchmarks and keep the measurements in a JSON file."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .. import _files
from .._files import check_writable
from .arguments import integer

# Numbers of threads of this library, OpenMP (torch), OpenBLAS and MKL (NumPy), and XLA (JAX).
THREADS = ("FASTOPT_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
QUICK = ("--quick", "--benchmark-max-time=0.05", "--benchmark-min-rounds=3")
NAMED = ""  # --json without FILE: the file is named after the machine
FAILED, INTERRUPTED, NO_TESTS = 1, 2, 5  # exit statuses of pytest


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "bench",
        help="measure kernels and epochs, against the machine's limits and other libraries",
        description="Run suites of benchmarks (by pytest-benchmark): each checks that its contestants agree, then "
        "times them. Other libraries (torch, JAX, scikit-learn) take part where they are installed. `fastopt report` "
        "makes tables and plots of the file that --json writes.",
    )
    parser.add_argument(
        "--backend", choices=("cpu", "cuda"), default="cpu", help="what is measured: kernels for the CPU, or for a GPU"
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="which suites (default: all; see --list)")
    parser.add_argument("--list", action="store_true", help="list the suites and exit")
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const=NAMED,
        help="write what was measured, for `fastopt report`; without FILE to one named after the processor or the GPU",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: to see that everything runs")
    parser.add_argument("--threads", type=integer(1), metavar="N", help="of all contestants (default: each its own)")
    parser.add_argument("-k", dest="only", metavar="EXPRESSION", help="only benchmarks whose names match, as in pytest")
    parser.set_defaults(run=run)


def folder(backend: str = "cpu") -> Path:
    """Return the folder that holds the suites of a backend."""
    spec = importlib.util.find_spec("fastopt.benchmarks")
    if spec is None or spec.origin is None:
        raise ValueError("this installation of fastopt has no benchmarks: the package fastopt.benchmarks is missing")
    return Path(spec.origin).parent / ("cuda" if backend == "cuda" else "")


def suites(backend: str = "cpu") -> dict[str, Path]:
    """Return the suites by name.

    >>> list(suites())
    ['compress', 'dense', 'distributed', ...]
    """
    return {path.stem.removeprefix("test_"): path for path in sorted(folder(backend).glob("test_*.py"))}


def summary(path: Path) -> str:
    """Return the first line of a suite's docstring, without running the suite."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def run(args: argparse.Namespace) -> int:
    """Run the suites that `args` name."""
    known = suites(args.backend)
    if args.list:
        print("\n".join(f"{name:<{max(map(len, known))}}   {summary(path)}" for name, path in known.items()))
        return 0
    for name in args.suites:
        if name not in known:
            raise ValueError(f"unknown suite {name!r}; known: {', '.join(known)}")
    for package, module in (("pytest", "pytest"), ("pytest-benchmark", "pytest_benchmark")):
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"the benchmarks need {package}: pip install 'fastopt[bench]'")
    if args.backend == "cuda":
        _check_gpu(args)
    if args.json == NAMED:
        args.json = f"{_machine(args.backend, args.threads)}.json"
    if args.json is not None:
        check_writable("--json", args.json)
    with tempfile.TemporaryDirectory() as temporary:
        measured = Path(temporary) / "measured.json"
        files = [known[name] for name in args.suites or known]
        status = _pytest(command(args, files, None if args.json is None else measured), args.threads)
        if status == NO_TESTS:
            raise ValueError(f"no benchmark matches -k {args.only!r}")
        if status not in (0, FAILED):
            raise KeyboardInterrupt if status == INTERRUPTED else ValueError(f"pytest ended with status {status}")
        if measured.is_file():
            _files.write(args.json, measured.read_bytes())
            print(f"What was measured is in {args.json}; `fastopt report {args.json}` makes tables of it.")
    return status


def _check_gpu(args: argparse.Namespace) -> None:
    from ..kernels.cuda.installation import require

    if args.threads is not None:
        raise ValueError("--threads is for the CPU: it needs --backend cpu")
    try:
        require()
    except ImportError as error:
        raise ValueError(str(error)) from None


def processor() -> str:
    """LLVM's name of this processor, and of the one that kernels are compiled for where Numba is told another.

    Zen's number stands as AMD writes it: "zen5", "emeraldrapids", "zen5-as-haswell".
    """
    from llvmlite.binding import get_host_cpu_name
    from numba import config

    host, target = get_host_cpu_name(), config.CPU_NAME
    names = [host, "as", target] if target and target not in (host, "host") else [host]
    return re.sub("[^a-z0-9]+", "-", "-".join(names).lower().replace("znver", "zen")).strip("-")


def _machine(backend: str, threads: int | None) -> str:
    """The machine as the name of a file: processor and number of cores used, or the name of the GPU."""
    if backend == "cpu":
        from ..kernels.cpu.runtime.launch import get_num_threads

        return f"cpu-{processor()}-{threads or get_num_threads()}-cores"
    from ..kernels.cuda import gpu_of

    return re.sub("[^a-z0-9]+", "-", gpu_of(()).name.lower()).strip("-")


def command(args: argparse.Namespace, files: list[Path], measured: Path | None = None) -> list[str]:
    """Return the command line of pytest, which writes its measurements into the file `measured`."""
    # A checkout's own settings are left out: its tests need more plugins than benchmarks do.
    options = ["-c", os.devnull, f"--rootdir={folder()}", "--import-mode=importlib", "-p", "no:cacheprovider", "-q"]
    options += ["--benchmark-columns=median,iqr,rounds", "--benchmark-sort=mean"]
    options += [f"--benchmark-json={measured}"] if measured is not None else []
    options += QUICK if args.quick else ()
    options += ["-W", "default"] if args.backend == "cuda" else []  # warnings of other libraries are no failures there
    options += ["-k", args.only] if args.only is not None else []
    return [sys.executable, "-m", "pytest", *options, *map(str, files)]


def _pytest(command: list[str], threads: int | None) -> int:
    """Run pytest in a process of its own, because libraries read their numbers of threads when they are loaded."""
    environment = dict(os.environ)
    if threads is not None:
        environment |= dict.fromkeys(THREADS, str(threads))
    sys.stdout.flush()
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:  # pytest has received it, too
        process.wait()
        raise
