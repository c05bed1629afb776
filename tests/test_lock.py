"""The lock: a release of every requirement on every Python that pyproject.toml allows; installs use it."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALL = [
    Requirement(line)
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for line in lines
]
ASKED = [one for one in ALL if one.name != PROJECT["name"]]  # an extra may ask for another of our own
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def test_a_line_is_a_name_a_release_and_where_it_holds():
    """No option, no address, no build of one machine's own."""
    for line in LINES:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*( ; [^;@]+)?", line), line


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_requirement_has_one_release_that_is_allowed(python):
    here = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    held = [Requirement(line) for line in LINES]
    releases: dict[str, list[str]] = {}
    for one in held:
        if one.marker is None or one.marker.evaluate(here):
            (pin,) = one.specifier
            releases.setdefault(canonicalize_name(one.name), []).append(pin.version)
    for asked in ASKED:
        (release,) = releases[canonicalize_name(asked.name)]
        assert asked.specifier.contains(release), asked


def test_what_installs_uses_it():
    for path in ("README.md", "Dockerfile", ".ci/run"):
        text = (ROOT / path).read_text()
        installs = re.findall(r"pip install (.*)", text)
        assert installs, path
        assert all(re.search(r"-c \S*constraints\.txt", line) for line in installs), (path, installs)
    assert "!constraints.txt" in (ROOT / ".dockerignore").read_text().split()
    command = re.search(r"uv pip compile .*", (ROOT / "constraints.txt").read_text())[0]
    assert command in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_newest_are_tried_by_the_same_script_without_the_lock():
    """What fails there is news: nothing else differs."""
    newest, run = ((ROOT / ".ci" / name).read_text() for name in ("newest", "run"))
    assert [line for line in newest.splitlines() if not line.startswith("#")] == [
        'exec "$(dirname "$0")/run" /dev/null'
    ]
    assert run.count("pip install") == run.count('-c "${1:-constraints.txt}"') == 1
