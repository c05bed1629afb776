"""Imports run one way: what a folder may know of the others, wherever in a file it is imported."""

import ast

import pytest

from tests.conftest import ROOT

MAY_IMPORT = {
    "app": set(),
    "strategies": set(),
    "data_partitions": set(),
    "client_app": {"app", "data_partitions"},
    "server_app": {"app", "strategies", "data_partitions"},
}


def imported(path):
    """Return the top-level packages of ours that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names} & {*MAY_IMPORT, "benchmarks", "tests"}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_floor_knows_those_below_it_alone(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    above = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in imported(path) - MAY_IMPORT[folder] - {folder}
    }
    assert above == set()
