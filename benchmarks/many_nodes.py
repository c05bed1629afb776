"""Follow a real SuperLink and ServerApp through rounds of a few among many nodes: what grows, and with what.

    python -m benchmarks.many_nodes

A SuperNode is two processes, and a third for each message: hundreds do not fit on a machine. Here the nodes
are threads of this process. Each has what a SuperNode connects with, Flower's own `http_request_response`: a
key, its registration, heartbeats and signed requests; it asks for messages every 3 s and fetches the run and
its app, as a SuperNode does. What a ClientApp would answer is made up by `many_clients.Answering`. So of the
SuperLink and the ServerApp all is real but the network; of the sites nothing is.

CPU time and memory are each process's own, from the first training message of a round to that of the next;
medians over each quarter of the rounds say whether they grow. Before the run the nodes only ask for messages:
what that takes the SuperLink is Flower's price of nodes that are there and not sampled. Nodes share the
machine with the two, so the seconds of a round say how long a round takes here, and no more.
"""

import argparse
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from flwr.app import Context, Message, RecordDict
from flwr.common.config import get_fused_config_from_dir
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response
from rich.console import Console
from rich.table import Table

from .figures import machine_of, write_figures
from .many_clients import MB, QUARTERS, ROOT, Answering
from .real_processes import superlink

# As a SuperNode that got no message.
POLL_SECONDS = 3.0
SUPERLINK, SERVERAPP = "flower-superlink", "flwr-serverapp"


class Watching(Answering):
    """Made-up answers of many nodes, which notes at each new round what the server's processes have used.

    Attributes
    ----------
    rounds : list of dict
        When each began, in seconds, and by process its CPU seconds and bytes of memory until then.
    """

    rounds: list[dict[str, Any]]  # type: ignore[assignment]

    def _notice(self, server_round: int) -> None:
        if server_round != self._round:
            self._round = server_round
            self.rounds.append(used())


def used() -> dict[str, Any]:
    """Return the time, and what SuperLink and ServerApp have used, as far as they are there."""
    found: dict[str, Any] = {"at": time.perf_counter()}
    for process in psutil.Process().children(recursive=True):
        try:
            words = " ".join(process.cmdline()[:3])
            name = next((name for name in (SUPERLINK, SERVERAPP) if name in words), None)
            if name:
                spent = process.cpu_times()
                found[name] = {"cpu": spent.user + spent.system, "memory": process.memory_info().rss}
        except psutil.Error:  # it has just ended
            continue
    return found


class Node:
    """A node that asks a SuperLink for messages, and answers them.

    Parameters
    ----------
    connection : tuple
        What `http_request_response` gives.
    context : Context
        As of a ClientApp.
    answering : Answering
        Makes the answers of all nodes up.
    turn : threading.Lock
        Whose turn it is with `answering`.
    poll : float
        Seconds until it asks again when there was no message.
    """

    def __init__(
        self,
        connection: tuple[Any, ...],
        context: Context,
        answering: Answering,
        turn: threading.Lock,
        poll: float,
    ) -> None:
        _, self._receive, self._send, self._run, self._fab, self._pull, self._push, self._confirm = connection
        self._context, self._answering, self._turn, self._poll = context, answering, turn, poll
        self._known = False

    def serve(self, stop: threading.Event, wait: float) -> None:
        """Ask and answer until it is told to stop, first after `wait` seconds."""
        while not stop.wait(wait):
            try:
                answered = self.ask()
            except (Exception, RunNotRunningException) as error:  # it is over, or the SuperLink too busy
                answered = False
                if stop.is_set():
                    return
                logging.getLogger(__name__).warning("a node goes on: %s", error)
            wait = 0.0 if answered else self._poll

    def ask(self) -> bool:
        """Answer a message, if there is one; return whether there was."""
        if (received := self._receive()) is None:
            return False
        message, tree = received
        run, name = message.metadata.run_id, message.metadata.message_id
        if not self._known:
            self._fab(self._run(run).fab_hash, run)
            self._known = True
        parts = pull_objects([part.object_id for part in iterate_object_tree(tree)], partial(self._pull, run))
        self._confirm(run, name)
        whole = inflate_object_from_contents(name, parts)
        assert isinstance(whole, Message)
        whole.metadata.__dict__["_message_id"] = name
        with self._turn:
            reply = self._answering(whole, self._context)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = get_all_nested_objects(reply)
        wanted, session = self._send(reply, get_object_tree(reply), 0.0)
        push_objects(objects, partial(self._push, run, session), object_ids_to_push=wanted)
        return True


@contextmanager
def nodes(port: int, many: int, poll: float, answering: Answering, left: ExitStack) -> Iterator[None]:
    """Have nodes at a SuperLink until the block ends; their connections are closed with `left`."""
    turn, stop, threads = threading.Lock(), threading.Event(), []
    for partition in range(many):
        connection = left.enter_context(http_request_response(f"127.0.0.1:{port}", insecure=True))
        own: dict[str, Any] = {"partition-id": partition, "num-partitions": many}
        context = Context(run_id=0, node_id=connection[0], node_config=own, state=RecordDict(), run_config={})
        node = Node(connection, context, answering, turn, poll)
        # Not all at once.
        first = poll * (partition + 1) / many
        threads.append(threading.Thread(target=node.serve, args=(stop, first), daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()


def follow(
    many: int, sampled: int, num_rounds: int, poll: float, idle: float, *options: str
) -> dict[str, Any]:
    """Run a server with so many nodes; return what it used while they only asked, and in each round.

    Raises
    ------
    RuntimeError
        If the run ends before so many rounds.
    """
    own = {
        "num-clients": many,
        "num-rounds": num_rounds + 1,
        "fraction-train": sampled / many,
        "evaluate-every": num_rounds + 1,
        # A node whose request fails has lost its message.
        "wait-seconds": 900.0,
        "round-timeout": 300.0,
    }
    answering = Watching({**get_fused_config_from_dir(ROOT, {}), **own})
    settings = " ".join(f"{key}={value}" for key, value in own.items())
    failed = ""
    # The connections are closed when the SuperLink is gone: none of them has to say goodbye. Flower's swallow
    # what is raised inside.
    with ExitStack() as left:
        scratch = left.enter_context(tempfile.TemporaryDirectory())
        with superlink(Path(scratch), *options) as machine:
            began = time.perf_counter()
            with nodes(machine.port, many, poll, answering, left):
                joined, before = time.perf_counter() - began, used()
                threading.Event().wait(idle)
                after = used()
                run = ("flwr", "run", str(ROOT), "here", "--stream", "--run-config", settings)
                with machine.program(*run) as program:
                    while len(answering.rounds) <= num_rounds:
                        if program.process.poll() is not None:
                            failed = program.said()[-2000:]
                            break
                        threading.Event().wait(1.0)
    if failed:
        raise RuntimeError(f"the run is over: {failed}")
    marks = answering.rounds
    programs = SUPERLINK, SERVERAPP
    return {
        "nodes": many,
        "sampled": sampled,
        "seconds to join": joined,
        "cpu while they ask": (after[SUPERLINK]["cpu"] - before[SUPERLINK]["cpu"])
        / (after["at"] - before["at"]),
        "seconds to the first round": marks[0]["at"] - after["at"],
        "cpu to the first round": {name: marks[0][name]["cpu"] for name in programs},
        "seconds": [later["at"] - now["at"] for now, later in pairwise(marks)],
        "cpu": {
            name: [later[name]["cpu"] - now[name]["cpu"] for now, later in pairwise(marks)]
            for name in programs
        },
        "memory": {name: [mark[name]["memory"] for mark in marks] for name in programs},
    }


def quarters(values: Sequence[float]) -> list[float]:
    """Return the median of each quarter of the rounds."""
    each = max(1, len(values) // QUARTERS)
    return [statistics.median(values[start : start + each]) for start in range(0, each * QUARTERS, each)]


def show(figures: Sequence[dict[str, Any]]) -> None:
    """Print what was seen as a table."""
    by_quarter = "by quarter"
    table = Table(
        "nodes",
        "a round",
        "asking: CPU s/s",
        f"s a round, {by_quarter}",
        f"SuperLink: CPU s, {by_quarter}",
        "MB: ¼, end",
        f"ServerApp: CPU s, {by_quarter}",
        "MB: ¼, end",
        title=machine_of(),
    )

    def listed(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.2f}" for value in quarters(values))

    for one in figures:
        cells = [f"{one['nodes']:,}", str(one["sampled"]), f"{one['cpu while they ask']:.2f}"]
        cells.append(listed(one["seconds"]))
        for name in (SUPERLINK, SERVERAPP):
            memory = one["memory"][name]
            cells.append(listed(one["cpu"][name]))
            cells.append(f"{memory[len(memory) // QUARTERS] / MB:.0f}, {memory[-1] / MB:.0f}")
        table.add_row(*cells)
    Console(width=140).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.many_nodes", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--sampled", type=int, default=10, help="nodes that train in a round")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--poll", type=float, default=POLL_SECONDS, help="seconds until a node asks again for messages"
    )
    parser.add_argument("--idle", type=float, default=20.0, help="seconds in which nodes only ask")
    parser.add_argument("--database", action="store_true", help="the SuperLink keeps its state in a file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    for name in ("_run_id", "_node_id", "_task_id"):
        setattr(TaskIdentity, name, 1)
    kept = ("--database", "superlink.db") if options.database else ()
    figures = []
    for many in options.nodes:
        figures.append(follow(many, options.sampled, options.rounds, options.poll, options.idle, *kept))
        show(figures[-1:])
    write_figures(
        options.json, machine_of(), {"database": options.database, "poll": options.poll, "runs": figures}
    )


if __name__ == "__main__":
    main()
