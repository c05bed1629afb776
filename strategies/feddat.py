"""FedDAT's server: the shared adapters of a round's clients are averaged, and nothing else is let in or out.

Chen et al., "FedDAT: An Approach for Foundation Model Finetuning in Multi-Modal Heterogeneous Federated
Learning", AAAI 2024, https://arxiv.org/abs/2308.12305: after each round the server takes the mean of the
active clients' shared adapters A_s; the local adapters never leave a client.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .checks import is_private
from .inbox import Request, accept
from .membership import Members
from .observer import Phase, RoundObserver
from .replies import alike, as_sent, bytes_of, scalars
from .sampling import MembersGrid, seeded
from .wrapper import StrategyWrapper, is_private_mean, weight_key

log = logging.getLogger("flwr")


class FedDAT(StrategyWrapper):
    """Federate the shared adapter with any Flower strategy.

    Parameters
    ----------
    strategy : Strategy
        What samples and aggregates: `FedAvg()` is the published method.
    weighting : {"uniform", "num-examples"}
        Weight of a client in every mean. `uniform` is the published way, `num-examples` favours large ones.
    expected_nodes : int, optional
        Nodes to wait for before the first round. None: as many as the first say there are in the
        handshake (``num-partitions``), and as many as `strategy` asks for.
    wait_seconds : float
        How long to wait for nodes and for their handshake; then the run ends with an error.
    seed : int
        With the round it decides which partitions are sampled, whatever the ids of their nodes.
    expected : Mapping[str, str], optional
        What a client must say of itself in the handshake, such as the backbone's fingerprint.
    handshake : bool
        False for ClientApps without a query function: partitions are then the ranks of the node ids.
    evaluate_on : Callable[[int], bool], optional
        Rounds after which clients evaluate. None: all of them.
    observer : RoundObserver, optional
        Told of every reply.
    max_change : float
        A reply that changes the arrays by more than so many times their norm (or than so much, where the norm
        is below 1) is refused.

    Notes
    -----
    A wrapper that changes replies before they are averaged, such as differential privacy, belongs inside:
    `FedDAT(ServerFixedClipping(FedAvg(), …))`, so that it works on checked replies. What changes the mean
    afterwards belongs outside.

    Raises
    ------
    ValueError
        The weighting is unknown, or not uniform around differential privacy; or the order is wrong.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        weighting: Literal["uniform", "num-examples"] = "uniform",
        expected_nodes: int | None = None,
        wait_seconds: float = 120,
        seed: int = 0,
        expected: Mapping[str, str] | None = None,
        handshake: bool = True,
        evaluate_on: Callable[[int], bool] | None = None,
        observer: RoundObserver | None = None,
        max_change: float = inf,
    ) -> None:
        super().__init__(strategy)
        if weighting not in ("uniform", "num-examples"):
            raise ValueError(f"weighting is {weighting!r}; allowed: 'uniform', 'num-examples'")
        if weighting != "uniform" and is_private_mean(strategy):
            raise ValueError(
                f"weighting is {weighting!r}; allowed around differential privacy: 'uniform', since its noise"
                " hides a client in the plain mean"
            )
        self.weighting = weighting
        self.seed = seed
        self.evaluate_on = evaluate_on
        self.observer = observer
        self.max_change = max_change
        joined = observer.joined if observer is not None else lambda answers: None
        self._members = Members(expected_nodes, wait_seconds, dict(expected or {}), handshake, joined)
        self._requests: dict[int, Request] = {}
        self._weight_key = weight_key(strategy)

    @property
    def partitions(self) -> dict[int, int]:
        """Partition of each node that takes part, by node id."""
        return dict(self._members.partitions)

    def gather(self, grid: Grid) -> None:
        """Wait for the expected nodes and ask them who they are; otherwise the first round does.

        Raises
        ------
        RuntimeError
            Nodes are missing or not what was expected.
        """
        self._members.gather(grid, server_round=0)

    def summary(self) -> None:
        """Log the settings, then those of the strategy inside."""
        log.info("\t├──> FedDAT: shared adapter only, weighting %s, seed %d", self.weighting, self.seed)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy sample among the known partitions.

        Raises
        ------
        RuntimeError
            Nodes are missing or not what was expected.
        ValueError
            An array with a private name was about to be sent.
        """
        members = MembersGrid(grid, self._members, server_round)
        with seeded(f"{self.seed} {server_round} train"):
            return self._sending(super().configure_train(server_round, arrays, config, members))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy sample among the known partitions, as for training, when a round is evaluated."""
        if self.evaluate_on is not None and not self.evaluate_on(server_round):
            return self._sending([])
        members = MembersGrid(grid, self._members, server_round)
        with seeded(f"{self.seed} {server_round} evaluate"):
            return self._sending(super().configure_evaluate(server_round, arrays, config, members))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Pass the valid replies on, in the order of their partitions.

        Raises
        ------
        RuntimeError
            Clients were asked, and none gave a valid reply: a run must not go on as if it trained.
        """
        valid, reasons = self._receive(server_round, "train", replies)
        if self._requests and not valid:
            why = "; ".join(dict.fromkeys(reasons))
            raise RuntimeError(
                f"round {server_round}: no valid reply from {len(self._requests)} clients: {why}"
            )
        arrays, metrics = super().aggregate_train(server_round, valid)
        return arrays and as_sent(arrays, self._sent()), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Pass the valid replies on, in the order of their partitions; without any there is no result."""
        valid, _ = self._receive(server_round, "evaluate", replies)
        return super().aggregate_evaluate(server_round, valid) if valid else None

    def _sending(self, messages: Iterable[Message]) -> list[Message]:
        """Check what is about to be sent, and remember it for the check of the replies."""
        messages, self._requests = list(messages), {}
        for message in messages:
            records = list(message.content.array_records.values())
            if len(records) != 1:
                raise ValueError(f"the strategy sends {len(records)} array records a message; one is allowed")
            arrays = records[0]
            if private := next(filter(is_private, arrays), None):
                raise ValueError(f"array '{private}' is private; only the shared adapter may be sent")
            node = message.metadata.dst_node_id
            self._requests[node] = Request(self._members.partitions[node], arrays)
        return messages

    def _sent(self) -> ArrayRecord:
        """Return what the round's clients were sent; all of them the same names, shapes and dtypes."""
        return next((request.arrays for request in self._requests.values()), ArrayRecord())

    def _receive(
        self, server_round: int, phase: Phase, replies: Iterable[Message]
    ) -> tuple[list[Message], list[str]]:
        """Tell the valid replies, ready for the strategy, from the reasons to refuse others; report both."""
        trained, requests = phase == "train", self._requests
        valid, refused = accept(requests, replies, trained, self._weight_key, self.max_change)
        for partition_id, reason in refused:
            log.warning("round %d, %s: partition %d refused: %s", server_round, phase, partition_id, reason)
            if self.observer is not None:
                self.observer.refused(server_round, phase, partition_id, reason)
        for reply in valid:
            request = requests[reply.metadata.src_node_id]
            traffic = {"bytes-down": request.arrays.count_bytes(), "bytes-up": bytes_of(reply)}
            if self.observer is not None:
                self.observer.replied(server_round, phase, request.partition_id, scalars(reply) | traffic)
        names = list(self._sent()) if trained else []
        reasons = [reason for _, reason in refused]
        return alike(valid, names, self._weight_key, self.weighting == "uniform"), reasons
