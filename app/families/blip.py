"""BLIP for visual question answering: an image encoder, and a text encoder that looks at the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from ..examples import ANSWERS
from ..processor import Processor, load_processor
from ..tasks import IGNORED
from .family import Family, Inputs


class Blip(Family):
    """ALBEF's successor (Li et al., 2022, arXiv 2201.12086), with an answer list in place of its decoder."""

    architectures = {"blip": "BlipForQuestionAnswering"}
    words = "a BLIP for question answering"
    lora_targets = r"(vision_model|text_encoder)\..*\.(qkv|query|value)"
    left_alone: str | None = r"text_decoder\..*"
    heads = (*Family.heads, "decoder")

    def prepare(self, model: Any) -> Any:
        """Have the decoder look past a question's padding."""
        for layer in model.text_decoder.bert.encoder.layer:
            layer.crossattention.self.register_forward_pre_hook(_pass_mask, with_kwargs=True)
        return model

    def processor(self, folder: str | Path, config: Any) -> Processor:
        """Say how its inputs are made; mean and deviation are BLIP's, where the folder names none."""
        return load_processor(
            folder,
            image_size=config.vision_config.image_size,
            text_length=config.text_config.max_position_embeddings,
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        )

    def answering_by(self, head: str, config: Any, prompt: str) -> Family:
        """Return what ranks answers by its decoder, or itself."""
        return Decoding() if head == "decoder" else self

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the first token's hidden states (batch, width) of the question that has seen the image."""
        return _asked(model, inputs)[:, 0]

    def stock_code(self, model: Any, processor: Processor) -> str:
        """Return lines to the first token's hidden states of the question that has seen the image."""
        return """seen = model.vision_model(inputs.pop("pixel_values")).last_hidden_state
features = model.text_encoder(**inputs, encoder_hidden_states=seen).last_hidden_state[:, 0]"""

    def width(self, config: Any) -> int:
        """Width of the features."""
        return config.text_config.hidden_size

    def adapted_width(self, config: Any) -> int:
        """Width of the hidden states, one for all its parts."""
        return config.text_config.hidden_size


class Decoding(Blip):
    """BLIP's own way: the answer of the list that its decoder is likeliest to write.

    A logit is an answer's log-likelihood given image and question, the sum over its tokens and its end, as
    BLIP and ALBEF (arXiv 2107.07651) rank answers; they look at the 128 with the likeliest first token, here
    all are scored, and the work grows with the list. They train to write the right answer, -log p(y). Here
    the loss is the cross-entropy of the list, -log p(y) + log Σ p(a): what is trained is what is chosen by,
    and branches have the distributions over answers that FedDAT's divergence compares. A sigmoid of a
    log-likelihood never passes ½, so that binary cross-entropy is no loss for it.

    Adapters are in the decoder too; its layer over the vocabulary stays as it is.
    """

    architectures = {}
    losses = ("cross-entropy",)
    lora_targets = r"(vision_model|text_encoder|text_decoder)\..*\.(qkv|query|value)"
    left_alone = r"text_decoder\.cls\..*"
    chosen_by = "An answer is chosen by how likely the backbone's decoder is to write it."

    def answers(self, texts: Sequence[str], model: Any, processor: Processor, device: torch.device) -> Tensor:
        """Return what is to be written for each answer, from the first token to its end, then -100."""
        config = model.config.text_config
        first, end, longest = config.bos_token_id, config.sep_token_id, config.max_position_embeddings - 2
        written = processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        told = [torch.tensor([first, *tokens[:longest], end]) for tokens in written]
        return pad_sequence(told, batch_first=True, padding_value=IGNORED)

    def features(self, model: Any, inputs: Inputs) -> Tensor:
        """Compute the log-likelihood of each answer (batch, answers)."""
        asked, mask, answers = _asked(model, inputs), inputs["attention_mask"], inputs[ANSWERS]
        decoder = model.text_decoder
        size = PIECE // (len(asked) * answers.shape[1] * decoder.config.vocab_size)
        parts = answers.split(max(1, size))
        return torch.cat([_log_likelihoods(decoder, asked, mask, part) for part in parts], dim=1)

    def stock_code(self, model: Any, processor: Processor) -> str:
        """Return lines to each answer's log-likelihood; a stock decoder reads past no padding."""
        config = model.config.text_config
        return f"""logits = []
for answer in answers:  # the log-likelihood of its tokens and its end, of which the loss is the mean
    tokens = tokenizer(answer, add_special_tokens=False)["input_ids"][:{config.max_position_embeddings - 2}]
    labels = torch.tensor([[{config.bos_token_id}, *tokens, {config.sep_token_id}]])
    logits.append(-model(**inputs, labels=labels).loss * (len(tokens) + 1))
logits = torch.stack(logits)[None]"""


# Logits of the decoder at a time: 64 MB of float32.
PIECE = 2**24


def _pass_mask(attention: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give the mask by the name that is read: transformers 5.24 gives it by another, and so drops it."""
    if kwargs.get("encoder_attention_mask") is None:
        kwargs = {**kwargs, "encoder_attention_mask": kwargs.get("attention_mask")}
    return args, kwargs


def _asked(model: Any, inputs: Inputs) -> Tensor:
    """Compute the hidden states (batch, length, width) of the question that has seen the image."""
    seen = model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
    return model.text_encoder(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        encoder_hidden_states=seen,
    ).last_hidden_state


def _log_likelihoods(decoder: Any, asked: Tensor, mask: Tensor, answers: Tensor) -> Tensor:
    """Compute those of answers (answers, length), -100 behind their end, for each question."""
    told = answers.repeat(len(asked), 1)
    hidden = decoder.bert(
        input_ids=told[:, :-1].clamp_min(0),  # what is behind the end is read by nothing that counts
        encoder_hidden_states=asked.repeat_interleave(len(answers), 0),
        encoder_attention_mask=mask.repeat_interleave(len(answers), 0),
        is_decoder=True,
        use_cache=False,
    ).last_hidden_state

    def likelihood(hidden: Tensor) -> Tensor:
        logits = decoder.cls(hidden).transpose(1, 2)
        return -cross_entropy(logits, told[:, 1:], ignore_index=IGNORED, reduction="none").sum(1)

    # The vocabulary's logits are made again in the backward pass: no adapter is there, whatever is in place.
    found = checkpoint(likelihood, hidden, use_reentrant=False, preserve_rng_state=False)
    return found.view(len(asked), len(answers))
