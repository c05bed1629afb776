"""BLIP for visual question answering: an image encoder, and a text encoder that looks at the image."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ..processor import Processor, load_processor
from .family import Family, Inputs


class Blip(Family):
    """ALBEF's successor (Li et al., 2022, arXiv 2201.12086), with an answer list in place of its decoder."""

    architectures = {"blip": "BlipForQuestionAnswering"}
    words = "a BLIP for question answering"
    lora_targets = r"(vision_model|text_encoder)\..*\.(qkv|query|value)"
    left_alone = r"text_decoder\..*"

    def processor(self, folder: str | Path, config: Any) -> Processor:
        """Say how its inputs are made; mean and deviation are BLIP's, where the folder names none."""
        return load_processor(
            folder,
            image_size=config.vision_config.image_size,
            text_length=config.text_config.max_position_embeddings,
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        )

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the first token's hidden states (batch, width) of the question that has seen the image."""
        seen = model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
        asked = model.text_encoder(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            encoder_hidden_states=seen,
        )
        return asked.last_hidden_state[:, 0]

    def width(self, config: Any) -> int:
        """Width of the features."""
        return config.text_config.hidden_size

    def adapted_width(self, config: Any) -> int:
        """Width of the hidden states, one for both encoders."""
        return config.text_config.hidden_size
