"""The promises of docs/promises.md: each names a test that is there, as pytest is given it."""

import ast
import re

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")


def names_in(path):
    """Name a file's tests as pytest does, without the file: ``test_one``, ``TestClass::test_one``."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        within = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + one.name for one in within if isinstance(one, ast.FunctionDef)}
    return found


def test_every_promise_has_its_test():
    promises = [line for line in PAGE.splitlines() if line.startswith("| ") and line != "| promise | test |"]
    assert len(promises) > 40
    for promise in promises:
        path, name = re.fullmatch(r"\| [^|]+ \| `(tests/[\w/]+\.py)::([\w:]+)` \|", promise).groups()
        assert name in names_in(path), promise
