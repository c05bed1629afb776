"""Every link of a page leads somewhere: to a file, and to a heading that is in it."""

import re

import pytest

from tests.conftest import ROOT

from .pages import FENCED, PAGES

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors_of(page):
    """Return the anchors of a page's headings, as the site and git hosts make them of plain headings."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", one.lower()).strip().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_is_there(page):
    for link in _LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if page.is_relative_to(ROOT / "docs"):
            assert target.is_relative_to(ROOT / "docs"), f"{link}: the site has nothing else"
        if anchor:
            assert anchor in anchors_of(target), link
