"""Pictures of a run: scores, losses and the adapters' changes over its rounds."""

import io
import re
from collections.abc import Sequence
from math import ceil, inf
from typing import Any

import numpy as np
from matplotlib import color_sequences, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from .rows import ALL, GROUPS, Rows, by_round, central, last_round, last_scores, names_of

# Colours that colour-blind readers tell apart (Petroff, 2021, arXiv 2107.02270).
PALETTE = color_sequences["petroff10"]
Style = dict[str, Any]
# A branch keeps its colour: of those that such readers tell apart (Okabe and Ito, "Color Universal Design",
# 2008), the four that stand out from light and from dark paper.
STUDENT: Style = {"color": "#0072b2"}
TEACHER: Style = {"color": "#d55e00"}
LOCAL: Style = {"color": "#009e73"}
MIXED: Style = {"color": "#cc79a7"}
LOSSES = {
    "ce-student": ("cross-entropy, student", STUDENT),
    "kl-student": ("KL, student", STUDENT | {"linestyle": "--"}),
    "ce-teacher": ("cross-entropy, teacher", TEACHER),
    "kl-teacher": ("KL, teacher", TEACHER | {"linestyle": "--"}),
}
CHANGES = {
    "delta-shared": (r"$|\Delta A_s|$, shared", STUDENT),
    "delta-local": (r"$|\Delta A_c|$, local", LOCAL),
}
BRANCHES: dict[str, Style] = {"student": STUDENT, "local": LOCAL, "mixed": MIXED, "teacher": TEACHER}
# Becomes the colour of the text around a picture, which may be light or dark.
INK = "#010203"
MOST_CLIENTS = 12
# Up to which ratio of the ends of a logarithmic axis → what has a label in each decade.
_SUBS = {30.0: (1, 2, 3, 5, 7), 1000.0: (1, 3), inf: (1,)}


def draw_curves(rows: Rows) -> Figure:
    """Draw scores, losses and the adapters' changes over the rounds."""
    figure = Figure(figsize=(14, 5), dpi=120, layout="constrained")
    scores, losses, changes = figure.subplots(1, 3, sharex=True)
    _draw_scores(scores, rows)
    _draw_training(losses, changes, rows)
    scores.set_xlim(*_rounds(rows))
    _finish([scores, losses, changes])
    return figure


def draw_training(rows: Rows) -> Figure:
    """Draw losses and the adapters' changes over the rounds."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    losses, changes = figure.subplots(1, 2, sharex=True)
    _draw_training(losses, changes, rows)
    losses.set_xlim(0.5, last_round(rows) + 0.5)
    _finish([losses, changes])
    return figure


def draw_branches(rows: Rows) -> Figure | None:
    """Draw the branches' scores over the rounds, one plot per client, the lowest last score first.

    Of many clients the lowest `MOST_CLIENTS`; None where clients have no scores.
    """
    names, last = names_of(rows), last_scores(rows)
    shown = sorted((partition for partition in last if partition in names), key=last.__getitem__)[
        :MOST_CLIENTS
    ]
    if not shown:
        return None
    columns = min(3, len(shown))
    lines = ceil(len(shown) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * lines + 0.4), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, partition in zip(grid, shown, strict=False):
        own = [row for row in rows if row["partition"] == partition]
        for branch, style in BRANCHES.items():
            _draw_mean(axes, own, branch, scale=100, label=branch, **style)
        if baseline := [100 * row["text-only"] for row in own if "text-only" in row]:
            axes.axhline(baseline[-1], color="0.55", linestyle="--", label="text only")
        axes.set_title(_literally(names[partition]), fontsize="medium")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[: len(shown)][-columns:]:  # also where a column ends above one that is empty
        axes.tick_params(labelbottom=True)
    grid[0].set_xlim(*_rounds(rows))
    figure.supxlabel("round")
    figure.supylabel("score (points)")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def as_svg(figure: Figure, name: str, label: str) -> str:
    """Return a picture for a page: text as text, lines of axes in the colour around it, ids of its own.

    `name` tells its ids from those of others on the page; `label` is for who does not see it.
    """
    for axes in figure.axes:
        axes.set_facecolor("none")
    figure.set_facecolor("none")
    for artist in figure.findobj(lambda one: getattr(one, "get_color", str)() in ("black", "k")):
        artist.set(color=INK)
    for axes in figure.axes:
        for spine in axes.spines.values():
            spine.set_color(INK)
        axes.tick_params(which="both", color=INK, labelcolor=INK)
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"[^A-Za-z0-9-]", "-", name)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _draw_training(losses: Axes, changes: Axes, rows: Rows) -> None:
    for key, (label, style) in LOSSES.items():
        _draw_mean(losses, rows, key, label=label, **style)
    losses.set(title="training loss, mean of the clients", ylabel="loss (nats)", yscale="log")
    bottom, top = losses.get_ylim()
    # Labels of many decades have no room for more between them.
    subs = next(subs for most, subs in _SUBS.items() if top <= most * bottom)
    losses.yaxis.set_major_locator(LogLocator(subs=subs))
    losses.yaxis.set_major_formatter("{x:g}")
    losses.yaxis.set_minor_locator(NullLocator())

    for key, (label, style) in CHANGES.items():
        _draw_mean(changes, rows, key, label=label, **style)
        values = by_round(rows, key)
        low, high = ([f(of_round) for of_round in values.values()] for f in (np.min, np.max))
        changes.fill_between(list(values), low, high, alpha=0.15, linewidth=0, **style)
    changes.set(title="change of the adapters in a round", ylabel="L2 norm, mean and range of the clients")
    changes.set_ylim(bottom=0)


def _finish(all_axes: Sequence[Axes]) -> None:
    for axes in all_axes:
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        # Below the axes a legend hides nothing.
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def _literally(name: str) -> str:
    """Return a name of others' that is not typeset: a pair of $ would be mathematics."""
    return name.replace("$", r"\$")


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
            style = {"color": PALETTE[i], "label": _literally(name)}
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


def _rounds(rows: Rows) -> tuple[float, float]:
    """Return where the axis of rounds begins and ends; round 0 is there if something was measured in it."""
    return (0.5 - any(row["round"] == 0 for row in rows)), last_round(rows) + 0.5


def _draw_mean(axes: Axes, rows: Rows, key: str, scale: float = 1, **style: Any) -> None:
    if values := by_round(rows, key):
        means = [scale * np.mean(of_round) for of_round in values.values()]
        axes.plot(list(values), means, **{"linewidth": 2, "marker": "o", "markersize": 3, **style})
