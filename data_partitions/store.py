"""A folder of prepared data sets, each made once.

Each is a folder named by a hash of its key: ``splits/``, ``facts.json``, and ``sources.json``, a JSON list of
``[path, size, time of change]`` of the files and folders that it was made of. Its own time of change is when
it was last used. It may be removed at any time; it is memory-mapped, and readers go on.
"""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets

Facts = dict[str, Any]
Source = tuple[str, int, int]
_TRIES = 3


@contextmanager
def quiet() -> Iterator[None]:
    """Keep `datasets` from showing its progress bars."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def cached(
    folder: Path,
    key: Facts,
    build: Callable[[], tuple[datasets.DatasetDict, Facts]],
    sources: Sequence[Path] = (),
) -> tuple[datasets.DatasetDict, Facts]:
    """Load the splits kept under a key, after building them if nobody has.

    A folder appears under its final name complete or not at all; of two that build at once, one wins.

    Parameters
    ----------
    folder : Path
        Where they are kept.
    key : dict
        All that the data depend on besides the sources, as JSON values.
    build : callable
        Makes the splits and JSON facts about them. What it read besides `sources` is in its facts under
        ``sources``.
    sources : sequence of Path
        The files that the data are made of; after a change of one, of those read or of these, they are made
        anew.

    Returns
    -------
    tuple
        The splits, memory-mapped from disk, and the facts; under ``sources``, if there are any, all of them.
    """
    made_of = [source(path) for path in sources]
    whole = key | ({"sources": made_of} if made_of else {})
    final = folder / hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:20]
    with quiet():
        for _ in range(_TRIES):
            try:
                return _load(final)
            except FileNotFoundError:  # not made, or just removed
                splits, facts = build()
                _make(final, splits, facts, [*made_of, *facts.pop("sources", [])])
        return _load(final)


def source(path: Path) -> Source:
    """Say of a file or folder its path, its size and when it changed; OSError if it is not there."""
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


def _unchanged(found: Source) -> bool:
    try:
        return source(Path(found[0])) == found
    except OSError:
        return False


def _load(final: Path) -> tuple[datasets.DatasetDict, Facts]:
    made_of = [tuple(found) for found in json.loads((final / "sources.json").read_text())]
    if not all(map(_unchanged, made_of)):
        _remove(final)
        raise FileNotFoundError(final)
    facts = json.loads((final / "facts.json").read_text()) | ({"sources": made_of} if made_of else {})
    splits = datasets.DatasetDict.load_from_disk(final / "splits")
    with suppress(OSError):
        os.utime(final)
    return splits, facts


def _make(final: Path, splits: datasets.DatasetDict, facts: Facts, made_of: list) -> None:
    folder = final.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=folder))
    try:
        # Told how many files to write, `datasets` does not stumble over an empty split.
        splits.save_to_disk(draft / "splits", num_shards=dict.fromkeys(splits, 1))
        for name, content in (("facts.json", facts), ("sources.json", made_of)):
            (draft / name).write_text(json.dumps(content))
        _flush(draft)
        draft.rename(final)
        _flush_folder(folder)
    except OSError:
        if not final.exists():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove(entry: Path) -> None:
    """Take an entry away at once, then delete it."""
    gone = entry.with_name(f".gone-{uuid.uuid4().hex}")
    with suppress(OSError):  # another process did
        entry.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _flush(tree: Path) -> None:
    for path in tree.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for folder in (tree, *(path for path in tree.rglob("*") if path.is_dir())):
        _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # elsewhere folders cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems of a network have no folders to flush.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
