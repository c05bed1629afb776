"""How many valid replies a round of training needs."""

from collections.abc import Sequence
from dataclasses import dataclass

REASONS_TOLD = 3


@dataclass(frozen=True)
class Quorum:
    """The least that a round may be averaged from.

    Attributes
    ----------
    min_clients : int
        Valid replies needed.
    max_failure_rate : float
        Largest share of the clients asked that may give none, in [0, 1].
    try_again : bool
        False: a round without enough ends the run at once, so that no client answers it twice.
    round_timeout : float
        Seconds to wait for replies when a round is tried again; at first it is the `timeout` of `start`.
    """

    min_clients: int = 1
    max_failure_rate: float = 1.0
    try_again: bool = True
    round_timeout: float = 3600

    def lack(self, asked: int, valid: int, reasons: Sequence[str]) -> str | None:
        """Say in one line what is missing, with the `reasons` of the refusals; None if nothing is."""
        failed = asked - valid
        if not asked or (valid >= self.min_clients and failed <= self.max_failure_rate * asked):
            return None
        why = list(dict.fromkeys(reasons))
        more = f"; and {len(why) - REASONS_TOLD} other reasons" if len(why) > REASONS_TOLD else ""
        return (
            f"{valid} of {asked} clients gave a valid reply, with min_clients = {self.min_clients},"
            f" max_failure_rate = {self.max_failure_rate:g}: {'; '.join(why[:REASONS_TOLD])}{more}"
        )
