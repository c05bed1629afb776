"""What others say is text in our Markdown, whatever it says: read by a CommonMark renderer."""

import io
import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from app.backbones import load_backbone
from server_app import markdown
from server_app.card import model_card
from server_app.defaults import default_settings
from server_app.report import write_report
from tests.server_app.test_report import ROWS, SETTINGS

PARTS = [
    "![x](https://example.org/a.png)",
    "[x](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "<https://example.org>",
    "https://example.org",
    "http\\://example.org",
    "www.example.org",
    "a@example.org",
    "[a]: https://example.org",
    "[a]",
    "</details>",
    "<!--",
    "-->",
    "`",
    "``",
    "\\",
    "|",
    "\n",
    "\n\n# x",
    "*",
    "__a__",
    "_",
    "~~",
    "&lt;",
    "&#64;",
    "---",
    "a b",
    "é 1.5",
    "\x1b[2J",
    "\u202e",
    " ",
]
READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
LIVE = re.compile(r"//|www\.|@|[a-z]\.[a-z]|[<>`\[\]*|\\&]", re.IGNORECASE)
OURS = {"text", "code_inline", "strong_open", "strong_close", "softbreak"}


def squeezed(said):
    return " ".join("".join(c if c.isprintable() else " " for c in said).split())


def read(tokens):
    """Return the text of each inline token, none of which renders anything but text."""
    texts = []
    for token in tokens:
        if token.type == "inline":
            assert {child.type for child in token.children} <= OURS, token.content
            assert not any(LIVE.search(child.content) for child in token.children if child.type == "text")
            texts.append("".join(child.content for child in token.children))
    return texts


def is_only_text(said):
    wanted = squeezed(said)
    page = (
        f"# {markdown.text(said)}\n\n- **key**: {markdown.text(said)}\n\n"
        + markdown.table(["a", said], [[said, "1"], ["x", said]])
        + "\n\n<details>\n\nlast\n\n</details>\n"
    )
    tokens = READER.parse(page)
    assert [t.content for t in tokens if t.type == "html_block"] == ["<details>\n", "</details>\n"]
    title, key, *cells, last = read(tokens)
    assert (title, key, last) == (wanted, f"key: {wanted}".strip(), "last")
    assert cells == ["a", wanted, wanted, "1", "x", wanted]


def test_every_pair_of_what_is_live_in_markdown_is_text():
    for pair in product(PARTS, PARTS):
        is_only_text("".join(pair))


test_any_mixture_is_text = settings(max_examples=500)(
    given(st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=8).map("".join))(is_only_text)
)


@pytest.mark.parametrize(
    "plain",
    [
        "clean",
        "low-resolution",
        "Röntgen 2",
        "clean (round 1)",
        "1,500 bytes up; 10,000 in all",
        "A_s",
        "1.5",
    ],
)
def test_what_is_harmless_stays_as_it_is(plain):
    assert markdown.text(plain) == plain


def test_nothing_of_a_client_or_a_setting_is_live_in_report_and_cards(tmp_path):
    hostile = "".join(PARTS)
    name = "![x](https://example.org/a.png) <img src=x> www.example.org"
    rows = [{**row, "name": name} for row in ROWS]
    rows.append({"round": 1, "partition": 1, "phase": "train", "refused": hostile})
    given = {**SETTINGS, "data-dir": hostile, "backbone": "a`b` <https://example.org>"}
    write_report(tmp_path, given, rows, 60)
    backbone = load_backbone("tiny-vilt")
    cards = [model_card(given, rows, backbone, answers).split("---\n", 2)[2] for answers in ((), ("a",))]
    for page in ((tmp_path / "report.md").read_text(encoding="utf-8"), *cards):
        # Our one picture.
        tokens = READER.parse(page.replace("![scores, losses and changes over the rounds](curves.png)", ""))
        assert name in "\n".join(read(tokens))
        html = [token.content for token in tokens if token.type == "html_block"]
        assert html in ([], ["<details><summary>All settings</summary>\n", "</details>\n"])


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_terminal_shows_every_heading_and_name_whole_and_no_settings(tmp_path, width):
    rows = [{**row, "name": "low-resolution"} for row in ROWS]
    write_report(tmp_path, {**SETTINGS, "some-setting": 5}, rows, seconds=1)
    report = (tmp_path / "report.md").read_text()
    assert "some-setting" in report
    console = Console(file=io.StringIO(), width=width)
    console.print(markdown.OnScreen(report))
    shown = console.file.getvalue()
    assert "…" not in shown
    words = {100: ("(A_s, deployed)", "(A_c)", "(DAT)", "text only", "(student − text only)")}
    for word in words.get(width, ("student", "local", "teacher", "text", "gain")):
        assert word in shown
    assert sum(line.split()[:1] == ["low-resolution"] for line in shown.splitlines()) == 2
    assert "some-setting" not in shown
    assert "scores, losses and changes" not in shown  # a picture
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize(
    ("width", "heads", "name"),
    [
        (80, "client student local teacher text FedAvg* alone* gain", "low-resolution"),
        (60, "client student local teacher text FedAvg* alone* gain", "low-"),
    ],
)
def test_the_default_runs_report_breaks_no_word_in_a_narrow_terminal(tmp_path, width, heads, name):
    """As the run's own table: each head one word, numbers beside their client's name, and what heads mean."""
    names = ("clean", "sketch", "noisy", "inverted", "low-resolution")
    rows = [
        {**ROWS[-1], "partition": number, "name": name, "student": 0.8} for number, name in enumerate(names)
    ]
    settings = {**default_settings(), "run-name": "mine", "backbone-weights": "pretrained"}
    write_report(tmp_path, settings, rows, seconds=1)
    console = Console(file=io.StringIO(), width=width)
    console.print(markdown.OnScreen((tmp_path / "report.md").read_text()))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    (header,) = (line for line in lines if line[:1] == ["client"])
    assert header == heads.split()
    (row,) = (line for line in lines if line[:1] == [name])
    assert row[1:] == ["80.0", "45.0", "90.0", "30.0", "63.5", "64.5", "50.0"]
    said = " ".join(" ".join(line) for line in lines)
    assert "FedAvg: one adapter, averaged; alone: each client by itself; gain: student − text" in said
