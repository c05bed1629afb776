"""What lies at a site alone: no server is in its process, to close or to prune for it."""

import json
import os

import pytest

from client_app import main

ON_POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")


@pytest.fixture
def own_data(home):
    """Let nothing of the home be shared with other tests."""
    (home / "data").unlink()
    return home


@ON_POSIX
@pytest.mark.parametrize("umask", [0o000, 0o022], ids=oct)
def test_nothing_in_a_sites_home_is_open_to_others(vqa, own_data, umask):
    before = os.umask(umask)
    try:
        replies = vqa()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert not any(reply.has_error() for reply in replies.values())
    kept = [path for path in own_data.rglob("*") if path.is_file()]
    assert {path.relative_to(own_data).parts[0] for path in kept} >= {"data", "examples"}
    assert [path for path in own_data.rglob("*") if path.stat().st_mode & 0o077] == []


def test_a_sites_next_process_removes_what_was_of_a_source_that_is_gone(asked, own_data):
    """Also where nothing new is kept, which would remove it too."""
    asked()
    gone = own_data / "data" / "scenes" / ("0" * 20)
    gone.mkdir(parents=True)
    (gone / "sources.json").write_text(json.dumps([["/nowhere/x.parquet", 1, 1]]))
    main._tidy.cache_clear()
    asked()
    assert not gone.exists()
    assert list(gone.parent.iterdir())
