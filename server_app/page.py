"""A run, or several side by side, as one HTML file: no script, nothing from elsewhere, light and dark."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import isnan
from statistics import fmean
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from .comparison import note_on
from .curves import as_svg, draw_branches, draw_training
from .defaults import default_settings
from .page_template import PAGE
from .rows import NONE_IN_COMMON, Rows, have_none_in_common, last_scores, names_of, side_by_side
from .scores import Beside, measured_on, scores, unscored, what_ran
from .verdict import verdict

# What is no setting of a run, or another one in each.
_OWN = {"run-name", "resume", "resumed-after", "run-token", "begun-as", "pretrained"}
WORDS = {
    "student": "What is shared, in place: what a run exports and a newcomer gets, unless a note says more.",
    "local": "The client's own adapter A_c in place. It never leaves the client.",
    "teacher": "The mean of both in place: the dual-adapter teacher (DAT), at the client alone.",
    "text only": "Always giving the most frequent training answer to the same question, without the picture.",
    "gain": "The student's score less text only.",
    "before training": "What the backbone scores with its adapters as they begin, before the first round.",
    "mean, worst": "Of each column for itself, over the clients.",
    "CE, KL": "Losses: against the right answers, and against the other branch's answers.",
    "change": "Root of the summed squares of what training changed in an adapter in a round.",
    "clipped": "A client's change that is larger than permitted is scaled down before it is averaged.",
    "round": "Each client trains on its own data, then the server averages what they send.",
}


@dataclass(frozen=True)
class RunShown:
    """What the page shows of a run.

    Attributes
    ----------
    settings : Mapping
        As ``settings.json`` has them.
    rows : sequence of dict
        All rows of the run.
    facts : Mapping
        What there is to say beside the scores, see `facts.facts_of`.
    refused : Counter
        Replies that did not count, by client, phase and reason.
    beside : Mapping
        Scores of other methods' runs, see `comparison.runs_beside`.
    """

    settings: Mapping[str, Any]
    rows: Rows
    facts: Mapping[str, str] = field(default_factory=dict)
    refused: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    beside: Beside = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.settings.get("run-name", "?"))

    @property
    def command(self) -> str:
        """What repeats the run, as long as it is what `pyproject.toml` has for its defaults."""
        defaults = default_settings()
        words = [
            f"{key}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in self.settings.items()
            if key in defaults and key not in _OWN and value != defaults[key]
        ]
        return shlex.join(["feddat", "run", *words])

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and lines of its scores."""
        return scores(self.rows, self.beside)

    @property
    def says(self) -> list[str]:
        """What they say in words."""
        return [*verdict(self.rows), *note_on(self.beside)]

    @property
    def measured_on(self) -> str:
        """What they are of."""
        return measured_on(self.settings, self.rows)

    @property
    def unscored(self) -> str:
        """Why there are none; nothing if there are."""
        return unscored(self.rows)

    @property
    def what_ran(self) -> str:
        """What the run was."""
        return what_ran(self.settings, self.rows).replace("`", "")

    @property
    def names(self) -> dict[int, str]:
        """The clients' names by partition."""
        return names_of(self.rows)

    @property
    def last(self) -> dict[int, float]:
        """Each client's last score by partition."""
        return last_scores(self.rows)

    @property
    def mean(self) -> float | None:
        """Their mean."""
        return fmean(self.last.values()) if self.last else None

    @property
    def branches(self) -> Markup | None:
        """Curves of the branches, one plot per client."""
        figure = draw_branches(self.rows)
        label = "score of each branch by round"
        return Markup(as_svg(figure, f"{self.name}-branches", label)) if figure else None

    @property
    def training(self) -> Markup:
        """Curves of the losses and of how far the adapters went."""
        return Markup(
            as_svg(draw_training(self.rows), f"{self.name}-training", "losses and changes by round")
        )


def html_report(runs: Sequence[RunShown]) -> str:
    """Return the page: of one run what it gave and how it went, of several what they gave, side by side."""
    scores = side_by_side([run.rows for run in runs])
    note = NONE_IN_COMMON if have_none_in_common(scores) else ""
    differing = [
        key
        for key in dict.fromkeys(key for run in runs for key in run.settings)
        if key not in _OWN and len({str(run.settings.get(key)) for run in runs}) > 1
    ]
    return _template().render(runs=runs, beside=scores, note=note, differing=differing, words=WORDS)


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["points"] = lambda score: (
        "–" if score is None or isnan(score) else f"{100 * score:.1f}"
    )
    return environment.from_string(PAGE)
