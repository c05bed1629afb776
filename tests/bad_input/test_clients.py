"""Clients that do not come, or are not those that the run needs, end it with one line."""

import pytest

from app.backbones import load_backbone
from app.records import SCHEMA
from app.source import source_hash
from strategies import membership
from tests.bad_input.ends import error_of, rows_of


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock that waiting for nodes looks at."""
    now = [0.0]
    monkeypatch.setattr(membership, "monotonic", lambda: now[0])
    monkeypatch.setattr(membership, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_clients_that_do_not_come_are_not_waited_for_forever(federation, home, clock):
    clients = federation(2, **{"num-clients": 5, "wait-seconds": 3.0})
    message = error_of(clients, home)
    assert message.startswith("expected nodes: 5, but 2 came within 3 s")
    assert "num-clients, wait-seconds" in message
    assert clock[0] == 3.0
    assert clients.wire == []


def test_nodes_that_the_federation_promised_are_waited_for(federation, home, clock):
    clients = federation(2, node_config={"num-partitions": 4}, **{"wait-seconds": 2.0})
    assert error_of(clients, home).startswith("expected nodes: 4, but 2 came within 2 s")


def test_two_nodes_with_one_partition_are_refused(federation, home):
    clients = federation(2, node_config={"partition-id": 0})
    assert error_of(clients, home) == (
        "nodes 993 and 1000 both hold partition 0: give each its own partition-id"
    )


@pytest.mark.parametrize("key", ["backbone", "source", "version", "schema"])
def test_a_client_that_runs_something_else_ends_the_run(federation, home, small_backbone, key):
    other = {"version": "0.0.9", "schema": 99}.get(key, "f" * 64)
    said = str(other)[:12]

    def alter(node, reply):
        if node == 993:
            reply.content["handshake"][key] = other
        return reply

    servers = {
        "backbone": load_backbone(str(small_backbone)).fingerprint[:12],
        "source": source_hash()[:12],
        "version": "0.1.0",
        "schema": SCHEMA,
    }[key]
    assert error_of(federation(3, alter=alter), home) == (
        f"partition 1 (node 993): {key} is {said} on the client but {servers} on the server: "
        f"give both the same {key}"
    )


def test_sites_do_not_say_how_many_there_are(federation, home):
    """One that is first and says that it is the only one began a run alone."""
    assert error_of(federation(2, deployed=True, **{"num-clients": 0}), home) == (
        "num-clients = 0 with sites on machines of their own; allowed: how many sites the run waits for"
    )


def test_one_that_is_up_first_and_says_it_is_alone_waits_for_the_others(federation, home, clock):
    clients = federation(1, deployed=True, **{"num-clients": 7, "wait-seconds": 3.0})
    assert error_of(clients, home).startswith("expected nodes: 7, but 1 came within 3 s")


def test_a_false_size_of_the_first_two_keeps_nobody_out(federation, home, monkeypatch):
    """Two say that they are all; the five others come one after the other while the server waits."""
    clients = federation(7, deployed=True, num_rounds=1)
    for partition in (0, 1):
        clients.contexts[clients.node_id(partition)].node_config["num-partitions"] = 2
    present, now = [clients.node_id(0), clients.node_id(1)], [0.0]

    def sleep(seconds):
        now[0] += seconds
        if len(present) < 7:
            present.append(clients.node_id(len(present)))

    monkeypatch.setattr(membership, "monotonic", lambda: now[0])
    monkeypatch.setattr(membership, "sleep", sleep)
    monkeypatch.setattr(clients, "get_node_ids", lambda: set(present))
    folder = clients.serve()
    trained = [row["partition"] for row in rows_of(folder) if "refused" not in row]
    assert sorted(trained) == [2, 3, 4, 5, 6]
