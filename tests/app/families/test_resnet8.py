"""ResNet-8: the published sizes, what it computes, how it is drawn."""

import pytest
import torch
from torch.nn.functional import batch_norm, conv2d

from app.families.resnet8 import ResNet8, ResNet8Config


def drawn(channels, seed=0):
    torch.manual_seed(seed)
    return ResNet8(ResNet8Config(channels=channels)).eval()


@pytest.mark.parametrize(
    ("channels", "width", "parameters"),
    [
        # Convolutions 3·64·9 + 2·64·64·9 + 64·128·9 + 128·128·9 + 64·128 + 128·256·9 + 256·256·9 + 128·256
        # = 1,222,336; two values a channel in norms of 3 · 64, 3 · 128 and 3 · 256 channels = 2,688.
        (64, 256, 1_222_336 + 2_688),
        # A sixteenth of the convolutions but for the first, 3·16·9, and a quarter of the norms.
        (16, 64, 432 + (1_222_336 - 1_728) // 16 + 2_688 // 4),
    ],
)
def test_the_size_by_hand(channels, width, parameters):
    model = drawn(channels)
    assert model.config.hidden_size == width
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.randn(2, 3, 32, 32)).pooler_output.shape == (2, width)


def test_features_by_plain_functions():
    """Basic blocks of stride 1, 2, 2 with a projection where the shape changes, then the mean over space."""
    model = drawn(4)
    state = model.state_dict()
    images = torch.randn(3, 3, 32, 32)

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return batch_norm(x, *(state[f"{name}.{key}"] for key in keys))

    with torch.no_grad():
        for name in [name for name in state if "running" in name or "norm" in name]:
            if state[name].is_floating_point():
                state[name].uniform_(0.5, 1.5)
        x = norm(conv2d(images, state["conv.weight"], padding=1), "norm").relu()
        for stage, stride in enumerate((1, 2, 2)):
            at = f"stages.{stage}"
            y = norm(conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.norm1").relu()
            y = norm(conv2d(y, state[f"{at}.conv2.weight"], padding=1), f"{at}.norm2")
            if stride == 2:
                x = norm(conv2d(x, state[f"{at}.shortcut.0.weight"], stride=2), f"{at}.shortcut.1")
            x = (x + y).relu()
        assert x.shape == (3, 16, 8, 8)
        torch.testing.assert_close(model(images).pooler_output, x.mean(dim=(2, 3)), atol=1e-5, rtol=1e-5)


def test_weights_are_drawn_as_published():
    """Normal with variance 2 / (9 · channels out), a 1 × 1 one 2 / channels out; norms are the identity."""
    model = drawn(64)
    conv = model.stages[2].conv2.weight
    assert conv.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert model.stages[2].shortcut[0].weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    assert torch.equal(model.norm.weight, torch.ones(64))
    assert torch.equal(model.norm.bias, torch.zeros(64))


def test_it_is_saved_and_loaded(tmp_path):
    model = drawn(4)
    model.norm.running_mean += 1
    model.save_pretrained(tmp_path)
    again = ResNet8.from_pretrained(tmp_path)
    assert again.config.channels == 4
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
