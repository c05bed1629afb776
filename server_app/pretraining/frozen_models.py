"""The large frozen models that dynamic weighted pretraining leans on, by name; none outlives it."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from app.hub import check_hub
from app.processor import Processor

ENCODERS = "a CLIP, another vision transformer of square patches, or a LLaVA, whose own encoder is taken"
LANGUAGE_MODELS = "a causal language model, or a LLaVA, whose own is taken"
LONGEST_CAPTION = 128  # tokens


@dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """A large visual encoder.

    Attributes
    ----------
    name : str
        The name it was asked by.
    model : PreTrainedModel
        Returns hidden states, of which the last grid² tokens are the patches in reading order.
    processor : Processor
        Makes its pixels. The whole image is squeezed to a square, as the student's is: so patches of both
        cover the same places.
    layer : int
        Whose hidden states are its features.
    grid : int
        Patches a side.
    """

    name: str
    model: PreTrainedModel
    processor: Processor
    layer: int
    grid: int

    @property
    def width(self) -> int:
        """Width of the features."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Map uint8 pixels (batch, 3, height, width) to features (batch, grid², width)."""
        pixels = self.processor.normalise(pixels).to(self.model.dtype)
        hidden = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[self.layer]
        return hidden[:, -(self.grid**2) :].float()


@dataclass(frozen=True, eq=False)
class FrozenLanguageModel:
    """A large language model that continues embedded tokens.

    Attributes
    ----------
    name : str
        The name it was asked by.
    model : PreTrainedModel
        Generates text; takes `inputs_embeds` and returns `logits`.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def width(self) -> int:
        """Width of an embedded token."""
        return self.model.get_input_embeddings().weight.shape[1]

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Tokenise captions, each with the end token: int64 (captions, tokens), -100 behind the shorter."""
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        encoded = self.tokenizer(
            list(captions), add_special_tokens=False, truncation=True, max_length=LONGEST_CAPTION
        )
        rows = [torch.tensor([*ids, *end], dtype=torch.long) for ids in encoded["input_ids"]]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)

    def loss(self, visual: Tensor, tokens: Tensor) -> Tensor:
        """Compute the mean next-token loss of captions behind visual tokens.

        The *plain* template of LLaVA's first stage (Liu et al., 2023, arXiv 2304.08485, section 4.2): an
        image's tokens, then its caption, which alone is asked for.

        Parameters
        ----------
        visual : Tensor
            Shape (batch, visual tokens, width).
        tokens : Tensor
            See `tokens`; shape (batch, caption tokens).

        Returns
        -------
        Tensor
            Nats a token, a scalar.
        """
        embed = self.model.get_input_embeddings()
        valid = tokens >= 0
        words = embed(tokens.where(valid, 0))
        parts = [visual.to(words.dtype), words]
        if (begin := self.tokenizer.bos_token_id) is not None:
            parts.insert(0, embed(tokens.new_full((len(tokens), 1), begin)))
        embedded = torch.cat(parts, dim=1)
        before = embedded.shape[1] - tokens.shape[1]
        mask = torch.cat([valid.new_ones(len(tokens), before), valid], dim=1).long()
        logits = self.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
        asked = logits[:, before - 1 : -1].float()
        return torch.nn.functional.cross_entropy(asked.flatten(0, 1), tokens.flatten())


def load_frozen(
    encoder: str, language_model: str, device: torch.device
) -> tuple[FrozenEncoder, FrozenLanguageModel]:
    """Load both models; a LLaVA that is named for both is loaded once.

    Parameters
    ----------
    encoder, language_model : str
        Folders or hub ids, in safetensors.
    device : torch.device
        Where they compute: in bfloat16 on CUDA, else in float32.

    Raises
    ------
    ValueError
        If one cannot be loaded or is none: one line with the name and what is allowed.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    load = functools.cache(functools.partial(_load, device=device))

    def attempt(make, key: str, name: str, allowed: str):
        try:
            return make(name, load(os.path.expanduser(name)))
        # A RuntimeError says that shapes do not fit, an ImportError that another package is needed.
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(
                f"{key} = {name!r} cannot be used ({reason}); allowed: folder, or hub id when it can be "
                f"reached, of {allowed}"
            ) from None

    return (
        attempt(_encoder, "pretrain.encoder", encoder, ENCODERS),
        attempt(_language_model, "pretrain.language-model", language_model, LANGUAGE_MODELS),
    )


def _load(name: str, device: torch.device) -> PreTrainedModel:
    check_hub(name)
    config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    auto: Any = AutoModel
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        auto = AutoModelForImageTextToText
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        auto = AutoModelForCausalLM
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model, report = auto.from_pretrained(
        name,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        dtype=dtype,
        output_loading_info=True,
    )
    # transformers would leave them random.
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"no weights for {missing[0]}")
    return model.to(device).eval().requires_grad_(False)


def _encoder(name: str, model: Any) -> FrozenEncoder:
    # The layer before the last is LLaVA's choice for a CLIP.
    layer = getattr(model.config, "vision_feature_layer", -2)
    tower = getattr(model.base_model, "vision_tower", None) or getattr(model, "vision_model", model)
    size, patch = (getattr(tower.config, key, None) for key in ("image_size", "patch_size"))
    if not (isinstance(size, int) and isinstance(patch, int) and isinstance(layer, int)):
        raise ValueError("it has no visual encoder of one grid of square patches and one layer of features")
    settings = AutoImageProcessor.from_pretrained(os.path.expanduser(name), trust_remote_code=False)
    mean, std = (tuple(getattr(settings, key)) for key in ("image_mean", "image_std"))
    tokenizer: Any = None  # it reads no text
    return FrozenEncoder(name, tower, Processor(tokenizer, size, 0, mean, std), layer, size // patch)


def _language_model(name: str, model: PreTrainedModel) -> FrozenLanguageModel:
    if not (model.can_generate() and not model.config.is_encoder_decoder):
        raise ValueError("it continues no text")
    tokenizer = AutoTokenizer.from_pretrained(os.path.expanduser(name), trust_remote_code=False)
    return FrozenLanguageModel(name, model, tokenizer)
