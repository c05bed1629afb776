"""The benchmark `files`: data in the forms in which people have them, see `conversations`.

In `data-dir` every file (JSON, JSON lines, parquet) is a client, or every folder with such files. The files
of a client may be named by their split (``train.jsonl``, ``test-00000-of-00002.parquet``) or lie in folders
of such names; if all that lies in `data-dir` does, it is one client's, whose data several share. Paths of
pictures begin where the file is, or in `data-dir`, and lead nowhere else.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import datasets

from .benchmark import Benchmark
from .drafts import SPLIT_OF, UNKNOWN, Origin
from .natural import Natural, load_natural
from .options import DataOptions
from .partition import Partition
from .pictures import one_line
from .records import KINDS, Record, records_of, records_of_tables

# Changes with whatever changes the rows that come out, so that data kept by older code are not used.
VERSION = 1

_SHARD = re.compile(r"[-_]\d+(-of-\d+)?$")
# What `datasets` reads without running a program or unpickling anything.
_READERS = ("arrow", "csv", "imagefolder", "json", "parquet")
_BATCH = 64

# Split → its files.
Files = dict[str, list[Path]]


def names(options: DataOptions) -> list[str]:
    """Name the natural clients: by their files or folders, or by the data set."""
    return list(_clients(options))


def load(partition_id: int, num_partitions: int, options: DataOptions) -> Partition:
    """Load a client's rows, see `load_natural`."""
    return load_natural("files", VERSION, _clients(options), partition_id, num_partitions, options)


def _clients(options: DataOptions) -> dict[str, Natural]:
    if not options.data_dir:
        name, _ = _hub_id(options)
        return {name: Natural(lambda scratch: _from_hub(options, scratch))}
    root = options.folder(f"a folder of {', '.join(KINDS)} files")
    found = {}
    for name, files in _in_folder(root, options.data_dir).items():
        paths = [path for split in files.values() for path in split]
        folders = sorted({root, *(path.parent for path in paths)})
        found[name] = Natural(lambda _, files=files: _origins(files, root), paths, folders)  # type: ignore[misc]
    return found


def _in_folder(folder: Path, data_dir: str) -> dict[str, Files]:
    """Find the natural clients in the folder, and the files of each."""
    lying, inside = _data_files(folder), [path for path in sorted(folder.iterdir()) if path.is_dir()]
    found = {}
    if whole := _by_split(folder):
        found = {folder.name: whole}
    elif lying:
        for path in lying:
            if path.stem in found:
                raise ValueError(f"data-dir: {path.name} has the same name as another client's file")
            found[path.stem] = {UNKNOWN: [path]}
    else:
        for own in inside:
            files = _by_split(own) or {UNKNOWN: _data_files(own)}
            if any(files.values()):
                found[own.name] = files
    if not found:
        raise ValueError(
            f"data-dir = {data_dir!r} has no {', '.join(KINDS)} files; allowed: one or more, or"
            " folders of them"
        )
    return found


def _data_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in KINDS and path.is_file())


def _by_split(folder: Path) -> Files:
    """Find a folder's files by their splits; none if not all of them are named so."""
    found: Files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in KINDS and path.is_file():
            if (split := SPLIT_OF.get(_SHARD.sub("", path.stem))) is None:
                return {}
            found.setdefault(split, []).append(path)
        elif path.is_dir() and (files := _data_files(path)):
            if (split := SPLIT_OF.get(path.name)) is None:
                return {}
            found.setdefault(split, []).extend(files)
    return found


def _origins(files: Files, root: Path) -> list[Origin]:
    return [
        Origin(
            lambda path=path: records_of(path, str(path.relative_to(root))),  # type: ignore[misc]
            split,
            (path.parent, root),
            root,
        )
        for split, paths in files.items()
        for path in paths
    ]


def _hub_id(options: DataOptions) -> tuple[str, str | None]:
    name, _, revision = options.hub_data.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or ".." in name:
        raise ValueError(
            f"hub-data = {options.hub_data!r} with data-dir = ''; allowed: owner/name of a data set, with"
            " @revision or without, or the absolute path of a folder as data-dir"
        )
    return name, revision or None


def _from_hub(options: DataOptions, scratch: Path) -> list[Origin]:
    """Load a data set of the hub; `scratch` is where the library may write."""
    name, revision = _hub_id(options)
    try:
        builder = datasets.load_dataset_builder(name, revision=revision, cache_dir=str(scratch))
        kind = type(builder).__module__.rpartition(".")[2]
        if kind not in _READERS:
            raise ValueError(f"its files are of {kind}; allowed: {', '.join(_READERS)}")
        found = datasets.load_dataset(name, revision=revision, cache_dir=str(scratch))
    # The hub's library and those beneath it raise of everything.
    except Exception as error:
        raise ValueError(f"hub-data = {options.hub_data!r} cannot be read ({one_line(error)})") from None
    return [
        Origin(
            lambda part=part, split=split: _rows_of(part, split),  # type: ignore[misc]
            SPLIT_OF.get(str(split), "train"),
            prefix=f"hub-data = {options.hub_data!r}: ",
        )
        for split, part in found.items()
    ]


def _rows_of(part: datasets.Dataset, split: str) -> Iterator[Record]:
    tables = part.with_format("arrow").iter(batch_size=_BATCH)
    return records_of_tables(tables, split)


FILES = Benchmark(
    name="files", names=names, load=load, uses=("hub_data", "missing_modality"), names_in_data=True
)
