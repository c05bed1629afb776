"""The site is built of the pages without a warning, and asks nothing of another machine."""

import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT

from .pages import PAGES

pytest.importorskip("zensical", reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site strictly, of a copy of what it is made of."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "docs", root / "docs")
    shutil.copy(ROOT / "zensical.toml", root)
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=root, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "Warning" not in built.stdout + built.stderr
    return root / "site"


def test_every_page_is_in_it(site):
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs"):
            path = page.relative_to(ROOT / "docs").with_suffix("")
            assert (site / ("" if path.name == "index" else path) / "index.html").is_file(), page


def test_a_reader_needs_no_other_machine(site):
    """Links lead elsewhere; nothing is loaded from there."""
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]* src=\"?https?:", html), page
        assert not re.findall(r"<link[^>]* rel=\"?stylesheet\"?[^>]* href=\"?https?:", html), page


def test_the_navigation_has_every_page():
    def paths(nav):
        for entry in nav:
            for target in entry.values():
                yield from [target] if isinstance(target, str) else paths(target)

    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert sorted(paths(nav)) == sorted(pages)
