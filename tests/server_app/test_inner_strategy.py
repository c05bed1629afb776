"""The inner strategy by name: which it is, and which settings reach it."""

import typing

import pytest
from flwr.serverapp import strategy as flower

from app.settings import Strategy, read_settings
from server_app.inner_strategy import make_strategy

NAMES = {
    "fedavg": flower.FedAvg,
    "fedprox": flower.FedProx,
    "fedavgm": flower.FedAvgM,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "fedadagrad": flower.FedAdagrad,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
}


@pytest.fixture
def make(run_config):
    def build(strategy, **overrides):
        pull = {"proximal_mu": 0.5} if strategy == "fedprox" else {}
        return make_strategy(read_settings(run_config(strategy=strategy, **pull, **overrides)))

    return build


def test_every_name_that_settings_allow_is_known_here():
    assert set(typing.get_args(Strategy)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_flowers_strategy_of_that_name(make, name):
    strategy = make(strategy=name, fraction_train=0.5)
    assert type(strategy) is NAMES[name]
    assert (strategy.fraction_train, strategy.fraction_evaluate) == (0.5, 1.0)
    # One client is a federation too; how many to wait for is FedDAT's to know.
    assert strategy.min_train_nodes == strategy.min_evaluate_nodes == strategy.min_available_nodes == 1


def test_settings_reach_the_strategies_that_use_them(make):
    assert make(strategy="fedprox").proximal_mu == 0.5
    momentum = make(strategy="fedavgm", server_learning_rate=0.7, server_momentum=0.25)
    assert (momentum.server_learning_rate, momentum.server_momentum) == (0.7, 0.25)
    for name in ("fedadam", "fedyogi", "fedadagrad"):
        assert make(strategy=name, server_learning_rate=0.7).eta == 0.7
