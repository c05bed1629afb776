"""What a client keeps from message to message: where a round begins, whatever came between."""

import errno
import os
import shutil

import pytest
import torch
from flwr.app import RecordDict

from app.methods import METHODS
from client_app import client, messages
from tests.client_app.messages.replies import TOKEN, bytes_of, refusal, same


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


def test_a_file_on_another_machine_of_a_simulation_ends_the_round_with_a_line(
    federation, call, monkeypatch, tmp_path
):
    """Beginning anew there would be another run, whose result looks as good as the right one."""
    clients, machines = federation(), 2
    monkeypatch.setattr(client, "simulated_machines", lambda: machines)
    call(clients, "train", server_round=1)
    monkeypatch.setenv("FEDDAT_HOME", str(tmp_path / "another"))
    reply = call(clients, "train", server_round=2, **{"state-round": 1})
    assert refusal(reply).startswith("the private state of round 1 is not in ")
    assert "private-state = 'context'" in refusal(reply)
    machines = 1  # where it was lost, and is nowhere else
    assert not call(clients, "train", server_round=2, **{"state-round": 1}).has_error()


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_site_refuses_to_let_its_state_travel(federation, call, kind, monkeypatch, tmp_path):
    line = (
        "private-state = 'context' at a site, whose private state must stay in its files; "
        "allowed: 'files', or a simulation"
    )
    assert refusal(call(federation(private_state="context"), kind)) == line
    monkeypatch.setattr(client, "in_simulation", lambda: True)
    clients = federation(private_state="context", node_config={"state-dir": str(tmp_path)})
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
