"""Flower's own programs as real processes, for those who measure or test whole runs."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server_app.command.processes import QUIET, end, free_port, stopped_by_signals, wait_for

# A Flower app that does nothing: what Flower takes by itself.
EMPTY_APP = Path(__file__).parent / "empty_app"
# The last line of a run that went well: this project's names the run's folder.
OVER = re.compile(r"the run is (?:over|in (.+))$")
# What `--first` is.
FIRST_RUNS = "runs of each app that come before and are left out: they make files that the others find"
COLOR = re.compile(r"\x1b\[\d*m")
# When it was read, by `time.perf_counter`, and what it says.
Line = tuple[float, str]


@dataclass(frozen=True)
class Program:
    """A program that runs, with the lines that it has written so far."""

    process: subprocess.Popen[str]
    lines: list[Line]
    reader: threading.Thread

    def said(self) -> str:
        """Return what it has written; when it has ended, all of it."""
        if self.process.poll() is not None:
            self.reader.join(timeout=5)
        return "\n".join(line for _, line in self.lines)


@dataclass(frozen=True)
class Machine:
    """A machine with a SuperLink on it.

    Attributes
    ----------
    folder : Path
        Where its programs keep their files.
    port : int
        Where the SuperLink is; `flwr` knows it as `here`.
    environment : dict
        Environment variables of its programs.
    """

    folder: Path
    port: int
    environment: dict[str, str]

    @contextmanager
    def program(self, *command: str) -> Iterator[Program]:
        """Run a program until the block ends."""
        lines: list[Line] = []
        process = self._start(command)

        def read() -> None:
            for line in _read(process):
                lines.append(line)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield Program(process, lines, reader)
        finally:
            end(process)

    def flwr_run(self, app: Path, *options: str) -> tuple[list[Line], list[dict[str, Any]]]:
        """Run an app to its end; return its log, and the rows of its metrics if it is this project's.

        Raises
        ------
        RuntimeError
            If the run failed.
        """
        process = self._start(("flwr", "run", str(app), "here", "--stream", *options))
        try:
            lines = list(_read(process))
        finally:
            end(process)
        for over in filter(None, (OVER.search(line) for _, line in lines)):
            metrics = (Path(over[1]) / "metrics.jsonl").read_text() if over[1] else ""
            return lines, [json.loads(row) for row in metrics.splitlines()]
        raise RuntimeError("\n".join([f"{app}: the run failed:", *(line for _, line in lines[-20:])]))

    def _start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )


def _read(process: subprocess.Popen[str]) -> Iterator[Line]:
    assert process.stdout
    for line in process.stdout:
        yield time.perf_counter(), COLOR.sub("", line.rstrip())


@contextmanager
def superlink(folder: Path, *options: str) -> Iterator[Machine]:
    """Run a SuperLink without TLS on a free port of this machine until the block ends.

    A signal to stop ends the block as well: what runs on the machine ends with whoever started it.

    Raises
    ------
    RuntimeError
        If it does not come up.
    """
    port = free_port()
    homes = {"FLWR_HOME": str(folder / "flwr"), "FEDDAT_HOME": str(folder / "feddat")}
    environment = {**os.environ, **QUIET, **homes}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    (folder / "flwr").mkdir()
    entry = f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (folder / "flwr" / "config.toml").write_text(entry)
    machine = Machine(folder, port, environment)
    command = ("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
    with stopped_by_signals(), machine.program(*command, *options) as program:
        wait_for(port, program.process, program.said)
        yield machine
