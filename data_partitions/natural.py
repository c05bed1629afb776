"""Benchmarks whose natural clients each have records of their own: from those to one client's data."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from .drafts import Origin, prepare
from .options import DataOptions
from .partition import Partition, client_name, require_one_of
from .store import Facts, cached, source


@dataclass(frozen=True)
class Natural:
    """A natural client.

    Attributes
    ----------
    origins : callable
        A folder that is gone afterwards, for what is read on the way → its records.
    paths : sequence of Path
        The files of those records; after a change of one all is made anew.
    folders : sequence of Path
        Folders in which another file is other data.
    """

    origins: Callable[[Path], Sequence[Origin]]
    paths: Sequence[Path] = ()
    folders: Sequence[Path] = ()


def load_natural(
    benchmark: str,
    version: int,
    clients: Mapping[str, Natural],
    partition_id: int,
    num_partitions: int,
    options: DataOptions,
) -> Partition:
    """Load a client's rows; several that share a natural client's get different rows, and one answer list.

    Parameters
    ----------
    benchmark : str
        Under which the rows are kept.
    version : int
        Changes with whatever changes the rows that come out, so that data kept by older code are not used.
    clients : mapping
        Name → natural client.
    partition_id, num_partitions : int
        Which client, from 0, of how many.
    options : DataOptions
        What is asked for.

    Raises
    ------
    ValueError
        Naming the file and the row that cannot be used; or a client without training rows.
    """
    require_one_of("split-by", options.split_by, ("iid", "dirichlet"))
    require_one_of("on-bad-row", options.on_bad_row, ("error", "skip"))
    if not 0 <= options.missing_modality < 1:
        raise ValueError(f"missing-modality = {options.missing_modality}; allowed: 0 to less than 1")
    share, index = divmod(partition_id, len(clients))
    shares = len(range(index, num_partitions, len(clients)))
    own, name = list(clients.values())[index], client_name(clients, partition_id)
    key = {
        "version": version,
        "client": [name, partition_id, options.data_dir, options.hub_data],
        "share": [share, shares, options.split_by, options.dirichlet_alpha] if shares > 1 else [],
        "num_answers": options.num_answers,
        "caps": [options.train_examples, options.test_examples],
        "on_bad_row": options.on_bad_row,
        "missing": options.missing_modality,
        "seed": options.seed,
    }

    def build() -> tuple[datasets.DatasetDict, Facts]:
        options.cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="draft-", dir=options.cache_dir) as scratch:
            return prepare(own.origins(Path(scratch)), share, shares, partition_id, options)

    splits, facts = cached(options.cache_dir / benchmark, key, build, own.paths)
    if not len(splits["train"]):
        raise ValueError(f"partition-id = {partition_id}: {name!r} has no training rows")
    sources = [*facts.pop("sources", []), *map(source, own.folders)]
    answers = tuple(facts.pop("answers"))
    return Partition(partition_id, name, answers, **splits, **facts, sources=sources)
