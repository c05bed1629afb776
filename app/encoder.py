"""A backbone's encoder in its parts: two branches share the first of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTModel
from transformers.models.vilt.modeling_vilt import ViltLayer


def embed(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
    """Compute what enters the first Transformer block.

    Parameters
    ----------
    model : ViltModel or ViTModel
        A ViLT's patches are kept in order, see `vilt.keep_patch_order`.
    inputs : Mapping
        ``pixel_values`` (batch, 3, height, width), for a ViLT also ``input_ids``, ``attention_mask`` (batch,
        tokens) and optionally ``token_type_ids`` and ``pixel_mask``.

    Returns
    -------
    tuple
        Hidden states (batch, tokens + patches + 1, width) and the attention mask that the blocks take, which
        is added to the logits of attention: (batch, 1, queries, keys), or None for a ViT.
    """
    if isinstance(model, ViTModel):
        return model.embeddings(inputs["pixel_values"]), None
    hidden, mask = model.embeddings(
        inputs["input_ids"],
        inputs["attention_mask"],
        inputs.get("token_type_ids"),
        inputs["pixel_values"],
        inputs.get("pixel_mask"),
        inputs_embeds=None,
        image_embeds=None,
    )
    # As transformers would make it, without a look at the values, for which a GPU would be waited for.
    padding = torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(mask == 0, torch.finfo(hidden.dtype).min)
    return hidden, padding[:, None, None].expand(-1, 1, hidden.shape[1], -1)


def blocks(model: Any) -> nn.ModuleList:
    """Return the Transformer blocks."""
    return model.layers if isinstance(model, ViTModel) else model.encoder.layer


def apply(block: nn.Module, hidden: Tensor, mask: Any) -> Tensor:
    """Compute a block's hidden states from those before it."""
    output = block(hidden, mask)
    return output if isinstance(output, Tensor) else output[0]


def apply_to_first(block: nn.Module, hidden: Tensor, mask: Any) -> Tensor:
    """Compute what pooling reads of the last block: the first token's hidden states (batch, 1, width).

    The others are but keys and values to it, a sixth of their work. A ViT's block is computed whole.
    """
    if not isinstance(block, ViltLayer):
        return apply(block, hidden, mask)[:, :1]
    attended = block.attention(block.layernorm_before(hidden), mask[:, :, :1])[0]
    first = attended[:, :1] + hidden[:, :1]
    return block.output(block.intermediate(block.layernorm_after(first)), first)


def pool(model: Any, hidden: Tensor) -> Tensor:
    """Compute the features (batch, width) from the last block's hidden states; it reads the first token's."""
    return model.pooler(model.layernorm(hidden))
