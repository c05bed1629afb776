"""Time how Flower finds the messages of a node, against how many nodes and messages there are.

    python -m benchmarks.message_scan

A simulation asks its store for the messages of each node in turn, ten times a second; a SuperLink is asked by
each SuperNode every 3 s. The store in memory goes through all messages under way to find those of one node,
whoever has been given them already, until the server has their replies: with a message to each node a
simulation's turn takes N². Here is one such turn, in CPU time, when all messages were given to their nodes:
with a message to each, to 100 and to 50 of them. `--database` measures the store in a file.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from rich.console import Console
from rich.table import Table

from .figures import machine_of, write_figures

UNDER_WAY = 100, 50


def store_with(nodes: int, database: str) -> tuple[LinkState, list[int]]:
    """Return a store of messages with a run and nodes that are there, and their ids."""
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory()).state()
    run = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, SUPERLINK_NODE_ID, 1
    ids = [state.create_node(NOOP_FLWR_AID, "", f"key {number}".encode(), 1e3) for number in range(nodes)]
    for node in ids:
        state.activate_node(node, 1e3)
    return state, ids


def turn(state: LinkState, nodes: Sequence[int]) -> float:
    """Ask once for the messages of each node; return CPU seconds."""
    began = time.process_time()
    for node in nodes:
        state.get_message_ins(node_id=node, limit=1)
    return time.process_time() - began


def measure(nodes: int, under_way: int, database: str, repeats: int) -> float:
    """Return the median of CPU seconds of a turn with so many messages under way."""
    state, ids = store_with(nodes, database)
    for node in ids[:under_way]:
        message = Message(RecordDict({"config": ConfigRecord({"node": node})}), node, "query")
        message.metadata.__dict__["_message_id"] = f"to {node}"
        assert state.store_message_ins(message)
    turn(state, ids)
    return statistics.median(turn(state, ids) for _ in range(repeats))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.message_scan", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--database", action="store_true", help="the store in a file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    table = Table("nodes", "a message to each", *(f"to {few}" for few in UNDER_WAY), title=machine_of())
    found: list[dict[str, Any]] = []
    for nodes in options.nodes:
        seconds = {}
        for under_way in (nodes, *UNDER_WAY):
            with tempfile.TemporaryDirectory() as folder:
                database = f"{folder}/superlink.db" if options.database else FLWR_IN_MEMORY_DB_NAME
                seconds[under_way] = measure(nodes, min(under_way, nodes), database, options.repeats)
        found.append({"nodes": nodes, "seconds": seconds})
        each = (seconds[nodes], *(cast(float, seconds[few]) for few in UNDER_WAY))
        table.add_row(f"{nodes:,}", *(f"{1000 * value:.1f} ms" for value in each))
    Console().print(table)
    write_figures(options.json, machine_of(), {"database": options.database, "turns": found})


if __name__ == "__main__":
    main()
