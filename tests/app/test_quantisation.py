"""Frozen weights in fewer bits: what is loaded, branches and steps on it, what is refused."""

import copy
import importlib.util

import pytest
import torch
from peft import LoraConfig
from torch import nn

from app.adapters import Adapter, adapt
from app.backbones import fingerprint, load_backbone
from app.conversations import TOLD, told_places
from app.dual_adapter import ROLES, DualAdapter
from app.families.generative import Generative
from app.mkd import Distillation, make_optimizer, mkd_step
from app.quantisation import loading, tensors_in
from tests.app.tiny_generative import made, pictures_alone
from tests.app.tiny_models import drawn

METHOD = Distillation(loss="next-token")
FLOAT32, INT8 = "float32", "int8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pictures_alone():
        yield made("LLaVA", tmp_path_factory.mktemp("quantised"))


@pytest.fixture(scope="module")
def opened(folder):
    pytest.importorskip("torchao", reason="the extra int8")
    return {kind: load_backbone(str(folder), precision=kind) for kind in (FLOAT32, INT8)}


@pytest.fixture(scope="module")
def batch():
    tokens = torch.randint(20, 90, (3, 9), generator=torch.Generator().manual_seed(0))
    targets = tokens.clone()
    targets[:, :5] = -100
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), TOLD: told_places(targets)}
    return given, targets


def quantised(model):
    return {
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and type(m.weight.data) is not torch.Tensor
    }


def test_every_linear_layer_but_the_head_is_held_in_a_byte_a_weight(opened, batch):
    plain, model = opened[FLOAT32].model, opened[INT8].model
    linear = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    assert quantised(plain) == set()
    assert quantised(model) == linear - {"lm_head"}
    for name in quantised(model):
        values, scales, *_ = tensors_in(model.get_submodule(name).weight.data)
        assert (values.dtype, values.shape) == (torch.int8, plain.get_submodule(name).weight.shape)
        assert scales.numel() == len(values)
    with torch.no_grad():
        expected, found = (one(input_ids=batch[0]["input_ids"]).logits for one in (plain, model))
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


def test_forks_share_the_weights(opened):
    model, fork = opened[INT8].model, opened[INT8].fork()
    assert all(fork.get_parameter(name) is weight for name, weight in model.named_parameters())


def test_a_fingerprint_is_of_values_and_scales(opened, folder):
    backbone = opened[INT8]
    load_backbone.cache_clear()
    assert load_backbone(str(folder), precision=INT8).fingerprint == backbone.fingerprint
    assert backbone.fingerprint != opened[FLOAT32].fingerprint
    for part in range(2):
        other = copy.deepcopy(backbone.model)
        tensors_in(other.model.language_model.layers[1].mlp.up_proj.weight.data)[part].mul_(2)
        assert fingerprint(other, backbone.processor) != backbone.fingerprint


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_branches_and_steps_are_those_of_a_model_with_the_rounded_weights(opened, batch, kind):
    backbone, inputs = opened[INT8], {"input_ids": batch[0]["input_ids"]}
    rounded = copy.deepcopy(opened[FLOAT32].model)
    for name in quantised(backbone.model):
        rounded.get_submodule(name).weight.data = backbone.model.get_submodule(name).weight.dequantize()
    config = Adapter(kind, 4, 3).config(backbone)
    ours, plain = adapt(backbone, config), DualAdapter(rounded, config)
    for dual in (ours, plain):
        for seed, role in enumerate(ROLES):
            state = dual.state(role).items()
            dual.load(role, {name: drawn(*v.shape, seed=seed) * 0.2 for name, v in state})
    with torch.no_grad():
        logits = {branch: ours(inputs, branch) for branch in ("student", "teacher", "local")}
        for branch, found in logits.items():
            torch.testing.assert_close(found, plain(inputs, branch), atol=1e-4, rtol=0)
    for one, other in (("student", "teacher"), ("student", "local"), ("teacher", "local")):
        assert (logits[one] - logits[other]).abs().max() > 1e-2
    before, ends = {**ours.shared(), **ours.private()}, []
    for dual, given in ((ours, batch[0]), (plain, inputs)):
        optimizer = make_optimizer(dual, 1e-3, 0.0)
        for _ in range(4):
            mkd_step(dual, optimizer, given, batch[1], METHOD)
        ends.append({**dual.shared(), **dual.private()})
    for name, value in ends[0].items():
        assert not torch.equal(value, before[name])
        torch.testing.assert_close(value, ends[1][name], atol=5e-5, rtol=0)
    assert fingerprint(backbone.model, backbone.processor) == backbone.fingerprint


def test_an_adapter_that_quantised_layers_cannot_take_is_refused_in_a_line(opened):
    config = LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(
        ValueError, match=r"^LlavaForConditionalGeneration cannot be adapted by PEFT: Torchao.*$"
    ):
        DualAdapter(opened[INT8].fork(), config)


def test_without_cuda_there_are_no_four_bits(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"^backbone-precision = 'nf4' without CUDA; allowed: 'float32', 'bfloat16'"
    ):
        load_backbone(str(folder), precision="nf4")


@pytest.mark.parametrize(("precision", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_package_that_is_not_there_is_named(monkeypatch, precision, package):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = f"backbone-precision = '{precision}' needs the package {package}, .* pip install 'feddat"
    with pytest.raises(ValueError, match=line):
        loading(precision)


def test_four_bits_are_asked_for_as_in_qlora(monkeypatch, folder):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    given = {}

    class Model:
        @classmethod
        def from_pretrained(cls, where, **how):
            given.update(how)
            raise OSError("no GPU")

    monkeypatch.setattr(Generative, "architecture", lambda *_: Model)
    with pytest.raises(ValueError, match="no GPU"):
        load_backbone(str(folder), precision="nf4")
    config = given["quantization_config"]
    assert config.quantization_method() == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == given["dtype"] == torch.bfloat16
    assert given["device_map"] == {"": "cuda"}


def test_other_families_are_held_as_they_were(small_backbone):
    pytest.importorskip("torchao", reason="the extra int8")
    with pytest.raises(ValueError, match="backbone-precision = 'int8'; allowed: float32"):
        load_backbone(str(small_backbone), precision=INT8)
