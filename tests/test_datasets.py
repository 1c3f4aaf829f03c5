"""Data sets: loading, the search for their files, and errors of wrong files."""

import functools
import gzip
import hashlib
import http.server
import os
import struct
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastopt import datasets
from fastopt.datasets import loading
from fastopt.datasets._idx import read_idx

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def idx(array, code=8, dims=None):
    dims = array.shape if dims is None else dims
    return bytes([0, 0, code, len(dims)]) + struct.pack(f">{len(dims)}I", *dims) + array.tobytes()


def small_set(first_labels=(3, 1, 4)):
    """The four files of a data set like MNIST, with 6 rows to train and 3 to test."""
    rng = np.random.default_rng(5)
    train, test = (rng.integers(0, 256, (rows, 28, 28), dtype=np.uint8) for rows in (6, 3))
    return {
        "train-images-idx3-ubyte": train,
        "train-labels-idx1-ubyte": np.arange(6, dtype=np.uint8),
        "t10k-images-idx3-ubyte": test,
        "t10k-labels-idx1-ubyte": np.array(first_labels, np.uint8),
    }


def write_set(folder, packed=False, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in small_set().items():
        data = changes.get(name.split("-idx")[0].replace("-", "_"), idx(array))
        (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return folder


@pytest.fixture(autouse=True)
def no_data_outside(monkeypatch):
    """Neither data on this machine nor pooch is found unless a test says so."""
    monkeypatch.delenv("FASTOPT_DATA_DIR", raising=False)
    sources = {name: source._replace(folders=()) for name, source in loading._SOURCES.items()}
    monkeypatch.setattr(loading, "_SOURCES", sources)
    monkeypatch.setitem(sys.modules, "pooch", None)


# ---------------------------------------------------------------- digits and names


def test_digits():
    data = datasets.load("digits")
    assert data.x_train.shape == (1437, 64)
    assert data.x_test.shape == (360, 64)
    for x in (data.x_train, data.x_test):
        assert x.dtype == np.float32
        assert x.flags.c_contiguous
        assert (x.min(), x.max()) == (0, 1)
    for y, rows in ((data.y_train, 1437), (data.y_test, 360)):
        assert y.dtype == np.int64
        assert y.shape == (rows,)
        assert set(y) == set(range(10))
    assert data.classes == 10
    assert data.licence == "CC BY 4.0"
    assert "10.24432/C50P49" in data.source


def test_digits_are_the_published_ones():
    published = pytest.importorskip("sklearn.datasets").load_digits()
    data = datasets.load("digits")
    assert np.array_equal(np.concatenate([data.x_train, data.x_test]) * 16, published.data)
    assert np.array_equal(np.concatenate([data.y_train, data.y_test]), published.target)


def test_every_load_returns_new_arrays():
    datasets.load("digits").x_train[:] = 7
    assert datasets.load("digits").x_train.max() == 1


@pytest.mark.parametrize("name", ["Digits", "", "cifar10", None, 3])
def test_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="known: digits, fashion-mnist, mnist"):
        datasets.load(name)


def test_digits_take_no_folder(tmp_path):
    with pytest.raises(ValueError, match="folder must be None for the data set digits"):
        datasets.load("digits", tmp_path)


# ---------------------------------------------------------------- where IDX files are looked for


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("sub", ["", "mnist"])
@pytest.mark.parametrize("way", ["folder", "environment", "system"])
def test_places(tmp_path, monkeypatch, way, sub, packed):
    write_set(tmp_path / sub, packed)
    folder = None
    if way == "folder":
        folder = str(tmp_path)
    elif way == "environment":
        monkeypatch.setenv("FASTOPT_DATA_DIR", str(tmp_path))
    else:
        source = loading._SOURCES["mnist"]._replace(folders=(str(tmp_path / sub),))
        monkeypatch.setitem(loading._SOURCES, "mnist", source)
    data = datasets.load("mnist", folder)
    expected = list(small_set().values())
    assert data.x_train.dtype == np.float32
    assert np.array_equal(data.x_train, (expected[0].reshape(6, 784) / 255).astype(np.float32))
    assert np.array_equal(data.x_test, (expected[2].reshape(3, 784) / 255).astype(np.float32))
    assert data.y_train.dtype == np.int64
    assert data.y_train.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.y_test.tolist() == [3, 1, 4]
    assert (data.name, data.classes) == ("mnist", 10)


def test_the_folder_given_comes_first(tmp_path, monkeypatch):
    write_set(tmp_path / "set", t10k_labels=idx(np.array([9, 9, 9], np.uint8)))
    monkeypatch.setenv("FASTOPT_DATA_DIR", str(write_set(tmp_path / "other")))
    assert datasets.load("mnist", tmp_path / "set").y_test.tolist() == [9, 9, 9]


def test_a_folder_without_the_files_is_an_error_even_if_others_have_them(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTOPT_DATA_DIR", str(write_set(tmp_path / "set")))
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="sub-folder mnist: train-images"):
            datasets.load("mnist", folder)


def test_an_environment_without_the_files_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTOPT_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="MNIST is not on this machine"):
        datasets.load("mnist")


def test_a_missing_file_is_named(tmp_path):
    (write_set(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="missing: t10k-labels-idx1-ubyte$"):
        datasets.load("mnist", tmp_path)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_as_debian_packs_it(monkeypatch):
    monkeypatch.undo()
    monkeypatch.delenv("FASTOPT_DATA_DIR", raising=False)
    data = datasets.load("fashion-mnist")
    assert data.x_train.shape == (60000, 784)
    assert data.x_test.shape == (10000, 784)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert np.bincount(data.y_train).tolist() == [6000] * 10
    assert np.bincount(data.y_test).tolist() == [1000] * 10
    with pytest.raises(ValueError, match="must hold the labels of MNIST; got Fashion-MNIST's"):
        datasets.load("mnist", DEBIAN)


# ---------------------------------------------------------------- downloads (from this machine only)


@pytest.mark.parametrize(("name", "debian"), [("mnist", False), ("fashion-mnist", True)])
def test_without_pooch_the_ways_to_get_the_data_are_named(monkeypatch, name, debian):
    source = loading._SOURCES[name]._replace(folders=("/nowhere",) if debian else ())
    monkeypatch.setitem(loading._SOURCES, name, source)
    with pytest.raises(
        FileNotFoundError, match=r"pass the folder .* FASTOPT_DATA_DIR.*fastopt\[data\]"
    ) as error:
        datasets.load(name)
    assert ("apt install dataset-fashion-mnist" in str(error.value)) == debian


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A mirror of "mnist" on this machine, for the real pooch; yields its folder and the requests it got."""
    monkeypatch.delitem(sys.modules, "pooch")
    pooch = pytest.importorskip("pooch")
    mirror = write_set(tmp_path / "mirror", packed=True)
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *args):
            requests.append(self.path)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    with http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=mirror)) as httpd:
        sums = {
            file: hashlib.sha256((mirror / f"{file}.gz").read_bytes()).hexdigest() for file in small_set()
        }
        source = loading._SOURCES["mnist"]._replace(
            url=f"http://127.0.0.1:{httpd.server_port}/", sha256=sums
        )
        monkeypatch.setitem(loading._SOURCES, "mnist", source)
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))  # looks for its end
        thread.start()
        yield mirror, requests
        httpd.shutdown()
        thread.join()


def test_download_happens_once(server, tmp_path):
    _, requests = server
    assert datasets.load("mnist").y_test.tolist() == [3, 1, 4]
    assert sorted(requests) == sorted(f"/{file}.gz" for file in small_set())
    assert sorted(os.listdir(tmp_path / "cache/fastopt/mnist")) == sorted(
        f"{file}.gz" for file in small_set()
    )
    assert datasets.load("mnist").y_test.tolist() == [3, 1, 4]
    assert len(requests) == 4


def test_download_of_something_else_is_refused(server, tmp_path):
    (server[0] / "train-images-idx3-ubyte.gz").write_bytes(b"<html>moved</html>")
    with pytest.raises(ValueError, match="hash"):
        datasets.load("mnist")
    assert not (tmp_path / "cache/fastopt/mnist/train-images-idx3-ubyte.gz").exists()


def test_download_that_fails_names_the_other_ways(server):
    (server[0] / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        OSError, match="MNIST could not be downloaded from http://127.0.0.1.*404.*FASTOPT_DATA_DIR"
    ):
        datasets.load("mnist")


# ---------------------------------------------------------------- wrong sets of IDX files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_labels": idx(np.zeros(5, np.uint8))},
            r"train-images.* must hold an array of shape \(5, 28, 28\)",
        ),
        ({"train_labels": idx(np.array([0, 1, 2, 10, 4, 5], np.uint8))}, "from 0 to 9; got 10 at index 3"),
        ({"train_labels": idx(np.zeros(0, np.uint8))}, "must hold 1 to 60000 labels .*got 0"),
        ({"t10k_labels": idx(np.zeros(10001, np.uint8))}, "must hold 1 to 10000 labels .*got 10001"),
        (
            {"t10k_images": idx(np.zeros((3, 28, 27), np.uint8))},
            r"\(3, 28, 28\); got \(3, 28, 27\)",
        ),
        ({"t10k_images": idx(np.zeros(3, np.uint8))}, r"must have 3 dimension\(s\); got 1"),
        ({"train_labels": idx(small_set()["train-images-idx3-ubyte"])}, r"must have 1 dimension\(s\)"),
        ({"train_images": b""}, "must be an IDX file, .*; got an empty file"),
        ({"train_images": b"<html>"}, "must be an IDX file, .*; got 3c 68 74 6d"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_wrong_sets(tmp_path, changes, message, packed):
    write_set(tmp_path, packed, **changes)
    with pytest.raises(ValueError, match=message):
        datasets.load("mnist", tmp_path)


# ---------------------------------------------------------------- the IDX reader


arrays = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=9))


@files
@given(array=arrays, packed=st.booleans())
def test_idx_round_trip(tmp_path, array, packed):
    path = tmp_path / "a.gz"  # the name says nothing
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    for shape in (array.shape, (None,) * array.ndim):
        got = read_idx(path, shape)
        assert got.dtype == np.uint8
        assert got.flags.writeable
        assert np.array_equal(got, array)


@files
@given(data=st.data(), array=arrays, packed=st.booleans())
def test_idx_corruption_is_a_value_error_or_harmless(tmp_path, data, array, packed):
    content = bytearray(gzip.compress(idx(array)) if packed else idx(array))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "remove"]))
        if kind == "cut":
            del content[at:]
        elif kind == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1)) if kind == "change" else b""
    path = tmp_path / "a"
    path.write_bytes(content)
    try:
        got = read_idx(path, (None,) * array.ndim)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert got.ndim == array.ndim


@files
@given(content=st.binary(max_size=64), packed=st.booleans())
def test_idx_noise_is_a_value_error(tmp_path, content, packed):
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match="must "):
        read_idx(path, (None, 28, 28))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.zeros(9, np.uint8))[:-1], "truncated"),
        (idx(np.zeros(9, np.uint8)) + b"!", "must hold 9 bytes of data for shape .*; got more"),
        (idx(np.zeros(9, np.uint8))[:6], "must have a header of 8 bytes; got a file that ends inside it"),
        (idx(np.zeros(9, np.uint8))[:3], "must be an IDX file"),
        (idx(np.zeros(9, np.float32), code=0x0D), "type code 0x08 .unsigned bytes.; got 0x0d"),
        (idx(np.zeros((3, 3), np.uint8)), "must have 1 dimension.*got 2"),
        (b"\x01" + idx(np.zeros(9, np.uint8))[1:], "must be an IDX file, .*; got 01 00 08 01"),
        (idx(np.zeros(9, np.uint8), dims=(2**32 - 1,)), "must hold 4294967295 bytes .* too small"),
    ],
)
def test_idx_messages(tmp_path, content, message, packed):
    path = tmp_path / "train-labels"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path, (None,))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dims", [(2**32 - 1,) * 3, (2**31, 2**31, 4), (2**32 - 1, 0, 5)])
def test_idx_giant_dimensions_allocate_nothing(tmp_path, dims, packed):
    """The second product is 2**64, the third 0: sums of 64 bits would let both pass."""
    content = idx(np.zeros(100, np.uint8), dims=dims)
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(content) if packed else content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="too small|got more"):
        read_idx(path, (None, None, None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_idx_gzip_bomb_is_read_to_the_announced_size_only(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(idx(np.zeros(100, np.uint8)) + bytes(200_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(ValueError, match="must hold 100 bytes of data for shape .*; got more"):
        read_idx(path, (None,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


@pytest.mark.parametrize("damage", ["cut", "checksum", "stream", "tail"])
def test_idx_damaged_gzip(tmp_path, damage):
    content = bytearray(gzip.compress(idx(np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8))))
    if damage == "cut":
        del content[-20:]
    elif damage == "checksum":
        content[-6] ^= 1
    elif damage == "stream":
        content[10] = 0xFF  # no such kind of block
    else:
        content += b"garbage"
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="must be a whole gzip file"):
        read_idx(path, (None,))


def test_idx_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "a", (None,))
