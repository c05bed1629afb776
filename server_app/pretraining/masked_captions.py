"""Masked captions: the objective that makes the built-in backbone from nothing.

Masked language modelling and image–text matching, the two objectives of ViLT (Kim et al., 2021, arXiv
2102.03334, section 3.3), on captioned images. Two thirds of a batch's rows have masked captions; of the rest,
half have a false caption: another image's, or the true one with a single phrase exchanged.
"""

import pydoc_data.topics
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, ViltConfig, ViltForMaskedLM, ViltModel

from app.families.vilt import keep_patch_order
from app.processor import Processor

from .caption_batches import Batch, CaptionedImages, batches, make_batch
from .trainer import Objective, vary

TINY_VILT: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 768,
    "image_size": 64,
    "patch_size": 8,
    "max_position_embeddings": 48,
    # 0.02 is for wide models.
    "initializer_range": 0.05,
}
VOCABULARY = 2048
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-feature-extraction
---
# {name}

A small ViLT for trying out federated fine-tuning without a download: {millions:.2f} M parameters, {layers}
layers of width {width}, images {size}×{size} in patches of {patch}×{patch}, WordPiece vocabulary of
{vocabulary}.

Pretrained from scratch by this project on {images:,} drawn public scenes with captions (benchmark `scenes`,
public split, seed {seed}), which no client holds: masked language modelling and image–text matching,
{done}. On {held_out:,} held-out public scenes it completes
**{words:.1%}** of the masked caption words that only the picture tells, and tells a true caption from a
false one (half of these differ in a single phrase) in **{matches:.1%}** of cases. It knows little beyond
drawn shapes: for real images and for results worth publishing use a large backbone. Python's documentation
is part of its tokenizer's corpus.
"""


def build_tokenizer(captions: Sequence[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Train a lower-case WordPiece tokenizer on captions and on the English of Python's own documentation.

    The second gives it pieces for questions about other things than scenes, without a download.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(set(string.printable) - set(string.whitespace)),
    )
    english = re.findall(r"[A-Za-z][a-z]+|\d", " ".join(pydoc_data.topics.topics.values()))
    tokenizer.train_from_iterator([*captions, " ".join(english)], trainer)
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", SPECIAL.index("[SEP]")), ("[CLS]", SPECIAL.index("[CLS]"))
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=TINY_VILT["max_position_embeddings"],
    )


def sine_positions(grid: int, width: int) -> Tensor:
    """Return fixed positions (grid², width): sines and cosines of the row, then of the column."""
    frequencies = 10_000 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(grid)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = waves.repeat_interleave(grid, dim=0), waves.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)


class MaskedCaptions(Objective):
    """ViLT with its masked-language head and a matching head on the pooled feature.

    Parameters
    ----------
    config : ViltConfig
        The architecture.
    data, held_out : CaptionedImages
        What to learn from, and what to measure on.
    processor : Processor
        How inputs are made.
    """

    def __init__(
        self, config: ViltConfig, data: CaptionedImages, held_out: CaptionedImages, processor: Processor
    ) -> None:
        super().__init__()
        self.data, self.held_out, self.processor = data, held_out, processor
        self.language = ViltForMaskedLM(config)
        keep_patch_order(self.language.vilt)
        self._see_from_the_start()
        self.matching = nn.Linear(config.hidden_size, 2)

    @torch.no_grad()
    def _see_from_the_start(self) -> None:
        """Start positions and patches as in He et al. (2022, arXiv 2111.06377), appendix A.1.

        transformers starts them near zero, for loading pretrained ones: words would learn to ignore them.
        """
        embeddings = self.language.vilt.embeddings
        grid = embeddings.config.image_size // embeddings.config.patch_size
        embeddings.position_embeddings[0, 1:] = sine_positions(grid, embeddings.config.hidden_size)
        nn.init.xavier_uniform_(embeddings.patch_embeddings.projection.weight.flatten(1))

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits over the vocabulary (batch, tokens, vocabulary) and over {false, true} (batch, 2)."""
        output = self.language.vilt(**inputs)
        words = output.last_hidden_state[:, : inputs["input_ids"].shape[1]]
        return self.language.mlm_score(words), self.matching(output.pooler_output)

    @property
    def backbone(self) -> ViltModel:
        """The ViLT, without the heads."""
        return self.language.vilt

    def batches(self, size: int, steps: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """Yield batches from simple to all, see `caption_batches.batches`."""
        for batch in batches(self.data, size, steps, self.processor, generator):
            inputs = self._inputs(batch)
            pixels = vary(inputs["pixel_values"], generator)
            yield {**inputs, "pixel_values": pixels, "words": batch.words, "matches": batch.matches}

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropies of masked words and of matching."""
        labels, truths = batch.pop("words"), batch.pop("matches")
        words, matches = self(batch)
        asked = max(1, int((truths >= 0).sum()))
        return {
            "words": cross_entropy(words.float().flatten(0, 1), labels.flatten()),
            "matching": cross_entropy(matches.float(), truths, reduction="sum") / asked,
        }

    def measure(self, seed: int = 1) -> dict[str, float]:
        """Return accuracies of masked words and of matching, in [0, 1]."""
        device = self.backbone.device
        generator = torch.Generator().manual_seed(seed)
        right = {"words": 0, "matches": 0}
        asked = {"words": 0, "matches": 0}
        for index, rows in enumerate(torch.arange(len(self.held_out.pixels)).split(100)):
            batch = make_batch(self.held_out, rows.tolist(), self.processor, generator, full=index % 2 == 0)
            inputs = {key: value.to(device) for key, value in self._inputs(batch).items()}
            for key, logits in zip(right, self(inputs), strict=True):
                labels = getattr(batch, key)
                right[key] += int((logits.argmax(-1).cpu() == labels)[labels >= 0].sum())
                asked[key] += int((labels >= 0).sum())
        return {key: right[key] / asked[key] for key in right}

    def describe(self, name: str, seed: int, done: str, reached: dict[str, float]) -> str:
        """Write a model card."""
        config = self.backbone.config
        return CARD.format(
            name=name,
            millions=self.backbone.num_parameters() / 1e6,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            size=config.image_size,
            patch=config.patch_size,
            vocabulary=config.vocab_size,
            images=len(self.data.pixels),
            held_out=len(self.held_out.pixels),
            seed=seed,
            done=done,
            **reached,
        )

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        pixels = self.processor.normalise(batch.inputs["pixel_values"])
        return {**batch.inputs, "pixel_values": pixels}
