"""`flwr run` in real processes: an own SuperLink, Ray's actors, the app as it is packed and unpacked."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
from peft import PeftModel
from safetensors.numpy import load

import app.bottleneck  # noqa: F401
from app.backbones import load_backbone

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DEADLINE = 240.0
T = TypeVar("T")
NODES = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2"


@dataclass
class Lab:
    """A SuperLink with a FLWR_HOME and a FEDDAT_HOME of its own."""

    folder: Path
    environment: dict[str, str]
    superlink: int

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Call Flower's command and return what it says."""
        command = [Path(sys.executable).with_name("flwr"), *arguments, "--format", "json"]
        called = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert called.returncode == 0, called.stdout + called.stderr
        return json.loads(called.stdout)

    def start(self, settings: dict[str, Any]) -> str:
        """Start the app and return the id of the run."""
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())
        started = self.flwr("run", str(ROOT), "lab", "--run-config", pairs, "--federation-config", NODES)
        return str(started["run-id"])

    def end(self, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run and return how `flwr ls` describes it."""

        def ended() -> dict[str, Any] | None:
            (run,) = self.flwr("ls", "lab", "--run-id", run_id)["runs"]
            return run if run["status"].startswith("finished") else None

        return wait_until(ended)

    def run(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Run the app to its end and return how `flwr ls` describes the run."""
        return self.end(self.start(settings))

    def log(self, run_id: str) -> list[str]:
        """Return what `flwr log` shows of a run."""
        command = [Path(sys.executable).with_name("flwr"), "log", run_id, "lab", "--show"]
        shown = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120
        )
        return shown.stdout.splitlines()


def wait_until(happened: Callable[[], T | None]) -> T:
    """Ask once a second until there is an answer, and return it."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if answer := happened():
            return answer
        threading.Event().wait(1.0)
    raise TimeoutError(f"not within {DEADLINE:g} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        threading.Event().wait(0.2)
    raise RuntimeError(f"the SuperLink does not answer: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    for name in ("flwr", "home", "empty"):
        (folder / name).mkdir()
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FEDDAT_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [Path(sys.executable).with_name("flower-superlink"), "--insecure", "--simulation"]
    log = folder / "superlink.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            # Clients import from the SuperLink's folder first: it must have nothing of ours.
            cwd=folder / "empty",
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(port, process, log)
        yield Lab(folder, environment, process.pid)
    finally:
        # What the SuperLink starts has sessions of its own: its process group is not all.
        superlink = psutil.Process(process.pid)
        family = [superlink, *superlink.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.terminate()
        for member in psutil.wait_procs(family, timeout=20)[1]:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()


def adapter_of(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_run_ends_well_and_a_second_one_gives_the_same_bytes(lab, run_config, federation):
    folders = [lab.folder / "home" / "runs" / name for name in ("first", "second")]
    for folder in folders:
        run = lab.run(run_config(run_name=folder.name))
        assert run["status"] == "finished:completed", run
    kept = {path.name for path in folders[0].iterdir()}
    files = {"settings.json", "metrics.jsonl", "report.md", "curves.png"}
    assert kept == files | {"adapter", "adapter-best", "checkpoints"}
    rows = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["name"]) for row in rows] == [
        (server_round, name) for server_round in (1, 2) for name in ("clean", "sketch")
    ]
    assert all(row["delta-shared"] > 0 and row["delta-local"] > 0 and "teacher" in row for row in rows)
    assert adapter_of(folders[0]) == adapter_of(folders[1])

    in_process = load(adapter_of(federation(2).serve()))
    across_processes = load(adapter_of(folders[0]))
    assert in_process.keys() == across_processes.keys()
    for name, array in in_process.items():
        # Equal to the bit with one thread; more threads may sum in another order.
        np.testing.assert_allclose(array, across_processes[name], rtol=0, atol=1e-5)


def test_a_wrong_setting_ends_the_run_with_its_line(lab, run_config):
    run = lab.run(run_config(run_name="wrong", reduction_factor=5))
    assert run["status"] == "finished:failed"
    line = "reduction-factor = 5; allowed: a divisor of the backbone's width, 32"
    assert run["status-details"] == f"Simulation failed with exception: {line}"


def test_what_a_client_finds_wrong_reaches_the_user(lab, run_config):
    run = lab.run(run_config(run_name="wrong", heterogeneity="color"))
    assert run["status"] == "finished:failed"
    line = "heterogeneity = 'color'; allowed: domain, function, scene, task"
    details = rf".*: node \d+: error in the handshake: {line} \(and 1 more nodes\)"
    assert re.fullmatch(details, run["status-details"])
    assert not (lab.folder / "home" / "runs" / "wrong").exists()


def test_the_built_in_backbone_is_found_though_the_app_that_is_sent_has_no_weights(lab, run_config):
    settings = run_config(run_name="built-in", backbone="tiny-vilt", reduction_factor=16, num_rounds=1)
    assert lab.run(settings)["status"] == "finished:completed"
    (app,) = (lab.folder / "flwr" / "apps").glob("feddat.*")
    assert (app / "app" / "mkd.py").is_file()
    assert not list(app.rglob("*.safetensors"))


def test_a_dead_worker_of_the_simulation_fails_the_run(lab, run_config):
    """Flower goes on giving messages to the dead actor, and by itself calls the run completed."""
    folder = lab.folder / "home" / "runs" / "killed"
    settings = {"run_name": "killed", "num_rounds": 1000, "evaluate_every": 1000, "max_failure_rate": 0.0}
    run_id = lab.start(run_config(**settings))
    wait_until((folder / "metrics.jsonl").exists)  # a round is over
    actors = [
        process
        for process in psutil.Process(lab.superlink).children(recursive=True)
        if process.name().startswith("ray::ClientApp")
    ]
    assert len(actors) == 2
    actors[0].kill()
    run = lab.end(run_id)
    assert run["status"] == "finished:failed"
    reason = run["status-details"]
    assert re.search(r"round \d+, tried twice: [01] of 2 clients gave a valid reply, .*died", reason), reason
    line = reason.removeprefix("Simulation failed with exception: ")
    # Flower's epilogue of six lines comes after it.
    assert any(shown.strip() == f"RuntimeError: {line}" for shown in lab.log(run_id)[-10:])
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("died" in row.get("refused", "") for row in rows)
    assert not (folder / "adapter").exists()


def test_a_toy_llava_drives_all_three_stages(lab):
    """From a teacher made here, by annotations, pretraining and alignment, to an adapter that PEFT loads."""
    toy = lab.folder / "toy"
    command = [sys.executable, "-m", "server_app.toy_teacher", "--out", str(toy), "--images", "60"]
    subprocess.run(
        [*command, "--steps", "6", "--device", "cpu"], cwd=ROOT, env=lab.environment, check=True, timeout=240
    )
    sizes = {"pretrain-images": 24, "pretrain-steps": 2, "public-examples": 40, "align-steps": 2}
    small = {"num-rounds": 2, "train-examples": 12, "test-examples": 8, "evaluate-every": 1}
    stages = {"pretrain": "adapter", "pretrain-encoder": str(toy), "align": "each-round", "teacher": str(toy)}
    run = lab.run({"run-name": "stages", **stages, **sizes, **small, "device": "cpu"})
    assert run["status"] == "finished:completed", run

    home = lab.folder / "home"
    kept = {path.name for path in (home / "annotations").iterdir()}
    assert kept == {f"scenes-{what}.parquet" for what in ("captions", "train", "validation")}
    rows = [
        json.loads(line) for line in (home / "runs" / "stages" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["round"] for row in rows if "align/delta-norm" in row and row["partition"] == -1] == [1, 2]
    model = PeftModel.from_pretrained(
        load_backbone("tiny-vilt").fork(), str(home / "runs" / "stages" / "adapter")
    )
    exported = load(adapter_of(home / "runs" / "stages"))
    loaded = {name.replace(".default", ""): value.numpy() for name, value in model.named_parameters()}
    assert all(np.array_equal(array, loaded[name]) for name, array in exported.items())
