"""`flwr run` in real processes: an own SuperLink, Ray's actors, the app as it is packed and unpacked."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load

from tests.processes import Lab, adapter_of, free_port, program, wait_for

pytestmark = pytest.mark.slow

NODES = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab, port = Lab(tmp_path_factory.mktemp("lab")), free_port()
    lab.knows(port, "insecure = true")
    command = ("flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port))
    with program(lab.folder, *command) as (process, log):
        wait_for(port, process, log)
        yield lab


def run(lab, settings):
    """Run the app to its end and return how `flwr ls` describes the run."""
    return lab.wait(lab.start(settings, "--federation-config", NODES))


def test_a_run_ends_well_and_a_second_one_gives_the_same_bytes(lab, run_config, federation):
    folders = [lab.folder / "home" / "runs" / name for name in ("first", "second")]
    for folder in folders:
        ended = run(lab, run_config(run_name=folder.name))
        assert ended["status"] == "finished:completed", ended
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
    ended = run(lab, run_config(run_name="wrong", reduction_factor=5))
    assert ended["status"] == "finished:failed"
    line = "reduction-factor = 5; allowed: a divisor of the backbone's width, 32"
    assert ended["status-details"] == f"Simulation failed with exception: {line}"


def test_what_a_client_finds_wrong_reaches_the_user(lab, run_config):
    ended = run(lab, run_config(run_name="wrong", heterogeneity="color"))
    assert ended["status"] == "finished:failed"
    line = "heterogeneity = 'color'; allowed: domain, function, scene, task"
    details = rf".*: node \d+: error in the handshake: {line} \(and 1 more nodes\)"
    assert re.fullmatch(details, ended["status-details"])
    assert not (lab.folder / "home" / "runs" / "wrong").exists()


def test_the_built_in_backbone_is_found_though_the_app_that_is_sent_has_no_weights(lab, run_config):
    settings = run_config(run_name="built-in", backbone="tiny-vilt", reduction_factor=16, num_rounds=1)
    assert run(lab, settings)["status"] == "finished:completed"
    (app,) = (lab.folder / "flwr" / "apps").glob("feddat.*")
    assert (app / "app" / "mkd.py").is_file()
    assert not list(app.rglob("*.safetensors"))
