"""What an adapter may be, and its first weights."""

import dataclasses

import pytest
import torch
from torch import nn

from app.bottleneck import BottleneckConfig, BottleneckLayer
from tests.app.bottleneck.on_backbones import adapted, backbone, layers, linear, run


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
