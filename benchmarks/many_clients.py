"""Follow a server through many rounds of a few among many clients: what grows, and with what.

    python -m benchmarks.many_clients

runs the real ServerApp with its checks, checkpoints, rows and report for 200 rounds of 50 among 100 clients,
and the same among 1,000. Clients are answers made up in this process in no time: what was received with
noise, as large as an honest change. A round's time is the server's CPU time from its first message to the
next round's, without theirs; medians over each quarter of the rounds say whether it grows. Beside it the
process's memory and what the run keeps on disk.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.table import Table

from app import __version__
from app.backbones import open_backbone
from app.records import SCHEMA
from app.settings import read_settings
from app.source import source_hash

from .figures import machine_of, write_figures
from .homes import scratch_home
from .in_process import Federation

ROOT = Path(__file__).parents[1]
QUARTERS = 4
MB = 1e6


class Answering:
    """A ClientApp that makes its answers up, and what was seen between its calls.

    Attributes
    ----------
    rounds : list of float
        CPU seconds of each round, without those in here.
    memory : list of int
        Bytes that the process held when each round began.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.backbone = open_backbone(read_settings(settings)).fingerprint
        self.rounds: list[float] = []
        self.memory: list[int] = []
        self._round = 0
        self._own = self._began = 0.0
        self._process = psutil.Process()
        self._random = np.random.default_rng(0)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as a client of this run would."""
        came = time.process_time()
        content = getattr(self, f"_{message.metadata.message_type}")(message, context)
        reply = Message(content, reply_to=message)
        self._own += time.process_time() - came
        return reply

    def _query(self, message: Message, context: Context) -> RecordDict:
        said: dict[str, Any] = {
            "partition-id": context.node_config["partition-id"],
            "num-partitions": context.node_config["num-partitions"],
            "version": __version__,
            "schema": SCHEMA,
            "source": source_hash(),
            "backbone": self.backbone,
            "name": f"client {context.node_config['partition-id']}",
        }
        return RecordDict({"handshake": ConfigRecord(said)})

    def _train(self, message: Message, context: Context) -> RecordDict:
        self._notice(cast(int, message.content.config_records["config"]["server-round"]))
        arrays = {
            name: Array(value + self._random.normal(0, 0.01, value.shape).astype(value.dtype))
            for name, array in message.content.array_records["arrays"].items()
            for value in [array.numpy()]
        }
        measured: dict[str, Any] = {
            "num-examples": 100,
            "ce-student": 1.0,
            "ce-teacher": 1.0,
            "delta-shared": 0.5,
        }
        return RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(measured)})

    def _evaluate(self, message: Message, context: Context) -> RecordDict:
        measured: dict[str, Any] = {"num-examples": 100, "student": 0.5, "local": 0.5, "teacher": 0.5}
        return RecordDict({"metrics": MetricRecord(measured)})

    def _notice(self, server_round: int) -> None:
        if server_round == self._round:
            return
        now = time.process_time()
        if self._round:
            self.rounds.append(now - self._began - self._own)
        self._round, self._began, self._own = server_round, now, 0.0
        self.memory.append(self._process.memory_info().rss)


def follow(clients: int, sampled: int, num_rounds: int) -> dict[str, Any]:
    """Run a server, and return what its rounds took and what it kept."""
    settings: dict[str, Any] = {
        **get_fused_config_from_dir(ROOT, {}),
        "run-name": "many",
        "num-clients": clients,
        "num-rounds": num_rounds,
        "fraction-train": sampled / clients,
        "evaluate-every": num_rounds,
    }
    with scratch_home():
        answering = Answering(settings)
        federation = Federation(
            settings, clients, node_id=lambda partition: partition + 1, client_app=answering, wire=None
        )
        began = time.process_time()
        folder = federation.serve()
        seconds = time.process_time() - began
        rows = (folder / "metrics.jsonl").stat().st_size
        kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    per_quarter = len(answering.rounds) // QUARTERS
    quarters = [
        statistics.median(answering.rounds[start : start + per_quarter])
        for start in range(0, per_quarter * QUARTERS, per_quarter)
    ]
    return {
        "clients": clients,
        "sampled": sampled,
        "rounds": num_rounds,
        "seconds": seconds,
        "median seconds of a round, by quarter": quarters,
        "memory after the first quarter": answering.memory[per_quarter],
        "memory at the end": answering.memory[-1],
        "metrics.jsonl": rows,
        "run folder": kept,
    }


def show(figures: Sequence[dict[str, Any]]) -> None:
    """Print what was seen as a table."""
    table = Table(
        "clients", "a round", "rounds", "ms a round, by quarter", "MB held: ¼, end", "MB kept", "rows"
    )
    for one in figures:
        table.add_row(
            f"{one['clients']:,}",
            str(one["sampled"]),
            str(one["rounds"]),
            ", ".join(f"{1000 * value:.0f}" for value in one["median seconds of a round, by quarter"]),
            f"{one['memory after the first quarter'] / MB:.0f}, {one['memory at the end'] / MB:.0f}",
            f"{one['run folder'] / MB:.1f}",
            f"{one['metrics.jsonl'] / MB:.1f}",
        )
    Console(width=110).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--sampled", type=int, default=50, help="clients that train in a round")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    options = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, 1)
    figures = [follow(clients, options.sampled, options.rounds) for clients in options.clients]
    show(figures)
    write_figures(options.out, machine_of(), {"runs": figures})


if __name__ == "__main__":
    main()
