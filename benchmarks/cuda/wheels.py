"""The wheels that a GPU machine without a network lacks, and the command to run there.

python -m fastopt.benchmarks.cuda.wheels --python 3.12 --present packages.txt --folder wheels --out survey

packages.txt lists the machine's packages, one a line, best as `pip list` or `pip freeze` prints it, with versions.
Everything else that this library, its tests and the survey need is downloaded for that Python, in the versions that
are installed here, which are those that were tested; then what those wheels need, and so on; and this checkout as a
wheel of its own. The folder must then be taken to the machine with the checkout, and the printed command run there.

libNVVM is taken from the CUDA toolkit of the machine (CUDA_HOME, or where nvcc lies); --carry nvidia-nvvm brings it.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from email.parser import HeaderParser
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from fastopt.benchmarks.cuda.stages import checkout

PIP = [sys.executable, "-m", "pip"]
EXTRAS = ("cuda", "cuda-compiler")
TOOLS = ("pytest>=8", "pytest-benchmark>=5", "pytest-timeout", "pytest-xdist", "hypothesis>=6.100", "expecttest")
OF_THE_TOOLKIT = ("nvidia-nvvm",)  # packages that a CUDA toolkit contains, too
GLIBC = (39, 38, 35, 34, 31, 28, 27, 24, 17)  # pip matches these numbers of manylinux exactly
OLD_NAMES = ("manylinux2014", "manylinux2010", "manylinux1")
MIB = 1 << 20
LONGEST = 2000  # characters of a command, exclusive

Present = Mapping[str, str]  # versions by names, "" where not known


def plain(name: str) -> str:
    """Return a package's normalized name.

    >>> plain("CUDA_Bindings")
    'cuda-bindings'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def present(text: str) -> dict[str, str]:
    """Return the packages of a list, with their versions if it has them.

    >>> present("Package Version\\n------- -------\\ntorch   2.11.0\\nnumba==0.62.1\\n# of the image\\ntqdm, six")
    {'torch': '2.11.0', 'numba': '0.62.1', 'tqdm': '', 'six': ''}
    """
    found = {}
    for line in text.splitlines():
        for part in line.partition("#")[0].split(","):
            words = part.replace("==", " ").split()
            if words and words[0] != "Package" and re.fullmatch(r"[A-Za-z0-9][\w.-]*", words[0]):
                found[plain(words[0])] = words[1] if len(words) > 1 and words[1][:1].isdigit() else ""
    return found


# ---------------------------------------------------------------- requirements
def environment(python: str, machine: str) -> dict[str, str]:
    """Return the environment for markers of requirements."""
    return {
        "python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "os_name": "posix",
        "platform_system": "Linux", "platform_machine": machine, "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }  # fmt: skip


def needed(texts: Iterable[str], where: Mapping[str, str], extras: Sequence[str] = ("",)) -> list[Any]:
    """Return the requirements among these texts that hold on the machine, with these extras."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, texts):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({**where, "extra": extra}) for extra in extras):
            found.append(requirement)
    return found


def roots(where: Mapping[str, str]) -> list[Any]:
    """Return the requirements of this library on a GPU, and of its tests."""
    own = needed(requires("fastopt") or (), where, ("", *EXTRAS))
    return [r for r in [*own, *needed(TOOLS, where)] if plain(r.name) != "fastopt"]


def is_present(requirement: Any, has: Present) -> bool:
    """True if the machine is known to satisfy the requirement."""
    found = has.get(plain(requirement.name))
    return found is not None and (not found or requirement.specifier.contains(found, prereleases=True))


def pinned(requirement: Any) -> str:
    """Return a requirement pinned to the version installed here, if that fits; else unchanged."""
    try:
        here = version(requirement.name).partition("+")[0]
    except PackageNotFoundError:
        here = ""
    if here and requirement.specifier.contains(here, prereleases=True):
        return f"{requirement.name}=={here}"
    return f"{requirement.name}{requirement.specifier}"


# ---------------------------------------------------------------- wheels
def platforms(machine: str) -> list[str]:
    names = [f"manylinux_2_{number}_{machine}" for number in GLIBC]
    names += [f"{name}_{machine}" for name in OLD_NAMES if machine in ("x86_64", "i686") or name == "manylinux2014"]
    return [word for name in names for word in ("--platform", name)]


def download(folder: Path, wanted: Sequence[str], python: str, machine: str) -> None:
    """Download wheels without their dependencies. Raises ValueError if pip does not find one."""
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    pip("download", "-q", *options, *platforms(machine), "-d", str(folder), *wanted)


def pip(*arguments: str) -> None:
    done = subprocess.run([*PIP, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"pip {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")


def metadata(wheel: Path) -> tuple[str, list[str]]:
    """Return the name and the requirements of a wheel's package."""
    with zipfile.ZipFile(wheel) as archive:
        inner = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        fields = HeaderParser().parsestr(archive.read(inner).decode(errors="replace"))
    return plain(fields["Name"]), fields.get_all("Requires-Dist") or []


def gather(folder: Path, has: Present, python: str, machine: str, pin: bool = True) -> list[Path]:
    """Download all that the machine lacks into an empty folder, and return the wheels."""
    where = environment(python, machine)
    found: dict[str, str] = {**has, "fastopt": ""}
    asked: set[str] = set()
    read: set[Path] = set()
    wanted = [r for r in roots(where) if not is_present(r, found)]
    while wanted:
        new = {plain(r.name): pinned(r) if pin else f"{r.name}{r.specifier}" for r in wanted}
        asked |= set(new)
        download(folder, list(new.values()), python, machine)
        wanted = []
        for wheel in sorted(set(folder.glob("*.whl")) - read):
            read.add(wheel)
            for requirement in needed(metadata(wheel)[1], where):
                if plain(requirement.name) not in asked and not is_present(requirement, found):
                    wanted.append(requirement)
    return sorted(folder.glob("*.whl"))


def empty(folder: Path) -> None:
    """Make the folder, and remove wheels in it. Raises ValueError if it has other files."""
    folder.mkdir(parents=True, exist_ok=True)
    others = [path.name for path in folder.iterdir() if path.suffix != ".whl"]
    if others:
        raise ValueError(f"--folder {folder} must have nothing but wheels, which are made anew; it has {others[0]}")
    for path in folder.iterdir():
        path.unlink()


def check_size(wheels: Sequence[Path], limit: float) -> int:
    """Return the size of all wheels. Raises ValueError, naming the largest, above `limit` bytes."""
    sizes = sorted(((wheel.stat().st_size, wheel.name) for wheel in wheels), reverse=True)
    total = sum(size for size, _ in sizes)
    if total > limit:
        largest = ", ".join(f"{name} {size / MIB:.1f}" for size, name in sizes[:5])
        raise ValueError(f"{total / MIB:.1f} MiB of wheels, more than {limit / MIB:.0f}; the largest: {largest}")
    return total


# ---------------------------------------------------------------- the command
def command(folder: str, out: str, budget: int, more: Sequence[str] = ()) -> str:
    """Return the command to run in the machine's checkout. Raises ValueError if it is too long.

    The checkout's sources replace those of its wheel, so that a wheel made before the last change does no harm. Where
    the current folder comes first on the path, `fastopt` would be found without its kernels: PYTHONSAFEPATH.
    """
    site = "/tmp/fastopt-site"
    install = "python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade"
    nvcc = '"$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)"'
    steps = [
        f"S={site}",
        f'{install} --target "$S" {shlex.quote(folder)}/*.whl',
        # Files .pth count in such a folder alone: numba-cuda has one.
        'echo "import site; site.addsitedir(\'$S\')" > "$S/sitecustomize.py"',
        'cp -r fastopt "$S/"',
        'cp -r kernels benchmarks "$S/fastopt/"',
        f'export CUDA_HOME="${{CUDA_HOME:-$(dirname "$(dirname "$(readlink -f {nvcc})")")}}"',
        'export PYTHONPATH="$S" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 FASTOPT_CACHE_DIR=/tmp/fastopt-cache',
        " ".join(["python3 -m fastopt.benchmarks.cuda.survey", f"--budget {budget}", f'--out "{out}"', *more]),
    ]
    text = " && ".join(steps)
    if len(text) >= LONGEST:
        raise ValueError(f"the command must have fewer than {LONGEST} characters; it has {len(text)}")
    return text


def parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(prog="python -m fastopt.benchmarks.cuda.wheels", description=__doc__,
                                   formatter_class=form, allow_abbrev=False)  # fmt: skip
    add = made.add_argument
    add("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="of the machine (default: this one's)")
    add("--machine", default="x86_64", help="its processor, as `uname -m` says (default: x86_64)")
    add("--present", metavar="FILE", help="a list of what it has")
    add("--carry", action="append", default=[], metavar="NAME", help="a package all the same; may be repeated")
    add("--unpinned", action="store_true", help="the newest versions, not those that are installed here")
    add("--folder", default="wheels", help="for the wheels (default: wheels)")
    add("--limit", type=float, default=64, metavar="MIB", help="of all wheels together (default: 64)")
    add("--budget", type=int, default=570, metavar="SECONDS", help="of the survey (default: 570)")
    add("--out", default="survey", help="the survey's folder, there; may be a variable such as $OUT (default: survey)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 with the error in one line."""
    given = parser().parse_args(arguments)
    try:
        return _main(given)
    except (ValueError, OSError, ImportError) as error:
        print(f"wheels: error: {error}", file=sys.stderr)
        return 2


def _main(given: argparse.Namespace) -> int:
    if not re.fullmatch(r"3\.\d+", given.python):
        raise ValueError(f"--python must be a version such as 3.12; got {given.python!r}")
    has = present(Path(given.present).read_text(encoding="utf-8")) if given.present else {}
    has |= {name: "" for name in OF_THE_TOOLKIT if name not in has}
    for name in map(plain, given.carry):
        has.pop(name, None)
    place, folder = checkout(), Path(given.folder)
    if place is None:
        raise ValueError("run this in a checkout, or where one is installed with `pip install -e`")
    text = command(given.folder, given.out, given.budget)
    empty(folder)
    gather(folder, has, given.python, given.machine, not given.unpinned)
    pip("wheel", "-q", "--no-deps", "-w", str(folder), str(place))
    wheels = sorted(folder.glob("*.whl"))
    total = check_size(wheels, given.limit * MIB)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / MIB:6.1f} MiB  {wheel.name}")
    print(f"{total / MIB:6.1f} MiB  in all, in {folder}\n\nIn the checkout, on the machine:\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
