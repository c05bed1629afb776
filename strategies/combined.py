"""Replies that are not alike are combined by a function of one's own."""

from collections.abc import Callable, Iterable, Sequence
from copy import copy

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .layout import shapes_of
from .replies import scalars
from .wrapper import StrategyWrapper, is_private_mean, weight_key

# What was sent, arrays and weight of each reply → arrays with the names and shapes of those sent.
Combine = Callable[[ArrayRecord, Sequence[ArrayRecord], Sequence[float]], ArrayRecord]


class Combined(StrategyWrapper):
    """Combine a round's replies before a strategy that averages: to it, each is what they are together.

    It belongs inside `Checked`, whose `layout` says what replies may be:
    `Checked(Combined(FedAvg(), combine), layout=layout)`. What the strategy does with a mean, such as
    FedAdam's step, it does with this; what chooses among replies has nothing to choose.

    Parameters
    ----------
    strategy : Strategy
        What samples, averages metrics, and goes on from the combination.
    combine : callable
        What was sent, arrays and weight of each reply → arrays with the names and shapes of those sent.

    Raises
    ------
    ValueError
        The strategy inside adds the noise of central differential privacy, which is made for a plain mean.

    Examples
    --------
    >>> strategy = Combined(FedAvg(), combine)
    """

    def __init__(self, strategy: Strategy, combine: Combine) -> None:
        super().__init__(strategy)
        if is_private_mean(strategy):
            raise ValueError(
                "the noise of central differential privacy is made for a plain mean; allowed: Combined around"
                " a strategy without it"
            )
        self.combine = combine
        self._sent = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent."""
        self._sent = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies.

        Raises
        ------
        RuntimeError
            The combination has other names or shapes than what was sent.
        """
        replies = list(replies)
        if not replies:
            return super().aggregate_train(server_round, replies)
        arrays = [next(iter(reply.content.array_records.values())) for reply in replies]
        key = weight_key(self.strategy)
        combined = self.combine(self._sent, arrays, [scalars(reply)[key] for reply in replies])
        if shapes_of(combined) != shapes_of(self._sent):
            raise RuntimeError(
                f"round {server_round}: the combined replies have other names or shapes than what was sent"
            )
        ordered = ArrayRecord({name: combined[name] for name in self._sent})
        return super().aggregate_train(server_round, [_with(ordered, reply) for reply in replies])


def _with(arrays: ArrayRecord, reply: Message) -> Message:
    changed = copy(reply)
    records = reply.content.array_records
    changed.content = RecordDict({k: arrays if k in records else r for k, r in reply.content.items()})
    return changed
