"""How far a run's round is, in a file, for whoever started the run on this machine and shows it."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from strategies import RoundObserver

# Names the file; without it there is none.
VARIABLE = "FEDDAT_PROGRESS"


def progress(grid: Grid) -> list[RoundObserver]:
    """Return who keeps the file, if one is asked for."""
    path = os.environ.get(VARIABLE)
    return [Progress(Path(path), grid)] if path else []


class Progress(RoundObserver):
    """Keeps ``{"round", "phase", "asked", "replied"}`` of what clients are doing.

    Parameters
    ----------
    path : Path
        The file; it is replaced, so that it is always whole.
    grid : Grid
        By which messages go and replies come; observers are told of those when all are there.
    """

    def __init__(self, path: Path, grid: Grid) -> None:
        self.path = path
        self.round, self.phase, self.asked, self.replied_now = 0, "", 0, 0
        self._trained = False
        push, pull = grid.push_messages, grid.pull_messages

        def push_messages(messages: Iterable[Message]) -> Iterable[str]:
            sent = list(messages)
            if sent:
                self.phase, self.asked, self.replied_now = sent[0].metadata.message_type, len(sent), 0
                self._trained |= self.phase == "train"
                self._write()
            return push(sent)

        def pull_messages(message_ids: Iterable[str]) -> Iterable[Message]:
            came = list(pull(message_ids))
            if came:
                self.replied_now += len(came)
                self._write()
            return came

        # Its own `send_and_receive` calls them. No grid around it: Flower's kind of grid is asked for.
        grid.push_messages, grid.pull_messages = push_messages, pull_messages  # type: ignore[method-assign]

    def run_began(self, name: str, settings: Mapping[str, Any], done: int) -> None:
        """Begin with the round after those that are over."""
        self.round = done + 1

    def round_ended(self, server_round: int) -> None:
        """Go to the next round."""
        self.round, self.phase, self.asked, self.replied_now = server_round + 1, "", 0, 0
        self._write()

    def _write(self) -> None:
        now = {
            # What is evaluated before anything was trained is before the first round.
            "round": 0 if self.phase == "evaluate" and not self._trained else self.round,
            "phase": self.phase,
            "asked": self.asked,
            "replied": self.replied_now,
        }
        draft = self.path.with_name(f"{self.path.name}.new")
        draft.write_text(json.dumps(now), encoding="utf-8")
        draft.replace(self.path)
