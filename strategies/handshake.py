"""The question every node answers before it takes part: which partition it holds, and what it runs."""

import re
from collections.abc import Iterable, Mapping
from typing import cast

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from .checks import cause, one_line


def ask(grid: Grid, node_ids: Iterable[int], server_round: int, timeout: float) -> list[Message]:
    """Send the query to each node and collect the replies that come in time."""
    question = RecordDict({"config": ConfigRecord({"server-round": server_round})})
    messages = [Message(question, dst_node_id=node, message_type=MessageType.QUERY) for node in node_ids]
    return list(grid.send_and_receive(messages, timeout=timeout))


def judge(
    node_ids: Iterable[int],
    replies: Iterable[Message],
    expected: Mapping[str, str | int],
    known: Mapping[int, int],
) -> tuple[dict[int, ConfigRecord], list[str]]:
    """Decide who may take part.

    Parameters
    ----------
    node_ids : Iterable[int]
        The nodes that were asked.
    replies : Iterable[Message]
        Their replies, in any order: a record `handshake` with `partition-id` and what the node runs.
    expected : Mapping[str, str | int]
        What the server runs: every key must have the same value on the node.
    known : Mapping[int, int]
        Partitions of the nodes that take part already, by node id.

    Returns
    -------
    dict[int, ConfigRecord]
        What the nodes that may take part say of themselves, by node id.
    list[str]
        Why the others may not: one line each, in the order of the node ids.
    """
    by_node = {reply.metadata.src_node_id: reply for reply in replies}
    admitted: dict[int, ConfigRecord] = {}
    holders = {partition: node for node, partition in known.items()}
    refusals: list[str] = []
    for node in sorted(node_ids):
        answer = _answer(by_node.get(node))
        if isinstance(answer, str):
            refusals.append(f"node {node}: {answer}")
            continue
        partition = cast(int, answer["partition-id"])
        holder = holders.get(partition)
        differing = next((key for key in expected if answer.get(key) != expected[key]), None)
        if holder is not None:
            refusals.append(
                f"nodes {holder} and {node} both hold partition {partition}: give each its own partition-id"
            )
        elif differing is not None:
            refusals.append(
                f"partition {partition} (node {node}): {differing} is {_short(answer.get(differing))} on the"
                f" client but {_short(expected[differing])} on the server: give both the same {differing}"
            )
        else:
            admitted[node], holders[partition] = answer, node
    return admitted, refusals


def _answer(reply: Message | None) -> ConfigRecord | str:
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


def _short(value: object) -> str:
    """Cut a hash to 12 characters, and leave the rest readable."""
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{13,}", text) else one_line(text, 60)
