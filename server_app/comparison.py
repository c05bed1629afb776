"""Runs of other methods beside a run: the same settings, so equal steps.

They are this machine's own, under names made from the run's, or those of the study of methods that
``docs/results`` has, where the run's settings are the defaults, with which the study was made.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from .defaults import CHECKOUT, default_settings
from .kept_rows import rows_in
from .rows import Rows, last_scores, names_of

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


# The study's lines, packed with the app, and its cells of default settings at equal steps. What FedAvg with
# fine-tuning shares is FedAvg's one adapter: it is tuned when the federation is over.
STUDY = CHECKOUT / "docs" / "results" / "rivals.jsonl"
FROM_STUDY = "*"  # marks their headings
CELLS = {
    "adapter": ("scenes-domain | fedavg-ft | steps", "student"),
    "local": ("scenes-domain | local | steps", "local"),
}
THE_DEFAULT = "scenes-domain | feddat | steps"


def name_beside(name: str, method: str) -> str:
    """Return the name of the run of another method that belongs beside this one."""
    return f"{name}.{method}"


def runs_beside(folder: Path, settings: Mapping[str, Any], rows: Rows) -> dict[str, dict[int, float]]:
    """Return the last scores of the runs beside one, by heading and partition; without any, the study's.

    Parameters
    ----------
    folder : Path
        The run's folder; theirs are in the same one.
    settings : Mapping
        The run's settings. A run that differs in more than its method, or is not over, is left out.
    rows : sequence of dict
        The run's rows, which name its clients.
    """
    found = {}
    for path in sorted(folder.parent.glob(f"{folder.name}.*/settings.json")):
        try:
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        method = str(theirs.get("method"))
        mine = path.parent.name == name_beside(folder.name, method)
        if mine and are_alike(settings, theirs) and is_over(path.parent):
            heading, branch = _shown(method)
            found[heading] = last_scores(rows_in(path.parent / "metrics.jsonl"), branch)
    return found or _of_the_study(settings, {name: number for number, name in names_of(rows).items()})


def note_on(beside: Mapping[str, Any]) -> list[str]:
    """Say where scores that stand beside a run's are from, and how they and its own vary with the seed.

    Nothing where runs of one's own made them: of these one seed is known.
    """
    if not any(heading.endswith(FROM_STUDY) for heading in beside):
        return []
    return [f"{FROM_STUDY} From the study in docs/results/rivals.md, with the same seed.", *over_seeds()]


def over_seeds() -> list[str]:
    """Say the means over the clients that the study has of default settings, with their spread over seeds."""
    shown = {branch: (THE_DEFAULT, branch) for branch in ("student", "local", "teacher")}
    shown |= {" ".join(HEADINGS[method].split()): cell for method, cell in CELLS.items()}
    cells, wanted = _study(), {cell for cell, _ in shown.values()}
    seeds = sorted(seed for seed in cells if wanted <= cells[seed].keys())
    if len(seeds) < 2:
        return []
    means = {
        name: [100 * fmean(scores[branch] for scores in cells[seed][cell].values()) for seed in seeds]
        for name, (cell, branch) in shown.items()
    }
    said = ", ".join(f"{name} {fmean(values):.1f} ± {stdev(values):.1f}" for name, values in means.items())
    return [f"Over seeds {', '.join(map(str, seeds))} (mean ± standard deviation): {said}."]


def are_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs' settings are the same but for the method and what is each run's own."""
    return all(other.get(key) == value for key, value in one.items() if key not in OWN)


def _of_the_study(settings: Mapping[str, Any], partitions: Mapping[str, int]) -> dict[str, dict[int, float]]:
    """Return what the study has of default settings and the run's seed; nothing where these are others."""
    other = OWN - {"method"} | {"seed"}
    if any(settings.get(key) != value for key, value in default_settings().items() if key not in other):
        return {}
    cells = _study().get(settings["seed"], {})
    return {
        HEADINGS[method] + FROM_STUDY: {
            partitions[name]: scores[branch] for name, scores in cells[cell].items()
        }
        for method, (cell, branch) in CELLS.items()
        if cells.get(cell, {}).keys() == partitions.keys()
    }


def _study() -> dict[int, dict[str, dict[str, dict[str, float]]]]:
    """Return the study's scores by seed, cell, client and branch; none where its file is not there."""
    cells: dict[int, dict[str, dict[str, dict[str, float]]]] = {}
    for line in map(json.loads, STUDY.read_text(encoding="utf-8").splitlines() if STUDY.is_file() else ()):
        cells.setdefault(line["seed"], {})[line["cell"]] = line["clients"]
    return cells


def _shown(method: str) -> tuple[str, str]:
    """Return a method's heading, and the branch that is shown: the last, a client's own if any is."""
    from app.methods import METHODS  # torch comes with them

    branches = METHODS[method].branches if method in METHODS else ("",)
    personal = f"\n({branches[-1]})" if len(branches) > 1 else ""
    return HEADINGS.get(method, method + personal), branches[-1]


def is_over(folder: Path) -> bool:
    """Whether a run is over: its report is written last."""
    return (folder / "report.md").is_file()
