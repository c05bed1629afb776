"""A SuperLink and SuperNodes in separate processes, with TLS and known nodes."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import DEADLINE, Lab, adapter_of, end, free_port, program, wait_for

MISSING = [name for name in ("openssl", "ssh-keygen") if not shutil.which(name)]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")]

SITES = 2
REFUSED, JOINED = "Exit Code: 305", "SuperNode ID:"


def make_certificates(folder: Path) -> None:
    """Make a CA and a server certificate for this machine."""
    (folder / "server.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.crt",
        "req -newkey rsa:2048 -nodes -subj /CN=test -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext"
        " -out server.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


class Deployment:
    """A coordinator and its sites, each with a folder of its own as if it were a machine."""

    def __init__(self, folder: Path, processes: ExitStack):
        self.folder, self.processes, self.port = folder, processes, free_port()
        self.user = Lab(folder / "coordinator")
        make_certificates(folder)
        self.user.knows(self.port, f'root-certificates = "{folder / "ca.crt"}"')
        process, log = self._start(
            "coordinator",
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--ssl-ca-certfile", str(folder / "ca.crt"), "--ssl-certfile", str(folder / "server.pem")),
            *("--ssl-keyfile", str(folder / "server.key"), "--enable-supernode-auth"),
            *("--database", str(folder / "state.db")),
        )
        wait_for(self.port, process, log)

    def _start(self, machine: str, *command: str) -> tuple[subprocess.Popen, Path]:
        return self.processes.enter_context(program(self.folder / machine, *command))

    def make_key(self, machine: str) -> Path:
        """Make a site's key and return the public half."""
        key = self.folder / f"{machine}.key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", key], check=True)
        return key.with_suffix(".key.pub")

    def start_site(self, partition: int, machine: str) -> tuple[subprocess.Popen, Path]:
        """Start a site's SuperNode."""
        state = self.folder / machine / "state"
        return self._start(
            machine,
            *("flower-supernode", "--root-certificates", str(self.folder / "ca.crt")),
            *("--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())),
            *("--auth-supernode-private-key", str(self.folder / f"{machine}.key")),
            *("--node-config", f'partition-id={partition} num-partitions={SITES} state-dir="{state}"'),
        )

    def restart_site(self, partition: int, machine: str) -> None:
        """Start a killed site until it is let in: at first it still counts as there."""
        log, deadline = self.folder / machine / "flower-supernode.log", time.monotonic() + DEADLINE
        joined = log.read_text().count(JOINED)
        while time.monotonic() < deadline:
            process, _ = self.start_site(partition, machine)
            while process.poll() is None:
                if log.read_text().count(JOINED) > joined:
                    return
                threading.Event().wait(0.5)
            assert REFUSED in log.read_text()
        raise TimeoutError(f"{machine} is not let in after {DEADLINE:g} s")

    def run(self, settings) -> Path:
        """Run the app to its good end and return the run's folder."""
        return self.finished(self.user.start(settings), settings)

    def finished(self, run_id: str, settings) -> Path:
        ended = self.user.wait(run_id)
        assert ended["status"] == "finished:completed", ended
        return self.folder / "coordinator" / "home" / "runs" / settings["run-name"]


def said_by(program: str, **environment: str) -> list[str]:
    """Run a program of Python's in a process of its own and return what it prints."""
    command, machine = [sys.executable, "-c", program], {**os.environ, **environment}
    ran = subprocess.run(command, cwd=ROOT, env=machine, capture_output=True, text=True, check=True)
    return ran.stdout.split()


def test_a_client_imports_nothing_that_only_the_server_needs():
    loaded = {name.split(".")[0] for name in said_by("import sys, client_app.main; print(*sys.modules)")}
    assert "torch" in loaded
    assert not loaded & {"matplotlib", "flwr_datasets", "server_app", "strategies", "ray"}
    # And nothing that reads data: where examples are kept, nobody does.
    assert not loaded & {"datasets", "pandas", "pyarrow"}


def test_what_a_client_imports_is_not_searched_for_garbage():
    program = "import gc, client_app.main; print(gc.isenabled(), gc.get_freeze_count())"
    enabled, frozen = said_by(program)
    assert enabled == "True"
    assert int(frozen) > 100_000


TRAINING_EXAMPLES = """
import json, os, sys
from flwr.app import Context, RecordDict
from client_app.client import Client

settings, node = json.loads(os.environ["SETTINGS"]), {"partition-id": 0, "num-partitions": 1}
context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=settings)
print(len(Client.of(context).examples("train")), "datasets" in sys.modules)
"""


def test_a_second_process_needs_no_library_of_data(home, run_config):
    given = {"SETTINGS": json.dumps(run_config()), "FEDDAT_HOME": str(home)}
    assert said_by(TRAINING_EXAMPLES, **given) == ["12", "True"]
    assert said_by(TRAINING_EXAMPLES, **given) == ["12", "False"]


def test_known_sites_give_the_same_bytes_as_one_process_also_after_a_power_cut(
    tmp_path, run_config, federation, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first = run_config(num_rounds=1)
    then = {**first, "num-rounds": 2, "resume": first["run-name"]}
    with ExitStack() as processes:
        deployment = Deployment(tmp_path, processes)
        sites = []
        for partition in range(SITES):
            deployment.user.flwr(
                "supernode", "register", str(deployment.make_key(f"site-{partition}")), "lab"
            )
            sites.append(deployment.start_site(partition, f"site-{partition}")[0])
        run_id = deployment.user.start(first)

        deployment.make_key("stranger")
        stranger, log = deployment.start_site(1, "stranger")
        stranger.wait(DEADLINE)
        assert REFUSED in log.read_text()
        folder = deployment.finished(run_id, first)
        after_one_round = adapter_of(folder)

        end(sites[0], grace=0)  # kill -9
        deployment.restart_site(0, "site-0")
        after_two_rounds = adapter_of(deployment.run(then))

    for partition in range(SITES):
        kept = tmp_path / f"site-{partition}" / "state" / first["run-name"] / str(partition)
        assert sorted(path.name for path in kept.iterdir()) == [
            "round-000001.safetensors",
            "round-000002.safetensors",
        ]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["name"]) for row in rows] == [
        (server_round, name) for server_round in (1, 2) for name in ("clean", "sketch")
    ]
    assert adapter_of(federation(SITES, num_rounds=1).serve()) == after_one_round
    resumed = federation(SITES, num_rounds=2, resume=first["run-name"])
    assert adapter_of(resumed.serve()) == after_two_rounds
