"""Files of the user's: written whole or not at all, in the place and with the mode that they had."""

import errno
import io
import os
import signal
import stat
import sys
import threading

import pytest
from helpers_interrupts import handled, press

from fastopt import _files
from fastopt._files import check_writable

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, modes and devices of POSIX")
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
OLD, NEW = b"old", b"new content"


@pytest.fixture
def place(tmp_path):
    """A file with an old content, alone in its folder."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    return path


def failing(monkeypatch, name, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(os, name, fail)


# ---------------------------------------------------------------- a file that is there already


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o755])
def test_the_mode_of_a_file_stays(place, mode):
    place.chmod(mode)
    _files.write(place, NEW)
    assert place.read_bytes() == NEW
    assert stat.S_IMODE(place.stat().st_mode) == mode


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_follows_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        _files.write(tmp_path / "new", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~mask


@posix
def test_a_private_file_is_private_at_every_moment(place, monkeypatch):
    place.chmod(0o600)
    modes = []

    def look(handle, *_):
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))

    monkeypatch.setattr(_files, "_copy_ownership", look)
    monkeypatch.setattr(os, "fsync", look)
    _files.write(place, NEW)
    assert modes == [0o600, 0o600]


@posix
@as_root
def test_owner_and_group_stay(place):
    os.chown(place, 12345, 23456)
    place.chmod(0o640)
    _files.write(place, NEW)
    found = place.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 23456, 0o640)


@posix
@as_root
def test_where_the_group_cannot_be_kept_another_one_gets_no_more_than_everybody(place, monkeypatch):
    os.chown(place, 12345, 23456)
    place.chmod(0o674)
    failing(monkeypatch, "fchown", PermissionError(errno.EPERM, "no"))
    _files.write(place, NEW)
    assert stat.S_IMODE(place.stat().st_mode) == 0o644


@posix
def test_links_stay_and_their_targets_are_written(place):
    folder = place.parent / "folder"
    folder.mkdir()
    (folder / "relative").symlink_to(os.path.join("..", place.name))
    (folder / "twice").symlink_to("relative")
    (folder / "dangling").symlink_to("to-be")
    _files.write(folder / "twice", NEW)
    _files.write(folder / "dangling", NEW)
    assert place.read_bytes() == (folder / "to-be").read_bytes() == NEW
    assert all((folder / name).is_symlink() for name in ("relative", "twice", "dangling"))
    assert sorted(os.listdir(folder)) == ["dangling", "relative", "to-be", "twice"]


@posix
def test_other_names_of_a_file_keep_the_old_content(place):
    other = place.with_name("other")
    os.link(place, other)
    _files.write(place, NEW)
    assert (place.read_bytes(), other.read_bytes()) == (NEW, OLD)


def test_a_path_with_the_longest_name(tmp_path):
    path = tmp_path / ("n" * 255)
    _files.write(path, NEW)
    assert path.read_bytes() == NEW


@posix
def test_a_path_that_is_no_text(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    _files.write(path, NEW)
    assert _files.read(path) == NEW


# ---------------------------------------------------------------- pipes and devices


@posix
def test_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = bytes(range(256)) * 1024  # more than it holds
    found = []
    reader = threading.Thread(target=lambda: found.append(_files.read(pipe)))
    reader.start()
    _files.write(pipe, content)
    reader.join()
    assert found == [content]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


@posix
def test_devices():
    _files.write("/dev/null", NEW)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            _files.write("/dev/full", NEW)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="this system does not name what is open")
def test_what_is_open_already(place):
    with open(place, "r+b") as file:
        _files.write(f"/dev/fd/{file.fileno()}", NEW)
        assert file.read() == NEW  # not another file in its place


# ---------------------------------------------------------------- errors


def test_errors_name_the_path_of_the_user(place, monkeypatch):
    monkeypatch.chdir(place.parent)
    for path, kind in [
        ("missing/file", FileNotFoundError),
        ("file/below", NotADirectoryError),
        (".", IsADirectoryError),
        ("new/", IsADirectoryError),
        ("", FileNotFoundError),
        ("n" * 256, OSError),
    ]:
        with pytest.raises(kind) as caught:
            _files.write(path, NEW)
        assert caught.value.filename == path
        assert caught.value.filename2 is None
        assert caught.value.strerror == os.strerror(caught.value.errno)
    assert os.listdir(place.parent) == ["file"]
    with pytest.raises(TypeError, match=r"--html must be a path \(str, bytes or os.PathLike\), or a binary file"):
        _files.write(None, NEW, "--html")
    with pytest.raises(ValueError, match="null"):
        _files.write("a\0b", NEW)


@posix
@pytest.mark.parametrize("name", ["open", "fchmod", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full", "/tmp"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_after_any_failure_the_old_file_is_there_and_nothing_else(place, monkeypatch, name, error):
    failing(monkeypatch, name, error)
    with pytest.raises(type(error)) as caught:
        _files.write(place, NEW)
    if isinstance(error, OSError):
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(place))
    assert place.read_bytes() == OLD
    assert os.listdir(place.parent) == [place.name]


@posix
def test_a_disk_that_is_full_halfway(place):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            _files.write(place, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(place)
    assert place.read_bytes() == OLD
    assert os.listdir(place.parent) == [place.name]


@posix
@pytest.mark.parametrize("which", ["file", "folder"])
def test_what_the_user_must_not_write_to_is_not_replaced(place, monkeypatch, which):
    denied = place if which == "file" else place.parent
    denied.chmod(0o444 if which == "file" else 0o555)
    if os.geteuid() == 0:  # whom no mode stops
        allowed, create = os.access, os.open

        def refusing(path, *args):
            if os.path.dirname(path) == str(denied):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return create(path, *args)

        monkeypatch.setattr(os, "access", lambda path, *args: path != str(denied) and allowed(path, *args))
        monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(PermissionError) as caught:
        _files.write(place, NEW)
    denied.chmod(0o755)
    assert caught.value.filename == str(place)
    assert place.read_bytes() == OLD
    assert os.listdir(place.parent) == [place.name]


@posix
def test_an_interrupt_leaves_the_old_file(place, monkeypatch):
    monkeypatch.setattr(_files, "_CHUNK", 2)
    taken, into = [], _files._write_all

    class Pressed:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            taken.append(len(data))
            if len(taken) == 2:
                press()
                press()
            return self.file.write(data)

    monkeypatch.setattr(_files, "_write_all", lambda file, data, check=None: into(Pressed(file), data, check))
    with handled(), pytest.raises(KeyboardInterrupt):
        _files.write(place, NEW)
    assert taken == [2, 2]
    assert place.read_bytes() == OLD
    assert os.listdir(place.parent) == [place.name]
    _files.write(place, NEW)
    assert place.read_bytes() == NEW


# ---------------------------------------------------------------- file objects


def test_an_unbuffered_file_takes_some_at_a_time():
    class Slow:
        def __init__(self):
            self.content = b""

        def write(self, data):
            self.content += bytes(data[:3])
            return len(data[:3])

    class Raw(Slow, io.RawIOBase):
        pass

    raw = Raw()
    _files.write(raw, NEW)
    assert raw.content == NEW
    raw.write = lambda data: None
    with pytest.raises(BlockingIOError, match="took nothing"):
        _files.write(raw, NEW)


# ---------------------------------------------------------------- checks before the work


@posix
def test_what_can_be_written_is_known_beforehand(place, monkeypatch):
    folder = place.parent
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("to-be")
    (folder / "lost").symlink_to("no-folder/file")
    (folder / "inwards").symlink_to(".")
    for name in ("file", "new", "pipe", "dangling"):
        check_writable("--save", str(folder / name))
    check_writable("--save", "/dev/null")
    for name, kind, message in [
        ("no-folder/file", FileNotFoundError, ": .*there is no folder"),
        ("lost", FileNotFoundError, ": .*there is no folder"),
        ("inwards", IsADirectoryError, " must be the name of a file; got a folder"),
    ]:
        with pytest.raises(kind, match=f"--save {folder / name}{message}"):
            check_writable("--save", str(folder / name))
    access = os.access
    for denied, message in [(place, "the file cannot be written to"), (folder, "the folder .* cannot be written to")]:
        monkeypatch.setattr(os, "access", lambda path, mode, denied=denied: path != denied and access(path, mode))
        with pytest.raises(PermissionError, match=message):
            check_writable("--save", str(place))
    check_writable("--save", str(folder / "pipe"))  # which needs nothing of its folder
