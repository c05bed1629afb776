"""Time what a message costs at a site: a real SuperLink, a real SuperNode, a process for every message.

    python -m benchmarks.supernode

runs in turn an app that does nothing, the floor that Flower sets, and this one, on one site over loopback. A
message takes from when the SuperNode hears of it to when the reply is sent; training and evaluation
themselves are taken off. ``--apps FOLDER ...`` takes these checkouts. `benchmarks.startup` says what the time
goes into.
"""

import argparse
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .figures import machine_of, write_figures
from .real_processes import EMPTY_APP, FIRST_RUNS, Line, free_port, superlink

ROOT = Path(__file__).parents[1]
EMPTY = "empty app"
CAME = re.compile(r"Receiving: (\w+) message")
SENT = "Sent successfully"
KINDS = HANDSHAKE, FIRST, LATER, EVALUATION = "handshake", "first training", "later training", "evaluation"


def messages(lines: Iterable[Line]) -> list[tuple[str, float]]:
    """Return kind and seconds of each message that a SuperNode had answered."""
    found, asked = [], None
    for read, line in lines:
        if begun := CAME.search(line):
            asked = begun[1], read
        elif asked and SENT in line:
            found.append((asked[0], read - asked[1]))
            asked = None
    return found


def beside_work(
    answered: Iterable[tuple[str, float]], rows: Sequence[dict[str, Any]]
) -> dict[str, list[float]]:
    """Return seconds by kind of message, without those of training and evaluation in the run's rows.

    Raises
    ------
    ValueError
        If the rows are not those of the messages.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for kind, took in answered:
        seconds[kind].append(took)
    for kind in ("train", "evaluate") if rows else ():
        work = [row[f"{kind}-seconds"] for row in rows if f"{kind}-seconds" in row]
        seconds[kind] = [whole - own for whole, own in zip(seconds[kind], work, strict=True)]
    trained = seconds["train"]
    found = {HANDSHAKE: seconds["query"], FIRST: trained[:1], LATER: trained[1:]}
    return found | {EVALUATION: seconds["evaluate"]}


def measure(
    apps: Mapping[str, Path], first: int, repeats: int, num_rounds: int, settings: str
) -> dict[str, dict[str, list[float]]]:
    """Run the apps in turn on one site; return seconds of all but the `first` turns, by app and kind."""
    seconds: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in apps}
    node = ("--node-config", 'partition-id=0 num-partitions=1 policy="open"', "--port", str(free_port()))
    with ExitStack() as programs:
        scratch = programs.enter_context(tempfile.TemporaryDirectory())
        machine = programs.enter_context(superlink(Path(scratch)))
        command = ("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{machine.port}", *node)
        site = programs.enter_context(machine.program(*command))
        for turn in range(first + repeats):
            for name, app in apps.items():
                own, before = "" if name == EMPTY else f"num-clients=1 {settings}", len(site.lines)
                _, rows = machine.flwr_run(app, "--run-config", f"num-rounds={num_rounds} {own}")
                time.sleep(1)  # for what the SuperNode says last
                found = beside_work(messages(site.lines[before:]), rows)
                print(f"{name}: {len(found[LATER])} later rounds", flush=True)
                if turn >= first:
                    for kind, each in found.items():
                        seconds[name][kind] += each
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.supernode", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--apps", type=Path, nargs="+", default=[ROOT], help="checkouts, taken in turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each app")
    parser.add_argument("--first", type=int, default=1, help=FIRST_RUNS)
    parser.add_argument(
        "--set",
        default="train-examples=160 test-examples=40",
        metavar="KEY=VALUE ...",
        help="other settings of the run-config",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    apps = {EMPTY: EMPTY_APP, **{str(app): app.resolve() for app in options.apps}}
    seconds = measure(apps, options.first, options.repeats, options.rounds, options.set)
    medians = {
        name: {kind: statistics.median(each) for kind, each in own.items() if each}
        for name, own in seconds.items()
    }
    title = f"seconds a message without training and evaluation, medians, {machine_of()}"
    table = Table("app", *KINDS, "above the floor", title=title)
    for name, own in medians.items():
        cells = (f"{own[kind]:.2f}" if kind in own else "" for kind in KINDS)
        table.add_row(name, *cells, f"{own[LATER] - medians[EMPTY][LATER]:.2f}")
    Console().print(table)
    conditions = {key: vars(options)[key] for key in ("rounds", "set")}
    write_figures(
        options.json, machine_of(), {"conditions": conditions, "seconds": seconds, "medians": medians}
    )


if __name__ == "__main__":
    main()
