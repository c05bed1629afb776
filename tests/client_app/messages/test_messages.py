"""The ClientApp: what it says of itself, what it refuses, what it sends."""

import platform
import shutil
from itertools import product

import flwr
import numpy as np
import pytest
import torch

from app.backbones import load_backbone, open_backbone
from app.examples import process
from app.heads import new_head
from app.records import from_record, to_record
from app.settings import read_settings
from app.source import source_hash
from app.tasks import TASKS
from client_app import local_training, messages
from data_partitions.benchmarks import load_partition, text_only_baseline
from tests.client_app.messages.replies import options, refusal


def test_the_handshake_says_who_it_is_and_what_it_runs(federation, call, small_backbone):
    clients = federation(3)
    answer = dict(call(clients, "query", partition=1).content["handshake"])
    assert (answer["partition-id"], answer["num-partitions"], answer["natural-partitions"]) == (1, 3, 5)
    assert answer["name"] == "sketch"
    assert answer["backbone"] == load_backbone(str(small_backbone)).fingerprint
    assert answer["source"] == source_hash()
    partition = load_partition("scenes", 1, 3, options(clients))
    assert answer["text-only"] == text_only_baseline(partition)
    assert (answer["unanswerable"], answer["skipped"]) == (partition.unanswerable["test"] / 8, 0)
    assert (answer["flwr"], answer["torch"]) == (flwr.__version__, torch.__version__)
    assert (answer["python"], answer["device"]) == (platform.python_version(), "cpu")


def test_a_training_reply_is_the_shared_adapter_and_scalars(federation, call, fresh):
    clients = federation()
    reply = call(clients, "train")
    assert set(reply.content) == {"arrays", "metrics"}
    sent = fresh().state("shared")
    assert [(n, a.shape, a.dtype) for n, a in reply.content["arrays"].items()] == [
        (name, tuple(sent[name].shape), "float32") for name in sorted(sent)
    ]
    assert all(isinstance(value, int | float) for value in reply.content["metrics"].values())
    assert reply.content["metrics"]["num-examples"] == 12


def test_the_first_local_adapter_and_head_are_functions_of_the_seed(federation, call, fresh, monkeypatch):
    seen = []

    def spy(adapter, *rest, **keywords):
        seen.append((adapter.state("local"), {k: v.clone() for k, v in adapter.head.state_dict().items()}))
        return {"num-examples": 1}

    monkeypatch.setattr(messages, "train_round", spy)
    clients = federation()
    for partition in (0, 1):
        call(clients, "train", partition)
    answers = len(load_partition("scenes", 0, 2, options(clients)).answers)
    head = new_head(32, answers, seed=0).state_dict()
    for local, _ in seen:
        assert all(torch.equal(value, local[name]) for name, value in fresh().state("local").items())
    assert all(torch.equal(value, seen[0][1][name]) for name, value in head.items())


@pytest.mark.parametrize(
    ("kind", "value"),
    # What is there before any training may be scored.
    [("train", 0), *product(("train", "evaluate"), (-1, 6, 10**9, True, 1.0, "1", None))],
)
def test_a_round_that_the_run_has_not_is_refused_before_anything_is_done(
    federation, call, home, monkeypatch, kind, value
):
    """Beyond the last one the schedule gives factors that the settings do not say."""
    for work in ("train_round", "evaluate"):
        monkeypatch.setattr(messages, work, lambda *_, **__: pytest.fail("it worked"))
    config = {} if value is None else {"server-round": value}
    reply = call(federation(), kind, server_round=None, **config)
    first = {"train": 1, "evaluate": 0}[kind]
    assert refusal(reply) == f"server-round = {value!r} in the server's message; allowed: {first} to 5"
    assert [path.name for path in (home / "clients").rglob("*")] == [".secret-0"]


def test_every_branch_is_evaluated_with_what_has_just_arrived(federation, call, fresh, monkeypatch, private):
    """The teacher's frozen copy too: the published code evaluates it with the round before's (fault 4)."""
    clients = federation(learning_rate=0.02)
    trained = call(clients, "train").content["arrays"]
    arrived = {name: value * 1.5 for name, value in from_record(trained).items()}
    logits, score = [], TASKS["bce-scores"].score

    def spy(values, scores):
        logits.append(values)
        return score(values, scores)

    monkeypatch.setattr(TASKS["bce-scores"], "score", spy)
    metrics = call(clients, "evaluate", arrays=to_record(arrived)).content["metrics"]

    partition, adapter = load_partition("scenes", 0, 2, options(clients)), fresh()
    state = private(clients)
    adapter.load("shared", arrived)
    adapter.load("frozen", arrived)
    adapter.load("local", state.local)
    head = new_head(32, len(partition.answers), seed=0)
    head.load_state_dict(state.head)
    examples = process(partition.test, open_backbone(read_settings(clients.run_config)).processor)
    inputs, scores = examples.batch(torch.arange(8), torch.device("cpu"))
    with torch.no_grad():
        expected = [head(adapter(inputs, branch)) for branch in ("student", "local", "teacher")]
        adapter.load("frozen", from_record(trained))
        stale = head(adapter(inputs, "teacher"))
    for seen, right in zip(logits, expected, strict=True):
        torch.testing.assert_close(seen, right, rtol=1e-4, atol=1e-5)
    assert (logits[2] - stale).abs().max() > 1e-3
    for branch, right in zip(("student", "local", "teacher"), expected, strict=True):
        assert metrics[branch] == pytest.approx(score(right, scores).mean().item())


def test_the_baseline_has_one_branch(federation, call):
    clients = federation(method="adapter")
    call(clients, "train")
    metrics = call(clients, "evaluate").content["metrics"]
    assert "student" in metrics
    assert not {"local", "teacher"} & set(metrics)


def test_the_pull_is_the_runs_whatever_a_message_says(federation, call, monkeypatch):
    """A message with one of its own could make all but a round's last example count for nothing."""
    seen, pulled = [], local_training.pulled
    monkeypatch.setattr(local_training, "pulled", lambda w, mu: seen.append(mu) or pulled(w, mu))
    call(federation(), "train", **{"proximal-mu": 0.25})
    call(federation(strategy="fedprox", proximal_mu=0.5), "train", **{"proximal-mu": 0.25})
    assert seen == [0, 0.5]


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("key", ["source", "backbone"])
def test_a_server_with_another_source_or_backbone_is_refused(
    federation, call, kind, key, small_backbone, monkeypatch, private
):
    monkeypatch.setattr(messages, "train_round", pytest.fail)
    clients = federation()
    own = {"source": source_hash(), "backbone": load_backbone(str(small_backbone)).fingerprint}[key]
    reply = call(clients, kind, partition=1, **{key: "f" * 64})
    assert refusal(reply) == (
        f"{key} is {own[:12]} on partition 1 but ffffffffffff on the server: give both the same {key}"
    )
    assert private(clients, 1) is None


@pytest.mark.parametrize("key", ["partition-id", "num-partitions"])
@pytest.mark.parametrize("value", ["zero", 0.5])
def test_a_node_must_know_its_partition(federation, call, key, value):
    reply = call(federation(node_config={key: value}), "query")
    assert refusal(reply) == f"node-config: {key} = {value!r}; allowed: a whole number, such as {key}=2"


def test_a_sites_own_settings_win(federation, call):
    reply = call(federation(device="cuda:99", node_config={"device": "cpu"}), "query")
    assert reply.content["handshake"]["device"] == "cpu"


def test_a_site_may_have_the_backbone_elsewhere(federation, call, small_backbone, tmp_path):
    copy = shutil.copytree(small_backbone, tmp_path / "copy")
    clients = federation(backbone="/nowhere", node_config={"backbone": str(copy)})
    own = load_backbone(str(small_backbone)).fingerprint
    assert call(clients, "query").content["handshake"]["backbone"] == own


def test_a_site_cannot_change_the_method(federation, call):
    clients = federation(node_config={"method": "adapter"})
    assert "ce-teacher" in call(clients, "train").content["metrics"]


def test_weights_that_do_not_fit_are_refused(federation, call, fresh):
    shared = fresh().state("shared")
    name = sorted(shared)[0]
    reply = call(federation(), "train", arrays=to_record({**shared, name: torch.zeros(3)}))
    assert f"{name} has shape (3,)" in refusal(reply)
    reply = call(federation(), "train", arrays=to_record({name: shared[name]}))
    assert "missing or unknown arrays" in refusal(reply)


def test_a_reply_owns_its_arrays(federation, call):
    """Adapters are shared by the clients of a process: a reply must not change when the next one trains."""
    clients = federation()
    reply = call(clients, "train").content["arrays"]
    before = {name: np.array(array.numpy()) for name, array in reply.items()}
    call(clients, "train", 1)
    assert all(np.array_equal(array.numpy(), before[name]) for name, array in reply.items())
