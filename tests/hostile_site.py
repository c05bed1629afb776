"""A registered site whose owner speaks Flower's protocol by hand, and says in it what is not so."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from tests.deployment import Site
from tests.processes import wait_until


@dataclass
class Hostile:
    """What such a site can do.

    Attributes
    ----------
    node_id : int
        Its own.
    calls : tuple
        Flower's: receive, send, pull an object, push one.
    run_id : int
        The run that it takes part in.
    """

    node_id: int
    calls: tuple[Callable[..., Any], ...]
    run_id: int

    def receive(self) -> Message:
        """Wait for a message to this site, and get it."""
        receive, _, pull, _ = self.calls
        about, tree = wait_until(receive)

        def there(name: str) -> bytes | None:
            """Get an object; a message is announced before all of it has come."""
            with suppress(ObjectUnavailableError):
                return pull(self.run_id, name)
            return None

        names = [part.object_id for part in iterate_object_tree(tree)]
        contents = {name: wait_until(partial(there, name)) for name in names}
        message = inflate_object_from_contents(about.metadata.message_id, contents)
        message.metadata.__dict__["_message_id"] = about.metadata.message_id
        return message

    def send(self, message: Message) -> bool:
        """Send a message or reply as it is; whether the SuperLink took it."""
        _, send, _, push = self.calls
        objects, tree = get_all_nested_objects(message), get_object_tree(message)
        message.metadata.__dict__["_message_id"] = message.object_id
        wanted, session = send(message, tree, 0.0)
        for name in wanted:
            push(self.run_id, session, name, objects[name].deflate())
        return bool(wanted)

    def answer(self, message: Message, content: RecordDict, node_id: int = 0, asked: str = "") -> bool:
        """Reply to a message; or as another node, to the message of that id."""
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = node_id or self.node_id
        if asked:
            reply.metadata.__dict__["_reply_to_message_id"] = asked
        return self.send(reply)

    def order(self, content: RecordDict, node_id: int, kind: str) -> bool:
        """Send another site a message in the server's name."""
        message = Message(content, dst_node_id=node_id, message_type=kind)
        message.metadata.__dict__.update(_src_node_id=SUPERLINK_NODE_ID, _run_id=self.run_id)
        return self.send(message)


def guess(own: Message, node_id: int, created_at: float) -> str:
    """Return the id that another node's message has if all but the node and its time is as in one's own."""
    other, metadata = copy(own), deepcopy(own.metadata)
    other.__dict__ = {
        key: metadata if value is own.metadata else value for key, value in own.__dict__.items()
    }
    metadata.__dict__.update(_dst_node_id=node_id, _created_at=created_at)
    other.__dict__.pop("_object_id", None)
    return other.object_id


@contextmanager
def hostile(site: Site, run_id: str, monkeypatch: Any) -> Iterator[Hostile]:
    """Connect by a site's key, at the port where sites come in."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, int(run_id) if name == "_run_id" else 1)
    key = load_ssh_private_key(site.key.read_bytes(), None)
    address, ca = f"localhost:{site.port}", site.deployment.ca.read_bytes()
    with http_request_response(address, False, ca, (key, key.public_key())) as connection:
        node_id, receive, send, _, _, pull, push, _ = connection
        failure = None
        try:
            yield Hostile(node_id, (receive, send, pull, push), int(run_id))
        except BaseException as error:
            failure = error  # Flower would log it, and go on
    if failure:
        raise failure
