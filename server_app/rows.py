"""Views of a run's rows.

A *row* is one round and client as it stands in ``metrics.jsonl``; any of its measurements may be missing. A
row with ``refused`` records a reply that did not count.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def names_of(rows: Rows) -> dict[int, str]:
    """Return the names of all partitions, in their order."""
    named = {row["partition"]: row["name"] for row in rows if row.get("name")}
    partitions = sorted({row["partition"] for row in rows if row["partition"] >= 0})
    return {partition: named.get(partition, f"partition {partition}") for partition in partitions}


def last_round(rows: Rows) -> int:
    """Return the number of the last round in the rows."""
    return max((row["round"] for row in rows), default=0)


def by_round(rows: Rows, key: str) -> dict[int, list[float]]:
    """Return the values of a measurement for each round in which there are any."""
    values: dict[int, list[float]] = {}
    for row in rows:
        if key in row:
            values.setdefault(row["round"], []).append(row[key])
    return values


def best_round(rows: Rows, until: int) -> int | None:
    """Return the round up to `until` with the best mean student score, the first of equals."""
    means = {r: fmean(scores) for r, scores in by_round(rows, "student").items() if r <= until}
    return max((r for r, mean in means.items() if isfinite(mean)), key=means.__getitem__, default=None)
