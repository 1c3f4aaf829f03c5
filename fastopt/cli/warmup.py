"""`fastopt warmup`: compile kernels ahead, so that no later run waits for the compiler."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from ..models.progress import tqdm_class, wants_bar
from . import warmup_cuda

DTYPES = ("float32", "float64", "float16", "bfloat16")


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "warmup",
        help="compile all kernels and keep them in the cache folder",
        description="Compile all kernels and keep them in the cache folder (see `fastopt info`), for example when an "
        "image is built. Update loops of pruned models, and of states of 8 bits, are left to "
        "their first use.",
    )
    parser.add_argument("--backend", choices=("cpu", "cuda"), default="cpu", help="what kernels are for (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="only for this number type (default: all)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    warmup_cuda.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile or load all kernels, and print how many of each."""
    dtypes = DTYPES if args.dtype is None else (args.dtype,)
    warmup_cuda.refuse(args)
    if args.backend == "cuda":
        return warmup_cuda.run(args, dtypes)
    from ..kernels.cpu import all_kernels
    from ..kernels.cpu.runtime.compile import INTERPRETED, cache_folder
    from ..kernels.disk_cache import why_not_kept, why_not_loaded

    if INTERPRETED:
        raise ValueError("NUMBA_DISABLE_JIT is set, so there is nothing to compile")
    start = time.perf_counter()
    kernels = all_kernels(dtypes)
    tqdm, _ = tqdm_class()
    silent = args.quiet or not wants_bar("auto")
    with tqdm(kernels, "compiling kernels", file=sys.stderr, disable=silent, unit="") as bar:
        for kernel in bar:
            bar.set_postfix_str(kernel.name, refresh=True)
            _ = kernel.address
        bar.set_postfix_str("")
    seconds = time.perf_counter() - start
    compiled = [kernel for kernel in kernels if kernel.compiled]
    print(
        f"{len(kernels)} kernels for {', '.join(dtypes)}: {len(compiled)} compiled, {len(kernels) - len(compiled)} "
        f"loaded, in {seconds:.1f} s"
    )
    folder = cache_folder()
    reasons = [reason for kernel in kernels if (reason := why_not_loaded(folder / f"{kernel.name}.bin"))]
    if reasons:
        why = why_not_kept(folder) or reasons[0]
        print(f"fastopt: error: {len(reasons)} kernels could not be kept in {folder}: {why}", file=sys.stderr)
        return 1
    print(f"kept in {folder}")
    return 0
