"""Time real simulations, `flwr run` with Ray's workers: the start before round 1, and what a round takes.

    python -m benchmarks.simulation

starts a SuperLink and runs in turn `empty_app`, the floor that Flower and Ray set, and this app with few
rounds. The start is the time from `flwr run` to the first round; handshakes are then done. Of the rounds
after the first it says how long they take, beside the clients' own training and evaluation on so many
workers. Flower passes on what an app says within 0.7 s, and no time here is finer. ``--apps FOLDER ...``
takes these checkouts, such as an earlier one and this.
"""

import argparse
import os
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .figures import machine_of, write_figures
from .real_processes import EMPTY_APP, FIRST_RUNS, Machine, superlink

ROOT = Path(__file__).parents[1]
EMPTY = "empty app"
ROUND = re.compile(r"\[ROUND \d+/\d+\]")


def simulate(app: Path, machine: Machine, clients: int, workers: int, run_config: str) -> dict[str, Any]:
    """Run an app to its end; return when each round began, in seconds from the command, and its rows."""
    nodes = f"num-supernodes={clients} client-resources-num-cpus=1 init-args-num-cpus={workers}"
    started = time.perf_counter()
    log, rows = machine.flwr_run(app, "--federation-config", nodes, "--run-config", run_config)
    began = [read - started for read, line in log if ROUND.search(line)]
    return {"began": began, "rows": rows}


def scheduled(seconds: Sequence[float], workers: int) -> float:
    """Return how long so many workers are busy when each, as it gets free, takes the next piece in order."""
    free = [0.0] * workers
    for piece in seconds:
        free[free.index(min(free))] += piece
    return max(free)


def rounds(run: dict[str, Any], workers: int) -> list[dict[str, float]]:
    """Return what the rounds after the first took, but for the last, with which the report is written."""
    work: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in run["rows"]:
        for phase in ("train-seconds", "evaluate-seconds"):
            if phase in row:
                work[row["round"]][phase].append(row[phase])
    found = []
    for number in range(2, max(work, default=0)):
        phases = work[number].values()
        found.append(
            {
                "wall": run["began"][number] - run["began"][number - 1],
                "scheduled": sum(scheduled(seconds, workers) for seconds in phases),
                "busy": sum(map(sum, phases)) / workers,
            }
        )
    return found


def measure(
    apps: Mapping[str, Path], clients: int, workers: int, turns: int, num_rounds: int, settings: str
) -> dict[str, list[dict[str, Any]]]:
    """Run the apps in turn, for a round each, and the last time for so many."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in apps}
    with tempfile.TemporaryDirectory() as scratch, superlink(Path(scratch), "--simulation") as machine:
        for turn in range(turns):
            for name, app in apps.items():
                few = num_rounds if turn == turns - 1 and name != EMPTY else 1
                own = "" if name == EMPTY else settings
                run = simulate(app, machine, clients, workers, f"num-rounds={few} {own}")
                print(f"{name}: round 1 after {run['began'][0]:.2f} s", flush=True)
                runs[name].append(run)
    return runs


def show(starts: Mapping[str, list[float]], later: Mapping[str, list[dict[str, float]]], title: str) -> None:
    """Print a table of the starts and one of the later rounds."""
    middle = {name: statistics.median(seconds) for name, seconds in starts.items()}
    table = Table("app", "to round 1", "least–most", "above the floor", title=title)
    for name, seconds in starts.items():
        spread = f"{min(seconds):.1f}–{max(seconds):.1f}"
        table.add_row(name, f"{middle[name]:.1f} s", spread, f"{middle[name] - middle[EMPTY]:.1f} s")
    Console().print(table)
    table = Table("app", "later rounds", "their clients' work", "overhead", "workers busy")
    for name, own in later.items():
        whole, work, busy = (sum(row[key] for row in own) for key in ("wall", "scheduled", "busy"))
        if work:
            shares = (f"{100 * (whole / work - 1):.1f} %", f"{100 * busy / whole:.0f} %")
            table.add_row(name, f"{len(own)}, {whole:.1f} s", f"{work:.1f} s", *shares)
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--apps", type=Path, nargs="+", default=[ROOT], help="checkouts, taken in turn")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that Ray starts")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="simulations of each app")
    parser.add_argument("--first", type=int, default=1, help=FIRST_RUNS)
    parser.add_argument("--set", default="", metavar="KEY=VALUE ...", help="other settings of the run-config")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    apps = {EMPTY: EMPTY_APP, **{str(app): app.resolve() for app in options.apps}}
    turns = options.first + options.repeats
    runs = measure(apps, options.clients, options.workers, turns, options.rounds, options.set)
    starts = {name: [run["began"][0] for run in own[options.first :]] for name, own in runs.items()}
    later = {name: rounds(own[-1], options.workers) for name, own in runs.items()}
    show(starts, later, f"{options.clients} clients, {options.workers} workers, {machine_of()}")
    conditions = {key: vars(options)[key] for key in ("clients", "workers", "rounds", "set")}
    write_figures(options.json, machine_of(), {"conditions": conditions, "starts": starts, "rounds": later})


if __name__ == "__main__":
    main()
