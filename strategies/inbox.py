"""Which of a round's replies count."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message

from .checks import cause, reason_to_refuse

STRANGER = -1


@dataclass(frozen=True)
class Request:
    """What one node was sent: `arrays`, which it holds as partition `partition_id`."""

    partition_id: int
    arrays: ArrayRecord


def accept(
    requests: Mapping[int, Request],
    replies: Iterable[Message],
    trained: bool,
    weight_key: str,
    max_change: float,
) -> tuple[list[Message], list[tuple[int, str]]]:
    """Tell the replies that count from those that do not.

    Parameters
    ----------
    requests : Mapping[int, Request]
        What was sent, by node id. A node has one reply; the second is refused, whatever the first was.
    replies : Iterable[Message]
        What came back, in any order.
    trained : bool
        Whether the replies must hold arrays.
    weight_key : str
        The metric that weighs a reply.
    max_change : float
        See `checks.reason_to_refuse`.

    Returns
    -------
    list[Message]
        The good replies, ordered by partition.
    list[tuple[int, str]]
        Partition (-1 for a node that was not asked) and reason of each refusal, those without a reply last.
    """
    valid: list[Message] = []
    refused: list[tuple[int, str]] = []
    pending = dict(requests)

    def partition(reply: Message) -> int:
        request = requests.get(reply.metadata.src_node_id)
        return request.partition_id if request else STRANGER

    for reply in sorted(replies, key=partition):
        node = reply.metadata.src_node_id
        request = pending.pop(node, None)
        if request is None:
            reason: str | None = "second reply" if node in requests else f"node {node} was not asked"
        elif reply.has_error():
            reason = cause(reply.error)
        else:
            reason = reason_to_refuse(
                request.arrays if trained else None, reply.content, weight_key, max_change
            )
        if reason is None:
            valid.append(reply)
        else:
            refused.append((partition(reply), reason))
    refused += [(silent, "no reply in time") for silent in sorted(r.partition_id for r in pending.values())]
    return valid, refused
