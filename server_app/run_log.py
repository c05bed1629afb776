"""The record of a run, kept in its folder as it goes."""

import json
import logging
import os
import re
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from math import inf, isfinite
from pathlib import Path
from typing import Any

from app.files import write_atomically
from app.measurements import SAID
from app.settings import RUN_NAME, Settings, SettingsError, feddat_home
from strategies import RoundObserver, one_line
from strategies.observer import Phase

from .kept_rows import read_rows
from .report import progress_line
from .rows import RESERVED, SERVER, TEST_EXAMPLES, best_of, is_scored, median_scores

log = logging.getLogger("flwr")  # Flower's own logger: what it gets is in `flwr log`

# What a client says of its data in the handshake and every row of it repeats; and what else it says.
FACTS = {"name": "", "text-only": 0.0, "unanswerable": 0.0}
COUNTS = {"natural-partitions": 0, "skipped": 0}


class RunLog(RoundObserver):
    """Collects one row a round and client, keeps ``settings.json`` and ``metrics.jsonl``.

    Parameters
    ----------
    settings : Settings
        The run's settings. An empty run-name becomes benchmark, method and time.
    facts : Mapping
        What else to keep in ``settings.json``: fingerprints, versions.
    kept : Mapping, optional
        ``settings.json`` of the run that goes on. What is in it stays, but for the settings that changed.

    Raises
    ------
    SettingsError
        If a run of that name is there already and is not to go on.
    """

    def __init__(
        self, settings: Settings, facts: Mapping[str, Any], kept: Mapping[str, Any] | None = None
    ) -> None:
        self.settings = settings
        made = f"{settings.benchmark}-{settings.method}-{datetime.now():%Y%m%d-%H%M%S}"
        self.name = settings.resume or settings.run_name or made
        self.folder: Path = feddat_home() / "runs" / self.name
        if kept is None and self.folder.exists():
            raise SettingsError(
                f"run-name = {self.name!r} is taken: {self.folder}; "
                f"allowed: another name, or '' for one made of benchmark, method and time"
            )
        given = settings.run_config()
        # The token tells this run from another of its name, at clients that keep private states of both.
        first = {**facts, "run-token": secrets.token_hex(16), **(kept or {})}
        self.facts: dict[str, Any] = {**given, **first, **given, "run-name": self.name, "resume": ""}
        # Clients know the run by its first name, also when its folder has got another.
        begun_as = first.get("begun-as") or first.get("run-name")
        if isinstance(begun_as, str) and re.fullmatch(RUN_NAME, begun_as) and begun_as != self.name:
            self.facts["begun-as"] = begun_as
        self.rows: list[dict[str, Any]] = []
        # A round looks at its own rows and this: what all rounds before it have takes ever longer to read.
        self._new: list[dict[str, Any]] = []
        self._medians: dict[int, float] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        self._round: dict[int, dict[str, Any]] = {}
        self._done = 0
        self._started = time.monotonic()

    @property
    def settings_json(self) -> str:
        """Content of ``settings.json``."""
        return json.dumps(self.facts, indent=2) + "\n"

    def note(self, **facts: Any) -> None:
        """Keep more facts in ``settings.json``."""
        self.facts |= facts
        write_atomically(self.folder / "settings.json", self.settings_json)

    def reopen(self, last_round: int) -> None:
        """Go on after a round: cut off the rows of later ones, which will be run again."""
        self._done = last_round
        self.note(**{"resumed-after": [*self.facts.get("resumed-after", []), last_round]})
        metrics = self.folder / "metrics.jsonl"
        self.rows, wrong = read_rows(metrics, last_round)
        if last_round == 0 and not any(map(is_scored, self.rows)):
            self.rows = []  # refusals of an evaluation that is asked for again
        if wrong:
            log.warning("%s: %s; the run goes on with the other rows", metrics, wrong)
        self._medians = median_scores(self.rows)
        write_atomically(metrics, _lines(self.rows))
        # The report is written last: it marks a run that is finished.
        (self.folder / "report.md").unlink(missing_ok=True)

    def best_round(self, until: int) -> int | None:
        """Return the best round up to `until`, see `rows.best_of`."""
        return best_of(self._medians, until)

    @property
    def known_as(self) -> str:
        """Name under which clients keep their states of the run: its first."""
        return str(self.facts.get("begun-as", self.name))

    @property
    def token(self) -> str:
        """Identity of the run, the same after it was resumed."""
        return self.facts["run-token"]

    @property
    def seconds(self) -> float:
        """Seconds since the run began, or was resumed."""
        return time.monotonic() - self._started

    def joined(self, answers: Mapping[int, Mapping[str, Any]]) -> None:
        """Note who takes part, and say so if the benchmark has more clients than there are nodes."""
        said = {partition: _said(partition, answer) for partition, answer in sorted(answers.items())}
        self._facts |= {
            partition: {"partition": partition, **{key: answer[key] for key in FACTS if key in answer}}
            for partition, answer in said.items()
        }
        natural = max(answer["natural-partitions"] for answer in said.values())
        nodes = len(self._facts)
        if nodes < natural:
            log.info(
                "the benchmark has %d clients and is cut to the first %d, as many as there are nodes%s",
                natural,
                nodes,
                ""
                if self.settings.num_clients
                else '; for all of them, in a simulation: flwr run . --federation-config "num-supernodes='
                f'{natural}"',
            )
        log.info(
            "%s: %d clients: %s",
            self.settings.benchmark,
            nodes,
            ", ".join(fact["name"] for fact in self._facts.values()),
        )
        for answer in said.values():
            if unanswerable := answer.get("unanswerable"):
                log.info(
                    "%s: %.1f %% of the questions scored have an answer that is not in the client's list",
                    answer["name"],
                    100 * unanswerable,
                )
            if skipped := answer["skipped"]:
                log.warning("%s: %d rows that cannot be read were skipped", answer["name"], skipped)

    def replied(
        self, server_round: int, phase: Phase, partition_id: int, metrics: Mapping[str, float | int]
    ) -> None:
        """Add what a client measured to its row of the round."""
        row = self._round.setdefault(partition_id, {})
        for key, value in metrics.items():
            if key == "num-examples" and phase == "evaluate":
                key = TEST_EXAMPLES
            summed = key in ("bytes-down", "bytes-up", "metrics-dropped")
            if key not in RESERVED:
                row[key] = row.get(key, 0) + value if summed else value
        if "state-recovered" in metrics:
            log.warning(
                "round %d, %s: partition %d lost its newest private state and went on from an earlier one",
                server_round,
                phase,
                partition_id,
            )
        # Last, so that no client can write another's row.
        row.update({"round": server_round, **self._facts[partition_id]})

    def measured(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Add what the server measured itself to its own row of the round."""
        self._round.setdefault(SERVER, {"round": server_round, "partition": SERVER}).update(metrics)

    def refused(self, server_round: int, phase: Phase, partition_id: int, reason: str) -> None:
        """Add a row for a reply that did not count."""
        self._write(
            [{"round": server_round, "partition": partition_id, "phase": phase, "refused": reason}],
        )

    def round_ended(self, server_round: int) -> None:
        """Write the round's rows and say how far the run is."""
        self._write([self._round[partition] for partition in sorted(self._round)])
        self._round = {}
        total = self.settings.num_rounds
        log.info("%s", progress_line(self._new, server_round, total, self.seconds, self._done))
        self._medians |= median_scores(self._new)
        self._new = []

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.rows += rows
        self._new += rows
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(_lines(rows))
            # A checkpoint on the disk vouches for the rows of its round.
            file.flush()
            os.fsync(file.fileno())


def _said(partition: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Take what a client says of itself where it is what is expected; a count that it does not say is 0."""

    def is_expected(key: str, value: Any, default: Any) -> bool:
        low, high = SAID.get(key, (-inf, inf))
        return type(value) is type(default) and (isinstance(value, str) or low <= value <= high)

    good = {
        key: answer[key]
        for key, default in (FACTS | COUNTS).items()
        if is_expected(key, answer.get(key), default)
    }
    return {**COUNTS, **good, "name": one_line(good.get("name", ""), 60) or f"partition {partition}"}


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not know."""
    return {
        key: None if isinstance(value, float) and not isfinite(value) else value for key, value in row.items()
    }
