"""Measure what secure aggregation costs in bytes and seconds of CPU.

    python -m benchmarks.secure_aggregation

has clients that train nothing exchange keys, masks and shares for the shared adapter of ViLT-B/32, in this
process, and prints, by number of clients, what a step takes a client, what the server takes beyond a plain
round, all there and with a share of them lost after they dealt, and the bytes beside the arrays.
"""

import argparse
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.table import Table

from app.secure_sum import Codes, MaskedSum
from client_app.secure_aggregation import exchange, masked
from strategies import Checked, SecureAggregation

from .figures import machine_of, write_figures
from .in_process import Deployment

VILT_B32 = 894_528  # values of its shared adapter
STEPS = ("keys", "deal", "train", "open")


class Sites(Deployment):
    """Clients that change nothing and mask it.

    Attributes
    ----------
    seconds : dict[str, list[float]]
        Of CPU, by step, each client's.
    num_bytes : dict[str, list[int]]
        Beside the arrays, ``down`` and ``up``, by message.
    """

    def __init__(self, count: int, folder: Path, secure: bool, lost: int) -> None:
        config: dict[str, Any] = {"secure.aggregation": secure, "secure.threshold": 0.66, "secure.bits": 20}
        config["secure.range"] = 1.0
        super().__init__(config, count, wire=None, client_app=self._answer)
        for context in self.contexts.values():
            context.node_config["state-dir"] = str(folder / str(context.node_config["partition-id"]))
        self._lost = lost
        self.alter = self._lose
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.num_bytes: dict[str, list[int]] = defaultdict(list)

    def _answer(self, message: Message, context: Context) -> Message:
        config = message.content["config"]
        step = str(config.get("step", message.metadata.message_type))
        self.num_bytes["down"].append(_beside(message))
        started = time.process_time()
        if step == "query":
            about: dict[str, Any] = {
                key: context.node_config[key] for key in ("partition-id", "num-partitions")
            }
            return Message(RecordDict({"handshake": ConfigRecord(about)}), reply_to=message)
        reply = masked(message, context, _untrained) if step == "train" else exchange(message, context)
        self.seconds[step].append(time.process_time() - started)
        self.num_bytes["up"].append(_beside(reply))
        return reply

    def _lose(self, node: int, reply: Message) -> Message | None:
        lost = int(self.contexts[node].node_config["partition-id"]) < self._lost
        return None if lost and "arrays" in reply.content else reply


def _untrained(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)


def _beside(message: Message) -> int:
    return sum(record.count_bytes() for record in message.content.config_records.values())


def measure(clients: int, values: int, lost: int, secure: bool = True) -> tuple[Sites, float]:
    """Run one round; return the sites, and the CPU seconds that were not theirs."""
    secured = SecureAggregation(MaskedSum(Codes(20, 1.0))) if secure else None
    inner = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    strategy = Checked(inner, weighting="uniform", secure=secured, evaluate_on=lambda _: False)
    arrays = ArrayRecord({"x": Array(np.zeros(values, np.float32))})
    with TemporaryDirectory() as folder:
        sites = Sites(clients, Path(folder), secure, lost)
        started = time.process_time()
        strategy.start(sites, arrays, 1, train_config=ConfigRecord({"run-token": "benchmark"}))
        whole = time.process_time() - started
    return sites, whole - sum(map(sum, sites.seconds.values()))


def figures_of(clients: int, values: int, share: float) -> dict[str, Any]:
    """Return medians of a client's milliseconds by step, the server's seconds, and a client's bytes."""
    _, plain = measure(clients, values, 0, secure=False)
    sites, whole = measure(clients, values, 0)
    _, without = measure(clients, values, int(share * clients))
    return {
        "clients": clients,
        **{f"{step}-ms": 1000 * statistics.median(sites.seconds[step]) for step in STEPS},
        "server-seconds": whole - plain,
        "server-seconds-lost": without - plain,
        **{f"bytes-{way}": sum(sites.num_bytes[way]) / clients for way in ("down", "up")},
    }


def table_of(rows: Sequence[dict[str, Any]], values: int, share: float, machine: str) -> Table:
    """Show a line for each number of clients."""
    table = Table(
        "clients",
        *(f"{step}, ms" for step in STEPS),
        "server, s",
        f"with {100 * share:.0f} % lost, s",
        "kB down",
        "kB up",
        title=f"{values:,} values, CPU time, {machine}",
    )
    for row in rows:
        clock = [f"{row[f'{step}-ms']:.1f}" for step in STEPS]
        server = [f"{row[key]:.2f}" for key in ("server-seconds", "server-seconds-lost")]
        sent = [f"{row[f'bytes-{way}'] / 1000:.2f}" for way in ("down", "up")]
        table.add_row(str(row["clients"]), *clock, *server, *sent)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.secure_aggregation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 20, 50])
    parser.add_argument("--values", type=int, default=VILT_B32)
    parser.add_argument("--lost", type=float, default=0.3, help="share of the clients")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as inside a Flower task
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = [figures_of(clients, options.values, options.lost) for clients in options.clients]
    machine = machine_of()
    write_figures(options.json, machine, {"values": options.values, "lost": options.lost, "rows": rows})
    Console().print(table_of(rows, options.values, options.lost, machine))


if __name__ == "__main__":
    main()
