"""The README's promises: each names a test that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_has_its_test():
    section = (ROOT / "README.md").read_text().split("## What is promised\n")[1].split("\n## ")[0]
    promises = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert promises
    for promise in promises:
        name, path = re.fullmatch(r"\| [^|]+ \| \[`(\w+)`\]\(([\w/.]+)\) \|", promise).groups()
        assert f"def {name}(" in (ROOT / path).read_text(), promise
