"""The hash of the source: equal for equal code, wherever and however it is checked out."""

import shutil
from pathlib import Path

import pytest

import app.source
from app.source import FOLDERS, source_hash

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Copy the app, and let the hash be taken of the copy."""
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("assets", "__pycache__")
        )
    monkeypatch.setattr(app.source, "__file__", str(tmp_path / "app" / "source.py"))
    yield tmp_path
    source_hash.cache_clear()


def current():
    return source_hash.__wrapped__()


def test_a_copy_elsewhere_has_the_same_hash(checkout, monkeypatch):
    of_copy = current()
    monkeypatch.undo()
    assert current() == of_copy
    assert len(bytes.fromhex(of_copy)) == 32


@pytest.mark.parametrize("folder", FOLDERS)
def test_one_byte_changes_it(checkout, folder):
    before = current()
    path = checkout / folder / "__init__.py"
    content = path.read_bytes()
    path.write_bytes(content + b"#")
    assert current() != before
    path.write_bytes(content)
    assert current() == before


def test_names_and_new_files_change_it(checkout):
    hashes = {current()}
    (checkout / "app" / "bottleneck" / "extra.py").write_bytes(b"")
    hashes.add(current())
    (checkout / "app" / "bottleneck" / "extra.py").rename(checkout / "app" / "extra.py")
    hashes.add(current())
    assert len(hashes) == 3


def test_line_endings_do_not_change_it(checkout):
    before = current()
    for path in checkout.rglob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert current() == before


def test_what_does_not_run_does_not_change_it(checkout):
    before = current()
    (checkout / "app" / "notes.txt").write_text("x")
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_x.py").write_text("x")
    assert current() == before


def test_it_is_computed_once_a_process(checkout):
    once = source_hash()
    (checkout / "app" / "late.py").write_bytes(b"")
    assert source_hash() == once
