"""What others read of the project: how it is cited, what has changed, how a change is checked."""

import re
import tomllib

import yaml

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_is_of_this_project_and_has_both_papers():
    cited = read("CITATION.cff")
    assert (cited["title"], cited["version"]) == (PROJECT["name"], PROJECT["version"])
    assert cited["abstract"] == PROJECT["description"]
    papers = {
        paper["url"].rpartition("/")[2]: paper["authors"][0]["given-names"] for paper in cited["references"]
    }
    assert papers == {"2308.12305": "Haokun", "2409.06067": "Jianyi"}


def test_hooks_have_the_locks_ruff():
    (locked,) = re.findall(r"^ruff==.*$", (ROOT / "constraints.txt").read_text(), re.M)
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert [hook["additional_dependencies"] for hook in local["hooks"]] == [[locked], [locked]]


def test_issue_templates_have_what_they_need():
    for name in ("bug", "idea"):
        form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert form["name"]
        assert form["description"]
        ids = [part["id"] for part in form["body"]]
        assert len(ids) == len(set(ids))


def test_the_changelog_has_what_is_to_be_released():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.M)[0] == "[Unreleased]"
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }
