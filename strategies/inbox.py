"""Which of a round's replies count."""

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from math import inf
from typing import cast

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID

from .checks import cause, one_line, reason_to_refuse
from .codec import Codec
from .metrics import Ranges, kept
from .outliers import absurd_counts, change, far_changes
from .replies import bytes_of, scalars

STRANGER = -1


@dataclass(frozen=True)
class Request:
    """What one node was sent.

    Attributes
    ----------
    partition_id : int
        It takes part as this partition.
    content : RecordDict
        What the strategy sends.
    message : Message
        The same as it travels.
    """

    partition_id: int
    content: RecordDict
    message: Message

    @property
    def arrays(self) -> ArrayRecord:
        """The arrays that the strategy sends."""
        return next(iter(self.content.array_records.values()))

    @property
    def travelling(self) -> ArrayRecord:
        """The arrays in the message."""
        return next(iter(self.message.content.array_records.values()))


@dataclass(frozen=True)
class Reply:
    """One that counts.

    Attributes
    ----------
    partition_id : int
        Whose it is.
    message : Message
        The reply, its arrays decoded, without the metrics that do not count.
    num_bytes : int
        What its arrays took as they came, their names included.
    dropped : list[str]
        Names of the metrics that do not count.
    """

    partition_id: int
    message: Message
    num_bytes: int
    dropped: list[str]


def accept(
    requests: Mapping[int, Request],
    replies: Iterable[Message],
    trained: bool,
    weight_key: str,
    max_change: float,
    said: Mapping[int, float],
    codec: Codec | None = None,
    ranges: Ranges | None = None,
) -> tuple[list[Reply], list[tuple[int, str]]]:
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
    codec : Codec, optional
        What wrote the arrays that were sent. None: Flower.
    ranges : Ranges, optional
        Which metrics count, see `metrics.kept`.

    Returns
    -------
    list[Reply]
        The good replies, ordered by partition.
    list[tuple[int, str]]
        Partition (-1 for a node that was not asked) and reason of each refusal.
    """
    good: dict[int, Reply] = {}
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
            reason = reason_to_refuse(request.travelling if trained else None, reply.content, weight_key)
            if reason is None:
                try:
                    decoded = _decoded(request.arrays, reply, codec) if codec and trained else reply
                    counted, dropped = _counted(decoded, weight_key, ranges)
                    good[request.partition_id] = Reply(
                        request.partition_id, counted, bytes_of(reply), dropped
                    )
                except ValueError as error:
                    reason = one_line(error)
        if reason is not None:
            refused.append((partition(reply), reason))
    refused += [(silent, "no reply in time") for silent in sorted(r.partition_id for r in pending.values())]
    if trained and good:
        counts = {index: cast(float, scalars(reply.message)[weight_key]) for index, reply in good.items()}
        far = absurd_counts(counts, said)
        if max_change < inf:
            far = _far(requests, good, max_change) | far
        refused += far.items()
        good = {index: reply for index, reply in good.items() if index not in far}
    return list(good.values()), refused


def _far(requests: Mapping[int, Request], good: Mapping[int, Reply], max_change: float) -> dict[int, str]:
    sent = {request.partition_id: request.arrays for request in requests.values()}
    # Mostly one record for all: it is read once.
    records = {id(record): record for record in sent.values()}
    values = {key: {n: a.numpy() for n, a in record.items()} for key, record in records.items()}
    changes = {
        index: change(values[id(sent[index])], next(iter(reply.message.content.array_records.values())))
        for index, reply in good.items()
    }
    return far_changes(changes, next(iter(sent.values())), max_change)


def _counted(reply: Message, weight_key: str, ranges: Ranges | None) -> tuple[Message, list[str]]:
    """Return a reply without the metrics that do not count, which stays as it is, and their names."""
    ((name, metrics),) = reply.content.metric_records.items()
    good, dropped = kept(metrics, weight_key, ranges)
    if not dropped:
        return reply, []
    counted = copy(reply)
    counted.content = RecordDict({**reply.content, name: good})
    return counted, dropped


def _decoded(sent: ArrayRecord, reply: Message, codec: Codec) -> Message:
    """Copy a reply with its arrays as the strategy knows them; ValueError if they are malformed."""
    (name, arrays), *_ = reply.content.array_records.items()
    decoded = copy(reply)
    decoded.content = RecordDict({**reply.content, name: codec.decode(sent, arrays)})
    return decoded
