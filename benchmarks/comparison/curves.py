"""The figures of a study's page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import color_sequences
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .found import Found
from .plan import CONTROLS, Budget
from .statistics import Scores

# Some colours of the two are alike.
PALETTE = [
    *({"color": colour, "marker": "o"} for colour in color_sequences["petroff10"]),
    *({"color": colour, "marker": "s"} for colour in color_sequences["Dark2"]),
]
OTHERS = {"color": "0.5", "marker": "o"}
AXES = {
    "round": ("round", 1.0),
    "bytes": ("MB sent, all clients, both ways", 1e-6),
    "flops": ("TFLOP", 1e-12),
}


def draw(found: Found, benchmark: str, budget: Budget) -> Figure:
    """Draw mean scores over rounds, bytes and FLOPs: solid the student, dashed a client's own branch."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    looks = _looks(found)
    for axes, (key, (label, scale)) in zip(panels, AXES.items(), strict=True):
        for method in found.methods(benchmark, budget):
            _draw_method(axes, found, (benchmark, method, budget), key, scale, looks.get(method, OTHERS))
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=key == "round"))
    return _finished(figure, list(panels))


def draw_over(found: Found, budget: Budget) -> Figure:
    """Draw the last scores over the plan's `over`, a panel a data set: mean, and deviation over seeds."""
    plan, looks = found.plan, _looks(found)
    sets: dict[str, list[tuple[float, str]]] = {}
    for name, arena in plan.benchmarks.items():
        if arena.at is not None and found.methods(name, budget):
            sets.setdefault(plan.data_of(name), []).append((arena.at, name))
    figure = Figure(figsize=(6.5 * len(sets), 4.6), layout="constrained")
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    for axes, (data, places) in zip(panels, sets.items(), strict=True):
        for method in plan.methods:
            for what, style, label in _branches(method):
                scores = {at: found.scores(name, method, budget, what) for at, name in sorted(places)}
                _draw_deviations(axes, scores, linestyle=style, label=label, **looks.get(method, OTHERS))
        for control, style in zip(CONTROLS, (":", "-."), strict=True):
            given = {at: found.control(name, control) for at, name in sorted(places)}
            _draw_deviations(axes, given, linestyle=style, label=control, **OTHERS)
        axes.set_title(data)
        axes.set_xlabel(plan.over)
        axes.set_xscale("log")
        axes.set_xticks([at for at, _ in sorted(places)], [f"{at:g}" for at, _ in sorted(places)])
        axes.minorticks_off()
    return _finished(figure, list(panels))


def _looks(found: Found) -> dict[str, dict[str, Any]]:
    return dict(zip(found.plan.methods, PALETTE, strict=False))


def _branches(method: str) -> tuple[tuple[str, str, str], ...]:
    return (("student", "-", method), ("personal", "--", f"{method}, own"))


def _draw_deviations(axes: Axes, scores: Mapping[float, Scores], **style: Any) -> None:
    points = []
    for at, found in scores.items():
        seeds = {seed for seed, _ in found}
        means = [np.mean([value for (of, _), value in found.items() if of == seed]) for seed in seeds]
        if means:
            points.append((at, np.mean(means), np.std(means, ddof=1) if len(means) > 1 else 0.0))
    if points:
        x, y, deviation = zip(*points, strict=True)
        axes.errorbar(x, y, deviation, markersize=3, capsize=2, elinewidth=0.7, **style)


def _finished(figure: Figure, panels: Sequence[Axes]) -> Figure:
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("score, mean of clients and seeds (points)")
    shown: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
    figure.legend(
        list(shown.values()),
        list(shown),
        loc="outside lower center",
        ncols=min(6, 3 * len(panels)),
        frameon=False,
    )
    return figure


def _draw_method(
    axes: Axes, found: Found, cell: tuple[str, str, Budget], key: str, scale: float, look: Mapping[str, Any]
) -> None:
    curves, method = [line["curve"] for line in found.of(*cell)], cell[1]
    for what, style, label in _branches(method):
        branch = found.branch(method, what)
        points = [point for curve in curves for point in curve if branch in point]
        rounds = sorted({point["round"] for point in points})
        if not rounds:
            continue
        x, y = (
            [np.mean([point[of] for point in points if point["round"] == now]) for now in rounds]
            for of in (key, branch)
        )
        axes.plot(scale * np.array(x), 100 * np.array(y), linestyle=style, label=label, markersize=3, **look)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG; the same one gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "feddat", "svg.fonttype": "path"}):
        figure.savefig(path, metadata={"Date": None})
