"""Pictures of a run: scores, losses and the adapters' changes over its rounds."""

from typing import Any

import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from .rows import ALL, GROUPS, Rows, by_round, central, last_round, names_of

# A branch keeps its colour; colours that colour-blind readers tell apart (Petroff, 2021, arXiv 2107.02270).
PALETTE = color_sequences["petroff10"]
Style = dict[str, Any]
STUDENT: Style = {"color": PALETTE[0]}
TEACHER: Style = {"color": PALETTE[1]}
LOSSES = {
    "ce-student": ("cross-entropy, student", STUDENT),
    "kl-student": ("KL, student", STUDENT | {"linestyle": "--"}),
    "ce-teacher": ("cross-entropy, teacher", TEACHER),
    "kl-teacher": ("KL, teacher", TEACHER | {"linestyle": "--"}),
}
CHANGES = {
    "delta-shared": (r"$|\Delta A_s|$, shared", STUDENT),
    "delta-local": (r"$|\Delta A_c|$, local", TEACHER),
}


def draw_curves(rows: Rows) -> Figure:
    """Draw scores, losses and the adapters' changes over the rounds."""
    figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
    scores, losses, changes = figure.subplots(1, 3, sharex=True)
    _draw_scores(scores, rows)

    for key, (label, style) in LOSSES.items():
        _draw_mean(losses, rows, key, label=label, **style)
    losses.set(title="training loss, mean of the clients", ylabel="loss (nats)", yscale="log")
    losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_locator(NullLocator())

    for key, (label, style) in CHANGES.items():
        _draw_mean(changes, rows, key, label=label, **style)
        values = by_round(rows, key)
        low, high = ([f(of_round) for of_round in values.values()] for f in (np.min, np.max))
        changes.fill_between(list(values), low, high, alpha=0.15, linewidth=0, **style)
    changes.set(title="change of the adapters in a round", ylabel="L2 norm, mean and range of the clients")
    changes.set_ylim(bottom=0)

    scores.set_xlim(0.5, last_round(rows) + 0.5)
    for axes in (scores, losses, changes):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        # Below the axes a legend hides nothing.
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    return figure


def _draw_scores(axes: Axes, rows: Rows) -> None:
    """Draw a thin line a client, named as long as there are colours to tell them apart, and the bold mean.

    Where the server evaluates, a line a group of classes instead.
    """
    evaluated = central(rows)
    names = {} if evaluated else names_of(rows)
    for i, (partition, name) in enumerate(names.items()):
        own = [row for row in rows if row["partition"] == partition and "student" in row]
        style: Style
        if len(names) <= len(PALETTE):
            # A pair of $ would be typeset as mathematics.
            style = {"color": PALETTE[i], "label": name.replace("$", r"\$")}
        else:
            style = {"color": "0.7", "label": "" if i else "one client"}
        points = [100 * row["student"] for row in own]
        axes.plot([row["round"] for row in own], points, marker="o", markersize=3, linewidth=1, **style)
    for i, (key, label) in enumerate(GROUPS.items()):
        _draw_mean(axes, evaluated, key, scale=100, color=PALETTE[i], label=label)
    label = ALL if evaluated else "mean"
    _draw_mean(axes, rows, "student", scale=100, color="black", linewidth=3, label=label)
    if baselines := {row["partition"]: 100 * row["text-only"] for row in rows if "text-only" in row}:
        mean = np.mean(list(baselines.values()))
        axes.axhline(mean, color="black", linestyle="--", label="text only, mean")
    axes.set(title="score of the student branch", ylabel="score (points)")


def _draw_mean(axes: Axes, rows: Rows, key: str, scale: float = 1, **style: Any) -> None:
    if values := by_round(rows, key):
        means = [scale * np.mean(of_round) for of_round in values.values()]
        axes.plot(list(values), means, **{"linewidth": 2, "marker": "o", "markersize": 3, **style})
