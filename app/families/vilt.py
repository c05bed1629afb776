"""ViLT: what it needs, and what it computes otherwise than in transformers, for the same features."""

import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention

from ..block_prompts import BlockPromptLayer
from ..processor import Processor, load_processor
from .blocks import Blocks
from .family import Family, Inputs, one_picture_each


def keep_patch_order(model: Any) -> Any:
    """Make ViLT keep all patches in reading order.

    transformers draws the order of the patches at random in every forward, and loops over the batch to do so.
    Attention does not care about the order, so the features are the same, but now reproducible and cheap.
    """
    setattr(model.embeddings, "visual_embed", types.MethodType(_visual_embed, model.embeddings))  # noqa: B010
    return model


def _visual_embed(
    embeddings: Any, pixel_values: Tensor, pixel_mask: Tensor | None, max_image_length: int = -1
) -> tuple[Tensor, Tensor, None]:
    config = embeddings.config
    grid = config.image_size // config.patch_size
    patches = embeddings.patch_embeddings(pixel_values)
    batch, width, rows, columns = patches.shape
    table = embeddings.position_embeddings[:, 1:].transpose(1, 2).reshape(1, width, grid, grid)

    def positions(height: int, breadth: int) -> Tensor:
        # Padding lies to the right and below the image, which keeps its own positions.
        resized = table
        if (height, breadth) != (grid, grid):
            resized = interpolate(table, size=(height, breadth), mode="bilinear", align_corners=True)
        return pad(resized, (0, columns - breadth, 0, rows - height))

    if pixel_mask is None:
        where, mask = positions(rows, columns), patches.new_ones((batch, rows * columns), dtype=torch.long)
    else:
        valid = interpolate(pixel_mask[:, None].float(), size=(rows, columns))[:, 0].long()
        sizes = zip(valid[:, :, 0].sum(1).tolist(), valid[:, 0].sum(1).tolist(), strict=True)
        where, mask = torch.cat([positions(*size) for size in sizes]), valid.flatten(1)
    image = (patches + where).flatten(2).transpose(1, 2)
    cls = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(batch, -1, -1)
    hidden = embeddings.dropout(torch.cat([cls, image], dim=1))
    return hidden, torch.cat([mask.new_ones((batch, 1)), mask], dim=1), None


def fuse_attention(model: Any) -> Any:
    """Make ViLT attend in one fused operation.

    transformers' own keeps the weights of attention (batch, heads, tokens, tokens) for the backward pass. And
    only as many of the first tokens ask as the mask has rows for queries, see `ViltBlocks.apply_last`.
    """
    layers: Any = model.encoder.layer
    for layer in layers:
        attention = layer.attention.attention
        setattr(attention, "forward", types.MethodType(_attend, attention))  # noqa: B010
    return model


def _attend(
    attention: Any, hidden: Tensor, mask: Tensor | None = None, output_attentions: bool = False
) -> Any:
    if output_attentions:
        return type(attention).forward(attention, hidden, mask, output_attentions)

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)

    asking = hidden if mask is None else hidden[:, : mask.shape[2]]
    context = scaled_dot_product_attention(
        heads(attention.query(asking)),
        heads(attention.key(hidden)),
        heads(attention.value(hidden)),
        attn_mask=mask,
        dropout_p=attention.dropout.p if attention.training else 0.0,
    )
    return (context.transpose(1, 2).flatten(2),)


def numbered(model: Any, inputs: Inputs) -> list[Inputs]:
    """Return the inputs of one pass a picture, in which the type of its tokens is its number, from 1.

    As ViLT sees NLVR2's two pictures, see transformers' ``ViltForImagesAndTextClassification``. A model that
    has one type for pictures gives it to all: the published code begins the second type as the first's copy.
    """
    last = model.config.modality_type_vocab_size - 1
    passes = enumerate(one_picture_each(inputs), start=1)
    return [{**one, "image_token_type_idx": min(number, last)} for number, one in passes]


class ViltBlocks(Blocks):
    """ViLT's forward in parts."""

    def embed(self, batch: Inputs) -> tuple[Tensor, Tensor]:
        """Compute hidden states, and the mask (batch, 1, queries, keys) that is added to attention's logits.

        Parameters
        ----------
        batch : Mapping
            ``pixel_values`` (batch, 3, height, width), ``input_ids``, ``attention_mask`` (batch, tokens) and
            optionally ``token_type_ids``, ``pixel_mask`` and ``image_token_type_idx``.
        """
        hidden, mask = self.model.embeddings(
            batch["input_ids"],
            batch["attention_mask"],
            batch.get("token_type_ids"),
            batch["pixel_values"],
            batch.get("pixel_mask"),
            inputs_embeds=None,
            image_embeds=None,
            image_token_type_idx=batch.get("image_token_type_idx"),
        )
        # As transformers would make it, without a look at the values, for which a GPU would be waited for.
        lowest = torch.finfo(hidden.dtype).min
        padding = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(mask == 0, lowest)
        return hidden, padding[:, None, None].expand(-1, 1, hidden.shape[1], -1)

    def passes(self, inputs: Inputs) -> list[Inputs]:
        """Return the inputs of each pass."""
        return numbered(self.model, inputs)

    def blocks(self) -> nn.ModuleList:
        """Return the blocks."""
        return self.model.encoder.layer

    def apply_last(self, block: Any, hidden: Tensor, mask: Any) -> Tensor:
        """Compute the first token's hidden states (batch, 1, width), which is what pooling reads.

        The others are but keys and values to it, a sixth of their work.
        """
        if isinstance(block, BlockPromptLayer):  # it is called whole, or there are no prompts
            return self.apply(block, hidden, mask)
        attended = block.attention(block.layernorm_before(hidden), mask[:, :, :1])[0]
        first = attended[:, :1] + hidden[:, :1]
        return block.output(block.intermediate(block.layernorm_after(first)), first)

    def pool(self, hidden: Tensor) -> Tensor:
        """Compute features (batch, width); only the first token's hidden states are read."""
        return self.model.pooler(self.model.layernorm(hidden))


class Vilt(Family):
    """One encoder over text tokens and image patches (Kim et al., 2021, arXiv 2102.03334)."""

    architectures = {"vilt": "ViltModel"}
    words = "a ViLT"
    lora_targets = ("query", "value")
    prompted = r"encoder\.layer\.\d+"

    def prepare(self, model: Any) -> Any:
        """Keep the order of the patches, and attend in one fused operation."""
        return fuse_attention(keep_patch_order(model))

    def processor(self, folder: str | Path, config: Any) -> Processor:
        """Say how its inputs are made."""
        return load_processor(
            folder, image_size=config.image_size, text_length=config.max_position_embeddings
        )

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the pooled first token (batch, width)."""
        return model(**inputs).pooler_output

    def passes(self, model: Any, inputs: Inputs) -> list[Inputs]:
        """Return the inputs of one pass a picture, which says the picture's number."""
        return numbered(model, inputs)

    def split(self, model: Any, processor: Processor) -> ViltBlocks | None:
        """Part it before the first adapter."""
        return ViltBlocks(model, processor).or_none()
