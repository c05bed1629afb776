"""Processed examples that a site keeps on its disk, for the process that answers the next message.

One safetensors file for each split of a client's share and each backbone, with a checksum. It is
memory-mapped, so that processes of one machine that read it have it in memory once. Deleting the folder at
any time costs making the examples again, nothing else. Its files are entries as `app.caches` describes them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from app.caches import cache_limit, follows, prune
from app.checked_files import read_checked, write_checked
from app.examples import Examples

log = logging.getLogger("flwr")

Facts = Mapping[str, Any]
Sources = Sequence[tuple[str, int, int]]


def kept_examples(
    home: Path,
    key: Facts,
    origin: Facts,
    build: Callable[[], tuple[Any, Sources]],
    kind: type[Any] = Examples,
) -> Any:
    """Return the examples kept under a key; make them if there are none, or none of today's.

    A file that cannot be used is written anew. One that cannot be written is gone without, with a warning.

    Parameters
    ----------
    home : Path
        They are kept in its folder ``examples``. What was made makes room in all of its caches.
    key : Mapping
        What is asked for, as JSON values.
    origin : Mapping
        All else that the examples depend on, as JSON values: what of another origin lies under the key is
        replaced.
    build : callable
        Makes the examples, and names what they are made of, files or folders: path, size, time of change.
        After a change of one they are made anew.
    kind : type
        What they are: a dataclass of tensors, some of which may be None.
    """
    asked = json.dumps(key, sort_keys=True)
    folder = home / "examples"
    path = folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:20]}.safetensors"
    facts = {"key": asked, "origin": json.dumps(origin, sort_keys=True)}
    try:
        kept = _read(path, facts, kind)
        with suppress(OSError):
            os.utime(path)
        return kept
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.info("the examples kept in %s cannot be used and are made again: %s", path, error)
    try:
        examples, sources = build()
        _write(path, examples, {**facts, "sources": json.dumps(sources)})
        return examples
    finally:  # what is of a file that is gone goes, though making fails for it
        prune(home, cache_limit())


def _write(path: Path, examples: Any, facts: Mapping[str, str]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_checked(
            path, {name: value for name, value in vars(examples).items() if value is not None}, facts
        )
    except OSError as error:
        log.warning(
            "examples cannot be kept in %s, so that each process makes them again: %s", path.parent, error
        )


def _read(path: Path, facts: Mapping[str, str], kind: type[Any]) -> Any:
    tensors = read_checked(path, facts)
    if not follows(path):
        raise ValueError("what they were made of has changed")
    # Without texts there are none to keep.
    return kind(**{field.name: tensors.get(field.name) for field in fields(kind)})
