"""FedDAT around Flower's strategies: what is averaged, what is refused, what is reported."""

from math import sqrt
from typing import get_type_hints

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import strategy as flower

from strategies import Admission, Checked, FedDAT, Quorum
from strategies.checked import FederationOptions

MEAN = 3.625  # of the clients' steps 1, 2, 2.5 and 9
WEIGHTED = 6.3125  # (1 + 2 + 2.5 + 5 * 9) / 8: by their examples 1, 1, 1 and 5


def adam(eta=0.1, b1=0.9, b2=0.99, tau=1e-3):
    """Two rounds of Adam on a constant pseudo-gradient (Reddi et al. 2021, bias-corrected as in Flower)."""
    x = m = v = 0.0
    for t in (1, 2):
        m, v = b1 * m + (1 - b1) * MEAN, b2 * v + (1 - b2) * MEAN**2
        x += eta * sqrt(1 - b2 ** (t + 1)) / (1 - b1 ** (t + 1)) * m / (sqrt(v) + tau)
    return x


def yogi(eta=0.01, b1=0.9, b2=0.99, tau=1e-3):
    """Two rounds of Yogi; v stays below the squared pseudo-gradient, so its sign term is -1."""
    x = m = v = 0.0
    for _ in (1, 2):
        m, v = b1 * m + (1 - b1) * MEAN, v + (1 - b2) * MEAN**2
        x += eta * m / (sqrt(v) + tau)
    return x


def dp(kind, inner, *args):
    return getattr(flower, f"DifferentialPrivacy{kind}Clipping")(inner, *args)


fixed, adaptive = (0.0, 1e6, 4), (0.0, 4, 1e6)
INNER = {
    "FedAvg": (lambda: flower.FedAvg(), 2 * MEAN),
    "FedProx": (lambda: flower.FedProx(proximal_mu=0.1), 2 * MEAN),
    "FedAvgM": (lambda: flower.FedAvgM(server_momentum=0.5), MEAN + 1.5 * MEAN),
    "FedAdam": (lambda: flower.FedAdam(), adam()),
    "FedYogi": (lambda: flower.FedYogi(), yogi()),
    "FedMedian": (lambda: flower.FedMedian(), 4.5),
    "FedTrimmedAvg": (lambda: flower.FedTrimmedAvg(beta=0.25), 4.5),
    "Krum": (lambda: flower.Krum(), 4.0),
    "MultiKrum": (lambda: flower.MultiKrum(num_nodes_to_select=3), 2 * 5.5 / 3),
    "Bulyan": (lambda: flower.Bulyan(), 2 * MEAN),  # nobody is hostile: the mean of all
    "server-side DP": (lambda: dp("ServerSideFixed", flower.FedAvg(), *fixed), 2 * MEAN),
    "clipping": (lambda: dp("ServerSideFixed", flower.FedAvg(), 0.0, sqrt(6), 4), 2.0),
    "adaptive DP": (lambda: dp("ServerSideAdaptive", flower.FedAvg(), *adaptive), 2 * MEAN),
    "client-side DP": (lambda: dp("ClientSideFixed", flower.FedAvg(), *fixed), 2 * MEAN),
}


@pytest.mark.parametrize(("make", "expected"), INNER.values(), ids=INNER.keys())
def test_every_strategy_runs_inside(toy, federation, arrays, make, expected):
    result = FedDAT(make(), weighting="uniform").start(federation(), arrays, num_rounds=2)
    assert toy.value(result) == pytest.approx(expected, rel=1e-5)
    assert result.train_metrics_clientapp.keys() == result.evaluate_metrics_clientapp.keys() == {1, 2}


def test_partitions_are_known_by_node(federation, arrays):
    strategy = FedDAT(flower.FedAvg(), admission=Admission(expected_nodes=4))
    strategy.start(federation(), arrays, num_rounds=1)
    assert strategy.partitions == {40: 0, 10: 1, 30: 2, 20: 3}


@pytest.mark.parametrize("weighting", [None, "num-examples"])
def test_weighting_is_the_strategys_own_or_by_examples(toy, federation, arrays, weighting):
    result = FedDAT(flower.FedAvg(), weighting=weighting).start(federation(), arrays, num_rounds=1)
    assert toy.value(result) == WEIGHTED
    score = (0.1 + 0.2 + 5 * 0.3) / 8
    assert result.train_metrics_clientapp[1]["score"] == pytest.approx(score)
    assert result.evaluate_metrics_clientapp[1]["score"] == pytest.approx(score)


def test_uniform_weighting_is_the_plain_mean_of_metrics_too(federation, arrays):
    strategy = FedDAT(flower.FedAvg(), weighting="uniform")
    result = strategy.start(federation(), arrays, num_rounds=1)
    assert result.train_metrics_clientapp[1] == {"score": pytest.approx(0.15)}
    assert result.evaluate_metrics_clientapp[1] == {"score": pytest.approx(0.15)}


def test_uniform_weighting_uses_the_strategys_own_key(toy, federation, arrays):
    def alter(content):
        content["metrics"]["tokens"] = 7 * content["metrics"]["num-examples"]
        return content

    grid = federation()
    for client in grid.nodes.values():
        client.alter = alter
    result = FedDAT(flower.FedAvg(weighted_by_key="tokens"), weighting="uniform").start(
        grid, arrays, num_rounds=1
    )
    assert toy.value(result) == MEAN


def test_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="weighting is 'size'; allowed: 'uniform', 'num-examples'"):
        FedDAT(flower.FedAvg(), weighting="size")


def test_the_order_of_replies_changes_no_byte(toy):
    rng = np.random.default_rng(0)
    steps = rng.normal(size=7) * 10.0 ** rng.integers(-4, 4, size=7)

    def run(offset, order):
        grid = toy.Grid({(p * 5 + offset) % 11: toy.Client(p, s, p + 1) for p, s in enumerate(steps)}, order)
        strategy = FedDAT(flower.FedAvg(), weighting="num-examples")
        return (
            strategy.start(grid, toy.arrays(x=rng.normal(size=50) * 0 + 0.1), num_rounds=2).arrays["x"].data
        )

    first = run(0, list)
    assert run(0, lambda replies: replies[::-1]) == first
    assert run(3, sorted_by_step := lambda replies: replies[3:] + replies[:3]) == first
    assert run(6, sorted_by_step) == first


def test_replies_in_another_order_of_names_are_put_right(toy, federation):
    """FedAvgM pairs arrays by position: two of one shape would be swapped without a word."""

    def alter(content):
        for key, record in content.array_records.items():
            content[key] = ArrayRecord(dict(reversed(record.items())))
        return content

    grid = federation()
    for client in grid.nodes.values():
        client.alter = alter
    arrays = toy.arrays(x_b=[1], x_a=[5])
    strategy = FedDAT(flower.FedAvgM(server_learning_rate=0.5), weighting="uniform")
    result = strategy.start(grid, arrays, num_rounds=1)
    assert [(k, v.numpy().item()) for k, v in result.arrays.items()] == [("x.b", 2.8125), ("x.a", 6.8125)]


@pytest.mark.parametrize("name", ["x.local.a", "frozen.x", "head.weight"])
def test_private_arrays_are_never_sent(toy, federation, name):
    grid = federation()
    arrays = ArrayRecord({"x.a": Array(np.zeros(1)), name: Array(np.zeros(1))})
    with pytest.raises(ValueError, match=f"array '{name}' is private, and may not be sent"):
        FedDAT(flower.FedAvg()).start(grid, arrays)
    assert grid.asked("train") == []


def test_the_observer_gets_true_metrics_and_bytes_in_the_order_of_partitions(toy, federation, arrays):
    notes = toy.Notes()
    FedDAT(flower.FedAvg(), observers=[notes]).start(federation(), arrays, num_rounds=1)
    down = 2 * 128 + 4 * 4 + 2 * 4 + len("x.b") + len("x.a")  # headers of .npy, float32 values, names
    for phase, up in (("train", down), ("evaluate", 0)):
        told = [note for note in notes if note[1] == phase]
        assert told == [
            (1, phase, p, {"num-examples": n, "score": p * 0.1, "bytes-down": down, "bytes-up": up})
            for p, n in enumerate((1, 1, 1, 5))
        ]


def test_evaluation_only_when_asked_for(federation, arrays):
    grid = federation()
    strategy = FedDAT(flower.FedAvg(), evaluate_on=lambda server_round: server_round == 2)
    result = strategy.start(grid, arrays, num_rounds=3)
    assert list(result.evaluate_metrics_clientapp) == [2]
    assert len(grid.asked("evaluate")) == 4


def test_no_training_when_the_strategy_asks_nobody(federation, arrays):
    result = FedDAT(flower.FedAvg(fraction_train=0.0)).start(federation(), arrays, num_rounds=1)
    assert len(result.arrays) == 0


def test_shared_messages_and_replies_are_left_alone(federation, arrays):
    before, grid, kept = {k: v.data for k, v in arrays.items()}, federation(), []
    grid.order = lambda replies: kept.extend(replies) or replies
    FedDAT(flower.FedMedian()).start(grid, arrays, num_rounds=1)
    assert {k: v.data for k, v in arrays.items()} == before
    trained = [reply for reply in kept if "arrays" in reply.content]
    assert sorted(reply.content["metrics"]["num-examples"] for reply in trained) == [1, 1, 1, 5]
    assert all(len(reply.content["arrays"]) == 2 for reply in trained)


def test_the_summary_names_both(caplog):
    FedDAT(flower.FedProx(proximal_mu=0.25), weighting="uniform", seed=3).summary()
    text = "\n".join(caplog.messages)
    assert "FedDAT: weighting uniform, seed 3" in text
    assert "Proximal mu: 0.25" in text


@pytest.fixture
def told(toy, monkeypatch):
    """Note, for each message, its kind, round and node, and whose round's state it says is there."""
    said, send = [], toy.Grid.send_and_receive

    def noting(self, messages, *, timeout=None):
        messages = list(messages)
        for message in messages:
            about, config = message.metadata, message.content["config"]
            said.append(
                (about.message_type, config["server-round"], about.dst_node_id, config.get("state-round"))
            )
        return send(self, messages, timeout=timeout)

    monkeypatch.setattr(toy.Grid, "send_and_receive", noting)
    return lambda kind: [rest for found, *rest in said if found == kind]


def test_each_client_is_told_which_rounds_state_it_should_have(toy, arrays, told):
    """Its own last round that counted: that of a reply that was refused need not have been kept."""
    rounds = []

    def fails_in_round_2(content):
        rounds.append("arrays" in content)
        return "diverged" if sum(rounds) == 2 and rounds[-1] else content

    grid = toy.Grid({7: toy.Client(0, 1), 3: toy.Client(1, 1, alter=fails_in_round_2)})
    sent = ConfigRecord({"lr": 0.1})
    strategy = FedDAT(flower.FedAvg(min_available_nodes=2))
    strategy.start(grid, arrays, num_rounds=3, train_config=sent, evaluate_config=sent)
    assert sorted(told("train")[:2]) == [[1, 3, None], [1, 7, None]]
    assert sorted(told("train")[2:]) == [[2, 3, 1], [2, 7, 1], [3, 3, 1], [3, 7, 2]]
    evaluated = [[1, 3, 1], [1, 7, 1], [2, 3, 1], [2, 7, 2], [3, 3, 3], [3, 7, 3]]
    assert sorted(told("evaluate")) == evaluated
    assert "state-round" not in sent

    again = FedDAT(flower.FedAvg(min_available_nodes=2))
    again.load_state_dict(strategy.state_dict())
    resumed = toy.Grid({7: toy.Client(0, 1), 3: toy.Client(1, 1)})
    again.start(resumed, arrays, num_rounds=1)
    assert sorted(told("train")[6:]) == [[1, 3, 3], [1, 7, 3]]


def test_what_is_kept_of_clients_is_few_arrays_however_many_they_are(toy, arrays):
    """A checkpoint must not take longer with each client that was ever seen."""
    names = set()
    for clients in (3, 30):
        strategy = FedDAT(flower.FedAvg(min_available_nodes=clients))
        strategy.start(toy.Grid({n: toy.Client(n, clients) for n in range(clients)}), arrays, num_rounds=1)
        state = strategy.state_dict()
        names.add(frozenset(state))
        assert state["said"].shape == state["trained-in"].shape == (clients, 2)
        assert state["trained-in"].tolist() == [[n, 1] for n in range(clients)]
    assert names == {frozenset({"said", "trained-in", "places", "owners"})}


def test_a_round_that_is_tried_again_says_the_same(toy, arrays, told):
    tries = []

    def fails_first(content):
        tries.append("arrays" in content)
        return "busy" if sum(tries) == 2 and tries[-1] else content

    grid = toy.Grid({7: toy.Client(0, 1), 3: toy.Client(1, 1, alter=fails_first)})
    strategy = FedDAT(flower.FedAvg(min_available_nodes=2), quorum=Quorum(min_clients=2))
    strategy.start(grid, arrays, num_rounds=2)
    assert sorted(told("train")[2:]) == [[2, 3, 1], [2, 3, 1], [2, 7, 1], [2, 7, 1]]


def test_without_a_handshake_nobody_is_told(federation, arrays, told):
    """A partition is then a rank of the nodes that are there, and may be another client's tomorrow."""
    FedDAT(flower.FedAvg(), handshake=False).start(federation(), arrays, num_rounds=2)
    assert {said for *_, said in told("train")} == {None}


def test_what_is_passed_on_has_the_types_of_what_takes_it():
    taken = get_type_hints(Checked.__init__)
    del taken["strategy"], taken["return"]
    assert get_type_hints(FederationOptions) == taken
