"""``feddat runs`` and ``feddat report``: what was run, by the files that runs keep."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from .called import called
from .checkout import checkout
from .doors import run_program
from .refusal import Refusal

app = typer.Typer(help="List, compare and remove runs.", invoke_without_command=True, rich_markup_mode=None)


@dataclass(frozen=True)
class Run:
    """A run's folder, its settings and its rows."""

    folder: Path
    settings: Mapping[str, Any]
    rows: list[dict[str, Any]]

    @property
    def rounds(self) -> str:
        """How many rounds are over, of how many."""
        done = max((row["round"] for row in self.rows if row["partition"] >= -1), default=0)
        return f"{done}/{self.settings.get('num-rounds', '?')}"

    @property
    def scores(self) -> dict[int, float]:
        """Each client's last score, in points, of the first branch that there is."""
        from server_app.rows import last_scores

        return {partition: 100 * score for partition, score in last_scores(self.rows).items()}

    @property
    def mean(self) -> float:
        """Mean of the scores; NaN without any."""
        return fmean(self.scores.values()) if self.scores else nan


def find_run(name: str) -> Run:
    """Open a run by its name.

    Raises
    ------
    Refusal
        There is none, or its settings cannot be read.
    """
    checkout()
    from app.settings import feddat_home
    from server_app.kept_rows import rows_in

    runs = feddat_home() / "runs"
    folder = runs / name
    if name not in _names(runs):
        raise Refusal(f"{name!r} is not a run in {runs}; allowed: {', '.join(_names(runs)) or 'none yet'}")
    try:
        settings = dict(json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Refusal(f"run {name!r}: its settings.json cannot be read: {error}") from None
    return Run(folder, settings, rows_in(folder / "metrics.jsonl"))


# Whom a command asks, and of which run.
ClientOption = Annotated[
    int | None, typer.Option(help="Which of a simulation's clients on this machine, from 0.")
]
NodeConfigOption = Annotated[
    str, typer.Option(help="At a site instead: its settings, as flower-supernode gets them.")
]
RunOption = Annotated[str, typer.Option(help="Name of the run. Without it: the newest.")]


def which_client(run: Run, client: int | None, node_config: str = "") -> list[str]:
    """Return the options by which programs know a simulation's client, or the one of a site's node-config.

    Raises
    ------
    Refusal
        Both are given, or neither; or the simulation has no such client.
    """
    if (client is None) != bool(node_config):
        given = "both" if node_config else "neither"
        raise Refusal(f"client, node-config: {given} given; allowed: --client, or at a site --node-config")
    if node_config:
        return [f"--folder={run.folder}", f"--node-config={node_config}"]
    from server_app.rows import names_of

    names = names_of(run.rows)
    if client not in names:
        clients = ", ".join(f"{number} ({name})" for number, name in names.items())
        raise Refusal(
            f"client = {client} is not in the run {run.folder.name!r}; allowed: {clients or 'none yet'}"
        )
    return [f"--folder={run.folder}", f"--client={client}", f"--of={len(names)}"]


def newest_run() -> Run:
    """Open the run that was begun last, none that stands beside another; a Refusal if there is none."""
    found = _all_runs()
    if not found:
        raise Refusal(f"there is no run yet; to make one: {called()} run")
    from server_app.comparison import name_beside

    names = [run.folder.name for run in found]

    def is_beside(run: Run) -> bool:
        method = str(run.settings.get("method"))
        return any(run.folder.name == name_beside(name, method) for name in names)

    return next((run for run in reversed(found) if not is_beside(run)), found[-1])


def _names(runs: Path) -> list[str]:
    return sorted(path.parent.name for path in runs.glob("[!.]*/settings.json"))


def _all_runs() -> list[Run]:
    checkout()
    from app.settings import feddat_home

    found = []
    for name in _names(feddat_home() / "runs"):
        try:
            found.append(find_run(name))
        except Refusal as refusal:
            typer.echo(str(refusal), err=True)
    return sorted(found, key=lambda run: (run.folder / "settings.json").stat().st_mtime)


@app.callback()
def runs(context: typer.Context) -> None:
    """List the runs, in the order in which they were begun or gone on with."""
    if context.invoked_subcommand:
        return
    table, lines = Table("run", "last start", "method", "rounds", "report", "mean score"), []
    for run in _all_runs():
        when = datetime.fromtimestamp((run.folder / "settings.json").stat().st_mtime)
        finished = "yes" if (run.folder / "report.md").exists() else "no"
        method = str(run.settings.get("method", "?"))
        cells = (run.folder.name, f"{when:%F %H:%M}", method, run.rounds, finished, _points(run.mean))
        table.add_row(*map(escape, cells))
        report = "with a report" if finished == "yes" else "no report"
        about = (
            f"{when:%F %H:%M}",
            method,
            f"{run.rounds} rounds",
            report,
            f"mean score {_points(run.mean)}",
        )
        lines += [run.folder.name, f"  {', '.join(about)}"]
    console = Console(highlight=False)
    if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
        console.print(table if lines else f"no runs yet: {called()} run")
        return
    # A name that is folded or cut off cannot be given to another command.
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def compare(names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Names of runs.")]) -> None:
    """Show runs side by side: the last score on each client, and the settings that differ."""
    found = [find_run(name) for name in names]
    from server_app.rows import NONE_IN_COMMON, have_none_in_common, side_by_side

    scores = side_by_side([run.rows for run in found])
    console = Console(highlight=False)
    table = Table("score, in points", *map(escape, names))
    for column in table.columns[1:]:
        column.justify = "right"
    for client, each in scores.items():
        table.add_row(escape(client), *(_points(100 * score) for score in each))
    table.add_section()
    table.add_row("mean", *(_points(run.mean) for run in found))
    console.print(table)
    if have_none_in_common(scores):
        console.print(NONE_IN_COMMON, soft_wrap=True)
    _, *others = found
    own = {"run-name", "run-token", "resumed-after", "resume"}
    differing = Table("setting", *map(escape, names))
    for key in dict.fromkeys(key for run in found for key in run.settings):
        values = [json.dumps(run.settings.get(key)) for run in found]
        if key not in own and len(set(values)) > 1:
            differing.add_row(key, *map(escape, values))
    if others:
        console.print(differing if differing.row_count else "no setting differs")


@app.command()
def prune(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs.")],
    states: Annotated[
        bool, typer.Option("--states", help="Also what this machine's clients learnt in them.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove runs with their logs."""
    found = [find_run(name) for name in names]
    from app.settings import feddat_home
    from server_app.run_folder import held

    home = feddat_home()
    for run in found:
        name, token = run.folder.name, run.settings.get("run-token", "")
        gone = [run.folder, home / "logs" / f"{name}.log"]
        if states:
            gone += (home / "clients").glob(f"{name}-{token}")
        there = [path for path in gone if path.exists()]
        if not yes:
            typer.confirm(f"remove {', '.join(map(str, there))}?", abort=True)
        try:
            with held(run.folder):
                for path in there:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        except (ValueError, OSError) as error:
            raise Refusal(str(error)) from None
        typer.echo(f"removed {name}")


def report(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Names of runs. Without one: the newest.")
    ] = None,
    client: Annotated[
        int | None,
        typer.Option(help="Write a page of this client's own test examples, on its machine. From 0."),
    ] = None,
    node_config: Annotated[
        str, typer.Option(help="At a site: the same page of its own client; as flower-supernode gets it.")
    ] = "",
    examples: Annotated[int, typer.Option(min=1, help="How many examples at most.")] = 24,
) -> None:
    """Show a run's report.

    Of several runs write a page with all side by side; of a client one with its examples.
    """
    found = [find_run(name) for name in names] if names else [newest_run()]
    if client is not None or node_config:
        if len(found) > 1:
            which_one = "--node-config" if node_config else f"--client = {client}"
            raise Refusal(f"{which_one} with {len(found)} runs; allowed: one")
        which = which_client(found[0], client, node_config)
        run_program("report", "client_app.shown_examples", [*which, f"--examples={examples}"])
    if len(found) > 1:
        typer.echo(f"side by side: {_side_by_side(found)}")
        return
    (run,) = found
    name, path = run.folder.name, run.folder / "report.md"
    if not path.exists():
        raise Refusal(
            f"run {name!r} is not over ({run.rounds} rounds); to go on: {called()} run resume={name}"
        )
    from server_app.markdown import OnScreen, without_settings

    text, console = path.read_text(encoding="utf-8"), Console()
    console.print(OnScreen(text)) if console.is_terminal else typer.echo(without_settings(text))
    if (page := run.folder / "report.html").exists():
        typer.echo(f"with curves and every setting, for a browser: {page}")
    typer.echo(f"the run is in {run.folder}")


def _side_by_side(found: list[Run]) -> Path:
    """Write the page that shows runs side by side into the first one's folder."""
    from app.files import write_atomically
    from server_app.page import RunShown, html_report

    first, *others = found
    path = first.folder / f"beside-{'-'.join(run.folder.name for run in others)[:150]}.html"
    shown = [RunShown({**run.settings, "run-name": run.folder.name}, run.rows) for run in found]
    write_atomically(path, html_report(shown))
    return path


def _points(score: float) -> str:
    return f"{score:.1f}" if score == score else "–"
