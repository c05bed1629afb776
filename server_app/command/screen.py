"""What a person sees of a run that goes: lines, and in a terminal a bar for the round and its clients."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

# How much of a round is over when its training is, if an evaluation follows.
_TRAINING = 0.8
_DOING = {"query": "asking who is there", "train": "training", "evaluate": "evaluating"}


@contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Say what is done before there is a screen: beside a spinner that goes away, or in a line."""
    console = Console(highlight=False)
    if _moves(console):
        with console.status(doing):
            yield
    else:
        console.print(doing)
        yield


def _moves(console: Console) -> bool:
    return console.is_terminal and not os.environ.get("NO_COLOR")


class Screen(AbstractContextManager["Screen"]):
    """Shows lines, and a bar where there is a terminal and colours are wanted.

    Parameters
    ----------
    num_rounds, evaluate_every : int
        The run's settings.
    """

    def __init__(self, num_rounds: int, evaluate_every: int) -> None:
        self.console = Console(highlight=False)
        self.rounds, self.every = num_rounds, evaluate_every
        self._bar: Progress | None = None
        if _moves(self.console):
            text = TextColumn("{task.description}")
            columns = (SpinnerColumn(), text, BarColumn(20), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("starting", total=num_rounds)
        self._shown: AbstractContextManager[Any] = self._bar or nullcontext()

    def __enter__(self) -> "Screen":
        self._shown.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._shown.__exit__(*error)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Say at once that Ctrl-C was heard: to end what was started takes a while."""
        try:
            yield
        except KeyboardInterrupt:
            self.line("stopping")
            raise

    def line(self, text: str) -> None:
        """Show a line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def clients(self, now: dict[str, Any]) -> None:
        """Show how far the round is, by what `server_app.progress` keeps."""
        if self._bar is None or not now:
            return
        current, asked, replied = now["round"], now["asked"], now["replied"]
        share = replied / asked if asked and now["phase"] != "query" else 0.0
        if current % self.every == 0 or current == self.rounds:
            share = _TRAINING + (1 - _TRAINING) * share if now["phase"] == "evaluate" else _TRAINING * share
        where = f"round {current}/{self.rounds}: " if 0 < current <= self.rounds else ""
        doing = "writing the result and its report" if current > self.rounds else _DOING.get(now["phase"], "")
        counted = f" {replied}/{asked} clients" if asked else ""
        # Never all of them: what a finished bar shows stands still.
        done = min(max(current - 1, 0) + (share if where else 0), self.rounds - 0.01)
        self._bar.update(self._task, description=f"{where}{doing}{counted}", completed=done)
