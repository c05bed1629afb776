"""Fixtures: one client that is sent one message."""

from contextlib import suppress

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from app.adapters import adapt, adapter_config
from app.backbones import load_backbone
from app.heads import new_head
from app.private_state import PrivateState, Shelf, load_private_state
from app.records import to_record
from app.source import source_hash
from client_app.site_word import SITE_WORD, give_word
from data_partitions.benchmarks import load_partition
from tests.client_app.messages.replies import TOKEN, options


@pytest.fixture
def fresh(small_backbone):
    """Return the adapters of a client that has done nothing yet."""
    return lambda: adapt(
        load_backbone(str(small_backbone)), adapter_config("bottleneck", reduction_factor=4, width=32)
    )


@pytest.fixture
def federation(federation):
    """Build one of rounds enough for every test."""
    return lambda *clients, **settings: federation(*clients, **{"num_rounds": 5, **settings})


@pytest.fixture
def call(federation, small_backbone, fresh):
    """Send one client a message and return its reply; the arrays are the run's first."""
    first = to_record(fresh().state("shared"))
    identity = {
        "backbone": load_backbone(str(small_backbone)).fingerprint,
        "source": source_hash(),
        "run": "test",
        "run-token": TOKEN,
    }

    def call(clients, kind, partition=0, server_round=1, arrays=first, **config):
        config = {**identity, "server-round": server_round, **config}
        content = {"config": ConfigRecord({k: v for k, v in config.items() if v is not None})}
        node = clients.node_id(partition)
        if kind != "query":
            content["arrays"] = arrays
            with suppress(ValueError):  # a site that cannot have one
                content["config"][SITE_WORD] = give_word(clients.contexts[node])
        (reply,) = clients.send_and_receive(
            [Message(RecordDict(content), dst_node_id=node, message_type=kind)]
        )
        return reply

    return call


@pytest.fixture
def private(home, fresh):
    """Load what a client has kept on the disk, or None."""

    def private(clients, partition=0):
        answers = len(load_partition("scenes", partition, clients.num_clients, options(clients)).answers)
        first = PrivateState(fresh().state("local"), new_head(32, answers, seed=0).state_dict())
        state, lost = load_private_state(Shelf(home / "clients", "test", TOKEN, partition), 99, first)
        assert lost == 0
        return None if state is first else state

    return private
