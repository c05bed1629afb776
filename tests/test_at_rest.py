"""What lies on the disks of a run's machines: who may see it, how long, and what is done when it is lost."""

import json
import os
import shutil
import stat
from collections import Counter

import pytest
import torch
from flwr.app import RecordDict
from safetensors.torch import load_file

from app.settings import SettingsError
from client_app import messages
from tests.bad_input.given import domain, png, write
from tests.private_files import folder_of

ON_POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")


@pytest.fixture
def own_data(home):
    """Let nothing of the home be shared with other tests."""
    (home / "data").unlink()
    return home


@pytest.fixture
def domains(federation, own_data, tmp_path):
    """Build a federation on two small domains of pictures; keywords are settings."""
    for name in ("one", "two"):
        write(tmp_path / "source", domain(name=name), name)
    return lambda **settings: federation(
        2, benchmark="vqa-domains", data_dir=str(tmp_path / "source"), **settings
    )


def open_to_others(folder):
    return [
        f"{path} {stat.S_IMODE(path.lstat().st_mode):o}"
        for path in (folder, *folder.rglob("*"))
        if path.lstat().st_mode & 0o077 and not path.is_symlink()
    ]


@ON_POSIX
@pytest.mark.parametrize("umask", [0o000, 0o022], ids=oct)
def test_nothing_in_the_home_is_open_to_others(domains, own_data, umask):
    own_data.chmod(0o755)
    before = os.umask(umask)
    try:
        domains().serve()
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    there = {path.relative_to(own_data).parts[0] for path in own_data.rglob("*") if path.is_file()}
    assert there == {"runs", "clients", "data", "examples"}
    assert open_to_others(own_data) == []


def test_no_picture_of_a_source_that_was_deleted_is_left(domains, own_data, tmp_path):
    def pictures():
        files = [path.read_bytes() for path in own_data.rglob("*") if path.is_file()]
        return {index for index in range(14) if any(png(index) in file for file in files)}

    clients = domains(num_rounds=1)
    clients.serve()
    assert pictures() == set(range(14))
    assert len(list(own_data.glob("examples/*"))) == 4
    shutil.rmtree(tmp_path / "source")
    with pytest.raises(RuntimeError, match="does not exist"):
        domains(num_rounds=1, run_name="again").serve()
    assert pictures() == set()
    assert list(own_data.glob("examples/*")) == list(own_data.glob("data/*/*")) == []


def test_seeds_do_not_add_up_beyond_the_limit(domains, own_data, monkeypatch):
    def kept():
        files = [path for cache in ("data", "examples") for path in (own_data / cache).rglob("*")]
        return sum(path.stat().st_size for path in files if path.is_file())

    domains(num_rounds=1, run_name="first").serve()
    one = kept()
    monkeypatch.setenv("FEDDAT_CACHE_GB", f"{2.5 * one / 1e9:.9f}")
    for seed in range(1, 6):
        domains(num_rounds=1, seed=seed, run_name=f"seed-{seed}").serve()
        assert one < kept() <= 2.5 * one


def test_a_limit_that_is_none_ends_the_run_before_anything(domains, own_data, monkeypatch):
    monkeypatch.setenv("FEDDAT_CACHE_GB", "much")
    with pytest.raises(SettingsError, match="FEDDAT_CACHE_GB = 'much'"):
        domains().serve()
    assert list(own_data.iterdir()) == []


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_states_deleted_between_rounds_are_said_and_counted(federation, home, caplog):
    trained = Counter()

    def delete(node, reply):
        """After the second round of partition 1 somebody deletes all of its states."""
        if reply.metadata.message_type == "train":
            trained[node] += 1
            if node == clients.node_id(1) and trained[node] == 2:
                shutil.rmtree(folder_of(home / "clients", "test", 1))
        return reply

    clients = federation(2, num_rounds=4, alter=delete)
    rows = rows_of(clients.serve())
    assert [(row["round"], row["partition"]) for row in rows if "state-recovered" in row] == [(2, 1), (3, 1)]
    said = "partition 1 lost its newest private state and went on from an earlier one"
    told = [text for text in caplog.messages if text.endswith(said)]
    assert told == [f"round 2, evaluate: {said}", f"round 3, train: {said}"]


@pytest.mark.parametrize("part", ["shared", "local", "head"])
def test_one_nan_in_one_clients_round_costs_it_that_round(federation, home, monkeypatch, part):
    train_round = messages.train_round

    def once(learner, examples, settings, server_round, partition_id, **keywords):
        metrics = train_round(learner, examples, settings, server_round, partition_id, **keywords)
        if (server_round, partition_id) == (2, 1):
            parameters = learner.head.parameters() if part == "head" else learner.parameters_of[part].values()
            next(iter(parameters)).data.view(-1)[0] = torch.nan
        return metrics

    monkeypatch.setattr(messages, "train_round", once)
    rows = rows_of(federation(3, num_rounds=4).serve())
    refused = [(row["round"], row["partition"]) for row in rows if "refused" in row]
    assert refused == [(2, 1)]
    took_part = [row["round"] for row in rows if row["partition"] == 1 and "delta-shared" in row]
    assert took_part == [1, 3, 4]
    assert not any("state-recovered" in row for row in rows)
    files = sorted(folder_of(home / "clients", "test", 1).iterdir())
    assert [path.name for path in files] == [f"round-00000{kept}.safetensors" for kept in (1, 3, 4)]
    assert all(value.isfinite().all() for path in files for value in load_file(path).values())


def test_another_coordinators_run_of_the_same_name_leaves_the_first_ones_states(federation, home):
    federation(2).serve()
    first = {path: path.read_bytes() for path in (home / "clients").rglob("*.safetensors")}
    assert len(first) == 4
    (home / "runs").rename(home / "runs-of-the-first")  # the other coordinator is another machine
    rows = rows_of(federation(2, num_rounds=5).serve())
    assert {path: path.read_bytes() for path in first} == first
    assert not any("state-recovered" in row for row in rows)


def test_a_planted_folder_of_states_is_refused_by_the_client(federation, home, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o777)
    (home / "clients").symlink_to(theirs)
    with pytest.raises(RuntimeError, match=r"state-dir = .* is a link; allowed: a folder that is one's own"):
        federation(2).serve()
    assert list(theirs.iterdir()) == []


def test_nothing_of_a_client_is_in_flowers_context_after_any_message(federation):
    seen = []

    def watch(node, reply):
        seen.append(clients.contexts[node].state)
        return reply

    clients = federation(2, alter=watch, wire_precision="int8")
    clients.serve()
    assert len(seen) == 10
    assert all(state == RecordDict() for state in seen)
