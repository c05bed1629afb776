"""A SuperLink and sites on this machine, each with a folder of its own as if it were one."""

import os
import re
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from benchmarks.real_processes import end, free_port, wait_for
from tests.conftest import ROOT
from tests.private_files import folder_of
from tests.processes import DEADLINE, Lab, program, wait_until


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip where a program is missing that is not installed with this project."""
    missing = [name for name in programs if not shutil.which(name)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


NEEDS_KEYS = needs("openssl", "ssh-keygen")

REFUSED = "Exit Code: 305"
JOINED = re.compile(r"SuperNode ID: (\d+)")

MIN_EXAMPLES = 8  # of the sites' policy


def as_at_a_site(backbone: Path) -> dict[str, Any]:
    """Return what a client in one process must be told to train as a site here does."""
    return {"policy": "closed", "backbone": str(backbone), "min-examples": MIN_EXAMPLES}


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
    own_port : int
        Where its SuperNode gives a ClientApp its tasks.
    process, app : Popen, optional
        Its SuperNode, and what runs its ClientApps.
    """

    deployment: "Deployment"
    name: str
    partition: int
    port: int
    own_port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None
    app: subprocess.Popen | None = None

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
        """What its SuperNode has written."""
        log = self.folder / "flower-supernode.log"
        return log.read_text() if log.exists() else ""

    @property
    def app_log(self) -> str:
        """What its ClientApps have written."""
        log = self.folder / "flower-superexec.log"
        return log.read_text() if log.exists() else self.log

    @property
    def node_id(self) -> str:
        return JOINED.findall(self.log)[-1]

    def register(self) -> None:
        """Have the coordinator know the site's key."""
        self.deployment.user.flwr("supernode", "register", f"{self.key}.pub", "lab")

    def start(self, *trust: str) -> Self:
        """Start the SuperNode; `trust` are other options on TLS and keys than the right ones."""
        where = f"partition-id={self.partition} num-partitions={len(self.deployment.sites)}"
        own = f'backbone="{self.deployment.backbone}"'
        self.process = self._start(
            *("flower-supernode", "--superlink", f"127.0.0.1:{self.port}"),
            *("--host", "127.0.0.1", "--port", str(self.own_port)),
            *(trust or self.deployment.trust(self)),
            *self.deployment.isolation(self.name),
            *(
                "--node-config",
                f'{where} {own} state-dir="{self.folder / "state"}" min-examples={MIN_EXAMPLES}',
            ),
        )
        return self

    def start_app(self) -> None:
        """Start what runs the ClientApps, where the SuperNode does not do it itself."""
        if self.app is None and (secret := self.deployment.secret(self.name)):
            self.app = self._start(
                *("flower-superexec", "--insecure", "--runtime-api-address", f"127.0.0.1:{self.own_port}"),
                *secret,
            )

    def _start(self, *command: str) -> subprocess.Popen:
        return self.deployment.start_program(
            self.name,
            *command,
            PYTHONPATH=str(ROOT / "tests" / "on_a_site"),
            FEDDAT_TEST_SITE=str(self.folder),
        )

    def refused(self) -> str:
        """Wait until the SuperNode has ended as one that is not let in, and return its log."""
        self.process.wait(DEADLINE)
        assert REFUSED in self.log, self.log
        return self.log

    def kill(self) -> None:
        """End all of the site's processes by SIGKILL."""
        for process in filter(None, (self.process, self.app)):
            end(process, grace=0)
        self.app = None

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

    With TLS it is what docs/deployment.md describes: sites come in by the door of nginx.conf, or to the
    SuperLink itself where nginx is not installed; what runs apps is apart and needs a secret.

    Parameters
    ----------
    folder : Path
        Where all machines' folders are.
    sites : int
        How many sites.
    backbone : Path
        The sites' copy of the backbone.
    tls : bool
        With TLS and known nodes, or without either.
    trusted : Path, optional
        A file of those whose apps the sites run; others' are refused.

    Attributes
    ----------
    port : int
        Where sites come in.
    inner_port : int
        The SuperLink's own.
    superlink, app, door : Popen, optional
        The SuperLink, what runs its ServerApps, and nginx.
    """

    def __init__(
        self, folder: Path, sites: int, backbone: Path, tls: bool, trusted: Path | None = None
    ) -> None:
        self.folder, self.backbone, self.tls, self.trusted = folder, backbone, tls, trusted
        self.inner_port = free_port()
        self.port = free_port() if tls and shutil.which("nginx") else self.inner_port
        self.superlink = self.app = self.door = None
        self._processes = ExitStack()
        self.user = Lab(folder / "coordinator")
        self.sites = [Site(self, f"site-{partition}", partition, self.port) for partition in range(sites)]
        self.ca = folder / "deployment" / "ca.crt"
        if tls:
            make_certificates(self.ca.parent)
        self.user.knows(self.inner_port, f'root-certificates = "{self.ca}"' if tls else "insecure = true")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    def start_program(self, machine: str, *command: str, **variables: str) -> subprocess.Popen:
        """Start a program on one of the machines; it ends with the deployment."""
        return self._processes.enter_context(program(self.folder / machine, *command, **variables))[0]

    def trust(self, site: Site) -> tuple[str, ...]:
        """Return a SuperNode's options on whom it trusts, and its key."""
        if not self.tls:
            return ("--insecure",)
        signed = ("--trusted-entities", str(self.trusted)) if self.trusted else ()
        return ("--root-certificates", str(self.ca), "--auth-supernode-private-key", str(site.key), *signed)

    def secret(self, machine: str) -> tuple[str, ...]:
        """Return the option with the secret between the programs of a machine, where there is one."""
        if not self.tls:
            return ()
        path = self.folder / f"{machine}.secret"
        if not path.exists():
            path.write_bytes(os.urandom(32))
        return ("--superexec-auth-secret-file", str(path))

    def isolation(self, machine: str) -> tuple[str, ...]:
        """Return the options of a SuperLink or SuperNode that does not run apps itself."""
        return ("--isolation", "process", *secret) if (secret := self.secret(machine)) else ()

    def start_superlink(self, app: bool = True) -> None:
        """Start the SuperLink, or start it again with what it has kept; `app`: also what runs ServerApps."""
        certificates = {"ca-certfile": "ca.crt", "certfile": "server.pem", "keyfile": "server.key"}
        paths = {key: str(self.ca.with_name(name)) for key, name in certificates.items()}
        secured = [word for key, path in paths.items() for word in (f"--ssl-{key}", path)]
        self.superlink = self.start_program(
            "coordinator",
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(self.inner_port)),
            *("--database", str(self.database)),
            *([*secured, "--enable-supernode-auth"] if self.tls else ["--insecure"]),
            *self.isolation("coordinator"),
        )
        log = self.folder / "coordinator" / "flower-superlink.log"
        wait_for(self.inner_port, self.superlink, log.read_text)
        if self.port != self.inner_port:
            self.door = self.start_program("door", "nginx", "-p", ".", "-c", str(self._door()))
            wait_for(self.port, self.door, (self.folder / "door" / "nginx.log").read_text)
        if app:
            self.start_app()

    def start_app(self) -> None:
        """Start what runs ServerApps, where the SuperLink does not do it itself."""
        if self.app is None and (secret := self.secret("coordinator")):
            self.app = self.start_program(
                "coordinator",
                *("flower-superexec", "--runtime-api-address", f"127.0.0.1:{self.inner_port}"),
                *("--root-certificates", str(self.ca), *secret),
            )

    @property
    def database(self) -> Path:
        """What the SuperLink keeps."""
        return self.folder / "state.db"

    def _door(self) -> Path:
        """Write the project's nginx.conf with this deployment's ports."""
        text = (ROOT / "nginx.conf").read_text()
        for old, new in ((" 8000 ", f" {self.port} "), (":8001/", f":{self.inner_port}/")):
            assert old in text
            text = text.replace(old, new)
        path = self.folder / "nginx.conf"
        path.write_text(text)
        return path

    def start_sites(self, *sites: Site, app: bool = True) -> None:
        """Start sites until they are let in: for a while, one that was killed still counts as there.

        The first asks for all of them until then, as each time takes a process. `app`: also what runs their
        ClientApps.
        """
        self._start_until_let_in(*sites[:1])
        self._start_until_let_in(*sites[1:])
        for site in sites if app else ():
            site.start_app()

    def _start_until_let_in(self, *sites: Site) -> None:
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
        for process in filter(None, (self.superlink, self.app, self.door)):
            end(process, grace=0)
        self.app = None
        for site in self.sites:
            site.kill()

    def status(self, site: Site) -> str:
        """Return what the SuperLink thinks of a site: online, offline, unregistered."""
        nodes = self.user.flwr("supernode", "list", "lab")["nodes"]
        return next(node["status"] for node in nodes if node["node-id"] == site.node_id)

    def finished(self, run_id: str, run: str) -> Path:
        """Wait for the good end of a run, and return its folder."""
        ended = self.user.wait(run_id)
        assert ended["status"] == "finished:completed", (ended, self.user.log(run_id)[-30:])
        return self.folder / "coordinator" / "home" / "runs" / run
