"""A file is there complete or not at all."""

import os
import stat
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
@pytest.mark.parametrize(("arguments", "mode"), [((), 0o644), ((0o600,), 0o600)])
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


def test_what_is_renamed_has_reached_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    write_atomically(tmp_path / "file", b"12345")
    assert synced == [5]
