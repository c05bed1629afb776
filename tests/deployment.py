"""A SuperLink and sites on this machine, each with a folder of its own as if it were one."""

import re
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from benchmarks.real_processes import end, free_port, wait_for
from tests.conftest import ROOT
from tests.private_files import folder_of
from tests.processes import DEADLINE, Lab, program, wait_until

MISSING = [name for name in ("openssl", "ssh-keygen") if not shutil.which(name)]
NEEDS_KEYS = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")

REFUSED = "Exit Code: 305"
JOINED = re.compile(r"SuperNode ID: (\d+)")


def make_certificates(folder: Path) -> None:
    """Make a CA and a server certificate for this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.crt",
        "req -newkey rsa:2048 -nodes -subj /CN=test -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext"
        " -out server.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


@dataclass
class Site:
    """A site's machine: a SuperNode, and what a test can do to it.

    Attributes
    ----------
    deployment : Deployment
        What it belongs to.
    name : str
        Of its folder.
    partition : int
        Which client it is.
    port : int
        Where it reaches the SuperLink.
    process : Popen, optional
        Its SuperNode.
    """

    deployment: "Deployment"
    name: str
    partition: int
    port: int
    process: subprocess.Popen | None = None

    @property
    def folder(self) -> Path:
        return self.deployment.folder / self.name

    @property
    def key(self) -> Path:
        """The private half of the site's key; made when it is first asked for."""
        key = self.folder.with_suffix(".key")
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", key], check=True)
        return key

    @property
    def log(self) -> str:
        """What its SuperNode and its ClientApps have written."""
        log = self.folder / "flower-supernode.log"
        return log.read_text() if log.exists() else ""

    @property
    def node_id(self) -> str:
        return JOINED.findall(self.log)[-1]

    def register(self) -> None:
        """Have the coordinator know the site's key."""
        self.deployment.user.flwr("supernode", "register", f"{self.key}.pub", "lab")

    def start(self, *trust: str) -> Self:
        """Start the SuperNode; `trust` are other options on TLS and keys than the right ones."""
        where = f"partition-id={self.partition} num-partitions={len(self.deployment.sites)}"
        self.process = self.deployment.start_program(
            self.name,
            *("flower-supernode", "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())),
            *(trust or self.deployment.trust(self)),
            *("--node-config", f'{where} state-dir="{self.folder / "state"}" min-examples=8'),
            PYTHONPATH=str(ROOT / "tests" / "on_a_site"),
            FEDDAT_TEST_SITE=str(self.folder),
        )
        return self

    def refused(self) -> str:
        """Wait until the SuperNode has ended as one that is not let in, and return its log."""
        self.process.wait(DEADLINE)
        assert REFUSED in self.log, self.log
        return self.log

    def kill(self) -> None:
        """End all of the site's processes by SIGKILL."""
        end(self.process, grace=0)

    def hold(self, run: str = "") -> None:
        """Have training wait after its first step: from the second round of `run` on, or now."""
        self.folder.mkdir(exist_ok=True)
        first = f"state/{run}-*/{self.partition}/round-000001.safetensors"
        (self.folder / "hold").write_text(first if run else "hold")

    def release(self) -> None:
        """Let training go on."""
        (self.folder / "hold").unlink()
        (self.folder / "training").unlink(missing_ok=True)

    def wait_training(self) -> None:
        """Wait until training waits."""
        wait_until((self.folder / "training").exists)

    def state(self, run: str) -> Path:
        """Return the folder of its private states of a run."""
        return folder_of(self.folder / "state", run, self.partition)


class Deployment:
    """A coordinator with its SuperLink, its user, and its sites.

    Parameters
    ----------
    folder : Path
        Where all machines' folders are.
    sites : int
        How many sites.
    tls : bool
        With TLS and known nodes, or without either.
    """

    def __init__(self, folder: Path, sites: int, tls: bool) -> None:
        self.folder, self.tls, self.port = folder, tls, free_port()
        self._processes = ExitStack()
        self.user = Lab(folder / "coordinator")
        self.sites = [Site(self, f"site-{partition}", partition, self.port) for partition in range(sites)]
        if tls:
            make_certificates(folder)
        self.user.knows(self.port, f'root-certificates = "{folder / "ca.crt"}"' if tls else "insecure = true")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def start_program(self, machine: str, *command: str, **variables: str) -> subprocess.Popen:
        """Start a program on one of the machines; it ends with the deployment."""
        return self._processes.enter_context(program(self.folder / machine, *command, **variables))[0]

    def trust(self, site: Site) -> tuple[str, ...]:
        """Return a SuperNode's options on TLS and keys."""
        if not self.tls:
            return ("--insecure",)
        ca, key = str(self.folder / "ca.crt"), str(site.key)
        return ("--root-certificates", ca, "--auth-supernode-private-key", key)

    def start_superlink(self) -> None:
        """Start the SuperLink, or start it again with what it has kept."""
        certificates = {"ca-certfile": "ca.crt", "certfile": "server.pem", "keyfile": "server.key"}
        secured = [
            word for key, name in certificates.items() for word in (f"--ssl-{key}", str(self.folder / name))
        ]
        self.superlink = self.start_program(
            "coordinator",
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--database", str(self.folder / "state.db")),
            *([*secured, "--enable-supernode-auth"] if self.tls else ["--insecure"]),
        )
        log = self.folder / "coordinator" / "flower-superlink.log"
        wait_for(self.port, self.superlink, log.read_text)

    def start_sites(self, *sites: Site) -> None:
        """Start sites until they are let in: for a while, one that was killed still counts as there."""
        known = {site.name: len(JOINED.findall(site.log)) for site in sites}
        waiting, deadline = list(sites), time.monotonic() + DEADLINE
        for site in sites:
            site.start()
        while waiting:
            for site in [site for site in waiting if site.process.poll() is not None]:
                site.refused()
                site.start()
            waiting = [site for site in waiting if len(JOINED.findall(site.log)) == known[site.name]]
            assert time.monotonic() < deadline, [site.name for site in waiting]
            threading.Event().wait(0.5)

    def power_cut(self) -> None:
        """End all processes on all machines by SIGKILL."""
        for process in (self.superlink, *(site.process for site in self.sites)):
            end(process, grace=0)

    def status(self, site: Site) -> str:
        """Return what the SuperLink thinks of a site: online, offline, unregistered."""
        nodes = self.user.flwr("supernode", "list", "lab")["nodes"]
        return next(node["status"] for node in nodes if node["node-id"] == site.node_id)

    def finished(self, run_id: str, run: str) -> Path:
        """Wait for the good end of a run, and return its folder."""
        ended = self.user.wait(run_id)
        assert ended["status"] == "finished:completed", (ended, self.user.log(run_id)[-30:])
        return self.folder / "coordinator" / "home" / "runs" / run
