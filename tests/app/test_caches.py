"""Caches: how much is kept and how long, and that nothing else is touched."""

import json
import mmap
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from app import caches
from app.caches import cache_limit, entries, prune
from app.checked_files import write_checked
from app.settings import SettingsError

NOW = time.time()
ALL = 10**12


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.parquet"
    path.write_bytes(b"pictures")
    return path


def made_of(*paths):
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


@pytest.fixture
def data(home):
    def make(name, size=1000, used=0.0, sources=()):
        """Make an entry that was used so many seconds ago."""
        folder = home / "data" / "a-benchmark" / (name * 20)
        (folder / "splits").mkdir(parents=True)
        (folder / "sources.json").write_text(json.dumps(list(sources)))
        (folder / "splits" / "x.arrow").write_bytes(bytes(size - (folder / "sources.json").stat().st_size))
        os.utime(folder, (NOW - used, NOW - used))
        return folder

    return make


@pytest.fixture
def examples(home):
    def make(name, used=0.0, sources=(), metadata=None):
        path = home / "examples" / f"{name * 20}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"x": torch.zeros(250)}
        if metadata:
            save_file(tensors, path, metadata)
        else:
            write_checked(path, tensors, {"sources": json.dumps(list(sources))})
        os.utime(path, (NOW - used, NOW - used))
        return path

    return make


def left(home):
    return {entry.path for entry in entries(home)}


def test_what_was_used_longest_ago_goes_first_over_both_caches(home, data, examples):
    oldest, older, newer, newest = (
        data("a", used=4),
        examples("b", used=3),
        data("c", used=2),
        data("d", used=1),
    )
    size = older.stat().st_size
    prune(home, 3000 + size)
    assert left(home) == {oldest, older, newer, newest}
    prune(home, 2999 + size)
    assert left(home) == {older, newer, newest}
    os.utime(older)
    prune(home, 1000 + size)
    assert left(home) == {older, newest}
    prune(home, 0)
    assert left(home) == set()


def test_one_that_is_larger_than_all_room_does_not_cost_the_others(home, data):
    large, small = data("a", size=5000, used=1), data("b", used=2)
    prune(home, 2000)
    assert (large.exists(), small.exists()) == (False, True)


@pytest.mark.parametrize("change", ["deleted", "longer", "touched", "its folder deleted"])
def test_what_is_of_a_source_that_is_gone_or_has_changed_is_removed(
    home, data, examples, source, tmp_path, change
):
    inside = tmp_path / "folder" / "other.parquet"
    inside.parent.mkdir()
    inside.write_bytes(b"more")
    of_both = [data("a", sources=made_of(inside, source)), examples("b", sources=made_of(source, inside))]
    drawn = data("c")
    prune(home, ALL)
    assert left(home) == {*of_both, drawn}
    match change:
        case "deleted":
            source.unlink()
        case "longer":
            found = source.stat()
            source.write_bytes(b"pictures and more")
            os.utime(source, ns=(found.st_atime_ns, found.st_mtime_ns))
        case "touched":
            os.utime(source, (1, 1))
        case _:
            inside.unlink()
            inside.parent.rmdir()
            inside.parent.write_text("a file")
    prune(home, ALL)
    assert left(home) == {drawn}


def test_one_that_does_not_say_what_it_was_made_of_is_removed(home, data, examples):
    (data("a") / "sources.json").unlink()
    (data("b") / "sources.json").write_text("{")
    (data("c") / "sources.json").write_text("[[1]]")
    examples("d", metadata={"other": "x"})
    examples("f", metadata={"about": "[]"})
    examples("a", metadata={"about": '{"facts": {}}'})
    examples("e").write_bytes(b"no safetensors")
    prune(home, ALL)
    assert left(home) == set()


def test_nothing_that_somebody_else_put_there_is_touched(home, data):
    """Such as data of a site that lie in the folder of that name."""
    theirs = [
        home / "data" / "mine" / "xray.parquet",
        home / "data" / "xray.parquet",
        home / "data" / "mine" / "read" / "x",
        home / "examples" / "notes.txt",
        home / "clients" / "a-b" / "0" / ("a" * 20),
        home / "runs" / ("b" * 20) / "x",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    data("a")
    prune(home, 0)
    assert left(home) == set()
    assert all(path.read_text() == "mine" for path in theirs)


def test_a_link_is_removed_and_not_what_it_leads_to(home, tmp_path):
    (home / "data" / "b").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("mine")
    (home / "data" / "b" / ("a" * 20)).symlink_to(tmp_path / "precious")
    prune(home, 0)
    assert list((home / "data" / "b").iterdir()) == []
    assert (tmp_path / "precious" / "x").read_text() == "mine"


def test_what_is_being_written_is_left_alone_for_a_day(home, data, examples):
    drafts = [
        data("a").rename(home / "data" / "a-benchmark" / "draft-x1"),
        (path := examples("b")).rename(path.with_name(f".{path.name}.q8_x")),
    ]
    prune(home, 0)
    assert left(home) == set(drafts)
    for path in drafts:
        os.utime(path, (NOW - caches.DRAFT_SECONDS - 60,) * 2)
    prune(home, ALL)
    assert left(home) == set()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a mapped file cannot be removed")
def test_who_reads_an_entry_goes_on(home, examples):
    path = examples("a")
    content = path.read_bytes()
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    prune(home, 0)
    assert not path.exists()
    assert mapped[:] == content


def test_an_empty_home_is_fine(home):
    prune(home, 0)
    assert not home.exists()


@pytest.mark.parametrize(
    ("given", "limit"), [(None, 20 * 10**9), ("", 20 * 10**9), ("0", 0), ("1.5", 15 * 10**8)]
)
def test_the_limit_is_the_sites(monkeypatch, given, limit):
    if given is None:
        monkeypatch.delenv("FEDDAT_CACHE_GB", raising=False)
    else:
        monkeypatch.setenv("FEDDAT_CACHE_GB", given)
    assert cache_limit() == limit


@pytest.mark.parametrize("given", ["many", "-1", "nan", "inf", "1GB"])
def test_a_limit_that_is_none_is_named(monkeypatch, given):
    monkeypatch.setenv("FEDDAT_CACHE_GB", given)
    with pytest.raises(
        SettingsError, match=rf"^FEDDAT_CACHE_GB = '{given}'; allowed: a number of gigabytes, 0 or"
    ):
        cache_limit()
