"""Whole runs of the real apps with clients that fail, hang or attack: the others carry the run to its end."""

import json

import numpy as np
import pytest
from flwr.app import Array, Error, Message
from safetensors.numpy import load_file

from tests.conftest import default_run_config


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def raises(reply):
    return Message(Error(code=2, reason="CUDA error"), reply_to=reply)


def is_killed(reply):
    """Answer as Flower's simulation does for a worker that the system killed for its memory."""
    text = "The worker died unexpectedly while executing this task.\n\tWorker ID: 1f Node IP: 127.0.0.1"
    return Message(
        Error(code=0, reason=f"<class 'ray.exceptions.WorkerCrashedError'>:<'{text}'>"), reply_to=reply
    )


def hangs(reply):
    """Give no reply before the deadline: the grid returns without it."""


FAULTS = {raises: "CUDA error", is_killed: "worker died unexpectedly", hangs: "no reply in time"}


def test_with_a_third_of_the_clients_failing_in_each_round_the_run_ends_and_reports_them(federation, caplog):
    """Three of ten: one raises, one is killed for its memory, one hangs past the deadline."""
    faults, trained = list(FAULTS), []

    def alter(node, reply):
        partition = (1000 - node) // 7
        if reply.metadata.message_type == "train":
            trained.append(partition)
            server_round = (len(trained) - 1) // 10 + 1
            if (fault := (partition - 3 * server_round) % 10) < 3:
                return faults[fault](reply)
        return reply

    clients = federation(10, alter=alter, num_rounds=4, train_examples=4, evaluate_every=4, min_clients=7)
    folder = clients.serve()
    rows = rows_of(folder)
    failed = {r: [(3 * r + k) % 10 for k in range(3)] for r in range(1, 5)}
    for server_round, partitions in failed.items():
        now = [row for row in rows if row["round"] == server_round]
        reasons = {row["partition"]: row["refused"] for row in now if "refused" in row}
        for partition, said in zip(partitions, FAULTS.values(), strict=True):
            assert said in reasons.pop(partition)
            line = f"round {server_round}, train: partition {partition} refused"
            assert any(message.startswith(line) for message in caplog.messages)
        assert not reasons
        assert {row["partition"] for row in now if "delta-shared" in row} == set(range(10)) - set(partitions)
    assert len(trained) == 40
    assert sum(row["round"] == 4 and "student" in row for row in rows) == 10
    assert all(np.isfinite(array).all() for array in adapter_of(folder).values())


def test_when_most_fail_the_run_fails_and_says_why(federation, home, caplog):
    """As with a dead worker of the simulation, which fails every message that it gets."""
    clients = federation(5, alter=lambda node, reply: is_killed(reply) if is_training(node, reply) else reply)
    with pytest.raises(RuntimeError) as error:
        clients.serve()
    lines = str(error.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        "round 1, tried twice: 2 of 5 clients gave a valid reply, with min_clients = 1"
    )
    assert "worker died unexpectedly" in lines[0]
    assert sum(message.startswith("refused 2 times: ") for message in caplog.messages) == 3
    assert not (home / "runs" / "test" / "adapter").exists()


def test_a_run_that_failed_goes_on_when_it_is_allowed_fewer_clients(federation, home):
    """Three of five fail in the second round, each time that it is tried."""
    trained = []

    def alter(node, reply):
        trained.extend([node] * (reply.metadata.message_type == "train"))
        return is_killed(reply) if len(trained) > 5 and is_training(node, reply) else reply

    clients = federation(5, alter=alter, evaluate_every=2)
    with pytest.raises(RuntimeError, match=r"^round 2, tried twice: 2 of 5 clients"):
        clients.serve()
    clients.run_config |= {"resume": "test", "max-failure-rate": 0.6, "min-clients": 2}
    rows = rows_of(clients.serve())
    assert [row["round"] for row in rows if "delta-shared" in row] == [1] * 5 + [2] * 2


def is_training(node, reply):
    return reply.metadata.message_type == "train" and node > 980


# --- Identity ---


@pytest.mark.parametrize("size", [4, 10**9])
def test_a_node_that_claims_anothers_place_never_has_it(federation, caplog, size):
    """The last node claims partition 1, also in the second round, in which the owner is away."""
    owner, hostile = 1007, 1021
    trained, away = [], {}

    def alter(node, reply):
        kind = reply.metadata.message_type
        if node == hostile and kind == "query":
            reply.content["handshake"].update({"partition-id": 1, "num-partitions": size})
        if kind == "train":
            trained.append(node)
            if len(trained) == 3:
                away[owner] = clients.contexts.pop(owner)
            if len(trained) == 5:
                clients.contexts.update(away)
        return reply

    clients = federation(
        4,
        alter=alter,
        node_id=lambda partition: 1000 + 7 * partition,
        deployed=True,
        **{"num-clients": 3},
        num_rounds=3,
        evaluate_every=3,
        wait_seconds=1.0,
    )
    rows = rows_of(clients.serve())
    assert {r: [row["partition"] for row in rows if row["round"] == r] for r in (1, 2, 3)} == {
        1: [0, 1, 2],
        2: [0, 2],
        3: [0, 1, 2],
    }
    assert "partition 1 has left" in caplog.messages
    assert any(text.startswith("not admitted: ") and str(hostile) in text for text in caplog.messages)
    clients.run_config |= {"resume": "test", "num-rounds": 4}
    del clients.contexts[owner]
    rows = rows_of(clients.serve())
    assert [row["partition"] for row in rows if row["round"] == 4] == [0, 2]
    assert hostile not in trained


# --- Poison ---

HONEST, ATTACKERS = 5, 2


@pytest.fixture
def score(federation):
    """Run with or without attackers; return the honest clients' mean score in points, and the adapter.

    The attackers send what they learned with the other sign, a hundred times as far.
    """

    def score(attacked, **settings):
        def alter(node, reply):
            if reply.metadata.message_type == "train" and (1000 - node) // 7 >= HONEST:
                sent = next(m for way, m in clients.wire[::-1] if way == "to client").content["arrays"]
                arrays = reply.content["arrays"]
                for name in arrays:
                    before = sent[name].numpy()
                    arrays[name] = Array(before - 100 * (arrays[name].numpy() - before))
            return reply

        nodes = HONEST + ATTACKERS * attacked
        clients = federation(
            nodes,
            alter=alter,
            node_config={"num-partitions": HONEST + ATTACKERS},
            **{"num-clients": nodes, "run-name": f"{attacked} {len(settings)}".replace(" ", "-")},
            **settings,
        )
        folder = clients.serve()
        scores = [r["student"] for r in rows_of(folder) if "student" in r and r["partition"] < HONEST]
        return 100 * np.mean(scores[-HONEST:]), adapter_of(folder)

    return score


def test_two_poisoning_clients_of_seven_cost_the_honest_ones_nothing(score):
    settings = {"train_examples": 60, "test_examples": 60, "num_rounds": 3, "evaluate_every": 3}
    settings["clip_change"] = default_run_config()["clip-change"]
    without, adapter = score(False, **settings)
    poisoned, protected = score(True, **settings)
    assert abs(poisoned - without) < 2
    assert all(np.array_equal(array, protected[name]) for name, array in adapter.items())
    unprotected, _ = score(True, **{**settings, "max_change": 1e9, "clip_change": 0.0})
    assert unprotected < without - 2


# --- Poison below what is refused ---

# Learned from nothing in seconds: a network on images of four colours, all of it averaged, the head as well.
LEARNS = {
    "method": "full",
    "backbone": "resnet8-narrow",
    "backbone_weights": "random",
    "learning_rate": 0.005,
    "local_epochs": 2,
    "num_rounds": 4,
    "evaluate_every": 4,
    "imbalance_factor": 1.0,
    "dirichlet_alpha": 100.0,
}


@pytest.fixture
def accuracy(long_tailed):
    """Return a run's last accuracy in points; chance is 25.

    `factors` are what the last clients multiply their changes by, `says` how many examples they count.
    """

    def score(factors, says=None, **settings):
        def alter(node, reply):
            attacker = HONEST + ATTACKERS - 1 - (1000 - node) // 7
            if reply.metadata.message_type == "train" and attacker < len(factors):
                sent = next(m for way, m in clients.wire[::-1] if way == "to client").content["arrays"]
                arrays = reply.content["arrays"]
                for name in arrays:
                    before = sent[name].numpy()
                    change = factors[attacker] * (arrays[name].numpy() - before)
                    lowest = 0 if name.endswith("running_var") else -np.inf  # a variance below 0 is refused
                    arrays[name] = Array(np.maximum(before + change, lowest).astype(np.float32))
                reply.content["metrics"]["num-examples"] = says or 10
            return reply

        clients = long_tailed(HONEST + ATTACKERS, alter=alter, **LEARNS, **settings)
        return [100 * row["student"] for row in rows_of(clients.serve()) if "student" in row][-1]

    return score


@pytest.mark.parametrize(
    ("factors", "says", "settings"),
    [
        ((-5, -5), None, {}),
        ((-9, 1e-6), None, {}),  # the second makes little usual, so that the first is let in
        ((-1,), 1000, {"weighting": "num-examples"}),
        ((-5, -5), None, {"fraction_train": 0.6}),  # two of the four that train in a round
    ],
    ids=["factor", "median", "weight", "half of a round"],
)
def test_poison_below_what_is_refused_does_not_undo_what_the_others_learn(
    accuracy, factors, says, settings, home
):
    assert accuracy(factors, says, run_name="off", clip_change=0.0, **settings) <= 50
    usual = default_run_config()["clip-change"]
    assert accuracy(factors, says, run_name="on", clip_change=usual, **settings) >= 70
    rows = [row for row in rows_of(home / "runs" / "on") if "clipped" in row]
    assert all(0 <= row["clipped"] <= 1 for row in rows)
