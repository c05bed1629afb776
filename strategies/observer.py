"""What a run's record is told of each reply."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

Phase = Literal["train", "evaluate"]


class RoundObserver(Protocol):
    """Whoever keeps the record of a run; called in the order of the partitions."""

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
