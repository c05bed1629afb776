"""The report's page in a real browser: on a phone and on a screen, in the light and in the dark."""

import json
import re
import shutil
import subprocess

import pytest

from server_app.page import RunShown, html_report
from tests.server_app.test_page import HOSTILE, ROWS, SETTINGS

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium"),
]

# Opens the page in a frame of a phone's and of a screen's width, and writes down what it finds.
HARNESS = """<!doctype html><body><script>
const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126*r + 0.7152*g + 0.0722*b; };
const contrast = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05); };
const found = {};
let left = 2;
for (const width of [390, 1200]) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 800; frame.src = "report.html";
  frame.onload = () => {
    const page = frame.contentDocument, view = frame.contentWindow, style = e => view.getComputedStyle(e);
    const paper = style(page.body).backgroundColor;
    page.querySelectorAll("details").forEach(e => e.open = true);
    const texts = [...page.querySelectorAll("h1, p, th, td, dt, dd, figcaption, summary, svg text")];
    found[width] = {
      over: page.documentElement.scrollWidth - page.documentElement.clientWidth,
      asked: view.performance.getEntriesByType("resource").length,
      contrast: Math.min(...texts.map(e => contrast(
        e.tagName == "text" ? style(e).fill : style(e).color, paper))),
      paper: light(paper),
      unreachable: [...page.querySelectorAll("*")].filter(
        e => e.scrollWidth > e.clientWidth + 1 && ["auto", "scroll"].includes(style(e).overflowX)
          && e.tabIndex < 0).length,
      scripts: page.scripts.length,
      pictures: page.querySelectorAll("svg[role=img]").length,
    };
    if (!--left) document.body.innerHTML = `<pre>${JSON.stringify(found)}</pre>`;
  };
  document.body.append(frame);
}
</script>"""


@pytest.fixture(params=["light", "dark"])
def seen(request, tmp_path):
    """Open the page of a run with all there is to show; return what the browser has of it, by width."""
    names = {0: "clean", 1: HOSTILE}
    rows = [{**row, "name": names[row["partition"]]} for row in ROWS]
    shown = RunShown(
        SETTINGS, rows, {"sent": "1,000 bytes"}, beside={"one adapter\n(FedAvg)": {0: 0.5, 1: 0.5}}
    )
    (tmp_path / "report.html").write_text(html_report([shown]), encoding="utf-8")
    (tmp_path / "harness.html").write_text(HARNESS)
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'browser'}",
        f"--blink-settings=preferredColorScheme={('dark', 'light').index(request.param)}",
        "--virtual-time-budget=60000",
        "--dump-dom",
        (tmp_path / "harness.html").as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300).stdout
    return request.param, json.loads(re.search(r"<pre>(.*?)</pre>", dom)[1])


def test_it_fits_can_be_read_and_asks_for_nothing(seen):
    scheme, found = seen
    assert found.keys() == {"390", "1200"}
    for one in found.values():
        assert one["over"] <= 0  # it is not wider than its window
        assert one["asked"] == one["scripts"] == one["unreachable"] == 0
        assert one["contrast"] >= 4.5  # WCAG 2.2, 1.4.3
        assert (one["paper"] < 0.2) == (scheme == "dark")
        assert one["pictures"] == 2
