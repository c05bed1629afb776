"""A federation in one process: real apps on a grid that calls one client after the other."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from app.settings import feddat_home


@dataclass
class Deployment(Grid):
    """Nodes that answer at once, in one process, with a real ClientApp; to the server they are sites.

    Attributes
    ----------
    run_config : dict
        The run's settings.
    num_clients : int
        How many nodes there are.
    node_config : dict
        What every node's configuration holds besides its partition.
    node_id : Callable[[int], int]
        Partition → id of its node: not in the order of the partitions, as on a real grid.
    alter : Callable[[int, Message], Message or None]
        May change a reply on its way, or lose it (None); gets the id of its node.
    wire : list or None
        Every message and reply with where it goes; None keeps none.
    client_app : Callable[[Message, Context], Message], optional
        What answers, as a ClientApp does. None: this project's own.
    """

    run_config: dict[str, Any]
    num_clients: int
    node_config: dict[str, Any] = field(default_factory=dict)
    node_id: Callable[[int], int] = lambda partition: 1000 - 7 * partition
    alter: Callable[[int, Message], Message | None] = lambda node, reply: reply
    wire: list[tuple[str, Message]] | None = field(default_factory=list)
    client_app: Callable[[Message, Context], Message] | None = None

    run = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.contexts = {
            self.node_id(partition): Context(
                run_id=1,
                node_id=self.node_id(partition),
                node_config={
                    "partition-id": partition,
                    "num-partitions": self.num_clients,
                    "policy": "open",  # the nodes are the user's own
                    **self.node_config,
                },
                state=RecordDict(),
                run_config=self.run_config,
            )
            for partition in range(self.num_clients)
        }

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return set(self.contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes without keys: each is known by its id."""
        return [NodeInfo(node_id=node) for node in self.get_node_ids()]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Call each message's client; what it raises becomes an error reply, as Flower does."""
        app = self.client_app or own_client_app()
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self._keep("to client", message)
            try:
                reply = app(deepcopy(message), self.contexts[node])
            except Exception as error:
                wrapped = ClientAppException(str(error))
                reason = f"{type(wrapped)}:<'{wrapped}'>"
                reply = Message(Error(code=2, reason=reason), reply_to=message)
            if (altered := self.alter(node, reply)) is None:
                continue
            # A ClientApp does not know its node in one process.
            altered.metadata.__dict__["_src_node_id"] = node
            self._keep("to server", altered)
            replies.append(altered)
        return replies

    def serve(self) -> Path:
        """Run this project's ServerApp to its end and return the run's folder."""
        from server_app.main import app

        self.call(app)
        return feddat_home() / "runs" / self.run_config["run-name"]

    def call(self, server_app: ServerApp) -> None:
        """Run a ServerApp to its end."""
        context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=self.run_config)
        server_app(self, context)

    def set_run(self, run):
        """Not needed here, as all that follows."""
        raise NotImplementedError

    create_message = push_messages = pull_messages = set_run  # type: ignore[assignment]

    def _keep(self, where: str, message: Message) -> None:
        if self.wire is not None:
            self.wire.append((where, deepcopy(message)))


class Federation(Deployment, InMemoryGrid):  # type: ignore[misc]
    """The same as a simulation: to the server all nodes are the user's own."""


def own_client_app() -> ClientApp:
    """Return this project's ClientApp."""
    from client_app.main import app

    return app
