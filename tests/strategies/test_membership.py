"""Who takes part: waiting that ends, the handshake's refusals, nodes that come and go, fixed sampling."""

import random

import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg

from strategies import Admission, FedDAT

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
    strategy = FedDAT(fedavg(), admission=Admission(expected_nodes=2))
    assert sorted(m.metadata.dst_node_id for m in configure(strategy, grid)) == [6, 12]
    assert clock.now == 12.0
    waiting = [text for text in caplog.messages if text.startswith("waiting")]
    assert waiting == [f"waiting for nodes: {count} of 2" for count in (0, 0, 1)]


def test_the_first_nodes_say_how_many_to_wait_for(toy, configure, clock):
    """Each node of a federation of two says so; the second comes after the first was asked."""
    grid, notes = toy.Grid({7: toy.Client(1, **{"num-partitions": 2})}), toy.Notes()
    clock.on_tick = lambda now: grid.nodes.setdefault(8, toy.Client(0, **{"num-partitions": 2}))
    strategy = FedDAT(fedavg(), observers=[notes])
    assert [m.metadata.dst_node_id for m in configure(strategy, grid)] == [8, 7]
    assert grid.asked("query") == [7, 8]
    assert {partition: answer["num-partitions"] for partition, answer in notes.members.items()} == {
        0: 2,
        1: 2,
    }


def test_the_deadline_ends_the_wait(toy, configure, clock):
    strategy = FedDAT(fedavg(), admission=Admission(expected_nodes=5, wait_seconds=30))
    with pytest.raises(RuntimeError, match=r"^expected nodes: 5, but 2 came within 30 s: .*num-clients") as e:
        configure(strategy, toy.Grid({7: toy.Client(0), 8: toy.Client(1)}))
    assert "\n" not in str(e.value)
    assert clock.now == 30.0


def test_the_deadline_ends_flowers_own_wait_too(toy, configure, clock):
    strategy = FedDAT(FedAvg(min_available_nodes=3), admission=Admission(wait_seconds=20))
    with pytest.raises(
        RuntimeError, match=r"round 1: the strategy wants more than 1 nodes, and no more came within 20 s"
    ):
        configure(strategy, toy.Grid({7: toy.Client(0)}))


def test_a_node_that_comes_during_flowers_wait_is_asked_before_it_is_sampled(toy, configure, clock):
    grid = toy.Grid({7: toy.Client(0)})
    clock.on_tick = lambda now: grid.nodes.setdefault(8, toy.Client(1))
    strategy = FedDAT(FedAvg())
    assert sorted(m.metadata.dst_node_id for m in configure(strategy, grid)) == [7, 8]
    assert grid.asked("query") == [7, 8]
    assert strategy.partitions == {7: 0, 8: 1}


MISFITS = [
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
    ({"partition-id": 3}, "partition 3 (node 8): num-partitions is 3; a partition-id from 0 to 2 is needed"),
    ({"num-partitions": 0}, "partition 1 (node 8): num-partitions is 0; a partition-id from 0 to -1"),
    ({"num-partitions": 10**9}, "partition 1 (node 8): num-partitions is 1000000000 on the client but 3 on"),
    ({"num-partitions": "3"}, "partition 1 (node 8): num-partitions is None on the client but 3 on most"),
]


@pytest.fixture
def misfit(toy):
    """Make the nodes of a federation of three, of which node 8 may not take part."""
    same = {"backbone": SHA, "version": "0.1.0", "num-partitions": 3}

    def make(grid, second):
        strategy = FedDAT(
            fedavg(), admission=Admission(expected={key: same[key] for key in ("backbone", "version")})
        )
        said = {7: (0, same), 8: (1, {**same, **second}), 9: (2, same)}
        return strategy, grid({node: toy.Client(p, **handshake) for node, (p, handshake) in said.items()})

    return make


@pytest.mark.parametrize(("second", "reason"), MISFITS)
def test_a_node_that_does_not_fit_ends_the_start_of_a_simulation(
    toy, configure, misfit, clock, second, reason
):
    strategy, grid = misfit(toy.Simulation, second)
    with pytest.raises(RuntimeError) as e:
        configure(strategy, grid)
    assert reason in str(e.value)
    assert "\n" not in str(e.value)
    assert clock.now == 0


@pytest.mark.parametrize(("second", "reason"), MISFITS)
def test_a_site_that_does_not_fit_stays_outside_and_the_run_begins(
    toy, configure, misfit, caplog, second, reason
):
    strategy, grid = misfit(toy.Grid, second)
    configure(strategy, grid)
    assert strategy.partitions == {7: 0, 9: 2}
    refused = [text for text in caplog.messages if text.startswith("not admitted: ")]
    assert reason in refused[0]
    assert "\n" not in refused[0]
    grid.nodes[8] = toy.Client(1, **{**grid.nodes[7].handshake, "partition-id": 1})
    configure(strategy, grid, 3)
    assert strategy.partitions == {7: 0, 9: 2, 8: 1}


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
def test_without_a_node_that_answers_there_is_no_start(toy, configure, clock, answer, reason):
    for kind, seconds in ((toy.Simulation, 0.0), (toy.Grid, 30.0)):
        nodes = {8: toy.Client(1), 9: toy.Client(2)}
        nodes[8].reply = nodes[9].reply = lambda message: answer
        began = clock.now
        with pytest.raises(RuntimeError) as e:
            configure(FedDAT(fedavg(), admission=Admission(wait_seconds=30)), kind(nodes))
        assert reason in str(e.value)
        assert "(and 1 more nodes)" in str(e.value)
        assert clock.now - began == seconds


def test_nodes_are_asked_once_and_later_ones_when_they_come(toy, configure, caplog):
    grid = toy.Grid({7: toy.Client(0), 8: toy.Client(1)})
    strategy = FedDAT(fedavg(), admission=Admission(expected={"version": "1"}))
    for client in grid.nodes.values():
        client.handshake["version"] = "1"
    configure(strategy, grid, 1)
    grid.nodes |= {
        9: toy.Client(2, version="1"),
        5: toy.Client(4, version="2"),
        6: toy.Client(1, version="1"),
    }
    sampled = {m.metadata.dst_node_id for m in configure(strategy, grid, 2)}
    assert strategy.partitions == {7: 0, 8: 1, 9: 2}
    assert sampled == {7, 8, 9}
    assert grid.asked("query") == [7, 8, 5, 6, 9]
    refused = [text for text in caplog.messages if text.startswith("not admitted")]
    assert [text.split(":")[1] for text in refused] == [
        " partition 4 (node 5)",
        " nodes 8 and 6 both hold partition 1",
    ]


def test_one_that_is_refused_is_asked_again_more_and_more_rarely(toy, configure, clock):
    """Each time that it gives no answer costs the others the wait for it."""
    grid = toy.Grid({7: toy.Client(0), 8: toy.Client(1)})
    grid.nodes[8].reply = lambda message: None
    strategy, asked = FedDAT(fedavg(min_evaluate_nodes=1)), []
    for server_round in range(1, 17):
        before = len(grid.sent)
        configure(strategy, grid, server_round)
        strategy.configure_evaluate(server_round, toy.arrays(x=[1.0]), ConfigRecord(), grid)
        asked += [server_round] * sum(m.metadata.dst_node_id == 8 for m in grid.sent[before:])
    assert asked == [1, 2, 4, 8, 16]


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
