"""Which of a round's replies count."""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from math import hypot, inf
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID

from .checks import cause, one_line, reason_in_values, reason_to_refuse
from .codec import Codec
from .layout import Layout
from .metrics import Ranges, excess, kept
from .names import is_private
from .outliers import Limits, absurd_counts, changes, clipped, far_changes, like_received, usual_norms
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
    layout : Layout
        What a reply to it holds.
    answer : ArrayRecord, optional
        As what a reply's arrays are written. None: as those in the message.
    """

    partition_id: int
    content: RecordDict
    message: Message
    layout: Layout
    answer: ArrayRecord | None = None

    @property
    def arrays(self) -> ArrayRecord:
        """The arrays that the strategy sends."""
        return next(iter(self.content.array_records.values()))

    @property
    def travelling(self) -> ArrayRecord:
        """The arrays in the message."""
        return next(iter(self.message.content.array_records.values()))


def config_of(content: RecordDict) -> tuple[str, ConfigRecord]:
    """Return the record of config that says which round it is, and its name; an empty one if none does."""
    records = content.config_records
    of_round = (key for key, config in records.items() if "server-round" in config)
    key = next(of_round, next(iter(records), "config"))
    return key, records.get(key, ConfigRecord())


def saying(content: RecordDict, more: Mapping[str, Any]) -> RecordDict:
    """Copy a message's content with more in its config; the records of `content` stay as they are.

    Flower's mods for clients take one record of config, so there is no second.
    """
    key, config = config_of(content)
    return RecordDict({**content, key: ConfigRecord({**config, **more})})


@dataclass(frozen=True)
class Reply:
    """One that counts.

    Attributes
    ----------
    partition_id : int
        Whose it is.
    message : Message
        The reply, its arrays decoded.
    num_bytes : int
        What its arrays took as they came, their names included.
    dropped : list[str]
        Names of the metrics that do not count.
    clipped : float
        How much of its change counts, in [0, 1]: less than 1 if it was clipped.
    """

    partition_id: int
    message: Message
    num_bytes: int
    dropped: list[str]
    clipped: float = 1.0


def accept(
    requests: Mapping[int, Request],
    replies: Iterable[Message],
    trained: bool,
    weight_key: str,
    limits: Limits | None,
    said: Mapping[int, float],
    codec: Codec | None = None,
    ranges: Ranges | None = None,
    bit: str | None = None,
    is_private: Callable[[str], bool] = is_private,
) -> tuple[list[Reply], list[tuple[int, str]]]:
    """Tell the replies that count from those that do not.

    Parameters
    ----------
    requests : Mapping[int, Request]
        What was sent, by node id. A node has one reply; the second is refused, whatever the first was.
    replies : Iterable[Message]
        What came back, in any order.
    trained : bool
        Whether the replies must hold arrays. Those of others are dropped.
    weight_key : str
        The metric that weighs a reply.
    limits : Limits or None
        What the replies set for each other. None: no reply's fate depends on another's.
    said : Mapping[int, float]
        See `outliers.absurd_counts`.
    codec : Codec, optional
        What wrote the arrays that were sent. None: Flower.
    ranges : Ranges, optional
        Which metrics count, see `metrics.kept`.
    bit : str, optional
        A metric that every reply must have, 0 or 1.
    is_private : Callable[[str], bool]
        Which arrays no reply may hold, by name.

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
    messages = {node: request.message for node, request in requests.items()}

    def partition(reply: Message) -> int:
        request = requests.get(_sender(reply, messages))
        return request.partition_id if request else STRANGER

    for reply in sorted(replies, key=partition):
        node = _sender(reply, messages)
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
            if codec and "Unsupported serialization type" in reason:
                reason += " (its ClientApp does not read what the codec writes: see `strategies.Codec`)"
        else:
            sent = (request.answer or request.travelling) if trained else None
            reason = reason_to_refuse(sent, reply.content, weight_key, is_private, request.layout)
            if reason is None:
                try:
                    decoded = _decoded(request.arrays, reply, codec) if trained else _without_arrays(reply)
                    counted, dropped = _counted(decoded, weight_key, ranges)
                    if bit is not None and (said_bit := scalars(counted).get(bit)) not in (0, 1):
                        raise ValueError(f"metric '{bit}' is {said_bit}; 0 or 1 is needed")
                    good[request.partition_id] = Reply(
                        request.partition_id, counted, bytes_of(reply), dropped
                    )
                except ValueError as error:
                    reason = one_line(error)
        if reason is not None:
            refused.append((partition(reply), reason))
    refused += [(silent, "no reply in time") for silent in sorted(r.partition_id for r in pending.values())]
    if trained and good and limits:
        good, far = _compared(requests, good, weight_key, limits, said)
        refused += far.items()
    return list(good.values()), refused


def answers(
    asked: Mapping[int, Message], replies: Iterable[Message], record: str
) -> tuple[dict[int, ConfigRecord], dict[int, str]]:
    """Tell the answers to questions from those that do not count.

    Parameters
    ----------
    asked : Mapping[int, Message]
        The questions, by node id.
    replies : Iterable[Message]
        What came back; of each node the first reply to its question.
    record : str
        Name of the record of an answer that is wanted.

    Returns
    -------
    dict[int, ConfigRecord]
        That record, by node id.
    dict[int, str]
        Why there is none.
    """
    good: dict[int, ConfigRecord] = {}
    out: dict[int, str] = {}
    for reply in replies:
        node = _sender(reply, asked)
        question = asked.get(node)
        if question is None or node in good or node in out:
            continue
        if reply.metadata.reply_to_message_id != question.metadata.message_id:
            continue
        if reply.has_error():
            out[node] = cause(reply.error)
        elif much := excess(reply.content):
            out[node] = much
        elif (answer := reply.content.config_records.get(record)) is None:
            out[node] = f"its answer has no record '{record}'"
        else:
            good[node] = answer
    silent = {node: "no reply in time" for node in asked if node not in good and node not in out}
    return good, out | silent


def _sender(reply: Message, asked: Mapping[int, Message]) -> int:
    """Return whose reply it is: for a node that is gone the SuperLink itself replies, with an error."""
    metadata = reply.metadata
    if metadata.src_node_id == SUPERLINK_NODE_ID and reply.has_error():
        ids = {message.metadata.message_id: node for node, message in asked.items()}
        return ids.get(metadata.reply_to_message_id, SUPERLINK_NODE_ID)
    return metadata.src_node_id


def _compared(
    requests: Mapping[int, Request],
    good: Mapping[int, Reply],
    weight_key: str,
    limits: Limits,
    said: Mapping[int, float],
) -> tuple[dict[int, Reply], dict[int, str]]:
    """Hold the replies to each other: return those that count, clipped, and the reasons to refuse others."""
    counts = {index: cast(float, scalars(reply.message)[weight_key]) for index, reply in good.items()}
    far = absurd_counts(counts, said)
    if limits == Limits():
        return {index: reply for index, reply in good.items() if index not in far}, far
    sent = {request.partition_id: request.arrays for request in requests.values()}
    # Mostly one record for all: it is read once.
    records = {id(record): record for record in sent.values()}
    values = {key: {n: a.numpy() for n, a in record.items()} for key, record in records.items()}
    began = {index: like_received(values[id(sent[index])], _arrays(reply)) for index, reply in good.items()}
    norms = {index: changes(began[index], _arrays(reply)) for index, reply in good.items()}
    sizes = {index: hypot(*own.values()) for index, own in norms.items()}
    far = far_changes(sizes, next(iter(sent.values())), limits.max_change) | far
    near = {index: reply for index, reply in good.items() if index not in far}
    if limits.clip_change < inf:
        missing = len(requests) - len(good)
        usual = usual_norms([norms[index] for index in near], missing)
        # Far ones are mostly larger, and leave no trace here; an honest one among small ones counts as well.
        of_all = usual_norms(list(norms.values()), missing)
        most = {name: limits.clip_change * min(size, of_all[name]) for name, size in usual.items()}
        for index, reply in near.items():
            arrays, left = clipped(began[index], _arrays(reply), norms[index], most)
            if left < 1:
                near[index] = replace(reply, message=with_record(arrays, reply.message), clipped=left)
    return near, far


def _arrays(reply: Reply) -> ArrayRecord:
    return next(iter(reply.message.content.array_records.values()))


def with_record(record: ArrayRecord | MetricRecord, reply: Message) -> Message:
    """Copy a reply with another record for its one of that kind; the reply stays as it is."""
    (name,) = (key for key, value in reply.content.items() if type(value) is type(record))
    changed = copy(reply)
    changed.content = RecordDict({**reply.content, name: record})
    return changed


def _counted(reply: Message, weight_key: str, ranges: Ranges | None) -> tuple[Message, list[str]]:
    """Return a reply without the metrics that do not count, and their names."""
    good, dropped = kept(next(iter(reply.content.metric_records.values())), weight_key, ranges)
    return with_record(good, reply) if dropped else reply, dropped


def _without_arrays(reply: Message) -> Message:
    """Return a reply without its arrays; the one that came stays as it is."""
    if not reply.content.array_records:
        return reply
    bare = copy(reply)
    bare.content = RecordDict({**reply.content.metric_records, **reply.content.config_records})
    return bare


def _decoded(sent: ArrayRecord, reply: Message, codec: Codec | None) -> Message:
    """Return a reply with its arrays as the strategy knows them; ValueError if they are malformed."""
    if codec is None:
        return reply
    decoded = codec.decode(sent, next(iter(reply.content.array_records.values())))
    if reason := reason_in_values(decoded):
        raise ValueError(reason)
    return with_record(decoded, reply)
