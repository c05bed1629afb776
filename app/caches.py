"""What the home keeps to save time: how much of it, and how long.

Prepared data lie in ``data/<benchmark>/<key>/``, processed examples in ``examples/<key>.safetensors``. Each
entry says which files it was made of, as a JSON list of ``[path, size, time of change]``: a folder in its
``sources.json``, a file in its facts under ``sources``. The time of change of an entry itself is when it
was last used. Removing one costs making it again; whoever reads it goes on, for it is memory-mapped.
"""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .settings import SettingsError

CACHES = ("data", "examples")
DEFAULT_GB = 20.0
_ENTRY = re.compile(r"[0-9a-f]{20}(\.safetensors)?")
_DRAFT = re.compile(r"draft-.+|\.[0-9a-f]{20}\.safetensors\..+|\.gone-[0-9a-f]{32}")
DRAFT_SECONDS = 24 * 3600.0  # what is being written has another name, and is left alone for so long


@dataclass(frozen=True)
class Entry:
    """One thing that is kept.

    Attributes
    ----------
    path : Path
        A folder or a file.
    size : int
        Bytes.
    used : float
        When it was last used, in seconds since 1970.
    """

    path: Path
    size: int
    used: float


def cache_limit() -> int:
    """Return how many bytes may be kept: ``FEDDAT_CACHE_GB`` times 10⁹, by default 20.

    Raises
    ------
    SettingsError
        It is no number, or below 0.
    """
    given = os.environ.get("FEDDAT_CACHE_GB") or str(DEFAULT_GB)
    try:
        limit = float(given)
        if limit >= 0:
            return int(limit * 1e9)
    except (ValueError, OverflowError):
        pass
    raise SettingsError(f"FEDDAT_CACHE_GB = {given!r}; allowed: a number of gigabytes, 0 or more")


def entries(home: Path) -> list[Entry]:
    """List what is kept, what is being written included."""
    found = []
    for path in _paths(home):
        with suppress(OSError):  # another process removes it
            files = [part for part in path.rglob("*") if part.is_file()] if path.is_dir() else [path]
            found.append(Entry(path, sum(file.stat().st_size for file in files), path.stat().st_mtime))
    return found


def prune(home: Path, limit: int) -> None:
    """Remove what is of a file that is gone or has changed, and, down to `limit`, what was used longest ago.

    Parameters
    ----------
    home : Path
        Where the caches lie.
    limit : int
        Most bytes of all caches together.
    """
    total, now = 0, time.time()
    for entry in sorted(entries(home), key=lambda entry: entry.used, reverse=True):
        if _is_draft(entry.path) and now - entry.used < DRAFT_SECONDS:
            continue
        if not _is_draft(entry.path) and total + entry.size <= limit and follows(entry.path):
            total += entry.size
            continue
        _remove(entry.path)


def _paths(home: Path) -> Iterator[Path]:
    """Find what has a name that is given here; whatever else somebody put there is not touched."""
    found = [*home.glob("data/*/*"), *home.glob("examples/*")]
    yield from (path for path in found if _ENTRY.fullmatch(path.name) or _is_draft(path))


def _is_draft(path: Path) -> bool:
    return _DRAFT.fullmatch(path.name) is not None


def follows(path: Path) -> bool:
    """Whether an entry says what it was made of, files or folders, and all that is as it was."""
    try:
        return all(_unchanged(*source) for source in json.loads(_sources(path)))
    except (OSError, ValueError, TypeError):
        return False


def _sources(path: Path) -> Any:
    if path.is_dir():
        return (path / "sources.json").read_text()
    from .checked_files import facts_of  # it brings torch, and the apps' first imports are to be few

    return facts_of(path).get("sources")


def _unchanged(path: str, size: int, changed: int) -> bool:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (found.st_size, found.st_mtime_ns) == (size, changed)


def _remove(path: Path) -> None:
    """Take an entry away at once, then delete it."""
    gone = path.with_name(f".gone-{uuid.uuid4().hex}")
    with suppress(OSError):
        path.rename(gone)
        if gone.is_dir() and not gone.is_symlink():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink()
