"""Which of a round's replies count."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, Message
from flwr.common.constant import SUPERLINK_NODE_ID

from .checks import cause, reason_to_refuse
from .outliers import absurd_counts, change, far_changes
from .replies import scalars

STRANGER = -1


@dataclass(frozen=True)
class Request:
    """What one node was sent, which takes part as partition `partition_id`."""

    partition_id: int
    message: Message

    @property
    def arrays(self) -> ArrayRecord:
        """The arrays in the message."""
        return next(iter(self.message.content.array_records.values()))


def accept(
    requests: Mapping[int, Request],
    replies: Iterable[Message],
    trained: bool,
    weight_key: str,
    max_change: float,
    said: Mapping[int, float],
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
        See `outliers.far_changes`.
    said : Mapping[int, float]
        See `outliers.absurd_counts`.

    Returns
    -------
    list[Message]
        The good replies, ordered by partition.
    list[tuple[int, str]]
        Partition (-1 for a node that was not asked) and reason of each refusal.
    """
    good: dict[int, Message] = {}
    refused: list[tuple[int, str]] = []
    pending = dict(requests)
    asked_by_id = {request.message.metadata.message_id: node for node, request in requests.items()}

    def sender(reply: Message) -> int:
        """Return whose reply it is: for a node that is gone the SuperLink itself replies, with an error."""
        metadata = reply.metadata
        if metadata.src_node_id == SUPERLINK_NODE_ID and reply.has_error():
            return asked_by_id.get(metadata.reply_to_message_id, SUPERLINK_NODE_ID)
        return metadata.src_node_id

    def partition(reply: Message) -> int:
        request = requests.get(sender(reply))
        return request.partition_id if request else STRANGER

    for reply in sorted(replies, key=partition):
        node = sender(reply)
        asked = requests.get(node)
        if asked and reply.metadata.reply_to_message_id != asked.message.metadata.message_id:
            # Of an earlier message; the reply to this one may still be among the others.
            refused.append((partition(reply), "late reply"))
            continue
        request = pending.pop(node, None)
        if request is None:
            reason: str | None = "second reply" if asked else f"node {node} was not asked"
        elif reply.has_error():
            reason = cause(reply.error)
        else:
            reason = reason_to_refuse(request.arrays if trained else None, reply.content, weight_key)
        if reason is None:
            good[partition(reply)] = reply
        else:
            refused.append((partition(reply), reason))
    refused += [(silent, "no reply in time") for silent in sorted(r.partition_id for r in pending.values())]
    if trained and good:
        counts = {index: cast(float, scalars(reply)[weight_key]) for index, reply in good.items()}
        sent = {request.partition_id: request.arrays for request in requests.values()}
        changes = {
            index: change(sent[index], next(iter(reply.content.array_records.values())))
            for index, reply in good.items()
        }
        far = far_changes(changes, next(iter(sent.values())), max_change) | absurd_counts(counts, said)
        refused += far.items()
        good = {index: reply for index, reply in good.items() if index not in far}
    return list(good.values()), refused
