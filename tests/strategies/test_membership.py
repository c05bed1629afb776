"""Who takes part: waiting that ends, the handshake's refusals, nodes that come and go, fixed sampling."""

import random

import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg

from strategies import FedDAT

SHA = "0123456789abcdef" * 4


@pytest.fixture
def configure(toy):
    def configure(strategy, grid, server_round=1):
        return strategy.configure_train(server_round, toy.arrays(x=[1.0]), ConfigRecord(), grid)

    return configure


def fedavg(**settings):
    return FedAvg(**{"min_train_nodes": 1, "min_available_nodes": 1, **settings})


def test_waits_for_the_expected_nodes_and_says_so(toy, configure, clock, caplog):
    grid = toy.Grid({})

    def arrive(now):
        if now in (6.0, 12.0):
            grid.nodes[int(now)] = toy.Client(partition=int(now))

    clock.on_tick = arrive
    strategy = FedDAT(fedavg(), expected_nodes=2)
    assert sorted(m.metadata.dst_node_id for m in configure(strategy, grid)) == [6, 12]
    assert clock.now == 12.0
    waiting = [text for text in caplog.messages if text.startswith("waiting")]
    assert waiting == [f"waiting for nodes: {count} of 2" for count in (0, 0, 1)]


def test_the_first_nodes_say_how_many_to_wait_for(toy, configure, clock):
    """Each node of a federation of two says so; the second comes after the first was asked."""
    grid, notes = toy.Grid({7: toy.Client(1, **{"num-partitions": 2})}), toy.Notes()
    clock.on_tick = lambda now: grid.nodes.setdefault(8, toy.Client(0, **{"num-partitions": 2}))
    strategy = FedDAT(fedavg(), observer=notes)
    assert [m.metadata.dst_node_id for m in configure(strategy, grid)] == [8, 7]
    assert grid.asked("query") == [7, 8]
    assert {partition: answer["num-partitions"] for partition, answer in notes.members.items()} == {
        0: 2,
        1: 2,
    }


def test_the_deadline_ends_the_wait(toy, configure, clock):
    strategy = FedDAT(fedavg(), expected_nodes=5, wait_seconds=30)
    with pytest.raises(RuntimeError, match=r"^expected nodes: 5, but 2 came within 30 s: .*num-clients") as e:
        configure(strategy, toy.Grid({7: toy.Client(0), 8: toy.Client(1)}))
    assert "\n" not in str(e.value)
    assert clock.now == 30.0


def test_the_deadline_ends_flowers_own_wait_too(toy, configure, clock):
    strategy = FedDAT(FedAvg(min_available_nodes=3), wait_seconds=20)
    with pytest.raises(RuntimeError, match=r"round 1: the strategy wants more than 1 nodes, 20 s are over"):
        configure(strategy, toy.Grid({7: toy.Client(0)}))


def test_a_node_that_comes_during_flowers_wait_is_asked_before_it_is_sampled(toy, configure, clock):
    grid = toy.Grid({7: toy.Client(0)})
    clock.on_tick = lambda now: grid.nodes.setdefault(8, toy.Client(1))
    strategy = FedDAT(FedAvg())
    assert sorted(m.metadata.dst_node_id for m in configure(strategy, grid)) == [7, 8]
    assert grid.asked("query") == [7, 8]
    assert strategy.partitions == {7: 0, 8: 1}


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (
            {"backbone": "f" * 64},
            "partition 1 (node 8): backbone is ffffffffffff on the client but 0123456789ab on",
        ),
        (
            {"version": "0.2.0"},
            "partition 1 (node 8): version is 0.2.0 on the client but 0.1.0 on the server",
        ),
        (
            {"version": 1},
            "partition 1 (node 8): version is 1 on the client but 0.1.0 on the server: give both",
        ),
        ({"partition-id": 0}, "nodes 7 and 8 both hold partition 0"),
        ({"partition-id": -1}, "node 8: the handshake's partition-id is -1"),
        ({"partition-id": "1"}, "node 8: the handshake's partition-id is 1; a whole number"),
    ],
)
def test_a_node_that_does_not_fit_ends_the_start(toy, configure, second, reason):
    same = {"backbone": SHA, "version": "0.1.0"}
    nodes = {8: toy.Client(1, **{**same, **second}), 7: toy.Client(0, **same)}
    with pytest.raises(RuntimeError) as e:
        configure(FedDAT(fedavg(), expected=same), toy.Grid(nodes))
    assert reason in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            "No query function\nregistered",
            "node 8: error in the handshake: No query function registered (set handshake=False)",
        ),
        (None, "node 8: no answer to the handshake in time"),
    ],
)
def test_a_node_that_does_not_answer_ends_the_start(toy, configure, answer, reason):
    nodes = {7: toy.Client(0), 8: toy.Client(1), 9: toy.Client(2)}
    nodes[8].reply = nodes[9].reply = lambda message: answer
    with pytest.raises(RuntimeError) as e:
        configure(FedDAT(fedavg()), toy.Grid(nodes))
    assert reason in str(e.value)
    assert "(and 1 more nodes)" in str(e.value)


def test_nodes_are_asked_once_and_later_ones_when_they_come(toy, configure, caplog):
    grid = toy.Grid({7: toy.Client(0), 8: toy.Client(1)})
    strategy = FedDAT(fedavg(), expected={"version": "1"})
    for client in grid.nodes.values():
        client.handshake["version"] = "1"
    configure(strategy, grid, 1)
    del grid.nodes[7]
    grid.nodes |= {
        9: toy.Client(0, version="1"),
        5: toy.Client(4, version="2"),
        6: toy.Client(1, version="1"),
    }
    sampled = {m.metadata.dst_node_id for m in configure(strategy, grid, 2)}
    assert strategy.partitions == {8: 1, 9: 0}
    assert sampled == {8, 9}
    assert grid.asked("query") == [7, 8, 5, 6, 9]
    refused = [text for text in caplog.messages if text.startswith("not admitted")]
    assert [text.split(":")[1] for text in refused] == [
        " partition 4 (node 5)",
        " nodes 8 and 6 both hold partition 1",
    ]


def test_without_a_handshake_partitions_are_ranks(toy, configure):
    grid = toy.Grid({90: toy.Client(5), 30: toy.Client(5)})
    strategy = FedDAT(fedavg(), handshake=False)
    configure(strategy, grid)
    assert strategy.partitions == {30: 0, 90: 1}
    grid.nodes[10] = toy.Client(5)
    configure(strategy, grid, 2)
    assert strategy.partitions == {30: 0, 90: 1, 10: 2}
    assert grid.asked("query") == []


def sampled_partitions(toy, configure, offset, seed, rounds=6):
    nodes = [(partition * 7919 + offset) % 1009 for partition in range(10)]
    grid = toy.Grid({node: toy.Client(partition) for partition, node in enumerate(nodes)})
    strategy = FedDAT(fedavg(fraction_train=0.3), seed=seed)
    return [
        [strategy.partitions[m.metadata.dst_node_id] for m in configure(strategy, grid, r)]
        for r in range(1, rounds + 1)
    ]


def test_the_same_partitions_are_sampled_under_any_node_ids(toy, configure):
    first = sampled_partitions(toy, configure, 1, seed=0)
    random.seed(1)
    assert sampled_partitions(toy, configure, 500, seed=0) == first
    assert sampled_partitions(toy, configure, 1, seed=1) != first
    assert all(len(partitions) == 3 for partitions in first)
    assert len({tuple(partitions) for partitions in first}) > 1


def test_sampling_leaves_the_callers_random_numbers_alone(toy, configure):
    random.seed(5)
    expected = random.random()
    random.seed(5)
    configure(FedDAT(fedavg()), toy.Grid({1: toy.Client(0)}))
    assert random.random() == expected
