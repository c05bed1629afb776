"""All weights of a backbone: what travels, what training moves, what stays as it is."""

import pytest
import torch

from app.backbones import fingerprint, load_backbone
from app.dual_adapter import DualAdapter
from app.methods import open_learner
from app.methods.full import FullModel
from app.mkd import Distillation, adapter_step, make_optimizer
from app.settings import read_settings

CPU = torch.device("cpu")


@pytest.fixture
def model():
    return FullModel(load_backbone("resnet8-narrow", "random", 1), CPU)


@pytest.fixture
def inputs():
    pixels = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels.to(torch.uint8)}


def step(model, inputs, kind="sgd"):
    head = torch.nn.Linear(64, 3)
    model.answer_with(head)
    optimizer = make_optimizer(model, 0.1, 0.0, kind)
    adapter_step(model, optimizer, inputs, torch.eye(3).repeat(2, 1), Distillation(loss="cross-entropy"))


def test_all_weights_and_statistics_travel_and_no_counter(model):
    whole = load_backbone("resnet8-narrow", "random", 1).model
    own = dict(whole.named_parameters()) | dict(whole.named_buffers())
    state = model.state("shared")
    assert state.keys() == {name for name in own if not name.endswith("num_batches_tracked")}
    assert sum(name.endswith(("running_mean", "running_var")) for name in state) == 2 * 9
    assert all(
        value.dtype == torch.float32 and torch.equal(value, own[name]) for name, value in state.items()
    )
    assert (model.private(), model.state("local")) == ({}, {})


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_step_in_training_moves_every_array(model, inputs, kind):
    before = model.state("shared")
    model.train()
    step(model, inputs, kind)
    after = model.state("shared")
    assert [name for name in after if torch.equal(after[name], before[name])] == []
    backbone = load_backbone("resnet8-narrow", "random", 1)
    assert fingerprint(backbone.model, backbone.processor) == backbone.fingerprint


def test_evaluation_moves_no_statistics(model, inputs):
    before = model.state("shared")
    model.features(model.trunk(inputs), "student")
    assert all(torch.equal(value, before[name]) for name, value in model.state("shared").items())


def test_what_is_received_is_what_computes(model, inputs):
    other = FullModel(load_backbone("resnet8-narrow", "random", 2), CPU)
    model.receive(other.state("shared"))
    with torch.no_grad():
        features = model.features(model.trunk(inputs), "student")
        backbone = load_backbone("resnet8-narrow", "random", 2)
        expected = backbone.model(backbone.processor.normalise(inputs["pixel_values"])).pooler_output
    torch.testing.assert_close(features, expected)
    state = other.state("shared")
    del state["norm.running_var"]
    with pytest.raises(ValueError, match=r"missing or unknown arrays: norm\.running_var$"):
        model.receive(state)


def test_method_and_seed_decide_what_is_opened(run_config, small_vit):
    def opened(**overrides):
        return open_learner(read_settings(run_config(head="shared", backbone_weights="random", **overrides)))

    first = opened(method="full", backbone="resnet8-narrow", seed=1)
    assert isinstance(first, FullModel)
    assert opened(method="full", backbone="resnet8-narrow", seed=1) is first
    other = opened(method="full", backbone="resnet8-narrow", seed=2)
    assert not torch.equal(first.state("shared")["conv.weight"], other.state("shared")["conv.weight"])
    assert isinstance(opened(method="adapter", backbone=str(small_vit)), DualAdapter)


def test_a_backbone_without_blocks_takes_no_adapters(run_config):
    settings = read_settings(run_config(backbone="resnet8", backbone_weights="random"))
    with pytest.raises(ValueError) as error:
        open_learner(settings)
    assert str(error.value) == (
        "backbone = 'resnet8' has no Transformer blocks for adapters; allowed with method = 'full'"
    )
