"""Nodes of one process at a SuperLink: what one does with a message, and what is said of the rounds."""

import threading

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from benchmarks import many_nodes


@pytest.fixture(autouse=True)
def inside_a_task(monkeypatch):
    """Messages can only be made inside a Flower task."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class SuperLink:
    """What a node connects with; it has one message, and keeps the reply."""

    def __init__(self, message):
        message.metadata.__dict__["_message_id"] = message.object_id
        self.objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        self.tree = get_object_tree(message)
        self.waiting, self.sent, self.pushed, self.asked = [message], [], {}, []

    def connection(self):
        return (
            7,
            lambda: (self.waiting.pop(), self.tree) if self.waiting else None,
            self.send,
            lambda run: self.asked.append(f"run {run}") or type("Run", (), {"fab_hash": "app"}),
            lambda fab, run: self.asked.append(f"{fab} of {run}"),
            lambda run, name: self.objects[name],
            lambda run, session, name, content: self.pushed.update({name: content}),
            lambda run, name: self.asked.append(f"has {name == self.tree.object_id}"),
        )

    def send(self, reply, tree, seconds):
        self.sent.append(reply)
        names = [part.object_id for part in iterate_object_tree(tree)]
        return set(names), "session"


def test_a_node_answers_as_a_supernode_does():
    content = {"arrays": ArrayRecord([np.ones(3)]), "config": ConfigRecord({"server-round": 1})}
    superlink = SuperLink(Message(RecordDict(content), dst_node_id=7, message_type="train"))

    def twice(message, context):
        values = message.content["arrays"]["0"].numpy() * 2
        return Message(RecordDict({"arrays": ArrayRecord([values])}), reply_to=message)

    context = Context(run_id=0, node_id=7, node_config={}, state=RecordDict(), run_config={})
    node = many_nodes.Node(superlink.connection(), context, twice, threading.Lock(), poll=3.0)
    assert node.ask()
    assert not node.ask()
    assert superlink.asked == ["run 1", "app of 1", "has True"]
    (sent,) = superlink.sent
    assert sent.metadata.src_node_id == 7
    reply = inflate_object_from_contents(sent.metadata.message_id, superlink.pushed)
    assert reply.content["arrays"]["0"].numpy().tolist() == [2, 2, 2]


def test_what_grows_is_seen_by_quarter(capsys):
    programs = (many_nodes.SUPERLINK, many_nodes.SERVERAPP)
    figures = {
        "nodes": 1000,
        "sampled": 50,
        "cpu while they ask": 0.25,
        "seconds": [4.0] * 8,
        "cpu": {name: [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0] for name in programs},
        "memory": {name: [1e8, 1e8, 1.1e8, *[2e8] * 6] for name in programs},
    }
    assert many_nodes.quarters(figures["cpu"][many_nodes.SUPERLINK]) == [1, 2, 3, 4]
    many_nodes.show([figures])
    shown = capsys.readouterr().out
    assert "1.00, 2.00" in shown
    assert "110, 200" in shown
