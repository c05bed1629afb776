"""The page that a run leaves: one file, nothing live of others in it, nothing asked of anybody."""

import html.parser
import re
import shlex
from collections import Counter

import pytest

from server_app.curves import BRANCHES, draw_branches
from server_app.page import RunShown, html_report
from server_app.rows import NONE_IN_COMMON

HOSTILE = '</td><script>alert(1)</script><img src=x onerror="alert(2)">$x$&'
SETTINGS = {"run-name": "first", "method": "feddat", "benchmark": "scenes", "num-rounds": 2, "seed": 7}


def row(server_round, partition, student, name="clean"):
    return {
        "round": server_round,
        "partition": partition,
        "name": name,
        "student": student,
        "local": student / 2,
        "teacher": student,
        "text-only": 0.25,
        "ce-student": 1.0,
        "delta-shared": 0.5,
    }


ROWS = [row(1, 0, 0.25), row(1, 1, 0.5, "sketch"), row(2, 0, 0.75), row(2, 1, 0.5, "sketch")]


class Page(html.parser.HTMLParser):
    """Collects elements with their attributes, ids, and the text of table cells."""

    VOID = {"meta", "link", "br", "img", "hr", "input"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.lines = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.lines[-1][-1] += data

    @property
    def ids(self):
        return Counter(attributes["id"] for _, attributes in self.elements if "id" in attributes)


def page_of(*runs):
    return Page(html_report(runs))


def test_the_table_is_that_of_the_report():
    lines = page_of(RunShown(SETTINGS, ROWS)).lines
    assert ["clean", "75.0", "37.5", "75.0", "25.0", "50.0"] in lines
    assert ["sketch", "50.0", "25.0", "50.0", "25.0", "25.0"] in lines
    assert ["mean", "62.5", "31.2", "62.5", "25.0", "37.5"] in lines


def test_what_others_say_is_text():
    rows = [{**one, "name": HOSTILE} for one in ROWS if one["partition"] == 0]
    settings = {**SETTINGS, "benchmark": HOSTILE}
    refused = Counter({(HOSTILE, "train", HOSTILE): 3})
    shown = RunShown(settings, rows, {"clients": HOSTILE}, refused, {HOSTILE: {0: 0.5}})
    page = page_of(shown)
    assert {"script", "img", "iframe", "object", "link", "a"}.isdisjoint(tag for tag, _ in page.elements)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert ["3", HOSTILE, "train", HOSTILE] in page.lines
    assert sum(HOSTILE in line for line in page.lines) >= 4


def test_nothing_is_asked_of_anybody():
    text = html_report([RunShown(SETTINGS, ROWS)])
    page = Page(text)
    policy = [value["content"] for tag, value in page.elements if "http-equiv" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert attributes.get(name, "#").startswith("#"), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", text)


def test_it_is_for_keyboards_and_screen_readers_too():
    page = page_of(RunShown(SETTINGS, ROWS, {"time": "1 minute"}))
    assert dict(page.elements)["html"] == {"lang": "en"}
    for tag, attributes in page.elements:
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
        if tag == "svg":
            assert attributes["aria-label"]
        if attributes.get("class") == "wide":  # what scrolls can be reached without a mouse
            assert (attributes["tabindex"], attributes["role"]) == ("0", "region")
            assert attributes["aria-label"]
    assert set(page.ids.values()) == {1}


def test_runs_stand_side_by_side_with_what_differs():
    other = {**SETTINGS, "run-name": "second", "learning-rate": 0.1, "run-token": "b"}
    rows = [row(2, 1, 1.0, "sketch"), row(2, 2, 0.25, "noisy")]
    page = page_of(RunShown({**SETTINGS, "learning-rate": 0.2}, ROWS), RunShown(other, rows))
    assert page.lines[:5] == [
        ["client", "first", "second"],
        ["clean", "75.0", "–"],
        ["sketch", "50.0", "100.0"],
        ["noisy", "–", "25.0"],
        ["mean", "62.5", "62.5"],
    ]
    assert page.lines[5:7] == [["setting", "first", "second"], ["learning-rate", "0.2", "0.1"]]
    assert set(page.ids.values()) == {1}


def test_runs_without_a_client_in_common_are_not_matched_by_number():
    page = page_of(RunShown(SETTINGS, ROWS), RunShown(SETTINGS, [row(2, 0, 1.0, "anna")]))
    assert page.lines[1:5] == [
        ["clean", "75.0", "–"],
        ["sketch", "50.0", "–"],
        ["anna", "–", "100.0"],
        ["mean", "62.5", "100.0"],
    ]
    assert NONE_IN_COMMON in html_report(
        [RunShown(SETTINGS, ROWS), RunShown(SETTINGS, [row(2, 0, 1.0, "a")])]
    )


def test_it_says_how_to_repeat_the_run_and_not_its_token(run_config):
    settings = {**run_config(), "learning-rate": 0.5, "dp.mode": "none", "run-token": "secret"}
    text = html_report([RunShown(settings, ROWS)])
    assert "secret" not in text
    command = re.search(r"<pre>(.*?)</pre>", text)[1]
    assert command.startswith("feddat run ")
    assert " learning-rate=0.5" in command
    assert "dp.mode" not in command


def test_a_shell_reads_that_command_as_it_is_meant(run_config):
    prompt = "isn't it {} & $HOME"
    run = RunShown({**run_config(), "answer-prompt": prompt, "data-dir": "/a;b"}, ROWS)
    assert {f"answer-prompt={prompt}", "data-dir=/a;b"} <= {*shlex.split(run.command)}


def test_a_setting_that_the_first_run_has_not_differs_too():
    page = page_of(RunShown({"run-name": "old"}, ROWS), RunShown({"evaluate-on": "validation"}, ROWS))
    assert ["evaluate-on", "–", "validation"] in page.lines


@pytest.mark.parametrize("rows", [[], [{"round": 1, "partition": -1, "student": 0.5, "many": 0.25}]])
def test_a_run_without_scores_of_clients_has_a_page(rows):
    assert page_of(RunShown(SETTINGS, rows)).lines


def luminance(color):
    """Return the relative luminance of WCAG 2.2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_line_stands_out_from_light_and_dark_paper():
    """WCAG 2.2, 1.4.11: at least 3 to 1; but for the grid, which is drawn through."""
    rows = [{**one, "mixed": 0.4, "ce-teacher": 0.5, "delta-local": 0.1} for one in ROWS]
    text = html_report([RunShown(SETTINGS, rows)])
    drawn = {
        color
        for style in re.findall(r'style="([^"]*)"', text)
        if "opacity" not in style
        for color in re.findall(r"(?:stroke|fill): (#[0-9a-f]{6})", style)
    }
    assert {style["color"] for style in BRANCHES.values()} <= drawn
    papers = re.findall(r"--page: (#[0-9a-f]{6})", text)
    assert len(papers) == 2
    for color in drawn:
        for paper in papers:
            low, high = sorted(map(luminance, (color, paper)))
            assert (high + 0.05) / (low + 0.05) >= 3, (color, paper)


def test_of_many_clients_the_lowest_have_curves():
    rows = [row(1, index, 0.5 + index / 100, f"site {index}") for index in range(20)]
    text = html_report([RunShown(SETTINGS, rows)])
    titles = set(re.findall(r">(site \d+)</text>", text))
    assert titles == {f"site {index}" for index in range(12)}
    assert "the twelve lowest of 20" in text


def test_every_column_of_pictures_has_its_rounds_below():
    """Five pictures in three columns: the last column ends a line above the others."""
    rows = [{"round": 1, "partition": i, "name": f"c{i}", "student": 0.1 * i} for i in range(5)]
    shown = [axes for axes in draw_branches(rows).axes if axes.get_visible()]
    below = [axes.xaxis.get_tick_params()["labelbottom"] for axes in shown]
    assert below == [False, False, True, True, True]
