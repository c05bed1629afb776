"""Curves: what is drawn, by hand."""

import numpy as np
import pytest

from benchmarks.comparison.curves import draw_over
from benchmarks.comparison.found import Found
from benchmarks.comparison.page import write_page

from .test_page import PLAN, line

ARENAS = {
    "few": {"clients": 5, "at": 50, "settings": {"benchmark": "scenes"}},
    "many": {"clients": 5, "at": 600, "settings": {"benchmark": "scenes"}},
    "real": {"clients": 5, "at": 50, "settings": {"benchmark": "vqa-domains"}},
}
OVER = PLAN.model_validate({**PLAN.model_dump(), "over": "questions", "benchmarks": ARENAS})


def at(benchmark, *given, **others):
    """Return a line of a benchmark."""
    return {**line(*given, **others), "cell": f"{benchmark} | {given[0]} | steps"}


LINES = [
    at("many", "feddat", 0, 0.6, teacher=0.7),
    at("few", "feddat", 0, 0.50, teacher=0.60, **{"text-only": 0.3}),
    at("few", "feddat", 1, 0.54, teacher=0.60),
    at("real", "adapter", 0, 0.25),
]


def drawn(axes):
    """Return what a panel shows: label → x, y and the ends of the bars."""
    shown = {}
    for container in axes.containers:
        middle, _, (bars,) = container
        shown[container.get_label()] = (
            list(middle.get_xdata()),
            list(middle.get_ydata()),
            [list(segment[:, 1]) for segment in bars.get_segments()],
        )
    return shown


def test_scores_over_what_benchmarks_differ_in_by_hand():
    figure = draw_over(Found(OVER, LINES), "steps")
    scenes, real = figure.axes
    # What stands in the second panel alone too.
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        "feddat",
        "feddat, own",
        "question alone",
        "adapter",
    }
    assert [axes.get_title() for axes in (scenes, real)] == ["scenes", "vqa-domains"]
    assert scenes.get_xlabel() == "questions"
    assert list(scenes.get_xticks()) == [50, 600]
    shown = drawn(scenes)
    assert shown.keys() == {"feddat", "feddat, own", "question alone"}
    x, y, bars = shown["feddat"]
    # 50 and 54 points: a deviation of √8; one seed has none.
    assert (x, y) == ([50, 600], pytest.approx([52, 60]))
    assert np.array(bars) == pytest.approx(np.array([[52 - 8**0.5, 52 + 8**0.5], [60, 60]]))
    assert shown["feddat, own"][1] == pytest.approx([60, 70])
    assert shown["question alone"][:2] == ([50], pytest.approx([30]))
    assert drawn(real).keys() == {"adapter"}


def test_a_page_shows_them_above_its_tables_where_something_was_found(tmp_path):
    page = tmp_path / "page.md"
    write_page(page, OVER, LINES)
    assert "![scores over questions, steps](page-over-steps.svg)" in page.read_text()
    assert (tmp_path / "page-over-steps.svg").read_bytes().startswith(b"<?xml")
    assert "bars are the standard deviation over these seeds" in page.read_text()
    # Nothing is beside the reference within that budget.
    assert "page-over-flops" not in page.read_text()
    for too_few in ([], LINES[:1]):
        write_page(page, OVER, too_few)
        assert "page-over" not in page.read_text()
    write_page(page, PLAN, [line("feddat", 0, 0.5, teacher=0.6)])
    assert "page-over" not in page.read_text()
