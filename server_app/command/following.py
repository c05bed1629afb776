"""A run of Flower's from its start to its end, by what `flwr` says of it."""

import json
import queue
import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .processes import end
from .refusal import Refusal

_COLOR = re.compile(r"\x1b\[[\d;]*m")
_STARTED = re.compile(r"Successfully started run (\d+)")
# Of a run's log, what a person wants to see while it goes.
_TOLD = re.compile(
    r"(round \d+/\d+: .*|round \d+, \w+: partition -?\d+ refused: .*|round \d+: .* trying once more"
    r"|client [^:]*: \d+ of \d+ test questions have .*|[^:]*: \d+ rows that cannot be read .*"
    r"|the benchmark has \d+ clients and is cut to .*"
    r"|[\w-]+: \d+ clients: .*|waiting for nodes: .*|privacy: .*)$"
)
# `flwr ls` says it before the reason.
_FAILED = re.compile(r"^\w+ failed with exception: ")


class FlowerRun:
    """One run, followed through the command ``flwr``.

    Parameters
    ----------
    flwr : str
        The program.
    superlink : str
        Name of the connection in FLWR_HOME.
    machine : Mapping
        Environment of the program.
    """

    def __init__(self, flwr: str, superlink: str, machine: Mapping[str, str]) -> None:
        self.flwr, self.superlink, self.machine = flwr, superlink, {**machine, "PYTHONUNBUFFERED": "1"}
        self.run_id = ""

    def follow(
        self,
        app: Path,
        options: Sequence[str],
        log: IO[str],
        told: Callable[[str], None],
        meanwhile: Callable[[], None],
    ) -> None:
        """Start the run and return when it is over.

        Parameters
        ----------
        app : Path
            The app's folder.
        options : sequence of str
            More options of ``flwr run``.
        log : file
            Gets all lines of the run's log.
        told : callable
            Gets those for a person.
        meanwhile : callable
            Called twice a second; what it raises ends the waiting.
        """
        process = subprocess.Popen(
            (self.flwr, "run", str(app), self.superlink, "--stream", *options),
            env=self.machine,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        assert process.stdout
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        said: list[str] = []
        try:
            while True:
                try:
                    line = lines.get(timeout=0.5)
                except queue.Empty:
                    meanwhile()
                    continue
                if line is None:
                    break
                log.write(f"{line}\n")
                log.flush()
                if not self.run_id:
                    said.append(line)
                    if started := _STARTED.search(line):
                        self.run_id = started[1]
                elif found := _TOLD.search(line):
                    told(found[1])
                meanwhile()
        finally:
            end(process, grace=2.0)
        meanwhile()
        if not self.run_id:
            raise Refusal(f"Flower does not start the run: {' '.join(said[-8:])[-500:]}")

    def reason(self) -> str | None:
        """Return why the run failed; None: it did not."""
        (run,) = self._ask("ls", self.superlink, "--run-id", self.run_id)["runs"]
        if run["status"] == "finished:completed":
            return None
        return _FAILED.sub("", run["status-details"] or "") or f"the run is {run['status']}"

    def stop(self) -> None:
        """Stop the run at its SuperLink."""
        if self.run_id:
            self._ask("stop", self.run_id, self.superlink)

    def _ask(self, *arguments: str) -> dict[str, Any]:
        command = (self.flwr, *arguments, "--format", "json")
        asked = subprocess.run(
            command, env=self.machine, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        try:
            return dict(json.loads(asked.stdout))
        except ValueError:
            said = (asked.stderr or asked.stdout).strip()[-500:]
            raise Refusal(f"flwr {arguments[0]} does not answer: {said}") from None


def _read(stream: IO[str], lines: "queue.Queue[str | None]") -> None:
    for line in stream:
        lines.put(_COLOR.sub("", line.rstrip()))
    lines.put(None)
