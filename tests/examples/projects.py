"""The projects in `examples/`: what their own files say of them."""

import tomllib
from pathlib import Path
from typing import Any

from flwr.common.config import flatten_dict

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
CLIENTS, ROUNDS = 2, 3
PLAIN = sorted(EXAMPLES.glob("*/plain"))
PLUGGED_IN = sorted(EXAMPLES.glob("*/with_feddat"))


def name_of(project: Path) -> str:
    """Return what a test calls a project."""
    return f"{project.parent.name}-{project.name}"


def files_of(project: Path) -> list[Path]:
    """Return a project's files, from its folder on."""
    paths = (path for path in project.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.relative_to(project) for path in paths)


def _app(project: Path) -> dict[str, Any]:
    return tomllib.loads((project / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


def components(project: Path) -> dict[str, str]:
    """Return where a project's apps are: "package.module:app" by "serverapp" and "clientapp"."""
    return _app(project)["components"]


def config(project: Path) -> dict[str, Any]:
    """Return a project's settings as Flower gives them to its apps."""
    return flatten_dict(_app(project)["config"])
