"""A folder of prepared data sets, each made once."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets

Facts = dict[str, Any]


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
    folder: Path, key: Facts, build: Callable[[], tuple[datasets.DatasetDict, Facts]]
) -> tuple[datasets.DatasetDict, Facts]:
    """Load the splits kept under a key, after building them if nobody has.

    A folder appears under its final name complete or not at all; of two that build at once, one wins.

    Parameters
    ----------
    folder : Path
        Where they are kept.
    key : dict
        All that the data depend on, as JSON values.
    build : callable
        Makes the splits and JSON facts about them.

    Returns
    -------
    tuple
        The splits, memory-mapped from disk, and the facts.
    """
    final = folder / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    with quiet():
        if not final.exists():
            splits, facts = build()
            folder.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix="draft-", dir=folder))
            try:
                # Told how many files to write, `datasets` does not stumble over an empty split.
                splits.save_to_disk(draft / "splits", num_shards=dict.fromkeys(splits, 1))
                (draft / "facts.json").write_text(json.dumps(facts))
                _flush(draft)
                draft.rename(final)
                _flush_folder(folder)
            except OSError:
                if not final.exists():
                    raise
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        splits = datasets.DatasetDict.load_from_disk(final / "splits")
    return splits, json.loads((final / "facts.json").read_text())


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
