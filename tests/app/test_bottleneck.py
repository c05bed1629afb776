"""The bottleneck adapter as a PEFT method: its arithmetic, and what PEFT expects of every method."""

import copy
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForFeatureExtraction,
    PeftConfig,
    PeftModel,
    PeftType,
    get_layer_status,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ViltConfig,
    ViltModel,
    ViTConfig,
    ViTModel,
)

import app.bottleneck
from app.bottleneck import BottleneckConfig, BottleneckLayer, BottleneckModel

HIDDEN, LAYERS, WIDTH = 32, 3, 4
ADAPTER_PARAMETERS = 2 * HIDDEN * WIDTH + HIDDEN + WIDTH
SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
IMAGES = {"image_size": 32, "patch_size": 16}
BACKBONES = {
    "vilt": lambda: ViltModel(ViltConfig(**SIZES, **IMAGES, vocab_size=64)),
    "bert": lambda: BertModel(BertConfig(**SIZES, vocab_size=64)),
    "vit": lambda: ViTModel(ViTConfig(**SIZES, **IMAGES)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, **IMAGES)),
}
PLACES = {
    "vilt": "encoder.layer.{}.output",
    "bert": "encoder.layer.{}.output",
    "vit": "layers.{}.mlp",
    "clip": "encoder.layers.{}.mlp",
}
# CLIP stands for a model whose modules are named by the user.
TARGETS = {"vilt": None, "bert": None, "vit": None, "clip": ["mlp"]}


@pytest.fixture(params=sorted(BACKBONES))
def kind(request):
    return request.param


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def backbone(kind, seed=0):
    torch.manual_seed(seed)
    return BACKBONES[kind]().eval()


def config(kind, **fields):
    # Larger weights than published, so that an adapter that is missing or wrong shows.
    fields = {"reduction_factor": HIDDEN // WIDTH, "target_modules": TARGETS[kind], "init_std": 0.5} | fields
    return BottleneckConfig(**fields)


def adapted(kind, adapters=("default",), **fields):
    model = get_peft_model(backbone(kind), config(kind, **fields), adapter_name=adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, config(kind, **fields))
    return model.eval()


def batch(kind):
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    if kind != "bert":
        inputs["pixel_values"] = torch.randn(3, 3, 32, 32, generator=generator)
    if kind in ("bert", "vilt"):
        inputs["input_ids"] = torch.randint(0, 64, (3, 5), generator=generator)
    return inputs


def run(model, kind, rows=slice(None), **kwargs):
    torch.manual_seed(2)  # ViLT draws the order of its patches
    return model(**{k: v[rows] for k, v in batch(kind).items()}, **kwargs).last_hidden_state


def layers(model):
    return [module for module in model.modules() if isinstance(module, BottleneckLayer)]


def linear(layer, role, adapter="default"):
    return getattr(layer, f"bottleneck_{role}")[adapter]


class Double(nn.Module):
    """A block whose output is known: twice its input, and something else beside it."""

    def __init__(self, as_tuple=False):
        super().__init__()
        self.norm = nn.LayerNorm(2)
        self.as_tuple = as_tuple

    def forward(self, x, shift=0.0):
        return (2 * x + shift, "kept") if self.as_tuple else 2 * x + shift


def layer_by_hand(as_tuple=False, **fields):
    """Put two adapters on `Double` whose sums can be done in the head (d = 2, width 1)."""
    layer = BottleneckLayer(Double(as_tuple), "a", BottleneckConfig(reduction_factor=2, **fields))
    layer.update_layer("b", BottleneckConfig(reduction_factor=2, **fields))
    with torch.no_grad():
        for name, down, down_bias, up, up_bias in (
            ("a", [[1.0, -1.0]], [0.5], [[2.0], [3.0]], [0.0, 1.0]),
            ("b", [[-1.0, 0.0]], [4.0], [[1.0], [-1.0]], [1.0, 0.0]),
        ):
            linear(layer, "down", name).weight.copy_(torch.tensor(down))
            linear(layer, "down", name).bias.copy_(torch.tensor(down_bias))
            linear(layer, "up", name).weight.copy_(torch.tensor(up))
            linear(layer, "up", name).bias.copy_(torch.tensor(up_bias))
    return layer


# x = (1, 0) → h = (2, 0). a: relu(2 + ½) = 2.5 → (5, 7.5) + (0, 1).   b: relu(-2 + 4) = 2 → (2, -2) + (1, 0).
# x = (0, 1) → h = (0, 2). a: relu(-2 + ½) = 0  → (0, 0) + (0, 1).     b: relu(0 + 4) = 4 → (4, -4) + (1, 0).
X = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
BASE = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
WITH_A = torch.tensor([[7.0, 8.5], [0.0, 3.0]])
WITH_B = torch.tensor([[5.0, -2.0], [5.0, -2.0]])


class TestArithmetic:
    def test_one_adapter(self):
        layer = layer_by_hand()
        assert torch.equal(layer(X), WITH_A)
        layer.set_adapter("b")
        assert torch.equal(layer(X), WITH_B)

    def test_adapt_is_forward_without_the_base(self):
        assert torch.equal(layer_by_hand().adapt(BASE), WITH_A)

    def test_parallel_adapters_are_summed_on_the_same_output(self):
        layer = layer_by_hand()
        layer.set_adapter(["a", "b"])
        assert torch.equal(layer(X), WITH_A + WITH_B - BASE)

    def test_two_halves_are_the_mean(self):
        layer = layer_by_hand(scaling=0.5)
        layer.set_adapter(["a", "b"])
        assert torch.equal(layer(X), torch.tensor([[6.0, 3.25], [2.5, 0.5]]))

    def test_scaling_is_of_one_adapter(self):
        layer = layer_by_hand()
        layer.scaling["b"] = 3.0
        layer.set_adapter(["a", "b"])
        assert torch.equal(layer(X), WITH_A + 3 * (WITH_B - BASE))

    def test_only_the_first_of_a_tuple_is_adapted(self):
        hidden, rest = layer_by_hand(as_tuple=True)(X)
        assert torch.equal(hidden, WITH_A)
        assert rest == "kept"

    def test_arguments_reach_the_base(self):
        layer = layer_by_hand()
        layer.enable_adapters(False)
        assert torch.equal(layer(x=X, shift=1.0), BASE + 1)

    def test_rows_are_routed(self):
        layer = layer_by_hand()
        assert torch.equal(layer(X, adapter_names=["b", "a"]), torch.stack([WITH_B[0], WITH_A[1]]))
        assert torch.equal(layer(X, adapter_names=["__base__", "b"]), torch.stack([BASE[0], WITH_B[1]]))
        cached = BASE.clone()
        layer.adapt(cached, adapter_names=["b", "a"])
        assert torch.equal(cached, BASE)
        with pytest.raises(ValueError, match="`adapter_names` must have 2 names, one a row, got 1"):
            layer(X, adapter_names=["a"])

    def test_non_linearity(self):
        layer = layer_by_hand(non_linearity="sigmoid")
        bottleneck = torch.sigmoid(torch.tensor([[2.5], [-1.5]]))
        expected = BASE + bottleneck * torch.tensor([2.0, 3.0]) + torch.tensor([0.0, 1.0])
        torch.testing.assert_close(layer(X), expected)

    def test_in_a_whole_model(self, kind):
        model = adapted(kind)
        reference = backbone(kind)
        for index, layer in enumerate(layers(model)):
            down, up = linear(layer, "down"), linear(layer, "up")

            def add(module, inputs, h, down=down, up=up):
                return h + torch.relu(h @ down.weight.T + down.bias) @ up.weight.T + up.bias

            reference.get_submodule(PLACES[kind].format(index)).register_forward_hook(add)
        torch.testing.assert_close(run(model, kind), run(reference, kind))


class TestConfig:
    def test_every_field_has_help(self):
        assert all(field.metadata.get("help") for field in dataclasses.fields(BottleneckConfig))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"reduction_factor": 0}, "`reduction_factor` must be a positive integer, got 0"),
            ({"reduction_factor": -2}, "`reduction_factor` must be a positive integer, got -2"),
            ({"reduction_factor": 1.5}, "`reduction_factor` must be a positive integer, got 1.5"),
            ({"non_linearity": "rel"}, "`non_linearity` must be one of .*relu.*, got 'rel'"),
            ({"init_weights": "zero"}, "`init_weights` must be True, False or 'zero_up', got 'zero'"),
            ({"layers_pattern": "layer"}, "`layers_pattern` needs `layers_to_transform`, got 'layer'"),
        ],
    )
    def test_wrong_values_are_refused_in_one_line(self, fields, message):
        with pytest.raises(ValueError, match=message) as error:
            BottleneckConfig(**fields)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("factor", [5, 64])
    def test_factor_must_divide_the_hidden_size(self, factor):
        with pytest.raises(
            ValueError, match=f"`reduction_factor` must divide the hidden size 32, got {factor}"
        ):
            adapted("vilt", reduction_factor=factor)

    def test_target_without_a_width(self):
        with pytest.raises(ValueError, match=r"`target_modules` must match .*, got Dropout"):
            adapted("vilt", target_modules=["dropout"])

    def test_published_initialisation(self):
        torch.manual_seed(0)
        layer = BottleneckLayer(nn.Linear(512, 512), "default", BottleneckConfig())
        for role in ("down", "up"):
            weight, bias = linear(layer, role).weight, linear(layer, role).bias
            # 16384 draws: the estimate of the standard deviation is off by 0.02 / √32768 ≈ 0.00011.
            assert abs(weight.std().item() - 0.02) < 5e-4
            assert abs(weight.mean().item()) < 8e-4
            assert not bias.any()
        assert linear(layer, "down").weight.shape == (32, 512)

    def test_zero_up_starts_as_the_identity(self, kind):
        model = adapted(kind, init_weights="zero_up")
        assert torch.equal(run(model, kind), run(backbone(kind), kind))
        assert all(linear(layer, "down").weight.any() for layer in layers(model))

    def test_false_leaves_the_linear_layers_as_they_come(self):
        layer = BottleneckLayer(nn.Linear(64, 64), "default", BottleneckConfig(init_weights=False))
        assert linear(layer, "up").bias.any()


class TestPlacement:
    def test_one_adapter_after_each_block(self, kind):
        names = adapted(kind).base_model.targeted_module_names
        assert names == [PLACES[kind].format(i) for i in range(LAYERS)]

    def test_published_size_on_vilt_b32(self):
        with torch.device("meta"):
            model = get_peft_model(ViltModel(ViltConfig()), BottleneckConfig())
        assert model.get_nb_trainable_parameters()[0] == 894_528

    def test_unknown_model_asks_for_targets(self):
        with pytest.raises(ValueError, match="target_modules"):
            get_peft_model(nn.Sequential(nn.Linear(32, 32)), BottleneckConfig())

    @pytest.mark.parametrize("pattern", [None, "layers?", ["layer", "layers"]])
    @pytest.mark.parametrize(("chosen", "expected"), [([0, 2], [0, 2]), (1, [1]), ([], [0, 1, 2]), (0, [0])])
    @pytest.mark.parametrize("kind", ["vilt", "vit"])
    def test_layers_to_transform(self, kind, chosen, expected, pattern):
        model = adapted(kind, layers_to_transform=chosen, layers_pattern=pattern)
        assert model.base_model.targeted_module_names == [PLACES[kind].format(i) for i in expected]

    def test_layers_to_transform_with_a_list_of_names(self):
        model = adapted("clip", layers_to_transform=[0, 2])
        assert model.base_model.targeted_module_names == ["encoder.layers.0.mlp", "encoder.layers.2.mlp"]

    def test_exclude_modules(self):
        model = adapted("vilt", exclude_modules=["layer.1.output"])
        assert model.base_model.targeted_module_names == ["encoder.layer.0.output", "encoder.layer.2.output"]

    def test_whole_blocks_linear_layers_and_norms_can_be_wrapped(self):
        targets = r"encoder\.layers\.0|encoder\.layers\.1\.mlp\.fc1|post_layernorm"
        sizes = [layer.hidden_size for layer in layers(adapted("clip", target_modules=targets))]
        assert sizes == [HIDDEN, 64, HIDDEN]


class TestTraining:
    def test_only_the_adapter_is_trainable(self, kind):
        model = adapted(kind)
        assert model.get_nb_trainable_parameters()[0] == LAYERS * ADAPTER_PARAMETERS
        assert all("bottleneck_" in name for name, p in model.named_parameters() if p.requires_grad)

    def test_gradients_reach_the_active_adapter_alone(self, kind):
        model = adapted(kind, adapters=("first", "second"))
        run(model, kind).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None and bool(parameter.grad.any())) == (".first." in name), name

    def test_two_active_adapters_train_together(self):
        model = adapted("vilt", adapters=("first", "second"))
        model.base_model.set_adapter(["first", "second"])
        run(model, "vilt").square().sum().backward()
        trained = {name for name, p in model.named_parameters() if p.grad is not None}
        assert len(trained) == 2 * LAYERS * 4

    def test_modules_to_save(self, tmp_path):
        model = adapted("vilt", modules_to_save=["pooler"])
        pooler = HIDDEN * HIDDEN + HIDDEN
        assert model.get_nb_trainable_parameters()[0] == LAYERS * ADAPTER_PARAMETERS + pooler
        with torch.no_grad():
            model.base_model.model.pooler.modules_to_save["default"].dense.weight.add_(1)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(backbone("vilt"), tmp_path).eval()
        torch.manual_seed(2)
        expected = model(**batch("vilt")).pooler_output
        torch.manual_seed(2)
        assert torch.equal(loaded(**batch("vilt")).pooler_output, expected)


class TestAdapters:
    def test_switching_and_disabling(self, kind):
        model = adapted(kind, adapters=("first", "second"))
        base = run(backbone(kind), kind)
        with_first = run(model, kind)
        model.set_adapter("second")
        with_second = run(model, kind)
        with model.disable_adapter():
            assert torch.equal(run(model, kind), base)
        assert torch.equal(run(model, kind), with_second)
        outputs = [base, with_first, with_second]
        assert not any(torch.allclose(outputs[i], outputs[j], atol=1e-3) for i, j in [(0, 1), (0, 2), (1, 2)])

    def test_deleting(self, kind):
        model = adapted(kind, adapters=("first", "second"))
        with_first = run(model, kind)
        model.delete_adapter("second")
        assert torch.equal(run(model, kind), with_first)
        assert not any(".second." in name for name in model.state_dict())
        assert all(layer.scaling == {"first": 1.0} for layer in layers(model))

    def test_deleting_the_active_adapter_activates_another(self):
        model = adapted("vilt", adapters=("first", "second"))
        model.set_adapter("second")
        with_second = run(model, "vilt")
        model.set_adapter("first")
        with pytest.warns(UserWarning, match="Setting active adapter to second"):
            model.delete_adapter("first")
        assert torch.equal(run(model, "vilt"), with_second)

    def test_adapters_on_different_layers(self):
        model = adapted("vilt", adapters=("first",), layers_to_transform=[0])
        model.add_adapter("second", config("vilt", layers_to_transform=[2], reduction_factor=2))
        assert not any(p.requires_grad for name, p in model.named_parameters() if ".second." in name)
        model.set_adapter("second")
        found = [[*layer.bottleneck_up] for layer in layers(model)]
        assert found == [["first"], ["second"]]
        run(model, "vilt").square().sum().backward()
        assert {n.split(".")[4] for n, p in model.named_parameters() if p.grad is not None} == {"2"}

    def test_unloading_restores_the_backbone(self, kind):
        base = backbone(kind)
        expected, names = run(base, kind), set(base.state_dict())
        unloaded = get_peft_model(base, config(kind)).unload()
        assert set(unloaded.state_dict()) == names
        assert torch.equal(run(unloaded, kind), expected)

    @pytest.mark.parametrize("call", ["merge_and_unload", "merge_adapter"])
    def test_merging_is_refused(self, kind, call):
        model = adapted(kind)
        expected = run(model, kind)
        with pytest.raises(ValueError, match="cannot be merged") as error:
            getattr(model, call)()
        assert "\n" not in str(error.value)
        assert torch.equal(run(model, kind), expected)
        with pytest.raises(ValueError, match="cannot be merged"):
            layers(model)[0].merge()

    def test_mixed_batch(self, kind):
        model = adapted(kind, adapters=("first", "second"))
        names = ["second", "__base__", "first"]
        mixed = run(model, kind, adapter_names=names)
        with model.disable_adapter():
            torch.testing.assert_close(mixed[1], run(model, kind)[1])
        for row, name in ((0, "second"), (2, "first")):
            model.set_adapter(name)
            torch.testing.assert_close(mixed[row], run(model, kind)[row])
        assert not any(module._forward_pre_hooks for module in layers(model))

    def test_mixed_batch_is_checked(self):
        model = adapted("vilt")
        with pytest.raises(ValueError, match=r"`adapter_names` must be among .*'default'.*, got \['other'\]"):
            run(model, "vilt", adapter_names=["other", "default", "default"])
        model.train()
        with pytest.raises(ValueError, match="`adapter_names` is for inference"):
            run(model, "vilt", adapter_names=["default"] * 3)

    def test_status(self):
        (status, *rest) = get_layer_status(adapted("vilt", adapters=("first", "second")))
        assert len(rest) == LAYERS - 1
        assert status.available_adapters == ["first", "second"]
        assert status.requires_grad == {"first": True, "second": False}

    def test_copies_are_independent(self):
        model = adapted("vilt")
        twin = copy.deepcopy(model)
        expected = run(model, "vilt")
        with torch.no_grad():
            linear(layers(model)[0], "up").bias.add_(1)
        assert torch.equal(run(twin, "vilt"), expected)


class TestPrecision:
    def test_adapters_of_a_bfloat16_backbone_compute_in_float32(self, kind):
        model = get_peft_model(backbone(kind).bfloat16(), config(kind))
        layer = layers(model)[0]
        assert linear(layer, "down").weight.dtype == torch.float32
        hidden = torch.randn(2, 3, HIDDEN, dtype=torch.bfloat16)
        down, up = linear(layer, "down"), linear(layer, "up")
        exact = hidden.float() + up(torch.relu(down(hidden.float())))
        assert torch.equal(layer.adapt(hidden), exact.bfloat16())

    def test_adapters_follow_the_backbone_where_asked(self):
        model = get_peft_model(backbone("vilt").bfloat16(), config("vilt"), autocast_adapter_dtype=False)
        layer = layers(model)[0]
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert layer.adapt(torch.randn(2, HIDDEN, dtype=torch.bfloat16)).dtype == torch.bfloat16

    def test_moving_and_autocast(self, kind):
        model = adapted(kind).to(torch.float64)
        assert {p.dtype for p in model.parameters()} == {torch.float64}
        layer = layers(adapted(kind))[0]
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(layer, "down")(torch.zeros(1, HIDDEN)).dtype == torch.bfloat16
            assert layer.adapt(torch.zeros(1, HIDDEN)).dtype == torch.float32

    def test_adapters_are_made_where_the_backbone_is(self):
        with torch.device("meta"):
            base = ViltModel(ViltConfig(**SIZES, **IMAGES, vocab_size=64))
        layer = layers(get_peft_model(base, config("vilt")))[0]
        assert linear(layer, "up").weight.device.type == "meta"


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
        path = Path(app.bottleneck.__file__)
        spec = importlib.util.spec_from_file_location(
            "elsewhere_bottleneck", path, submodule_search_locations=[str(path.parent)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
        for name in [name for name in sys.modules if name.startswith(spec.name)]:
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
