"""ResNet-8 for images of 32 × 32 pixels, as in the long-tailed protocol.

CReFF (Shang et al., IJCAI 2022, arXiv 2204.13399) and those that compare with it: the CIFAR network of He et
al. (2016) with one basic block a stage, in the published code four times as wide, 64, 128 and 256 channels.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..processor import Processor, load_processor
from .family import Family, Inputs

# Channels of the first stage: published, and He et al.'s own.
WIDTHS = {"resnet8": 64, "resnet8-narrow": 16}
# Of CIFAR-10's training images, as the long-tailed protocol has them.
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class ResNet8Config(PreTrainedConfig):
    """Configure a `ResNet8`.

    Parameters
    ----------
    channels : int
        Of the first stage; the second has twice, the third four times as many, the width of the features.
    """

    model_type = "cifar-resnet8"

    def __init__(self, channels: int = 64, **entries: Any) -> None:
        self.channels = channels
        self.image_size = 32
        super().__init__(**entries)

    @property
    def hidden_size(self) -> int:
        """Width of the features."""
        return 4 * self.channels


class Block(nn.Module):
    """Two 3 × 3 convolutions beside the identity, or beside a 1 × 1 convolution where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, out, height / stride, width / stride)."""
        change = self.norm2(self.conv2(self.norm1(self.conv1(hidden)).relu()))
        return (change + self.shortcut(hidden)).relu()


class ResNet8(PreTrainedModel):
    """The network without its classifier; `transformers` saves and loads it."""

    config_class = ResNet8Config
    main_input_name = "pixel_values"

    def __init__(self, config: ResNet8Config) -> None:
        super().__init__(config)
        channels = config.channels
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.stages = nn.Sequential(
            Block(channels, channels, 1),
            Block(channels, 2 * channels, 2),
            Block(2 * channels, 4 * channels, 2),
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """Compute features (batch, width) from normalised images (batch, 3, 32, 32)."""
        hidden = self.stages(self.norm(self.conv(pixel_values)).relu())
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden.mean(dim=(2, 3)))


AutoConfig.register(ResNet8Config.model_type, ResNet8Config, exist_ok=True)


class ResNet(Family):
    """The long-tailed protocol's network: all of it is trained, and its first weights are random."""

    architectures = {ResNet8Config.model_type: "ResNet8"}
    words = "a ResNet-8"
    built_in = {name: {"channels": channels} for name, channels in WIDTHS.items()}
    adapters = False
    purpose = "image-classification"

    def architecture(self, config: Any) -> type[PreTrainedModel]:
        """Return the class, which transformers does not have."""
        return ResNet8

    def configure(self, **entries: Any) -> ResNet8Config:
        """Make the configuration of a built-in name."""
        return ResNet8Config(**entries)

    def processor(self, folder: str | Path, config: Any) -> Processor:
        """Say how its inputs are made."""
        return load_processor(
            folder, image_size=config.image_size, text_length=0, mean=_CIFAR_MEAN, std=_CIFAR_STD
        )

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the mean over the last map (batch, width)."""
        return model(pixel_values=inputs["pixel_values"]).pooler_output
