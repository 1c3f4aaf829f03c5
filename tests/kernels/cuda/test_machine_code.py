"""Machine code of every kernel, for two compute capabilities: no device is needed for that."""

from __future__ import annotations

import re
import subprocess

import pytest
from helpers_cuda import require_compiler

require_compiler()
from fastopt.kernels import disk_cache
from fastopt.kernels.cuda.kernels import forms_of, optimizer_kernels
from fastopt.kernels.cuda.optim.counted import COUNT
from fastopt.kernels.cuda.optim.updates import accumulate_kernel, update_kernel
from fastopt.kernels.cuda.runtime.compile import THREADS, Kernel, compiling, entry
from fastopt.kernels.cuda.runtime.float16 import DTYPES_16BIT
from fastopt.kernels.cuda.runtime.storage import STORES
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import MASTER, SAME, STOCHASTIC

CAPABILITIES = [(8, 0), (9, 0)]
# Every update kernel, with its dtype, its form and the number of its states.
UPDATES = {
    update_kernel(name, dtype, form).name: (dtype, form, len(row.states) + (form == MASTER))
    for dtype in STORES
    for form in forms_of(dtype)
    for name, row in OPTIMIZERS.items()
}
UPDATES |= {accumulate_kernel(dtype).name: (dtype, SAME, 0) for dtype in ("float32", "float64")}

# A multiprocessor has 65536 registers: these limits allow for 4, 3 and 2 blocks of 256 threads at once, which keep the
# memory busy: each thread has 16 bytes of every array in flight, and 32 bytes of states that are wider than the
# parameter.
REGISTERS = {
    "float32": 64, "float64": 80, "float16": 88, "bfloat16": 88, "step": 80, "count": 80,
    MASTER: 104, STOCHASTIC: 128,
}  # fmt: skip
assert [65536 // (registers * THREADS) for registers in (64, 80, 128)] == [4, 3, 2]


@pytest.mark.parametrize("kernel", optimizer_kernels(), ids=lambda kernel: kernel.name)
def test_machine_code(kernel):
    """One test a kernel: nearly all of its time is Numba's, which is the same for every capability and every check."""
    for capability in CAPABILITIES:
        listing = kernel.listing(capability)
        for check in CHECKS:
            check(kernel, listing)


@pytest.mark.parametrize("form", [SAME, MASTER, STOCHASTIC])
@pytest.mark.parametrize("dtype", STORES)
def test_a_kernel_that_unscales_writes_one_array_more(dtype, form):
    if form not in forms_of(dtype):
        pytest.skip("of 16 bits alone")
    states = len(OPTIMIZERS["adam"].states) + (form == MASTER)
    kernel, plain = (update_kernel("adam", dtype, form, unscales) for unscales in (True, False))
    assert kernel is not plain
    for capability in CAPABILITIES:
        listing = kernel.listing(capability)
        limit = REGISTERS[form if form != SAME else dtype]
        assert listing.local_bytes == 0
        assert 0 < listing.registers <= limit
        arithmetic_is_what_the_formula_says(kernel, listing)
        first = next(iter(wide(dtype, states, form)))
        loads, stores = (listing.ptx.count(f"{way}.global.{first}") for way in ("ld", "st"))
        assert loads == stores > 0  # p, g and as many states of its kind are read, and written


def no_spills_no_local_memory_and_few_registers(kernel, listing):
    assert listing.local_bytes == 0
    assert ".local" not in listing.ptx
    assert 0 < listing.registers <= REGISTERS[kernel.name.rpartition("_")[2]]


def arithmetic_is_what_the_formula_says(kernel, listing):
    if kernel is COUNT:
        return  # it takes powers in float64, by the compiler's own library, and has one thread for an array
    assert not re.findall(r"\bfma\.", listing.ptx)  # two roundings, as on the CPU
    assert not re.findall(r"\.ftz|\.approx|\.full", listing.ptx)  # denormals are kept, and nothing is approximate
    assert not re.findall(r"\b(min|max)\.f", listing.ptx)  # which treat NaN in their own way
    assert not re.findall(r"\bcall\b", listing.ptx)


def float32_stays_float32(kernel, listing):
    if kernel.name in UPDATES and UPDATES[kernel.name][0] != "float64":
        assert ".f64" not in listing.ptx
        assert ".f32" in listing.ptx


def wide(dtype, states, form):
    """Return the 128-bit loads of one pass of the loop, by their names in PTX; stores are one less of the first."""
    if dtype not in DTYPES_16BIT:
        return {"v4.f32" if dtype == "float32" else "v2.f64": states + 2}
    return {"v4.u32": states + 2} if form == SAME else {"v4.u32": 2, "v4.f32": 2 * states}


def accesses_are_of_128_bits(kernel, listing):
    if kernel.name in UPDATES:
        dtype, form, states = UPDATES[kernel.name]
        wanted = wide(dtype, states, form)
        found = {
            way: {v: listing.ptx.count(f"{way}.global.{v}") for v in ("v4.f32", "v2.f64", "v4.u32", "v4.u16", "v2.u32")}
            for way in ("ld", "st")
        }
        turns = found["ld"][next(iter(wanted))] // next(iter(wanted.values()))  # an unrolled loop has several
        assert turns > 0
        assert {v: n for v, n in found["ld"].items() if n} == {v: n * turns for v, n in wanted.items() if n}
        wanted[next(iter(wanted))] -= 1
        assert {v: n for v, n in found["st"].items() if n} == {v: n * turns for v, n in wanted.items() if n}
    elif kernel.name.startswith(("squares", "penalties")):
        dtype = kernel.name.split("_")[-1]
        assert listing.ptx.count(f"ld.global.{next(iter(wide(dtype, 0, SAME)))}") > 0
        assert "st.global.v" not in listing.ptx
    elif kernel.name.startswith("widen"):
        assert listing.ptx.count("ld.global.v4.u32") > 0
        assert listing.ptx.count("st.global.v4.f32") == 2 * listing.ptx.count("ld.global.v4.u32")


def rounding_at_random_is_of_its_form_alone(kernel, listing):
    """Kernels of other forms have no draws, which are multiplications of 64 bits."""
    if kernel.name in UPDATES:
        draws = "13787848793156543929" in listing.ptx or "-4658895280553007687" in listing.ptx  # of `mix`
        assert draws == (UPDATES[kernel.name][1] == STOCHASTIC)


def a_cubin_has_one_kernel_of_integers(kernel, listing):
    name = entry(listing.cubin).decode()
    assert listing.ptx.count(".entry") == 1
    declared = re.search(rf"\.entry {re.escape(name)}\((.*?)\)", listing.ptx, re.DOTALL)
    assert declared is not None
    assert re.findall(r"\.param \.(\w+)", declared[1]) == ["u64"] * kernel.arguments


CHECKS = [
    no_spills_no_local_memory_and_few_registers,
    arithmetic_is_what_the_formula_says,
    float32_stays_float32,
    accesses_are_of_128_bits,
    rounding_at_random_is_of_its_form_alone,
    a_cubin_has_one_kernel_of_integers,
]


def sass(cubin, path):
    pathfinder = pytest.importorskip("cuda.pathfinder")
    tool = pathfinder.find_nvidia_binary_utility("nvdisasm")
    if tool is None:
        pytest.skip("needs nvdisasm: pip install nvidia-cuda-nvdisasm")
    path.write_bytes(cubin)
    return subprocess.run([tool, str(path)], check=True, capture_output=True, text=True, timeout=240).stdout


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rule", ["adam", "adagrad"])
def test_instructions_of_128_bits(rule, dtype, tmp_path):
    states = len(OPTIMIZERS[rule].states)
    for capability in CAPABILITIES:
        code = sass(update_kernel(rule, dtype).cubin(capability), tmp_path / "cubin")
        assert len(re.findall(r"LDG\.E\.128", code)) % (states + 2) == 0 < code.count("LDG.E.128")
        assert len(re.findall(r"STG\.E\.128", code)) % (states + 1) == 0 < code.count("STG.E.128")
        assert not re.findall(r"\b(DADD|DMUL|DFMA|LDL|STL)\b", code)


def test_cubins_are_kept_between_processes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(disk_cache, "_warned", set())
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
    assert caplog.text == ""
    file.chmod(0o664)
    assert fresh() == fresh() == first
    assert len(made) == 3
    assert f"in {file.parent} are not loaded but compiled anew; of {file.name}: other users may write" in caplog.text
    monkeypatch.setenv("FASTOPT_CACHE_DIR", "/dev/null")
    assert fresh() == fresh() == first
    assert len(made) == 5
    assert caplog.text.count("as every process will, for they could not be kept in /dev/null") == 1
    assert caplog.text.endswith("/dev/null is not a folder\n")


def test_two_kernels_of_one_name_are_refused():
    def other(a):
        pass

    with pytest.raises(AssertionError, match="two kernels are called resolve_step"):
        Kernel(other, "resolve_step")
