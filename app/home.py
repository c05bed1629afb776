"""Folders that are their owner's alone: the home of everything that is kept, and those of private states."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .settings import SettingsError, feddat_home

log = logging.getLogger("flwr")

PRIVATE = 0o077  # the umask of an app's process: what it makes is its owner's alone
_OTHERS, _OTHERS_WRITE = 0o077, 0o022
# What apps trust in there; `clients` is for `closed_folder`.
INSIDE = ("data", "examples", "runs")


@contextmanager
def closed_home() -> Iterator[Path]:
    """Open the home, closed to other users, and close what is made meanwhile, whatever the umask was.

    For an app's own process: the umask is the whole process's.

    Yields
    ------
    Path
        ``FEDDAT_HOME``, see `feddat_home`.

    Raises
    ------
    SettingsError
        It, or a folder of `INSIDE`, cannot be made, is somebody else's or a link that another user made, or
        others may write in it: what lies there may be theirs.
    """
    before = os.umask(PRIVATE)
    try:
        home = feddat_home()
        _make(home, "FEDDAT_HOME")
        _close("FEDDAT_HOME", home)
        for name in INSIDE:
            if os.path.lexists(home / name):
                _make(home / name, f"FEDDAT_HOME/{name}")
                _close(f"FEDDAT_HOME/{name}", home / name)
        yield home
    finally:
        os.umask(before)


def _close(name: str, folder: Path) -> None:
    """Close a folder that others could read; one that they may write in, or a link of theirs, is refused."""
    if os.name != "posix":
        return
    link, found = folder.lstat(), folder.stat()
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in (os.geteuid(), 0):
        raise _refused(name, folder, "is a link that another user made")
    _refuse_others(name, folder, found, _OTHERS_WRITE)
    if found.st_mode & _OTHERS:
        log.info("%s could be read by other users and is closed to them", folder)
        folder.chmod(0o700)


def closed_folder(name: str, folder: Path) -> Path:
    """Make a folder that is its owner's alone, or see that it is one, and return it.

    Parameters
    ----------
    name : str
        What errors call it.
    folder : Path
        The folder. Where it is there, it must be no link, its owner's, and closed to all others.

    Raises
    ------
    SettingsError
        It is not, or cannot be made.
    """
    _make(folder, name)
    if os.name == "posix":
        found = folder.lstat()
        if stat.S_ISLNK(found.st_mode):
            raise _refused(name, folder, "is a link")
        _refuse_others(name, folder, found, _OTHERS)
    return folder


def _make(folder: Path, name: str) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(name, folder, f"cannot be made ({error.strerror})") from None


def _refuse_others(name: str, folder: Path, found: os.stat_result, rights: int) -> None:
    if found.st_uid != os.geteuid():
        raise _refused(name, folder, "belongs to another user")
    if found.st_mode & rights:
        raise _refused(name, folder, f"is open to other users ({stat.S_IMODE(found.st_mode):o})")


def _refused(name: str, folder: Path, why: str) -> SettingsError:
    return SettingsError(
        f"{name} = {str(folder)!r} {why}; allowed: a folder that is one's own alone, chmod 700"
    )
