"""Flower's own programs as real processes, for those who measure whole runs."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A Flower app that does nothing: what Flower takes by itself.
EMPTY_APP = Path(__file__).parent / "empty_app"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


DONE = re.compile(r"the run is in (.+)$")
COLOR = re.compile(r"\x1b\[\d*m")
# When it was read, by `time.perf_counter`, and what it says.
Line = tuple[float, str]


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
    def program(self, *command: str) -> Iterator[list[Line]]:
        """Run a program until the block ends; give the lines that it has written, ever more of them."""
        lines: list[Line] = []
        process = self._start(command)
        reader = threading.Thread(target=lambda: lines.extend(_read(process)), daemon=True)
        reader.start()
        try:
            yield lines
        finally:
            process.terminate()
            process.wait()
            reader.join()

    def flwr_run(self, app: Path, *options: str) -> tuple[list[Line], list[dict[str, Any]]]:
        """Run an app to its end; return its log, and the rows of its metrics if it is this project's."""
        with self._start(("flwr", "run", str(app), "here", "--stream", *options)) as run:
            lines = list(_read(run))
        for done in filter(None, (DONE.search(line) for _, line in lines)):
            return lines, [json.loads(row) for row in (Path(done[1]) / "metrics.jsonl").open()]
        return lines, []

    def _start(self, command: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _read(process: subprocess.Popen[str]) -> Iterator[Line]:
    assert process.stdout
    for line in process.stdout:
        yield time.perf_counter(), COLOR.sub("", line.rstrip())


def free_port() -> int:
    """Return a port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def superlink(folder: Path, *options: str) -> Iterator[Machine]:
    """Run a SuperLink without TLS on a free port of this machine until the block ends."""
    port = free_port()
    homes = {"FLWR_HOME": str(folder / "flwr"), "FEDDAT_HOME": str(folder / "feddat")}
    environment = {**os.environ, **QUIET, **homes}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    (folder / "flwr").mkdir()
    entry = f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (folder / "flwr" / "config.toml").write_text(entry)
    machine = Machine(folder, port, environment)
    command = ("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
    with machine.program(*command, *options):
        for _ in range(300):
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.2)
        yield machine
