"""Which rows of one data set are whose, and which are for training."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import datasets
import numpy as np

from .options import DataOptions


def own_share(answers: Sequence[str], share: int, shares: int, options: DataOptions) -> list[int]:
    """Return the rows of one of several clients that share a data set, by its answers.

    Parameters
    ----------
    answers : sequence of str
        The rows' answers, by which `options.split_by` = "dirichlet" makes clients differ.
    share, shares : int
        Which client, from 0, of how many.
    options : DataOptions
        How it is shared.
    """
    # Imported here, for it brings matplotlib, and a site starts a process a message.
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

    partitioner = (
        IidPartitioner(num_partitions=shares)
        if options.split_by == "iid"
        else DirichletPartitioner(
            num_partitions=shares,
            partition_by="answer",
            alpha=options.dirichlet_alpha,
            min_partition_size=0,
            seed=options.seed,
        )
    )
    # Both partitioners cut rows in the order in which they lie.
    order = np.random.default_rng(options.seed).permutation(len(answers))
    rows = {"answer": [answers[row] for row in order], "row": order.tolist()}
    partitioner.dataset = datasets.Dataset.from_dict(rows)
    return partitioner.load_partition(share)["row"][:]


def split_by_group(groups: Sequence[Iterable[Hashable]], seed: int) -> list[str]:
    """Say of each row whether it is for training, validation or test: 8, 1 and 1 of 10, drawn by the seed.

    Rows that have a thing in common, such as a picture, are in one split.

    Parameters
    ----------
    groups : sequence of iterables
        The things that each row has.
    seed : int
        What all draws come from.
    """
    parent = list(range(len(groups)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first: dict[Hashable, int] = {}
    for row, things in enumerate(groups):
        for thing in things:
            parent[root(row)] = root(first.setdefault(thing, row))
    members: dict[int, list[int]] = defaultdict(list)
    for row in range(len(groups)):
        members[root(row)].append(row)
    splits, left = ["train"] * len(groups), {"test": len(groups) // 10, "validation": len(groups) // 10}
    found = list(members.values())
    for index in np.random.default_rng(seed).permutation(len(found)):
        for split, room in left.items():
            if len(found[index]) <= room:
                left[split] -= len(found[index])
                for row in found[index]:
                    splits[row] = split
                break
    return splits


def capped(rows: Sequence[int] | np.ndarray, limit: int, seed: int) -> list[int]:
    """Return at most `limit` of the rows, drawn by the seed, in their order; 0: all."""
    if not 0 < limit < len(rows):
        return list(rows)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:limit]).tolist()
