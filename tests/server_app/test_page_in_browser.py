"""The pages that people read, in a real browser: on a phone and on a screen, light and dark, by keyboard."""

import base64

import pytest

from client_app.shown_examples import Shown, examples_page
from server_app.page import RunShown, html_report
from tests.bad_input.given import png
from tests.browser import PROGRAM, browser
from tests.server_app.test_page import HOSTILE, ROWS, SETTINGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium"),
]

NAMES = {0: "clean", 1: HOSTILE}
RUN = RunShown(
    SETTINGS,
    [{**row, "name": NAMES[row["partition"]]} for row in ROWS],
    {"sent": "1,000 bytes"},
    beside={"one adapter\n(FedAvg)": {0: 0.5, 1: 0.5}},
)
OTHER = RunShown({**SETTINGS, "run-name": "a-second-one", "seed": 8}, ROWS)
EXAMPLE = Shown(
    "what color is the small circle ?",
    ["data:image/png;base64," + base64.b64encode(png(0)).decode()],
    {"red": 1.0},
    {"student": [("red", 0.9), (HOSTILE, 0.1)], "local": [("blue", 1.0)]},
)
# A page, and how many pictures it has.
PAGES = {
    "report": (html_report([RUN]), 2),
    "side by side": (html_report([RUN, OTHER]), 2),
    "examples": (examples_page("first", HOSTILE, [EXAMPLE] * 3, "how sure it is"), 3),
}

SEEN = """(() => {
const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126*r + 0.7152*g + 0.0722*b; };
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05); };
const style = e => getComputedStyle(e);
const probe = document.createElement("i");
probe.style.color = "Canvas";
document.body.append(probe);
const own = style(document.body).backgroundColor;
const paper = own.endsWith(", 0)") ? style(probe).color : own;
probe.remove();
document.querySelectorAll("details").forEach(e => e.open = true);
const texts = [...document.querySelectorAll("h1, h2, p, th, td, dt, dd, figcaption, summary, svg text")];
const all = [...document.querySelectorAll("*")];
return {
  over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  contrast: Math.min(...texts.map(e => contrast(
    e.tagName == "text" ? style(e).fill : style(e).color, paper))),
  paper: light(paper),
  unreachable: all.filter(e => e.scrollWidth > e.clientWidth + 1
    && ["auto", "scroll"].includes(style(e).overflowX) && e.tabIndex < 0).length,
  scripts: document.scripts.length,
  pictures: document.querySelectorAll("svg[role=img], img[alt]").length,
};
})()"""
# What a reader may want to go to.
PLACES = ".wide, summary, a[href]"
COUNT = "document.querySelectorAll('%s').length"
FOCUS = f"""(() => {{
const e = document.activeElement;
return {{at: [...document.querySelectorAll({PLACES!r})].indexOf(e), tag: e.tagName,
  outline: getComputedStyle(e).outlineStyle, open: Boolean(e.parentElement.open)}};
}})()"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def shown(chromium, tmp_path):
    """Return what opens a page by its name."""

    def open_page(name, width=1200, scheme="light"):
        path = tmp_path / "page.html"
        path.write_text(PAGES[name][0], encoding="utf-8")
        return chromium.open(path, width, scheme)

    return open_page


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_can_be_read_and_asks_for_nothing(shown, name, scheme, width):
    page = shown(name, width, scheme)
    seen = page.evaluate(SEEN)
    assert seen["over"] <= 0  # it is not wider than its window
    assert seen["scripts"] == seen["unreachable"] == 0
    assert seen["contrast"] >= 4.5  # WCAG 2.2, 1.4.3
    assert (seen["paper"] < 0.2) == (scheme == "dark")
    assert seen["pictures"] == PAGES[name][1]
    assert {url for url in page.asked if not url.startswith("data:")} == {page.url}


@pytest.mark.parametrize("name", PAGES)
def test_a_keyboard_reaches_all_and_opens_what_is_closed(shown, name):
    page = shown(name, width=390)
    places, closed = (page.evaluate(COUNT % what) for what in (PLACES, "details"))
    reached, opened = [], []
    while True:
        page.press("Tab")
        if (focus := page.evaluate(FOCUS))["at"] < 0:
            break
        assert focus["outline"] == "solid"
        reached.append(focus["at"])
        if focus["tag"] == "SUMMARY":
            page.press("Enter")
            opened.append(page.evaluate(FOCUS)["open"])
    assert reached == list(range(places))
    assert opened == [True] * closed
    assert bool(opened) == (name == "report")


@pytest.mark.parametrize("name", PAGES)
def test_a_screen_reader_is_told_what_everything_is(shown, name):
    page = shown(name)
    page.call("Accessibility.enable")
    nodes = [node for node in page.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    told = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
    for role in ("image", "region", "heading"):
        assert all(name for kind, name in told if kind == role), role
    assert sum(kind == "image" for kind, _ in told) == PAGES[name][1]
    assert ("main", "") in told
