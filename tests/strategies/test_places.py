"""A partition belongs to a node: no other takes it, keeps nodes from theirs, or ends the run by a claim."""

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import FedAvg

from strategies import Admission, FedDAT
from strategies.places import Places

KEYS = {node: bytes([node]) * 40 for node in range(1, 40)}


@pytest.fixture
def of(toy):
    """Make a node that says it holds a partition of a federation of three."""
    return lambda partition, size=3: toy.Client(partition, **{"num-partitions": size})


@pytest.fixture
def grid(toy, of):
    """Three sites, each with a key."""
    grid = toy.Grid({11: of(0), 12: of(1), 13: of(2)})
    grid.keys = dict(KEYS)
    return grid


@pytest.fixture
def begun(toy):
    """Make a federation that has gathered, and its function that begins a round and returns who is in."""

    def begin(grid, state=None, handshake=True, **admission):
        inner = FedAvg(min_train_nodes=1, min_available_nodes=1)
        strategy = FedDAT(inner, handshake=handshake, admission=Admission(**admission))
        strategy.load_state_dict(state or {})
        strategy.gather(grid)

        def members(server_round):
            strategy.configure_train(server_round, toy.arrays(x=[1.0]), ConfigRecord(), grid)
            return strategy.partitions

        return strategy, members

    return begin


def refusals(caplog):
    return [text for text in caplog.messages if text.startswith("not admitted: ")]


class TestTheFirstKeepsItsPlace:
    def test_while_it_is_there(self, grid, of, begun, caplog):
        _, members = begun(grid)
        grid.nodes[5] = of(1)
        assert members(1) == {11: 0, 12: 1, 13: 2}
        assert refusals(caplog) == [
            "not admitted: nodes 12 and 5 both hold partition 1: give each its own partition-id"
        ]

    def test_while_it_is_away_and_it_is_let_in_again_at_once(self, grid, of, begun):
        _, members = begun(grid)
        owner = grid.nodes.pop(12)
        grid.nodes[5] = of(1)
        assert members(1) == {11: 0, 13: 2}
        grid.nodes[12] = owner
        assert members(2) == {11: 0, 13: 2, 12: 1}

    def test_under_another_id_of_the_same_key(self, grid, of, begun):
        """A SuperLink that lost its database gives a registered key another id."""
        _, members = begun(grid)
        grid.nodes[30] = grid.nodes.pop(12)
        grid.keys[30] = KEYS[12]
        assert members(1) == {11: 0, 13: 2, 30: 1}

    def test_it_cannot_take_another_place_as_well(self, grid, of, begun, caplog):
        _, members = begun(grid)
        del grid.nodes[12], grid.nodes[13]
        assert members(1) == {11: 0}
        del grid.nodes[11]
        grid.nodes |= {12: of(1), 14: of(2)}
        assert members(2) == {12: 1}
        grid.nodes[11] = of(2)
        assert members(3) == {12: 1}
        assert "partition 2 (node 11): the node has partition 0 in this run" in refusals(caplog)[-2]

    def test_nodes_that_are_not_asked_keep_their_ranks(self, grid, begun):
        _, members = begun(grid, handshake=False)
        owner = grid.nodes.pop(12)
        grid.nodes[5] = owner
        assert members(1) == {11: 0, 13: 2, 5: 3}
        grid.nodes[12] = owner
        assert members(2) == {11: 0, 13: 2, 5: 3, 12: 1}


class TestGathering:
    def test_of_two_that_come_together_one_is_let_in_and_the_run_begins(self, grid, of, begun, caplog):
        grid.nodes[14] = of(1)
        strategy, _ = begun(grid)
        assert strategy.partitions == {11: 0, 12: 1, 13: 2}
        assert len(refusals(caplog)) == 1

    def test_one_in_the_place_of_another_is_not_counted_as_having_come(self, grid, of, begun, clock, caplog):
        """Node 1 claims what node 12 holds, and the third to come is still waited for."""
        late = grid.nodes.pop(13)
        grid.nodes[14] = of(1)

        def arrive(now):
            if now == 40.0:
                grid.nodes[13] = late

        clock.on_tick = arrive
        strategy, _ = begun(grid)
        assert strategy.partitions == {11: 0, 12: 1, 13: 2}
        assert clock.now == 40.0

    def test_it_does_not_wait_forever_for_the_rightful_one(self, grid, of, begun, clock, caplog):
        del grid.nodes[13]
        grid.nodes[14] = of(1)
        strategy, members = begun(grid, wait_seconds=60)
        assert strategy.partitions == {11: 0, 12: 1}
        assert clock.now == 60.0
        assert "2 of 3 nodes take part: the others came too late, or may not take part" in caplog.messages
        grid.nodes[13] = of(2)
        assert members(1) == {11: 0, 12: 1, 13: 2}

    @pytest.mark.parametrize("size", [10**9, 2**62, 1, 4])
    @pytest.mark.parametrize("expected_nodes", [None, 3])
    @pytest.mark.parametrize("first", [True, False])
    def test_a_size_that_one_alone_names_binds_nobody(
        self, grid, of, begun, clock, caplog, size, expected_nodes, first
    ):
        """Also if it is the first to come, and alone for a while."""
        honest, grid.nodes = grid.nodes, {}
        grid.nodes[5] = of(0, size)
        if first and size > 1:
            clock.on_tick = lambda now: grid.nodes.update(honest)
        else:
            grid.nodes |= honest
        strategy, _ = begun(grid, expected_nodes=expected_nodes)
        assert strategy.partitions == {11: 0, 12: 1, 13: 2}
        assert clock.now < 1
        assert (
            f"partition 0 (node 5): num-partitions is {size} on the client but 3 on most"
            in refusals(caplog)[0]
        )

    def test_one_that_began_the_run_alone_keeps_nobody_out(self, grid, of, begun):
        honest, grid.nodes = grid.nodes, {5: of(0, 1)}
        strategy, members = begun(grid)
        assert strategy.partitions == {5: 0}
        for server_round, node in enumerate((12, 13), 1):
            grid.nodes[node] = honest[node]
            members(server_round)
        assert strategy.partitions == {5: 0, 12: 1, 13: 2}

    def test_where_two_sizes_are_named_as_often_the_servers_is_right(self, toy, of, begun):
        grid = toy.Grid({5: of(0, 9), 11: of(1, 2)})
        strategy, _ = begun(grid, expected_nodes=2, wait_seconds=1)
        assert strategy.partitions == {11: 1}


class TestGivenPlaces:
    def test_the_rightful_node_is_let_in_whoever_came_first(self, grid, of, begun, clock, caplog):
        late = grid.nodes.pop(12)
        grid.nodes[5] = of(1)
        clock.on_tick = lambda now: grid.nodes.setdefault(12, late)
        strategy, _ = begun(grid, places={1: 12})
        assert strategy.partitions == {11: 0, 13: 2, 12: 1}
        assert refusals(caplog) == [
            "not admitted: partition 1 (node 5): it is given to node 12 (in a run-config: node-partitions)"
        ]

    def test_a_node_has_the_place_that_it_was_given(self, grid, begun, caplog):
        strategy, _ = begun(grid, places={2: 11}, wait_seconds=1)
        assert strategy.partitions == {12: 1}
        assert "partition 0 (node 11): the node has partition 2 in this run" in refusals(caplog)[0]
        assert "partition 2 (node 13): it is given to node 11" in refusals(caplog)[1]

    def test_they_outdo_those_of_before(self, grid, of, begun):
        strategy, _ = begun(grid)
        grid.nodes[30] = grid.nodes.pop(12)
        again, _ = begun(grid, strategy.state_dict(), places={1: 30})
        assert again.partitions == {11: 0, 13: 2, 30: 1}

    def test_who_had_such_a_place_has_none_and_who_gets_one_leaves_its_own(self, grid):
        before, after = Places(), Places({0: 12})
        for places in (before, after):
            places.look(grid)
        assert [before.take(11, 0), before.take(12, 1)] == ["", ""]
        after.load_state_dict(before.state_dict())
        assert after.take(12, 0) == ""
        assert [after.of(11), after.of(12)] == [None, 0]
        assert after.take(13, 1) == ""


class TestResumed:
    def test_places_are_kept(self, grid, of, begun, caplog):
        strategy, _ = begun(grid)
        state = strategy.state_dict()
        assert {name: value.dtype for name, value in state.items()} == {
            "places": np.int64,
            "owners": np.uint8,
        }
        owner = grid.nodes.pop(12)
        grid.nodes[5] = of(1)
        again, members = begun(grid, state, wait_seconds=1)
        assert again.partitions == {11: 0, 13: 2}
        assert "partition 1 (node 5): it belongs to a node that held it before" in refusals(caplog)[0]
        grid.nodes[12] = owner
        assert members(4) == {11: 0, 13: 2, 12: 1}

    def test_a_simulation_has_new_nodes(self, toy, of, begun):
        strategy, _ = begun(toy.Simulation({11: of(0), 12: of(1), 13: of(2)}))
        assert strategy.state_dict() == {}
        site, _ = begun(toy.Grid({11: of(0), 12: of(1), 13: of(2)}))
        again, _ = begun(toy.Simulation({21: of(2), 22: of(1), 23: of(0)}), site.state_dict())
        assert again.partitions == {23: 0, 22: 1, 21: 2}


class TestWithoutKeys:
    def test_a_place_is_free_when_its_node_has_left_if_so_asked(self, grid, of, begun):
        strategy, members = begun(grid, places="any")
        grid.nodes[5] = of(1)
        assert members(1) == {11: 0, 12: 1, 13: 2}
        del grid.nodes[12]
        assert members(2) == {11: 0, 13: 2, 5: 1}
        assert strategy.state_dict() == {}
