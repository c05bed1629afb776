"""Whole runs under differential privacy: the adapter really moves, and no farther than clipping lets it."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from safetensors.numpy import load_file

from client_app.main import app as client_app
from strategies import FedDAT, MLLMAlignment
from strategies.privacy import CENTRAL, central_privacy
from tests.private_files import newest_state

# Noise far below what training changes, so that one can be seen apart from the other.
FAINT = {"dp.noise-multiplier": 1e-9}


def central(kind, num_clients):
    """Return the settings of central privacy among so many clients; local privacy needs no number."""
    return {"dp.mode": kind, "num-clients": num_clients}


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def sent(federation, place):
    """Return the arrays of the first (0) or last (-1) training messages."""
    kinds = [m for way, m in federation.wire if way == "to client" and m.metadata.message_type == "train"]
    return {name: array.numpy() for name, array in kinds[place].content["arrays"].items()}


def distance(one, other):
    return np.sqrt(sum(np.sum((one[name].astype(float) - other[name]) ** 2) for name in one))


@pytest.mark.parametrize("adapter", ["bottleneck", "lora"])
@pytest.mark.parametrize("kind", CENTRAL)
def test_without_clipping_and_noise_training_is_what_it_was(federation, kind, adapter):
    """Every array moves as it does without privacy (in Opacus, updates of LoRA were lost: issue 820)."""
    plain = adapter_of(federation(3, adapter=adapter, run_name="plain").serve())
    unclipped = {**central(kind, 3), "dp.clipping-norm": 1e6, "dp.noise-multiplier": 1e-15}
    clients = federation(3, adapter=adapter, **unclipped)
    private = adapter_of(clients.serve())
    assert private.keys() == plain.keys()
    first = sent(clients, 0)
    for name, array in plain.items():
        moved = np.abs(array - first[name]).max()
        assert np.abs(private[name] - array).max() < 1e-3 * moved, name


@pytest.mark.parametrize("kind", CENTRAL)
def test_a_round_moves_the_adapter_by_the_norm_at_most(federation, kind):
    norm = 0.004  # a client's training moves it ten times as far
    clients = federation(3, **central(kind, 3), dp__clipping_norm=norm, num_rounds=1, **FAINT)
    folder = clients.serve()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["delta-shared"] > 5 * norm for row in rows)
    assert 0.3 * norm < distance(adapter_of(folder), sent(clients, 0)) < 1.001 * norm


@pytest.mark.parametrize("kind", CENTRAL)
def test_noise_reaches_the_clients_and_the_result(federation, kind):
    """For two clients, z = 0.5, C = 0.01: σ = 0.5 · 0.01 / 2, times 2/√3 where adaptive."""
    clients = federation(2, dp__clipping_norm=0.01, dp__noise_multiplier=0.5, **central(kind, 2))
    folder = clients.serve()
    deviation = 0.0025 * (2 / np.sqrt(3) if kind.endswith("adaptive") else 1)
    moved = np.concatenate([(sent(clients, -1)[n] - a).ravel() for n, a in sent(clients, 0).items()])
    # Variance of n normal values: relative standard error √(2/n). Training moves the mean by C at most.
    slack = 5 * np.sqrt(2 / moved.size) + 0.01**2 / moved.size / deviation**2
    assert moved.var() == pytest.approx(deviation**2, rel=slack)
    assert np.isfinite(distance(adapter_of(folder), sent(clients, -1)))


def test_local_privacy_blurs_what_leaves_a_client_and_not_what_stays(federation, home):
    settings = {"dp.clipping-norm": 1e-3, "dp.epsilon": 0.9, "num_rounds": 1, "max_change": 1e6}
    private, plain = federation(2, dp__mode="local", **settings), federation(2, run_name="plain", **settings)
    for clients in (private, plain):
        clients.serve()
    for partition in range(2):
        blurred, kept = (newest_state(home / "clients", run, partition) for run in ("test", "plain"))
        assert blurred.keys() == kept.keys() == {"private-local", "private-head"}
        assert blurred == kept
    replies = [m for way, m in private.wire if way == "to server" and m.metadata.message_type == "train"]
    first = sent(private, 0)
    # σ = 2 C √(2 ln 1.25/δ) / ε
    deviation = 2e-3 * np.sqrt(2 * np.log(1.25e5)) / 0.9
    for reply in replies:
        noise = np.concatenate([(a.numpy() - first[n]).ravel() for n, a in reply.content["arrays"].items()])
        assert noise.var() == pytest.approx(deviation**2, rel=10 * np.sqrt(2 / noise.size))


def test_two_runs_of_one_seed_have_other_noise(federation):
    runs = [
        adapter_of(federation(2, num_rounds=1, run_name=name, **central("server-fixed", 2)).serve())
        for name in ("a", "b")
    ]
    assert distance(*runs) > 0.1


def test_only_training_is_changed():
    """A mod of the whole app turns every evaluation into an error."""
    assert client_app._mods == []


def test_what_privacy_amounts_to_is_said(federation, caplog):
    """For z = 2, 8 rounds: dp-accounting's ε is 6.573, and 6.58 the next figure above it."""
    caplog.set_level("INFO", "flwr")
    settings = {"dp.noise-multiplier": 2.0, "num_rounds": 8, "dp.clipping-norm": 0.01}
    federation(2, **central("server-fixed", 2), **settings).serve()
    said = "ε = 6.58 at δ = 1e-05 for whether the adapter has one client's changes, over 8 rounds"
    assert f"privacy: server-fixed, {said}" in caplog.messages


@pytest.mark.parametrize("kind", [*CENTRAL, "local"])
def test_alignment_works_on_the_private_aggregate(federation, kind):
    """It comes after clipping and noise, so it moves the aggregate without touching what hides a client."""
    aligning = {"align.when": "each-round", "align.beta": 0.0, "align.steps": 2, "public.examples": 60}
    noise = {**central(kind, 3), "dp.clipping-norm": 0.01, "max_change": 1e6, "server_device": "cpu"}
    folder = federation(3, num_rounds=2, **noise, **aligning).serve()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    aligned = [row for row in rows if "align/accepted" in row]
    assert [row["round"] for row in aligned] == [1, 2]
    assert all((row["align/delta-norm"] > 0) == (row["align/accepted"] == 1) for row in aligned)
    assert len([row for row in rows if "num-examples" in row]) == 6
    assert any("delta-shared" in row for row in rows) == (kind != "local")


def test_privacy_around_the_alignment_is_refused():
    aligned = MLLMAlignment(FedDAT(FedAvg()), aligner=None)
    with pytest.raises(ValueError, match="must stand around FedAvg's mean, not around MLLMAlignment"):
        FedDAT(central_privacy("server-fixed", aligned, 1.0, 1.0, 3))


@pytest.mark.parametrize("kind", CENTRAL)
@pytest.mark.parametrize("value", [1e20, 3.4e38, -3.4e38])
def test_a_client_that_does_not_clip_moves_the_adapter_by_the_norm_and_the_run_goes_on(
    federation, kind, value
):
    """It would be nothing but infinities, which every later round and every resumed one began with."""

    def alter(node, reply):
        if node == clients.node_id(0) and not reply.has_error() and "arrays" in reply.content:
            arrays = reply.content["arrays"]
            reply.content["arrays"] = ArrayRecord(
                {name: Array(np.full(array.shape, value, np.float32)) for name, array in arrays.items()}
            )
        return reply

    settings = {**central(kind, 3), "dp__clipping_norm": 0.004, "dp__noise_multiplier": 1e-9}
    clients = federation(3, deployed=True, alter=alter, **settings)
    folder = clients.serve()
    assert "refused" not in (folder / "metrics.jsonl").read_text()
    # Two rounds; an adaptive norm grows by a tenth at most in one.
    assert distance(adapter_of(folder), sent(clients, 0)) <= 2.2 * 0.004
