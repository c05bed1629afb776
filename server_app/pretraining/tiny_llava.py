"""A tiny LLaVA, made from a configuration, with what it reads: captioned or questioned pictures in memory.

It has the parts of LLaVA (Liu et al., 2023, arXiv 2304.08485, section 4): a CLIP vision tower, a projector
and a Llama. It is made for drawn scenes: an image token is a cell of their grid.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from data_partitions.scenes import PLACES

# The prompt whose answer is a picture's full description.
CAPTION_PROMPT = "describe the picture ."
# A patch is a cell of the scenes' 3 × 3 grid: so it sees whole objects, and an image is nine tokens.
IMAGE_SIZE, PATCH = 72, 24
PATCHES = (IMAGE_SIZE // PATCH) ** 2
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
IGNORED = -100
# LLaVA-1.5's conversation; the end token closes an answer.
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}:"
    "{% if message['content'] is string %} {{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Make a lower-case WordPiece tokenizer of the words in `texts`; it spells out every other word."""
    words = sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(texts).lower())))
    characters = sorted(set(string.printable.lower()) - set(string.whitespace))
    pieces = dict.fromkeys([*SPECIAL, *words, *characters, *(f"##{character}" for character in characters)])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def build(texts: Sequence[str], width: int = 128) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Make the model of a width, with random weights, and its processor, which knows the words of `texts`."""
    tokenizer = build_tokenizer([*texts, "user : assistant"])
    half = [0.5, 0.5, 0.5]
    images = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=half,
        image_std=half,
    )
    # CLIP's own first token, which stands for no patch, is counted and left out again.
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    shape: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": width // 32,
        "initializer_range": 0.05,  # 0.02 is for wide models
    }
    vision = CLIPVisionConfig(
        **shape, num_hidden_layers=2, image_size=IMAGE_SIZE, patch_size=PATCH, projection_dim=width
    )
    language = LlamaConfig(
        **shape,
        tie_word_embeddings=True,
        num_hidden_layers=4,
        num_key_value_heads=width // 32,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=processor.image_token_id,
        image_seq_length=PATCHES,
        # All layers: the published choice leaves out the last, for the tower was trained for something else.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        # So an image token that is like a word's embedding is ready to be said.
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    # transformers starts them small, for loading trained ones: it would take long to tell places apart.
    embeddings = model.model.vision_tower.embeddings
    nn.init.normal_(embeddings.position_embedding.weight, std=0.5)
    nn.init.xavier_uniform_(embeddings.patch_embedding.weight.flatten(1))
    return model, processor


@dataclass(frozen=True)
class Answered:
    """Images in memory, with a prompt and an answer each as token ids.

    Attributes
    ----------
    pixels : Tensor
        float16, shape (images, 3, size, size).
    prompts, answers : list of list of int
        Token ids; a prompt has its image's tokens, an answer ends in the end token.
    """

    pixels: Tensor
    prompts: list[list[int]]
    answers: list[list[int]]

    @classmethod
    def load(
        cls, images: Sequence[Any], prompts: Sequence[str], answers: Sequence[str], processor: Any
    ) -> "Answered":
        """Process images, prompts and answers of equal number."""
        pixels = [
            processor.image_processor(image, return_tensors="pt").pixel_values.half() for image in images
        ]
        return cls(torch.cat(pixels), [], []).told(prompts, answers, processor)

    def told(self, prompts: Sequence[str], answers: Sequence[str], processor: Any) -> "Answered":
        """Return the same images with other prompts and answers."""
        tokenizer = processor.tokenizer
        patches = PATCHES * processor.image_token
        rendered = {
            prompt: _asked(processor, prompt).replace(processor.image_token, patches)
            for prompt in set(prompts)
        }
        written = tokenizer(list(answers), add_special_tokens=False).input_ids
        return replace(
            self,
            prompts=tokenizer([rendered[prompt] for prompt in prompts]).input_ids,
            answers=[[*ids, tokenizer.eos_token_id] for ids in written],
        )

    def batch(self, rows: Sequence[int], pad: int) -> dict[str, Tensor]:
        """Return model inputs, padded on the right; `labels` ask for the answers alone."""
        texts = [self.prompts[row] + self.answers[row] for row in rows]
        longest = max(len(text) for text in texts)
        ids = torch.full((len(rows), longest), pad)
        labels = torch.full((len(rows), longest), IGNORED)
        for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
            ids[place, : len(text)] = torch.tensor(text)
            labels[place, len(self.prompts[row]) : len(text)] = torch.tensor(self.answers[row])
        return {
            "input_ids": ids,
            "attention_mask": (ids != pad).long(),
            "pixel_values": self.pixels[list(rows)].float(),
            "labels": labels,
        }


def patch_words(descriptions: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return which tokens describe what each patch shows, bool (descriptions, patches, vocabulary)."""
    words = torch.zeros(len(descriptions), PATCHES, len(tokenizer), dtype=torch.bool)
    for image, description in enumerate(descriptions):
        for phrase in description.split(" , "):
            place = max((place for place in PLACES if phrase.startswith(place)), key=len)
            words[image, PLACES.index(place), tokenizer(phrase, add_special_tokens=False).input_ids] = True
    return words


def _asked(processor: LlavaProcessor, prompt: str) -> str:
    message: Any = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    return processor.apply_chat_template([message], add_generation_prompt=True)
