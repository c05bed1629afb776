"""Each class of generative models through `flwr run`, to an adapter that opens without this package.

Three of them by default, one of each way of positions and pictures; with FEDDAT_TEST_EVERY_MODEL=1 all.
"""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.real_processes import free_port, wait_for
from tests.app.tiny_generative import MODELS, made
from tests.cards import code_of
from tests.conftest import ROOT
from tests.processes import Lab, environment, program

pytestmark = pytest.mark.slow

NODES = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2"
NAMES = MODELS if os.environ.get("FEDDAT_TEST_EVERY_MODEL") else ("LLaVA", "Idefics3", "Qwen2.5-VL")
WITHOUT_VIDEOS = {"PYTHONPATH": str(ROOT / "tests" / "without_videos")}
# The code of a model card, as somebody runs it who has transformers and PEFT alone: ours cannot be imported.
STRANGER = """
import sys
sys.modules.update(dict.fromkeys(("app", "client_app", "feddat", "server_app")))
{code}
assert isinstance(answer, str)
layers = {{name: value for name, value in model.named_parameters() if "lora_B" in name}}
assert layers and all(value.any() for value in layers.values())
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab, port = Lab(tmp_path_factory.mktemp("lab")), free_port()
    lab.knows(port, "insecure = true")
    command = ("flower-superlink", "--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port))
    with program(lab.folder, *command, **WITHOUT_VIDEOS) as (process, log):
        wait_for(port, process, log.read_text)
        yield lab


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_run_goes_on_to_an_adapter_that_a_stranger_asks(lab, run_config, name):
    folder = made(name, lab.folder / name)
    short = {"train_examples": 6, "test_examples": 3, "schedule": "constant", "writing.tokens": 3}
    model = {"backbone": str(folder), "loss": "next-token", "adapter": "lora", "lora_rank": 3}
    run_name = f"on-{name}".lower().replace(" ", "-")
    for given in ({"run_name": run_name, "num_rounds": 1}, {"resume": run_name, "num_rounds": 2}):
        settings = run_config(**{"run_name": "", **model, **short, **given})
        ended = lab.wait(lab.start(settings, "--federation-config", NODES))
        assert ended["status"] == "finished:completed", ended["status-details"]
    kept = lab.folder / "home" / "runs" / run_name
    rows = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["partition"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for row in rows:
        assert row["delta-shared"] > 1e-4
        assert row["delta-local"] > 1e-4
        assert row["delta-shared"] != row["delta-local"]
        assert row["ce-student"] != row["ce-teacher"]
    code = STRANGER.format(code=code_of(kept / "adapter"))
    asked = subprocess.run(
        [sys.executable, "-c", code],
        cwd=lab.folder / "empty",
        env=environment(lab.folder) | WITHOUT_VIDEOS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
