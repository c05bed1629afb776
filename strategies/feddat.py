"""FedDAT's server: the shared adapters of a round's clients are averaged, and nothing else is let in or out.

Chen et al., "FedDAT: An Approach for Foundation Model Finetuning in Multi-Modal Heterogeneous Federated
Learning", AAAI 2024, https://arxiv.org/abs/2308.12305: after each round the server takes the mean of the
active clients' shared adapters A_s; the local adapters never leave a client.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from math import inf
from random import sample
from typing import Any, Literal, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .checks import is_private, one_line
from .codec import Codec
from .inbox import Reply, Request, accept
from .membership import Members
from .metrics import Ranges
from .observer import Phase, RoundObserver
from .outliers import Limits, most_counted
from .places import Places, Rule
from .quorum import Quorum
from .replies import alike, as_sent, scalars
from .sampling import MembersGrid, seeded
from .wrapper import StrategyWrapper, is_private_mean, needed_bit, weight_key

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
    expected : Mapping[str, str | int], optional
        What a client must say of itself in the handshake, such as the backbone's fingerprint.
    handshake : bool
        False for ClientApps without a query function: partitions are then the ranks of the node ids.
    places : {"first", "any"} or Mapping[int, int]
        Whose partition is whose: the node's that held it first; whoever's when its node has left, for
        SuperNodes without keys; or the node ids of given partitions. See `places.Places`.
    evaluate_on : Callable[[int], bool], optional
        Rounds after which clients evaluate. None: all of them.
    observer : RoundObserver, optional
        Told of every reply.
    max_change : float
        A reply that changes the arrays by more than so many times the median change of the round, in norm, is
        refused. With fewer than three replies the measure is the norm of what was sent, or 1 if that is more.
    clip_change : float
        A reply's change of an array is scaled down to at most so many times the round's lower median norm of
        that array's change, and no count of examples weighs more than twice the lower median. Infinity, the
        default: replies count as they are, and the result is that of `strategy`.
    min_clients : int
        Valid replies that a round of training needs.
    max_failure_rate : float
        Largest share of a round's clients that may give no valid reply, in [0, 1].
    round_timeout : float
        Seconds to wait for replies when a round is tried again; at first it is the `timeout` of `start`.
    codec : Codec, optional
        How arrays travel, both ways. None: as Flower writes them. The strategy knows decoded arrays only.
    metrics : Mapping[str, Mapping[str, tuple[float, float]]], optional
        The only metrics that count in a reply to ``train`` and to ``evaluate``, with the range of each. None:
        all that are finite. Others are dropped, and counted for the observer as ``metrics-dropped``.
    try_again : bool
        False: a round without enough valid replies ends the run at once, so that no client answers it twice.

    Notes
    -----
    A round of training without enough valid replies is tried once more, with clients that were not asked
    before as far as there are such. If that fails too, the run ends with an error. Around central
    differential privacy it ends at once: whom a second try asks would depend on a single client.

    A wrapper that changes replies before they are averaged, such as differential privacy, belongs inside:
    `FedDAT(ServerFixedClipping(FedAvg(), …))`. There it works on checked replies; outside, it would not see
    those of a second try. What changes the mean afterwards belongs outside.

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
        expected: Mapping[str, str | int] | None = None,
        handshake: bool = True,
        places: Rule = "first",
        evaluate_on: Callable[[int], bool] | None = None,
        observer: RoundObserver | None = None,
        max_change: float = inf,
        clip_change: float = inf,
        min_clients: int = 1,
        max_failure_rate: float = 1.0,
        round_timeout: float = 3600,
        codec: Codec | None = None,
        metrics: Mapping[str, Ranges] | None = None,
        try_again: bool = True,
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
        # The noise hides what a client changes by itself, not what it changes in how others are treated.
        self.limits = None if is_private_mean(strategy) else Limits(max_change, clip_change)
        self.quorum = Quorum(min_clients, max_failure_rate)
        self.round_timeout = round_timeout
        self.codec = codec
        self.metrics = metrics or {}
        self.try_again = try_again and not is_private_mean(strategy)
        joined = observer.joined if observer is not None else lambda answers: None
        self._members = Members(
            expected_nodes, wait_seconds, dict(expected or {}), handshake, joined, Places(places)
        )
        self._requests: dict[int, Request] = {}
        self._said: dict[int, float] = {}  # by partition: the first count of examples
        self._told: set[int] = set()  # partitions of which it was said that metrics were dropped
        self._trained_in: dict[int, int] = {}  # by partition: the last round whose reply was averaged
        self._weight_key, self._needed_bit = weight_key(strategy), needed_bit(strategy)

    @property
    def partitions(self) -> dict[int, int]:
        """Partition of each node that takes part, by node id."""
        return dict(self._members.partitions)

    @property
    def _clips(self) -> bool:
        return self.limits is not None and self.limits.clip_change < inf

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
        if self.limits is None:
            log.info("\t├──> replies are not held to each other (max_change, clip_change): central privacy")
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy sample among the known partitions.

        Raises
        ------
        RuntimeError
            Nodes are missing or not what was expected, or fewer are sampled than must reply.
        ValueError
            An array with a private name was about to be sent.
        """
        self._grid = grid
        members = MembersGrid(grid, self._members, server_round)
        with seeded(f"{self.seed} {server_round} train"):
            messages = self._sending(super().configure_train(server_round, arrays, config, members))
        if 0 < len(messages) < self.quorum.min_clients:
            raise RuntimeError(
                f"round {server_round}: {len(messages)} clients are sampled, fewer than min_clients ="
                f" {self.quorum.min_clients}: start others, sample more, or lower it"
                " (in a run-config: fraction-train, min-clients)"
            )
        return messages

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
        """Pass the valid replies on, in the order of their partitions; ask again if there are too few.

        Raises
        ------
        RuntimeError
            There are too few the second time as well, or the strategy makes nothing of them: a run must
            not go on as if it trained.
        """
        valid, lack = self._trained(server_round, replies)
        tried = ""
        if lack and self.try_again:
            log.warning("round %d: %s; trying once more", server_round, lack)
            valid, lack = self._trained(server_round, self._ask_again(server_round))
            tried = ", tried twice"
        if lack:
            raise RuntimeError(f"round {server_round}{tried}: {lack}")
        for reply in valid:
            count = cast(float, scalars(reply.message)[self._weight_key])
            self._said.setdefault(reply.partition_id, count)
            self._trained_in[reply.partition_id] = server_round
        arrays, metrics = super().aggregate_train(server_round, self._take(server_round, "train", valid))
        if valid and arrays is None:
            name = type(self.strategy).__name__
            raise RuntimeError(f"round {server_round}: {name} makes nothing of {len(valid)} valid replies")
        return arrays and as_sent(arrays, self._sent()), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Pass the valid replies on, in the order of their partitions; without any there is no result."""
        valid, _ = self._receive(server_round, "evaluate", replies)
        if not valid:
            return None
        return super().aggregate_evaluate(server_round, self._take(server_round, "evaluate", valid))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return what is known of each client from round to round: counts, rounds, places.

        They are ``said/<partition>``, its first count of examples; ``trained-in/<partition>``, the last round
        that was averaged, both scalars; and ``owner/<partition>``, whose its place is, see `Places`.
        """
        kept = {
            f"{name}/{partition}": np.array(value)
            for name, values in self._kept.items()
            for partition, value in values.items()
        }
        return kept | self._members.places.state_dict()

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Put back what `state_dict` returned."""
        for name, values in self._kept.items():
            values.clear()
            for key, value in state.items():
                if key.startswith(f"{name}/"):
                    values[int(key.removeprefix(f"{name}/"))] = value.item()
        self._members.places.load_state_dict(state)

    @property
    def _kept(self) -> dict[str, dict[int, Any]]:
        return {"said": self._said, "trained-in": self._trained_in}

    def _trained(self, server_round: int, replies: Iterable[Message]) -> tuple[list[Reply], str | None]:
        """Return the valid replies, and what they lack to be averaged."""
        valid, reasons = self._receive(server_round, "train", replies)
        return valid, self.quorum.lack(len(self._requests), len(valid), reasons)

    def _ask_again(self, server_round: int) -> Iterable[Message]:
        """Send the round's message to as many clients as before, first to those who have not had it."""
        asked = self._requests
        content = next(iter(asked.values())).content
        there = list(MembersGrid(self._grid, self._members, server_round).get_node_ids())
        others = [node for node in there if node not in asked]
        with seeded(f"{self.seed} {server_round} again"):
            others = sample(others, min(len(others), len(asked)))
        nodes = (others + [node for node in there if node in asked])[: len(asked)]
        messages = [Message(content, dst_node_id=node, message_type=MessageType.TRAIN) for node in nodes]
        return self._grid.send_and_receive(self._sending(messages), timeout=self.round_timeout)

    def _sending(self, messages: Iterable[Message]) -> list[Message]:
        """Check what is about to be sent, encode it, and remember it for the check of the replies."""
        messages, self._requests = list(messages), {}
        encoded: dict[int, ArrayRecord] = {}  # mostly one record for all clients
        for message in messages:
            content = message.content
            records = dict(content.array_records)
            if len(records) != 1:
                raise ValueError(f"the strategy sends {len(records)} array records a message; one is allowed")
            ((key, arrays),) = records.items()
            if private := next(filter(is_private, arrays), None):
                raise ValueError(f"array '{private}' is private; only the shared adapter may be sent")
            if self.codec:
                if id(arrays) not in encoded:
                    encoded[id(arrays)] = self.codec.encode(arrays)
                message.content = RecordDict({**content, key: encoded[id(arrays)]})
            node = message.metadata.dst_node_id
            partition = self._members.partitions[node]
            message.content = self._with_state_round(message.content, partition)
            self._requests[node] = Request(partition, content, message)
        return messages

    def _with_state_round(self, content: RecordDict, partition_id: int) -> RecordDict:
        """Say beside the round which round's state the client should have; the records of `content` stay."""
        if not self._members.handshake or partition_id not in self._trained_in:
            return content  # without a handshake a partition is a rank, and no client's for good
        state_round = self._trained_in[partition_id]
        said = {
            key: ConfigRecord({**config, "state-round": state_round})
            for key, config in content.config_records.items()
            if "server-round" in config
        }
        return RecordDict({**content, **said})

    def _sent(self) -> ArrayRecord:
        """Return what the round's clients were sent; all of them the same names, shapes and dtypes."""
        return next((request.arrays for request in self._requests.values()), ArrayRecord())

    def _receive(
        self, server_round: int, phase: Phase, replies: Iterable[Message]
    ) -> tuple[list[Reply], list[str]]:
        """Tell the valid replies from the reasons to refuse others, and report those."""
        valid, refused = accept(
            self._requests,
            replies,
            phase == "train",
            self._weight_key,
            self.limits,
            self._said,
            self.codec,
            self.metrics.get(phase),
            self._needed_bit if phase == "train" else None,
        )
        for partition_id, reason in refused:
            log.warning("round %d, %s: partition %d refused: %s", server_round, phase, partition_id, reason)
            if self.observer is not None:
                self.observer.refused(server_round, phase, partition_id, reason)
        return valid, [reason for _, reason in refused]

    def _take(self, server_round: int, phase: Phase, valid: list[Reply]) -> list[Message]:
        """Report valid replies, and make them ready for the strategy."""
        for reply in valid:
            request = self._requests[reply.message.metadata.src_node_id]
            seen: dict[str, float | int] = {
                "bytes-down": request.travelling.count_bytes(),
                "bytes-up": reply.num_bytes,
            }
            if phase == "train" and self._clips:
                seen["clipped"] = reply.clipped
            if reply.dropped:
                seen["metrics-dropped"] = len(reply.dropped)
                self._tell_dropped(server_round, phase, reply)
            if self.observer is not None:
                measured = scalars(reply.message) | seen
                self.observer.replied(server_round, phase, reply.partition_id, measured)
        names = list(self._sent()) if phase == "train" else []
        messages = [reply.message for reply in valid]
        return alike(
            messages, names, self._weight_key, self.weighting == "uniform", self._most(phase, messages)
        )

    def _most(self, phase: Phase, messages: list[Message]) -> float:
        """Return the largest weight that a reply may have."""
        if phase == "evaluate" or not messages or not self._clips:
            return inf
        return most_counted(cast(float, scalars(message)[self._weight_key]) for message in messages)

    def _tell_dropped(self, server_round: int, phase: Phase, reply: Reply) -> None:
        """Say once a client that it measures what does not count."""
        if reply.partition_id not in self._told:
            self._told.add(reply.partition_id)
            names = one_line(", ".join(map(repr, reply.dropped[:3])), 100)
            log.warning(
                "round %d, %s: partition %d measures what does not count: %s; %d dropped, and later ones",
                server_round,
                phase,
                reply.partition_id,
                names,
                len(reply.dropped),
            )
