"""Answers in words: the objective that makes the built-in generative backbone from nothing.

A tiny LLaVA (`tiny_llava`) learns in LLaVA's two stages (Liu et al., 2023, arXiv 2304.08485, section 4.2), on
drawn public scenes. First image tokens learn to be like the words for what their patch shows: a language
model that has to learn seeing and finding at once learns neither for long. Then the whole model learns to
write descriptions, true sentences and answers, by next-token loss on what it is to write alone.
"""

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import LlavaForConditionalGeneration

from app.backbones import Backbone
from app.chat import chat_processor

from .tiny_llava import CAPTION_PROMPT, IGNORED, Answered, build, patch_words
from .trainer import Objective, vary

WIDTH = 192
STATEMENT_PROMPT = "say something about the picture ."
# Share of the steps that name patches, on twice the pictures: such a step costs a third.
NAMING = 0.3
# Share of the rest by which all descriptions have joined, the shortest first, and questions begin.
DESCRIBING = 0.1
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}

A small LLaVA for trying out federated fine-tuning of a model that writes, without a download:
{millions:.2f} M parameters, a CLIP vision tower of {seen} layers and a Llama of {read}, both of width
{width}, images {size}×{size} of {patches} tokens, {vocabulary} words and letters. It knows little beyond
drawn shapes: for real images and for results worth publishing use a large backbone.
"""
TRAINING = """
Pretrained by this project for {done} on drawn public scenes (benchmark `scenes`, public split, seed
{seed}), which no client holds: {pictures:,} with descriptions and sentences, {questions:,} with a question
each. Of {held_out:,} held-out public questions, what it writes is exactly the answer to

| | |
|---|---:|
| **{answered:.1%}** | with the picture |
| {other:.1%} | with another question's picture |
| {text:.1%} | without a model: the most frequent training answer to the same question |
"""


class Answering(Objective):
    """A tiny LLaVA with its own head.

    Parameters
    ----------
    captioned, asked : Dataset
        What to learn from: columns image, captions; image, question, answer.
    held_out : Dataset
        Questions to measure on.
    start : Backbone, optional
        One that has named and described, to go on from; it is copied.
    width : int
        Of vision tower and language model, where nothing is gone on from.
    """

    def __init__(
        self,
        captioned: Dataset,
        asked: Dataset,
        held_out: Dataset,
        start: Backbone | None = None,
        width: int = WIDTH,
    ) -> None:
        super().__init__()
        descriptions = [captions[0] for captions in captioned["captions"]]
        # One of the others a picture, all kinds equally often.
        sentences = [
            captions[1 + n % (len(captions) - 1)] for n, captions in enumerate(captioned["captions"])
        ]
        texts = [*sentences, *descriptions, *asked["question"], *asked["answer"]]
        self.model: Any
        if start is None:
            self.model, processor = build([*texts, CAPTION_PROMPT, STATEMENT_PROMPT], width)
            self.processor = chat_processor(processor, self.model.config)
        else:
            self.model = copy.deepcopy(start.model).requires_grad_(True)
            self.processor, processor = start.processor, start.processor.processor
        self.naming = 0.0 if start else NAMING
        self.described = Answered.load(
            captioned["image"], [CAPTION_PROMPT] * len(captioned), descriptions, processor
        )
        self.stated = self.described.told([STATEMENT_PROMPT] * len(captioned), sentences, processor)
        self.asked, self.held_out = (
            Answered.load(split["image"], split["question"], split["answer"], processor)
            for split in (asked, held_out)
        )
        self.words = patch_words(descriptions, processor.tokenizer)
        self.text_only = text_only(asked, held_out)

    @property
    def backbone(self) -> LlavaForConditionalGeneration:
        """The LLaVA, with its head."""
        return self.model

    def batches(self, size: int, steps: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Yield pictures with words for their patches, then texts to write.

        At first these are descriptions, the shortest first; then three batches of four are of questions, and
        the rest takes turns between descriptions and sentences. Whoever goes on begins with these.
        """
        shortest_first = torch.tensor([len(answer) for answer in self.described.answers]).argsort()
        described = self.naming + DESCRIBING * (1 - self.naming) if self.naming else 0.0
        for step in range(steps):
            progress = step / steps
            if progress < self.naming:
                rows = torch.randint(len(self.words), (2 * size,), generator=generator)
                pixels = self.described.pixels[rows].float()
                batch = {"pixel_values": pixels, "words": self.words[rows]}
            elif progress < described:
                share = 0.2 + 0.8 * (progress - self.naming) / (described - self.naming)
                picks = torch.randint(max(size, int(share * len(self.words))), (size,), generator=generator)
                batch = self._batch(self.described, shortest_first[picks % len(self.words)])
            else:
                rest = (self.described, self.stated)[step // 4 % 2]
                data = rest if step % 4 == 0 else self.asked
                batch = self._batch(data, torch.randint(len(data.answers), (size,), generator=generator))
            yield {**batch, "pixel_values": vary(batch["pixel_values"], generator)}

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of naming patches, or the cross-entropy of what is to be written.

        As in LLaVA the vision tower stays as it is while writing is learnt.
        """
        self.model.model.vision_tower.requires_grad_("words" in batch)
        if "words" not in batch:
            return {"writing": self.model(**batch).loss}
        features = self.model.get_image_features(batch["pixel_values"]).pooler_output
        logits, words = self.model.lm_head(torch.stack(list(features))), batch["words"].float()
        return {
            "naming": binary_cross_entropy_with_logits(logits.float(), words, reduction="sum") / words.sum()
        }

    def measure(self) -> dict[str, float]:
        """Return the share of held-out questions that are answered exactly, in [0, 1].

        An answer is written greedily just when each of its tokens is the likeliest behind those before it.
        """
        return {"answered": self._exact(0), "other": self._exact(1)}

    def _exact(self, further: int) -> float:
        """Answer each held-out question with the picture so many questions further on."""
        right, number = 0, len(self.held_out.answers)
        for rows in torch.arange(number).split(100):
            batch = self._batch(self.held_out, rows)
            batch["pixel_values"] = self.held_out.pixels[(rows + further) % number].float()
            batch = {key: value.to(self.model.device) for key, value in batch.items()}
            labels = batch.pop("labels")[:, 1:]
            found = self.model(**batch).logits[:, :-1].argmax(-1)
            right += int(((found == labels) | (labels == IGNORED)).all(1).sum())
        return right / number

    def describe(self, name: str, seed: int, done: str, reached: dict[str, float]) -> str:
        """Write a model card."""
        config = self.model.config
        return (TRAINING if self.naming == 0 else CARD + TRAINING).format(
            name=name,
            millions=self.model.num_parameters() / 1e6,
            seen=config.vision_config.num_hidden_layers,
            read=config.text_config.num_hidden_layers,
            width=config.text_config.hidden_size,
            size=config.vision_config.image_size,
            patches=config.image_seq_length,
            vocabulary=config.text_config.vocab_size,
            pictures=len(self.words),
            questions=len(self.asked.answers),
            held_out=len(self.held_out.answers),
            seed=seed,
            done=done,
            text=self.text_only,
            **reached,
        )

    def _batch(self, data: Answered, rows: Tensor) -> dict[str, Tensor]:
        return data.batch(rows.tolist(), self.processor.padding)


def text_only(asked: Dataset, held_out: Dataset) -> float:
    """Return how often the most frequent answer to the same question, else to all, is right, in [0, 1]."""
    overall = Counter(asked["answer"])
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in zip(asked["question"], asked["answer"], strict=True):
        by_question[question][answer] += 1
    right = sum(
        by_question.get(question, overall).most_common(1)[0][0] == answer
        for question, answer in zip(held_out["question"], held_out["answer"], strict=True)
    )
    return right / len(held_out)
