"""`fastopt info`: versions, processor, threads, BLAS, GPU, cached kernels and data, and possible installations."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import datasets
from .._text import in_bytes
from ..datasets import loading
from ..kernels.settings import folder_setting

PACKAGES = (
    "fastopt",
    "numpy",
    "numba",
    "llvmlite",
    "cffi",
    "tqdm",
    "safetensors",
    "scipy-openblas32",
    "mkl",
    "tbb",
    "pandas",
    "pyarrow",
    "pooch",
)
# The features of a processor that decide how fast the kernels are; LLVM knows hundreds.
FEATURES = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bf16", "amx-bf16", "neon", "sve")


def add(commands: Any) -> None:
    """Add the parser of the command."""
    parser = commands.add_parser(
        "info",
        help="show versions, processor, threads, BLAS, cached kernels and data",
        description="Show what fastopt runs on, and what could be installed beside it.",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts, as text or as JSON."""
    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else describe(facts))
    return 0


def collect() -> dict[str, Any]:
    """Return all facts as plain values, such as JSON holds."""
    from ..kernels.cpu.dense.blas import blas
    from ..kernels.cpu.runtime.compile import INTERPRETED, cache_folder
    from ..kernels.cpu.runtime.launch import get_num_threads, launcher, threading_layer
    from ..kernels.cpu.runtime.openmp import uses_torch_threads
    from ..kernels.cuda.installation import trouble
    from ..kernels.cuda.runtime.requirements import find_requirements
    from ..kernels.disk_cache import cache_root

    layer = threading_layer()
    facts: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "processor": _processor(),
        "threads": {
            **_attempt(lambda: {"kernels": get_num_threads()}),
            "layer": layer,
            "launcher": launcher(),  # here; and in a process that has imported torch:
            "beside_torch": "torch" if uses_torch_threads() else launcher(),
        },
        "blas": _attempt(lambda: dict(zip(("name", "version", "path"), blas(), strict=False))),
        "cuda": find_requirements(),
        "cuda_trouble": trouble("cuBLASLt"),
        "interpreted": INTERPRETED,
        "cache": _cache(cache_root(), cache_folder()),
        "data": {name: _find_data(name) for name in datasets.NAMES},
    }
    suggestions = _suggestions(facts, layer)
    facts["missing"] = [{"what": what, "install": install} for is_missing, what, install in suggestions if is_missing]
    return facts


def _suggestions(facts: dict[str, Any], layer: str) -> list[tuple[bool, str, str]]:
    """Possible installations, as (True if it is missing here, its use, the command)."""
    versions, data, cuda = facts["versions"], facts["data"], facts["cuda"]
    intel = platform.machine().lower() in ("x86_64", "amd64")
    download = "pip install 'fastopt[data]', which lets fastopt download it"
    return [
        (
            facts["blas"].get("name") == "none",
            "a BLAS (matrix products run on plain loops)",
            "pip install scipy-openblas32",
        ),
        (
            intel and versions["mkl"] is None,
            "MKL (often faster than OpenBLAS on small layers)",
            "pip install 'fastopt[mkl]'",
        ),
        (intel and layer != "tbb", "TBB (threads that may be used after a fork)", "pip install tbb"),
        (
            bool(cuda["devices"]) and not all(cuda.values()),
            "parts of the CUDA backend",
            "pip install 'fastopt[cuda]'",
        ),
        (
            versions["pandas"] is None,
            "pandas (tables: CSV, Parquet and the like)",
            "pip install 'fastopt[data]'",
        ),
        (
            not data["fashion-mnist"] and versions["pooch"] is None,
            "the data set fashion-mnist",
            f"apt install dataset-fashion-mnist, or {download}",
        ),
        (not data["mnist"] and versions["pooch"] is None, "the data set mnist", download),
    ]


def _attempt(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The facts that `call` returns, or the error of a wrong setting, so that the other facts are still shown."""
    try:
        return call()
    except ValueError as error:
        return {"error": str(error)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> dict[str, Any]:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    return {
        "name": _processor_name(),
        "llvm": llvm.get_host_cpu_name(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "features": [name for name in FEATURES if features.get(name)],
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _cache(root: Path, current: Path) -> dict[str, Any]:
    """Kernels and bytes in the folder of this version and of other ones, and problems with the former."""
    try:
        others = [folder for folder in root.iterdir() if folder != current and folder.is_dir()]
    except OSError:
        others = []
    here, elsewhere = _count_kernels([current]), _count_kernels(others)
    facts = {"folder": str(current), **here, "other_versions": {"folders": len(others), **elsewhere}}
    return facts | {"problems": _cache_problems(current)}


def _cache_problems(folder: Path) -> list[str]:
    """Reasons why kernels, those for GPUs included, are not loaded or cannot be kept."""
    from ..kernels.disk_cache import why_not_kept, why_not_loaded

    files = [*folder.glob("*.bin"), *folder.parent.glob("cuda-*/*.cubin")]
    reasons = [reason for file in sorted(files) if (reason := why_not_loaded(file))]
    problems = [f"{count} kernels are not loaded; of each: {reason}" for reason, count in Counter(reasons).items()]
    unkept = why_not_kept(folder)
    return problems + [f"no kernels can be kept: {unkept}"] * bool(unkept)


def _count_kernels(folders: list[Path]) -> dict[str, int]:
    sizes = []
    for folder in folders:
        try:
            sizes += [file.stat().st_size for file in folder.glob("*.bin")]
        except OSError:  # another process may be at work here
            continue
    return {"kernels": len(sizes), "bytes": sum(sizes)}


def _find_data(name: str) -> str | None:
    """The folder that holds the data set: one that `datasets.load` searches, or the cache of its download."""
    if name == "digits":
        return "ships with fastopt"
    setting = folder_setting("FASTOPT_DATA_DIR")
    folders = [setting, setting / name] if setting else []
    folders += [Path(path) for path in loading._SOURCES[name].folders]
    if importlib.util.find_spec("pooch"):
        import pooch

        folders.append(Path(pooch.os_cache("fastopt")) / name)
    complete = (folder for folder in folders if all(loading._find(folder, file) for file in loading._IDX_FILES))
    return next(map(str, complete), None)


def _threads(threads: dict[str, Any]) -> str:
    """The number of threads and the library that starts them, in one line."""
    beside = "; beside torch those of its OpenMP" if threads["beside_torch"] == "torch" else ""
    return f"{threads.get('kernels', threads.get('error'))}, threading layer {threads['layer']}{beside}"


def _cuda(parts: dict[str, Any], trouble: str) -> str:
    """The installed parts of the CUDA backend in one line, with those that are missing, or why it does not run."""
    versions = [f"{name} {parts[name]}" for name in ("driver", "numba-cuda") if parts[name]]
    libraries = [name for name, version in parts.items() if version and name not in ("driver", "numba-cuda", "devices")]
    missing = [name for name, version in parts.items() if not version]
    found = ", ".join([*parts["devices"], *versions, *libraries])
    return "; ".join(filter(None, [found, f"missing: {', '.join(missing)}" if missing else trouble]))


def describe(facts: dict[str, Any]) -> str:
    """Return the facts as lines of text."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    processor, threads, blas, cache = (facts[key] for key in ("processor", "threads", "blas", "cache"))
    features = " ".join(processor["features"])
    others = cache["other_versions"]
    kept = f"{cache['kernels']} kernels, {in_bytes(cache['bytes'])}"
    if others["folders"]:
        kept += f"; other versions or machines: {others['kernels']} kernels, {in_bytes(others['bytes'])}"
    rows = [
        ("versions", versions),
        ("processor", f"{processor['name']} ({processor['llvm']}), {processor['cores']} cores, {features}"),
        ("threads", _threads(threads)),
        ("BLAS", blas.get("error") or f"{blas['name']} {blas['version']} {blas['path']}"),
        ("CUDA", _cuda(facts["cuda"], facts["cuda_trouble"])),
        ("cache", f"{cache['folder']}: {kept}"),
        *(("", problem) for problem in cache["problems"]),
        *(("data", f"{name}: {folder or 'not on this machine'}") for name, folder in facts["data"].items()),
        *(("missing", f"{item['what']}: {item['install']}") for item in facts["missing"]),
    ]
    if facts["interpreted"]:
        rows.append(("note", "NUMBA_DISABLE_JIT is set: kernels run in the interpreter, very slowly"))
    return "\n".join(f"{title:<10} {text}".rstrip() for title, text in rows)
