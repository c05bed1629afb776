"""A method whose replies are not like what was sent: LoRA of a rank of each client's own, and prototypes."""

import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from safetensors.torch import load_file

from app.learner import Learner
from app.methods import METHODS
from app.methods.adapter import SharedAdapter
from app.settings import SettingsError, read_settings

MOST = 4


class OwnRanks(SharedAdapter):
    """Clients cut the shared LoRA to their rank; the server fills theirs with zeros, and averages."""

    name = "own-ranks"

    def reply_layout(self, sent):
        """LoRA's rank is the rows of A and the columns of B."""
        rank = ("rank", MOST)
        return {
            name: (rank, shape[1]) if ".lora_A." in name else (shape[0], rank) for name, shape in sent.items()
        }

    def receive(self, learner, arrays):
        own = learner.parameters_of["shared"]
        learner.receive({name: value[tuple(map(slice, own[name].shape))] for name, value in arrays.items()})

    def combine(self, sent, replies, weights):
        combined = {name: torch.zeros_like(value) for name, value in sent.items()}
        for reply, weight in zip(replies, weights, strict=True):
            for name, value in reply.items():
                combined[name][tuple(map(slice, value.shape))] += weight / sum(weights) * value
        return combined


class Prototypes(SharedAdapter):
    """Beside the adapter a client replies the mean of what it saw, of a width that only it knows."""

    name = "prototypes"

    def reply_layout(self, sent):
        """One row for each class."""
        return {**sent, "prototypes": (3, ("width", 64))}

    def travelling(self, learner: Learner):
        seen = {"prototypes": torch.ones(3, 5)} if learner.head is not None else {}
        return {**learner.shared(), **seen}

    def combine(self, sent, replies, weights):
        return {name: torch.stack([reply[name] for reply in replies]).mean(0) for name in sent}


def trained_only(self, learner):
    """Let more travel once anything was trained."""
    arrays = learner.shared()
    moved = any(not torch.equal(value, learner._first_shared[name]) for name, value in arrays.items())
    return {**arrays, **({"prototypes": torch.ones(3, 5)} if moved else {})}


@pytest.fixture
def method(monkeypatch):
    """Register a method for one test."""

    def register(kind):
        monkeypatch.setitem(METHODS, kind.name, kind())
        return kind.name

    return register


@pytest.fixture
def ranks(federation, method):
    """Build a federation in which each client has a rank of its own."""

    def build(*own, **settings):
        clients = federation(
            len(own), method=method(OwnRanks), adapter="lora", lora_rank=MOST, num_rounds=2, **settings
        )
        for partition, rank in enumerate(own):
            clients.contexts[clients.node_id(partition)].node_config["lora-rank"] = rank
        return clients

    return build


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def up(clients):
    """Return the arrays of each client's first reply to train."""
    replies = [m for where, m in clients.wire if where == "to server" and not m.has_error()]
    records = [reply.content.array_records for reply in replies]
    found = [next(iter(record.values())) for record in records if record]
    return [{name: array.numpy() for name, array in one.items()} for one in found]


def test_clients_of_unequal_ranks_train_one_adapter(ranks):
    clients = ranks(2, MOST)
    folder = clients.serve()
    small, large = up(clients)[:2]
    assert {array.shape for name, array in small.items() if ".lora_A." in name} == {(2, 32)}
    assert {array.shape for name, array in large.items() if ".lora_B." in name} == {(32, MOST)}
    down = [m for where, m in clients.wire if where == "to client" and m.metadata.message_type == "train"]
    (second,) = down[2].content.array_records.values()
    for name, value in large.items():
        expected = value / 2
        expected[tuple(map(slice, small[name].shape))] += small[name] / 2
        np.testing.assert_allclose(second[name].numpy(), expected, atol=1e-6)
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {tuple(v.shape) for n, v in saved.items() if "lora_A" in n} == {(MOST, 32)}


BAD = {
    "a rank too large": (
        lambda a: np.repeat(a, 3, axis=0),
        "has shape (6, 32), allowed: ",
    ),
    "two ranks": (lambda a: a[:1], ", allowed: ("),
    "no rank": (lambda a: a[:0], "has shape (0, 32), allowed: (1..4, 32)"),
    "another width": (lambda a: a[:, :5], "has shape (2, 5), allowed: "),
    "no number": (lambda a: a * np.nan, "has values that are not finite"),
    "another dtype": (lambda a: a.astype(np.float64), "is float64, allowed: float32"),
    "more dimensions": (lambda a: a[None], "has shape (1, 2, 32), allowed: "),
}


@pytest.mark.parametrize(("alter", "reason"), BAD.values(), ids=BAD.keys())
def test_a_hostile_reply_of_a_free_layout_is_refused(ranks, alter, reason):
    clients = ranks(2, MOST, min_clients=1, max_failure_rate=0.5)

    def altered(node, reply):
        if not reply.has_error() and node == clients.node_id(0):
            for record in reply.content.array_records.values():
                name = next(name for name in record if ".lora_A." in name)
                record[name] = Array(np.ascontiguousarray(alter(record[name].numpy())))
        return reply

    clients.alter = altered
    refused = [row["refused"] for row in rows(clients.serve()) if "refused" in row]
    assert len(refused) == 2
    assert all(reason in line for line in refused), refused


def test_a_change_of_another_shape_is_clipped_as_well(ranks):
    """What is far is held to the part of what was sent that it covers."""
    clients = ranks(2, 2, 2, MOST, clip_change=1.0, max_change=1e9)
    clients.alter = _loud(clients)
    clipped = [row["clipped"] for row in rows(clients.serve()) if "clipped" in row]
    assert min(clipped) < 0.01
    assert max(clipped) == 1.0


def _loud(clients):
    def altered(node, reply):
        if node == clients.node_id(0) and not reply.has_error():
            for key, record in reply.content.array_records.items():
                loud = {name: Array(1e6 * (1 + array.numpy())) for name, array in record.items()}
                reply.content[key] = ArrayRecord(loud)
        return reply

    return altered


def test_a_method_may_reply_names_that_were_not_sent(federation, method):
    clients = federation(2, method=method(Prototypes))
    folder = clients.serve()
    assert [reply["prototypes"].shape for reply in up(clients)] == [(3, 5)] * 4
    assert not any("refused" in row for row in rows(folder))
    down = [m for where, m in clients.wire if where == "to client"]
    assert not any("prototypes" in r for m in down for r in m.content.array_records.values())


def test_a_name_that_was_neither_sent_nor_declared_is_refused(federation, method, monkeypatch):
    monkeypatch.setattr(Prototypes, "reply_layout", lambda self, sent: {**sent})
    clients = federation(2, method=method(Prototypes))
    with pytest.raises(RuntimeError, match="array 'prototypes' was not sent"):
        clients.serve()


def test_a_layout_of_its_own_needs_a_combination_of_its_own(federation, method, monkeypatch):
    monkeypatch.setattr(OwnRanks, "combine", None)
    clients = federation(2, method=method(OwnRanks), adapter="lora", lora_rank=MOST)
    with pytest.raises(ValueError, match="method = 'own-ranks' has replies unlike what is sent"):
        clients.serve()


@pytest.mark.parametrize(
    ("key", "value"), [("strategy", "krum"), ("dp__mode", "local"), ("wire_precision", "int8")]
)
def test_what_counts_on_a_mean_is_refused_with_a_combination(run_config, method, key, value):
    config = run_config(method=method(OwnRanks), **{key: value})
    with pytest.raises(SettingsError, match=r"method = 'own-ranks', which combines replies by itself"):
        read_settings(config)


@pytest.mark.parametrize("declared", [True, False])
def test_a_site_lets_no_more_leave_than_it_says_whatever_a_method_sends(
    federation, method, monkeypatch, declared
):
    """What is neither adapter nor head counts as all, also where it is only there after training."""
    if not declared:
        monkeypatch.setattr(Prototypes, "reply_layout", lambda self, sent: sent)
        monkeypatch.setattr(Prototypes, "travelling", trained_only)
    clients = federation(2, method=method(Prototypes), node_config={"share-weights": "adapter"})
    with pytest.raises(RuntimeError, match="share-weights = 'adapter'; the run's method and head send 'all'"):
        clients.serve()
    assert not up(clients)
