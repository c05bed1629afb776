"""The command of stage 1: trains a backbone by an objective and saves it.

Run ``python -m server_app.pretraining OBJECTIVE --out FOLDER``; the model card in FOLDER says what was
reached.
"""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import ViltConfig

from app.backbones import choose_device, load_backbone
from app.home import closed_home
from app.processor import Processor
from app.settings import feddat_home
from data_partitions.benchmarks import DataOptions, load_public, load_public_questions

from .answering import Answering
from .backbone_folder import read_card, save
from .caption_batches import CaptionedImages
from .dynamic_weighting import DynamicWeighting, Student, split_aside
from .frozen_models import load_frozen
from .masked_captions import TINY_VILT, MaskedCaptions, build_tokenizer
from .picture_answering import PictureAnswering
from .picture_questions import load_photographs
from .question_answering import QuestionAnswering
from .trainer import Objective, train

Prepare = Callable[[argparse.Namespace, DataOptions, torch.device], Objective]

# The model card's command repeats all others.
NOT_REPEATED = ("objective", "prepare", "device")
RECIPE = """
Repeat that with

    python -m server_app.pretraining {command}

which took {minutes:.0f} minutes on {machine}, with Python {python}.
"""


def masked_captions(options: argparse.Namespace, public: DataOptions, device: torch.device) -> Objective:
    """Make a tiny ViLT from nothing: masked words and matching, on captioned scenes."""
    drawn = load_public("scenes", public, options.images)
    aside = load_public("scenes", public, max(100, options.images // 20), split="validation")
    tokenizer = build_tokenizer([caption for captions in drawn["captions"] for caption in captions])
    config = ViltConfig(**TINY_VILT, vocab_size=len(tokenizer), hidden_dropout_prob=0.0)
    half = (0.5, 0.5, 0.5)
    processor = Processor(
        tokenizer, TINY_VILT["image_size"], TINY_VILT["max_position_embeddings"], mean=half, std=half
    )
    data, held_out = (CaptionedImages.load(split, processor) for split in (drawn, aside))
    return MaskedCaptions(config, data, held_out, processor)


def question_answering(options: argparse.Namespace, public: DataOptions, device: torch.device) -> Objective:
    """Go on with a ViLT: questions about scenes, answered in the pooled feature."""
    held_out = max(100, options.images // 20)
    drawn = load_public_questions("scenes", public, options.images, style=options.style)
    aside = load_public_questions("scenes", public, held_out, split="validation", style=options.style)
    return QuestionAnswering(load_backbone(options.start), drawn, {"scenes": aside})


def picture_answering(options: argparse.Namespace, public: DataOptions, device: torch.device) -> Objective:
    """Go on with a ViLT: questions about photographs, made of their labels, beside those about scenes."""
    photographs = load_photographs(options.pictures, options.apart_from or ())
    held_out = max(100, options.images // 20)
    return PictureAnswering(
        load_backbone(options.start),
        load_public_questions("scenes", public, options.images, style="any-paper"),
        load_public_questions("scenes", public, held_out, split="validation", style="any-paper"),
        photographs=photographs,
        number=options.picture_questions,
        source=options.pictures.name,
        patches=options.patches,
    )


def answering(options: argparse.Namespace, public: DataOptions, device: torch.device) -> Objective:
    """Make a tiny LLaVA from nothing: descriptions, sentences and answers to questions about scenes."""
    drawn = load_public("scenes", public, options.images)
    asked, aside = (
        load_public_questions("scenes", public, number, split=split, style="any-paper")
        for number, split in (
            (2 * options.images, "train"),
            (max(100, options.images // 10), "validation"),
        )
    )
    return Answering(drawn, asked, aside, load_backbone(options.start) if options.start else None)


def dynamic_weighting(options: argparse.Namespace, public: DataOptions, device: torch.device) -> Objective:
    """Go on with a backbone: captions told by a frozen language model, beside a frozen encoder."""
    models = load_frozen(options.encoder, options.language_model or options.encoder, device)
    data, held_out = split_aside(load_public("scenes", public, options.images))
    return DynamicWeighting(Student(load_backbone(options.start)), *models, data, held_out)


def read_options(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """Parse the command line: an objective, and what it needs."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    objectives = parser.add_subparsers(dest="objective", required=True)

    def positive(text: str) -> int:
        if (number := int(text)) < 1:
            raise argparse.ArgumentTypeError(f"{number}; allowed: 1 or more")
        return number

    def add(
        name: str, prepare: Prepare, images: int, steps: int, batch_size: int, peak: float
    ) -> argparse.ArgumentParser:
        command = objectives.add_parser(name, help=prepare.__doc__, description=prepare.__doc__)
        command.set_defaults(prepare=prepare)
        command.add_argument("--images", type=positive, default=images, help="public scenes to draw")
        command.add_argument("--steps", type=positive, default=steps, help="batches to train on")
        command.add_argument("--batch-size", type=positive, default=batch_size)
        command.add_argument("--learning-rate", type=float, default=peak, help="peak of the schedule")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--out", type=Path, required=True, help="folder for the pretrained backbone")
        command.add_argument("--device", default="auto", help="auto, cpu or cuda")
        return command

    add("captions", masked_captions, 40_000, 7_000, 64, 1e-3)
    questions = add("questions", question_answering, 50_000, 3_000, 96, 7e-4)
    questions.add_argument("--start", required=True, help="the backbone to go on with")
    questions.add_argument("--style", default="varied", help="how to draw the scenes: varied, or any-paper")
    pictures = add("pictures", picture_answering, 40_000, 8_000, 96, 1e-3)
    pictures.add_argument("--start", required=True, help="the backbone to go on with")
    pictures.add_argument(
        "--pictures", type=Path, required=True, help="parquet file: image, label_name, split"
    )
    pictures.add_argument(
        "--apart-from", type=Path, nargs="+", help="parquet files whose pictures are left out"
    )
    pictures.add_argument("--picture-questions", type=positive, default=160_000, help="questions about them")
    pictures.add_argument("--patches", type=positive, help="how many to look at in training; left out: all")
    answers = add("answers", answering, 30_000, 4_500, 64, 1.5e-3)
    answers.add_argument("--start", help="the LLaVA to go on with, made by this; left out: from nothing")
    dynamic = add("dynamic", dynamic_weighting, 10_000, 2_000, 32, 3e-4)
    dynamic.add_argument("--start", default="tiny-vilt", help="the backbone to go on with")
    dynamic.add_argument("--encoder", required=True, help="folder or hub id: a CLIP, a ViT, or a LLaVA's own")
    dynamic.add_argument("--language-model", help="folder or hub id; left out: the LLaVA of --encoder")
    return parser.parse_args(arguments)


@closed_home()
def main(arguments: Sequence[str] | None = None, prog: str = "python -m server_app.pretraining") -> None:
    """Train a backbone and save it, every so often and at the end."""
    options = read_options(arguments, prog)
    started = time.monotonic()
    torch.manual_seed(options.seed)
    try:
        device = choose_device(options.device)
        public = DataOptions(seed=options.seed, cache_dir=feddat_home() / "data")
        objective = options.prepare(options, public, device).to(device)
    except ValueError as error:
        raise SystemExit(f"feddat: {' '.join(str(error).split())}") from None
    before = read_card(options.start) if getattr(options, "start", None) else ""
    given = {
        key: value for key, value in vars(options).items() if key not in NOT_REPEATED and value is not None
    }
    words = {
        key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in given.items()
    }
    command = " ".join([options.objective, *(f"--{key.replace('_', '-')} {words[key]}" for key in words)])

    def keep(step: int, reached: dict[str, float]) -> None:
        """Save the backbone as it is, so that a training that is stopped leaves what it had."""
        done = f"{step:,} of {options.steps:,} batches of {options.batch_size}"
        recipe = RECIPE.format(
            command=command,
            minutes=(time.monotonic() - started) / 60,
            machine=f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else "one GPU",
            python=platform.python_version(),
        )
        card = before + objective.describe(options.out.name, options.seed, done, reached) + recipe
        save(objective.backbone, objective.processor, options.out, card)

    train(
        objective,
        steps=options.steps,
        batch_size=options.batch_size,
        peak=options.learning_rate,
        seed=options.seed,
        keep=keep,
    )
    print(f"saved to {options.out.resolve()}")


if __name__ == "__main__":
    main()
