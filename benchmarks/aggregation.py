"""Time the server's half of a round: FedDAT's checks and the strategy's mean, beside numpy's own sum.

    python -m benchmarks.aggregation

gives 10 to 1,000 replies of the size of ViLT-B/32's shared adapter to `FedDAT(FedAvg())`, and grows the
clients, the adapter and the rounds. The replies share few different payloads, so that a thousand fit into
memory. Beside it: one pass of numpy over the same bytes, adding each to one sum; no aggregation can beat it
by much. ``--plot FILE`` draws the growth.
"""

import argparse
import gc
import logging
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.table import Table

from strategies import FedDAT, Limits

from .figures import machine_of, write_figures

PAYLOADS = 8  # different replies; 29 MB of them are more than a core's cache
BLOCKS = 12  # of ViLT-B/32, each with a bottleneck of width 48
MB = 1e6
SERIES = {"numpy": "numpy's sum", "fedavg": "FedAvg", "feddat": "FedDAT(FedAvg)"}


def adapter(blocks: int, seed: int) -> dict[str, np.ndarray]:
    """Return a shared adapter of ViLT-B/32's width with random values."""
    random = np.random.default_rng(seed)
    shapes = {"down.weight": (48, 768), "down.bias": (48,), "up.weight": (768, 48), "up.bias": (768,)}
    return {
        f"encoder.layer.{block}.output.{name}": random.normal(size=shape).astype(np.float32)
        for block in range(blocks)
        for name, shape in shapes.items()
    }


class Nodes(Grid):
    """Nodes that have answered already: `payloads` in turn, with a header of each client's own."""

    run = None  # type: ignore[assignment]

    def __init__(self, clients: int, payloads: Sequence[ArrayRecord]) -> None:
        self.clients, self.payloads = clients, payloads

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return range(1, self.clients + 1)

    def answers(self, messages: Iterable[Message]) -> list[Message]:
        """Return a reply to each message."""
        replies = []
        for index, message in enumerate(messages):
            content = RecordDict(
                {
                    "arrays": self.payloads[index % len(self.payloads)],
                    "metrics": MetricRecord({"num-examples": 100 + index % 7, "loss": 0.5}),
                }
            )
            replies.append(Message(content, reply_to=message))
            replies[-1].metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        return replies

    def set_run(self, run):
        """Not needed here, as all that follows."""
        raise NotImplementedError

    create_message = push_messages = pull_messages = send_and_receive = set_run  # type: ignore[assignment]


def rounds(
    make: Callable[[], Strategy], clients: int, blocks: int, num_rounds: int, memory: bool = False
) -> tuple[list[float], int]:
    """Aggregate; return the CPU seconds of each round, and with `memory` the largest extra bytes of any.

    Measuring memory slows the clock down, so one call does one of them.
    """
    start = ArrayRecord({name: Array(values) for name, values in adapter(blocks, 0).items()})
    payloads = [
        ArrayRecord({name: Array(values) for name, values in adapter(blocks, 1 + seed).items()})
        for seed in range(min(PAYLOADS, clients))
    ]
    grid, strategy, arrays = Nodes(clients, payloads), make(), start
    seconds, extra = [], 0
    for server_round in range(1, num_rounds + 1):
        replies = grid.answers(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
        gc.collect()
        if memory:
            tracemalloc.start()
        started = time.process_time()
        aggregate, _ = strategy.aggregate_train(server_round, replies)
        seconds.append(time.process_time() - started)
        if memory:
            extra = max(extra, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert aggregate is not None
        arrays = aggregate
    return seconds, extra


def numpy_sum(clients: int, blocks: int, repeats: int) -> list[float]:
    """Add the same arrays up with numpy, one pass over them; return the CPU seconds of each repeat."""
    payloads = [list(adapter(blocks, 1 + seed).values()) for seed in range(min(PAYLOADS, clients))]
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        total = [values.copy() for values in payloads[0]]
        for index in range(1, clients):
            for kept, values in zip(total, payloads[index % len(payloads)], strict=True):
                kept += values
        seconds.append(time.process_time() - started)
    return seconds


def plain() -> Strategy:
    """Make Flower's FedAvg alone."""
    return FedAvg(min_train_nodes=1, min_available_nodes=1)


def wrapped() -> Strategy:
    """Make it inside FedDAT, with all checks that a run has."""
    return FedDAT(plain(), handshake=False, limits=Limits(max_change=10), weighting="num-examples")


def measure(clients: int, blocks: int, num_rounds: int) -> dict[str, float]:
    """Return medians of seconds, their spread, and peak extra megabytes of one size of federation."""
    size = sum(values.nbytes for values in adapter(blocks, 0).values())
    found: dict[str, float] = {"clients": clients, "reply-mb": size / MB, "rounds": num_rounds}
    for name, seconds in (
        ("numpy", numpy_sum(clients, blocks, num_rounds)),
        ("fedavg", rounds(plain, clients, blocks, num_rounds)[0]),
        ("feddat", rounds(wrapped, clients, blocks, num_rounds)[0]),
    ):
        found[name] = statistics.median(seconds)
        found[f"{name}-least"], found[f"{name}-most"] = min(seconds), max(seconds)
    found["extra-mb"] = rounds(wrapped, clients, blocks, 1, memory=True)[1] / MB
    return found


def table(lines: Sequence[dict[str, float]], machine: str) -> Table:
    """Show a line for each size of federation: milliseconds, and of FedDAT its least and most."""
    shown = Table("clients", "MB", "numpy", "FedAvg", "FedDAT", "least–most", "GB/s", "× numpy", "extra MB")
    shown.title = f"aggregation in ms of CPU, medians; {machine}"
    for line in lines:
        shown.add_row(
            f"{line['clients']:.0f}",
            f"{line['reply-mb']:.2f}",
            *(f"{1000 * line[key]:.1f}" for key in ("numpy", "fedavg", "feddat")),
            f"{1000 * line['feddat-least']:.1f}–{1000 * line['feddat-most']:.1f}",
            f"{line['clients'] * line['reply-mb'] / 1000 / line['feddat']:.2f}",
            f"{line['feddat'] / line['numpy']:.1f}",
            f"{line['extra-mb']:.1f}",
        )
    return shown


def draw(growth: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw seconds over clients, over the size of the adapter, and round by round."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (name, key, label) in zip(
        axes,
        (
            ("clients", "clients", "clients"),
            ("sizes", "reply-mb", "MB a reply, 100 clients"),
            ("rounds", "round", "round, 100 clients"),
        ),
        strict=True,
    ):
        lines = growth[name]
        x = [line[key] for line in lines]
        for colour, (series, title) in enumerate(SERIES.items()):
            if all(series in line for line in lines):
                axis.plot(x, [line[series] for line in lines], "o-", color=f"C{colour}", label=title)
        if name != "rounds":
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(x, [f"{value:.4g}" for value in x])
            axis.minorticks_off()
        else:
            axis.set_ylim(0, 1.3 * max(line["feddat"] for line in lines))
        axis.set(xlabel=label, ylabel="CPU seconds a round")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aggregation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 12, 48], help="of 0.3 MB, 100 clients")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--many-rounds", type=int, default=20, help="one after another, 100 clients")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw the growth to this file")
    options = parser.parse_args(arguments)
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as inside a Flower task
    logging.getLogger("flwr").setLevel(logging.WARNING)
    some = min(100, max(options.clients))
    machine = f"{machine_of()}, numpy {np.__version__}"
    growth = {"clients": [measure(clients, BLOCKS, options.rounds) for clients in options.clients]}
    growth["sizes"] = [measure(some, blocks, options.rounds) for blocks in options.blocks]
    each, _ = rounds(wrapped, some, BLOCKS, options.many_rounds)
    growth["rounds"] = [{"round": 1 + index, "feddat": seconds} for index, seconds in enumerate(each)]
    Console().print(table([*growth["clients"], *growth["sizes"]], machine))
    third = max(1, len(each) // 3)
    first, last = (1000 * statistics.median(part) for part in (each[:third], each[-third:]))
    print(f"{len(each)} rounds of {some} clients: first third {first:.1f} ms a round, last {last:.1f} ms")
    write_figures(options.json, machine, growth)
    if options.plot:
        draw(growth, options.plot)


if __name__ == "__main__":
    main()
