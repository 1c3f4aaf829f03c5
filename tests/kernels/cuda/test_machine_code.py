"""Every kernel compiled for two compute capabilities, and looked at: no device is needed for that."""

from __future__ import annotations

import re
import subprocess

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels.cuda.compile import THREADS, Kernel, compiling, entry
from fastopt.kernels.cuda.kernels import all_kernels
from fastopt.kernels.cuda.updates import accumulate_kernel, update_kernel
from fastopt.kernels.formulas import OPTIMIZERS

CAPABILITIES = [(8, 0), (9, 0)]
UPDATES = {(name, dtype): update_kernel(name, dtype).name for name in OPTIMIZERS for dtype in ("float32", "float64")}
STATES = {kernel: len(OPTIMIZERS[name].states) for (name, _), kernel in UPDATES.items()}
STATES |= {accumulate_kernel(dtype).name: 0 for dtype in ("float32", "float64")}

# A multiprocessor has 65536 registers: so many allow for 4 and 3 blocks of 256 threads at once, which is enough to keep
# the memory busy, since each thread has 16 bytes of every array under way.
REGISTERS = {"float32": 64, "float64": 80, "settle": 80}
assert [65536 // (registers * THREADS) for registers in (64, 80)] == [4, 3]


@pytest.fixture(scope="module")
def listings():
    return {}


@pytest.fixture(params=CAPABILITIES, ids=lambda c: f"sm_{c[0]}{c[1]}")
def capability(request):
    return request.param


@pytest.fixture(params=all_kernels(), ids=lambda kernel: kernel.name)
def kernel(request):
    return request.param


@pytest.fixture
def listing(kernel, capability, listings):
    key = kernel.name, capability
    if key not in listings:
        listings[key] = kernel.listing(capability)
    return listings[key]


def test_no_spills_no_local_memory_and_few_registers(kernel, listing):
    assert listing.local_bytes == 0
    assert ".local" not in listing.ptx
    assert 0 < listing.registers <= REGISTERS[kernel.name.rpartition("_")[2]]


def test_arithmetic_is_what_the_formula_says(kernel, listing):
    assert not re.findall(r"\bfma\.", listing.ptx)  # two roundings, as on the CPU
    assert not re.findall(r"\.ftz|\.approx|\.full", listing.ptx)  # denormals are kept, and nothing is approximate
    assert not re.findall(r"\b(min|max)\.f", listing.ptx)  # which treat NaN in their own way
    assert not re.findall(r"\bcall\b", listing.ptx)


def test_float32_stays_float32(kernel, listing):
    if kernel.name in STATES and kernel.name.endswith("float32"):
        assert ".f64" not in listing.ptx
        assert ".f32" in listing.ptx


def test_accesses_of_128_bits(kernel, listing):
    vector = "v4.f32" if kernel.name.endswith("float32") else "v2.f64"
    loads, stores = (listing.ptx.count(f"{way}.global.{vector}") for way in ("ld", "st"))
    if kernel.name in STATES:
        states = STATES[kernel.name]  # an unrolled loop has a multiple of
        assert loads > 0 == loads % (states + 2)
        assert stores > 0 == stores % (states + 1)
        assert loads // (states + 2) == stores // (states + 1)
    elif kernel.name.startswith("squares"):
        assert loads > 0 == stores


def test_a_cubin_has_one_kernel_of_integers(kernel, listing):
    name = entry(listing.cubin).decode()
    assert listing.ptx.count(".entry") == 1
    declared = re.search(rf"\.entry {re.escape(name)}\((.*?)\)", listing.ptx, re.DOTALL)
    assert declared is not None
    assert re.findall(r"\.param \.(\w+)", declared[1]) == ["u64"] * kernel.arguments


def sass(cubin, path):
    pathfinder = pytest.importorskip("cuda.pathfinder")
    tool = pathfinder.find_nvidia_binary_utility("nvdisasm")
    if tool is None:
        pytest.skip("needs nvdisasm: pip install nvidia-cuda-nvdisasm")
    path.write_bytes(cubin)
    return subprocess.run([tool, str(path)], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("rule", ["adam", "adagrad"])
def test_instructions_of_128_bits(rule, capability, tmp_path):
    code = sass(update_kernel(rule, "float32").cubin(capability), tmp_path / "cubin")
    states = len(OPTIMIZERS[rule].states)
    assert len(re.findall(r"LDG\.E\.128", code)) % (states + 2) == 0 < code.count("LDG.E.128")
    assert len(re.findall(r"STG\.E\.128", code)) % (states + 1) == 0 < code.count("STG.E.128")
    assert not re.findall(r"\b(DADD|DMUL|DFMA|LDL|STL)\b", code)


def test_cubins_are_kept_between_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path))
    made = []
    link = Kernel._link

    def spy(self, *args):
        made.append(args)
        return link(self, *args)

    monkeypatch.setattr(Kernel, "_link", spy)
    kernel = update_kernel("sgd", "float32")

    def fresh():
        monkeypatch.setattr(kernel, "_cubins", {})
        return kernel.cubin((9, 0))

    heard: list[str] = []
    with compiling(heard.append):
        first = fresh()
        assert fresh() == first
    assert heard == ["update_sgd_float32"]
    (file,) = tmp_path.rglob("*.cubin")
    assert fresh() == first
    assert len(made) == 1
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert fresh() == first
    assert len(made) == 2
    monkeypatch.setenv("FASTOPT_CACHE_DIR", "/dev/null")
    assert fresh() == first
    assert len(made) == 3


def test_two_kernels_of_one_name_are_refused():
    def other(a):
        pass

    with pytest.raises(AssertionError, match="two kernels are called settle"):
        Kernel(other, "settle")
