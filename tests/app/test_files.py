"""A file is there complete or not at all."""

import errno
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.files import write_atomically


@pytest.mark.parametrize(
    ("data", "content"), [("Â_s é\n", "Â_s é\n".encode()), (b"\x00\xff\r\n", b"\x00\xff\r\n")]
)
def test_the_content_replaces_what_was_there(tmp_path, data, content):
    path = tmp_path / "file"
    path.write_bytes(b"something much longer than the new content")
    write_atomically(path, data)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
@pytest.mark.parametrize(("arguments", "mode"), [((), 0o600), ((0o644,), 0o644)])
def test_the_permissions_are_those_asked_for(tmp_path, arguments, mode):
    write_atomically(tmp_path / "file", b"x", *arguments)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, broken):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere folders cannot be flushed")
def test_what_is_renamed_has_reached_the_disk_and_then_its_folder(tmp_path, monkeypatch):
    path, flushed = tmp_path / "file", []

    def fsync(descriptor):
        about = os.fstat(descriptor)
        folder = stat.S_ISDIR(about.st_mode)
        flushed.append((about.st_ino if folder else about.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(path, b"12345")
    assert flushed == [(5, False), (tmp_path.stat().st_ino, True)]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere folders cannot be flushed")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSPC, errno.EIO])
def test_a_folder_that_cannot_be_flushed_is_no_error_but_a_full_disk_is(tmp_path, monkeypatch, number):
    fsync, open_files = os.fsync, []

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            open_files.append(descriptor)
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    unknown = number in (errno.EINVAL, errno.ENOTSUP)
    with nullcontext() if unknown else pytest.raises(OSError, match=os.strerror(number)):
        write_atomically(tmp_path / "file", b"new")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(open_files[0])
