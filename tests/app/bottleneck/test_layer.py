"""The bottleneck's arithmetic, worked out by hand."""

import pytest
import torch
from torch import nn

from app.bottleneck import BottleneckConfig, BottleneckLayer
from tests.app.bottleneck.on_backbones import PLACES, adapted, backbone, layers, linear, run


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
