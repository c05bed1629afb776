"""Secure aggregation: the server learns the sum of a round's changes, and no single one.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
https://eprint.iacr.org/2017/281, figure 4 without signatures, as exchanges of Flower's messages:

===== ==================================== ==============================================================
step  sent                                 answered
===== ==================================== ==============================================================
keys  which round, which attempt           public keys, made for it
deal  all parties' keys, how many shares   shares of its two secrets, sealed for each other party, and their
      open a secret                        digests
train who dealt, what they sealed for it   masked change
open  whose changes came                   its shares: of the masks of these, of the keys of all others
===== ==================================== ==============================================================

All but training are messages of the type `MESSAGE_TYPE`, with the step in their config. Here is the server's
side of the exchange; the arithmetic is whoever's `SecureSum` it is given.
"""

import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol, cast

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum, QFedAvg, Strategy

from .combined import Combined
from .wrapper import is_private_mean, layers

log = logging.getLogger("flwr")

MESSAGE_TYPE = "query.secure_aggregation"
LEAST_PARTIES = 3  # a sum of two tells each of them the other's
NO_SUM = "secure aggregation opens no sum"
CHOOSERS = (FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan, QFedAvg, Combined)

Said = Mapping[str, Any]
Reasons = dict[int, str]
# What each partition is told → its answer, and why others have none, by partition.
Ask = Callable[[Mapping[int, Said]], tuple[Mapping[int, ConfigRecord], Reasons]]


class SecureSum(Protocol):
    """Whoever knows the arithmetic of keys, shares and masks; a fault is one line, None for none."""

    @property
    def most(self) -> int:
        """How many changes can be added up."""

    def expected(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return arrays of the names, shapes, dtypes, `stype` and lengths that a masked reply has."""

    def fault_in_keys(self, *keys: object) -> str | None:
        """Say what is wrong with public keys."""

    def fault_in_shares(self, sealed: object, digests: object, place: int, parties: int) -> str | None:
        """Say what is wrong with what the party at a place deals."""

    def is_share(self, share: object, known: bytes) -> bool:
        """Whether this is the share of which the digest is known."""

    def mean(
        self,
        sent: ArrayRecord,
        masked: Mapping[int, ArrayRecord],
        said: Said,
        dealers: Sequence[int],
        shares: Mapping[int, Mapping[int, bytes]],
    ) -> ArrayRecord:
        """Return what was sent plus the mean of the changes; ValueError if it cannot be had.

        `shares` are by dealer and holder, of one secret of each dealer: of the one for its own mask if it is
        in `masked`, else of the one for its key.
        """


@dataclass(frozen=True)
class Agreed:
    """What the parties of a round have agreed on before they train.

    Attributes
    ----------
    said : Mapping
        What all of them were told.
    dealt : Mapping[int, ConfigRecord]
        What each dealt, by partition.
    """

    said: Said
    dealt: Mapping[int, ConfigRecord]

    @property
    def dealers(self) -> list[int]:
        """The partitions that dealt, ascending."""
        return sorted(self.dealt)

    @property
    def threshold(self) -> int:
        """How many must answer."""
        return int(self.said["threshold"])

    def place(self, partition: int) -> int:
        """Return which of the parties it is."""
        return int(self.said["parties"].index(partition))

    def for_training(self, partition: int) -> dict[str, Any]:
        """Return what a party is told besides, when it trains."""
        own = self.place(partition)
        sealed = [cast(list[bytes], self.dealt[dealer]["sealed"])[own] for dealer in self.dealers]
        return {"attempt": self.said["attempt"], "dealers": self.dealers, "sealed": sealed}

    def known(self, dealer: int, holder: int, *, key: bool) -> bytes:
        """Return the digest of a share: of the key's secret, or of its own mask's."""
        digests = cast(list[bytes], self.dealt[dealer]["digests"])
        return digests[self.place(holder) + key * len(self.said["parties"])]


class SecureAggregation:
    """The server's side of secure aggregation, for `Checked`.

    Parameters
    ----------
    secure_sum : SecureSum
        The arithmetic.
    threshold : float
        Share of the parties, in (0.5, 1], without which nothing is opened: so many must answer to the end,
        and so many may not tell the server their secrets.

    Raises
    ------
    ValueError
        The threshold is none.
    """

    def __init__(self, secure_sum: SecureSum, threshold: float = 0.66) -> None:
        if not 0.5 < threshold <= 1:
            raise ValueError(f"threshold is {threshold!r}; allowed: more than 0.5, at most 1")
        self.secure_sum = secure_sum
        self.threshold = threshold

    def check(self, strategy: Strategy, weighting: str | None, handshake: bool, *, alike: bool) -> None:
        """Raise a ValueError for what a mean is not enough for; `alike`: replies are like what is sent."""
        if chooser := next((layer for layer in layers(strategy) if isinstance(layer, CHOOSERS)), None):
            raise ValueError(
                f"{type(chooser).__name__} looks at single replies, and secure aggregation tells their mean"
                " alone; allowed: what goes on from a mean"
            )
        if is_private_mean(strategy):
            raise ValueError(
                "central differential privacy clips single changes, and secure aggregation tells their mean"
                " alone; allowed: noise at the clients"
            )
        if weighting == "num-examples":
            raise ValueError(
                f"weighting is {weighting!r}; allowed under secure aggregation: 'uniform', since nobody could"
                " bound what a client's own count adds to a sum"
            )
        if not handshake:
            raise ValueError(
                "handshake is False; allowed under secure aggregation: True, since each client must know by"
                " which partition the others know it"
            )
        if not alike:
            raise ValueError(
                "under secure aggregation a reply has one whole number for each that was sent; allowed: no"
                " codec, no layout"
            )

    def needed(self, parties: int) -> int:
        """Return how many of so many parties open a secret: always more than half, and no two."""
        return max(ceil(self.threshold * parties - 1e-9), parties // 2 + 1, LEAST_PARTIES)

    def agree(self, partitions: Collection[int], about: Said, ask: Ask) -> tuple[Agreed | None, Reasons]:
        """Have parties exchange keys and shares.

        Parameters
        ----------
        partitions : Collection[int]
            Who is asked.
        about : Mapping
            What they are told of the run and the round.
        ask : callable
            Sends, and collects what comes back.

        Returns
        -------
        Agreed or None
            None if too few are left.
        dict[int, str]
            Why those who are not in it are not.
        """
        said = {**about, "attempt": secrets.token_hex(16)}
        keys, out = self._valid(
            ask({partition: {**said, "step": "keys"} for partition in partitions}),
            lambda _, answer: self.secure_sum.fault_in_keys(*map(answer.get, ("mask-key", "channel-key"))),
        )
        if len(keys) > self.secure_sum.most:
            raise RuntimeError(
                f"{len(keys)} clients, of whom {self.secure_sum.most} can be added up; allowed: fewer,"
                " or fewer bits (in a run-config: fraction-train, secure.bits)"
            )
        parties = sorted(keys)
        if len(parties) < LEAST_PARTIES:
            return None, out
        said |= {
            "threshold": self.needed(len(parties)),
            "parties": parties,
            "mask-keys": [keys[party]["mask-key"] for party in parties],
            "channel-keys": [keys[party]["channel-key"] for party in parties],
        }
        dealt, silent = self._valid(
            ask({party: {**said, "step": "deal"} for party in parties}),
            lambda party, answer: self.secure_sum.fault_in_shares(
                answer.get("sealed"), answer.get("digests"), parties.index(party), len(parties)
            ),
        )
        agreed = Agreed(said, dealt)
        return (agreed if len(dealt) >= agreed.threshold else None), out | silent

    def lack(self, agreed: Agreed | None, valid: int) -> str | None:
        """Say in one line what is missing for a sum; None if nothing is."""
        if agreed is None:
            return f"{NO_SUM}: too few clients exchanged keys and shares"
        if valid < agreed.threshold:
            return f"{NO_SUM}: {valid} masked changes came, {agreed.threshold} are needed"
        return None

    def open(
        self, agreed: Agreed, sent: ArrayRecord, masked: Mapping[int, ArrayRecord], about: Said, ask: Ask
    ) -> tuple[ArrayRecord, Reasons]:
        """Have those whose changes came open their sum; return the new arrays, and who gave no shares.

        Raises
        ------
        RuntimeError
            Too few gave shares, or the sum is none. No other sum of this round can be opened.
        """
        came, dealers = sorted(masked), agreed.dealers
        said = {**about, "attempt": agreed.said["attempt"], "step": "open", "came": came}
        shares: dict[int, dict[int, bytes]] = {dealer: {} for dealer in dealers}

        def take(holder: int, answer: ConfigRecord) -> str | None:
            given = answer.get("shares")
            if not isinstance(given, list) or len(given) != len(dealers):
                return f"it gives no {len(dealers)} shares"
            for dealer, share in zip(dealers, given, strict=True):
                if share == b"":
                    continue  # what it was sealed it could not read
                if not self.secure_sum.is_share(
                    share, agreed.known(dealer, holder, key=dealer not in masked)
                ):
                    return f"its share of partition {dealer}'s secret is not the one that was dealt"
                shares[dealer][holder] = cast(bytes, share)
            return None

        _, out = self._valid(ask(dict.fromkeys(came, said)), take)
        for dealer, held in shares.items():
            if len(held) < agreed.threshold:
                why = "; ".join(dict.fromkeys(out.values()))
                raise RuntimeError(
                    f"{NO_SUM}: {len(held)} shares of partition {dealer}'s secret came, {agreed.threshold}"
                    f" are needed{f': {why}' if why else ''}"
                )
        try:
            return self.secure_sum.mean(sent, masked, agreed.said, agreed.dealers, shares), out
        except ValueError as error:
            raise RuntimeError(f"{NO_SUM}: {error}") from None

    @staticmethod
    def _valid(
        answered: tuple[Mapping[int, ConfigRecord], Reasons],
        fault: Callable[[int, ConfigRecord], str | None],
    ) -> tuple[dict[int, ConfigRecord], Reasons]:
        answers, out = answered
        faults = {party: fault(party, answer) for party, answer in answers.items()}
        good = {party: answer for party, answer in answers.items() if faults[party] is None}
        return good, out | {party: reason for party, reason in faults.items() if reason}
