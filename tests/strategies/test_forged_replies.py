"""One node answers in another's name: for that it would have to guess the id of the other's message."""

from copy import deepcopy

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from strategies import FedDAT


@pytest.fixture
def sent(toy):
    """Give the messages of a run, with the ids that Flower's grid gives them: hashes of what they are."""

    class Grid(toy.Grid):
        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            for message in messages:
                message.metadata.__dict__["_message_id"] = deepcopy(message).object_id
            return super().send_and_receive(messages, timeout=timeout)

    def sent(handshake):
        grid = Grid({7: toy.Client(0), 8: toy.Client(1)})
        strategy = FedDAT(FedAvg(), handshake=handshake)
        strategy.start(grid, toy.arrays(x=[1.0]), num_rounds=2)
        return grid.sent

    return sent


def guess(own: Message, other: Message) -> str:
    """Return the id that node 7 takes the other's message to have, told when that was made."""
    forged = deepcopy(own)
    forged.metadata.__dict__["_dst_node_id"] = other.metadata.dst_node_id
    forged.metadata.__dict__["_created_at"] = other.metadata.created_at
    return forged.object_id


@pytest.mark.parametrize("handshake", [True, False])
def test_no_nodes_message_tells_the_id_of_anothers(sent, handshake):
    own, others = ([m for m in sent(handshake) if m.metadata.dst_node_id == node] for node in (7, 8))
    assert len(own) == len(others) == 4 + handshake
    for mine, other in zip(own, others, strict=True):
        assert guess(mine, other) != other.metadata.message_id
        # All else is as it is thought to be.
        mine.content["config"]["nonce"] = other.content["config"]["nonce"]
        assert guess(mine, other) == other.metadata.message_id


def test_the_second_try_of_a_round_has_another(toy, sent):
    grid = toy.Grid({7: toy.Client(0, alter=lambda content: "an error")})
    with pytest.raises(RuntimeError, match="tried twice"):
        FedDAT(FedAvg(min_train_nodes=1, min_available_nodes=1)).start(
            grid, toy.arrays(x=[1.0]), num_rounds=1
        )
    first, second = (m.content["config"]["nonce"] for m in grid.sent if m.metadata.message_type == "train")
    assert first != second


def test_a_strategy_without_a_config_gets_one(toy, federation):
    class Bare(FedAvg):
        def configure_train(self, *arguments):
            messages = list(super().configure_train(*arguments))
            for message in messages:
                message.content = RecordDict(message.content.array_records)
            return messages

    strategy, grid = FedDAT(Bare(), handshake=False), federation()
    messages = strategy.configure_train(1, toy.arrays(x=[1.0]), ConfigRecord(), grid)
    assert all(len(message.content["config"]["nonce"]) == 32 for message in messages)
