"""The ServerApp: which settings it passes on, and in which order it works."""

import json

import pytest

from app.backbones import load_backbone
from app.records import SCHEMA
from app.source import source_hash
from server_app import federation as room


@pytest.fixture
def strategies(monkeypatch):
    """Collect what FedDAT is made with."""
    made = []

    class Spy(room.FedDAT):
        def __init__(self, strategy, **keywords):
            made.append({"strategy": strategy, **keywords})
            super().__init__(strategy, **keywords)

    monkeypatch.setattr(room, "FedDAT", Spy)
    return made


def test_settings_reach_the_strategy(federation, strategies):
    settings = {"weighting": "num-examples", "num-clients": 2, "wait-seconds": 7.0, "strategy": "fedadam"}
    wall = {
        "max-change": 7.5,
        "clip-change": 1.5,
        "min-clients": 2,
        "max-failure-rate": 0.25,
        "round-timeout": 99.0,
    }
    federation(2, seed=4, node_partitions="0=1000", **settings, **wall).serve()
    (made,) = strategies
    assert type(made["strategy"]).__name__ == "FedAdam"
    assert made["weighting"] == "num-examples"
    admission = made["admission"]
    assert (admission.expected_nodes, admission.wait_seconds, made["seed"]) == (2, 7.0, 4)
    assert admission.places == {0: 1000}
    reached = {**vars(made["limits"]), **vars(made["quorum"])}
    assert {key: reached[key.replace("-", "_")] for key in wall} == wall


def test_all_nodes_of_the_federation_are_expected_by_default(federation, strategies):
    federation().serve()
    assert strategies[0]["admission"].expected_nodes is None


def test_clients_must_run_the_servers_source_backbone_and_version(federation, strategies, small_backbone):
    clients = federation()
    clients.serve()
    identity = {
        "source": source_hash(),
        "backbone": load_backbone(str(small_backbone)).fingerprint,
        "version": room.__version__,
        "schema": SCHEMA,
    }
    assert strategies[0]["admission"].expected == identity
    for way, message in clients.wire:
        if way == "to client" and message.metadata.message_type != "query":
            assert message.content["config"].items() >= identity.items()


def test_messages_name_the_run_and_its_token(federation):
    clients = federation()
    token = json.loads((clients.serve() / "settings.json").read_text())["run-token"]
    sent = [m.content["config"] for way, m in clients.wire if way == "to client" and "arrays" in m.content]
    assert len(sent) == 8
    assert {(config["run"], config["run-token"]) for config in sent} == {("test", token)}


def test_the_handshake_comes_before_anything_is_written_or_sent(federation, home):
    clients, seen = federation(), []

    def watch(node, reply):
        seen.append((reply.metadata.message_type, (home / "runs" / "test").exists()))
        return reply

    clients.alter = watch
    clients.serve()
    assert seen[:3] == [("query", False), ("query", False), ("train", True)]


def test_a_reply_may_take_as_long_as_the_setting_says(federation, monkeypatch):
    clients, timeouts = federation(round_timeout=12.5), []
    send = clients.send_and_receive

    def spy(messages, *, timeout=None):
        messages = list(messages)
        timeouts.append((messages[0].metadata.message_type, timeout))
        return send(messages)

    monkeypatch.setattr(clients, "send_and_receive", spy)
    clients.serve()
    assert {timeout for kind, timeout in timeouts if kind != "query"} == {12.5}


def test_every_message_names_its_round(federation):
    clients = federation()
    clients.serve()
    rounds = [
        (message.metadata.message_type, message.content["config"]["server-round"])
        for way, message in clients.wire
        if way == "to client"
    ]
    expected = [("query", 0), ("train", 1), ("evaluate", 1), ("train", 2), ("evaluate", 2)]
    assert rounds == [pair for pair in expected for _ in range(2)]
