"""What whoever keeps a run's record, or shows it, is told."""

from collections.abc import Mapping
from typing import Any, Literal

Phase = Literal["train", "evaluate"]


class RoundObserver:
    """Told of a run as it goes, of replies in the order of the partitions; a subclass writes what it needs.

    Strategies tell of nodes, replies and measurements. The run's beginning and end, and a round's end, are
    known to whoever starts them, and told by them.
    """

    def run_began(self, name: str, settings: Mapping[str, Any], done: int) -> None:
        """Take the run's name, its settings, and how many rounds are over: more than 0 when it goes on."""

    def run_ended(self, error: BaseException | None) -> None:
        """Take why the run ended; None: it went well."""

    def round_ended(self, server_round: int) -> None:
        """Note that there is nothing more to be told of a round."""

    def joined(self, answers: Mapping[int, Mapping[str, Any]]) -> None:
        """Take what newly admitted nodes say of themselves in the handshake, by partition."""

    def replied(
        self, server_round: int, phase: Phase, partition_id: int, metrics: dict[str, float | int]
    ) -> None:
        """Take a client's metrics, with those `OF_THE_SERVER` (see `strategies.metrics`) as it counted."""

    def refused(self, server_round: int, phase: Phase, partition_id: int, reason: str) -> None:
        """Take the reason why a reply does not count; the partition is -1 when the sender was not asked."""

    def measured(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Take what the server measured itself."""
