"""What others read of the project: how it is cited, what has changed, how a change is checked."""

import ast
import re
import tomllib

import yaml
from packaging.requirements import Requirement

from tests.conftest import ROOT

from .commands import commands_of
from .pages import blocks

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


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


def extras_of(words):
    """Return what a command that installs this project in place, with the lock, asks for."""
    *install, project = words
    assert install[1:] == ["install", "-c", "constraints.txt", "-e"]
    return set(re.fullmatch(r"\.\[([\w,]+)\]", project)[1].split(","))


def test_readmes_two_lines_are_those_that_are_tried():
    """`.ci/run` installs and tests in a fresh environment; a page must not promise another one."""
    lines = [block.text for block in blocks("bash") if block.page.name == "README.md"]
    first, last = (list(commands_of(text)) for text in lines if "pip install" in text)
    environment, install, run = first
    assert environment == ["python3", "-m", "venv", ".venv"]
    assert run == [".venv/bin/feddat", "run"]
    install_tests, test = last
    assert test == [".venv/bin/python", "-m", "pytest"]
    assert install[0] == install_tests[0] == ".venv/bin/pip"
    assert extras_of(install) == {"app"}

    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    tried = list(commands_of(script.replace("${1:-constraints.txt}", "constraints.txt")))
    (installed,) = (words for words in tried if words[:2] == ["pip", "install"])
    installed.remove("--quiet")
    assert extras_of(install_tests) <= extras_of(installed)
    asked = map(Requirement, PROJECT["optional-dependencies"]["dev"])
    own = {extra for one in asked if one.name == PROJECT["name"] for extra in one.extras}
    assert extras_of(install) <= own
    assert tried[-1] == ["python", "-m", "pytest"]


def test_the_command_that_is_installed_is_there():
    module, name = PROJECT["scripts"]["feddat"].split(":")
    folder = ROOT / PYPROJECT["tool"]["setuptools"]["package-dir"][module]
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert module in PYPROJECT["tool"]["setuptools"]["packages"]
