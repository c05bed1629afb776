"""A Flower strategy around another: every hook is passed on, a subclass writes only what it changes."""

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy


class StrategyWrapper(Strategy):
    """Delegate every hook to `strategy`.

    `start` is not delegated: Flower's own loop runs on the outermost wrapper, and so reaches all of them.

    Parameters
    ----------
    strategy : Strategy
        The strategy inside; it may be a wrapper itself.
    """

    def __init__(self, strategy: Strategy) -> None:
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


def weight_key(strategy: Strategy | None) -> str:
    """Name of the metric by which a strategy, or the one it wraps, weighs the replies."""
    while strategy is not None:
        if key := getattr(strategy, "weighted_by_key", None):
            return key
        strategy = getattr(strategy, "strategy", None)
    return "num-examples"
