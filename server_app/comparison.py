"""Runs of other methods beside a run: the same settings, so equal steps, under names made from its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .kept_rows import rows_in
from .rows import last_scores

# What the most frequent rivals are to a reader who does not know the setting.
HEADINGS = {"adapter": "one adapter\n(FedAvg)", "local": "local\nonly"}
# What two runs may differ in and still be compared.
OWN = {
    "method",
    "run-name",
    "run-token",
    "begun-as",
    "resume",
    "resumed-after",
    "tracker",
    "device",
    "server-device",
    "wait-seconds",
    "round-timeout",
    "pretrained",
}


def name_beside(name: str, method: str) -> str:
    """Return the name of the run of another method that belongs beside this one."""
    return f"{name}.{method}"


def runs_beside(folder: Path, settings: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Return the last scores of the runs beside one, by heading and partition.

    Parameters
    ----------
    folder : Path
        The run's folder; theirs are in the same one.
    settings : Mapping
        The run's settings. A run that differs in more than its method, or is not over, is left out.
    """
    found = {}
    for path in sorted(folder.parent.glob(f"{folder.name}.*/settings.json")):
        try:
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        method = str(theirs.get("method"))
        same = all(theirs.get(key) == value for key, value in settings.items() if key not in OWN)
        if same and path.parent.name == name_beside(folder.name, method) and is_over(path.parent):
            scores = last_scores(rows_in(path.parent / "metrics.jsonl"))
            found[HEADINGS.get(method, method)] = scores
    return found


def is_over(folder: Path) -> bool:
    """Whether a run is over: its report is written last."""
    return (folder / "report.md").is_file()
