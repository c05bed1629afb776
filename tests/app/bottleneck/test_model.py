"""What PEFT expects of a method on a whole model."""

import copy

import pytest
import torch
from peft import (
    PeftModel,
    get_layer_status,
    get_peft_model,
)
from torch import nn
from transformers import (
    ViltConfig,
    ViltModel,
)

from app.bottleneck import BottleneckConfig
from tests.app.bottleneck.on_backbones import (
    ADAPTER_PARAMETERS,
    HIDDEN,
    IMAGES,
    LAYERS,
    PLACES,
    SIZES,
    adapted,
    backbone,
    batch,
    config,
    layers,
    linear,
    run,
)


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
