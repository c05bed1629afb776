"""A Flower strategy around another: every hook is passed on, a subclass writes only what it changes."""

from collections.abc import Iterable, Iterator

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    FedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Strategy,
)
from flwr.serverapp.strategy.dp_adaptive_clipping import DifferentialPrivacyAdaptiveBase
from flwr.serverapp.strategy.dp_fixed_clipping import DifferentialPrivacyFixedClippingBase
from flwr.supercore.differential_privacy import KEY_NORM_BIT

CENTRAL_PRIVACY = (DifferentialPrivacyFixedClippingBase, DifferentialPrivacyAdaptiveBase)


class StrategyWrapper(Strategy):
    """Delegate every hook to `strategy`.

    `start` is not delegated: Flower's own loop runs on the outermost wrapper, and so reaches all of them.

    Parameters
    ----------
    strategy : Strategy
        The strategy inside; it may be a wrapper itself.

    Raises
    ------
    ValueError
        The strategies stand in an order in which one of them does not work.
    """

    def __init__(self, strategy: Strategy) -> None:
        _check_order(strategy)
        self.strategy = strategy

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the nodes of a training round and what they are sent."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies of a training round."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the nodes of an evaluation and what they are sent."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Combine the replies of an evaluation."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log what the strategy inside is set to."""
        self.strategy.summary()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return what this wrapper, not the strategy inside, carries from round to round, by any names."""
        return {}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Put back what `state_dict` returned."""


def layers(strategy: Strategy) -> Iterator[Strategy]:
    """Yield a strategy, the one it wraps, and so on inwards."""
    layer: Strategy | None = strategy
    while layer is not None:
        yield layer
        layer = getattr(layer, "strategy", None)


def is_private_mean(strategy: Strategy) -> bool:
    """Whether the strategy, or one that it wraps, adds the noise of central differential privacy."""
    return any(isinstance(layer, CENTRAL_PRIVACY) for layer in layers(strategy))


def _check_order(strategy: Strategy) -> None:
    for layer in layers(strategy):
        name = type(layer).__name__
        if isinstance(layer, Strategy) and type(layer).start is not Strategy.start:
            raise ValueError(
                f"{name} has a `start` of its own, which nobody calls where it stands; allowed: that `start`"
                f" on the outermost strategy: class Own(FedDAT): start = {name}.start"
            )
        if isinstance(layer, FedXgbBagging | FedXgbCyclic):
            raise ValueError(f"{name} collects trees, not arrays of one shape; allowed: what averages arrays")
        if isinstance(layer, CENTRAL_PRIVACY):
            inside = layer.strategy
            # Elsewhere its noise would not be what hides one client in the result.
            if not isinstance(inside, FedAvg) or type(inside).aggregate_train is not FedAvg.aggregate_train:
                raise ValueError(
                    f"{name} must stand around FedAvg's mean, not around {type(inside).__name__};"
                    f" the right order: FedDAT({name}(FedAvg()))"
                )


def needed_bit(strategy: Strategy) -> str | None:
    """Name of the metric, 0 or 1, without which a strategy, or the one it wraps, ends a run in an error."""
    adaptive = (
        isinstance(layer, DifferentialPrivacyClientSideAdaptiveClipping) for layer in layers(strategy)
    )
    return KEY_NORM_BIT if any(adaptive) else None


def weight_key(strategy: Strategy) -> str:
    """Name of the metric by which a strategy, or the one it wraps, weighs the replies."""
    keys = (getattr(layer, "weighted_by_key", None) for layer in layers(strategy))
    return next(filter(None, keys), "num-examples")
