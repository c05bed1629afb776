"""Examples on a site's disk: they come back as they were made, or are made again."""

import errno
import os
import stat
from dataclasses import fields, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from app.examples import Examples
from client_app.kept_examples import kept_examples
from tests.conftest import is_mapped

MADE = Examples(
    pixels=torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2),
    image_of=torch.tensor([0, 1, 0]),
    input_ids=torch.tensor([[5, 6], [7, 0], [8, 9]]),
    attention_mask=torch.tensor([[1, 1], [1, 0], [1, 1]]),
    scores=torch.tensor([[1.0, 0.0], [0.3, 0.0], [0.0, 0.0]]),
)
OTHER = replace(MADE, scores=MADE.scores + 1)
KEY, ORIGIN = {"split": "train"}, {"source": "a"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "home" / "examples"


@pytest.fixture
def keep(folder):
    def keep(made=MADE, key=KEY, origin=ORIGIN, sources=()):
        """Return what is kept, and whether it was made for that."""
        calls = []
        kept = kept_examples(folder.parent, key, origin, lambda: calls.append(1) or (made, sources))
        return kept, bool(calls)

    return keep


def same(one, other):
    pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in fields(Examples))
    return all(a is b is None or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs)


@pytest.mark.parametrize(
    "made", [MADE, replace(MADE, input_ids=None, attention_mask=None)], ids=["texts", ""]
)
def test_what_was_made_once_is_read(keep, made):
    first, was_made = keep(made)
    assert was_made
    assert same(first, made)
    again, was_made = keep(OTHER)
    assert not was_made
    assert same(again, made)


def test_it_is_memory_mapped(keep, folder):
    keep()
    kept, _ = keep()
    (path,) = folder.iterdir()
    assert is_mapped(kept.pixels, path)
    assert not is_mapped(MADE.pixels, path)


def test_another_key_has_a_file_of_its_own(keep, folder):
    keep()
    assert same(keep(OTHER, key={"split": "test"})[0], OTHER)
    assert same(keep()[0], MADE)
    assert len(list(folder.iterdir())) == 2


def test_what_is_of_another_origin_is_replaced(keep, folder):
    keep()
    kept, was_made = keep(OTHER, origin={"source": "b"})
    assert was_made
    assert same(kept, OTHER)
    assert keep(origin={"source": "b"})[1] is False
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("change", ["touched", "gone", "another in its folder"])
def test_what_is_of_a_file_that_changed_is_made_again(keep, tmp_path, change):
    source = tmp_path / "pictures" / "a.png"
    source.parent.mkdir()
    source.write_bytes(b"a picture")
    os.utime(source.parent, (5, 5))
    sources = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in (source, source.parent)]
    assert keep(sources=sources)[1] is True
    assert keep(sources=sources)[1] is False
    match change:
        case "touched":
            os.utime(source, (1, 1))
        case "gone":
            source.unlink()
        case _:
            (source.parent / "b.png").write_bytes(b"another")
    assert keep(OTHER, sources=sources)[1] is True


def rewritten(path, **change):
    """Write a file of the same metadata and other tensors."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({**load_file(path), **change}, path, metadata)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": lambda path: path.write_bytes(b""),
    "no safetensors": lambda path: path.write_bytes(b"x" * 500),
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"),
    "a tensor": lambda path: rewritten(path, scores=OTHER.scores),
    "a tensor more": lambda path: rewritten(path, more=torch.zeros(1)),
    "no metadata": lambda path: save_file(load_file(path), path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_made_again(keep, folder, damage):
    keep()
    (path,) = folder.iterdir()
    good = path.read_bytes()
    damage(path)
    kept, was_made = keep()
    assert was_made
    assert same(kept, MADE)
    assert len(path.read_bytes()) == len(good)
    assert keep()[1] is False


def test_a_file_that_cannot_be_read_is_made_again(keep, folder):
    keep()
    (path,) = folder.iterdir()
    path.unlink()
    path.mkdir()
    kept, was_made = keep()
    assert was_made
    assert same(kept, MADE)


def test_nobody_else_can_read_it(keep, folder):
    keep()
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_full_disk_costs_only_time(keep, folder, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    kept, _ = keep()
    assert same(kept, MADE)
    assert list(folder.iterdir()) == []
    assert "examples cannot be kept in" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_failure_to_make_them_leaves_nothing(folder):
    with pytest.raises(ValueError, match="no rows"):
        kept_examples(folder.parent, KEY, ORIGIN, lambda: (_ for _ in ()).throw(ValueError("no rows")))
    assert not folder.exists()
