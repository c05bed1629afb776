"""CLIP and SigLIP: two encoders, of an image and of a text, with adapters in both."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..processor import Processor, load_processor
from .family import Family, Inputs


class DualEncoder(Family):
    """Two encoders into one space (Radford et al., 2021, arXiv 2103.00020; SigLIP: arXiv 2303.15343).

    Features are the image's and the text's embedding of length 1, and their product by entries, whose sum is
    their similarity.
    """

    architectures = {"clip": "CLIPModel", "siglip": "SiglipModel"}
    words = "a CLIP or SigLIP"
    lora_targets = ("q_proj", "v_proj")

    def processor(self, folder: str | Path, config: Any) -> Processor:
        """Say how its inputs are made; mean and deviation are CLIP's, where the folder names none."""
        siglip = config.model_type == "siglip"
        statistics = ((0.5,) * 3,) * 2 if siglip else (_CLIP_MEAN, _CLIP_STD)
        return load_processor(
            folder,
            image_size=config.vision_config.image_size,
            text_length=config.text_config.max_position_embeddings,
            mean=statistics[0],
            std=statistics[1],
        )

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute both embeddings and their product, (batch, 3 · embedding's width)."""
        given = {key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values")}
        output = model(**given)
        return torch.cat(
            [output.image_embeds, output.text_embeds, output.image_embeds * output.text_embeds], dim=1
        )

    def width(self, config: Any) -> int:
        """Width of the features."""
        embedding = getattr(config, "projection_dim", None) or config.text_config.projection_size
        return 3 * embedding

    def adapted_width(self, config: Any) -> int:
        """Return what a bottleneck's factor must divide for both encoders."""
        return math.gcd(config.text_config.hidden_size, config.vision_config.hidden_size)


_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
