"""What all trackers have in common: which numbers they are given, and that none of them ends a run."""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from hashlib import sha256
from math import isfinite
from typing import Any, ClassVar

import numpy as np

from strategies import RoundObserver

from ..rows import RESERVED, SERVER, Rows, names_of
from ..run_log import RunLog

log = logging.getLogger("flwr")


class Tracker(RoundObserver, ABC):
    """Hands each round's rows on, once they are in the run's own record.

    What a tool raises is said once, and the run goes on without it. Nothing is opened before the first round
    is over, so that a run that does not begin leaves nothing in it.

    Parameters
    ----------
    run : RunLog
        Whose rows; it must be told of a round's end first.

    Attributes
    ----------
    name : str
        The value of the setting `tracker`, and of the package that it needs.
    """

    name: ClassVar[str]

    def __init__(self, run: RunLog) -> None:
        self.run = run
        self._done, self._begun, self._failed = 0, False, False

    @property
    def settings(self) -> dict[str, Any]:
        """What ``settings.json`` holds but the run's token, by which clients know it."""
        return {key: value for key, value in self.run.facts.items() if key != "run-token"}

    @property
    def identity(self) -> str:
        """The same for a run that goes on; 32 hexadecimal digits."""
        return sha256(self.run.token.encode()).hexdigest()[:32]

    @abstractmethod
    def begin(self, done: int) -> None:
        """Open the run in the tool; `done` rounds were there before, where it goes on."""

    @abstractmethod
    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Hand over the round's numbers by name, ``<measurement>/<client>``."""

    @abstractmethod
    def end(self, well: bool) -> None:
        """Close the run in the tool; it ended well, or it failed."""

    def run_began(self, name: str, settings: Mapping[str, Any], done: int) -> None:
        """Note how many rounds are over."""
        self._done = done

    def round_ended(self, server_round: int) -> None:
        """Hand the round over."""
        rows = [row for row in self.run.rows if row["round"] == server_round]
        if not self._begun:
            self._begun = True
            self._try("begin", self._done)
        self._try("log", server_round, values_of(rows, names_of(self.run.rows)))

    def run_ended(self, error: BaseException | None) -> None:
        """Close what was opened."""
        if self._begun:
            self._try("end", error is None)

    def _try(self, what: str, *given: Any) -> None:
        if self._failed:
            return
        try:
            getattr(self, what)(*given)
        except Exception as error:
            self._failed = True
            log.warning("tracker = %r failed, and the run goes on without it: %r", self.name, error)


def values_of(rows: Rows, names: Mapping[int, str]) -> dict[str, float]:
    """Return a round's numbers by name: each client's, the mean of each, how many replies did not count.

    Names hold letters, digits and ``_-. /`` alone, which all tools take.
    """
    values: dict[str, float] = {}
    of: dict[str, list[float]] = {}
    for row in rows:
        partition = row["partition"]
        known = re.sub(r"[^A-Za-z0-9_. -]", "_", names.get(partition, ""))
        who = "server" if partition == SERVER else f"{partition} {known}"
        for key, value in row.items():
            if key not in RESERVED and isinstance(value, int | float) and isfinite(value):
                values[f"{key}/{who}"] = float(value)
                of.setdefault(key, []).append(float(value))
    means = {f"{key}/mean": float(np.mean(own)) for key, own in of.items()}
    return values | means | {"refused/replies": float(sum("refused" in row for row in rows))}
