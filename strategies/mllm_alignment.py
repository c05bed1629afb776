"""MLLM-LLaVA-FL's third stage as a strategy: what a round aggregated is aligned on the server.

Zhang et al., "MLLM-LLaVA-FL: Multimodal Large Language Model Assisted Federated Learning", WACV 2025,
https://arxiv.org/abs/2409.06067, section 3.3: after aggregation the server trains the global model for a few
steps on its own data, under the supervision of a multimodal LLM.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from .observer import RoundObserver
from .wrapper import StrategyWrapper

log = logging.getLogger("flwr")


class Aligner(Protocol):
    """Whoever aligns an aggregate with a teacher model."""

    def align(self, server_round: int, arrays: ArrayRecord) -> tuple[ArrayRecord, Mapping[str, float]]:
        """Return arrays of the same names and shapes, and what was measured, by names without a prefix."""


class MLLMAlignment(StrategyWrapper):
    """Align what any strategy aggregates: `MLLMAlignment(FedDAT(FedAvg()), aligner)`.

    What is aligned is what clients get in the next round, what they evaluate, and the result. It keeps names,
    dtypes and their order. A strategy that aggregated nothing (None) is not asked to align it.

    Parameters
    ----------
    strategy : Strategy
        What samples and aggregates.
    aligner : Aligner
        Its metrics join those of the round as ``align/<name>``.
    every : int or "end"
        Align after every so many rounds; "end": only after the last one.
    last_round : int, optional
        Which that is; "end" needs it.
    observers : sequence of RoundObserver
        Told of every alignment.

    Raises
    ------
    ValueError
        If `every` is neither, or "end" without a last round.

    Examples
    --------
    >>> strategy = MLLMAlignment(FedDAT(FedAvg()), aligner, every=2)
    """

    def __init__(
        self,
        strategy: Strategy,
        aligner: Aligner,
        every: int | Literal["end"] = 1,
        last_round: int | None = None,
        observers: Sequence[RoundObserver] = (),
    ) -> None:
        super().__init__(strategy)
        if every != "end" and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise ValueError(f"every is {every!r}; allowed: 1 or more, or 'end'")
        if every == "end" and last_round is None:
            raise ValueError("last_round is None with every = 'end'; allowed: the number of rounds")
        self.aligner = aligner
        self.observers = observers
        self.every = every
        self.last_round = last_round

    def summary(self) -> None:
        """Log when it aligns, then what the strategy inside is set to."""
        when = "after the last round" if self.every == "end" else f"every {self.every} rounds"
        log.info("\t├──> MLLMAlignment: %s", when)
        super().summary()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate, then align.

        Raises
        ------
        ValueError
            If the aligner changed names or shapes.
        """
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None or not self._due(server_round):
            return arrays, metrics
        aligned, measured = self.aligner.align(server_round, arrays)
        named = {f"align/{name}": float(value) for name, value in measured.items()}
        for observer in self.observers if named else ():
            observer.measured(server_round, named)
        return _like(aligned, arrays), MetricRecord({**(metrics or {}), **named})

    def _due(self, server_round: int) -> bool:
        if self.every == "end":
            return server_round == self.last_round
        return server_round % self.every == 0


def _like(aligned: ArrayRecord, aggregate: ArrayRecord) -> ArrayRecord:
    """Give the aligned arrays the order and dtypes of the aggregate."""
    if aligned is aggregate:
        return aggregate
    if aligned.keys() != aggregate.keys():
        odd = sorted(aligned.keys() ^ aggregate.keys())
        raise ValueError(f"the aligner changed which arrays there are: {', '.join(odd[:3])}")
    for name, array in aligned.items():
        if tuple(array.shape) != tuple(aggregate[name].shape):
            raise ValueError(f"the aligner changed the shape of '{name}' to {tuple(array.shape)}")
    return ArrayRecord(
        {name: Array(aligned[name].numpy().astype(array.dtype)) for name, array in aggregate.items()}
    )
