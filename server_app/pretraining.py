"""Pretraining of the built-in backbone on captioned public images.

Masked language modelling and image–text matching, the two objectives of ViLT (Kim et al., 2021, arXiv
2102.03334, section 3.3), on the public split of the benchmark ``scenes``. Two thirds of a batch's rows have
masked captions; of the rest, half have a false caption: another image's, or the true one with a single phrase
exchanged.

Run ``python -m server_app.pretraining --out FOLDER`` to repeat it; the model card in FOLDER says what was
reached.
"""

import argparse
import copy
import json
import math
import platform
import pydoc_data.topics
import re
import string
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, ViltConfig, ViltForMaskedLM, ViltModel

from app.backbones import Processor, choose_device, keep_patch_order
from app.settings import feddat_home
from data_partitions.benchmarks import DataOptions, load_public

from .caption_batches import CaptionedImages, batches, make_batch

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
MEASURE_EVERY = 250


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


class Pretrainer(nn.Module):
    """ViLT with its masked-language head and a matching head on the pooled feature."""

    def __init__(self, config: ViltConfig) -> None:
        super().__init__()
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


def vary(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Vary gain, offset and grain of normalised pixels, so that the backbone is not tied to one rendering."""
    shape = (len(pixels), 1, 1, 1)
    gain = 0.8 + 0.4 * torch.rand(shape, generator=generator)
    offset = 0.3 * (torch.rand(shape, generator=generator) - 0.5)
    grain = 0.1 * torch.rand(shape, generator=generator) * torch.randn(pixels.shape, generator=generator)
    return pixels * gain + offset + grain


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up linearly over the first 2 %, then fall along a cosine to zero."""
    warm = max(1, steps // 50)
    return peak * min(step / warm, 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))))


@torch.no_grad()
def measure(
    model: Pretrainer, data: CaptionedImages, processor: Processor, seed: int = 1
) -> dict[str, float]:
    """Return accuracies of masked words and of matching on held-out images, in [0, 1]."""
    model.eval()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    right = {"words": 0, "matches": 0}
    asked = {"words": 0, "matches": 0}
    for index, rows in enumerate(torch.arange(len(data.pixels)).split(100)):
        batch = make_batch(data, rows.tolist(), processor, generator, full=index % 2 == 0)
        inputs = {key: value.to(device) for key, value in batch.inputs.items()}
        inputs["pixel_values"] = processor.normalise(inputs["pixel_values"])
        for key, logits in zip(right, model(inputs), strict=True):
            labels = getattr(batch, key)
            right[key] += int((logits.argmax(-1).cpu() == labels)[labels >= 0].sum())
            asked[key] += int((labels >= 0).sum())
    model.train()
    return {key: right[key] / asked[key] for key in right}


def pretrain(
    model: Pretrainer,
    data: CaptionedImages,
    held_out: CaptionedImages,
    processor: Processor,
    *,
    steps: int,
    batch_size: int,
    peak: float,
    seed: int,
    keep: Callable[[int, dict[str, float]], None],
) -> None:
    """Train `model` in place; tell `keep` the step and what `measure` finds, now and then and at the end."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))
    columns = (
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, refresh_per_second=0.5) as progress:
        task = progress.add_task("pretraining", total=steps, state="")
        for step, batch in enumerate(batches(data, batch_size, steps, processor, generator), start=1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            inputs = {key: value.to(device) for key, value in batch.inputs.items()}
            inputs["pixel_values"] = vary(processor.normalise(batch.inputs["pixel_values"]), generator).to(
                device
            )
            with torch.autocast(device.type, torch.bfloat16):
                words, matches = model(inputs)
            asked = max(1, int((batch.matches >= 0).sum()))
            word_loss = cross_entropy(words.float().flatten(0, 1), batch.words.to(device).flatten())
            match_loss = cross_entropy(matches.float(), batch.matches.to(device), reduction="sum") / asked
            optimizer.zero_grad()
            (word_loss + match_loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % MEASURE_EVERY == 0 or step == steps:
                reached = measure(model, held_out, processor)
                keep(step, reached)
                progress.console.print(
                    f"step {step}: losses {word_loss:.3f} {match_loss:.3f}; held out: masked words "
                    f"{reached['words']:.3f}, matching {reached['matches']:.3f}"
                )
            progress.update(task, advance=1, state=f"loss {word_loss:.2f} + {match_loss:.2f}")


# The options that a model card's command repeats.
REPEATED = ("images", "steps", "batch_size", "learning_rate", "seed", "out")

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
{done:,} of {steps:,} batches of {batch_size}. On {held_out:,} held-out public scenes it completes
**{words:.1%}** of the masked caption words that only the picture tells, and tells a true caption from a
false one (half of these differ in a single phrase) in **{matches:.1%}** of cases. It knows little beyond
drawn shapes: for real images and for results worth publishing use a large backbone.

Repeat it with

    python -m server_app.pretraining {command}

which took {minutes:.0f} minutes on {machine}, with Python {python} (whose documentation is part of the
tokenizer's corpus).
"""


def save(model: ViltModel, processor: Processor, folder: Path, card: str) -> None:
    """Write fp16 weights, configuration, tokenizer, image settings and model card."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    settings = {
        "image_processor_type": "ViltImageProcessor",
        "size": {"height": processor.image_size, "width": processor.image_size},
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
        "text_template": processor.template,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "README.md").write_text(card, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain a tiny ViLT and save it."""
    parser = argparse.ArgumentParser(
        prog="python -m server_app.pretraining", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pretrained backbone")
    parser.add_argument("--images", type=int, default=40_000, help="public scenes to draw")
    parser.add_argument("--steps", type=int, default=7_000, help="batches to train on")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak of the schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    started = time.monotonic()

    data_options = DataOptions(seed=options.seed, cache_dir=feddat_home() / "data")
    public = load_public("scenes", data_options, options.images, split="train")
    aside = load_public("scenes", data_options, max(100, options.images // 20), split="validation")
    tokenizer = build_tokenizer([caption for captions in public["captions"] for caption in captions])
    config = ViltConfig(**TINY_VILT, vocab_size=len(tokenizer), hidden_dropout_prob=0.0)
    half = (0.5, 0.5, 0.5)
    processor = Processor(
        tokenizer, TINY_VILT["image_size"], TINY_VILT["max_position_embeddings"], mean=half, std=half
    )
    data, held_out = (CaptionedImages.load(split, processor) for split in (public, aside))

    device = choose_device(options.device)
    model = Pretrainer(config).to(device)

    def keep(step: int, reached: dict[str, float]) -> None:
        """Save the model as it is, so that a run that is stopped leaves what it had."""
        card = CARD.format(
            name=options.out.name,
            millions=sum(p.numel() for p in model.language.vilt.parameters()) / 1e6,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            size=config.image_size,
            patch=config.patch_size,
            vocabulary=config.vocab_size,
            images=len(public),
            held_out=len(aside),
            done=step,
            python=platform.python_version(),
            minutes=(time.monotonic() - started) / 60,
            machine=f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else "one GPU",
            command=" ".join(f"--{key.replace('_', '-')} {getattr(options, key)}" for key in REPEATED),
            **{key: getattr(options, key) for key in ("steps", "batch_size", "seed")},
            **reached,
        )
        save(model.language.vilt, processor, options.out, card)

    pretrain(
        model,
        data,
        held_out,
        processor,
        steps=options.steps,
        batch_size=options.batch_size,
        peak=options.learning_rate,
        seed=options.seed,
        keep=keep,
    )
    print(f"saved to {options.out.resolve()}")


if __name__ == "__main__":
    main()
