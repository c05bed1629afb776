"""What PEFT expects of a method that is saved, and loaded by its name."""

import copy
import importlib
import json
import sys
from types import ModuleType

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForFeatureExtraction,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import (
    ViltModel,
)

import app.bottleneck
from app.bottleneck import BottleneckConfig, BottleneckLayer, BottleneckModel
from tests.app.bottleneck.on_backbones import (
    BACKBONES,
    HIDDEN,
    LAYERS,
    PLACES,
    WIDTH,
    adapted,
    backbone,
    config,
    layers,
    run,
)


class TestCheckpoints:
    def test_names_and_config(self, kind, tmp_path):
        model = adapted(kind, adapters=("shared",))
        model.save_pretrained(tmp_path)
        saved = load_file(tmp_path / "shared" / "adapter_model.safetensors")
        place = "base_model.model." + PLACES[kind]
        assert set(saved) == {
            f"{place.format(i)}.bottleneck_{role}.{kind_}"
            for i in range(LAYERS)
            for role in ("down", "up")
            for kind_ in ("weight", "bias")
        }
        assert set(get_peft_model_state_dict(model, adapter_name="shared")) == set(saved)
        fields = json.loads((tmp_path / "shared" / "adapter_config.json").read_text())
        assert fields["peft_type"] == "BOTTLENECK"
        assert fields["reduction_factor"] == HIDDEN // WIDTH

    @pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
    def test_round_trip(self, kind, tmp_path, low_cpu_mem_usage):
        fields = {"layers_to_transform": [0, 2], "non_linearity": "gelu", "scaling": 0.7}
        model = adapted(kind, **fields)
        model.save_pretrained(tmp_path)
        config = PeftConfig.from_pretrained(tmp_path)
        assert type(config) is BottleneckConfig
        assert {name: getattr(config, name) for name in fields} == fields
        torch.manual_seed(7)
        loaded = PeftModel.from_pretrained(
            backbone(kind), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
        ).eval()
        assert isinstance(loaded.base_model, BottleneckModel)
        assert torch.equal(run(loaded, kind), run(model, kind))
        before, after = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(p.requires_grad for p in loaded.parameters())

    def test_loading_beside_another_adapter(self, kind, tmp_path):
        saved = adapted(kind)
        saved.save_pretrained(tmp_path)
        model = adapted(kind, adapters=("first",), reduction_factor=2)
        model.load_adapter(tmp_path, "second")
        model.set_adapter("second")
        assert torch.equal(run(model, kind), run(saved, kind))

    def test_auto_model(self, kind, tmp_path):
        backbone(kind).save_pretrained(tmp_path / "base")
        base = BACKBONES[kind]().from_pretrained(tmp_path / "base")
        model = get_peft_model(base, config(kind)).eval()
        model.save_pretrained(tmp_path / "adapter")
        loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter")
        assert torch.equal(run(loaded.eval(), kind), run(model, kind))

    def test_auto_model_for_feature_extraction(self, tmp_path):
        backbone("vilt").save_pretrained(tmp_path / "base")
        base = ViltModel.from_pretrained(tmp_path / "base")
        model = get_peft_model(base, config("vilt", task_type="FEATURE_EXTRACTION")).eval()
        model.save_pretrained(tmp_path / "adapter")
        loaded = AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path / "adapter")
        assert torch.equal(run(loaded.eval(), "vilt"), run(model, "vilt"))


class TestRegistration:
    @pytest.fixture
    def twin(self):
        """Import the same files once more under another package name."""
        package = ModuleType("elsewhere")
        package.__path__ = app.__path__
        sys.modules[package.__name__] = package
        yield importlib.import_module("elsewhere.bottleneck")
        for name in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
            del sys.modules[name]

    def test_the_enumeration_knows_the_method(self):
        assert PeftType("BOTTLENECK") is PeftType.BOTTLENECK
        assert PeftType.BOTTLENECK.value == "BOTTLENECK"
        assert list(PeftType).count("BOTTLENECK") == 1
        assert copy.deepcopy(BottleneckConfig()).peft_type is PeftType.BOTTLENECK

    def test_both_names_share_one_set_of_classes(self, twin):
        assert twin.layer.BottleneckLayer is not BottleneckLayer  # the files were read a second time
        for name in app.bottleneck.__all__:
            assert getattr(twin, name) is getattr(app.bottleneck, name)
        assert list(PeftType).count("BOTTLENECK") == 1

    @pytest.mark.parametrize("own", [True, False])
    def test_classes_of_either_name_work(self, twin, own, tmp_path):
        # Also the ones that the second import read and did not hand out.
        config_cls = twin.BottleneckConfig if own else sys.modules[twin.__name__ + ".config"].BottleneckConfig
        model = get_peft_model(backbone("vilt"), config_cls(reduction_factor=4, init_std=0.5)).eval()
        assert len(layers(model)) == LAYERS
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(backbone("vilt"), tmp_path).eval()
        assert isinstance(loaded.peft_config["default"], twin.BottleneckConfig)
        assert torch.equal(run(loaded, "vilt"), run(model, "vilt"))
