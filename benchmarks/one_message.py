"""One message to one client, answered in a process of its own with a clock at every step.

    python -m benchmarks.one_message noop|query|train|evaluate --folder FOLDER --round R

It does what `flwr-clientapp` does between its start and its end, but takes the message from files in FOLDER
and leaves the reply unsent: Flower's own imports, the app's, the message unpacked, the ClientApp called, the
reply packed. `noop` calls a ClientApp that sends back what it got. `benchmarks.startup` starts it and reads
the clock.
"""

# Nothing but the standard library here: what is imported before the first lap counts as the interpreter's.
import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Clock:
    """Wall and CPU seconds since the lap before; the first one since the process began."""

    def __init__(self, began: float) -> None:
        # The wall clock is all that two processes have in common.
        self._wall, self._cpu = time.perf_counter() - (time.time() - began), 0.0
        self.laps: dict[str, dict[str, float]] = {}

    def lap(self, phase: str) -> None:
        """Give what has passed to a phase."""
        wall, cpu = time.perf_counter(), time.process_time()
        seconds = self.laps.setdefault(phase, {"wall": 0.0, "cpu": 0.0})
        seconds["wall"] += wall - self._wall
        seconds["cpu"] += cpu - self._cpu
        self._wall, self._cpu = wall, cpu

    def around(self, function: Callable, before: str, phase: str) -> Callable:
        """Give the time before a call to one phase, and that of the call to another."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.lap(before)
            result = function(*args, **kwargs)
            self.lap(phase)
            return result

        return timed


def answer(kind: str, folder: Path, server_round: int, clock: Clock) -> None:
    """Answer the message in `folder`: ``objects/`` as they travel, ``message.json`` with all else."""
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
    from flwr.supercore.task_identity import TaskIdentity

    # What the process imports before it knows its app.
    from flwr.supernode.cli import flwr_clientapp  # noqa: F401

    clock.lap("Flower")
    if kind == "noop":
        app = ClientApp()
        app.train()(lambda message, context: Message(message.content, reply_to=message))
    else:
        from client_app import main, messages

        app = main.app
        clock.lap("import")

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    facts = json.loads((folder / "message.json").read_text())
    contents = {path.name: path.read_bytes() for path in (folder / "objects").iterdir()}
    arrays: Any = inflate_object_from_contents(facts["arrays"], contents)
    config = ConfigRecord({**facts["config"], "server-round": server_round})
    message = Message(
        RecordDict({"arrays": arrays, "config": config}),
        dst_node_id=1,
        message_type="train" if kind == "noop" else kind,
    )
    context = Context(
        run_id=1,
        node_id=1,
        node_config=facts["node-config"],
        state=RecordDict(),
        run_config=facts["run-config"],
    )
    if kind in ("train", "evaluate"):
        from client_app.site_word import SITE_WORD, give_word

        message.content.config_records["config"][SITE_WORD] = give_word(context)
    clock.lap("message")

    if kind != "noop":
        # What the app would load anyway, and then has: one thing after another.
        from client_app.client import Client

        client = Client.of(context)
        _ = client.backbone
        clock.lap("backbone")
        if kind != "query":
            client.examples("test" if kind == "evaluate" else "train")
        clock.lap("data")
        for name in ("train_round", "evaluate"):
            setattr(messages, name, clock.around(getattr(messages, name), "adapters", "compute"))
    reply = app(message, context)
    clock.lap("state")
    get_object_tree(reply)
    for part in get_all_nested_objects(reply).values():
        part.deflate()
    clock.lap("reply")


def main(arguments: list[str]) -> None:
    """Answer, then write the laps as a line of JSON to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.one_message", description=__doc__.splitlines()[0]
    )
    parser.add_argument("kind", choices=("noop", "query", "train", "evaluate"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--round", type=int, default=1)
    parser.add_argument("--began", type=float, default=None, help="time.time() when the process was started")
    options = parser.parse_args(arguments)
    clock = Clock(options.began or time.time())
    clock.lap("process")
    answer(options.kind, options.folder, options.round, clock)
    print(json.dumps(clock.laps))


if __name__ == "__main__":
    main(sys.argv[1:])
