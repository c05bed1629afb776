"""What a run scored, as the log's table, the report and the model card show it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf, isnan
from types import MappingProxyType
from typing import Any

import numpy as np

from strategies import one_line

from .comparison import FROM_STUDY, HEADINGS
from .rows import ALL, GROUPS, Rows, central, is_scored, names_of, untrained

Beside = Mapping[str, Mapping[int, float]]

SCORES = {
    "student": "student\n(A_s, deployed)",
    "local": "local\n(A_c)",
    "teacher": "teacher\n(DAT)",
    "mixed": "mixed\n(A_s and A_c)",
    "text-only": "text\nonly",
}
GAIN = "gain\n(student − text only)"
UNTRAINED = "before\ntraining"


# Heads in one word, and what each then leaves unsaid; in one line, as a report has them.
_SHORT = {
    "text only": ("text", "the question without the picture"),
    " ".join(HEADINGS["adapter"].split()): ("FedAvg", "one adapter, averaged"),
    " ".join(HEADINGS["local"].split()): ("alone", "each client by itself"),
    " ".join(GAIN.split()): ("gain", "student − text"),
    " ".join(UNTRAINED.split()): ("before", "the backbone before training"),
}


def in_short(header: Sequence[str]) -> tuple[list[str], str]:
    """Return a table's heads in one word each, and a legend to those that need one."""
    heads, legend = [], []
    for heading in header:
        line = " ".join(heading.split())
        bare = line.removesuffix(FROM_STUDY)
        head, means = _SHORT.get(bare, (line.split(" (")[0], ""))
        heads.append(head + line.removeprefix(bare) if means else head)
        legend += [f"{head}: {means}"] * bool(means)
    return heads, "; ".join(legend)


def scores(
    rows: Rows, beside: Beside = MappingProxyType({}), most: int | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return the table's header and its lines: each client's last scores, then the columns' mean and worst.

    A NaN stays one, in the mean and as the worst. Clients without a score do not count in them. Where the
    server evaluates, a line for each group of classes instead, then all classes.

    Parameters
    ----------
    rows : sequence of dict
        The run's rows.
    beside : Mapping, optional
        Scores of others to show beside its own, in [0, 1], by heading and partition.
    most : int, optional
        How many clients have a line: of more, those that are lowest in the first column. None: all.
    """
    if evaluated := central(rows):
        wanted = {**GROUPS, "student": ALL}
        lines = [
            [label, f"{100 * evaluated[-1][key]:.1f}"]
            for key, label in wanted.items()
            if key in evaluated[-1]
        ]
        return ["classes", "accuracy"], lines
    last = {row["partition"]: row for row in rows if is_scored(row)}
    final = max((row["round"] for row in last.values()), default=0)
    columns = {
        heading: {partition: 100 * row[key] for partition, row in last.items() if key in row}
        for key, heading in SCORES.items()
    }
    before = {UNTRAINED: untrained(rows)} if final else {}
    columns |= {
        heading: {partition: 100 * score for partition, score in own.items() if partition in last}
        for heading, own in (before | dict(beside)).items()
    }
    columns[GAIN] = {
        partition: 100 * (row["student"] - row["text-only"])
        for partition, row in last.items()
        if row.keys() >= {"student", "text-only"}
    }
    columns = {heading: values for heading, values in columns.items() if values}
    names, lines = names_of(rows), []
    first = next(iter(columns.values()), {})
    # A NaN is lower than all numbers, and those without a score come last.
    shown = sorted(
        sorted(names, key=lambda partition: -inf if isnan(s := first.get(partition, inf)) else s)[:most]
    )
    for partition in shown:
        name = names[partition]
        if partition in last and (scored := last[partition]["round"]) != final:
            name += f" (round {scored})"
        points = (values.get(partition) for values in columns.values())
        lines.append([name, *("–" if point is None else f"{point:.1f}" for point in points)])
    if more := len(names) - len(shown):
        lines.append([f"and {more} more", *("" for _ in columns)])
    for label, summary in (("mean", np.mean), ("worst", np.min)) if columns else ():
        lines.append([label, *(f"{summary(list(values.values())):.1f}" for values in columns.values())])
    return ["client", *columns], lines


def unscored(rows: Rows) -> str:
    """Say why there is no score at all; nothing if there is one."""
    if central(rows) or any(map(is_scored, rows)):
        return ""
    reasons = Counter(row["refused"] for row in rows if row.get("phase") == "evaluate")
    if not reasons:
        return "Scores were not measured: no client sent any."
    if all("has no test rows" in reason for reason in reasons):
        return (
            "Scores were not measured: no client has test questions. Those are rows whose `split` says test,"
            " files or folders named test, or some of the rows where there are more of them."
        )
    (reason, times), *_ = reasons.most_common()
    return f"Scores were not measured: evaluations were refused, {times} times because of: {one_line(reason)}"


def split_of(settings: Mapping[str, Any]) -> str:
    """Return which split of the clients' data a run was scored on."""
    return str(settings.get("evaluate-on", "test"))


def measured_on(settings: Mapping[str, Any], rows: Rows) -> str:
    """Say what the scores are of, before their table."""
    if central(rows):
        return (
            "Accuracy of the aggregated model on the benchmark's balanced test set, over the classes with "
            "many, with a medium number of and with few training examples, and over all, in points:"
        )
    return unscored(rows) or (
        f"Scores on each client's {split_of(settings)} split with its own head, in points:"
    )


def what_ran(settings: Mapping[str, Any], rows: Rows) -> str:
    """Say in a sentence what a run was."""
    method, strategy, benchmark = (
        f"`{settings.get(key, '?')}`" for key in ("method", "strategy", "benchmark")
    )
    rounds, seed = settings.get("num-rounds", "?"), settings.get("seed", "?")
    clients = len(names_of(rows))
    size = f"{clients} client{'s' * (clients != 1)}, {rounds} round{'s' * (rounds != 1)}, seed {seed}"
    return f"Method {method} under {strategy} on the benchmark {benchmark}: {size}."
