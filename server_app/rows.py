"""Views of a run's rows.

A *row* is one round and client as it stands in ``metrics.jsonl``; any of its measurements may be missing. A
row with ``refused`` records a reply that did not count. Where the server evaluates, its own row of the round
has the accuracy over all classes as ``student``, and those of the groups of classes by their names.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite, isnan, nan
from statistics import median
from typing import Any

Rows = Sequence[Mapping[str, Any]]

# What only the server writes into a row.
RESERVED = ("round", "partition", "phase", "refused")
# How many an evaluation counted; a row's `num-examples` are those trained on.
TEST_EXAMPLES = "test-examples"
# Partition in the rows of the server, and in those of replies that nobody was asked for.
SERVER = -1
# Of classes, by how many training examples they have.
GROUPS = {"many": "many-shot classes", "medium": "medium-shot classes", "few": "few-shot classes"}
ALL = "all classes"
# Branches of the model, the one that is deployed first.
BRANCHES = ("student", "local", "mixed", "teacher")


def central(rows: Rows) -> list[Mapping[str, Any]]:
    """Return the rows of the server's own evaluations."""
    return [row for row in rows if row["partition"] == SERVER and "student" in row]


def untrained(rows: Rows) -> dict[int, float]:
    """Return by partition what clients scored before the first round, where that was measured."""
    return last_scores([row for row in rows if row["round"] == 0])


def is_scored(row: Mapping[str, Any]) -> bool:
    """Whether a row has the score of any branch."""
    return any(branch in row for branch in BRANCHES)


def last_scores(rows: Rows, branch: str = "") -> dict[int, float]:
    """Return each client's last score by partition: of a branch, or of the first that there is."""
    return {
        row["partition"]: next(row[one] for one in (branch, *BRANCHES) if one in row)
        for row in rows
        if is_scored(row)
    }


def names_of(rows: Rows) -> dict[int, str]:
    """Return the names of all partitions, in their order."""
    named = {row["partition"]: row["name"] for row in rows if row.get("name")}
    partitions = sorted({row["partition"] for row in rows if row["partition"] >= 0})
    return {partition: named.get(partition, f"partition {partition}") for partition in partitions}


def side_by_side(runs: Sequence[Rows]) -> dict[str, list[float]]:
    """Return the last score of each client in each of several runs, by its name; NaN where a run has none.

    Partitions of unlike runs are other clients. Where a run has two of one name, they are told apart by them.
    """
    found: dict[str, list[float]] = {}
    for index, rows in enumerate(runs):
        scores = last_scores(rows)
        names = names_of(rows) | ({SERVER: ALL} if SERVER in scores else {})
        often = Counter(names.values())
        for partition, name in sorted(names.items()):
            if partition in scores:
                one = f"{name} ({partition})" if often[name] > 1 else name
                found.setdefault(one, [nan] * len(runs))[index] = scores[partition]
    return found


NONE_IN_COMMON = "No client is in all of these runs: their means are of different questions."


def have_none_in_common(scores: Mapping[str, Sequence[float]]) -> bool:
    """Whether no client has a score in all runs, of what `side_by_side` gives."""
    return bool(scores) and all(any(map(isnan, each)) for each in scores.values())


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


def median_scores(rows: Rows) -> dict[int, float]:
    """Return the median student score of each round that has one."""
    known = [row for row in rows if isfinite(row.get("student", nan))]
    return {server_round: median(scores) for server_round, scores in by_round(known, "student").items()}


def best_round(rows: Rows, until: int) -> int | None:
    """Return the round up to `until` with the best median student score, the first of equals.

    Round 0 is none: what was not trained is no result.
    """
    return best_of(median_scores(rows), until)


def best_of(medians: Mapping[int, float], until: int) -> int | None:
    """Return the same of the rounds' medians.

    A score is a client's own word: of a mean, one client would choose the round.
    """
    return max((r for r in medians if 0 < r <= until), key=medians.__getitem__, default=None)
