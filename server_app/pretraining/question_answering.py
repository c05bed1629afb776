"""Questions: the second objective of the built-in backbone, answered in the pooled feature.

After masked captions (`masked_captions`) the model fills in masked words, but its pooled feature tells
little: nothing asked for it but matching. Here every question ends in a mask, and the answer is asked for at
the mask, which has learnt to look, and of the pooled feature, which learns to read it there. Image question
answering as a pretraining task is from LXMERT (Tan & Bansal, 2019, arXiv 1908.07490, section 3.1).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ViltModel

from app.backbones import Backbone
from app.processor import Processor

from .trainer import Objective, vary

Columns: TypeAlias = Dataset | dict[str, list]

CARD = """
Then, for {done}, it answered {images:,} questions about as many other
public scenes from its pooled feature (a task of LXMERT). Of {held_out:,} held-out questions it answers
**{scenes:.1%}** (always the most frequent answer: {majority:.1%}).
"""


@dataclass(frozen=True)
class Questions:
    """Questions in memory.

    Attributes
    ----------
    pixels : Tensor
        uint8, shape (questions, 3, size, size).
    input_ids, attention_mask : Tensor
        int64, shape (questions, tokens).
    answers : Tensor
        Index of each answer, int64, shape (questions,).
    """

    pixels: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    answers: Tensor

    @classmethod
    def load(cls, dataset: Columns, processor: Processor, answers: Sequence[str]) -> "Questions":
        """Process the columns image, question and answer."""
        texts = processor.texts(dataset["question"])
        longest = int(texts["attention_mask"].sum(1).max())
        return cls(
            torch.stack([processor.image(image) for image in dataset["image"]]),
            texts["input_ids"][:, :longest],
            texts["attention_mask"][:, :longest],
            torch.tensor([answers.index(answer) for answer in dataset["answer"]]),
        )

    def majority(self) -> float:
        """Return the share of the most frequent answer, in [0, 1]."""
        return int(torch.bincount(self.answers).max()) / len(self.answers)

    def inputs(self, rows: Tensor, processor: Processor) -> dict[str, Tensor]:
        """Return the model inputs of some rows."""
        return {
            "input_ids": self.input_ids[rows],
            "attention_mask": self.attention_mask[rows],
            "pixel_values": processor.normalise(self.pixels[rows]),
        }


class QuestionAnswering(Objective):
    """A ViLT with two heads over all answers: on the pooled feature, and at the mask.

    Parameters
    ----------
    start : Backbone
        What to go on from; it is copied. Its tokenizer has a mask.
    data : Dataset or dict of str to list
        Columns image, question, answer: what to learn from.
    held_out : mapping of str to Dataset or dict
        The same columns: what to measure on, by name; the public scenes are ``scenes``.
    """

    def __init__(self, start: Backbone, data: Columns, held_out: Mapping[str, Columns]) -> None:
        super().__init__()
        answers = sorted({answer for split in (data, *held_out.values()) for answer in split["answer"]})
        self.processor = replace(start.processor, template="{} " + str(start.processor.tokenizer.mask_token))
        self.data = Questions.load(data, self.processor, answers)
        self.drawn = len(self.data.answers)
        self.held_out = {
            name: Questions.load(split, self.processor, answers) for name, split in held_out.items()
        }
        # A family's own attention is made for frozen weights; in bfloat16 its backward pass is slow on a CPU.
        self.model = ViltModel(start.model.config)
        self.model.load_state_dict(start.model.state_dict())
        self.head, self.at_mask = (nn.Linear(start.width, len(answers)) for _ in range(2))

    @property
    def backbone(self) -> ViltModel:
        """The ViLT, without the heads."""
        return self.model

    def batches(self, size: int, steps: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Yield questions drawn evenly."""
        for _ in range(steps):
            rows = torch.randint(len(self.data.answers), (size,), generator=generator)
            inputs = self.data.inputs(rows, self.processor)
            pixels = vary(inputs["pixel_values"], generator)
            yield {**inputs, "pixel_values": pixels, "answers": self.data.answers[rows]}

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropies of the answer from the pooled feature and at the mask."""
        answers = batch.pop("answers")
        output = self.model(**batch)
        masks = batch["attention_mask"].sum(1) - 2  # the last word before [SEP]
        words = output.last_hidden_state[torch.arange(len(answers), device=answers.device), masks]
        return {
            "pooled": cross_entropy(self.head(output.pooler_output).float(), answers),
            "at mask": cross_entropy(self.at_mask(words).float(), answers),
        }

    def measure(self) -> dict[str, float]:
        """Return the share of each held-out set answered from the pooled feature, in [0, 1]."""
        return {name: self._answered(questions) for name, questions in self.held_out.items()}

    def _answered(self, asked: Questions) -> float:
        right = 0
        for rows in torch.arange(len(asked.answers)).split(100):
            inputs = asked.inputs(rows, self.processor)
            inputs = {key: value.to(self.model.device) for key, value in inputs.items()}
            chosen = self.head(self.model(**inputs).pooler_output).argmax(-1).cpu()
            right += int((chosen == asked.answers[rows]).sum())
        return right / len(asked.answers)

    def describe(self, name: str, seed: int, done: str, reached: dict[str, float]) -> str:
        """Write what a model card adds to that of the start."""
        return CARD.format(
            done=done,
            images=self.drawn,
            held_out=len(self.held_out["scenes"].answers),
            majority=self.held_out["scenes"].majority(),
            **reached,
        )
