"""ViT: images alone; the question is not read."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..processor import Processor, load_processor
from .blocks import Blocks
from .family import Family, Inputs

_POOLER = {"pooler.dense.bias", "pooler.dense.weight"}


class FirstToken(nn.Module):
    """The pooler of a ViT that comes without one: the class token, as its own classifier reads it."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Take (batch, tokens, width) to (batch, width)."""
        return hidden[:, 0]


class ViTBlocks(Blocks):
    """ViT's forward in parts."""

    def embed(self, batch: Inputs) -> tuple[Tensor, None]:
        """Compute hidden states of ``pixel_values`` (batch, 3, height, width); there is no mask."""
        return self.model.embeddings(batch["pixel_values"]), None

    def blocks(self) -> nn.ModuleList:
        """Return the blocks."""
        return self.model.layers

    def pool(self, hidden: Tensor) -> Tensor:
        """Compute features (batch, width)."""
        return self.model.pooler(self.model.layernorm(hidden))


class ViT(Family):
    """A vision transformer (Dosovitskiy et al., 2021, arXiv 2010.11929)."""

    architectures = {"vit": "ViTModel"}
    words = "a ViT"
    lora_targets = ("q_proj", "v_proj")
    prompted = r"layers\.\d+"
    purpose = "image-classification"

    def missing(self, model: Any, keys: set[str]) -> set[str]:
        """Do without a pooler where a checkpoint has none, and read the class token."""
        if set(keys) != _POOLER:
            return keys
        model.pooler = FirstToken()
        return set()

    def processor(self, folder: str | Path, config: Any) -> Processor:
        """Say how its inputs are made."""
        return load_processor(folder, image_size=config.image_size, text_length=0)

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the pooled class token (batch, width)."""
        return model(pixel_values=inputs["pixel_values"]).pooler_output

    def stock_code(self, model: Any, processor: Processor) -> str:
        """Return lines to the pooled class token; a stock model draws a pooler that is not there."""
        if isinstance(model.pooler, FirstToken):
            return "features = model(**inputs).last_hidden_state[:, 0]"
        return super().stock_code(model, processor)

    def split(self, model: Any, processor: Processor) -> ViTBlocks | None:
        """Part it before the first adapter."""
        return ViTBlocks(model, processor).or_none()
