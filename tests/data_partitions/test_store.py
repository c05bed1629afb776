"""The folder of prepared data sets."""

import os
from pathlib import Path

import datasets
import pytest

from data_partitions.store import cached, source


def _build(value):
    return lambda: (
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [value]})}),
        {"value": value},
    )


def test_what_was_built_is_loaded(tmp_path):
    splits, facts = cached(tmp_path, {"a": 1}, _build(3))
    assert (splits["train"]["x"][:], facts) == ([3], {"value": 3})
    _, facts = cached(tmp_path, {"a": 1}, _build(4))
    assert facts == {"value": 3}
    _, facts = cached(tmp_path, {"a": 2}, _build(4))
    assert facts == {"value": 4}


def test_of_two_that_build_at_once_one_wins(tmp_path):
    def build_slowly():
        cached(tmp_path, {}, _build("first"))
        return _build("second")()

    splits, facts = cached(tmp_path, {}, build_slowly)
    assert (splits["train"]["x"][:], facts) == (["first"], {"value": "first"})
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", ["touched", "gone"])
def test_what_was_read_while_building_is_a_source_as_well(tmp_path, change):
    listed, read = tmp_path / "rows.json", tmp_path / "a.png"
    for path in (listed, read):
        path.write_text("x")

    def build(value):
        splits, facts = _build(value)()
        return lambda: (splits, {**facts, "sources": [source(read)]})

    folder = tmp_path / "kept"
    _, facts = cached(folder, {}, build(1), [listed])
    assert facts == {"value": 1, "sources": [source(listed), source(read)]}
    assert cached(folder, {}, build(2), [listed])[1] == facts
    if change == "touched":
        os.utime(read, (1, 1))
        assert cached(folder, {}, build(3), [listed])[1]["value"] == 3
    else:
        read.unlink()
        with pytest.raises(FileNotFoundError):
            cached(folder, {}, build(3), [listed])
    assert len(list(folder.iterdir())) == (change == "touched")


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(self, path, **options):
        (path / "half").parent.mkdir(parents=True)
        raise OSError("no space left")

    monkeypatch.setattr(datasets.DatasetDict, "save_to_disk", full)
    with pytest.raises(OSError, match="no space left"):
        cached(tmp_path, {}, _build(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="elsewhere folders cannot be flushed")
def test_what_appears_has_reached_the_disk_with_all_its_folders(tmp_path, monkeypatch):
    flushed, rename, at_renaming = set(), Path.rename, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.add(os.fstat(descriptor).st_ino))

    def renaming(path, target):
        at_renaming.append({part.stat().st_ino for part in (path, *path.rglob("*"))})
        assert at_renaming[0] <= flushed
        flushed.clear()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renaming)
    cached(tmp_path, {}, _build(1))
    assert len(at_renaming) == 1
    assert flushed == {tmp_path.stat().st_ino}


def test_progress_bars_are_as_before(tmp_path, capsys):
    assert datasets.is_progress_bar_enabled()
    cached(tmp_path, {}, _build(1))
    assert datasets.is_progress_bar_enabled()
    assert "examples" not in capsys.readouterr().err
