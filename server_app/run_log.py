"""The record of a run, kept in its folder as it goes."""

import json
import logging
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from app.files import write_atomically
from app.settings import Settings, SettingsError, feddat_home
from strategies import one_line

from .report import progress_line
from .rows import SERVER

log = logging.getLogger("flwr")  # Flower's own logger: what it gets is in `flwr log`

# What a client says of its data in the handshake and every row of it repeats; and what else it says.
FACTS = {"name": "", "text-only": 0.0, "unanswerable": 0.0}
COUNTS = {"natural-partitions": 0, "skipped": 0}


class RunLog:
    """Collects one row a round and client, writes ``settings.json`` and ``metrics.jsonl``.

    It observes the strategy (`strategies.RoundObserver`).

    Parameters
    ----------
    settings : Settings
        The run's settings. An empty run-name becomes benchmark, method and time.
    facts : Mapping
        What else to keep in ``settings.json``: fingerprints, versions.

    Raises
    ------
    SettingsError
        If a run of that name is there already.
    """

    def __init__(self, settings: Settings, facts: Mapping[str, Any]) -> None:
        self.settings = settings
        self.name = (
            settings.run_name or f"{settings.benchmark}-{settings.method}-{datetime.now():%Y%m%d-%H%M%S}"
        )
        self.folder: Path = feddat_home() / "runs" / self.name
        if self.folder.exists():
            raise SettingsError(
                f"run-name = {self.name!r} is taken: {self.folder}; "
                f"allowed: another name, or '' for one made of the time"
            )
        # Tells this run from another of its name, at clients that keep private states of both.
        self.token = secrets.token_hex(16)
        self.facts = {
            **settings.model_dump(by_alias=True),
            **facts,
            "run-name": self.name,
            "run-token": self.token,
        }
        self.rows: list[dict[str, Any]] = []
        self._facts: dict[int, dict[str, Any]] = {}
        self._round: dict[int, dict[str, Any]] = {}
        self._started = time.monotonic()

    def open(self) -> None:
        """Make the folder, with ``settings.json``; before that a run leaves nothing behind."""
        self.folder.mkdir(parents=True)
        write_atomically(self.folder / "settings.json", json.dumps(self.facts, indent=2) + "\n")

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def joined(self, answers: Mapping[int, Mapping[str, Any]]) -> None:
        """Note who takes part, and say so if the benchmark has more clients than there are nodes."""
        said = {partition: _said(partition, answer) for partition, answer in sorted(answers.items())}
        self._facts |= {
            partition: {"partition": partition, **{key: answer[key] for key in FACTS}}
            for partition, answer in said.items()
        }
        natural = max(answer["natural-partitions"] for answer in said.values())
        nodes = len(self._facts)
        if nodes < natural:
            log.info(
                "the benchmark has %d clients and is cut to the first %d, as many as there are nodes; "
                'for all of them: flwr run . --federation-config "num-supernodes=%d"',
                natural,
                nodes,
                natural,
            )
        log.info(
            "%s: %d clients: %s",
            self.settings.benchmark,
            nodes,
            ", ".join(fact["name"] for fact in self._facts.values()),
        )
        for answer in said.values():
            if unanswerable := answer["unanswerable"]:
                log.info(
                    "%s: %.1f %% of the test questions have an answer that is not in the client's list",
                    answer["name"],
                    100 * unanswerable,
                )
            if skipped := answer["skipped"]:
                log.warning("%s: %d rows that cannot be read were skipped", answer["name"], skipped)

    def replied(
        self, server_round: int, phase: str, partition_id: int, metrics: Mapping[str, float | int]
    ) -> None:
        """Add what a client measured to its row of the round."""
        row = self._round.setdefault(partition_id, {})
        for key, value in metrics.items():
            both_ways = key in ("bytes-down", "bytes-up")
            # An evaluation counts its examples too; a row's are those trained on.
            if key != "num-examples" or phase == "train":
                row[key] = row.get(key, 0) + value if both_ways else value
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
        """Add a row of what the server measured itself."""
        self._round[SERVER] = {"round": server_round, "partition": SERVER, **metrics}

    def refused(self, server_round: int, phase: str, partition_id: int, reason: str) -> None:
        """Add a row for a reply that did not count."""
        self._write(
            [{"round": server_round, "partition": partition_id, "phase": phase, "refused": reason}],
        )

    def end_round(self, server_round: int) -> None:
        """Write the round's rows and say how far the run is."""
        self._write([self._round[partition] for partition in sorted(self._round)])
        self._round = {}
        log.info("%s", progress_line(self.rows, server_round, self.settings.num_rounds, self.seconds))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.rows += rows
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows)


def _said(partition: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Take what a client says of itself where it is what is expected, else a default."""
    said = {
        key: answer[key] if type(answer.get(key)) is type(default) else default
        for key, default in (FACTS | COUNTS).items()
    }
    return {**said, "name": one_line(said["name"], 60) or f"partition {partition}"}


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not know."""
    return {
        key: None if isinstance(value, float) and not isfinite(value) else value for key, value in row.items()
    }
