"""Any strategy stopped after any round goes on as if it never had: true rounds, state of every layer."""

import numpy as np
import pytest
from flwr.app import MetricRecord
from flwr.serverapp import strategy as flower

from strategies import Admission, Checkpoint, FedDAT, Resumable, StrategyWrapper, central_privacy
from strategies.flower_state import flower_state, load_flower_state


class Memory(dict):
    """A store that keeps every checkpoint, by round."""

    def save(self, checkpoint):
        assert checkpoint.server_round not in self
        self[checkpoint.server_round] = checkpoint


class Counter(StrategyWrapper):
    """A wrapper with a state: the aggregate is multiplied by how many there were."""

    count = 0

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.count += 1
        return type(arrays)({name: type(a)(a.numpy() * self.count) for name, a in arrays.items()}), metrics

    def state_dict(self):
        return {"count": np.array(self.count)}

    def load_state_dict(self, state):
        self.count = int(state["count"])


KINDS = {
    "FedAvg": flower.FedAvg,
    "FedAdam": flower.FedAdam,
    "FedYogi": flower.FedYogi,
    "FedAdagrad": flower.FedAdagrad,
    "FedAvgM": lambda: flower.FedAvgM(server_momentum=0.9, server_learning_rate=0.5),
    "half of the clients": lambda: flower.FedAdam(fraction_train=0.5),
    "wrapper": lambda: Counter(flower.FedAvgM(server_momentum=0.9)),
    "adaptive clipping": lambda: central_privacy("server-adaptive", flower.FedAvg(), 1e-12, 1.0, 4),
    # FedAvgM keeps the aggregate as it was before the wrapper outside changed it.
    "wrapper outside": None,
}


def build(kind):
    if kind == "wrapper outside":
        return Counter(FedDAT(flower.FedAvgM(server_momentum=0.9), admission=Admission(expected_nodes=4)))
    return FedDAT(KINDS[kind](), admission=Admission(expected_nodes=4))


def values(result):
    return {name: array.numpy() for name, array in result.arrays.items()}


@pytest.mark.parametrize("done", [0, 1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_is_as_if_nothing_had_stopped(federation, arrays, kind, done):
    whole, store = Resumable(build(kind), Memory()), Memory()
    expected = whole.start(federation(), arrays, num_rounds=4)
    first = Resumable(build(kind), store).start(federation(), arrays, num_rounds=done)
    assert list(store) == list(range(done + 1))
    clients = federation()
    again = Resumable(build(kind), store, store[done])
    result = again.start(clients, first.arrays or arrays, num_rounds=4)
    assert list(store) == list(whole.store) == [0, 1, 2, 3, 4]
    for server_round, checkpoint in whole.store.items():
        kept = store[server_round]
        assert kept.state.keys() == checkpoint.state.keys()
        # The noise of adaptive clipping is tiny, and never the same.
        for name, array in checkpoint.state.items():
            np.testing.assert_allclose(kept.state[name], array, rtol=1e-6, err_msg=name)
    assert list(result.arrays) == list(expected.arrays)
    for name, array in values(expected).items():
        np.testing.assert_allclose(
            values(result)[name], array, rtol=0 if kind != "adaptive clipping" else 1e-5
        )
    assert {r for client in clients.nodes.values() for r in client.rounds} == set(range(done + 1, 5))


def test_everybody_has_the_true_round(federation, arrays):
    told = []

    def evaluate(server_round, arrays):
        told.append(server_round)
        return MetricRecord({"round": server_round})

    checkpoint = Checkpoint(2, arrays, {})
    strategy = Resumable(FedDAT(flower.FedAvg()), Memory(), checkpoint)
    result = strategy.start(federation(), arrays, num_rounds=4, evaluate_fn=evaluate)
    assert told == [3, 4]
    for metrics in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp):
        assert list(metrics) == [3, 4]
    assert {r: m["round"] for r, m in result.evaluate_metrics_serverapp.items()} == {3: 3, 4: 4}


def test_a_round_is_evaluated_before_its_checkpoint_is_kept(federation, arrays):
    store, seen = Memory(), []
    strategy = Resumable(FedDAT(flower.FedAvg()), store)
    strategy.start(federation(), arrays, 2, evaluate_fn=lambda r, _: seen.append((r, list(store))))
    assert seen == [(0, []), (1, [0]), (2, [0, 1])]


def test_the_checkpoints_arrays_win_over_the_initial_ones(toy, federation, arrays):
    checkpoint = Checkpoint(1, toy.arrays(x_b=np.full((2, 2), 7), x_a=np.full(2, 7)), {})
    strategy = Resumable(FedDAT(flower.FedAvg(), weighting="uniform"), Memory(), checkpoint)
    assert toy.value(strategy.start(federation(), arrays, num_rounds=2)) == 7 + 3.625


@pytest.mark.parametrize("num_rounds", [1, 3])
def test_with_no_round_left_the_result_is_the_checkpoint(toy, federation, arrays, num_rounds):
    checkpoint = Checkpoint(3, toy.arrays(x_b=np.full((2, 2), 7), x_a=np.full(2, 7)), {})
    strategy = Resumable(FedDAT(flower.FedAvg()), Memory(), checkpoint)
    assert toy.value(strategy.start(federation(), arrays, num_rounds)) == 7


def test_state_of_other_strategies_is_refused(arrays):
    checkpoint = Checkpoint(1, arrays, {"1.FedAdam/m_t/x.b": np.zeros(2)})
    with pytest.raises(
        ValueError, match=r"'1\.FedAdam/m_t/x\.b'; the strategies here are 0\.FedDAT, 1\.FedAvg"
    ):
        Resumable(FedDAT(flower.FedAvg()), Memory(), checkpoint)


def test_an_accountants_ledger_is_kept():
    class Accountant:
        """Flower's own needs a package that is not installed here."""

        def __init__(self, releases=()):
            self.releases = list(releases)

        def state_dict(self):
            return {"compositions": self.releases}

        def load_state_dict(self, state):
            self.releases = state["compositions"]

    def make(*releases):
        strategy = flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 2)
        strategy.accountant = Accountant(releases)
        return strategy

    other = make()
    load_flower_state(other, flower_state(make({"count": 3})))
    assert other.accountant.releases == [{"count": 3}]


@pytest.mark.parametrize("kind", ["FedAdam", "FedAvgM"])
def test_before_the_first_round_there_is_no_state(kind):
    strategy = KINDS[kind]()
    assert flower_state(strategy) == {}
    load_flower_state(strategy, {})
    assert vars(strategy).keys() == vars(KINDS[kind]()).keys()
    for attribute in ("m_t", "v_t", "momentum_vector", "current_arrays"):
        assert getattr(strategy, attribute, None) is None
