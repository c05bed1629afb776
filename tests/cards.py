"""A model card's lines, run as they stand, but for the folder's path and, if one is given, the picture."""

import ast
import re
from pathlib import Path
from typing import Any

PLACE = 'Image.new("RGB", (40, 30), "red")'
STOCK = {"json", "numpy", "torch", "peft", "PIL", "transformers", "safetensors"}


def code_of(folder: Path, picture: Path | None = None) -> str:
    """Return the first block of the card in a result's folder."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[
        0
    ]
    assert re.search(r'"path/to/(adapter|model)"', code)
    code = re.sub(r'"path/to/(adapter|model)"', repr(str(folder)), code)
    return code.replace(PLACE, f"Image.open({str(picture)!r})") if picture else code


def run_card(folder: Path, picture: Path | None = None) -> dict[str, Any]:
    """Run it in this process, and return its names."""
    names: dict[str, Any] = {}
    # What is installed may be another checkout.
    exec(code_of(folder, picture).replace("feddat.app", "app"), names)
    return names


def imported(code: str) -> set[str]:
    """Return the packages that lines import."""
    nodes = list(ast.walk(ast.parse(code)))
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    parts = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in whole | parts}
