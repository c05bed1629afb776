"""The Flower strategy inside a run's federation, by name."""

from collections.abc import Sequence
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    Strategy,
)

from app.methods import METHODS
from app.records import from_record, to_record
from app.settings import Settings
from strategies import Combined, central_privacy


def make_strategy(settings: Settings) -> Strategy:
    """Make the inner strategy, which samples clients and averages what they reply, or as the method says."""
    strategy = _aggregation(settings)
    if combine := METHODS[settings.method].combine:

        def combined(
            sent: ArrayRecord, replies: Sequence[ArrayRecord], weights: Sequence[float]
        ) -> ArrayRecord:
            arrays = combine(from_record(sent), [from_record(reply) for reply in replies], weights)
            return to_record(arrays)

        return Combined(strategy, combined)
    if settings.dp.mode in ("none", "local"):
        return strategy
    # As many as FedAvg samples when all clients are there.
    expected = max(1, int(settings.num_clients * settings.fraction_train))
    noise, norm = settings.dp.noise_multiplier, settings.dp.clipping_norm
    return central_privacy(settings.dp.mode, strategy, noise, norm, expected)


def _aggregation(settings: Settings) -> Strategy:
    common: dict[str, Any] = {
        "fraction_train": settings.fraction_train,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
    }
    rate = settings.server_learning_rate
    match settings.strategy:
        case "fedavg":
            return FedAvg(**common)
        case "fedprox":
            return FedProx(**common, proximal_mu=settings.proximal_mu)
        case "fedavgm":
            return FedAvgM(**common, server_learning_rate=rate, server_momentum=settings.server_momentum)
        case "fedadam":
            return FedAdam(**common, eta=rate)
        case "fedyogi":
            return FedYogi(**common, eta=rate)
        case "fedadagrad":
            return FedAdagrad(**common, eta=rate)
        case "fedmedian":
            return FedMedian(**common)
        case "fedtrimmedavg":
            return FedTrimmedAvg(**common)
        case "krum":
            return Krum(**common)
