"""Benchmarks by name: the clients of each, and their data."""

from collections.abc import Callable
from typing import NamedTuple

import datasets

from . import scenes, vqa_sets
from .baseline import text_only_baseline
from .long_tail import CIFAR10, CIFAR100, BalancedTest
from .options import DataOptions
from .partition import Partition, require_one_of

__all__ = [
    "BENCHMARKS",
    "BalancedTest",
    "DataOptions",
    "Partition",
    "load_partition",
    "load_pool",
    "load_public",
    "load_test",
    "partition_names",
    "text_only_baseline",
]


class Benchmark(NamedTuple):
    """A benchmark's functions.

    Names of the natural clients (none where any number of clients share one data set), one client's data, and
    where there are such: public examples, and a test set in which all clients have one answer list. Last,
    whether clients are named by what stands in their files.
    """

    names: Callable[[DataOptions], list[str]]
    load: Callable[[int, int, DataOptions], Partition]
    pool: Callable[[DataOptions], datasets.DatasetDict] | None = None
    test: Callable[[DataOptions], BalancedTest] | None = None
    names_in_data: bool = False


BENCHMARKS: dict[str, Benchmark] = {
    "scenes": Benchmark(scenes.names, scenes.load, scenes.load_pool),
    "vqa-domains": Benchmark(vqa_sets.names, vqa_sets.load, names_in_data=True),
    "cifar10-lt": Benchmark(CIFAR10.names, CIFAR10.load, CIFAR10.load_pool, CIFAR10.load_test),
    "cifar100-lt": Benchmark(CIFAR100.names, CIFAR100.load, CIFAR100.load_pool, CIFAR100.load_test),
}


def partition_names(benchmark: str, options: DataOptions) -> list[str]:
    """Name the natural clients of a benchmark: with exactly so many, each has a domain of its own."""
    require_one_of("benchmark", benchmark, BENCHMARKS)
    return BENCHMARKS[benchmark].names(options)


def load_partition(benchmark: str, partition_id: int, num_partitions: int, options: DataOptions) -> Partition:
    """Load one client's data.

    With fewer partitions than natural clients the first of these take part; with more, partition `i` goes
    with natural client `i % n`: `scenes` draws it data of its own, `vqa-domains` splits a domain's rows.
    `cifar10-lt` and `cifar100-lt` have no natural clients: their rows are shared out to all partitions.

    Parameters
    ----------
    benchmark : str
        A name in `BENCHMARKS`.
    partition_id, num_partitions : int
        Which client, from 0, of how many.
    options : DataOptions
        What the benchmark needs to know.

    Returns
    -------
    Partition
        A function of the arguments alone.

    Raises
    ------
    ValueError
        If an option is not allowed or the data cannot be used: one line with the key or file, and the value.
    """
    require_one_of("benchmark", benchmark, BENCHMARKS)
    if not 0 <= partition_id < num_partitions:
        raise ValueError(f"partition-id = {partition_id}; allowed: 0 to {num_partitions - 1}")
    return BENCHMARKS[benchmark].load(partition_id, num_partitions, options)


def load_pool(benchmark: str, options: DataOptions) -> datasets.DatasetDict:
    """Load the server's public examples, in splits train and validation.

    Columns are image, question, answer, example_id. They are those of `options.public_data`, or else the
    benchmark's own, of which no client and no test split has one.

    Raises
    ------
    ValueError
        If there are none, or the file cannot be used.
    """
    if options.public_data:
        return vqa_sets.load_pool(options)
    pool = BENCHMARKS[benchmark].pool
    if pool is None:
        raise ValueError(
            f"public-data = '' and the benchmark {benchmark!r} has no public examples of its own; "
            "allowed: the absolute path of a parquet file"
        )
    return pool(options)


def load_test(benchmark: str, options: DataOptions) -> BalancedTest:
    """Load what a model for all clients is measured on: `cifar10-lt` and `cifar100-lt` have such a test set.

    Raises
    ------
    ValueError
        If the benchmark has none, or its data cannot be used.
    """
    require_one_of("benchmark", benchmark, [name for name, found in BENCHMARKS.items() if found.test])
    load = BENCHMARKS[benchmark].test
    assert load is not None
    return load(options)


def load_public(
    benchmark: str, options: DataOptions, num_images: int, split: str = "train"
) -> datasets.Dataset:
    """Load captioned images for the server, which no client holds: columns image, captions, example_id.

    `split` is `train`, `validation` or `test`; no two share an image. Only `scenes` has public data.
    """
    require_one_of("benchmark", benchmark, ["scenes"])
    return scenes.load_public(options, num_images, split)


def load_public_questions(
    benchmark: str, options: DataOptions, num_images: int, split: str = "train", style: str = "varied"
) -> datasets.Dataset:
    """Load images with a question each for the server, none a client's: columns image, question, answer.

    They share no image with `load_public` either. `style` is one of `drawing.STYLES`.
    """
    require_one_of("benchmark", benchmark, ["scenes"])
    return scenes.load_public_questions(options, num_images, split, style)
