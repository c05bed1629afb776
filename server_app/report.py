"""What people read of a run: a line a round, the table of scores, the report."""

import io
from collections import Counter
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table
from safetensors import safe_open

from app.files import write_atomically
from app.methods import METHODS
from strategies.privacy import epsilon

from . import markdown
from .curves import draw_curves
from .rows import ALL, GROUPS, Rows, best_round, central, last_round, median_scores, names_of
from .scores import measured_on, scores, what_ran


def results_table(rows: Rows) -> Table:
    """Show each client's last scores in points, then the mean and the worst of each column.

    Where the server evaluates, show its last accuracies by groups of classes, then over all.
    """
    header, lines = scores(rows)
    table = Table(title="score on the test split, in points")
    for column in header:
        # In a narrow terminal names go on in the next line: what is cut off cannot be read.
        table.add_column(column, justify="left" if column == header[0] else "right", overflow="fold")
    summaries = 1 if central(rows) else 2
    for i, line in enumerate(lines, start=1):
        # The line above the summaries ends the section of clients or groups.
        table.add_row(*map(escape, line), end_section=i == len(lines) - summaries)
    return table


def progress_line(
    rows: Rows, server_round: int, num_rounds: int, seconds: float, rounds_before: int = 0
) -> str:
    """Say how a round went: scores if it was evaluated, else the mean loss.

    Parameters
    ----------
    rows : sequence of dict
        The run's rows so far.
    server_round, num_rounds : int
        The round that just ended, counted from 1, and how many there are.
    seconds : float
        How long the rounds from `rounds_before`, where the run was resumed, up to this one took.
    """
    names = names_of(rows)
    now = [row for row in rows if row["round"] == server_round]
    scored = [row for row in now if "student" in row]
    if evaluated := central(now):
        groups = (f", {100 * evaluated[0][key]:.1f} {key}" for key in GROUPS if key in evaluated[0])
        state = f"student {100 * evaluated[0]['student']:.1f} over {ALL}" + "".join(groups)
    elif scored:
        scores = [100 * row["student"] for row in scored]
        worst = int(np.argmin(scores))
        name = names[scored[worst]["partition"]]
        state = f"student {np.mean(scores):.1f} mean, {scores[worst]:.1f} worst ({name})"
    elif losses := [row["ce-student"] for row in now if "ce-student" in row]:
        state = f"student loss {np.mean(losses):.3f} mean"
    else:
        state = "nothing measured"
    if refused := sum("refused" in row for row in now):
        state += f"; {refused} refused"
    left = seconds / (server_round - rounds_before) * (num_rounds - server_round)
    time = f"{_clock(left)} left" if server_round < num_rounds else f"{_clock(seconds)} in all"
    return f"round {server_round}/{num_rounds}: {state}; {time}"


def write_report(folder: Path, settings: Mapping[str, Any], rows: Rows, seconds: float) -> None:
    """Write ``report.md`` and ``curves.png``.

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
    write_atomically(folder / "report.md", _report(folder, settings, rows, seconds))


def refusals(rows: Rows) -> Counter[tuple[str, str, str]]:
    """Count the replies that did not count, by client, phase and reason."""
    names = names_of(rows)
    return Counter(
        (names.get(row["partition"], "not asked"), row["phase"], row["refused"])
        for row in rows
        if "refused" in row
    )


def privacy_line(settings: Mapping[str, Any]) -> str:
    """Say what the run's differential privacy amounts to; nothing without any."""
    if (kind := settings["dp.mode"]) == "none":
        return ""
    # A round that was repeated after a stop may have been released twice.
    releases = settings["num-rounds"] + len(settings.get("resumed-after", []))
    delta, multiplier = settings["dp.delta"], settings["dp.noise-multiplier"]
    what = "whether the adapter has one client's changes"
    if kind == "local":
        multiplier = sqrt(2 * log(1.25 / delta)) / settings["dp.epsilon"]
        what = "what one client's data are"
    # Rounded up: it must not claim more than there is.
    spent = Context(prec=3, rounding=ROUND_CEILING).create_decimal_from_float(
        epsilon(multiplier, releases, delta)
    )
    return f"{kind}, ε = {float(spent):g} at δ = {delta:g} for {what}, over {releases} rounds"


def _report(folder: Path, settings: Mapping[str, Any], rows: Rows, seconds: float) -> str:
    full = METHODS[settings["method"]].artifact == "model"
    weights = folder / ("model/model.safetensors" if full else "adapter/adapter_model.safetensors")
    size = f", {_num_parameters(weights):,} parameters" if weights.is_file() else ""
    facts = {
        "rounds": f"{last_round(rows)} of {settings['num-rounds']}",
        "best round": _best(rows),
        "clients": ", ".join(names_of(rows).values()),
        "method": f"{settings['method']} under {settings['strategy']}, weighting {settings['weighting']}",
        "backbone": f"{settings['backbone']} ({settings['backbone-weights']} weights)",
        "adapter": ("none, all weights" if full else settings["adapter"]) + size,
        "sent": _traffic(rows),
        "clipped": _clipped(rows),
        "privacy": privacy_line(settings),
        "time": f"{seconds / 60:.1f} minutes",
    }
    if resumed := settings.get("resumed-after"):
        facts["time"] += f" since the run was resumed after round {resumed[-1]}"
    refused = refusals(rows)
    parts = [
        f"# {markdown.text(settings['run-name'])}",
        what_ran(settings, rows),
        measured_on(rows),
        markdown.table(*scores(rows), align="---:"),
        "![scores, losses and changes over the rounds](curves.png)",
        "\n".join(f"- **{key}**: {markdown.text(value)}" for key, value in facts.items() if value),
    ]
    if refused:
        lines = [[str(times), *reason] for reason, times in refused.most_common()]
        parts += ["Replies refused:", markdown.table(["times", "client", "phase", "reason"], lines)]
    every = markdown.table(["setting", "value"], [[key, str(value)] for key, value in settings.items()])
    parts.append(f"<details><summary>All settings</summary>\n\n{every}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _traffic(rows: Rows) -> str:
    ways = {way: [row[f"bytes-{way}"] for row in rows if f"bytes-{way}" in row] for way in ("down", "up")}
    mean = " and ".join(f"{np.mean(sent):,.0f} bytes {way}" for way, sent in ways.items() if sent)
    return mean and f"{mean} a client and round, evaluation included; {sum(map(sum, ways.values())):,} in all"


def _clipped(rows: Rows) -> str:
    """Say how much of what clients changed was averaged."""
    left = [row for row in rows if "clipped" in row]
    if not left:
        return ""
    mean, most = np.mean([row["clipped"] for row in left]), min(left, key=lambda row: row["clipped"])
    who = f"{names_of(rows)[most['partition']]} in round {most['round']}"
    return f"to {100 * mean:.0f} % of a change in the mean; the most, {who}, to {100 * most['clipped']:.2g} %"


def _best(rows: Rows) -> str:
    best = best_round(rows, last_round(rows))
    if best is None:
        return ""
    return f"{best}, median student {100 * median_scores(rows)[best]:.1f}, in adapter-best/"


def _num_parameters(weights: Path) -> int:
    with safe_open(weights, "np") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
