"""`flwr run` in real processes: an own SuperLink, Ray's actors, the app as it is packed and unpacked."""

import json
import re
import subprocess
import sys

import numpy as np
import psutil
import pytest
from peft import PeftModel
from PIL import Image
from safetensors.numpy import load

import app.bottleneck  # noqa: F401
from app import methods
from app.backbones import load_backbone
from client_app import client
from tests.app.families.test_whole_forwards import make, save_small
from tests.conftest import ROOT
from tests.data_partitions.feddat_paper import given_sets as given
from tests.processes import adapter_of, environment, simulating_lab, wait_until

pytestmark = pytest.mark.slow

NODES = "num-supernodes=2 client-resources-num-cpus=1 init-args-num-cpus=2"
# One of Ray's workers for both clients: the start of each takes longer than a run of a small model.
ONE_WORKER = NODES.removesuffix("2") + "1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with simulating_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


def run(lab, settings, nodes=ONE_WORKER):
    """Run the app to its end and return how `flwr ls` describes the run."""
    return lab.wait(lab.start(settings, "--federation-config", nodes))


@pytest.fixture(scope="module")
def first(lab, run_config):
    """Return the folder of a run that ended well."""
    ended = run(lab, run_config(run_name="first"), nodes=NODES)
    assert ended["status"] == "finished:completed", ended
    return lab.folder / "home" / "runs" / "first"


def test_a_run_ends_well_and_the_command_gives_the_same_bytes(lab, run_config, first, federation):
    settings = run_config(run_name="second", num_clients=2)
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    called = subprocess.run(
        [sys.executable, "-m", "server_app.command", "run", *words],
        cwd=ROOT,
        env=environment(lab.folder),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert called.returncode == 0, called.stdout + called.stderr
    folders = [first, first.with_name("second")]
    kept = {path.name for path in folders[0].iterdir() if path.name != ".lock"}
    files = {"settings.json", "metrics.jsonl", "report.md", "report.html", "curves.png"}
    assert kept == files | {"adapter", "adapter-best", "checkpoints"}
    rows = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["name"]) for row in rows] == [
        (server_round, name) for server_round in (1, 2) for name in ("clean", "sketch")
    ]
    assert all(row["delta-shared"] > 0 and row["delta-local"] > 0 and "teacher" in row for row in rows)
    assert adapter_of(folders[0]) == adapter_of(folders[1])

    # As in a process that has done nothing before.
    for kept in (methods._open, load_backbone, client._partition, client._examples):
        kept.cache_clear()
    in_process = load(adapter_of(federation(2).serve()))
    across_processes = load(adapter_of(folders[0]))
    assert in_process.keys() == across_processes.keys()
    for name, array in in_process.items():
        # Equal to the bit with one thread; more threads may sum in another order.
        np.testing.assert_allclose(array, across_processes[name], rtol=0, atol=1e-5)


def test_states_that_travel_give_the_same_bytes_and_all_that_is_kept_is_closed(lab, run_config, first):
    """Real workers are a simulation's, and have umask 022 like the rest."""
    assert run_config()["private-state"] == "files"
    ended = run(lab, run_config(run_name="context", private_state="context"), nodes=NODES)
    assert ended["status"] == "finished:completed", ended
    home = lab.folder / "home"
    assert adapter_of(first) == adapter_of(home / "runs" / "context")
    made = [
        path for name in ("runs/context", "clients", "data", "examples") for path in (home / name).rglob("*")
    ]
    assert len(made) > 20
    assert [path for path in made if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("name", ["blip", "clip", "bert"])
def test_other_kinds_of_models_end_in_an_adapter_of_stock_peft(lab, run_config, small_backbone, name):
    folder = save_small(name, lab.folder / name, small_backbone)
    settings = {"run_name": name, "backbone": str(folder), "adapter": "lora", "lora_rank": 3}
    ended = run(lab, run_config(**settings))
    assert ended["status"] == "finished:completed", ended["status-details"]
    opens_in_stock_peft(lab.folder / "home" / "runs" / name, name, folder)


def opens_in_stock_peft(kept, name, folder):
    """See that a run's adapter opens, with values in it, on the stock model in `folder`."""
    assert "| clean |" in (kept / "report.md").read_text()
    model = PeftModel.from_pretrained(type(make(name)).from_pretrained(folder), kept / "adapter")
    loaded = {key.replace(".default", ""): value.numpy() for key, value in model.named_parameters()}
    exported = load(adapter_of(kept))
    assert exported
    assert all(np.array_equal(array, loaded[key]) for key, array in exported.items())
    assert any(array.any() for key, array in exported.items() if "lora_B" in key)


@pytest.mark.parametrize(("name", "head"), [("blip", "decoder"), ("clip", "prompts")])
def test_answers_that_are_read_go_on_and_are_asked(lab, run_config, small_backbone, name, head):
    folder = save_small(name, lab.folder / f"{head}-backbone", small_backbone)
    fixed = {"backbone": str(folder), "head": head, "loss": "cross-entropy"}
    fixed |= {"adapter": "lora", "lora_rank": 3}
    assert run(lab, run_config(run_name=head, **fixed))["status"] == "finished:completed"
    ended = run(lab, run_config(run_name=head, resume=head, **fixed, num_rounds=3))
    assert ended["status"] == "finished:completed", ended["status-details"]
    kept = lab.folder / "home" / "runs" / head
    rows = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    Image.new("RGB", (40, 30), "red").save(lab.folder / "red.png")
    asking = ["--folder", str(kept), "--client", "1", "--of", "2", "--image", str(lab.folder / "red.png")]
    command = [sys.executable, "-m", "client_app.asking", *asking, "--question", "what color is the circle ?"]
    said = subprocess.run(
        command, cwd=ROOT, env=environment(lab.folder), capture_output=True, text=True, timeout=240
    )
    assert said.returncode == 0, said.stderr
    assert all(branch in said.stdout for branch in ("student", "local", "teacher", "%"))
    opens_in_stock_peft(kept, name, folder)


def test_a_client_of_two_pictures_an_example_beside_one_of_one(lab, run_config, tmp_path):
    given.vqa_v2(tmp_path / "data")
    given.nlvr2(tmp_path / "data", 6)
    data = {"benchmark": "feddat-task", "data_dir": str(tmp_path / "data")}
    ended = run(lab, run_config(run_name="pairs", **data, adapter="lora", lora_rank=3))
    assert ended["status"] == "finished:completed", ended["status-details"]
    kept = lab.folder / "home" / "runs" / "pairs"
    rows = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows if "teacher" in row} == {"VQAv2", "NLVR2"}
    widths = {}
    for state in sorted((lab.folder / "home" / "clients").glob("pairs-*/*/*.safetensors")):
        (widths[state.parent.name],) = [
            array.shape[1] for name, array in load(state.read_bytes()).items() if "clf_fc0.weight" in name
        ]
    assert widths == {"0": 32, "1": 64}


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


def test_a_dead_worker_of_the_simulation_fails_the_run(lab, run_config):
    """Flower goes on giving messages to the dead actor, and by itself calls the run completed."""
    folder = lab.folder / "home" / "runs" / "killed"
    settings = {"run_name": "killed", "num_rounds": 1000, "evaluate_every": 1000, "max_failure_rate": 0.0}
    run_id = lab.start(run_config(**settings), "--federation-config", NODES)
    wait_until((folder / "metrics.jsonl").exists)  # a round is over
    actors = [
        process
        for process in psutil.Process(lab.superlink).children(recursive=True)
        if process.name().startswith("ray::ClientApp")
    ]
    assert len(actors) == 2
    actors[0].kill()
    ended = lab.wait(run_id)
    assert ended["status"] == "finished:failed"
    reason = ended["status-details"]
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
    command = [sys.executable, "-m", "server_app.teachers.toy", "--out", str(toy), "--images", "60"]
    command += ["--steps", "6", "--device", "cpu"]
    subprocess.run(command, cwd=ROOT, env=environment(lab.folder), check=True, timeout=240)
    sizes = {"pretrain.images": 24, "pretrain.steps": 2, "public.examples": 40, "align.steps": 2}
    small = {"num-rounds": 2, "train-examples": 12, "test-examples": 8, "evaluate-every": 1}
    stages = {
        "pretrain.part": "adapter",
        "pretrain.encoder": str(toy),
        "align.when": "each-round",
        "teacher.model": str(toy),
    }
    ended = run(lab, {"run-name": "stages", **stages, **sizes, **small, "device": "cpu"})
    assert ended["status"] == "finished:completed", ended

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
