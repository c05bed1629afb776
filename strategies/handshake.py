"""The question every node answers before it takes part: which partition it holds, and what it runs."""

import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import cast

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from .checks import cause, one_line
from .places import Places

Answer = ConfigRecord | str  # a node's own words, or why there are none

# In the record `secret` of an answer: what a node wants to find in the config of each message to it.
SITE_WORD = "site-word"
# What a node says that finds another there, or none.
UNKNOWN_WORD = "the message does not have this site's word"
_LONGEST_WORD = 200


def unguessable() -> dict[str, str]:
    """Return what makes a message's id unguessable: it is a hash of what is in it.

    A SuperLink takes a reply from whoever of the registered nodes names the sender and that id; each other
    node was sent all but the same.
    """
    return {"nonce": secrets.token_hex(16)}


def ask(
    grid: Grid, node_ids: Iterable[int], server_round: int, timeout: float
) -> tuple[dict[int, Answer], dict[int, str]]:
    """Send the query to each node; return the answers that come in time and the nodes' words, by node id."""
    asked = sorted(node_ids)
    if not asked:
        return {}, {}
    messages = [
        Message(
            RecordDict({"config": ConfigRecord({"server-round": server_round, **unguessable()})}),
            dst_node_id=node,
            message_type=MessageType.QUERY,
        )
        for node in asked
    ]
    replies = {
        reply.metadata.src_node_id: reply for reply in grid.send_and_receive(messages, timeout=timeout)
    }
    words = {node: word for node in asked if (word := _word(replies.get(node)))}
    return {node: _answer(replies.get(node)) for node in asked}, words


def judge(
    answers: Mapping[int, Answer],
    expected: Mapping[str, str | int],
    places: Places,
    size: int | None,
) -> tuple[dict[int, ConfigRecord], list[str]]:
    """Decide who may take part; each who may gets its place.

    Parameters
    ----------
    answers : Mapping
        What nodes say of themselves, by node id, in the order in which they came.
    expected : Mapping[str, str | int]
        What the server runs: every key must have the same value on the node.
    places : Places
        Whose partition is whose; of two that claim one, the first keeps it.
    size : int or None
        Partitions of the federation, which every node must name as ``num-partitions``. None: not known.

    Returns
    -------
    dict[int, ConfigRecord]
        What the nodes that may take part say of themselves, by node id.
    list[str]
        Why the others may not: one line each, in the order of `answers`.
    """
    admitted: dict[int, ConfigRecord] = {}
    refusals: list[str] = []
    for node, answer in answers.items():
        if isinstance(answer, str):
            refusals.append(f"node {node}: {answer}")
        elif fault := _differing(answer, expected) or _beyond(answer, size):
            refusals.append(f"partition {cast(int, answer['partition-id'])} (node {node}): {fault}")
        elif fault := places.take(node, cast(int, answer["partition-id"])):
            refusals.append(fault)
        else:
            admitted[node] = answer
    return admitted, refusals


def agreed_size(answers: Iterable[Answer], preferred: int | None) -> int | None:
    """Return the number of partitions that most nodes name; of several such `preferred`, or else None."""
    named = Counter(_size(answer) for answer in answers if isinstance(answer, ConfigRecord))
    most = [size for size, count in named.items() if count == max(named.values())]
    if len(most) == 1:
        return most[0]
    return preferred if preferred in most else None


def _size(answer: ConfigRecord) -> int | None:
    size = answer.get("num-partitions")
    return size if type(size) is int else None


def _differing(answer: ConfigRecord, expected: Mapping[str, str | int]) -> str:
    for key, own in expected.items():
        if (value := answer.get(key)) != own:
            return (
                f"{key} is {_short(value)} on the client but {_short(own)} on the server: "
                f"give both the same {key}"
            )
    return ""


def _beyond(answer: ConfigRecord, size: int | None) -> str:
    said = _size(answer)
    if said is not None and cast(int, answer["partition-id"]) >= said:
        return f"num-partitions is {said}; a partition-id from 0 to {said - 1} is needed"
    if size is not None and said != size:
        return f"num-partitions is {said} on the client but {size} on most: give all the same num-partitions"
    return ""


def _answer(reply: Message | None) -> Answer:
    """Return a node's own words, or why there are none."""
    if reply is None:
        return "no answer to the handshake in time: raise wait_seconds, or see the node's log"
    if reply.has_error():
        why = cause(reply.error)
        hint = " (set handshake=False)" if why.startswith("No query function") else ""
        return f"error in the handshake: {why}{hint}"
    answer = reply.content.config_records.get("handshake", ConfigRecord())
    partition = answer.get("partition-id")
    if type(partition) is not int or partition < 0:  # True is an int to Python
        return f"the handshake's partition-id is {one_line(partition, 40)}; a whole number from 0 is needed"
    return answer


def _word(reply: Message | None) -> str | None:
    """Return a node's own word, if it gives one."""
    if reply is None or reply.has_error():
        return None
    word = reply.content.config_records.get("secret", ConfigRecord()).get(SITE_WORD)
    return word if isinstance(word, str) and 0 < len(word) <= _LONGEST_WORD else None


def _short(value: object) -> str:
    """Cut a hash to 12 characters, and leave the rest readable."""
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{13,}", text) else one_line(text, 60)
