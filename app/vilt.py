"""What this project has ViLT compute otherwise than transformers does, for the same features."""

import types
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention
from transformers import ViltModel


def keep_patch_order(model: ViltModel) -> ViltModel:
    """Make ViLT keep all patches in reading order.

    transformers draws the order of the patches at random in every forward, and loops over the batch to do so.
    Attention does not care about the order, so the features are the same, but now reproducible and cheap.
    """
    setattr(model.embeddings, "visual_embed", types.MethodType(_visual_embed, model.embeddings))  # noqa: B010
    return model


def _visual_embed(embeddings, pixel_values: Tensor, pixel_mask: Tensor | None, max_image_length: int = -1):
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


def fuse_attention(model: ViltModel) -> ViltModel:
    """Make ViLT attend in one fused operation.

    transformers' own keeps the weights of attention (batch, heads, tokens, tokens) for the backward pass. And
    only as many of the first tokens ask as the mask has rows for queries, see `encoder.apply_to_first`.
    """
    layers: Any = model.encoder.layer
    for layer in layers:
        attention = layer.attention.attention
        setattr(attention, "forward", types.MethodType(_attend, attention))  # noqa: B010
    return model


def _attend(attention, hidden: Tensor, mask: Tensor | None = None, output_attentions: bool = False):
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
