"""Real processes for tests: Flower's programs in folders of their own, ended by their ids."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from warnings import catch_warnings, simplefilter

import pytest
from flwr.cli.app import app as flwr
from flwr.supercore.logger import console_handler

from benchmarks.real_processes import QUIET, end, free_port, wait_for
from tests.conftest import ROOT

DEADLINE = 480.0  # of what hangs
# Where Flower's programs of this environment lie.
PROGRAMS = Path(sys.executable).parent
T = TypeVar("T")


def environment(folder: Path, programs: Path = PROGRAMS) -> dict[str, str]:
    """Return the environment of a machine whose FLWR_HOME and FEDDAT_HOME lie in `folder`; make both.

    `programs` is where its Python and Flower's programs lie.
    """
    for name in ("flwr", "home", "empty"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FEDDAT_HOME": str(folder / "home"),
        **QUIET,
        "OMP_NUM_THREADS": "1",
    }


def wait_until(happened: Callable[[], T | None], seconds: float = DEADLINE) -> T:
    """Ask once a second until there is an answer, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := happened():
            return answer
        threading.Event().wait(1.0)
    raise TimeoutError(f"not within {seconds:g} s")


@contextmanager
def program(
    folder: Path, *command: str, programs: Path = PROGRAMS, **variables: str
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """Run one of Flower's `programs` until the block ends; give its process and its log.

    `variables` are added to its environment.
    """
    log, machine = folder / f"{command[0]}.log", environment(folder, programs) | variables
    with log.open("a") as output:
        process = subprocess.Popen(
            # Found by its PATH, where `programs` come first.
            command,
            # Clients import from this folder first: it must have nothing of ours.
            cwd=folder / "empty",
            env=machine,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process, log
    finally:
        end(process)


@dataclass
class Lab:
    """A user with a FLWR_HOME that knows one SuperLink, `lab`.

    `superlink` is the id of its process, where that is this test's.
    """

    folder: Path
    superlink: int = 0

    def knows(self, port: int, trust: str) -> None:
        """Write Flower's configuration; `trust` is the line on TLS."""
        environment(self.folder)
        (self.folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:{port}"\n{trust}\n'
        )

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Call Flower's command and return what it says."""
        said = json.loads(self._call(*arguments, "--format", "json"))
        assert said["success"], said
        return said

    def _call(self, *arguments: str) -> str:
        """Call Flower's command here, for each process takes a second to import it, and return its output."""
        output = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, chdir(self.folder), catch_warnings():
            simplefilter("ignore")  # of the packages that it uses
            for name, value in environment(self.folder).items():
                patch.setenv(name, value)
            for name in ("stdout", "__stdout__"):
                patch.setattr(sys, name, output)
            patch.setattr(console_handler, "stream", output)
            flwr(arguments, standalone_mode=False)
        return output.getvalue()

    def start(self, settings: Mapping[str, Any], *options: str, app: Path = ROOT) -> str:
        """Start a run of an app, by default of this one, and return its id."""
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
        return str(self.flwr("run", str(app), "lab", "--run-config", pairs, *options)["run-id"])

    def build(self, app: Path = ROOT) -> Path:
        """Build an app, and return the file that a run of it sends to the clients."""
        before = set(self.folder.glob("*.fab"))
        self._call("build", "--app", str(app))
        (path,) = set(self.folder.glob("*.fab")) - before
        return path

    def wait(self, run_id: str) -> dict[str, Any]:
        """Return how `flwr ls` describes a run that is over."""

        def ended() -> dict[str, Any] | None:
            (run,) = self.flwr("ls", "lab", "--run-id", run_id)["runs"]
            return run if run["status"].startswith("finished") else None

        # A round may wait for its deadline.
        return wait_until(ended, 2 * DEADLINE)

    def log(self, run_id: str) -> list[str]:
        """Return what `flwr log` shows of a run."""
        return self._call("log", run_id, "lab", "--show").splitlines()


def adapter_of(folder: Path) -> bytes:
    """Return the bytes of a run's adapter."""
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@contextmanager
def simulating_lab(folder: Path, programs: Path = PROGRAMS, **variables: str) -> Iterator[Lab]:
    """Start a SuperLink that simulates, and end it after the block; yield the user that knows it.

    `programs` and `variables` are as in `program`.
    """
    lab, port = Lab(folder), free_port()
    lab.knows(port, "insecure = true")
    command = ("flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port))
    with program(folder, *command, programs=programs, **variables) as (process, log):
        wait_for(port, process, log.read_text)
        lab.superlink = process.pid
        yield lab
