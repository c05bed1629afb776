"""CLIP and SigLIP: two encoders, of an image and of a text."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from ..examples import ANSWERS
from ..processor import Processor, load_processor
from .family import Family, Inputs


@dataclass(frozen=True)
class PaddingRead(Processor):
    """Pads all texts to one length, of which the model reads all, as SigLIP was trained.

    Its feature is the last position's: cut to a batch's longest text, it would depend on the others.
    """

    padded: int = 0

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise texts; ``input_ids`` and ``attention_mask``, all ones, are (len(texts), padded)."""
        told = super().texts(texts)["input_ids"]
        ids = pad(told, (0, self.padded - told.shape[1]), value=self.tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _stock_text(self) -> list[str]:
        return [
            "from torch.nn.functional import pad",
            f'rest = (0, {self.padded} - text["input_ids"].shape[1])  # padding is read',
            'inputs["input_ids"] = pad(text["input_ids"], rest, value=tokenizer.pad_token_id)',
        ]


class DualEncoder(Family):
    """Two encoders into one space (Radford et al., 2021, arXiv 2103.00020; SigLIP: arXiv 2303.15343).

    Adapters are in both. Features are the image's and the text's embedding of length 1, and their product by
    entries, whose sum is their similarity. Of several images they are each one's embedding, the text's, and
    each one's product.
    """

    architectures = {"clip": "CLIPModel", "siglip": "SiglipModel"}
    words = "a CLIP or SigLIP"
    lora_targets: str | Sequence[str] = ("q_proj", "v_proj")
    heads = (*Family.heads, "prompts")

    def processor(self, folder: str | Path, config: Any) -> Processor:
        """Say how its inputs are made; mean and deviation are CLIP's, where the folder names none."""
        siglip = config.model_type == "siglip"
        statistics = ((0.5,) * 3,) * 2 if siglip else (_CLIP_MEAN, _CLIP_STD)
        made = load_processor(
            folder,
            image_size=config.vision_config.image_size,
            text_length=config.text_config.max_position_embeddings,
            mean=statistics[0],
            std=statistics[1],
        )
        return PaddingRead(**vars(made), padded=made.text_length) if siglip else made

    def answering_by(self, head: str, config: Any, prompt: str) -> Family:
        """Return what chooses among prompts, or itself."""
        if head != "prompts":
            return self
        return Prompted(prompt, Family.losses if config.model_type == "siglip" else ("cross-entropy",))

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute both embeddings and their product, (batch, 3 · embedding's width)."""
        given = {key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values")}
        output = model(**given)
        return torch.cat(
            [output.image_embeds, output.text_embeds, output.image_embeds * output.text_embeds], dim=1
        )

    def all_features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute all embeddings and products, (batch, (2 · images + 1) · width); the text is read once."""
        first, *further = self.passes(model, inputs)
        features = self.features(model, first)
        if not further:
            return features
        image, text, _ = features.chunk(3, dim=1)
        others = (model.get_image_features(pixel_values=one["pixel_values"]) for one in further)
        images = [image, *(normalize(other.pooler_output, dim=-1) for other in others)]
        return torch.cat([*images, text, *(image * text for image in images)], dim=1)

    def stock_code(self, model: Any, processor: Processor) -> str:
        """Return lines to both embeddings and their product."""
        return """output = model(**inputs)
seen, read = output.image_embeds, output.text_embeds
features = torch.cat([seen, read, seen * read], dim=1)"""

    def width(self, config: Any) -> int:
        """Width of the features of one image."""
        embedding = getattr(config, "projection_dim", None) or config.text_config.projection_size
        return 3 * embedding

    def all_width(self, config: Any, pictures: int) -> int:
        """Width of the features of so many images."""
        return (2 * pictures + 1) * self.width(config) // 3

    def adapted_width(self, config: Any) -> int:
        """Return what a bottleneck's factor must divide for both encoders."""
        return math.gcd(config.text_config.hidden_size, config.vision_config.hidden_size)


class Prompted(DualEncoder):
    """The zero-shot classifier of the CLIP paper: the answer whose prompt is nearest to the image.

    An answer is the embedding of its text in a prompt, and a logit the model's own: its scale times the
    cosine of image and answer, and SigLIP's bias. Nothing of it is trained, so it answers before any
    training, and answers can be added at any time. Adapters go into the image encoder alone and are trained
    through it; the text encoder stays the frozen base's, whose embeddings are computed once: the classifier
    is fixed, as in CLIP-Adapter (arXiv 2110.04544), and a step costs no text. The question is not read.

    Parameters
    ----------
    prompt : str
        A text in which ``{}`` stands for the answer.
    losses : tuple of str
        CLIP's logits are made for a softmax: with its scale of 100 all their sigmoids are near 1. SigLIP's
        are made for sigmoids, and a softmax over them is CLIP's.
    """

    architectures = {}
    lora_targets = r"vision_model\..*\.(q_proj|v_proj)"
    left_alone = r"text_model\..*"
    asks = False
    purpose = "zero-shot-image-classification"
    chosen_by = (
        "An answer is chosen by how near the picture is to its text, in the prompt {prompt}, which the frozen"
        " text encoder reads; the question is not read."
    )

    def __init__(self, prompt: str, losses: tuple[str, ...]) -> None:
        self.prompt, self.losses = prompt, losses

    @torch.no_grad()
    def answers(self, texts: Sequence[str], model: Any, processor: Processor, device: torch.device) -> Tensor:
        """Compute the answers' embeddings of length 1, float32, (answers, width)."""
        # How questions are cut and put is not how answers are. CLIP reads no further than a text's end.
        whole = replace(
            processor, text_length=model.config.text_config.max_position_embeddings, template="{}"
        )
        tokens = whole.texts([self.prompt.replace("{}", text) for text in texts])["input_ids"]
        model.to(device)
        parts = (model.get_text_features(part.to(device)).pooler_output for part in tokens.split(_TEXTS))
        return normalize(torch.cat(list(parts)), dim=-1).cpu()

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the logits (batch, answers)."""
        image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        # In bfloat16 a logit of 30 would be known to a tenth.
        with torch.autocast(image.device.type, enabled=False):
            cosines = normalize(image.float(), dim=-1) @ inputs[ANSWERS].T
            logits = cosines * model.logit_scale.exp()
        bias = getattr(model, "logit_bias", None)
        return logits if bias is None else logits + bias

    def stock_code(self, model: Any, processor: Processor) -> str:
        """Return lines to the logits; in the text encoder there is no adapter."""
        length = model.config.text_config.max_position_embeddings
        bias = " + model.logit_bias" if hasattr(model, "logit_bias") else ""
        return f"""from torch.nn.functional import normalize
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = {json.dumps(self.prompt)}
texts = [prompt.replace("{{}}", answer) for answer in answers]
how = dict(padding="max_length", padding_side="right", truncation=True, max_length={length})
told = model.get_text_features(tokenizer(texts, **how, return_tensors="pt")["input_ids"]).pooler_output
seen = model.get_image_features(inputs["pixel_values"]).pooler_output
logits = normalize(seen, dim=-1) @ normalize(told, dim=-1).T * model.logit_scale.exp(){bias}"""

    def adapted_width(self, config: Any) -> int:
        """Width of the image encoder's hidden states."""
        return config.vision_config.hidden_size


_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Prompts that are encoded at a time.
_TEXTS = 64
