"""What a SuperNode and its SuperLink said to each other over recorded connections, as Flower's messages."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

from flwr.app import Message
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from tests.proxy import Connection

FLEET = "/v1/fleet/"


@dataclass
class Recorded:
    """All that was said.

    Attributes
    ----------
    calls : set[str]
        Names of Flower's calls.
    messages : list[tuple[str, Message]]
        The messages, each with its way: "to client" or "to server".
    requests : int
        Calls that carried a message or a part of one.
    size : int
        Bytes of those calls, with all that HTTP and Flower put around the messages.
    """

    calls: set[str] = field(default_factory=set)
    messages: list[tuple[str, Message]] = field(default_factory=list)
    requests: int = 0
    size: int = 0


def read(nodes: Iterable[Iterable[Connection]]) -> list[Recorded]:
    """Take apart what each SuperNode sent and got.

    A message that the SuperLink did not want, such as a late reply, is announced and never sent: it is not
    among them.
    """
    # Content by id: Flower does not send again what the other side has, of this SuperNode or another one.
    known: dict[str, bytes] = {}
    read = [_read(connections, known) for connections in nodes]
    for recorded, found in read:
        # A SuperNode has several connections at once.
        for way, said in sorted(found, key=lambda pair: pair[1].metadata.created_at):
            if (message_id := said.metadata.message_id) in known:
                message = inflate_object_from_contents(message_id, known, keep_object_contents=True)
                recorded.messages.append((way, cast(Message, message)))
    return [recorded for recorded, _ in read]


def _read(
    connections: Iterable[Connection], known: dict[str, bytes]
) -> tuple[Recorded, list[tuple[str, ProtoMessage]]]:
    """Return one SuperNode's record without its messages, which are announced beside it; add to `known`."""
    recorded, found = Recorded(), []
    for connection in connections:
        for call, request, response, size in _exchanges(connection):
            recorded.calls.add(call)
            carried = 0
            if call == "pull-messages":
                pulled = PullMessagesResponse.FromString(response).messages_list
                found += [("to client", message) for message in pulled]
                carried = len(pulled)
            elif call == "push-messages":
                found += [("to server", m) for m in PushMessagesRequest.FromString(request).messages_list]
                carried = 1
            elif call == "pull-object":
                if content := PullObjectResponse.FromString(response).object_content:
                    known[PullObjectRequest.FromString(request).object_id] = content
                carried = 1
            elif call == "push-object":
                pushed = PushObjectRequest.FromString(request)
                known[pushed.object_id] = pushed.object_content
                carried = 1
            if carried:
                recorded.requests += 1
                recorded.size += size
    return recorded, found


def _exchanges(connection: Connection) -> Iterator[tuple[str, bytes, bytes, int]]:
    """Return each call with what was asked, what was answered, and the size of both."""
    asked, answered = list(_http(bytes(connection.up))), list(_http(bytes(connection.down)))
    # The last may have no answer yet, or never get one.
    for (line, request, up), (_, response, down) in zip(asked, answered, strict=False):
        path = line.split()[1]
        assert path.startswith(FLEET), line
        yield path.removeprefix(FLEET), request, response, up + down


def _http(stream: bytes) -> Iterator[tuple[str, bytes, int]]:
    """Return first line, body and whole size of each request or response of HTTP/1.1."""
    while stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {key.lower(): value.strip() for key, _, value in (text.partition(":") for text in lines)}
        assert not headers.keys() & {"transfer-encoding", "content-encoding"}, headers
        length = int(headers["content-length"])
        yield line, rest[:length], len(head) + 4 + length
        stream = rest[length:]
