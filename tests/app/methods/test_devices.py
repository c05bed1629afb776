"""A step on a device that has no values: it fails on whatever reads one, or mixes two devices.

PyTorch's ``meta`` device computes shapes alone. On a GPU what it refuses would be an error, or a hidden wait
for all that was queued.
"""

from types import SimpleNamespace

import pytest
import torch
from transformers import masking_utils

from app import piecewise
from app.adapters import Adapter
from app.backbones import load_backbone
from app.heads import new_head
from app.methods import METHODS
from app.mkd import Distillation, make_optimizer
from tests.app.families.test_generative import rows
from tests.app.tiny_generative import MODELS, made, pictures_alone

META = torch.device("meta")
SETTINGS = SimpleNamespace(
    personal=SimpleNamespace(pull=0.7, epochs=1),
    loss="bce-scores",
    update="alternating",
    step="fast",
    fraction_train=1.0,
)


def moved(learner):
    """Move it as to a GPU: its parameters stay the same objects."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return learner.to(META)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.fixture
def opened(backbone):
    def build(name):
        kind = "lora" if "lora" in name else "bottleneck"
        learner = METHODS[name].open(backbone, Adapter(kind, 4, 3), 0, torch.device("cpu"))
        learner.answer_with(new_head(32, 5, seed=2))
        return moved(learner)

    return build


@pytest.fixture
def on_meta(batch):
    inputs = {name: value.to(META) for name, value in batch.items()}
    return inputs, torch.rand(len(batch["input_ids"]), 5, device=META)


def step(name, learner, inputs, targets, update="alternating", loss="bce-scores"):
    optimizer = make_optimizer(learner, 1e-3, 0.01, "adamw")
    distillation = Distillation(loss=loss, update=update)
    return METHODS[name].step(learner, optimizer, inputs, targets, distillation, SETTINGS)


# Its deeper layers find the pictures' places by a mask, whose number of places transformers reads.
READING = {"Qwen3-VL"}


@pytest.fixture(params=sorted(MODELS.keys() - READING))
def writing(request, tmp_path_factory, monkeypatch):
    """Return a generative model's learner, and a batch with kept features, of texts of unequal lengths."""
    # transformers looks whether a text has as many places as there are features, unless told not to, and
    # whether a mask can be done without, unless a graph is recorded.
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *_: True)
    monkeypatch.setattr(piecewise, "PIECE", 2 * 1400)
    with pictures_alone():
        backbone = load_backbone(str(made(request.param, tmp_path_factory.mktemp("writes"))))
    kept = backbone.examples(rows(), torch.device("cpu"))
    learner = METHODS["feddat"].open(backbone, Adapter("lora", 4, 3), 0, torch.device("cpu"))
    return moved(learner), *kept.batch(torch.arange(3), META)


def test_nor_does_a_step_of_a_model_that_writes(writing):
    learner, inputs, targets = writing
    measured = step("feddat", learner.train(), inputs, targets, loss="next-token")
    assert all(value.device == META for value in measured.values())


# Their forward is transformers' own, where ViLT reads the mask of its pixels.
WHOLE = {"bias", "full", "head", "layernorm"}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - WHOLE))
def test_no_step_waits_for_the_device(opened, on_meta, name):
    measured = step(name, opened(name).train(), *on_meta)
    assert measured
    assert all(value.device == META for value in measured.values())


def test_nor_does_one_with_both_losses_at_once(opened, on_meta):
    measured = step("feddat", opened("feddat").train(), *on_meta, update="joint")
    assert all(value.device == META for value in measured.values())


def test_what_is_left_on_the_host_is_found(opened, on_meta, batch):
    inputs, targets = on_meta
    with pytest.raises(RuntimeError, match="meta"):
        step("feddat", opened("feddat"), {**inputs, "pixel_values": batch["pixel_values"]}, targets)


def test_a_value_that_is_read_is_found(opened, on_meta, monkeypatch):
    inputs, targets = on_meta
    learner = opened("feddat")
    features = learner.features
    monkeypatch.setattr(
        learner, "features", lambda trunk, branch: features(trunk, branch) * float(targets.sum())
    )
    with pytest.raises(RuntimeError, match="meta"):
        step("feddat", learner, inputs, targets)
