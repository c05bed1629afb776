"""Batches for pretraining on captions: words to guess from the picture, and false captions to find out."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.processor import Processor
from data_partitions.scenes import COLORS, NUMBER_WORDS, PLACES, SHAPES, SIZES, TEXTURES

MASKED_SHARE = 0.6
# Phrases of one group can stand in for each other: exchanging one makes a caption false, but for rare luck.
EXCHANGES = (
    COLORS, SHAPES, SIZES, TEXTURES, PLACES, NUMBER_WORDS,
    ("left of", "right of"), ("above", "below"), ("more", "fewer"), ("the same", "different"),
    ("as large as", "larger than", "smaller than"),
)  # fmt: skip
GROUP_OF = {phrase: group for group in EXCHANGES for phrase in group}
# Words that a look at the picture tells; the others of the phrases ("of", "as", "the") are grammar.
SEEN_WORDS = {word for phrase in GROUP_OF for word in phrase.split()} - {"of", "as", "than", "the"}
PHRASE = re.compile(r"\b(" + "|".join(sorted(GROUP_OF, key=len, reverse=True)) + r")\b")


@dataclass
class CaptionedImages:
    """Images and tokenised captions in memory.

    Attributes
    ----------
    pixels : Tensor
        uint8, shape (images, 3, size, size).
    captions : list of list of str
        The captions of each image.
    """

    pixels: Tensor
    captions: list[list[str]]

    @classmethod
    def load(cls, dataset: Dataset, processor: Processor) -> "CaptionedImages":
        """Process a data set with columns ``image`` and ``captions``."""
        return cls(
            torch.stack([processor.image(image) for image in dataset["image"]]), list(dataset["captions"])
        )


@dataclass
class Batch:
    """One batch: model inputs, word labels (-100 where not asked), match labels (-100 where not asked)."""

    inputs: dict[str, Tensor]
    words: Tensor
    matches: Tensor


def exchange_phrase(caption: str, generator: torch.Generator) -> str | None:
    """Make a caption false by exchanging one of its phrases; None where it has none."""
    found = list(PHRASE.finditer(caption))
    if not found:
        return None
    spot = found[_draw(len(found), generator)]
    others = [phrase for phrase in GROUP_OF[spot[0]] if phrase != spot[0]]
    return caption[: spot.start()] + others[_draw(len(others), generator)] + caption[spot.end() :]


def make_batch(
    data: CaptionedImages,
    rows: Sequence[int],
    processor: Processor,
    generator: torch.Generator,
    *,
    full: bool = False,
    matched: bool = True,
) -> Batch:
    """Draw a caption for each image and decide what is asked of it.

    Parameters
    ----------
    data : CaptionedImages
        Where images and captions come from.
    rows : sequence of int
        The images.
    processor : Processor
        Tokenises the captions.
    generator : torch.Generator
        Decides all that is drawn.
    full : bool
        Take every image's first caption, the full description, instead of one of the others.
    matched : bool
        Ask of the last third of the rows whether the caption is true, instead of masking words.

    Notes
    -----
    Only words that the picture tells are masked, and of a full description few of the places, by which the
    other words are found: "left" and "right", which are relations as well.
    """
    tokenizer = processor.tokenizer
    masked = len(rows) * 2 // 3 if matched else len(rows)

    def draw_caption(row: int) -> str:
        return data.captions[row][0 if full else 1 + _draw(len(data.captions[row]) - 1, generator)]

    texts, matches = [], []
    for position, row in enumerate(rows):
        caption = draw_caption(row)
        match = -100
        if position >= masked:
            match = _draw(2, generator)
            if not match:
                false = exchange_phrase(caption, generator) if _draw(2, generator) else None
                caption = false or draw_caption(rows[(position + 1) % len(rows)])
        texts.append(caption)
        matches.append(match)
    inputs = processor.texts(texts)
    longest = int(inputs["attention_mask"].sum(1).max())
    inputs = {key: value[:, :longest] for key, value in inputs.items()}
    groups = [group for group in EXCHANGES if not (full and group is PLACES)]
    maskable = torch.isin(inputs["input_ids"], _token_ids(tokenizer, groups))
    maskable[masked:] = False
    chosen = maskable & (torch.rand(maskable.shape, generator=generator) < MASKED_SHARE)
    words = torch.where(chosen, inputs["input_ids"], -100)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(chosen, cast(int, tokenizer.mask_token_id))
    return Batch({**inputs, "pixel_values": data.pixels[list(rows)]}, words, torch.tensor(matches))


def _token_ids(tokenizer: PreTrainedTokenizerBase, groups: Sequence[Sequence[str]]) -> Tensor:
    words = {word for group in groups for phrase in group for word in phrase.split() if word in SEEN_WORDS}
    return torch.tensor(tokenizer.convert_tokens_to_ids(sorted(words)))


def batches(
    data: CaptionedImages, size: int, steps: int, processor: Processor, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield `steps` batches, from simple to all.

    At first there are only masked full descriptions, of the fifth of the images that has the shortest. From
    20 % to 70 % of the steps the longer ones join; after 40 % every other batch has other captions, and all
    ask for matches. A model that sees many objects from the start takes far longer to find which word means
    what.
    """
    simple_first = sorted(range(len(data.pixels)), key=lambda row: len(data.captions[row][0]))
    for step in range(steps):
        progress = step / steps
        share = min(1.0, 0.2 + 1.6 * max(0.0, progress - 0.2))
        within = max(size, int(share * len(simple_first)))
        picks = torch.randint(within, (size,), generator=generator).tolist()
        rows = [simple_first[pick] for pick in picks]
        alone = progress < 0.4
        full = alone or step % 2 == 0
        yield make_batch(data, rows, processor, generator, full=full, matched=not alone)


def _draw(choices: int, generator: torch.Generator) -> int:
    return int(torch.randint(choices, (), generator=generator))
