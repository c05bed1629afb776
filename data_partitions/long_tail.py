"""Long-tailed image classification, one class distribution for all clients together, shared out unevenly.

The protocol is that of CReFF (Shang et al., IJCAI 2022, arXiv 2204.13399) and CLIP2FL (Shi et al., AAAI 2024,
arXiv 2312.08648), which MLLM-LLaVA-FL follows; its published code was read for what the papers leave open.

1. A balanced public pool for the server is reserved first, which the protocol does not have: the first
   `public-per-class` training rows of every class, whatever the seed. n_max rows of a class are left.
2. Class c of C keeps int(n_max · (1 / imbalance-factor)^(c / (C − 1))) of them, drawn by the seed.
3. All these rows, shuffled, are cut into groups for ten clients each. In a group every class is shared out by
   a draw from a Dirichlet distribution, in which clients that have their mean share already get nothing more.
4. The clients' rows, one client after another, are cut anew into pieces of equal size (± 1): the clients.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .benchmark import Benchmark
from .options import DataOptions
from .partition import SPLITS, BalancedTest, Groups, Partition, Row, pool_of, scored_split
from .pictures import image_fault
from .store import Facts, cached, source

# Changes with whatever changes the rows that come out, so that data kept by older code are not used.
VERSION = 2
QUESTION = "what is shown ?"
GROUP_SIZE = 10
MAX_DRAWS = 100

Rows = np.ndarray  # of row numbers, int64


class Labels(NamedTuple):
    """The classes of a file, in the order of their labels, and the rows of each."""

    names: tuple[str, ...]
    train: list[Rows]
    test: list[Rows]


def class_counts(largest: int, num_classes: int, imbalance_factor: float) -> list[int]:
    """Return how many training examples each class has, falling exponentially from `largest`."""
    return [
        int(largest * (1 / imbalance_factor) ** (label / (num_classes - 1))) for label in range(num_classes)
    ]


def thirds(counts: Sequence[int]) -> Groups:
    """Group classes by rank: C // 3 with the most examples, C // 3 with the fewest, and those between.

    For ten classes, of which by `thresholds` hardly any would be few-shot.
    """
    order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
    third = len(counts) // 3
    parts = {"many": order[:third], "medium": order[third:-third], "few": order[-third:]}
    return {name: tuple(sorted(labels)) for name, labels in parts.items()}


def thresholds(counts: Sequence[int]) -> Groups:
    """Group classes as for ImageNet-LT: more than 100 examples, 20 to 100, fewer than 20.

    Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019.
    """
    groups: dict[str, list[int]] = {"many": [], "medium": [], "few": []}
    for label, count in enumerate(counts):
        groups["many" if count > 100 else "medium" if count >= 20 else "few"].append(label)
    return {name: tuple(labels) for name, labels in groups.items()}


@dataclass(frozen=True)
class LongTail:
    """A data set with a long tail made of it.

    Attributes
    ----------
    file : str
        Its parquet file in `data_dir`: columns image, image_id, label (from 0), label_name, split (train,
        test); rows in random order.
    group : callable
        Training counts of the classes → `BalancedTest.groups`.
    """

    file: str
    group: Callable[[Sequence[int]], Groups]

    def names(self, options: DataOptions) -> list[str]:
        """Return none: there are as many clients as are asked for; the protocol has 20."""
        self._path(options)
        return []

    def load(self, partition_id: int, num_partitions: int, options: DataOptions) -> Partition:
        """Load a client's training rows, and an equal random share of the balanced test rows; no validation.

        `train_examples` caps it at a random part of its rows.

        Raises
        ------
        ValueError
            If the file or an option cannot be used, or there are more clients than examples.
        """
        share = [num_partitions, partition_id, options.dirichlet_alpha, options.seed]
        caps = [options.train_examples, options.test_examples]
        splits, facts = self._cached(
            options, share + caps, lambda: self._client(partition_id, num_partitions, options)
        )
        nothing = dict.fromkeys(SPLITS, 0)
        return Partition(
            partition_id,
            f"client {partition_id}",
            tuple(facts["answers"]),
            **splits,
            unanswerable=nothing,
            skipped=nothing,
            sources=[*facts["sources"], source(self._path(options).parent)],
        )

    def load_pool(self, options: DataOptions) -> datasets.DatasetDict:
        """Load the server's public examples, as many of each class and at most `public_examples` in all."""
        return self._cached(options, ["pool", options.public_examples], lambda: self._pool(options))[0]

    def load_test(self, options: DataOptions) -> BalancedTest:
        """Load the whole test set; with `test_examples`, so many of it in all, as many of each class."""
        splits, facts = self._cached(options, ["test", options.test_examples], lambda: self._test(options))
        groups = {name: tuple(labels) for name, labels in facts["groups"].items()}
        return BalancedTest(tuple(facts["answers"]), splits["test"], groups)

    def _cached(
        self, options: DataOptions, part: list, build: Callable[[], tuple[datasets.DatasetDict, Facts]]
    ) -> tuple[datasets.DatasetDict, Facts]:
        key = {
            "version": VERSION,
            "tail": [options.imbalance_factor, options.public_per_class],
            "part": part,
        }
        return cached(options.cache_dir / "long-tail", key, build, [self._path(options)])

    def _path(self, options: DataOptions) -> Path:
        folder = options.folder(f"one with {self.file}")
        if not (folder / self.file).is_file():
            raise ValueError(f"data-dir = {options.data_dir!r} has no {self.file}; allowed: a folder with it")
        return folder / self.file

    def _counts(self, labels: Labels, options: DataOptions) -> list[int]:
        smallest, name = min((len(rows), name) for name, rows in zip(labels.names, labels.train, strict=True))
        if (largest := smallest - options.public_per_class) < 1:
            raise ValueError(
                f"public-per-class = {options.public_per_class}, but class {name!r} of {self.file} has "
                f"{smallest} training rows; allowed: 0 to {smallest - 1}"
            )
        return class_counts(largest, len(labels.names), options.imbalance_factor)

    def _client(self, index: int, count: int, options: DataOptions) -> tuple[datasets.DatasetDict, Facts]:
        labels = _read_labels(self._path(options))
        counts = self._counts(labels, options)
        if count > sum(counts):
            raise ValueError(f"num-partitions = {count}; allowed: 1 to {sum(counts)}, the training examples")
        random = np.random.default_rng(options.seed)
        kept = [
            random.permutation(rows[options.public_per_class :])[:n]
            for rows, n in zip(labels.train, counts, strict=True)
        ]
        train = share_out(kept, count, options.dirichlet_alpha, random)[index]
        test = np.array_split(random.permutation(np.concatenate(labels.test)), count)[index]
        # A client's rows lie class by class: what a cap keeps is drawn from all of them.
        train = np.random.default_rng([options.seed, index]).permutation(train)
        chosen = {
            "train": train[: options.train_examples or None],
            "validation": test[:0],
            "test": test[: options.test_examples or None],
        }
        return self._scored(chosen, labels, options), {"answers": labels.names}

    def _pool(self, options: DataOptions) -> tuple[datasets.DatasetDict, Facts]:
        labels = _read_labels(self._path(options))
        self._counts(labels, options)
        each = min(options.public_per_class, options.public_examples // len(labels.names))
        if each < 5:
            raise ValueError(
                f"public-per-class = {options.public_per_class} and public.examples = "
                f"{options.public_examples} give {each} public examples of each of the {len(labels.names)} "
                "classes; allowed: at least 5, of which one is held out"
            )
        rows = np.concatenate([rows[:each] for rows in labels.train])
        table = self._taken(rows, options)
        ids, given = table["image_id"].to_pylist(), table["label_name"].to_pylist()
        return pool_of(table["image"].to_pylist(), [QUESTION] * len(rows), given, ids), {}

    def _test(self, options: DataOptions) -> tuple[datasets.DatasetDict, Facts]:
        labels = _read_labels(self._path(options))
        each = min(map(len, labels.test))
        if options.test_examples:
            each = min(each, max(1, options.test_examples // len(labels.names)))
        rows = {"test": np.concatenate([rows[:each] for rows in labels.test])}
        facts = {"answers": labels.names, "groups": self.group(self._counts(labels, options))}
        return self._scored(rows, labels, options), facts

    def _scored(self, chosen: dict[str, Rows], labels: Labels, options: DataOptions) -> datasets.DatasetDict:
        splits = datasets.DatasetDict()
        for split, rows in chosen.items():
            part = self._taken(rows, options)
            columns = (part[name].to_pylist() for name in ("image", "label_name", "image_id"))
            found = (Row.asking(image, QUESTION, *rest) for image, *rest in zip(*columns, strict=True))
            splits[split], _ = scored_split(found, labels.names)
        return splits

    def _taken(self, rows: Rows, options: DataOptions) -> pa.Table:
        """Read rows of the file, whose pictures can be decoded."""
        table = _read_rows(self._path(options)).take(pa.array(rows))
        for row, picture in zip(rows, table["image"].to_pylist(), strict=True):
            if fault := image_fault(picture["bytes"]):
                raise ValueError(f"data-dir: {self.file} row {row}: {fault}")
        return table


def share_out(
    classes: Sequence[Rows], num_clients: int, alpha: float, random: np.random.Generator
) -> list[Rows]:
    """Share rows out to clients of equal size (± 1), steps 3 and 4 of the protocol.

    The published code repeats a group's draw until its smallest client has half of the mean, which for small
    `alpha` need never come: here the most even of `MAX_DRAWS` draws is taken if none is so even.

    Parameters
    ----------
    classes : sequence of arrays
        The rows of each class.
    num_clients : int
        How many clients.
    alpha : float
        Concentration of the Dirichlet distribution; smaller is more uneven.
    random : np.random.Generator
        What all draws come from.

    Returns
    -------
    list of arrays
        The rows of each client.
    """
    rows, labels = np.concatenate(classes), np.repeat(np.arange(len(classes)), list(map(len, classes)))
    order = random.permutation(len(rows))
    starts = range(0, num_clients, GROUP_SIZE)
    cuts = [int(start / num_clients * len(rows)) for start in starts]
    pieces: list[Rows] = []
    for start, group in zip(starts, np.split(order, cuts[1:]), strict=True):
        clients = min(GROUP_SIZE, num_clients - start)
        by_class = [group[labels[group] == label] for label in range(len(classes))]
        draws = (_draw(by_class, clients, alpha, random) for _ in range(MAX_DRAWS))
        best: list[Rows] = []
        for draw in draws:
            best = max(best, draw, key=lambda drawn: min(map(len, drawn), default=-1))
            if min(map(len, best)) >= len(group) // (2 * clients):
                break
        pieces += best
    return np.array_split(rows[np.concatenate(pieces)], num_clients)


def _draw(by_class: list[Rows], clients: int, alpha: float, random: np.random.Generator) -> list[Rows]:
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    sizes, mean = np.zeros(clients), sum(map(len, by_class)) / clients
    for members in by_class:
        wanted = random.dirichlet(np.full(clients, alpha)) * (sizes < mean)
        if wanted.sum() == 0:  # what is left of a very uneven draw goes to who has least
            wanted = (sizes == sizes.min()).astype(float)
        ends = (np.cumsum(wanted / wanted.sum()) * len(members)).astype(int)[:-1]
        for client, piece in enumerate(np.split(members, ends)):
            parts[client].append(piece)
            sizes[client] += len(piece)
    return [np.concatenate(part) for part in parts]


def _read_labels(path: Path) -> Labels:
    return _labels(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _labels(path: Path, changed: int) -> Labels:
    columns = ["image", "image_id", "label", "label_name", "split"]
    try:
        known = pq.read_schema(path).names
        missing = [column for column in columns if column not in known]
        table = None if missing else pq.read_table(path, columns=columns[2:])
        if table is not None:
            table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"data-dir: {path.name} is not a readable parquet file ({reason})") from None
    if table is None:
        raise ValueError(f"data-dir: {path.name} has no column {missing[0]!r}; it has {', '.join(known)}")
    label, split = table["label"].to_numpy(), np.array(table["split"].to_pylist())
    names = dict(zip(label.tolist(), table["label_name"].to_pylist(), strict=True))
    if len(names) < 2 or sorted(names) != list(range(len(names))):
        raise ValueError(f"data-dir: {path.name} has the labels {sorted(names)}; allowed: 0, 1, 2, ...")
    rows = {
        part: [np.flatnonzero((label == one) & (split == part)) for one in sorted(names)]
        for part in ("train", "test")
    }
    for part, by_class in rows.items():
        if empty := [names[one] for one, members in enumerate(by_class) if not len(members)]:
            raise ValueError(f"data-dir: {path.name} has no {part} row of class {empty[0]!r}")
    return Labels(tuple(names[one] for one in sorted(names)), rows["train"], rows["test"])


def _read_rows(path: Path) -> pa.Table:
    return pq.read_table(path, columns=["image", "image_id", "label_name"])


def _benchmark(name: str, tail: LongTail) -> Benchmark:
    return Benchmark(
        name=name,
        names=tail.names,
        load=tail.load,
        pool=tail.load_pool,
        test=tail.load_test,
        usual_clients=20,
    )


CIFAR10 = _benchmark("cifar10-lt", LongTail("cifar10.parquet", thirds))
CIFAR100 = _benchmark("cifar100-lt", LongTail("cifar100.parquet", thresholds))
