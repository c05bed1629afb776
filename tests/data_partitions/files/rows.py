"""Rows to write, and rows that were read."""

from dataclasses import replace

from data_partitions.benchmarks import load_partition
from tests.data_partitions.given_files import write

USER, ASSISTANT = "user", "assistant"


def load(options, index=0, count=1, **changes):
    return load_partition("files", index, count, replace(options, **changes))


def rows_of(split):
    return split.with_format("arrow")[:].to_pylist()


def all_rows(partition):
    return [
        row for split in (partition.train, partition.validation, partition.test) for row in rows_of(split)
    ]


def of_all(folder, rows, kind):
    """Make what is read of rows for training."""
    return write(folder / "site" / f"train{kind}", rows)


def turn(role, content):
    return {"role": role, "content": content}
