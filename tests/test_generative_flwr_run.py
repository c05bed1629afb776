"""Each class of generative models through `flwr run`, to an adapter that opens without this package.

One of them is stopped and goes on here; all are in `test_generative_run.py`.
"""

import json
import subprocess
import sys

import pytest

from tests.app.tiny_generative import MODELS, made
from tests.cards import code_of
from tests.conftest import ROOT
from tests.processes import environment, simulating_lab

pytestmark = pytest.mark.slow

NODES = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus="
STOPPED = "LLaVA"
WITHOUT_VIDEOS = {"PYTHONPATH": str(ROOT / "tests" / "without_videos")}
# The code of model cards, as somebody runs it who has transformers and PEFT alone: ours cannot be imported.
STRANGER = """
import sys
sys.modules.update(dict.fromkeys(("app", "client_app", "feddat", "server_app")))
for code in {codes!r}:
    space = dict()
    exec(code, space)
    assert isinstance(space["answer"], str)
    layers = [value for name, value in space["model"].named_parameters() if "lora_B" in name]
    assert layers and all(value.any() for value in layers)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with simulating_lab(tmp_path_factory.mktemp("lab"), **WITHOUT_VIDEOS) as lab:
        yield lab


@pytest.fixture(scope="module")
def adapters():
    """Hold the folders of the adapters that were made."""
    return []


@pytest.mark.parametrize("name", MODELS)
def test_two_clients_train_in_two_rounds(lab, run_config, adapters, name):
    folder = made(name, lab.folder / name)
    short = {"train_examples": 6, "test_examples": 3, "schedule": "constant", "writing.tokens": 3}
    model = {"backbone": str(folder), "loss": "next-token", "adapter": "lora", "lora_rank": 3}
    run_name = f"on-{name}".lower().replace(" ", "-")
    begun = {"run_name": run_name, "num_rounds": 1}
    runs = [begun, {"resume": run_name, "num_rounds": 2}] if name == STOPPED else [{**begun, "num_rounds": 2}]
    nodes = f"{NODES}{2 if name == STOPPED else 1}"  # the start of a worker takes longer than such a run
    for given in runs:
        settings = run_config(**{"run_name": "", **model, **short, **given})
        ended = lab.wait(lab.start(settings, "--federation-config", nodes))
        assert ended["status"] == "finished:completed", ended["status-details"]
    kept = lab.folder / "home" / "runs" / run_name
    rows = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["partition"]) for row in rows] == [
        (server_round, partition) for server_round in range(3) for partition in range(2)
    ]
    for row in rows[2:]:
        assert row["delta-shared"] > 1e-4
        assert row["delta-local"] > 1e-4
        assert row["delta-shared"] != row["delta-local"]
        assert row["ce-student"] != row["ce-teacher"]
    adapters.append(kept / "adapter")


def test_a_stranger_asks_every_adapter(lab, adapters):
    assert len(adapters) == len(MODELS)
    asked = subprocess.run(
        [sys.executable, "-c", STRANGER.format(codes=[code_of(adapter) for adapter in adapters])],
        cwd=lab.folder / "empty",
        env=environment(lab.folder) | WITHOUT_VIDEOS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
