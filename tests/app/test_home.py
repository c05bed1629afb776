"""Folders that are their owner's alone, whatever the umask and whoever was there before."""

import os
import stat
from pathlib import Path
from pkgutil import resolve_name

import pytest

from app.home import closed_folder, closed_home
from app.settings import SettingsError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDDAT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def test_what_is_made_meanwhile_is_closed_and_the_umask_is_as_before(home, umask):
    with closed_home() as folder:
        assert folder == home
        (home / "a" / "b").mkdir(parents=True)
        (home / "a" / "b" / "file").write_text("x")
    assert [mode(path) for path in (home, home / "a", home / "a" / "b")] == [0o700] * 3
    assert mode(home / "a" / "b" / "file") == 0o600
    with pytest.raises(KeyError), closed_home():
        raise KeyError
    assert os.umask(umask) == umask


def test_a_home_that_others_could_read_is_closed(home):
    home.mkdir()
    home.chmod(0o755)
    with closed_home():
        assert mode(home) == 0o700


@pytest.mark.parametrize("open_to", [0o720, 0o702, 0o777, 0o1777], ids=oct)
def test_a_home_that_others_may_write_in_is_refused_and_left_as_it_is(home, open_to):
    home.mkdir()
    home.chmod(open_to)
    line = rf"^FEDDAT_HOME = '{home}' is open to other users \({open_to:o}\); allowed: .* chmod 700$"
    with pytest.raises(SettingsError, match=line), closed_home():
        pass
    assert mode(home) == open_to


def test_a_home_of_another_user_is_refused(home, monkeypatch):
    home.mkdir(mode=0o700)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(SettingsError, match="belongs to another user"), closed_home():
        pass


def test_a_link_is_ones_own_or_refused(home, tmp_path, monkeypatch):
    """One may have it on another disk; a link that somebody else planted leads to where they like."""
    (tmp_path / "disk").mkdir(mode=0o700)
    home.symlink_to(tmp_path / "disk")
    with closed_home():
        pass
    lstat = type(home).lstat

    def planted(path):
        found = list(lstat(path))
        found[stat.ST_UID] = 12345
        return os.stat_result(found)

    monkeypatch.setattr(type(home), "lstat", planted)
    with pytest.raises(SettingsError, match="is a link that another user made"), closed_home():
        pass


def test_a_home_that_cannot_be_made_is_named(home):
    home.write_text("a file")
    with (
        pytest.raises(
            SettingsError, match=r"^FEDDAT_HOME = '.*home' cannot be made \(File exists\); allowed: "
        ),
        closed_home(),
    ):
        pass


def test_a_folder_is_made_closed_whatever_the_umask(tmp_path, umask):
    assert mode(closed_folder("state-dir", tmp_path / "state")) == 0o700
    assert closed_folder("state-dir", tmp_path / "state") == tmp_path / "state"


@pytest.mark.parametrize(
    "tool", ["server_app.teachers.__main__", "server_app.teachers.toy", "server_app.pretraining.__main__"]
)
def test_a_tool_closes_the_home_before_it_puts_anything_there(home, umask, tool):
    """It may be the first that runs, and what it makes must not be refused by the next."""
    with pytest.raises(SystemExit):
        resolve_name(tool).main(["--help"])
    assert mode(home) == 0o700
    assert os.umask(umask) == umask


def test_a_relative_home_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDDAT_HOME", "rel")
    with (
        pytest.raises(SettingsError, match=r"^FEDDAT_HOME = 'rel' is relative; allowed: an absolute path$"),
        closed_home(),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["data", "examples", "runs"])
@pytest.mark.parametrize("kind", ["open", "link to an open one", "another's link", "link to nothing"])
def test_what_others_may_write_in_inside_the_home_is_refused(home, tmp_path, monkeypatch, name, kind):
    home.mkdir(mode=0o700)
    inside = home / name
    target = inside if kind == "open" else tmp_path / "elsewhere"
    if kind != "link to nothing":
        target.mkdir()
        target.chmod(0o700 if kind == "another's link" else 0o777)
    if kind != "open":
        inside.symlink_to(target)
    if kind == "another's link":
        lstat, own = Path.lstat, os.geteuid() + 1

        def of_another(path):
            found = list(lstat(path))
            return os.stat_result([*found[:4], own, *found[5:]]) if path == inside else lstat(path)

        monkeypatch.setattr(Path, "lstat", of_another)
    with pytest.raises(SettingsError, match=rf"^FEDDAT_HOME/{name} = '{inside}' [^\n]*$"), closed_home():
        pass


def test_what_others_may_read_inside_the_home_is_closed(home):
    for name in ("data", "examples", "runs"):
        (home / name).mkdir(parents=True)
        (home / name).chmod(0o755)
    with closed_home():
        assert {mode(home / name) for name in ("data", "examples", "runs")} == {0o700}
