"""Time what a run's protection costs: checks of replies, files of private state, checkpoints.

    python -m benchmarks.protection

runs the default federation (tiny-vilt, 5 clients of 38 steps) in this process, one client after the other,
with a clock at every check and every file, and prints the medians and their share of a round's training. It
exits with 1 when the share is more than 5 %.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.table import Table

from .figures import machine_of, verdict, write_figures
from .homes import scratch_home
from .in_process import Federation

ROOT = Path(__file__).parents[1]
LIMIT = 0.05
# What is timed, where it is called, and whether each client does it in a round.
PARTS = {
    "load private state": ("client_app.client.load_private_state", True),
    "train": ("client_app.messages.train_round", True),
    "save private state": ("client_app.client.save_private_state", True),
    "check replies": ("strategies.feddat.FedDAT._trained", False),
    "write checkpoint": ("server_app.checkpoints.Checkpoints.save", False),
}


@contextmanager
def clock(target: str, seconds: list[float]) -> Iterator[None]:
    """Time every call of a function by its dotted name."""
    function = resolve_name(target)

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    with patch(target, timed):
        yield


def measure(settings: dict[str, Any], clients: int) -> dict[str, list[float]]:
    """Run a federation; return the seconds of every call, by part."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as inside a Flower task
    seconds: dict[str, list[float]] = defaultdict(list)
    with scratch_home(), ExitStack() as clocks:
        for part, (target, _) in PARTS.items():
            clocks.enter_context(clock(target, seconds[part]))
        Federation(settings, clients, wire=None).serve()
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.protection", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    settings = get_fused_config_from_dir(ROOT, {})
    # Evaluation loads private state and checks replies too, but is no part of a round's training.
    own = {"num-rounds": options.rounds, "evaluate-every": options.rounds, "device": options.device}
    calls = measure({**settings, "run-name": "protection", **own}, options.clients)
    machine = machine_of()
    table = Table(
        "part",
        "one call",
        "a round",
        "share of training",
        title=f"{options.clients} clients, medians of {options.rounds} rounds, {machine}",
    )
    rounds = {
        part: statistics.median(seconds) * (options.clients if PARTS[part][1] else 1)
        for part, seconds in calls.items()
    }
    for part, seconds in calls.items():
        one = 1000 * statistics.median(seconds)
        share = 100 * rounds[part] / rounds["train"]
        table.add_row(part, f"{one:.1f} ms", f"{1000 * rounds[part]:.0f} ms", f"{share:.2f} %")
    Console().print(table)
    share = sum(seconds for part, seconds in rounds.items() if part != "train") / rounds["train"]
    write_figures(options.json, machine, {"round-seconds": rounds, "share": share})
    return verdict(share <= LIMIT, f"protection is {100 * share:.2f} % of a round's training")


if __name__ == "__main__":
    sys.exit(main())
