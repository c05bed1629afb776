"""A toy teacher: a tiny LLaVA, made from a configuration and trained on captioned public scenes.

It stands in for a multimodal language model where none is at hand, so that all stages run offline. It has the
parts and the two stages of LLaVA (Liu et al., 2023, arXiv 2304.08485, section 4): a CLIP vision tower, a
projector and a Llama. First image tokens learn to be like the words for what their patch shows, then the
whole model learns to answer, by next-token loss on the answer alone. It starts from random weights, and knows
drawn shapes only.

Run ``python -m server_app.teachers.toy --out FOLDER``; the model card in FOLDER says what was reached.
"""

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from transformers import LlavaForConditionalGeneration, get_cosine_schedule_with_warmup

from app.backbones import choose_device
from app.home import closed_home
from app.settings import feddat_home
from data_partitions.benchmarks import DataOptions, load_public, load_public_questions
from data_partitions.scenes import COLORS, SHAPES

from ..pretraining.tiny_llava import CAPTION_PROMPT, IGNORED, Answered, build, patch_words
from .models import LanguageModel

# Steps of the first stage for one of the second, and their images for one of its; a step costs a third.
NAMING_STEPS, NAMING_IMAGES = 2, 2


def name_patches(
    model: LlavaForConditionalGeneration,
    pixels: Tensor,
    words: Tensor,
    *,
    steps: int,
    batch_size: int,
    peak: float,
    seed: int,
) -> None:
    """Train vision tower and projector so that an image token is like the words for what its patch shows.

    As the first stage of LLaVA it aligns image tokens with word embeddings. A language model that has to
    learn seeing and finding at once learns neither for long.
    """
    generator = torch.Generator().manual_seed(seed)
    trained = [
        *model.model.vision_tower.parameters(),
        *model.model.multi_modal_projector.parameters(),
        *model.lm_head.parameters(),
    ]
    optimizer, schedule = _optimizer(trained, steps, peak)
    for _ in track(range(steps), "naming what patches show"):
        rows = torch.randint(len(pixels), (batch_size,), generator=generator)
        features = model.get_image_features(pixels[rows].float().to(model.device)).pooler_output
        logits = model.lm_head(torch.stack(list(features)))
        targets = words[rows].to(model.device, torch.float32)
        loss = binary_cross_entropy_with_logits(logits, targets, reduction="sum") / targets.sum()
        _step(loss, trained, optimizer, schedule)


def batches(
    captions: Answered, questions: Answered, size: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Answered, list[int]]]:
    """Yield `steps` batches of rows: captions, the shortest first; after a quarter mostly of questions."""
    short_first = sorted(range(len(captions.answers)), key=lambda row: len(captions.answers[row]))
    for step in range(steps):
        progress = step / steps
        if progress >= 1 / 4 and step % 4:
            rows = torch.randint(len(questions.answers), (size,), generator=generator).tolist()
            yield questions, rows
        else:
            within = max(size, int(min(1.0, 0.2 + 2 * progress) * len(short_first)))
            picks = torch.randint(within, (size,), generator=generator).tolist()
            yield captions, [short_first[pick] for pick in picks]


def train(
    model: LlavaForConditionalGeneration,
    captions: Answered,
    questions: Answered,
    *,
    steps: int,
    batch_size: int,
    peak: float,
    seed: int,
) -> None:
    """Train the whole model by next-token loss on the answers."""
    generator = torch.Generator().manual_seed(seed)
    trained = list(model.parameters())
    optimizer, schedule = _optimizer(trained, steps, peak)
    pad = model.config.get_text_config().pad_token_id
    drawn = batches(captions, questions, batch_size, steps, generator)
    for data, rows in track(drawn, "answering", total=steps):
        inputs = {key: value.to(model.device) for key, value in data.batch(rows, pad).items()}
        _step(model(**inputs).loss, trained, optimizer, schedule)


def _optimizer(trained: Sequence[nn.Parameter], steps: int, peak: float) -> tuple[AdamW, LRScheduler]:
    optimizer = AdamW(trained, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, max(1, steps // 50), steps)


def _step(loss: Tensor, trained: Sequence[nn.Parameter], optimizer: AdamW, schedule: LRScheduler) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    schedule.step()


@torch.no_grad()
def token_accuracy(model: LlavaForConditionalGeneration, data: Answered) -> float:
    """Return the share of answer tokens that are the most likely ones, given those before, in [0, 1]."""
    right = asked = 0
    for rows in torch.arange(len(data.answers)).split(100):
        inputs = data.batch(rows.tolist(), model.config.get_text_config().pad_token_id)
        labels = inputs.pop("labels")[:, 1:]
        guesses = model(**{key: value.to(model.device) for key, value in inputs.items()}).logits[:, :-1]
        right += int((guesses.argmax(-1).cpu() == labels)[labels != IGNORED].sum())
        asked += int((labels != IGNORED).sum())
    return right / asked


def answer_accuracy(model: LanguageModel, questions: Dataset, candidates: Sequence[str]) -> float:
    """Return the share of the questions about `candidates` that scoring them answers, in [0, 1]."""
    asked = questions.select([row for row, answer in enumerate(questions["answer"]) if answer in candidates])
    right = 0
    for start in range(0, len(asked), 50):
        some = asked[start : start + 50]
        scores, _ = model.log_likelihoods(some["image"], some["question"], candidates)
        chosen = scores.argmax(-1).tolist()
        right += sum(
            candidates[index] == answer for index, answer in zip(chosen, some["answer"], strict=True)
        )
    return right / max(1, len(asked))


# The options that the model card's command repeats.
REPEATED = ("images", "steps", "batch_size", "learning_rate", "seed", "out")

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# {name}: a toy teacher

A tiny LLaVA ({millions:.2f} M parameters) for trying out what a multimodal language model teaches, without a
download. Trained from scratch by this project on {images:,} drawn public scenes with descriptions and as many
with a question (benchmark `scenes`, public split, seed {seed}), none of them a client's. It knows nothing but
drawn shapes. On held-out public scenes:

| what | right |
|---|---:|
| tokens of the description, given those before | {tokens:.1%} |
| questions for a colour, by scoring the {num_colors} colours | {colors:.1%} |
| questions for a shape, by scoring the {num_shapes} shapes | {shapes:.1%} |
| questions for yes or no, by scoring the two | {yes_no:.1%} |

Repeat it with

    python -m server_app.teachers.toy {command}

which took {minutes:.1f} minutes on {machine}, with Python {python}.
"""


@closed_home()
def main(arguments: Sequence[str] | None = None) -> None:
    """Make a toy teacher, train it and save it."""
    parser = argparse.ArgumentParser(
        prog="python -m server_app.teachers.toy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the toy teacher")
    parser.add_argument("--images", type=int, default=8_000, help="public scenes to draw, and questions")
    parser.add_argument("--steps", type=int, default=1_500, help="batches to train on")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak of the schedule")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    started = time.monotonic()

    data_options = DataOptions(seed=options.seed, cache_dir=feddat_home() / "data")
    few = max(100, options.images // 10)
    captioned = load_public("scenes", data_options, options.images)
    captioned_aside = load_public("scenes", data_options, few, split="validation")
    asked = load_public_questions("scenes", data_options, options.images)
    asked_aside = load_public_questions("scenes", data_options, few, split="validation")
    descriptions = [captions[0] for captions in captioned["captions"]]
    model, processor = build([*descriptions, *asked["question"], *asked["answer"], CAPTION_PROMPT])

    def describe(data: Dataset) -> Answered:
        answers = [captions[0] for captions in data["captions"]]
        return Answered.load(data["image"], [CAPTION_PROMPT] * len(data), answers, processor)

    device = choose_device(options.device)
    model = model.to(device)  # type: ignore[arg-type]
    described = describe(captioned)
    name_patches(
        model,
        described.pixels,
        patch_words(descriptions, processor.tokenizer),
        steps=NAMING_STEPS * options.steps,
        batch_size=NAMING_IMAGES * options.batch_size,
        peak=options.learning_rate,
        seed=options.seed,
    )
    train(
        model,
        described,
        Answered.load(asked["image"], asked["question"], asked["answer"], processor),
        steps=options.steps,
        batch_size=options.batch_size,
        peak=options.learning_rate,
        seed=options.seed,
    )
    model.eval()
    scorer = LanguageModel(model, processor)
    card = CARD.format(
        name=options.out.name,
        millions=model.num_parameters() / 1e6,
        tokens=token_accuracy(model, describe(captioned_aside)),
        colors=answer_accuracy(scorer, asked_aside, COLORS),
        shapes=answer_accuracy(scorer, asked_aside, SHAPES),
        yes_no=answer_accuracy(scorer, asked_aside, ("yes", "no")),
        num_colors=len(COLORS),
        num_shapes=len(SHAPES),
        command=" ".join(f"--{key.replace('_', '-')} {getattr(options, key)}" for key in REPEATED),
        minutes=(time.monotonic() - started) / 60,
        machine=f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else "one GPU",
        python=platform.python_version(),
        images=options.images,
        seed=options.seed,
    )
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    (options.out / "README.md").write_text(card, encoding="utf-8")
    print(card)
    print(f"saved to {options.out.resolve()}")


if __name__ == "__main__":
    main()
