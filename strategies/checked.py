"""What any federation wants of its rounds: known members, sampled by a seed, whose replies are checked.

It stands around a strategy that samples and averages, and lets nothing else in.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from random import sample
from typing import Any, Literal, TypedDict, TypeVar, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from .checks import one_line
from .codec import Codec
from .handshake import SITE_WORD, UNKNOWN_WORD, unguessable
from .inbox import Reply, Request, accept, saying
from .layout import ReplyLayout, shapes_of
from .membership import Admission, Members
from .metrics import Ranges
from .observer import Phase, RoundObserver
from .outliers import Limits, most_counted
from .quorum import Quorum
from .replies import alike, as_sent, scalars
from .sampling import MembersGrid, seeded
from .secure_aggregation import SecureAggregation
from .secure_round import SecureRound
from .wrapper import StrategyWrapper, is_private_mean, needed_bit, weight_key

log = logging.getLogger("flwr")

Weighting = Literal["uniform", "num-examples"]
Number = TypeVar("Number", int, float)


class FederationOptions(TypedDict, total=False):
    """What `Checked` takes beside the strategy, by the same names, for what passes it on."""

    weighting: Weighting | None
    seed: int
    handshake: bool
    admission: Admission | None
    limits: Limits | None
    quorum: Quorum | None
    codec: Codec | None
    layout: ReplyLayout | None
    secure: SecureAggregation | None
    metrics: Mapping[str, Ranges] | None
    evaluate_on: Callable[[int], bool] | None
    observers: Sequence[RoundObserver]


class Checked(StrategyWrapper):
    """Let a strategy sample among known partitions, and average nothing but replies that passed the checks.

    Parameters
    ----------
    strategy : Strategy
        What samples and aggregates.
    weighting : {"uniform", "num-examples"}, optional
        Weight of a client in every mean. None: as `strategy` weighs, which for Flower's own is the second;
        around central differential privacy the first, for which its noise is made.
    seed : int
        With the round it decides which partitions are sampled, whatever the ids of their nodes. Without a
        handshake partitions are ranks of these ids, and what it decides is another client in every run.
    handshake : bool
        False for ClientApps without a query function: partitions are then the ranks of the node ids.
    admission : Admission, optional
        Whom to wait for, and who may take part.
    limits : Limits, optional
        What the replies of a round set for each other; None: nothing. Of no effect around central
        differential privacy.
    quorum : Quorum, optional
        How many valid replies a round of training needs. None: one.
    codec : Codec, optional
        How arrays travel, both ways. None: as Flower writes them. The strategy knows decoded arrays only.
    layout : callable, optional
        What a reply holds, from the shapes of what was sent: name → each axis, a length or, as (name, most),
        any up to that, the same for all axes of that name in a reply. None: what was sent. The strategy gets
        arrays of this layout, and must make of them what was sent, see `Combined`.
    secure : SecureAggregation, optional
        Learn the sum of a round's changes alone: the strategy gets their plain mean as everybody's reply.
        Nothing is then known of a single change, so `limits` have no effect. None: clients reply their arrays
        as they are.
    metrics : Mapping[str, Mapping[str, tuple[float, float]]], optional
        The only metrics that count in a reply to ``train`` and to ``evaluate``, with the range of each. None:
        all that are finite. Others are dropped, and counted for observers as ``metrics-dropped``.
    evaluate_on : Callable[[int], bool], optional
        Rounds after which clients evaluate. None: all of them.
    observers : sequence of RoundObserver
        Told of every reply.

    Notes
    -----
    A round of training without enough valid replies is tried once more, with clients that were not asked
    before as far as there are such. If that fails too, the run ends with an error. Around central
    differential privacy it ends at once: whom a second try asks would depend on a single client.

    A wrapper that changes replies before they are averaged, such as differential privacy, belongs inside:
    `Checked(ServerFixedClipping(FedAvg(), …))`. There it works on checked replies; outside, it would not see
    those of a second try. What changes the mean afterwards belongs outside.

    Raises
    ------
    ValueError
        The weighting is unknown, or not uniform around differential privacy; the order is wrong; or the
        strategy does not average arrays.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        weighting: Weighting | None = None,
        seed: int = 0,
        handshake: bool = True,
        admission: Admission | None = None,
        limits: Limits | None = None,
        quorum: Quorum | None = None,
        codec: Codec | None = None,
        layout: ReplyLayout | None = None,
        secure: SecureAggregation | None = None,
        metrics: Mapping[str, Ranges] | None = None,
        evaluate_on: Callable[[int], bool] | None = None,
        observers: Sequence[RoundObserver] = (),
    ) -> None:
        super().__init__(strategy)
        if weighting not in ("uniform", "num-examples", None):
            raise ValueError(f"weighting is {weighting!r}; allowed: 'uniform', 'num-examples', None")
        private = is_private_mean(strategy)
        if weighting == "num-examples" and private:
            raise ValueError(
                f"weighting is {weighting!r}; allowed around differential privacy: 'uniform', since its noise"
                " hides a client in the plain mean"
            )
        if secure:
            secure.check(strategy, weighting, handshake, alike=codec is None and layout is None)
        self.uniform = weighting == "uniform" or private or secure is not None
        self.seed = seed
        self.evaluate_on = evaluate_on
        self.observers = observers
        # The noise hides what a client changes by itself, not what it changes in how others are treated.
        # And a single change that is masked cannot be held to anything.
        self.limits = None if private or secure else limits or Limits()
        quorum = quorum or Quorum()
        self.quorum = replace(quorum, try_again=quorum.try_again and not private)
        self.codec = codec
        self.layout: ReplyLayout = layout or dict
        self.secure = secure
        self.metrics = metrics or {}
        self._members = Members(admission or Admission(), handshake, self._tell_joined)
        self._requests: dict[int, Request] = {}
        self._asked: dict[int, Request] = {}  # with those that secure aggregation left out
        self._secure_round: SecureRound | None = None
        self._said: dict[int, float] = {}  # by partition: the first count of examples
        self._told: set[int] = set()  # partitions of which it was said that metrics were dropped
        self._trained_in: dict[int, int] = {}  # by partition: the last round whose reply was averaged
        self._weight_key, self._needed_bit = weight_key(strategy), needed_bit(strategy)

    def is_private(self, name: str) -> bool:
        """Whether no message may have an array of this name; a subclass says."""
        return False

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
        weighting = "uniform" if self.uniform else f"by '{self._weight_key}'"
        log.info("\t├──> %s: weighting %s, seed %d", type(self).__name__, weighting, self.seed)
        if self.limits is None:
            why = "secure aggregation" if self.secure else "central privacy"
            log.info("\t├──> replies are not held to each other (max_change, clip_change): %s", why)
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
        return self._agreeing(server_round, messages)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy sample among the known partitions, as for training, when a round is evaluated."""
        if self.evaluate_on is not None and not self.evaluate_on(server_round):
            return self._sending([])
        members = MembersGrid(grid, self._members, server_round)
        with seeded(f"{self.seed} {server_round} evaluate"):
            return self._sending(super().configure_evaluate(server_round, arrays, config, members))

    def evaluate_untrained(
        self, arrays: ArrayRecord, config: ConfigRecord, grid: Grid, timeout: float
    ) -> MetricRecord | None:
        """Evaluate what is there before the first round, as round 0.

        Parameters
        ----------
        arrays, config, grid, timeout
            As those of Flower's `Strategy.start`.
        """
        messages = self.configure_evaluate(0, arrays, config, grid)
        return self.aggregate_evaluate(0, grid.send_and_receive(messages, timeout=timeout))

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
        if lack and self.quorum.try_again:
            log.warning("round %d: %s; trying once more", server_round, lack)
            valid, lack = self._trained(server_round, self._ask_again(server_round))
            tried = ", tried twice"
        if lack:
            raise RuntimeError(f"round {server_round}{tried}: {lack}")
        valid = self._opened(server_round, valid)
        for reply in valid:
            count = cast(float, scalars(reply.message)[self._weight_key])
            self._said.setdefault(reply.partition_id, count)
            self._trained_in[reply.partition_id] = server_round
        arrays, metrics = super().aggregate_train(server_round, self._take(server_round, "train", valid))
        if valid and arrays is None:
            name = type(self.strategy).__name__
            raise RuntimeError(f"round {server_round}: {name} gives no result for {len(valid)} valid replies")
        return arrays and as_sent(arrays, self._sent()), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Pass the valid replies on, in the order of their partitions; without any there is no result."""
        valid, _ = self._receive(server_round, "evaluate", replies)
        if not valid:
            return None
        return super().aggregate_evaluate(server_round, self._take(server_round, "evaluate", valid))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return what is known of each client from round to round: counts, rounds, places.

        Few arrays, however many clients there are: ``said`` and ``trained-in``, shape (clients, 2), have a
        row of partition and value for each that has one, its first count of examples and the last round
        whose reply was averaged; for the places see `Places`.
        """
        known: dict[str, Mapping[int, float]] = {"said": self._said, "trained-in": self._trained_in}
        kept = {name: np.array([*values.items()], np.float64) for name, values in known.items() if values}
        return kept | self._members.places.state_dict()

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Put back what `state_dict` returned."""
        self._said = dict(_pairs(state.get("said"), float))
        self._trained_in = dict(_pairs(state.get("trained-in"), int))
        self._members.places.load_state_dict(state)

    def _trained(self, server_round: int, replies: Iterable[Message]) -> tuple[list[Reply], str | None]:
        """Return the valid replies, and what they lack to be averaged."""
        valid, reasons = self._receive(server_round, "train", replies)
        secure = self._secure_round
        if secure:
            reasons = [*secure.out.values(), *reasons]
        lack = self.quorum.lack(len(self._asked), len(valid), reasons)
        if secure and (short := secure.lack(len(valid))):
            lack = f"{short}; {lack}" if lack else short
        return valid, lack

    def _ask_again(self, server_round: int) -> Iterable[Message]:
        """Send the round's message to as many clients as before, first to those who have not had it."""
        asked = self._asked
        content = next(iter(asked.values())).content
        there = list(MembersGrid(self._grid, self._members, server_round).get_node_ids())
        others = [node for node in there if node not in asked]
        with seeded(f"{self.seed} {server_round} again"):
            others = sample(others, min(len(others), len(asked)))
        nodes = (others + [node for node in there if node in asked])[: len(asked)]
        messages = [Message(content, dst_node_id=node, message_type=MessageType.TRAIN) for node in nodes]
        sent = self._agreeing(server_round, self._sending(messages))
        return self._grid.send_and_receive(sent, timeout=self.quorum.round_timeout)

    def _sending(self, messages: Iterable[Message]) -> list[Message]:
        """Check what is about to be sent, encode it, and remember it for the check of the replies."""
        messages, self._requests, self._secure_round = list(messages), {}, None
        encoded: dict[int, ArrayRecord] = {}  # mostly one record for all clients
        for message in messages:
            content = message.content
            records = dict(content.array_records)
            if len(records) != 1:
                raise ValueError(f"the strategy sends {len(records)} array records a message; one is allowed")
            ((key, arrays),) = records.items()
            if private := next(filter(self.is_private, arrays), None):
                raise ValueError(f"array '{private}' is private, and may not be sent")
            if self.codec:
                if id(arrays) not in encoded:
                    encoded[id(arrays)] = self.codec.encode(arrays)
                message.content = RecordDict({**content, key: encoded[id(arrays)]})
            shapes = shapes_of(arrays)
            layout = self.layout(shapes)
            if self.codec and layout != shapes:
                raise ValueError(
                    "a codec writes replies that are like what was sent; allowed: no codec, or no layout"
                )
            node = message.metadata.dst_node_id
            partition = self._members.partitions[node]
            message.content = self._for_one(message.content, node)
            self._requests[node] = Request(partition, content, message, layout)
        self._asked = self._requests
        return messages

    def _agreeing(self, server_round: int, messages: list[Message]) -> list[Message]:
        """Have the clients of a round exchange keys and shares, and leave out those who do not."""
        if not self.secure or not messages:
            return messages
        self._secure_round = SecureRound(
            self.secure, self._grid, self._asked, self._for_one, self.quorum.round_timeout
        )
        self._requests = self._secure_round.agree()
        self._report(server_round, "train", self._secure_round.out.items())
        return [request.message for request in self._requests.values()]

    def _opened(self, server_round: int, valid: list[Reply]) -> list[Reply]:
        """Have masked changes opened: each reply is then what their mean makes of what was sent."""
        if not self._secure_round or not valid:
            return valid
        try:
            opened, out = self._secure_round.open(valid)
        except RuntimeError as error:
            raise RuntimeError(f"round {server_round}: {error}") from None
        self._report(server_round, "train", out.items())
        return opened

    def _for_one(self, content: RecordDict, node: int) -> RecordDict:
        """Say beside the round what is for one client alone; the records of `content` stay as they are.

        That is what makes the message's id unguessable, the client's own word, and which round's state it
        should have.
        """
        partition_id = self._members.partitions[node]
        said: dict[str, str | int] = {**unguessable()}
        if word := self._members.word_of(node):
            said[SITE_WORD] = word
        # Without a handshake a partition is a rank, and no client's for good.
        if self._members.handshake and partition_id in self._trained_in:
            said["state-round"] = self._trained_in[partition_id]
        return saying(content, said)

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
            self.is_private,
        )
        self._report(server_round, phase, refused)
        return valid, [reason for _, reason in refused]

    def _report(self, server_round: int, phase: Phase, refused: Iterable[tuple[int, str]]) -> None:
        for partition_id, reason in refused:
            log.warning("round %d, %s: partition %d refused: %s", server_round, phase, partition_id, reason)
            if reason == UNKNOWN_WORD:
                self._members.ask_anew(partition_id, server_round)
            for observer in self.observers:
                observer.refused(server_round, phase, partition_id, reason)

    def _take(self, server_round: int, phase: Phase, valid: list[Reply]) -> list[Message]:
        """Report valid replies, and make them ready for the strategy."""
        for reply in valid:
            request = self._requests[reply.message.metadata.src_node_id]
            seen: dict[str, float | int] = {
                "bytes-down": request.travelling.count_bytes(),
                "bytes-up": reply.num_bytes,
            }
            if self._secure_round:
                for way, exchanged in self._secure_round.bytes_of(request.partition_id).items():
                    seen[way] += exchanged
            if phase == "train" and self._clips:
                seen["clipped"] = reply.clipped
            if reply.dropped:
                seen["metrics-dropped"] = len(reply.dropped)
                self._tell_dropped(server_round, phase, reply)
            measured = scalars(reply.message) | seen
            for observer in self.observers:
                observer.replied(server_round, phase, reply.partition_id, dict(measured))
        names = list(next(iter(self._requests.values())).layout) if phase == "train" and valid else []
        messages = [reply.message for reply in valid]
        return alike(messages, names, self._weight_key, self.uniform, self._most(phase, messages))

    def _most(self, phase: Phase, messages: list[Message]) -> float:
        """Return the largest weight that a reply may have."""
        if phase == "evaluate" or not messages or not self._clips:
            return inf
        return most_counted(cast(float, scalars(message)[self._weight_key]) for message in messages)

    def _tell_joined(self, answers: Mapping[int, Mapping[str, Any]]) -> None:
        for observer in self.observers:
            observer.joined(answers)

    def _tell_dropped(self, server_round: int, phase: Phase, reply: Reply) -> None:
        """Say once a client that it measures what does not count."""
        if reply.partition_id not in self._told:
            self._told.add(reply.partition_id)
            names = one_line(", ".join(map(repr, reply.dropped[:3])), 100)
            log.warning(
                "round %d, %s: partition %d sent metrics that are not allowed: %s;"
                " %d dropped, and later ones",
                server_round,
                phase,
                reply.partition_id,
                names,
                len(reply.dropped),
            )


def _pairs(rows: np.ndarray | None, kind: type[Number]) -> Iterator[tuple[int, Number]]:
    """Read back what `Checked.state_dict` wrote of one thing."""
    for partition, value in () if rows is None else rows:
        yield int(partition), kind(value)
