"""Benchmarks by name: the clients of each, and their data."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator

import datasets

from .baseline import text_only_baseline
from .benchmark import ONLY_FOR_SOME, Benchmark
from .options import DataOptions
from .partition import BalancedTest, Partition, require_one_of
from .vqa_domains import load_pool as load_pool_file

__all__ = [
    "BENCHMARKS",
    "BalancedTest",
    "Benchmark",
    "DataOptions",
    "Partition",
    "check_options",
    "load_partition",
    "load_pool",
    "load_public",
    "load_public_questions",
    "load_test",
    "num_simulated",
    "partition_names",
    "text_only_baseline",
]


def _found() -> Iterator[Benchmark]:
    """Yield what the files and folders beside this one make, by their names."""
    for info in pkgutil.iter_modules(sys.modules[__package__].__path__):
        module = importlib.import_module(f"{__package__}.{info.name}")
        yield from (value for value in vars(module).values() if isinstance(value, Benchmark))


BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _found()}


def partition_names(benchmark: str, options: DataOptions) -> list[str]:
    """Name the natural clients of a benchmark: with exactly so many, each has a domain of its own."""
    require_one_of("benchmark", benchmark, BENCHMARKS)
    return BENCHMARKS[benchmark].names(options)


def num_simulated(benchmark: str, options: DataOptions) -> int:
    """Return how many clients a simulation has that is not told: the natural ones, else the protocol's."""
    return len(partition_names(benchmark, options)) or BENCHMARKS[benchmark].usual_clients


def check_options(benchmark: str, options: DataOptions) -> None:
    """See whether a run's options are enough for a benchmark, and not too many.

    Raises
    ------
    ValueError
        One line with the key, the value and what is allowed.
    """
    require_one_of("benchmark", benchmark, BENCHMARKS)
    found, with_it = BENCHMARKS[benchmark], f"with benchmark = {benchmark!r}"
    for name in ONLY_FOR_SOME:
        if (value := getattr(options, name)) and name not in found.uses:
            others = " or ".join(repr(other) for other, one in BENCHMARKS.items() if name in one.uses)
            nothing = type(value)()
            raise ValueError(
                f"{name.replace('_', '-')} = {value!r} {with_it} has no effect; allowed: {nothing!r}, or "
                f"benchmark = {others}"
            )
    if options.hub_data and options.data_dir:
        raise ValueError(
            f"hub-data = {options.hub_data!r} with data-dir = {options.data_dir!r}; allowed: one of them"
        )
    if options.data_dir and not found.needs_folder:
        others = ", ".join(repr(other) for other, one in BENCHMARKS.items() if one.needs_folder)
        raise ValueError(
            f"data-dir = {options.data_dir!r} {with_it} has no effect; allowed: '', or benchmark = one of"
            f" {others}"
        )
    if found.needs_folder and not (options.data_dir or options.hub_data):
        hub = ", or hub-data" if "hub_data" in found.uses else ""
        raise ValueError(f"data-dir = '' {with_it}; allowed: the absolute path of a folder{hub}")


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
    require_one_of("evaluate-on", options.evaluate_on, ("test", "validation"))
    found = BENCHMARKS[benchmark].load(partition_id, num_partitions, options)
    return found.tested_on_validation() if options.evaluate_on == "validation" else found


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
        return load_pool_file(options)
    pool = BENCHMARKS[benchmark].pool
    if pool is None:
        raise ValueError(
            f"public.data = '' and the benchmark {benchmark!r} has no public examples of its own; "
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
    found = {name: one.test for name, one in BENCHMARKS.items() if one.test}
    require_one_of("benchmark", benchmark, found)
    return found[benchmark](options)


def load_public(
    benchmark: str, options: DataOptions, num_images: int, split: str = "train"
) -> datasets.Dataset:
    """Load captioned images for the server, which no client holds: columns image, captions, example_id.

    `split` is `train`, `validation` or `test`; no two share an image. Only `scenes` has public data.
    """
    found = {name: one.captions for name, one in BENCHMARKS.items() if one.captions}
    require_one_of("benchmark", benchmark, found)
    return found[benchmark](options, num_images, split)


def load_public_questions(
    benchmark: str, options: DataOptions, num_images: int, split: str = "train", style: str = "varied"
) -> datasets.Dataset:
    """Load images with a question each for the server, none a client's: columns image, question, answer.

    They share no image with `load_public` either. `style` is one of `scenes.drawing.STYLES`.
    """
    found = {name: one.questions for name, one in BENCHMARKS.items() if one.questions}
    require_one_of("benchmark", benchmark, found)
    return found[benchmark](options, num_images, split, style)
