"""A stranger's ClientApp over rounds and processes: what arrives, what is kept, what is sent."""

import copy

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.supercore.task_identity import TaskIdentity

from app import Distillation, DualAdapter, PrivateStore, mkd_step
from app.federated_client import FedDATClient
from app.records import from_record, to_record
from tests.app.tiny_models import bert, drawn, lora, tokens

LORA = lora(["query", "value"])
RATE, RUN = 1e-2, 7
METHOD = Distillation(loss="cross-entropy")


@pytest.fixture(autouse=True)
def task_identity(monkeypatch):
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = bert()[0]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def loader(client):
    """Return two batches of a client; each has labels of its own, and texts as the others."""
    texts, labels = tokens(8, 7), torch.randint(0, 3, (8,), generator=torch.Generator().manual_seed(client))
    return [{"input_ids": texts[i : i + 4], "labels": labels[i : i + 4]} for i in (0, 4)]


@pytest.fixture
def process(tmp_path):
    """Return what makes the objects of a new process at the same site."""
    return lambda: FedDATClient(
        model(), LORA, head="classifier", device="cpu", store=PrivateStore(tmp_path / "private")
    )


@pytest.fixture
def first():
    return DualAdapter(model(), LORA, head="classifier").shared()


def context(client, run=RUN):
    return Context(run, 100 + client, {"partition-id": client}, RecordDict(), {})


def message(arrays, server_round, kind=MessageType.TRAIN, node=100):
    records = arrays if "arrays" in arrays else {"arrays": to_record(arrays)}
    config = ConfigRecord({"server-round": server_round})
    return Message(RecordDict({**records, "config": config}), node, kind)


def train(client, who, arrays, server_round):
    """Do what the contract's `train` does; return what is sent."""
    msg, about = message(arrays, server_round), context(who)
    client.load(msg, about)
    metrics = client.fit(loader(who), lr=RATE)
    return client.reply(msg, about, metrics).content


def mean(replies):
    return {name: (replies[0][name] + replies[1][name]) / 2 for name in replies[0]}


def alone(first, rounds):
    """Give each client a model of its own that lives through all rounds; return it after each round."""
    duals, shared, history = [DualAdapter(model(), LORA, head="classifier") for _ in range(2)], first, []
    for _ in range(rounds):
        for who, dual in enumerate(duals):
            dual.receive(shared)
            optimizer = torch.optim.AdamW(dual.trained_parameters(), lr=RATE, weight_decay=0.01)
            for batch in loader(who):
                mkd_step(dual, optimizer, {"input_ids": batch["input_ids"]}, batch["labels"], METHOD)
        history.append([(dual.shared(), dual.private()) for dual in copy.deepcopy(duals)])
        shared = mean([dual.shared() for dual in duals])
    return history


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_two_clients_over_rounds_and_processes_are_as_if_each_had_a_model_of_its_own(process, first):
    expected, shared = alone(first, 3), first
    # Round 1 in one process, round 2 in another, round 3 in a process for each client.
    for server_round, processes in enumerate(([process()] * 2, [process()] * 2, [process(), process()]), 1):
        replies = []
        for who, client in enumerate(processes):
            content = train(client, who, shared, server_round)
            sent, private = expected[server_round - 1][who]
            replies.append(from_record(content["arrays"]))
            assert same(replies[-1], sent)
            assert same(client.dual.private(), private)
            assert content["metrics"]["num-examples"] == 8
            assert content["metrics"]["kl-student"] > 0
        shared = mean(replies)
    privates = [private for _, private in expected[-1]]
    assert not any(torch.equal(privates[0][name], privates[1][name]) for name in privates[0])
    for who in (1, 0):
        client = process()
        client.load(message(shared, 3, MessageType.EVALUATE), context(who))
        assert same(client.dual.private(), privates[who])
        assert same(client.dual.shared(), shared)
        assert same(client.dual.state("frozen"), shared)


def test_a_round_asked_for_again_begins_where_it_began(process, first):
    one = process()
    train(one, 0, first, 1)
    second = from_record(train(one, 0, first, 2)["arrays"])
    assert same(from_record(train(process(), 0, first, 2)["arrays"]), second)


def test_what_is_sent_is_what_is_shared(process, first):
    content = train(process(), 0, first, 1)
    assert list(content.array_records) == ["arrays"]
    names = set(content["arrays"])
    assert names == set(first)
    assert names
    assert all("lora_" in name and "local" not in name for name in names)
    assert all(isinstance(value, int | float) for value in content["metrics"].values())


def test_another_run_begins_anew(process, first):
    client = process()
    begun = client.dual.private()
    train(client, 0, first, 1)
    client.load(message(first, 2), context(0, run=RUN + 1))
    assert same(client.dual.private(), begun)
    client.load(message(first, 2), context(0))
    assert not same(client.dual.private(), begun)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda a: {"arrays": to_record(a), "more": to_record(a)}, "the message has 2 records of arrays"),
        (
            lambda a: {"arrays": to_record({**a, "encoder.weight": drawn(2)})},
            "unknown arrays: encoder.weight",
        ),
        (lambda a: {"arrays": to_record(dict(list(a.items())[1:]))}, "missing or unknown arrays: "),
        (lambda a: {"arrays": to_record({n: v[:1] for n, v in a.items()})}, "has shape (1, 32), not "),
        (lambda a: {"arrays": ArrayRecord()}, "missing or unknown arrays: "),
    ],
    ids=["two records", "an array more", "an array missing", "other shapes", "empty"],
)
def test_a_message_with_other_arrays_is_refused(process, first, content, said):
    client = process()
    train(client, 0, first, 1)
    before = {**client.dual.shared(), **client.dual.private()}
    with pytest.raises(ValueError) as caught:
        client.load(message(content(first), 2), context(0))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same({**client.dual.shared(), **client.dual.private()}, before)


def test_a_message_without_arrays_or_round_is_refused(process, first):
    client = process()
    for content, said in (
        ({"config": ConfigRecord({"server-round": 1})}, "the message has 0 records of arrays; allowed: one"),
        ({"arrays": to_record(first), "config": ConfigRecord({})}, "the message does not say its server-r"),
    ):
        with pytest.raises(ValueError) as caught:
            client.load(Message(RecordDict(content), 100, MessageType.TRAIN), context(0))
        assert str(caught.value).startswith(said)


def test_what_diverged_is_neither_sent_nor_kept(process, first):
    client, about = process(), context(0)
    train(client, 0, first, 1)
    kept = client.dual.private()
    msg = message(first, 2)
    client.load(msg, about)
    name = next(iter(client.dual.parameters_of["local"]))
    with torch.no_grad():
        client.dual.parameters_of["local"][name][0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite; nothing of this round is kept"):
        client.reply(msg, about, {})
    again = process()
    again.load(message(first, 3), about)
    assert same(again.dual.private(), kept)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "loader: it gave no batch; allowed: one or more"),
        ([{"input_ids": tokens(4, 7)}], "batch: no 'labels' among input_ids; name it by `targets`"),
        ([tokens(4, 7)], "batch: Tensor; allowed: a mapping, or inputs and targets"),
    ],
)
def test_a_loader_that_does_not_fit(process, batches, said):
    with pytest.raises(ValueError) as caught:
        process().fit(batches)
    assert str(caught.value) == said
