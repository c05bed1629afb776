"""Fixtures: a site that is asked for everything."""

import itertools
from contextlib import suppress

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from app.adapters import adapt, adapter_config
from app.backbones import load_backbone
from app.records import to_record
from app.source import source_hash
from client_app.site_word import SITE_WORD, give_word
from tests.bad_input.given import domain, write
from tests.client_app.policy.replies import KINDS, SECRET


@pytest.fixture(scope="module")
def first(small_backbone):
    config = adapter_config("bottleneck", reduction_factor=4, width=32)
    return to_record(adapt(load_backbone(str(small_backbone)), config).state("shared"))


@pytest.fixture
def asked(federation, small_backbone, first):
    """Ask a site for everything; return its replies by kind. Keywords are settings, `node` its own word."""

    def asked(node=None, arrays=first, run="test", state_round=0, **settings):
        own = {"policy": "closed", "backbone": str(small_backbone), **(node or {})}
        own = {key: value for key, value in own.items() if value is not None}
        clients = federation(1, node_config=own, **settings)
        config = {
            "backbone": load_backbone(str(small_backbone)).fingerprint,
            "source": source_hash(),
            "run": run,
            "state-round": state_round,
            "run-token": "0123456789abcdef",
            "server-round": 1,
            "clipping_norm": 1.0,
            # What a server might try.
            "policy": "open",
            "min-examples": 1,
            "share-metrics": "all",
        }
        replies = {}
        for kind in KINDS:
            content = RecordDict({"config": ConfigRecord(config)})
            if kind != "query":
                content["arrays"] = arrays
                with suppress(ValueError):  # a site that cannot have one
                    content["config"][SITE_WORD] = give_word(clients.contexts[clients.node_id(0)])
            message = Message(content, dst_node_id=clients.node_id(0), message_type=kind)
            (replies[kind],) = clients.send_and_receive([message])
        return replies

    return asked


@pytest.fixture
def vqa(asked, tmp_path):
    """Ask a site with a domain of its own, in a folder and under names that are secret."""
    numbers = itertools.count()

    def ask(rows=None, damage=lambda folder: None, **more):
        folder = tmp_path / f"folder {next(numbers)} of {SECRET}"  # the process keeps what it read of one
        write(folder, rows or domain(train=12, val=2, test=10, name=SECRET), SECRET)
        damage(folder)
        node = {"data-dir": str(folder), "state-dir": str(tmp_path / SECRET), **more.pop("node", {})}
        settings = {"benchmark": "vqa-domains", "data_dir": "/nowhere", "num_answers": 2, "test_examples": 0}
        return asked(node, **{**settings, **more})

    return ask
