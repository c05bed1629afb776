"""The ClientApp: what it says of itself, what it refuses, what it keeps, what it sends."""

import errno
import os
import platform
import shutil
from contextlib import suppress

import flwr
import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from app.adapters import adapt, adapter_config
from app.backbones import load_backbone, open_backbone
from app.examples import process
from app.heads import new_head
from app.methods import METHODS
from app.private_state import PrivateState, Shelf, load_private_state
from app.records import from_record, to_record
from app.settings import read_settings
from app.source import source_hash
from app.tasks import TASKS
from client_app import client, local_training, messages
from client_app.client import data_options
from client_app.site_word import SITE_WORD, give_word
from data_partitions.benchmarks import load_partition, text_only_baseline


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


TOKEN = "0123456789abcdef"


def bytes_of(record):
    return {name: array.data for name, array in record.items()}


def refusal(reply):
    """Return a client's own words, out of what Flower's simulation wraps around them."""
    return reply.error.reason.split("occurred. Message: ")[1].removesuffix("'>")


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


def same(one, other):
    """Whether two private states are equal to the bit."""
    pairs = ((getattr(one, part), getattr(other, part)) for part in ("local", "head"))
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


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


def test_the_private_state_of_a_round_is_where_the_next_begins(federation, call, monkeypatch, private):
    clients = federation()
    call(clients, "train")
    kept, begun, train_round = private(clients), {}, messages.train_round

    def spy(adapter, *rest, **keywords):
        head = {name: value.clone() for name, value in adapter.head.state_dict().items()}
        begun.update(local=adapter.state("local"), head=head)
        return train_round(adapter, *rest, **keywords)

    monkeypatch.setattr(messages, "train_round", spy)
    call(clients, "train", server_round=2)
    for part in ("local", "head"):
        before, now = getattr(kept, part), getattr(private(clients), part)
        assert all(torch.equal(value, begun[part][name]) for name, value in before.items())
        assert any(not torch.equal(value, now[name]) for name, value in before.items())


def test_clients_of_one_process_do_not_touch_each_other(federation, call, private):
    alone = federation()
    expected = [call(alone, "train", 1, server_round) for server_round in (1, 2)]
    kept, shared = private(alone, 1), federation()
    for server_round, reply in zip((1, 2), expected, strict=True):
        call(shared, "train", 0, server_round)
        call(shared, "evaluate", 0, server_round)
        other = call(shared, "train", 1, server_round)
        assert bytes_of(other.content["arrays"]) == bytes_of(reply.content["arrays"])
    assert same(private(shared, 1), kept)


def test_a_round_that_fails_leaves_the_private_state_as_it_was(federation, call, monkeypatch, private):
    clients = federation()
    call(clients, "train")
    before, step = private(clients), METHODS["feddat"].step
    calls = []

    def breaks_late(*arguments):
        calls.append(step(*arguments))
        if len(calls) == 2:
            raise RuntimeError("the GPU fell off")
        return calls[-1]

    monkeypatch.setattr(METHODS["feddat"], "step", breaks_late)
    reply = call(clients, "train", server_round=2)
    assert refusal(reply) == "the GPU fell off"
    assert same(private(clients), before)


def restart(clients, partition=0):
    """Let a client forget all that it has in memory."""
    clients.contexts[clients.node_id(partition)].state = RecordDict()


def test_a_client_that_is_restarted_before_every_message_does_the_same(federation, call, private):
    def run(clients, before_each):
        arrays = []
        for server_round in (1, 2, 3):
            for kind in ("train", "evaluate"):
                before_each(clients)
                reply = call(clients, kind, server_round=server_round)
            before_each(clients)
            scores = {k: v for k, v in reply.content["metrics"].items() if "seconds" not in k}
            arrays.append((scores, private(clients)))
        return arrays

    first = run(federation(), lambda clients: None)
    second = run(federation(), restart)
    for (scores, state), (expected, kept) in zip(second, first, strict=True):
        assert scores == expected
        assert same(state, kept)


@pytest.mark.parametrize("forget", [restart, lambda clients: None], ids=["restarted", "running"])
def test_a_round_that_is_tried_again_begins_where_it_began(federation, call, private, forget):
    clients = federation()
    call(clients, "train", server_round=1)
    reply, kept = call(clients, "train", server_round=2), private(clients)
    call(clients, "evaluate", server_round=2)
    forget(clients)
    again = call(clients, "train", server_round=2)
    assert bytes_of(again.content["arrays"]) == bytes_of(reply.content["arrays"])
    assert same(private(clients), kept)


def test_a_corrupt_state_is_told_in_the_reply(federation, call, home):
    clients = federation()
    for server_round in (1, 2):
        call(clients, "train", server_round=server_round)
    expected = call(clients, "train", server_round=2)
    newest = home / "clients" / f"test-{TOKEN}" / "0" / "round-000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])
    restart(clients)
    reply = call(clients, "evaluate", server_round=2)
    assert reply.content["metrics"]["state-recovered"] == 1
    again = call(clients, "train", server_round=2)
    assert "state-recovered" not in again.content["metrics"]
    assert bytes_of(again.content["arrays"]) == bytes_of(expected.content["arrays"])


def test_a_full_disk_is_an_error_and_the_client_goes_on_from_its_last_round(
    federation, call, private, monkeypatch, home
):
    clients = federation()
    call(clients, "train", server_round=1)
    kept, expected = private(clients), call(clients, "train", server_round=2)
    for path in (home / "clients" / f"test-{TOKEN}" / "0").glob("*2.safetensors"):
        path.unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        reply = call(clients, "train", server_round=2)
    path = home / "clients" / f"test-{TOKEN}" / "0" / "round-000002.safetensors"
    assert refusal(reply) == f"private state cannot be written to {path}: No space left on device"
    assert same(private(clients), kept)
    again = call(clients, "train", server_round=2)
    assert bytes_of(again.content["arrays"]) == bytes_of(expected.content["arrays"])


def test_a_site_says_where_its_private_states_lie(federation, call, home, tmp_path):
    clients = federation(node_config={"state-dir": str(tmp_path / "safe")})
    call(clients, "train", partition=1)
    assert [str(p.relative_to(tmp_path / "safe")) for p in (tmp_path / "safe").rglob("*.safetensors")] == [
        f"test-{TOKEN}/1/round-000001.safetensors"
    ]
    assert not (home / "clients").exists()


def test_a_relative_state_dir_is_refused(federation, call):
    reply = call(federation(node_config={"state-dir": "here"}), "train")
    assert refusal(reply) == "node-config: state-dir = 'here' is relative; allowed: an absolute path"


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", "../../x"),
        ("run", "/x"),
        ("run", ""),
        ("run", 3),
        ("run-token", ""),
        ("run-token", "x y"),
        ("run-token", "f" * 65),
    ],
)
def test_a_server_cannot_lead_a_client_out_of_its_folder(federation, call, home, kind, key, value):
    reply = call(federation(), kind, **{key: value})
    assert refusal(reply).startswith(f"{key} = {value!r} in the server's message; allowed: text like ")
    assert [path.name for path in (home / "clients").rglob("*")] == [".secret-0"]


def test_states_that_were_deleted_are_told_in_the_reply(federation, call, home):
    clients = federation()
    for server_round in (1, 2):
        reply = call(clients, "train", server_round=server_round, **{"state-round": server_round - 1})
        assert "state-recovered" not in reply.content["metrics"]
    shutil.rmtree(home / "clients")
    for kind, server_round in (("evaluate", 2), ("train", 3)):
        reply = call(clients, kind, server_round=server_round, **{"state-round": 2})
        assert reply.content["metrics"]["state-recovered"] == 1
    reply = call(clients, "evaluate", server_round=3, **{"state-round": 3})
    assert "state-recovered" not in reply.content["metrics"]


@pytest.mark.parametrize("value", [-1, 2, 10**9, True, 0.5, "1"])
def test_a_state_round_that_cannot_be_is_refused(federation, call, value):
    reply = call(federation(), "train", **{"state-round": value})
    assert refusal(reply).startswith(f"state-round = {value!r} in the server's message; allowed: ")


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("value", [0, -1, 6, 10**9, True, 1.0, "1", None])
def test_a_round_that_the_run_has_not_is_refused_before_anything_is_done(
    federation, call, home, monkeypatch, kind, value
):
    """Beyond the last one the schedule gives factors that the settings do not say."""
    for work in ("train_round", "evaluate"):
        monkeypatch.setattr(messages, work, lambda *_, **__: pytest.fail("it worked"))
    config = {} if value is None else {"server-round": value}
    reply = call(federation(), kind, server_round=None, **config)
    assert refusal(reply) == f"server-round = {value!r} in the server's message; allowed: 1 to 5"
    assert [path.name for path in (home / "clients").rglob("*")] == [".secret-0"]


@pytest.mark.parametrize("part", ["shared", "local", "head"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_training_that_diverges_is_said_and_the_client_goes_on_from_before_it(
    federation, call, private, monkeypatch, part, value
):
    clients = federation()
    call(clients, "train")
    kept, expected = private(clients), call(clients, "train", server_round=2)
    train_round = messages.train_round

    def diverge(adapter, *rest, **keywords):
        metrics = train_round(adapter, *rest, **keywords)
        parameters = adapter.head.parameters() if part == "head" else adapter.parameters_of[part].values()
        next(iter(parameters)).data.view(-1)[-1] = value
        return metrics

    with monkeypatch.context() as patch:
        patch.setattr(messages, "train_round", diverge)
        for server_round in (2, 3):
            reply = call(clients, "train", server_round=server_round)
            assert refusal(reply).startswith(f"training diverged: {part} ")
    again = call(clients, "train", server_round=2)
    assert bytes_of(again.content["arrays"]) == bytes_of(expected.content["arrays"])
    assert not same(private(clients), kept)


def test_nothing_private_is_left_in_flowers_context(federation, call):
    """Flower keeps it, and hands it to whoever takes the next task."""
    clients = federation()
    for kind, server_round in (("query", 0), ("train", 1), ("evaluate", 1), ("train", 2)):
        assert not call(clients, kind, server_round=server_round).has_error()
        assert all(context.state == RecordDict() for context in clients.contexts.values())


# --- Where a simulation's machines share no disk ---


@pytest.fixture
def machines(federation, tmp_path, monkeypatch):
    """Build a simulation that says where states travel, and a way to have it go on upon another machine."""
    monkeypatch.setattr(client, "in_simulation", lambda: True)

    def move(name):
        monkeypatch.setenv("FEDDAT_HOME", str(tmp_path / name))

    return federation(private_state="context"), move


def test_a_state_travels_to_the_next_machine_and_wins_over_what_lies_there(
    federation, call, machines, private, home
):
    staying, rounds = federation(), range(1, 6)
    expected = [bytes_of(call(staying, "train", server_round=n).content["arrays"]) for n in rounds]
    shutil.rmtree(home / "clients")
    moving, move = machines
    for server_round, machine in zip(rounds, ("a", "b", "a", "a", "b"), strict=True):
        move(machine)  # where an older state lies, or none
        reply = call(moving, "train", server_round=server_round, **{"state-round": server_round - 1})
        assert "state-recovered" not in reply.content["metrics"]
        assert bytes_of(reply.content["arrays"]) == expected[server_round - 1]
    # A round that is tried again begins where it began, on whichever machine.
    move("a")
    assert bytes_of(call(moving, "train", server_round=5).content["arrays"]) == expected[4]


def test_a_state_that_travels_nowhere_ends_the_round_with_a_line(call, machines):
    """As in a run that goes on: its first process's contexts are gone, and another machine has the files."""
    moving, move = machines
    move("a")
    call(moving, "train", server_round=1)
    restart(moving)
    move("b")
    reply = call(moving, "train", server_round=2, **{"state-round": 1})
    assert refusal(reply).startswith("the private state of round 1 is not in ")
    move("a")
    assert not call(moving, "train", server_round=2, **{"state-round": 1}).has_error()


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_site_refuses_to_let_its_state_travel(federation, call, kind, monkeypatch):
    line = (
        "private-state = 'context' at a site, whose private state must stay in its files; "
        "allowed: 'files', or a simulation"
    )
    assert refusal(call(federation(private_state="context"), kind)) == line
    monkeypatch.setattr(client, "in_simulation", lambda: True)
    clients = federation(private_state="context", node_config={"state-dir": "/nowhere"})
    assert refusal(call(clients, kind)) == line
    assert all(context.state == RecordDict() for context in clients.contexts.values())


def test_another_run_of_the_same_name_begins_anew(federation, call, fresh, monkeypatch):
    clients, seen = federation(), []
    call(clients, "train", server_round=1)
    monkeypatch.setattr(
        messages,
        "train_round",
        lambda adapter, *_, **__: seen.append(adapter.state("local")) or {"num-examples": 1},
    )
    call(clients, "train", server_round=2, **{"run-token": "ffff"})
    assert all(torch.equal(value, seen[0][name]) for name, value in fresh().state("local").items())


def test_evaluation_leaves_the_private_state_as_it_was(federation, call, home):
    def kept():
        return {path: path.read_bytes() for path in (home / "clients").rglob("*") if path.is_file()}

    clients = federation()
    call(clients, "train")
    before = kept()
    assert {path.name for path in before} == {"round-000001.safetensors", ".secret-0"}
    reply = call(clients, "evaluate")
    assert set(reply.content) == {"metrics"}
    assert kept() == before


def options(clients):
    return data_options(read_settings(clients.run_config))


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
    assert "missing or not known" in refusal(reply)


def test_a_reply_owns_its_arrays(federation, call):
    """Adapters are shared by the clients of a process: a reply must not change when the next one trains."""
    clients = federation()
    reply = call(clients, "train").content["arrays"]
    before = {name: np.array(array.numpy()) for name, array in reply.items()}
    call(clients, "train", 1)
    assert all(np.array_equal(array.numpy(), before[name]) for name, array in reply.items())
