"""Whole runs of the real apps, in one process."""

import json
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def adapter_bytes(folder):
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def adapter_of(folder):
    arrays = load_file(folder / "adapter" / "adapter_model.safetensors")
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def messages(federation, way, kind):
    return [m for w, m in federation.wire if w == way and m.metadata.message_type == kind]


def arrays_of(federation, way):
    return [message.content["arrays"] for message in messages(federation, way, "train")]


def test_a_run_leaves_what_is_promised(finished):
    assert [(row["round"], row["partition"], row["name"]) for row in finished.rows] == [
        (server_round, *client)
        for server_round in (1, 2)
        for client in enumerate(("clean", "sketch", "noisy"))
    ]
    for row in finished.rows:
        assert row.keys() >= {
            "num-examples",
            "ce-student",
            "kl-student",
            "ce-teacher",
            "kl-teacher",
            "student",
            "local",
            "teacher",
            "text-only",
            "test-examples",
            "train-seconds",
        }
        # Down before training and before evaluation, up after training alone.
        assert row["bytes-down"] == 2 * row["bytes-up"] > 0
    kept = {path.name for path in finished.folder.iterdir() if path.name != ".lock"}
    files = {"settings.json", "metrics.jsonl", "report.md", "report.html", "curves.png"}
    assert kept == files | {"adapter", "adapter-best", "checkpoints"}
    settings = json.loads((finished.folder / "settings.json").read_text())
    assert settings.items() >= finished.federation.run_config.items()


@pytest.mark.parametrize("overrides", [{}, {"adapter": "lora"}, {"update": "joint"}], ids=str)
def test_both_adapters_move_in_every_round_with_evaluation_in_between(federation, overrides):
    """The published code freezes the local adapter after its first evaluation (fault 1)."""
    rows = rows_of(federation(num_rounds=4, **overrides).serve())
    assert len(rows) == 8
    assert all(row["delta-shared"] > 1e-4 for row in rows)
    assert all(row["delta-local"] > 1e-4 for row in rows)
    assert all("teacher" in row for row in rows)


def test_one_seed_gives_the_same_bytes_whatever_the_ids_of_the_nodes(federation, finished):
    for count, node_id in enumerate((lambda p: 5 + p, lambda p: {0: 70, 1: 3, 2: 55}[p])):
        again = federation(3, node_id=node_id, run_name=f"again-{count}").serve()
        assert adapter_bytes(again) == adapter_bytes(finished.folder)
        for row, first in zip(rows_of(again), finished.rows, strict=True):
            assert {k: v for k, v in row.items() if "seconds" not in k} == {
                k: v for k, v in first.items() if "seconds" not in k
            }


def test_sampling_follows_partitions_not_nodes(federation):
    """Half of the clients train in a round: the same half in a second run, and not always the same half."""
    runs = {}
    for name, node_id in {"up": lambda p: p + 1, "down": lambda p: 90 - p}.items():
        clients = federation(4, node_id=node_id, fraction_train=0.5, num_rounds=6, run_name=name)
        folder = clients.serve()
        trained = [(row["round"], row["partition"]) for row in rows_of(folder) if "ce-student" in row]
        runs[name] = (trained, adapter_bytes(folder))
        assert len(trained) == 12
    assert runs["up"] == runs["down"]
    by_round = [{p for r, p in runs["up"][0] if r == server_round} for server_round in range(1, 7)]
    assert any(one != other for one, other in pairwise(by_round))


def test_another_seed_gives_another_adapter(federation, finished):
    assert adapter_bytes(federation(3, seed=1).serve()) != adapter_bytes(finished.folder)


def test_the_validation_scores_say_so_and_leave_training_as_it_is(federation, finished):
    folder = federation(3, run_name="chosen", evaluate_on="validation").serve()
    assert adapter_bytes(folder) == adapter_bytes(finished.folder)
    assert {row["test-examples"] for row in rows_of(folder)} == {4}
    assert {row["test-examples"] for row in finished.rows} == {8}
    assert "on each client's validation split" in (folder / "adapter" / "README.md").read_text()
    assert "on each client's test split" in (finished.folder / "adapter" / "README.md").read_text()


def test_the_adapter_is_the_mean_of_the_last_replies(finished):
    replies = [
        message.content["arrays"] for message in messages(finished.federation, "to server", "train")[-3:]
    ]
    exported = load_file(finished.folder / "adapter" / "adapter_model.safetensors")
    for name, array in exported.items():
        mean = np.mean([reply[name].numpy().astype(np.float64) for reply in replies], axis=0)
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-9)


def test_each_round_begins_with_the_mean_of_the_one_before(finished):
    first, second = (messages(finished.federation, "to client", "train")[i].content["arrays"] for i in (0, 3))
    replies = [
        message.content["arrays"] for message in messages(finished.federation, "to server", "train")[:3]
    ]
    for name, array in second.items():
        mean = np.mean([reply[name].numpy().astype(np.float64) for reply in replies], axis=0)
        np.testing.assert_allclose(array.numpy(), mean, rtol=1e-6, atol=1e-9)
        assert not np.array_equal(array.numpy(), first[name].numpy())


RUNS = [
    {"method": "adapter"},
    {"update": "joint"},
    {"step": "reference"},
    {"adapter": "lora"},
    {"adapter": "lora", "method": "adapter"},
    {"loss": "cross-entropy"},
    {"backbone_weights": "random"},
    {"weighting": "num-examples"},
    {"heterogeneity": "task"},
    {"strategy": "fedprox", "proximal_mu": 0.1},
    *({"strategy": name} for name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad")),
    *({"strategy": name} for name in ("fedmedian", "fedtrimmedavg")),
]


@pytest.mark.parametrize("overrides", RUNS, ids=lambda overrides: " ".join(map(str, overrides.values())))
def test_every_kind_of_run_ends_with_a_finite_adapter(federation, finished, overrides):
    clients = federation(3, **overrides)
    folder = clients.serve()
    assert [row["round"] for row in rows_of(folder)] == [1, 1, 1, 2, 2, 2]
    assert np.isfinite(adapter_of(folder)).all()
    # The reference step computes the same, clients of one size weigh alike, the small backbone is random.
    if not overrides.keys() & {"step", "weighting", "backbone_weights"}:
        assert adapter_bytes(folder) != adapter_bytes(finished.folder)
    first = arrays_of(clients, "to client")[0]
    exported = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert exported.keys() == set(first)
    assert all(value.dtype == np.float32 for value in exported.values())
    assert any(not np.array_equal(exported[name], first[name].numpy()) for name in exported)


def test_krum_takes_one_client_as_it_is(federation):
    clients = federation(4, strategy="krum")
    folder = clients.serve()
    exported = load_file(folder / "adapter" / "adapter_model.safetensors")
    replies = arrays_of(clients, "to server")[-4:]
    assert any(all(np.array_equal(reply[n].numpy(), exported[n]) for n in exported) for reply in replies)


def test_the_reference_step_ends_where_the_fast_one_does(federation, finished):
    reference = adapter_of(federation(3, step="reference").serve())
    np.testing.assert_allclose(reference, adapter_of(finished.folder), rtol=0, atol=2e-5)


def test_a_strong_pull_keeps_the_shared_adapter_where_it_was(federation):
    moved = {}
    for mu in (1e-9, 1e5):
        overrides = {"strategy": "fedprox", "proximal_mu": mu, "local_epochs": 6, "num_rounds": 1}
        (row, _) = rows_of(federation(run_name=f"mu-{mu:g}", **overrides).serve())
        moved[mu] = row
    assert moved[1e5]["delta-shared"] < 0.4 * moved[1e-9]["delta-shared"]
    assert moved[1e5]["delta-local"] > 0.8 * moved[1e-9]["delta-local"]


@pytest.mark.parametrize(("every", "rounds", "evaluated"), [(2, 3, {2, 3}), (5, 2, {2}), (1, 2, {1, 2})])
def test_evaluation_is_every_so_many_rounds_and_after_the_last(federation, every, rounds, evaluated):
    clients = federation(evaluate_every=every, num_rounds=rounds)
    rows = rows_of(clients.serve())
    assert {row["round"] for row in rows if "student" in row} == evaluated
    assert len(messages(clients, "to client", "evaluate")) == 2 * len(evaluated)
    assert {row["round"] for row in rows} == set(range(1, rounds + 1))


def test_a_cut_benchmark_says_so_first_and_how_to_have_all(federation, caplog):
    caplog.set_level("INFO", "flwr")
    federation(2).serve()
    assert "has 5 clients and is cut to the first 2" in caplog.messages[0]
    assert '--federation-config "num-supernodes=5"' in caplog.messages[0]


def test_a_run_says_how_far_it_is_and_where_its_result_lies(federation, caplog, capsys):
    caplog.set_level("INFO", "flwr")
    folder = federation(5).serve()
    assert not any("is cut" in message for message in caplog.messages)
    progress = [message for message in caplog.messages if message.startswith("round ")]
    assert [message.split(":")[0] for message in progress] == ["round 1/2", "round 2/2"]
    assert caplog.messages[-1] == f"the run is in {folder}"
    assert folder.is_absolute()
    table = capsys.readouterr().out
    assert all(name in table for name in ("clean", "sketch", "noisy", "inverted", "mean", "worst"))


def test_runs_without_a_name_do_not_meet(federation, home):
    federation(run_name="").serve()
    (folder,) = (path for path in (home / "runs").iterdir() if path.is_dir())
    assert folder.name.startswith("scenes-feddat-")
    assert (folder / "adapter").is_dir()


def test_a_client_that_fails_in_one_round_is_left_out_and_reported(federation, monkeypatch):
    from client_app import messages

    train_round = messages.train_round

    def sometimes(learner, examples, settings, server_round, partition_id, **keywords):
        if (server_round, partition_id) == (1, 1):
            raise RuntimeError("the disk is full")
        return train_round(learner, examples, settings, server_round, partition_id, **keywords)

    monkeypatch.setattr(messages, "train_round", sometimes)
    rows = rows_of(federation(3).serve())
    refused = [row for row in rows if "refused" in row]
    assert refused == [{"round": 1, "partition": 1, "phase": "train", "refused": "the disk is full"}]
    trained = [(row["round"], row["partition"]) for row in rows if "delta-shared" in row]
    assert trained == [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]
