"""Time a whole simulated round: what is training, and what is everything around it.

    python -m benchmarks.round

runs federations of 5, 20 and 100 clients with the real apps in this process, one client after the other, as
one worker of a simulation does. Of the rounds after the first it says how much is steps and evaluation, what
stands between a message and its first step, and what the server takes; of the first, how long it takes to
start. It counts how often a backbone is loaded, adapters are built and a client's data are processed.

Unless ``--train-examples 0``, a client has few steps, so that its share of the overhead is far larger than in
the default run. Where other work shares the cores, ``--clock cpu`` counts this process alone.
"""

import argparse
import logging
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest.mock import patch

from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.table import Table

import server_app.federation  # noqa: F401  # before what they import is patched
from server_app.checkpoints import Checkpoints

from .figures import machine_of, write_figures
from .homes import scratch_home
from .in_process import Federation

ROOT = Path(__file__).parents[1]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# What must happen once a process or once a client, where it is called.
COUNTED = {
    "backbones loaded": "app.backbones._frozen",
    "adapters built": "app.dual_adapter.DualAdapter.__init__",
    "splits processed": "app.families.family.process",
}


class Stopwatch:
    """What happened when, in one run.

    Attributes
    ----------
    began : list of float
        When each round began, and when the last one ended.
    messages : list of dict
        Of each message its kind and round, when it came, when its first and last step began and ended, when
        its reply was there, and the seconds of its steps or evaluation.
    counts : Counter
        How often each of `COUNTED` was called.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.began: list[float] = []
        self.messages: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()

    def message(self, app: Callable[..., Any]) -> Callable[..., Any]:
        """Time a ClientApp's answer to a message."""

        def timed(message: Any, context: Any) -> Any:
            kind = message.metadata.message_type
            row = {"kind": kind, "round": len(self.began), "came": self.clock(), "work": 0.0}
            self.messages.append(row)
            try:
                return app(message, context)
            finally:
                row["left"] = self.clock()

        return timed

    def work(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time a step, or an evaluation."""

        def timed(*args: Any, **keywords: Any) -> Any:
            row, started = self.messages[-1], self.clock()
            row.setdefault("first", started)
            outcome = function(*args, **keywords)
            row["last"] = self.clock()
            row["work"] += row["last"] - started
            return outcome

        return timed

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Count the calls of a function."""

        def count(*args: Any, **keywords: Any) -> Any:
            self.counts[name] += 1
            return function(*args, **keywords)

        return count

    def round_ends(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Note the end of what ends a round."""

        def noted(*args: Any, **keywords: Any) -> Any:
            outcome = function(*args, **keywords)
            self.began.append(self.clock())
            return outcome

        return noted


@contextmanager
def watched(watch: Stopwatch) -> Iterator[None]:
    """Have a stopwatch look at the real apps."""
    around: dict[str, Callable[..., Any]] = {
        "client_app.main.app": watch.message,
        "app.methods.feddat.FedDAT.step": watch.work,
        "client_app.messages.evaluate": watch.work,
        **{target: partial(watch.counted, name) for name, target in COUNTED.items()},
    }
    with ExitStack() as patches:
        for target, wrap in around.items():
            patches.enter_context(patch(target, wrap(resolve_name(target))))
        patches.enter_context(patch.object(Checkpoints, "save", watch.round_ends(Checkpoints.save)))
        yield


def measure(settings: dict[str, Any], clients: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Run a federation; return medians in seconds of the rounds after the first, and counts."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as inside a Flower task
    watch = Stopwatch(clock)
    started = clock()
    with scratch_home(), watched(watch):
        Federation(settings, clients, wire=None).serve()
    return {"clients": clients, **figures(watch, started)}


def figures(watch: Stopwatch, started: float) -> dict[str, Any]:
    """Reduce what was noted.

    `round` is a whole one, `work` its steps and evaluations, `inside` what ClientApps took beside their work,
    `outside` the rest: grid, strategy, checkpoint. `before-step` is from a training message to its first
    step, `after-step` from its last to the reply.
    """
    ends = dict(enumerate(watch.began))
    parts: dict[str, list[float]] = defaultdict(list)
    for server_round in range(2, len(ends)):
        own = [row for row in watch.messages if row["round"] == server_round]
        whole = ends[server_round] - ends[server_round - 1]
        work = sum(row["work"] for row in own)
        inside = sum(row["left"] - row["came"] for row in own) - work
        for key, value in (("round", whole), ("work", work), ("inside", inside)):
            parts[key].append(value)
        parts["outside"].append(whole - work - inside)
    trained = [row for row in watch.messages if row["kind"] == "train"]
    for row in trained:
        if row["round"] > 1:
            parts["before-step"].append(row["first"] - row["came"])
            parts["after-step"].append(row["left"] - row["last"])
    found: dict[str, Any] = {key: statistics.median(values) for key, values in parts.items()}
    found |= {f"{key}-most": max(values) for key, values in parts.items()}
    first = [row for row in watch.messages if row["round"] == 1]
    return {
        **found,
        "overhead": sum(parts["inside"] + parts["outside"]) / sum(parts["work"]),
        "start": ends[0] - started,
        "first-round": ends[1] - ends[0],
        "first-round-work": sum(row["work"] for row in first),
        "first-before-step": trained[0]["first"] - trained[0]["came"],
        "counts": dict(watch.counts),
    }


def table(lines: Sequence[dict[str, Any]], title: str) -> Table:
    """Show a column for each number of clients."""
    shown = Table("", *(f"{line['clients']} clients" for line in lines), title=title)
    for name, key in (
        ("a round", "round"),
        ("steps and evaluation", "work"),
        ("beside them, in clients", "inside"),
        ("beside them, on the server", "outside"),
    ):
        shown.add_row(name, *(f"{line[key]:.3f} s" for line in lines))
    shown.add_row("overhead", *(f"{100 * line['overhead']:.1f} %" for line in lines))
    for name, key in (("message to first step", "before-step"), ("last step to reply", "after-step")):
        both = ((1000 * line[key], 1000 * line[f"{key}-most"]) for line in lines)
        shown.add_row(name, *(f"{median:.1f} ms, most {most:.1f}" for median, most in both))
    shown.add_row("before round 1", *(f"{line['start']:.2f} s" for line in lines))
    first = (line["first-round"] - line["first-round-work"] for line in lines)
    shown.add_row("round 1, beside its work", *(f"{seconds:.2f} s" for seconds in first))
    for name in COUNTED:
        shown.add_row(name, *(str(line["counts"].get(name, 0)) for line in lines))
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--train-examples", type=int, default=32, help="a client; 0: all, as in the default run"
    )
    parser.add_argument("--test-examples", type=int, default=32)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    defaults = get_fused_config_from_dir(ROOT, {})
    own = {"num-rounds": options.rounds, "run-name": "round"}
    own |= {key: vars(options)[key.replace("-", "_")] for key in ("train-examples", "test-examples")}
    lines = [measure({**defaults, **own}, clients, CLOCKS[options.clock]) for clients in options.clients]
    machine = machine_of()
    steps = -(-options.train_examples // defaults["batch-size"]) or "all"
    title = f"{options.rounds} rounds, {steps} steps a client, {options.clock} time, {machine}"
    Console().print(table(lines, title))
    write_figures(options.json, machine, {"lines": lines})


if __name__ == "__main__":
    main()
