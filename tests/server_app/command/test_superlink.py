"""`feddat run --superlink`: a SuperLink that is there, or is not, or is of another version."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest
from flwr.supercore.version import package_version

from benchmarks.real_processes import end, free_port, wait_for
from tests.processes import PROGRAMS, environment, wait_until
from tests.server_app.command.test_run import SMALL, is_alive, is_worker, working

OWN = "--superlink", "lab"


@pytest.fixture
def known(person):
    """Return what gives Flower's configuration a SuperLink `lab`."""

    def write(port):
        (person.folder / "flwr").mkdir(exist_ok=True)
        lab = f'[superlink.lab]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (person.folder / "flwr" / "config.toml").write_text(lab)
        return {"FLWR_HOME": str(person.folder / "flwr")}

    return write


@pytest.fixture
def describing(known):
    """Return what answers at a port as a SuperLink of a version does; None: it does not tell."""
    servers = []

    def serve(version):
        class Door(BaseHTTPRequestHandler):
            def do_GET(self):
                told = self.path == "/openapi.json" and version is not None
                self.send_response(200 if told else 404)
                self.end_headers()
                self.wfile.write(json.dumps({"info": {"version": version}}).encode() if told else b"")

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Door)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server.server_port

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_name_that_flower_does_not_know(person, known):
    reason = person.is_refused("run", "--superlink", "nix", **known(1))
    assert re.fullmatch(r"superlink = 'nix' is not in .*/flwr/config\.toml; allowed: lab", reason)


def test_one_that_does_not_answer(person, known):
    port = free_port()
    reason = person.is_refused("run", *OWN, **known(port))
    assert re.fullmatch(
        rf"superlink = 'lab': 127\.0\.0\.1:{port} does not answer as a SuperLink of Flower"
        rf" {package_version} does \(.*refused.*\); allowed: one that runs",
        reason,
    )


def test_one_of_another_version(person, known, describing):
    port = describing("1.40.2")
    assert person.is_refused("run", *OWN, **known(port)) == (
        f"superlink = 'lab': 127.0.0.1:{port} is of Flower 1.40.2, and this is Flower {package_version};"
        f" stop it and start it again with Flower {package_version}, or leave --superlink out"
    )
    assert list(person.home.iterdir()) == []


@pytest.mark.parametrize("version", [".".join([*package_version.split(".")[:2], "99"]), None])
def test_one_that_can_and_one_that_does_not_tell_are_tried(known, describing, monkeypatch, version):
    from server_app.command.superlink import check_superlink

    for key, value in known(describing(version)).items():
        monkeypatch.setenv(key, value)
    check_superlink("lab")


def test_one_that_takes_no_run(person, known, describing):
    called = person.calls("run", *OWN, "run-name=mine", *SMALL, **known(describing(package_version)))
    assert called.returncode == 1
    (last,) = called.stderr.splitlines()
    assert last.startswith("feddat: Flower does not start the run: ")
    assert len(last) < 600
    assert called.stdout.splitlines()[-1] == (
        "the run failed; if it had begun, its folder is in the FEDDAT_HOME of its SuperLink's machine"
    )


# What a SuperLink that was started before an update has in its memory.
STALE = """
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: "1.40.2" if name == "flwr" else version(name)
"""


@pytest.fixture
def superlink(person, known):
    """Return what starts Flower's own SuperLink, and gives its process and how the person knows it."""
    started = []

    def start(sitecustomize=""):
        port, lab = free_port(), person.folder / "lab"
        machine = environment(lab) | {"FEDDAT_HOME": str(person.home)}
        if sitecustomize:
            (lab / "sitecustomize.py").write_text(sitecustomize)
            machine["PYTHONPATH"] = str(lab)
        log = (lab / "superlink.log").open("w")
        options = ("--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port))
        process = subprocess.Popen(
            (sys.executable, PROGRAMS / "flower-superlink", *options),
            cwd=lab / "empty",
            env=machine,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        wait_for(port, process, (lab / "superlink.log").read_text)
        return process, known(port)

    yield start
    for process in started:
        end(process)


@pytest.mark.slow
def test_flowers_own_that_was_started_before_an_update(person, superlink):
    _, lab = superlink(STALE)
    reason = person.is_refused("run", *OWN, **lab)
    assert f"is of Flower 1.40.2, and this is Flower {package_version};" in reason


@pytest.mark.slow
def test_a_run_that_is_interrupted_ends_and_the_superlink_does_not(person, superlink):
    process, lab = superlink()
    metrics = person.home / "runs" / "mine" / "metrics.jsonl"
    with working(person, metrics, *OWN, **lab) as (command, family):
        workers = [one for one in psutil.Process(process.pid).children(recursive=True) if is_worker(one)]
        assert workers
        os.killpg(command.pid, signal.SIGINT)
        _, said = command.communicate(timeout=120)
    assert command.returncode == 130
    how = "feddat run resume=mine --superlink=lab"
    assert said.splitlines() == [f"feddat: stopped; to go on: {how}"]
    assert [member for member in family if is_alive(member)] == []
    wait_until(lambda: not any(map(is_alive, workers)))
    assert process.poll() is None
    listed = (PROGRAMS / "flwr", "ls", "lab", "--format", "json")
    asked = subprocess.run(listed, env=person.environment(**lab), capture_output=True, check=True)
    assert [run["status"] for run in json.loads(asked.stdout)["runs"]] == ["finished:stopped"]

    # As it says, and by the same SuperLink.
    done = max(json.loads(row)["round"] for row in metrics.read_text().splitlines())
    called = person.calls(*shlex.split(how)[1:], f"num-rounds={done + 1}", **lab)
    assert called.returncode == 0, called.stdout + called.stderr
    lines = called.stdout.splitlines()
    assert [line for line in lines if line.startswith(f"round {done + 1}/{done + 1}: student ")]
    assert lines[-1] == f"the run is in {metrics.parent}"
    assert process.poll() is None
