"""Where runs of a study are kept while they last: a FEDDAT_HOME of each one's own."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.home import closed_home

# A folder that is on its way out has another name first: what is half deleted is never gone on with.
_GONE = ".gone"


@contextmanager
def scratch_home() -> Iterator[None]:
    """Give a run a FEDDAT_HOME that goes away afterwards; data and annotations are the real one's."""
    with tempfile.TemporaryDirectory() as scratch, _own_home(Path(scratch)):
        yield


@contextmanager
def kept_home(name: str) -> Iterator[None]:
    """Give a run a FEDDAT_HOME that stays until it is forgotten; data and annotations are the real one's."""
    folder = _kept(name)
    with closed_home():
        folder.mkdir(parents=True, exist_ok=True)
    with _own_home(folder):
        yield


def forget(name: str) -> None:
    """Delete what is kept under a name, if anything is, and what an earlier deletion left of it."""
    folder = _kept(name)
    gone = folder.with_suffix(_GONE)
    shutil.rmtree(gone, ignore_errors=True)
    if folder.is_dir():
        folder.rename(gone)
        shutil.rmtree(gone)


def digest(*words: str) -> str:
    """Return a name for words that no others have, which can be a file's."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def _kept(name: str) -> Path:
    with closed_home() as home:
        return home / "studies" / name


@contextmanager
def _own_home(folder: Path) -> Iterator[None]:
    with closed_home() as home:
        for kept in ("data", "annotations"):
            (home / kept).mkdir(parents=True, exist_ok=True)
            if not (link := folder / kept).is_symlink():
                link.symlink_to(home / kept, target_is_directory=True)
    os.environ["FEDDAT_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ["FEDDAT_HOME"] = str(home)
