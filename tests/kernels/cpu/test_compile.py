"""Kernels: compiled on first use, kept between processes, and never wrong whatever happens to the cache."""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numba import prange, types
from numba.core.bytecode import FunctionIdentity
from numba.core.compiler import Compiler

from fastopt.kernels import cpu, disk_cache, formulas
from fastopt.kernels.cpu.optim.counters import COUNT_STEPS
from fastopt.kernels.cpu.runtime import compile as compile_
from fastopt.kernels.cpu.runtime import frontend, launch, objects
from fastopt.kernels.cpu.runtime.compile import Kernel, cache_folder, compiling
from fastopt.kernels.cpu.runtime.primitives import INTERPRETED, address_of, view
from fastopt.kernels.disk_cache import cache_root, sources_digest

compiled = pytest.mark.skipif(INTERPRETED, reason="interpreted kernels are not kept")


def store(address, value):
    view(address, 1, np.int64)[0] = value


def store_twice(address, value):
    view(address, 1, np.int64)[0] = 2 * value


def store_all(address, value):
    numbers = view(address, 1, np.int64)
    for i in prange(1):
        numbers[i] = value


def calls(kernel, factor=1):
    """True if the kernel computes the right result."""
    word = np.zeros(1, np.int64)
    kernel(address_of(word), 21)
    return int(word[0]) == 21 * factor


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """fresh(function, name): a kernel as a new process would have it, with a cache in tmp_path."""
    monkeypatch.setattr(Kernel, "names", {})
    monkeypatch.setattr(compile_._CompileNotice, "spent", 0.0)
    monkeypatch.setattr(disk_cache, "_warned", set())
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path / "cache"))

    def make(function=store, name="store", **options):
        Kernel.names.clear()
        return Kernel(function, name, **options)

    return make


@pytest.fixture
def slow(monkeypatch):
    """Every compilation takes two seconds, by the clock of the notice."""
    monkeypatch.setattr(compile_, "time", SimpleNamespace(perf_counter=itertools.count(0.0, 2.0).__next__))


def file_of(name):
    return cache_folder() / f"{name}.bin"


# ---------------------------------------------------------------- between processes
UPDATE = """
import json
import numpy as np
from fastopt.kernels import cpu
from fastopt.kernels.cpu.runtime import launch
from fastopt.kernels.cpu.runtime.compile import Kernel
from fastopt.kernels.formulas import OPTIMIZERS
from fastopt.kernels.spec import Update

def update(size, rule="sgd"):
    p = np.ones(size, "f4")
    states = tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states)
    cpu.update([Update(rule, p, p.copy(), states, dict(OPTIMIZERS[rule].options, lr=0.5), 1)])
    return p

assert (update(8) == 0.5).all()
"""
REPORT = """
used = [kernel for kernel in Kernel.names.values() if kernel.compiled or kernel.loaded]
print(json.dumps({kernel.name: "compiled" if kernel.compiled else "loaded" for kernel in used}))
"""


def start(code, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    # On a busy machine even one kernel may take the second after which compiling is announced.
    assert [line for line in err.splitlines() if not line.startswith("compiling kernels")] == []
    assert process.returncode == 0
    return json.loads(out)


def run(code, **environment):
    return finish(start(code, **environment))


def test_importing_compiles_nothing():
    run("""
        import sys
        import fastopt
        assert "numba" not in sys.modules
        import fastopt.kernels.cpu
        from fastopt.kernels.cpu.runtime.compile import Kernel
        kernels = Kernel.names.values()
        assert kernels and not any(kernel._address or kernel.compiled or kernel.loaded for kernel in kernels)
        print(0)
    """)


@compiled
def test_many_processes_at_once(tmp_path):
    code = UPDATE + REPORT
    found = [finish(process) for process in [start(code, FASTOPT_CACHE_DIR=str(tmp_path)) for _ in range(3)]]
    assert len(found[0]) > 1
    assert all(set(report) == set(found[0]) for report in found)
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {f"{name}.bin" for name in found[0]}
    assert set(run(code, FASTOPT_CACHE_DIR=str(tmp_path)).values()) == {"loaded"}


@compiled
@pytest.mark.repeats  # an object shows no function but its own: see below
def test_kernels_of_different_processes_do_not_share_functions(tmp_path):
    code = """
        import numpy as np
        from fastopt.kernels import cpu, reference
        from fastopt.kernels.formulas import OPTIMIZERS
        from fastopt.kernels.spec import Update

        for rule in RULES:
            p, g = (np.full(257, bits, np.uint16) for bits in (0x3F80, 0x3F00))  # 1.0 and 0.5 as bfloat16
            states = tuple(np.zeros_like(p) for _ in OPTIMIZERS[rule].states)
            twin = p.copy(), tuple(state.copy() for state in states)
            options = dict(OPTIMIZERS[rule].options, lr=0.5)
            cpu.update([Update(rule, p, g, states, options, 1)])
            reference.update([Update(rule, twin[0], g, twin[1], options, 1)])
            assert (p == twin[0]).all()
        print(0)
    """
    one, other = "adagrad", "momentum"  # made by the same functions, with the same number of states
    places = {"FASTOPT_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "0"}  # with another seed names may differ
    for rules in [(one,), (other,)]:
        run(code.replace("RULES", repr(rules)), **places)
    for rules in [(one, other), (other, one)]:
        run(code.replace("RULES", repr(rules)), **places)


@compiled
def test_symbols_are_unique(fresh, monkeypatch):
    def names():
        monkeypatch.setattr(FunctionIdentity, "_unique_ids", itertools.count(1))  # as in a new process
        kernel = fresh(store_all, layer=launch.threading_layer)
        assert kernel.address
        assert kernel.compiled
        assert next(FunctionIdentity._unique_ids) == 1  # of the functions that others compile
        file_of(kernel.name).unlink()
        return {f.name for f in kernel._code.get_defined_functions() if "store" in f.name}

    first, second = names(), names()
    assert first
    assert first.isdisjoint(second)


@compiled
def test_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    report = run(UPDATE + REPORT, FASTOPT_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert set(report.values()) == {"compiled"}


# ---------------------------------------------------------------- the folder
def test_the_folder_is_the_users_choice(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTOPT_CACHE_DIR", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    monkeypatch.setenv("FASTOPT_CACHE_DIR", "")
    assert cache_root().is_absolute()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the folders of freedesktop.org")
def test_the_folder_of_the_desktop(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTOPT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "fastopt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "fastopt"


def test_a_user_without_a_home(monkeypatch, fresh):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FASTOPT_CACHE_DIR")
    monkeypatch.setattr(compile_.Path, "home", fail)
    assert cache_root().is_absolute()
    assert cache_root().name.startswith("fastopt-")


def test_an_edit_of_any_source_changes_the_digest(tmp_path):
    folder = Path(shutil.copytree(Path(formulas.__file__).parents[1], tmp_path / "kernels"))
    assert sources_digest(folder) == sources_digest(Path(formulas.__file__).parents[1])
    found = {sources_digest(folder)}
    names = ("formulas/optimizers/adam.py", "cpu/optim/updates.py", "cpu/runtime/primitives.py")
    sources = [folder / name for name in names]
    for source in sources:
        source.write_text(source.read_text() + "\n")
        found.add(sources_digest(folder))
    (folder / "cpu" / "another.py").write_text("")
    found.add(sources_digest(folder))
    assert len(found) == len(sources) + 2


@compiled
def test_a_kernel_from_elsewhere_is_compiled_again_when_its_file_has_changed(tmp_path):
    """A kernel outside of this package must not run the cached code of an older version of its source."""
    code = """
        import json, numpy as np, elsewhere
        out = np.zeros(1)
        elsewhere.KERNEL(out.ctypes.data)
        print(json.dumps([float(out[0]), elsewhere.KERNEL.loaded]))
    """
    found = []
    for number in (1.0, 1.0, 2.0):
        (tmp_path / "elsewhere.py").write_text(
            "import numpy as np\nfrom fastopt.kernels.cpu.runtime.compile import Kernel\n"
            "from fastopt.kernels.cpu.runtime.primitives import view\n"
            f"NUMBER = {number}\ndef write(out):\n    view(out, 1, np.float64)[0] = NUMBER\n"
            "KERNEL = Kernel(write, 'write_a_number')\n"
        )
        environment = {"PYTHONPATH": str(tmp_path), "FASTOPT_CACHE_DIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        found.append(run(code, **environment))
    assert found == [[1.0, False], [1.0, True], [2.0, False]]


@compiled
@pytest.mark.parametrize("what", ["SOURCES", "numba.config.USING_SVML", "numba.config.OPT", "llvmlite.__version__"])
def test_what_the_code_depends_on_changes_the_folder(monkeypatch, what):
    before = cache_folder()
    with monkeypatch.context() as patch:
        patch.setattr(what if "." in what else f"{compile_.__name__}.{what}", "another")
        assert cache_folder() != before
    assert cache_folder() == before


# ---------------------------------------------------------------- without Numba
FIT = """
import sys
import numpy as np
import fastopt as fo
model = fo.Sequential([fo.Normalization(), fo.Dense(8, "relu"), fo.Dropout(0.1), fo.Dense(3)], seed=0)
model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
x = np.random.default_rng(0).standard_normal((40, 5))
model.fit(x, np.arange(40) % 3, epochs=2, batch_size=16, validation_split=0.2, verbose=0)
model.evaluate(x, np.arange(40) % 3)
p = np.ones(5, "f4")
fo.Adam(p).step(np.ones_like(p))
bits = [array.tobytes().hex() for array in (*model.parameters, model.predict(x), p)]
from fastopt.kernels.cpu.runtime.compile import Kernel
used = [kernel for kernel in Kernel.names.values() if kernel._address]
import json
kernels = {kernel.name: "compiled" if kernel.compiled else "loaded" for kernel in used}
print(json.dumps([bits, kernels, [name for name in sys.modules if name.split(".")[0] in HEAVY]]))
"""
HEAVY = "HEAVY = 'numba', 'scipy', 'pandas', 'pyarrow', 'torch', 'tqdm', 'safetensors', 'pooch', 'importlib_metadata'\n"


@compiled
def test_a_fit_compiles_what_it_runs_and_the_next_one_imports_no_compiler(tmp_path):
    """The first compiles no kernel of others: each takes 0.1 to 0.9 s."""
    first, second = (run(HEAVY + FIT, FASTOPT_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert set(first[1].values()) == {"compiled"}
    assert second == [first[0], dict.fromkeys(first[1], "loaded"), []]
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} == {f"{name}.bin" for name in first[1]}
    metric, loss = "metric_accuracy_labels_float32", "loss_sparse_categorical_crossentropy_float32"
    common = {"enter", "total", "finish", "run_program", "shuffle", loss, metric}
    common |= {"gather_float64_d_to_float32", "gather_float32"}  # of training, and of the few rows that are predicted
    common |= {"update_adam_float32"} | {"read_arrays", "assign_scalar_rows", "update_all"}  # the last three on arrays
    layers = {f"{name}_float32" for name in ("activate_relu", "slope_relu", "activate_linear", "slope_linear")}
    phases = {f"dense_{name}_float32" for name in ("forward", "slopes", "weights", "inputs")}
    rows = {"dropout_float32", "scatter_float32"}
    kernels = set(first[1])
    products = {name for name in kernels if name.startswith(("matmul", "plain_gemm"))}
    assert kernels - products == common | layers | phases | rows


@compiled
def test_the_folder_is_the_same_with_and_without_numba():
    run("""
        import sys
        from fastopt.kernels.cpu.runtime import frontend
        from fastopt.kernels.cpu.runtime.compile import cache_folder
        before = cache_folder(), frontend.target(), frontend.versions()
        assert "numba" not in sys.modules
        from numba.core.registry import cpu_target
        assert before == (cache_folder(), frontend.target(), frontend.versions())
        assert frontend.target() == cpu_target.target_context.codegen().magic_tuple()
        print(0)
    """)


@compiled
def test_settings_of_numba_have_folders_of_their_own():
    code = """
        import json, sys
        from fastopt.kernels.cpu.runtime import frontend
        from fastopt.kernels.cpu.runtime.compile import cache_folder
        before = cache_folder()
        from numba.core.registry import cpu_target
        assert before == cache_folder()
        assert frontend.target() == cpu_target.target_context.codegen().magic_tuple()
        print(json.dumps(str(before)))
    """
    settings = "NUMBA_OPT=1", "NUMBA_CPU_NAME=haswell", "NUMBA_ENABLE_AVX=0", "NUMBA_SLP_VECTORIZE=1"
    folders = [run(code), *(run(code, **dict([setting.split("=")])) for setting in settings)]
    assert len(set(folders)) == len(folders)


@compiled
def test_a_file_of_settings_of_numba(tmp_path):
    """Numba reads it where PyYAML is installed."""
    code = """
        import json, os, sys
        os.chdir(sys.argv[1])
        from fastopt.kernels.cpu.runtime import frontend
        print(json.dumps(frontend.config() is not None))
    """
    code = code.replace("sys.argv[1]", repr(str(tmp_path)))
    assert run(code) is False
    (tmp_path / ".numba_config.yaml").write_text("opt: 1\n")
    assert run(code, PYTHONWARNINGS="ignore") is True  # Numba warns without PyYAML


@compiled
def test_an_object_has_one_function_and_calls_nothing_of_numba(fresh):
    def raises(address, value):
        if value == 1:
            raise ValueError("one")
        view(address, 1, np.int64)[0] = _twice(value)

    kernel = fresh(raises, "raises")
    assert kernel.address
    defined = re.findall(r"^define (?:[\w() ]+ )?(internal )?[\w ]*@([^(]+)\(", kernel.llvm(), re.MULTILINE)
    assert [name.strip('"') for internal, name in defined if not internal] == [objects.ENTRY]
    declared = re.findall(r"^declare .*@([^(]+)\(", kernel.llvm(), re.MULTILINE)
    assert [name.strip('"') for name in declared if not name.startswith("llvm.")] == [objects.REPORT]


@compiled
def test_the_passes_that_are_left_out_change_no_code(monkeypatch):
    def code(compiler):
        monkeypatch.setattr(objects, "pipeline", lambda: compiler)
        library = objects.lower(COUNT_STEPS.function, COUNT_STEPS.name, COUNT_STEPS.parameters, COUNT_STEPS.options)
        objects.emit(library)
        return re.sub(r"_\d+|v\d+|B\d+", "", library.get_llvm_str())  # Numba numbers functions

    compile_._prepare()
    assert code(frontend.pipeline()) == code(Compiler)


@frontend.register_jitable
def _twice(value):
    return 2 * value


@compiled
def test_an_exception_in_a_kernel_is_reported(fresh, caplog):
    def raises(address, value):
        if value == 21:
            raise ValueError("one")
        view(address, 1, np.int64)[0] = value

    word = np.zeros(1, np.int64)
    for _ in range(2):  # compiled, loaded
        fresh(raises, "raises")(address_of(word), 21)
        (record,) = caplog.records
        assert record.getMessage() == "the kernel raises has raised an exception, and its results are incomplete"
        assert word[0] == 0
        caplog.clear()
    assert Kernel.names["raises"].loaded


@compiled
def test_code_that_llvm_cannot_link_is_numbas(fresh, monkeypatch):
    def fail(code):
        raise RuntimeError("Symbols not found: [ __truncsfhf2 ]")

    monkeypatch.setattr(objects, "link", fail)
    first, second = fresh(), fresh()
    assert calls(first)
    assert calls(second)
    assert (first.compiled, first.loaded) == (True, False)


@compiled
@pytest.mark.parametrize("setting", ["ENABLE_PROFILING", "DUMP_ASSEMBLY", "DEBUGINFO_DEFAULT"])
def test_numbas_tools_see_its_own_code(fresh, monkeypatch, setting):
    with monkeypatch.context() as patch:
        patch.setattr(f"numba.config.{setting}", 1)
        assert not objects.usable()
    monkeypatch.setattr(objects, "usable", lambda: False)
    first, second = fresh(), fresh()
    assert calls(first)
    assert calls(second)
    assert (first.compiled, second.loaded) == (True, True)


# ---------------------------------------------------------------- one kernel
@compiled
def test_kept_and_loaded(fresh):
    first, second = fresh(), fresh()
    assert not first.compiled
    assert calls(first)
    assert calls(second)
    assert (first.compiled, first.loaded) == (True, False)
    assert (second.compiled, second.loaded) == (False, True)
    assert [path.name for path in cache_folder().iterdir()] == ["store.bin"]


def cut(content, seal):
    return content[: len(content) // 2]


def flip(content, seal):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def noise(content, seal):
    return hashlib.sha512(content).digest() * 100


def sealed_noise(content, seal):
    payload = noise(content, seal)
    return seal(payload) + payload


def sealed_other(content, seal):
    payload = pickle.dumps(("something", "else"))
    return seal(payload) + payload


DAMAGES = [lambda *_: b"", lambda *_: b"short", cut, flip, noise, sealed_noise, sealed_other]


@compiled
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced(fresh, damage):
    first = fresh()
    assert calls(first)
    path = file_of("store")
    disk = first._disk("object")
    path.write_bytes(damage(path.read_bytes(), lambda payload: disk_cache._seal(disk._identity(), payload)))
    second, third = fresh(), fresh()
    assert calls(second)
    assert second.compiled
    assert calls(third)
    assert third.loaded


@compiled
def test_the_file_of_another_kernel_is_refused(fresh):
    assert calls(fresh())
    assert calls(fresh(store_twice, "store_twice"), factor=2)
    os.replace(file_of("store_twice"), file_of("store"))
    again = fresh()
    assert calls(again)
    assert again.compiled


@compiled
def test_the_file_of_another_version_is_refused(fresh, monkeypatch):
    assert calls(fresh(store_twice), factor=2)
    content = file_of("store").read_bytes()
    monkeypatch.setattr(compile_, "_digest", lambda: "another")
    cache_folder().mkdir()
    file_of("store").write_bytes(content)
    again = fresh()
    assert calls(again)
    assert again.compiled


@compiled
def test_variants_do_not_share_a_place(fresh):
    serial, parallel = fresh(store_all, "store"), fresh(store_all, "store", layer=launch.threading_layer)
    assert calls(serial)
    assert parallel.address
    assert parallel.compiled
    other = fresh(store_all, "store", parameters=(types.int64, types.float64))
    assert other.address
    assert other.compiled


@compiled
@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o777])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_what_others_can_write_is_not_loaded(fresh, mode, caplog):
    assert calls(fresh())
    file_of("store").chmod(mode)
    again, healed = fresh(), fresh()
    assert calls(again)
    assert again.compiled
    assert calls(healed)
    assert healed.loaded
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"in {cache_folder()} are not loaded but compiled anew; of store.bin: other users may write" in caplog.text
    assert f"(mode {mode:04o})" in caplog.text


@compiled
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_what_somebody_else_owns_is_not_loaded(fresh, caplog):
    assert calls(fresh())
    assert calls(fresh(store_twice, "another"), factor=2)
    for name in ("store", "another"):
        os.chown(file_of(name), 12345, -1)
    again = fresh()
    assert calls(again)
    assert again.compiled
    assert caplog.text.count("of store.bin: it belongs to another user (number 12345)") == 1


@compiled
def test_a_file_system_without_modes(fresh, monkeypatch, caplog):
    """Such as one where every file is for everybody: nothing is kept, and said to be, that would never be loaded."""
    monkeypatch.setattr(os, "chmod", lambda path, mode: os.fchmod(os.open(path, os.O_RDONLY), 0o777))
    for name in ("store", "another"):
        kernel = fresh(store, name)
        assert calls(kernel)
        assert kernel.compiled
    assert list(cache_folder().iterdir()) == []
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "they could not be kept" in caplog.text
    assert "could not be loaded: other users may write to it (mode 0777)" in caplog.text


@compiled
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system knows no such owners")
def test_a_folder_that_cannot_be_written_to(fresh, monkeypatch, caplog, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o555)
    if os.geteuid() == 0:  # whom no mode stops

        def denied(**_):
            raise PermissionError(errno.EACCES, "Permission denied", "temporary")

        monkeypatch.setattr(os, "access", lambda *_: False)
        monkeypatch.setattr(disk_cache.tempfile, "mkstemp", denied)
    for name in ("store", "another"):
        assert calls(fresh(store, name))
    (tmp_path / "cache").chmod(0o755)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    where = "it" if os.geteuid() == 0 else str(tmp_path / "cache")
    assert caplog.text.endswith(f"could not be kept in {cache_folder()}: {where} cannot be written to\n")
    assert "temporary" not in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system knows no such owners")
def test_why_nothing_is_kept(tmp_path, monkeypatch):
    assert disk_cache.why_not_kept(tmp_path / "a" / "b") == ""
    (tmp_path / "file").touch()
    assert disk_cache.why_not_kept(tmp_path / "file" / "b") == f"{tmp_path / 'file'} is not a folder"
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    reason = disk_cache.why_not_kept(tmp_path / "a")
    assert reason.startswith(f"{tmp_path} cannot be written to; it belongs to another user (")


@pytest.mark.parametrize("name", ["FASTOPT_CACHE_DIR", "XDG_CACHE_HOME"])
@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there the cache is elsewhere")
def test_a_home_folder_in_a_setting(name, monkeypatch, tmp_path):
    monkeypatch.delenv("FASTOPT_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, "~/kept")
    assert cache_root() == tmp_path / "kept" / ("" if name == "FASTOPT_CACHE_DIR" else "fastopt")
    monkeypatch.setenv(name, "~no-such-user/kept")  # as a shell leaves it
    assert str(cache_root()).startswith("~no-such-user/kept")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system knows no such owners")
def test_whose_files_are_loaded(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    def own(user, mode):
        return not disk_cache.why_not_trusted(SimpleNamespace(st_uid=user, st_mode=0o100000 | mode))

    assert own(1000, 0o600)
    assert own(1000, 0o644)
    assert own(0, 0o644)  # compiled by root, for an image
    assert not own(1001, 0o644)
    assert not own(1000, 0o664)
    assert not own(0, 0o666)


@compiled
def test_a_folder_that_all_can_write(fresh):
    cache_folder().mkdir(parents=True)
    cache_folder().chmod(0o777)
    (cache_folder() / "foreign.txt").write_text("not ours")
    first, second = fresh(), fresh()
    assert calls(first)
    assert calls(second)
    assert second.loaded
    assert sorted(path.name for path in cache_folder().iterdir()) == ["foreign.txt", "store.bin"]


@compiled
def test_a_folder_in_the_place_of_a_file(fresh):
    file_of("store").mkdir(parents=True)
    first, second = fresh(), fresh()
    assert calls(first)
    assert calls(second)
    assert second.compiled
    assert [path.name for path in cache_folder().iterdir()] == ["store.bin"]


@compiled
@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("tempfile.mkstemp", errno.EROFS),
        ("os.replace", errno.EACCES),
        ("os.chmod", errno.EPERM),
        ("open", errno.ENOSPC),
    ],
)
def test_a_full_or_read_only_folder(fresh, monkeypatch, where, code):
    assert calls(fresh(store_twice, "other"), factor=2)

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if where == "open":
            patch.setattr(disk_cache, "open", fail, raising=False)
        else:
            patch.setattr(where, fail)
        kernel = fresh()
        assert calls(kernel)
        assert kernel.compiled
    assert [path.name for path in cache_folder().iterdir()] == ["other.bin"]


@compiled
def test_an_interruption_leaves_no_file(fresh, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fresh().address  # noqa: B018
    assert list(cache_folder().iterdir()) == []
    assert calls(fresh())


@pytest.mark.parametrize(("function", "options"), [(store_twice, {}), (store, {"layer": launch.threading_layer})])
def test_two_kernels_of_one_name_are_refused(fresh, function, options):
    fresh()
    with pytest.raises(AssertionError, match="two kernels are called store"):
        Kernel(function, "store", **options)


def made(factor):
    def kernel(address, value):
        view(address, 1, np.int64)[0] = factor * value

    return kernel


def test_the_values_around_a_function_count(fresh):
    fresh(made(1))
    with pytest.raises(AssertionError, match="two kernels are called store"):
        Kernel(made(2), "store")
    assert calls(Kernel(made(1), "store"))  # as happens when two threads ask for it at the same time


@pytest.mark.skipif(not INTERPRETED, reason="compiled kernels have machine code")
def test_interpreted(fresh):
    kernel = fresh()
    assert calls(kernel)
    assert not kernel.compiled
    assert not kernel.loaded


# ---------------------------------------------------------------- telling the user
@compiled
def test_the_notice(fresh, slow, caplog):
    caplog.set_level(logging.INFO, "fastopt")
    assert calls(fresh())
    assert [(record.name, record.levelname) for record in caplog.records] == [("fastopt", "INFO")]
    assert str(cache_folder()) in caplog.text
    caplog.clear()
    assert calls(fresh(store_twice, "another"), factor=2)
    assert calls(fresh())  # from the cache
    assert caplog.records == []


@compiled
def test_no_notice_of_what_is_quick_or_kept(fresh, caplog, monkeypatch):
    monkeypatch.setattr(compile_, "time", SimpleNamespace(perf_counter=itertools.count(0.0, 0.1).__next__))
    caplog.set_level(logging.INFO, "fastopt")
    with compiling():
        assert calls(fresh())
    with compiling():
        assert calls(fresh())
    assert caplog.records == []


@compiled
def test_the_notice_where_nothing_is_kept(fresh, slow, caplog, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert calls(fresh())
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "could not be kept" in caplog.text


@compiled
def test_listening(fresh, slow, caplog):
    caplog.set_level(logging.INFO, "fastopt")
    heard = []
    with compiling(heard.append), compiling():
        assert calls(fresh())
        assert calls(fresh(store_twice, "another"), factor=2)
        assert heard == ["store", "another"]
        assert calls(fresh())  # from the cache
    assert heard == ["store", "another"]
    assert len(caplog.records) == 2
    assert "compiled 2 kernels in 4.0 s" in caplog.text
    with contextlib.suppress(KeyError), compiling(heard.append):
        raise KeyError
    assert calls(fresh(made(3), "third"), factor=3)
    assert heard == ["store", "another"]
    assert cpu.compiling is compiling
