"""What people read of a run: a line a round, the table of scores, the report."""

import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from app.files import write_atomically

from . import markdown
from .comparison import note_on, runs_beside
from .curves import draw_curves
from .facts import facts_of, refusals
from .page import RunShown, html_report
from .rows import ALL, BRANCHES, GROUPS, Rows, central, names_of
from .scores import Beside, in_short, measured_on, scores, split_of, unscored, what_ran
from .verdict import verdict

_LINES = 20  # of clients, on a screen
_NARROWEST = 3


def results_table(
    rows: Rows, beside: Beside = MappingProxyType({}), narrow: int = 0, split: str = "test"
) -> Table:
    """Show each client's last scores in points, then the mean and the worst of each column.

    Of many clients the lowest 20 have a line. Where the server evaluates, show its last accuracies by groups
    of classes, then over all. `beside` is as in `scores`. A `narrow` table has heads of one word, explained
    below it; from 2 on no lines between its columns; and from 3 on clients' names in lines that end with a
    hyphen. `split` is what the scores are of.
    """
    header, lines = scores(rows, beside, most=_LINES)
    table = Table(title=f"score on the {split} split, in points")
    if narrow:
        header, legend = in_short(header)
        table.caption, table.caption_justify = legend, "left"
    if narrow > 1:
        table.box, table.padding, table.show_edge = SIMPLE, 0, False
    if narrow > 2:
        lines = [[line[0].replace("-", "-\n"), *line[1:]] for line in lines]
    for column in header:
        # In a narrow terminal names go on in the next line: what is cut off cannot be read.
        table.add_column(column, justify="left" if column == header[0] else "right", overflow="fold")
    summaries = 1 if central(rows) else 2
    for i, line in enumerate(lines, start=1):
        # The line above the summaries ends the section of clients or groups.
        table.add_row(*map(escape, line), end_section=i == len(lines) - summaries)
    return table


def show_result(console: Console, folder: Path, settings: Mapping[str, Any], rows: Rows) -> None:
    """Print the table of scores, with those of the runs beside it, and what it says."""
    if why := unscored(rows):
        _say(console, why)
        return
    beside = runs_beside(folder, settings, rows)
    console.print(_fitting(console, rows, beside, split_of(settings)))
    for sentence in (*verdict(rows), *note_on(beside)):
        _say(console, sentence)


def _say(console: Console, sentence: str) -> None:
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _fitting(console: Console, rows: Rows, beside: Beside, split: str) -> Table:
    """Return the widest table of results that fits."""
    for narrow in range(_NARROWEST):
        table = results_table(rows, beside, narrow, split)
        measured = Measurement.get(console, console.options.update(width=10_000), table)
        if measured.maximum <= console.width:
            return table
    return results_table(rows, beside, _NARROWEST, split)


def progress_line(
    rows: Rows, server_round: int, num_rounds: int, seconds: float, rounds_before: int = 0
) -> str:
    """Say how a round went: scores if it was evaluated, else the mean loss.

    Parameters
    ----------
    rows : sequence of dict
        The run's rows so far.
    server_round, num_rounds : int
        The round that just ended, counted from 1, and how many there are; 0 is what was before any training.
    seconds : float
        How long the rounds from `rounds_before`, where the run was resumed, up to this one took.
    """
    names = names_of(rows)
    now = [row for row in rows if row["round"] == server_round]
    branch = next((one for one in BRANCHES if any(one in row for row in now)), "student")
    scored = [row for row in now if branch in row]
    trained = next((one for one in BRANCHES if any(f"ce-{one}" in row for row in now)), "")
    if evaluated := central(now):
        groups = (f", {100 * evaluated[0][key]:.1f} {key}" for key in GROUPS if key in evaluated[0])
        state = f"student {100 * evaluated[0]['student']:.1f} over {ALL}" + "".join(groups)
    elif scored:
        scores = [100 * row[branch] for row in scored]
        worst = int(np.argmin(scores))
        name = names[scored[worst]["partition"]]
        state = f"{branch} {np.mean(scores):.1f} mean, {scores[worst]:.1f} worst ({name})"
    elif losses := [row[f"ce-{trained}"] for row in now if f"ce-{trained}" in row]:
        state = f"{trained} loss {np.mean(losses):.3f} mean"
    else:
        state = "nothing measured"
    if refused := sum("refused" in row for row in now):
        state += f"; {refused} refused"
    if not server_round:
        return f"before training: {state}"
    left = seconds / (server_round - rounds_before) * (num_rounds - server_round)
    time = f"{clock(left)} left" if server_round < num_rounds else f"{clock(seconds)} in all"
    return f"round {server_round}/{num_rounds}: {state}; {time}"


def write_report(folder: Path, settings: Mapping[str, Any], rows: Rows, seconds: float) -> None:
    """Write ``report.html``, ``curves.png`` and, last, ``report.md``.

    Parameters
    ----------
    folder : Path
        The run's folder. If the result has been exported to it, the report tells its size.
    settings : Mapping
        The run's settings, keys as in the run-config.
    rows : sequence of dict
        All rows of the run.
    seconds : float
        How long it took.
    """
    picture = io.BytesIO()
    draw_curves(rows).savefig(picture, format="png")
    write_atomically(folder / "curves.png", picture.getvalue())
    facts = facts_of(folder, settings, rows, seconds)
    beside = runs_beside(folder, settings, rows)
    page = RunShown(settings, rows, facts, refusals(rows), beside)
    write_atomically(folder / "report.html", html_report([page]))
    write_atomically(folder / "report.md", _report(settings, rows, facts, beside))


def _report(settings: Mapping[str, Any], rows: Rows, facts: Mapping[str, str], beside: Beside) -> str:
    refused = refusals(rows)
    parts = [
        f"# {markdown.text(settings['run-name'])}",
        what_ran(settings, rows),
        measured_on(settings, rows),
        "" if unscored(rows) else markdown.table(*scores(rows, beside), align="---:"),
        " ".join(verdict(rows, markdown.text)),
        " ".join(note_on(beside)).replace("*", r"\*"),
        "![scores, losses and changes over the rounds](curves.png)",
        "\n".join(f"- **{key}**: {markdown.text(value)}" for key, value in facts.items()),
    ]
    if refused:
        lines = [[str(times), *reason] for reason, times in refused.most_common()]
        parts += ["Replies refused:", markdown.table(["times", "client", "phase", "reason"], lines)]
    every = markdown.table(["setting", "value"], [[key, str(value)] for key, value in settings.items()])
    parts.append(f"<details><summary>All settings</summary>\n\n{every}\n\n</details>")
    return "\n\n".join(part for part in parts if part) + "\n"


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds, hours only where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
