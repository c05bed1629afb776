"""The projects as a stranger runs them: copied elsewhere, by `flwr run`, with our wheel installed."""

import shutil

import pytest
from safetensors.torch import load_file

from tests.examples.projects import CLIENTS, PLAIN, PLUGGED_IN, name_of
from tests.processes import simulating_lab
from tests.wheel import build, environment_with

pytestmark = pytest.mark.slow

ROUNDS = 2
NODES = f"num-supernodes={CLIENTS} client-resources-num-cpus=1 init-args-num-cpus="


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Give a user whose only copy of ours is the wheel, and who has a SuperLink."""
    folder = tmp_path_factory.mktemp("stranger")
    programs = environment_with(build(folder), folder / "venv")
    with simulating_lab(folder, programs) as lab:
        yield lab


@pytest.mark.parametrize("project", [*PLAIN, *PLUGGED_IN], ids=name_of)
def test_it_runs_to_an_adapter_that_has_learned(stranger, project):
    copy = shutil.copytree(
        project, stranger.folder / name_of(project), ignore=shutil.ignore_patterns("__pycache__")
    )
    saved = stranger.folder / f"{name_of(project)}.safetensors"
    settings = {"num-server-rounds": ROUNDS, "save-to": str(saved)}
    # Where clients keep states, they come to more than one process.
    nodes = f"{NODES}{2 if project in PLUGGED_IN else 1}"
    run_id = stranger.start(settings, "--federation-config", nodes, app=copy)
    ended = stranger.wait(run_id)
    log = "\n".join(stranger.log(run_id))
    assert ended["status"] == "finished:completed", log
    # Flower calls a run completed whose clients all failed.
    for step in ("aggregate_train", "aggregate_evaluate"):
        assert log.count(f"{step}: Received {CLIENTS} results and 0 failures") == ROUNDS, log
    arrays = load_file(saved)
    # LoRA's B begins as zeros.
    trained = [name for name in arrays if "lora_B" in name]
    assert trained
    assert all(arrays[name].any() for name in trained)
