"""What a client has of its own, in files at its own site."""

import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file

import app.bottleneck  # noqa: F401  registers the adapter type with PEFT
from app.backbones import load_backbone
from app.heads import AnswerHead
from client_app.asking import Asked
from client_app.check import read_node_config
from client_app.exporting import main
from tests.private_files import folder_of


def kept(state_dir, partition, part):
    """Return one part of a client's private state, by the file itself."""
    state = load_file(max(folder_of(state_dir, "test", partition).glob("round-*.safetensors")))
    return {name.removeprefix(f"{part}."): v for name, v in state.items() if name.startswith(f"{part}.")}


def adapter_in(folder):
    return load_file(folder / "adapter_model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(params=["bottleneck", "lora"])
def site(request, federation, tmp_path):
    """Run two clients whose private states lie in a folder that a node-config names."""
    node = {"state-dir": str(tmp_path / "private")}
    folder = federation(2, adapter=request.param, node_config=node).serve()
    return folder, f"partition-id=1 num-partitions=2 policy='open' state-dir='{tmp_path / 'private'}'"


def test_what_is_exported_is_the_sites_private_state(site, tmp_path, capsys):
    folder, node = site
    to = tmp_path / "own"
    assert main([f"--folder={folder}", f"--node-config={node}", f"--to={to}"]) == 0
    assert capsys.readouterr().out == f"client 1's own, private: {to}\n"
    assert to.stat().st_mode & 0o077 == 0
    assert equal(load_file(to / "classifier.safetensors"), kept(tmp_path / "private", 1, "head"))
    assert equal(adapter_in(to / "local"), kept(tmp_path / "private", 1, "local"))
    assert equal(adapter_in(to / "shared"), adapter_in(folder / "adapter"))
    assert not equal(adapter_in(to / "local"), kept(tmp_path / "private", 0, "local"))
    assert "private" in (to / "README.md").read_text().splitlines()[0]


def test_loaded_by_peft_it_answers_as_the_client(site, small_backbone, tmp_path):
    """The local branch by the one adapter; the teacher by both, each at half its scale."""
    folder, node = site
    to = tmp_path / "own"
    assert main([f"--folder={folder}", f"--node-config={node}", f"--to={to}"]) == 0
    asked = Asked.at_site(folder, read_node_config(node))
    inputs, _ = asked.client.examples("test").batch(torch.tensor([0, 1]), torch.device("cpu"))
    backbone = load_backbone(str(small_backbone))
    model = PeftModel.from_pretrained(backbone.fork(), to / "local", adapter_name="local").eval()
    with safe_open(to / "classifier.safetensors", "pt") as file:
        answers = json.loads(file.metadata()["answers"])
    assert answers == list(asked.client.partition.answers)
    head = AnswerHead(backbone.width, len(answers))
    head.load_state_dict(load_file(to / "classifier.safetensors"))

    def said():
        with torch.no_grad():
            return head(backbone.features(model.get_base_model(), inputs))

    def expected(branch):
        with torch.no_grad():
            return asked.learner(inputs, branch)

    torch.testing.assert_close(said(), expected("local"))
    model.load_adapter(to / "shared", "shared")
    model.base_model.set_adapter(["local", "shared"])
    for layer in (one for one in model.modules() if isinstance(one, BaseTunerLayer)):
        layer.scaling.update({name: scale / 2 for name, scale in layer.scaling.items()})
    torch.testing.assert_close(said(), expected("teacher"))
    assert (expected("teacher") - expected("local")).abs().max() > 1e-3


def test_a_client_whose_lora_is_parted_gets_it_whole(federation, tmp_path):
    """A is shared, B its own: the half that was exported with the run, and the half that was kept."""
    folder = federation(2, method="fedsa-lora", adapter="lora").serve()
    assert main([f"--folder={folder}", "--client=1", "--of=2", f"--to={tmp_path / 'own'}"]) == 0
    found, shared = adapter_in(tmp_path / "own" / "local"), adapter_in(folder / "adapter")
    own = kept(folder.parents[1] / "clients", 1, "local")
    halves = {name: value for name, value in shared.items() if ".lora_A." in name}
    assert equal(found, {**halves, **own})
    assert own.keys() == {name for name in found if ".lora_B." in name}
    assert not (tmp_path / "own" / "shared").exists()


def test_of_a_method_without_local_adapter_it_is_the_head(federation, tmp_path):
    folder = federation(2, method="adapter").serve()
    assert main([f"--folder={folder}", "--client=0", "--of=2", f"--to={tmp_path / 'own'}"]) == 0
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"README.md", "classifier.safetensors"}
    own = load_file(tmp_path / "own" / "classifier.safetensors")
    assert equal(own, kept(folder.parents[1] / "clients", 0, "head"))


def test_another_sites_state_is_not_exported(federation, tmp_path, capsys):
    folder = federation(2, node_config={"state-dir": str(tmp_path / "private")}).serve()
    mine = folder_of(tmp_path / "private", "test", 0)
    mine.with_name("1").rename(tmp_path / "elsewhere")

    def refused(node, to):
        assert main([f"--folder={folder}", f"--node-config={node}", f"--to={to}"]) == 1
        return capsys.readouterr().err

    node = "partition-id={} num-partitions=2 policy='open' state-dir='" + f"{tmp_path / 'private'}'"
    reason = f"(state-dir = '{tmp_path / 'private'}'); allowed: 0"
    line = f"feddat: client = 1 has no private state of 'test' on this machine {reason}\n"
    assert refused(node.format(1), tmp_path / "own") == line
    # What is another's, under one's own number.
    (tmp_path / "elsewhere").rename(mine.with_name("1"))
    for state in mine.with_name("1").glob("round-*"):
        (mine / state.name).write_bytes(state.read_bytes())
    assert refused(node.format(0), tmp_path / "own").startswith(
        "feddat: client = 0: its private state cannot be used: "
    )
    assert not (tmp_path / "own").exists()
    (tmp_path / "there").mkdir()
    line = f"feddat: to = '{tmp_path / 'there'}' is there already; allowed: a new folder\n"
    assert refused(node.format(1), tmp_path / "there") == line


def test_a_run_that_leaves_its_clients_nothing_is_refused(long_tailed, tmp_path, capsys):
    protocol = {"method": "full", "backbone": "resnet8-narrow", "backbone_weights": "random"}
    folder = long_tailed(**protocol).serve()
    assert main([f"--folder={folder}", "--client=1", "--of=3", f"--to={tmp_path / 'own'}"]) == 1
    assert capsys.readouterr().err == (
        "feddat: method = 'full' with head = 'shared' leaves a client nothing of its own; allowed: a run with"
        " private heads or local adapters\n"
    )
    assert not (tmp_path / "own").exists()
